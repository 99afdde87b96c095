"""A linear layer over two modalities, forward and backward; half of the rows have only one, or all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from .candidate import PUBLISHED, Case
from .opponents import compiled_step, eager_step, ours
from .training import Step

#: (R, Da, Dv, C) and the shares of rows with audio alone and with video alone
SHAPES = {
    "tokens": ((4096, 512, 512, 512), (0.25, 0.25)),
    "single": ((4096, 512, 512, 512), (0.5, 0.5)),
    "wide": ((1024, 768, 768, 768), (0.25, 0.25)),
    "classes": ((256, 512, 512, 309), (0.25, 0.25)),
}


@dataclass
class Head:
    """Rows of two modalities, which rows have them, a linear layer, and the gradient of the output."""

    a: Tensor
    v: Tensor
    mask_a: Tensor
    mask_v: Tensor
    weight: Tensor
    bias: Tensor
    gradient: Tensor

    def step(self, forward: Callable[[Head], Tensor]) -> Step:
        leaves = {"a": self.a, "v": self.v, "weight": self.weight, "bias": self.bias}
        return Step(lambda: forward(self), leaves, self.gradient, inputs=leaves.values())


@functools.lru_cache(maxsize=1)
def _values(name: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    (rows, depth_a, depth_v, classes), (alone_a, alone_v) = SHAPES[name]
    generator = torch.Generator().manual_seed(0)
    shapes = ((rows, depth_a), (rows, depth_v), (classes, depth_a + depth_v), (classes,), (rows, classes))
    a, v, weight, bias, gradient = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    kind = torch.rand(rows, generator=generator)
    return a, v, weight / (depth_a + depth_v) ** 0.5, bias, gradient, kind < 1 - alone_v, kind >= alone_a


def inputs(name: str, dtype: torch.dtype, device: str) -> Head:
    a, v, weight, bias, gradient, mask_a, mask_v = (x.to(device) for x in _values(name, dtype))
    # Audio alone below alone_a, video alone above 1 - alone_v, both between.
    a, v, weight, bias = (x.detach().requires_grad_() for x in (a, v, weight, bias))
    return Head(a, v, mask_a, mask_v, weight, bias, gradient)


def published(n: Head) -> Tensor:
    """Masks as factors, the concatenation, a linear layer."""
    m_a, m_v = (m.to(n.a.dtype)[:, None] for m in (n.mask_a, n.mask_v))
    return linear(torch.cat([n.a * m_a, n.v * m_v], dim=1), n.weight, n.bias)


def lean(n: Head) -> Tensor:
    """The rows that have each modality times its half of the weight, added where they belong."""
    half = n.a.shape[1]
    has_a, has_v = n.mask_a.nonzero()[:, 0], n.mask_v.nonzero()[:, 0]
    out = n.bias.expand(len(n.a), -1).index_add(0, has_a, n.a[has_a] @ n.weight[:, :half].T)
    return out.index_add(0, has_v, n.v[has_v] @ n.weight[:, half:].T)


def avfast_linear(n: Head) -> Tensor:
    import avfast

    return avfast.masked_concat_linear(n.a, n.v, n.weight, n.bias, mask_a=n.mask_a, mask_v=n.mask_v)


def oracle(n: Head) -> dict[str, Tensor]:
    """Float64, by the definition."""
    a, v, weight, bias, g = (x.detach().double() for x in (n.a, n.v, n.weight, n.bias, n.gradient))
    a, v = a * n.mask_a[:, None], v * n.mask_v[:, None]
    joined, half = torch.cat([a, v], 1), a.shape[1]
    back = g @ weight
    return {
        "output": joined @ weight.T + bias,
        "d_a": back[:, :half] * n.mask_a[:, None],
        "d_v": back[:, half:] * n.mask_v[:, None],
        "d_weight": g.T @ joined,
        "d_bias": g.sum(0),
    }


def case(name: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Case:
    shape, (alone_a, alone_v) = SHAPES[name]
    rows, depth_a, depth_v, classes = shape
    return Case(
        op="masked_concat_linear",
        shape_name=name,
        shape=shape,
        inputs=lambda: inputs(name, dtype, device),
        oracle=oracle,
        candidates=(
            eager_step("masks and concatenation", published, PUBLISHED),
            eager_step("lean", lean),
            compiled_step("masks and concatenation", published, device),
            *ours("masked_concat_linear", lambda n: n.step(avfast_linear), dict, device),
        ),
        mode="forward+backward",
        dtype=dtype,
        device=device,
        # Three products of the rows that have a modality.
        flops=int(6 * rows * classes * (depth_a * (1 - alone_v) + depth_v * (1 - alone_a))),
        traffic="fma",
    )


def cases(device: str = "cpu") -> list[Case]:
    return [case(name, device=device) for name in SHAPES] + [case("tokens", torch.bfloat16, device)]


def test_masked_concat_linear(case, candidate, measure):
    measure(case, candidate)
