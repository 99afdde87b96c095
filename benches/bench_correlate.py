"""One context attends to several exemplars, a softmax each: the attention of CIM's decoder.

Queries are those of the context, which all exemplars share; keys and values come as one projection gives them, side by
side. A form that goes from exemplar to exemplar returns one output of each, as its loss would take them: nobody is
charged for putting them together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .candidate import LEAN, PEER, PUBLISHED, Candidate, Case
from .opponents import compile_of, compiled_step, eager_step, ours, plain
from .training import Step

#: (B, E, Nq, Nk, H, d)
SHAPES = {
    "recipe": (16, 6, 101, 17, 16, 32),
    "long": (4, 6, 101, 197, 16, 32),
    "small": (2, 3, 10, 5, 2, 8),
    "card": (256, 6, 101, 17, 16, 32),
}
Outputs = Tensor | tuple[Tensor, ...]


@dataclass
class Tokens:
    """Queries of the context, keys and values of its exemplars, and the gradient of the output."""

    q: Tensor  # [B, Nq, H, d]
    k: Tensor  # [B, E, Nk, H, d]
    v: Tensor  # [B, E, Nk, H, d]
    gradient: Tensor  # [B, E, Nq, H d]
    per_exemplar: bool = False  # the form to be trained returns one output for each

    def step(self, forward: Callable[[Tokens], Outputs]) -> Step:
        leaves = {"q": self.q, "k": self.k, "v": self.v}
        seed = self.gradient.unbind(1) if self.per_exemplar else self.gradient
        return Step(lambda: forward(self), leaves, seed, inputs=leaves.values())


@functools.lru_cache(maxsize=1)
def _values(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    b, e, nq, nk, h, d = shape
    generator = torch.Generator().manual_seed(0)
    sizes = (b, nq, h, d), (b, e, nk, 2, h, d), (b, e, nq, h * d)
    return tuple(torch.randn(size, generator=generator).to(dtype) for size in sizes)


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str, *, training: bool) -> Tokens:
    """Nobody writes to them; with ``training`` queries, keys and values are fresh leaves."""
    q, kv, gradient = (x.to(device) for x in _values(shape, dtype))
    leaves = (x.detach().requires_grad_(training) for x in (q, *kv.unbind(3)))
    return Tokens(*leaves, gradient)


# ------------------------------------------------------------------------------------------------- the others


def _one(t: Tokens, e: int) -> tuple[Tensor, Tensor, Tensor]:
    """Heads before positions, of one exemplar."""
    return tuple(x.transpose(1, 2) for x in (t.q, t.k[:, e], t.v[:, e]))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``[B, H, N, d]`` to ``[B, Nq, H d]``: scores, softmax, a mask of what is not a number, a copy without it."""
    p = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
    p = p.masked_fill(torch.isnan(p), 0.0)
    return (p @ v).transpose(1, 2).flatten(2)


def published(t: Tokens) -> tuple[Tensor, ...]:
    """Exemplar by exemplar and in float32."""
    exemplars = (_one(t, e) for e in range(t.k.shape[1]))
    return tuple(attend(*(x.float() for x in one)).to(t.q.dtype) for one in exemplars)


def lean(t: Tokens) -> Tensor:
    """The keys of all exemplars in one product, so that neither queries nor their gradient exist once per exemplar."""
    e, n = t.k.shape[1:3]
    q = (t.q * t.q.shape[-1] ** -0.5).transpose(1, 2)  # [B, H, Nq, d]
    scores = q @ t.k.flatten(1, 2).permute(0, 2, 3, 1)  # [B, H, Nq, E Nk]
    p = scores.unflatten(-1, (e, n)).softmax(dim=-1)
    return torch.einsum("bhien,benhd->beihd", p, t.v).flatten(3)


def sdpa_looped(t: Tokens) -> tuple[Tensor, ...]:
    exemplars = (F.scaled_dot_product_attention(*_one(t, e)) for e in range(t.k.shape[1]))
    return tuple(out.transpose(1, 2).flatten(2) for out in exemplars)


def sdpa_batched(t: Tokens) -> Tensor:
    """Exemplars as further entries of the batch; the queries of each are the same memory until torch copies them."""
    b, e = t.k.shape[:2]
    q = t.q.unsqueeze(1).expand(-1, e, -1, -1, -1)
    q, k, v = (x.flatten(0, 1).transpose(1, 2) for x in (q, t.k, t.v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).unflatten(0, (b, e))


# ------------------------------------------------------------------------------------------------------- ours


def avfast_correlate(t: Tokens) -> Tensor:
    import avfast

    return avfast.correlate(t.q, t.k, t.v)


def view(result: Outputs) -> dict[str, Tensor]:
    return {"output": result if isinstance(result, Tensor) else torch.stack(result, dim=1)}


def view_step(result: dict[str, Outputs]) -> dict[str, Tensor]:
    return {**result, **view(result["output"])}


def oracle(t: Tokens, *, training: bool) -> dict[str, Tensor]:
    """Float64, exemplar by exemplar, the gradients in closed form."""
    q, gradient, scale = t.q.detach().double(), t.gradient.double(), t.q.shape[-1] ** -0.5
    outputs, d_q, d_kv = [], torch.zeros_like(q), []
    for k, v, g in zip(t.k.detach().unbind(1), t.v.detach().unbind(1), gradient.unbind(1), strict=True):
        k, v, g = k.double(), v.double(), g.unflatten(2, q.shape[2:])
        p = torch.einsum("bihd,bjhd->bhij", q, k).mul(scale).softmax(-1)
        out = torch.einsum("bhij,bjhd->bihd", p, v)
        outputs.append(out.flatten(2))
        pulled = torch.einsum("bihd,bjhd->bhij", g, v)
        delta = (g * out).sum(3).transpose(1, 2).unsqueeze(3)  # [B, H, Nq, 1]
        slope = p * (pulled - delta) * scale
        d_q += torch.einsum("bhij,bjhd->bihd", slope, k)
        d_kv.append((torch.einsum("bhij,bihd->bjhd", slope, q), torch.einsum("bhij,bihd->bjhd", p, g)))
    if not training:
        return view(tuple(outputs))
    d_k, d_v = (torch.stack(parts, dim=1) for parts in zip(*d_kv, strict=True))
    return {**view(tuple(outputs)), "d_q": d_q, "d_k": d_k, "d_v": d_v}


# ------------------------------------------------------------------------------------------------------- cases

FORMS = {"eager": published, "lean": lean, "SDPA, looped": sdpa_looped, "SDPA, batched": sdpa_batched}
ROLES = {"eager": PUBLISHED, "lean": LEAN}
LOOPED = ("eager", "SDPA, looped")


def _forward(device: str, small: bool) -> tuple[Candidate, ...]:
    return (
        *(plain(name, form, view, ROLES.get(name, PEER)) for name, form in FORMS.items()),
        *(compile_of(name, FORMS[name], view, device, slow=small) for name in ("eager", "lean", "SDPA, looped")),
        *ours("correlate", lambda t: lambda: avfast_correlate(t), view, device),
    )


def _training(device: str, small: bool) -> tuple[Candidate, ...]:
    eager = (eager_step(name, form, ROLES.get(name, PEER)) for name, form in FORMS.items())
    compiled = (compiled_step(name, FORMS[name], device, slow=small) for name in ("eager", "lean", "SDPA, looped"))
    return (
        *(_of_step(candidate) for candidate in (*eager, *compiled)),
        *ours("correlate", lambda t: t.step(avfast_correlate), view_step, device),
    )


def _of_step(candidate: Candidate) -> Candidate:
    """A form that loops is given the gradient of each of its outputs."""
    looped = any(name in candidate.name for name in LOOPED)
    return replace(candidate, view=view_step, prepare=lambda t: candidate.prepare(replace(t, per_exemplar=looped)))


def case(name: str, mode: str = "forward", dtype: torch.dtype = torch.float32, device: str = "cpu") -> Case:
    b, e, nq, nk, h, d = shape = SHAPES[name]
    training = mode == "forward+backward"
    rows, keys = b * nq * h * d, b * e * nk * h * d
    # Forward reads q, k, v and writes the output; backward reads these and its gradient, and writes three gradients.
    traffic = rows + 2 * keys + e * rows + (2 * rows + 4 * keys + e * rows if training else 0)
    return Case(
        op="correlate",
        shape_name=name,
        shape=shape,
        inputs=lambda: inputs(shape, dtype, device, training=training),
        oracle=lambda t: oracle(t, training=training),
        candidates=(_training if training else _forward)(device, name == "small"),
        mode=mode,
        dtype=dtype,
        device=device,
        bytes_moved=traffic * dtype.itemsize,
        flops=(14 if training else 4) * b * e * h * nq * nk * d,
        traffic="fma",
    )


MODES = ("forward", "forward+backward")


def cases(device: str = "cpu") -> list[Case]:
    if torch.device(device).type == "cuda":
        return [case("card", mode, dtype, device) for dtype in (torch.bfloat16, torch.float32) for mode in MODES]
    return [case(name, mode) for name in ("recipe", "long", "small") for mode in MODES]


def test_correlate(case, candidate, measure):
    measure(case, candidate)
