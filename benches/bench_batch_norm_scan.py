"""Scan of every batch norm of a network: dead channels, scores, expected live probability, counts per layer.

Overhead decides: 53 layers hold 0.4 MB. Everybody answers the same four questions about the same parameters:
``abnormal = max(|gamma|, |beta|) <= threshold`` per channel, that maximum as score, the probability
Phi(beta / |gamma|) that the ReLU behind lets anything through, and the number of abnormal channels per layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import shapes
from .candidate import LEAN, PEER, Case
from .opponents import compile_of, ours, plain

THRESHOLD = 1e-10
ABNORMAL = 1  # bit of the scan's flags


@dataclass
class Network:
    """The batch norms of a network and lists of their parameters, gathered once for everybody."""

    model: nn.Module
    gammas: list[Tensor]
    betas: list[Tensor]
    ends: Tensor  # index of each layer's last channel


def network(widths: tuple[int, ...], device: str = "cpu") -> Network:
    """Batch norms with random parameters; one channel in twenty is planted dead, some by denormal values."""
    generator = torch.Generator().manual_seed(0)
    layers = []
    for width in widths:
        layer = nn.BatchNorm2d(width)
        dead = torch.rand(width, generator=generator) < 0.05
        tiny = torch.where(torch.rand(width, generator=generator) < 0.5, 0.0, 1e-40)
        with torch.no_grad():
            layer.weight.copy_(torch.where(dead, tiny, torch.randn(width, generator=generator)))
            layer.bias.copy_(torch.where(dead, tiny, torch.randn(width, generator=generator)))
        layers.append(layer)
    model = nn.Sequential(*layers).to(device)
    return Network(
        model,
        [layer.weight.detach() for layer in model],
        [layer.bias.detach() for layer in model],
        torch.tensor(widths, device=device).cumsum(0) - 1,
    )


def published(n: Network) -> tuple[list[Tensor], ...]:
    """Layer by layer, as scanning scripts are written."""
    abnormal, score, live, counts = [], [], [], []
    for gamma, beta in zip(n.gammas, n.betas, strict=True):
        size = gamma.abs()
        score.append(torch.maximum(size, beta.abs()))
        abnormal.append(score[-1] <= THRESHOLD)
        live.append(torch.where(size == 0, (beta > 0).float(), torch.special.ndtr(beta / size)))
        counts.append(abnormal[-1].sum())
    return abnormal, score, live, counts


def concatenated(n: Network) -> tuple[Tensor, ...]:
    """One concatenation, then vector operations: the leanest plain PyTorch."""
    gamma, beta = torch.cat(n.gammas), torch.cat(n.betas)
    size = gamma.abs()
    score = torch.maximum(size, beta.abs())
    abnormal = score <= THRESHOLD
    live = torch.where(size == 0, (beta > 0).float(), torch.special.ndtr(beta / size))
    return abnormal, score, live, abnormal.cumsum(0)[n.ends].diff(prepend=n.ends.new_zeros(1))


def foreach(n: Network) -> tuple[list[Tensor], ...]:
    """The ``_foreach`` family where it has the operation; it has no comparison and no count."""
    size = torch._foreach_abs(n.gammas)
    score = torch._foreach_maximum(size, torch._foreach_abs(n.betas))
    live = torch._foreach_div(n.betas, size)
    torch._foreach_mul_(live, -math.sqrt(0.5))
    torch._foreach_erfc_(live)
    torch._foreach_mul_(live, 0.5)
    abnormal = [s <= THRESHOLD for s in score]
    live = [torch.where(s == 0, (b > 0).float(), value) for s, b, value in zip(size, n.betas, live, strict=True)]
    return abnormal, score, live, [a.sum() for a in abnormal]


def avfast_scan(n: Network):
    """With a plan, as a training loop would scan: the plan is built once.

    The scan answers more than is asked here (non-finite and collapsed channels), in bits of one flag.
    """
    import avfast

    plan = avfast.ScanPlan(n.model)

    def call():
        return avfast.scan_batchnorm(n.model, threshold=THRESHOLD, plan=plan).scan

    return call


def view(result: tuple) -> dict[str, Tensor]:
    """Lists of layers and flat tensors alike, as flat tensors."""

    def flat(part) -> Tensor:
        return part if isinstance(part, Tensor) else torch.cat([p.reshape(-1) for p in part])

    abnormal, score, live, counts = map(flat, result)
    return {"abnormal": abnormal, "score": score, "live": live, "counts": counts.long()}


def view_of_ours(scan) -> dict[str, Tensor]:
    abnormal, counts = (scan.flags & ABNORMAL).bool(), scan.counts[:, 0]
    return {"abnormal": abnormal, "score": scan.score, "live": scan.live, "counts": counts.long()}


def oracle(n: Network) -> dict[str, Tensor]:
    """Float64, from the complementary error function instead of the normal distribution function."""
    gamma, beta = (torch.cat(t).double() for t in (n.gammas, n.betas))
    score = torch.maximum(gamma.abs(), beta.abs())
    live = torch.special.erfc(-beta / gamma.abs() / math.sqrt(2)) / 2
    live[gamma == 0] = (beta[gamma == 0] > 0).double()
    abnormal = score <= THRESHOLD
    widths = [g.numel() for g in n.gammas]
    counts = torch.stack([layer.sum() for layer in abnormal.split(widths)])
    return {"abnormal": abnormal, "score": score, "live": live, "counts": counts}


def case(name: str, device: str = "cpu") -> Case:
    widths = shapes.BATCH_NORM_WIDTHS[name]
    return Case(
        op="batch_norm_scan",
        shape_name=name,
        shape=(len(widths), sum(widths)),
        inputs=lambda: network(widths, device),
        oracle=oracle,
        candidates=(
            plain("eager per layer", published, view),
            plain("concat", concatenated, view, LEAN),
            plain("_foreach", foreach, view, PEER),
            compile_of("eager per layer", published, view, device),
            compile_of("concat", concatenated, view, device),
            *ours("scan_batchnorm", avfast_scan, view_of_ours, device),
        ),
        device=device,
        bytes_moved=16 * sum(widths),
        exact=("abnormal", "counts"),
    )


def cases(device: str = "cpu") -> list[Case]:
    return [case(name, device) for name in shapes.BATCH_NORM_WIDTHS]


def test_batch_norm_scan(case, candidate, measure):
    measure(case, candidate)
