"""The price of a call: public functions on inputs so small that the kernel does not show.

Three calls are interleaved per op: the public function, the registered operator behind it (dispatch,
allocation, kernel), and ``torch.empty_like``, the cheapest thing torch does that returns a tensor. Hence

* ``python``: public minus registered operator, what our validation and autograd decision add;
* ``overhead``: public minus ``empty_like``, everything beyond one allocation. The kernel's own time on these
  few elements is left in: an upper bound of what a call costs beyond its kernel. The goal is 5 microseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from . import timing

GOAL_S = 5e-6
ROUNDS = 31
MIN_SLICE_S = 3e-3


@dataclass(frozen=True)
class Call:
    """A public call and the registered operator behind it, on the same tiny input."""

    op: str
    public: Callable[[], Any]
    raw: Callable[[], Any]
    like: torch.Tensor


def calls(device: str = "cpu") -> list[Call]:
    """One entry per op, grad mode off, as in inference."""
    import avfast

    x = torch.randn(2, 4, 2, 2, device=device)
    weight, bias, new_weight, new_bias = torch.randn(4, 4, device=device).unbind()
    alpha = torch.full((4,), 0.5, device=device)
    affine = (weight, bias, new_weight, new_bias, alpha)
    layer = nn.BatchNorm2d(4).to(device)
    plan = avfast.ScanPlan(layer)
    parameters = [[t.detach()] for t in (layer.weight, layer.bias, layer.running_mean, layer.running_var)]
    ops = torch.ops.avfast
    return [
        Call(
            "channel_stats",
            lambda: avfast.channel_stats(x),
            lambda: ops.channel_stats_fwd.default(x, 0.0),
            x,
        ),
        Call(
            "blended_batch_norm",
            lambda: avfast.blended_batch_norm(x, *affine, activation="relu"),
            lambda: ops.blended_bn_fwd.default(x, *affine, 1e-5, True),
            x,
        ),
        Call(
            "channel_affine",
            lambda: avfast.channel_affine(x, weight, bias, activation="relu"),
            lambda: ops.channel_affine_fwd.default(x, weight, bias, True),
            x,
        ),
        Call(
            "scan_batchnorm",
            lambda: avfast.scan_batchnorm(layer, plan=plan),
            lambda: ops.bn_scan.default(*parameters, 1e-10),
            weight,
        ),
    ]


def row(call: Call, device: str, rounds: int) -> dict:
    """Seconds per call of the three, and their differences."""
    contenders = {"public": call.public, "raw": call.raw, "floor": lambda: torch.empty_like(call.like)}
    repeat = {n: timing.repeats_for([c], device, MIN_SLICE_S) for n, c in contenders.items()}
    walls: dict[str, list[float]] = {name: [] for name in contenders}
    for _, name in timing.round_robin(list(contenders), rounds):
        walls[name].append(timing.time_slice([contenders[name]], repeat[name], device).wall)
    spread = {name: timing.Spread.of(taken) for name, taken in walls.items()}
    medians = {name: s.median for name, s in spread.items()}
    return {
        "op": call.op,
        "device": device,
        "rounds": rounds,
        **{f"{name}_s": value for name, value in medians.items()},
        "python_s": medians["public"] - medians["raw"],
        "overhead_s": medians["public"] - medians["floor"],
        "public_lower_s": spread["public"].lower,
        "public_upper_s": spread["public"].upper,
        "within_goal": medians["public"] - medians["floor"] < GOAL_S,
    }


def measure(device: str = "cpu", rounds: int | None = None) -> list[dict]:
    """Rows for all ops, on one thread: no call this small is split."""
    with torch.no_grad(), timing.threads(1):
        return [row(call, device, rounds or ROUNDS) for call in calls(device)]


def test_overhead(benchmark):
    """All public calls in a row, once each."""
    every = [call.public for call in calls()]
    with torch.no_grad(), timing.threads(1):
        benchmark(lambda: [call() for call in every])
