"""Per-channel mean, variance, zero and dead fraction of an activation: one read is the least it takes."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from . import shapes
from .candidate import LEAN, PEER, Case
from .opponents import compile_of, ours, plain

THRESHOLD = 0.0
DIMS = (0, 2, 3)


@functools.lru_cache(maxsize=1)  # nobody writes to it, and drawing 50 MB per candidate takes a while
def activation(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> Tensor:
    """What a ReLU leaves: channels of different means, one in ten dead in most samples."""
    generator = torch.Generator().manual_seed(0)
    samples, channels = shape[:2]
    x = torch.randn(shape, generator=generator) + torch.randn(1, channels, 1, 1, generator=generator)
    dead = torch.rand(1, channels, 1, 1, generator=generator) < 0.1
    asleep = dead & (torch.rand(samples, 1, 1, 1, generator=generator) < 0.8)
    x = torch.where(asleep, 0.0, x).relu_().to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x


def published(x: Tensor) -> tuple[Tensor, ...]:
    """One reduction per statistic."""
    silent = x.abs() <= THRESHOLD
    return (
        x.mean(DIMS),
        x.var(DIMS, correction=0),
        silent.float().mean(DIMS),
        silent.all(3).all(2).float().mean(0),
    )


def _silence(x: Tensor) -> tuple[Tensor, Tensor]:
    """Zero and dead fraction from one count per sample and channel."""
    count = (x.abs() <= THRESHOLD).sum((2, 3))
    area = x.shape[2] * x.shape[3]
    return count.sum(0) / (x.shape[0] * area), (count == area).float().mean(0)


def lean(x: Tensor) -> tuple[Tensor, ...]:
    """Mean and variance together; zeros counted once for both fractions."""
    variance, mean = torch.var_mean(x, DIMS, correction=0)
    return (mean, variance, *_silence(x))


def sums(x: Tensor) -> tuple[Tensor, ...]:
    """Shifted sums per sample, then over samples: what torch.compile fuses into one pass."""
    first = x[:1, :, :1, :1].float()
    shifted = x.float() - first
    count = x.numel() // x.shape[1]
    offset = shifted.sum((2, 3)).sum(0) / count
    variance = (shifted * shifted).sum((2, 3)).sum(0) / count - offset * offset
    return (first.flatten() + offset, variance, *_silence(x))


def update_stats(x: Tensor) -> tuple[Tensor, ...]:
    """ATen's own batch-norm statistics, plus the count it does not do."""
    mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)
    return (mean, variance, *_silence(x))


def avfast_stats(x: Tensor):
    import avfast

    def call():
        stats = avfast.channel_stats(x, dead_threshold=THRESHOLD)
        return stats.mean, stats.var, stats.zero_fraction, stats.dead_fraction

    return call


def view(result: tuple) -> dict[str, Tensor]:
    return dict(zip(("mean", "var", "zero_fraction", "dead_fraction"), result, strict=True))


def oracle(x: Tensor) -> dict[str, Tensor]:
    """Float64, channel by channel."""
    rows = []
    for channel in x.unbind(1):
        maps = channel.double().flatten(1)
        silent = maps.abs() <= THRESHOLD
        mean = maps.sum() / maps.numel()
        rows.append(
            torch.stack([mean, (maps - mean).square().mean(), silent.double().mean(), silent.all(1).double().mean()])
        )
    return view(tuple(torch.stack(rows, 1)))


def case(name: str, layout: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Case:
    shape = shapes.ACTIVATIONS[name]
    return Case(
        op="channel_stats",
        shape_name=name,
        shape=shape,
        inputs=lambda: activation(shape, dtype, layout).to(device),
        oracle=oracle,
        candidates=(
            plain("eager", published, view),
            plain("lean", lean, view, LEAN),
            plain("shifted sums", sums, view, LEAN),
            plain("batch_norm_update_stats", update_stats, view, PEER),
            compile_of("eager", published, view, device),
            compile_of("lean", lean, view, device),
            compile_of("shifted sums", sums, view, device),
            *ours("channel_stats", avfast_stats, view, device),
        ),
        layout=layout,
        dtype=dtype,
        device=device,
        bytes_moved=torch.Size(shape).numel() * dtype.itemsize,
    )


def cases(device: str = "cpu") -> list[Case]:
    named = [case(name, layout, device=device) for name in shapes.ACTIVATIONS for layout in LAYOUTS]
    half = [case("resnet50.layer1", layout, torch.bfloat16, device) for layout in LAYOUTS]
    return named + half


LAYOUTS = ("contiguous", "channels_last")


def test_channel_stats(case, candidate, measure):
    measure(case, candidate)
