"""InfoNCE against a queue of 65,536 keys, forward and backward: the losses of DenseCL and MoCo-v2.

Everybody starts from the maps as the heads give them, normalises, fetches each query's positive by index, and returns
the mean loss and the gradient of the queries. ``dense`` is DenseCL's loss at every cell, ``global`` is MoCo's.

In bfloat16 the maps are what a head under autocast gives. The published form keeps its float32 queue, as a
training script under autocast does; those who read a bfloat16 queue say so.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .candidate import PUBLISHED, Candidate, Case
from .opponents import compiled_step, eager_step, ours
from .training import Step

TEMPERATURE = 0.2
CHUNK = 128  # query rows whose logits are held at once by the hand-chunked form: 32 MiB at 65,536 keys

#: (B, S, K, D)
SHAPES = {
    "dense": (32, 49, 65536, 128),
    "global": (32, 1, 65536, 128),
    "small": (4, 16, 2048, 64),
}


@dataclass
class Losses:
    """Maps of both views, the queue in both layouts, and for each query cell the cell of its key."""

    q: Tensor  # [B, D, S]
    k: Tensor  # [B, D, S]
    match: Tensor  # int64 [B, S]
    queue: Tensor  # [K, D], as avfast keeps it, in the dtype of the maps
    columns: Tensor  # [D, K], as the papers' code keeps it, float32

    def step(self, forward: Callable[[Losses], Tensor]) -> Step:
        return Step(
            lambda: forward(self),
            {"q": self.q},
            None,
            parameters=[self.queue, self.columns],
            inputs=[self.q, self.k],
        )


@functools.lru_cache(maxsize=1)
def _values(shape: tuple[int, ...], dtype: torch.dtype) -> Losses:
    b, s, k, d = shape
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(b, d, s, generator=generator).to(dtype)
    match = torch.stack([torch.randperm(s, generator=generator) for _ in range(b)])
    key = torch.randn(b, d, s, generator=generator)
    # A key sees half of what its query sees.
    key.scatter_add_(2, match[:, None].expand(-1, d, -1), q.float())
    queue = F.normalize(torch.randn(k, d, generator=generator), dim=1).to(dtype)
    return Losses(q, key.to(dtype), match, queue, queue.float().T.contiguous())


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Losses:
    """Nobody writes to them; the queries are a fresh leaf."""
    fixed = {name: value.to(device) for name, value in vars(_values(shape, dtype)).items()}
    return Losses(**{**fixed, "q": fixed["q"].clone().requires_grad_()})


def rows(n: Losses) -> tuple[Tensor, Tensor]:
    """Unit query rows and the unit key of each, ``[B S, D]``."""
    index = n.match[:, None].expand_as(n.q)
    keys = F.normalize(n.k, dim=1).gather(2, index)
    return tuple(x.movedim(1, 2).flatten(0, 1) for x in (F.normalize(n.q, dim=1), keys))


def published(n: Losses) -> Tensor:
    """As in the papers: all logits in one matrix, positives first, and cross-entropy with class 0."""
    q, keys = rows(n)
    positive = torch.einsum("nd,nd->n", q, keys).unsqueeze(1)
    negative = torch.einsum("nd,dk->nk", q, n.columns.clone())
    logits = torch.cat([positive, negative], dim=1) / TEMPERATURE
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))


def lean(n: Losses) -> Tensor:
    """No matrix but the logits themselves; logits of bfloat16 operands are summed in float32."""
    q, keys = rows(n)
    positive = (q * keys).sum(1).float() / TEMPERATURE
    negative = (q @ n.queue.T).float().div(TEMPERATURE).logsumexp(1)
    return (torch.logaddexp(negative, positive) - positive).mean()


def autocast(forward: Callable[[Losses], Tensor]) -> Callable[[Losses], Tensor]:
    def under_autocast(n: Losses) -> Tensor:
        with torch.autocast(n.q.device.type, torch.bfloat16):
            return forward(n)

    return under_autocast


class _KnownGradient(torch.autograd.Function):
    """Loss rows of unit queries [N, D] whose gradient ``pass_`` finds on the way; both in float32."""

    @staticmethod
    def forward(ctx, q: Tensor, keys: Tensor, queue: Tensor, pass_: Callable) -> Tensor:
        positive = (q * keys).sum(1, dtype=torch.float32) / TEMPERATURE
        negative, pulled = pass_(q, queue)  # log-sum-exp of the negatives, and their softmax-weighted mean
        loss = F.softplus(negative - positive)
        share = torch.exp(negative - positive - loss).unsqueeze(1)  # 1 - p of the positive
        ctx.save_for_backward(((pulled.float() - keys) * (share / TEMPERATURE)).to(q.dtype))
        return loss

    @staticmethod
    def backward(ctx, grad: Tensor):
        return ctx.saved_tensors[0] * grad.unsqueeze(1).to(ctx.saved_tensors[0].dtype), None, None, None


def _attention(q: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
    """Queries attend to the queue with the keys as values: torch's flash attention, its forward pass alone."""
    pulled, negative = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q[None, None], queue[None, None], queue[None, None], scale=1 / TEMPERATURE
    )
    return negative.flatten(), pulled[0, 0]


def _chunks(q: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
    negative, pulled = [], []
    for part in q.split(CHUNK):
        logits = (part @ queue.T).float().div_(TEMPERATURE)
        negative.append(logits.logsumexp(1))
        p = logits.sub_(negative[-1].unsqueeze(1)).exp_()
        pulled.append(p.to(queue.dtype) @ queue)
    return torch.cat(negative), torch.cat(pulled)


def flash(n: Losses) -> Tensor:
    return _KnownGradient.apply(*rows(n), n.queue, _attention).mean()


def chunked(n: Losses) -> Tensor:
    return _KnownGradient.apply(*rows(n), n.queue, _chunks).mean()


def avfast_loss(n: Losses) -> Tensor:
    import avfast

    if n.q.shape[2] == 1:
        q, k = n.q.squeeze(2), n.k.squeeze(2)
        return avfast.queue_info_nce(q, k, n.queue, temperature=TEMPERATURE)
    return avfast.dense_contrastive(n.q, n.k, n.queue, n.match, temperature=TEMPERATURE)


def oracle(n: Losses) -> dict[str, Tensor]:
    """Float64, a few rows at a time, the gradient in closed form through the normalisation."""
    queue, q, k = n.queue.double(), n.q.detach().double(), n.k.double()
    total, gradient = 0.0, torch.empty_like(q)
    for i, cells in enumerate(n.match):
        raw = q[i].T  # [S, D]
        length = raw.norm(dim=1, keepdim=True)
        unit, keys = raw / length, F.normalize(k[i].T[cells], dim=1)
        positive = (unit * keys).sum(1, keepdim=True) / TEMPERATURE
        p = torch.cat([positive, unit @ queue.T / TEMPERATURE], dim=1).log_softmax(1)
        total = total - p[:, 0].sum()
        g = (p[:, 1:].exp() @ queue + torch.expm1(p[:, :1]) * keys) / TEMPERATURE
        gradient[i] = ((g - (g * unit).sum(1, keepdim=True) * unit) / length).T
    return {"output": total / n.match.numel(), "d_q": gradient / n.match.numel()}


def _rivals(dtype: torch.dtype, device: str, small: bool) -> tuple[Candidate, ...]:
    on_cpu = {"missing": lambda: None if device == "cpu" else "torch has this form of it on the CPU only"}
    by_hand = (
        eager_step("torch flash attention, V = K", flash, **on_cpu),
        eager_step("chunked, analytic gradient", chunked),
    )
    if dtype == torch.bfloat16:
        return (
            eager_step("eager, autocast", autocast(published), PUBLISHED),
            eager_step("lean, bf16 queue", lean),
            *by_hand,
            compiled_step("eager, autocast", autocast(published), device, slow=small),
            compiled_step("lean, bf16 queue", lean, device, slow=small),
        )
    return (
        eager_step("eager", published, PUBLISHED),
        eager_step("lean", lean),
        *by_hand,
        compiled_step("eager", published, device, slow=small),
        compiled_step("lean", lean, device, slow=small),
    )


def case(name: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Case:
    b, s, k, d = shape = SHAPES[name]
    slow = 5 if name == "dense" else 0
    return Case(
        op="queue_info_nce",
        shape_name=name,
        shape=shape,
        inputs=lambda: inputs(shape, dtype, device),
        oracle=oracle,
        candidates=(
            *_rivals(dtype, device, name == "small"),
            *ours("queue_info_nce", lambda n: n.step(avfast_loss), dict, device, backends=not slow),
        ),
        mode="forward+backward",
        dtype=dtype,
        device=device,
        bytes_moved=(3 * b * s * d + k * d) * dtype.itemsize,
        flops=4 * b * s * k * d,  # scores, and the weighted sum of keys
        traffic="fma",
        slow_rounds=slow,
    )


def cases(device: str = "cpu") -> list[Case]:
    return [case(name, dtype, device) for name in SHAPES for dtype in (torch.float32, torch.bfloat16)]


def test_queue_info_nce(case, candidate, measure):
    measure(case, candidate)
