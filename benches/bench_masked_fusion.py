"""Audio and video tokens joined where either may be absent, forward and backward, with learned weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .candidate import PUBLISHED, Case
from .opponents import compiled_step, eager_step, ours
from .training import Step

#: (B, T, D)
SHAPES = {"tokens": (32, 196, 768), "features": (256, 1, 512)}
ABSENT = 0.3


@dataclass
class Pair:
    """Tokens of two modalities, which samples have them, a weight for each, and the gradient of the output."""

    a: Tensor
    v: Tensor
    mask_a: Tensor
    mask_v: Tensor
    weight_a: Tensor
    weight_v: Tensor
    gradient: Tensor

    def step(self, forward: Callable[[Pair], Tensor]) -> Step:
        leaves = {"a": self.a, "v": self.v, "weight_a": self.weight_a, "weight_v": self.weight_v}
        return Step(lambda: forward(self), leaves, self.gradient, inputs=leaves.values())


@functools.lru_cache(maxsize=1)
def _values(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, *shape, generator=generator).to(dtype)
    masks = torch.rand(2, shape[0], generator=generator) >= ABSENT
    return *tokens.unbind(), *masks.unbind()


def inputs(shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> Pair:
    a, v, gradient, mask_a, mask_v = (x.to(device) for x in _values(shape, dtype))
    a, v = (x.detach().requires_grad_() for x in (a, v))
    weights = (torch.tensor(w, device=device, requires_grad=True) for w in (0.7, 0.4))
    return Pair(a, v, mask_a, mask_v, *weights, gradient)


def published(n: Pair) -> Tensor:
    """Masks as factors: both products, their sum, and a division by the weights that are left."""
    m_a, m_v = (m.to(n.a.dtype)[:, None, None] for m in (n.mask_a, n.mask_v))
    total = n.weight_a * m_a + n.weight_v * m_v
    out = (n.weight_a * m_a * n.a + n.weight_v * m_v * n.v) * (n.weight_a + n.weight_v) / total.clamp(min=1e-8)
    return out.to(n.a.dtype)


def lean(n: Pair) -> Tensor:
    """A factor for each sample and modality, then two products and a sum."""
    alone = n.weight_a + n.weight_v
    by_a = torch.where(n.mask_a, torch.where(n.mask_v, n.weight_a, alone), 0.0)
    by_v = torch.where(n.mask_v, torch.where(n.mask_a, n.weight_v, alone), 0.0)
    return torch.addcmul(by_a[:, None, None].to(n.a.dtype) * n.a, by_v[:, None, None].to(n.a.dtype), n.v)


def avfast_fusion(n: Pair) -> Tensor:
    import avfast

    return avfast.masked_fusion(n.a, n.v, mask_a=n.mask_a, mask_v=n.mask_v, weight_a=n.weight_a, weight_v=n.weight_v)


def oracle(n: Pair) -> dict[str, Tensor]:
    """Float64, sample by sample."""
    a, v, g = (x.detach().double() for x in (n.a, n.v, n.gradient))
    w_a, w_v = n.weight_a.item(), n.weight_v.item()
    found = {name: torch.zeros_like(a) for name in ("output", "d_a", "d_v")}
    of_a, of_v = 0.0, 0.0
    for i, (has_a, has_v) in enumerate(zip(n.mask_a.tolist(), n.mask_v.tolist(), strict=True)):
        ga, gv = (g[i] * a[i]).sum(), (g[i] * v[i]).sum()
        if has_a and has_v:
            found["output"][i] = w_a * a[i] + w_v * v[i]
            found["d_a"][i], found["d_v"][i] = w_a * g[i], w_v * g[i]
            of_a, of_v = of_a + ga, of_v + gv
        elif has_a or has_v:
            x, name, pulled = (a, "d_a", ga) if has_a else (v, "d_v", gv)
            found["output"][i], found[name][i] = (w_a + w_v) * x[i], (w_a + w_v) * g[i]
            of_a, of_v = of_a + pulled, of_v + pulled
    return {**found, "d_weight_a": of_a, "d_weight_v": of_v}


def case(name: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Case:
    shape = SHAPES[name]
    values = shape[0] * shape[1] * shape[2]
    return Case(
        op="masked_fusion",
        shape_name=name,
        shape=shape,
        inputs=lambda: inputs(shape, dtype, device),
        oracle=oracle,
        candidates=(
            eager_step("masks as factors", published, PUBLISHED),
            eager_step("lean", lean),
            compiled_step("masks as factors", published, device),
            compiled_step("lean", lean, device),
            *ours("masked_fusion", lambda n: n.step(avfast_fusion), dict, device),
        ),
        mode="forward+backward",
        dtype=dtype,
        device=device,
        # Forward reads two and writes one, backward reads three and writes two, of which what is absent is not read.
        bytes_moved=int(values * dtype.itemsize * (4 + 4 * (1 - ABSENT))),
        traffic="copy",
    )


def cases(device: str = "cpu") -> list[Case]:
    return [case("tokens", device=device), case("features", device=device), case("tokens", torch.bfloat16, device)]


def test_masked_fusion(case, candidate, measure):
    measure(case, candidate)
