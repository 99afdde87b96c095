"""NT-Xent of two views, forward and backward, from 64 pairs to the 16,384 whose logits fill 4 GiB."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .candidate import PEER, PUBLISHED, Candidate, Case
from .limited import out_of_memory
from .opponents import compiled_step, eager_step, installed, ours
from .pairs import Pairs, pairs, through_unit, unit

TEMPERATURE = 0.1
CHUNK = 256
MEMORY = 8 * 2**30  # two copies of the largest logits do not fit

#: (N, D), N pairs
SHAPES = {
    "pairs-64": (64, 128),
    "pairs-256": (256, 128),
    "pairs-1024": (1024, 128),
    "pairs-4096": (4096, 128),
    "pairs-16384": (16384, 128),
}
LARGE = 16384


def published(n: Pairs) -> Tensor:
    """As in SimCLR: all rows against all, the diagonal masked, cross-entropy with the partner as class."""
    z = F.normalize(torch.cat([n.z_a, n.z_b]), dim=1)
    logits = z @ z.T / TEMPERATURE
    rows = torch.arange(len(z), device=z.device)
    logits = logits.masked_fill(rows[:, None] == rows, float("-inf"))
    return F.cross_entropy(logits, rows.roll(len(z) // 2))


def lean(n: Pairs) -> Tensor:
    """The positives by themselves; the diagonal overwritten in place, in a matrix that is needed anyway."""
    a, b = F.normalize(n.z_a, dim=1), F.normalize(n.z_b, dim=1)
    z = torch.cat([a, b])
    sums = (z / TEMPERATURE @ z.T).fill_diagonal_(float("-inf")).logsumexp(1)
    return sums.mean() - (a * b).sum(1).mean() / TEMPERATURE


class _Chunked(torch.autograd.Function):
    """Sum over unit rows [2N, D] of log-sum-exps without the diagonal; a chunk of rows of the logits at a time."""

    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        total, gradient = z.new_zeros(()), torch.zeros_like(z)
        for first in range(0, len(z), CHUNK):
            part = z[first : first + CHUNK]
            logits = (part @ z.T).div_(TEMPERATURE)
            logits.diagonal(first).fill_(float("-inf"))
            sums = logits.logsumexp(1, keepdim=True)
            p = logits.sub_(sums).exp_().div_(TEMPERATURE)
            total += sums.sum()
            gradient[first : first + CHUNK] += p @ z
            gradient.addmm_(p.T, part)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return ctx.saved_tensors[0] * grad


def chunked(n: Pairs) -> Tensor:
    a, b = F.normalize(n.z_a, dim=1), F.normalize(n.z_b, dim=1)
    return _Chunked.apply(torch.cat([a, b])) / (2 * len(a)) - (a * b).sum(1).mean() / TEMPERATURE


def metric_learning(n: Pairs) -> Callable:
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    loss = SelfSupervisedLoss(NTXentLoss(temperature=TEMPERATURE))
    return n.step(lambda n: loss(n.z_a, n.z_b))


def avfast_loss(n: Pairs) -> Tensor:
    import avfast

    return avfast.nt_xent(n.z_a, n.z_b, temperature=TEMPERATURE)


def oracle(n: Pairs) -> dict[str, Tensor]:
    """Float64, gradients in closed form, some rows at a time."""
    (a, length_a), (b, length_b) = unit(n.z_a), unit(n.z_b)
    z, partner = torch.cat([a, b]), torch.cat([b, a])
    total, gradient = 0.0, -2 * partner / TEMPERATURE
    for first in range(0, len(z), 1024):
        part = z[first : first + 1024]
        logits = part @ z.T / TEMPERATURE
        logits.diagonal(first).fill_(float("-inf"))
        sums = logits.logsumexp(1, keepdim=True)
        p = logits.sub_(sums).exp_().div_(TEMPERATURE)
        total = total + (sums.flatten() - (part * partner[first : first + 1024]).sum(1) / TEMPERATURE).sum()
        gradient[first : first + 1024] += p @ z
        gradient.addmm_(p.T, part)
    gradient /= len(z)
    return {
        "output": total / len(z),
        "d_z_a": through_unit(gradient[: len(a)], a, length_a),
        "d_z_b": through_unit(gradient[len(a) :], b, length_b),
    }


def case(name: str, device: str = "cpu") -> Case:
    rows, width = shape = SHAPES[name]
    found: list[Case] = []
    slow = {256: 3, 4096: 5, LARGE: 3}.get(rows, 0)

    def missing(candidate: str, most: int, absent: Callable[[], str | None] = lambda: None) -> str | None:
        """With more than ``most`` pairs it is tried in a process of limited memory first."""
        if rows <= most or device != "cpu":
            return absent()
        return absent() or out_of_memory("nt_xent", found[0].key, candidate, MEMORY)

    def limited(*arguments) -> dict:
        return {"missing": functools.partial(missing, *arguments)}

    peer = "pytorch-metric-learning"  # takes memory with the cube of the batch
    here = [
        eager_step("eager", published, PUBLISHED, **limited("eager", 4096)),
        Candidate(peer, metric_learning, PEER, **limited(peer, 256, installed("pytorch_metric_learning"))),
        eager_step("chunked, analytic gradient", chunked, slow=rows == LARGE),
    ]
    if rows < LARGE:
        here += [
            eager_step("lean", lean),
            compiled_step("eager", published, device, slow=rows < 256),
            compiled_step("lean", lean, device, slow=rows < 256),
        ]
    found.append(
        Case(
            op="nt_xent",
            shape_name=name,
            shape=shape,
            inputs=lambda: pairs(rows, width, torch.float32, device),
            oracle=oracle,
            candidates=(*here, *ours("nt_xent", lambda n: n.step(avfast_loss), dict, device, backends=not slow)),
            mode="forward+backward",
            device=device,
            bytes_moved=4 * rows * width * 4,
            flops=16 * rows * rows * width,  # half the logits twice, and both products of half of them
            traffic="fma",
            slow_rounds=slow,
        )
    )
    return found[0]


def cases(device: str = "cpu") -> list[Case]:
    return [case(name, device) for name in SHAPES]


def test_nt_xent(case, candidate, measure):
    measure(case, candidate)
