"""Blended batch norm with ReLU, forward and backward: y = relu(alpha BN1(x) + (1 - alpha) BN2(x)).

Everybody returns y, six gradients (x, both affines, alpha per channel) and four updated running buffers.
Published form: two batch norms. Lean form: one batch norm with the blended affine, the same function exactly.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import shapes
from .candidate import PUBLISHED, Case
from .opponents import compiled_step, eager_step, ours
from .training import Step

EPS, MOMENTUM = 1e-5, 0.1
PARAMETERS = ("weight", "bias", "new_weight", "new_bias", "alpha")
BUFFERS = ("running_mean", "running_var", "new_running_mean", "new_running_var")


@dataclass
class Layer:
    """One layer's input, parameters, buffers, and the gradient that comes back to it."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    new_weight: Tensor
    new_bias: Tensor
    alpha: Tensor
    running_mean: Tensor
    running_var: Tensor
    new_running_mean: Tensor
    new_running_var: Tensor
    gradient: Tensor

    def step(self, forward: Callable[[Layer], Tensor]) -> Step:
        return Step(
            lambda: forward(self),
            {name: getattr(self, name) for name in ("x", *PARAMETERS)},
            self.gradient,
            parameters=[getattr(self, name) for name in (*PARAMETERS, *BUFFERS)],
            inputs=[self.x],
            buffers={name: getattr(self, name) for name in BUFFERS},
        )


@functools.lru_cache(maxsize=1)
def _values(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> Layer:
    generator = torch.Generator().manual_seed(0)

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    channels = shape[1]
    x = (randn(*shape) * (1 + randn(1, channels, 1, 1).abs()) + randn(1, channels, 1, 1)).to(dtype)
    gradient = randn(*shape).to(dtype)
    if channels_last:
        x, gradient = (t.contiguous(memory_format=torch.channels_last) for t in (x, gradient))
    affines = [1 + 0.2 * randn(channels), 0.2 * randn(channels), torch.ones(channels), torch.zeros(channels)]
    running = [randn(channels), 1 + randn(channels).abs(), torch.zeros(channels), torch.ones(channels)]
    layer = Layer(x, *affines, torch.rand(channels, generator=generator), *running, gradient)
    # No gradient right at the kink, where rounding would choose the branch.
    kink = answer(layer)["output_before_relu"].abs() < 8 * torch.finfo(dtype).eps
    layer.gradient.masked_fill_(kink, 0)
    return layer


def inputs(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, device: str) -> Layer:
    """Fresh leaves of equal values: running buffers change with every call."""
    fixed = _values(shape, dtype, channels_last)
    fresh = {name: value.detach().clone().to(device) for name, value in vars(fixed).items()}
    for name in ("x", *PARAMETERS):
        fresh[name].requires_grad_()
    return Layer(**fresh)


def two_layers(n: Layer) -> Tensor:
    """As published: both batch norms in full, mixed, then the ReLU."""
    alpha = n.alpha.view(1, -1, 1, 1)
    first = F.batch_norm(n.x, n.running_mean, n.running_var, n.weight, n.bias, True, MOMENTUM, EPS)
    second = F.batch_norm(n.x, n.new_running_mean, n.new_running_var, n.new_weight, n.new_bias, True, MOMENTUM, EPS)
    return F.relu(alpha * first + (1 - alpha) * second)


def blend(n: Layer) -> Tensor:
    """One batch norm with the blended affine; momentum 1 hands out the statistics both buffers need."""
    mean, variance = torch.zeros_like(n.running_mean), torch.zeros_like(n.running_var)
    weight = torch.lerp(n.new_weight, n.weight, n.alpha)
    bias = torch.lerp(n.new_bias, n.bias, n.alpha)
    y = F.batch_norm(n.x, mean, variance, weight, bias, True, 1.0, EPS)
    with torch.no_grad():
        for buffer, value in zip(
            (n.running_mean, n.running_var, n.new_running_mean, n.new_running_var),
            (mean, variance, mean, variance),
            strict=True,
        ):
            buffer.lerp_(value, MOMENTUM)
    return F.relu(y)


def avfast_blend(n: Layer) -> Tensor:
    import avfast

    return avfast.blended_batch_norm(
        n.x,
        n.weight,
        n.bias,
        n.new_weight,
        n.new_bias,
        n.alpha,
        running_mean=n.running_mean,
        running_var=n.running_var,
        new_running_mean=n.new_running_mean,
        new_running_var=n.new_running_var,
        training=True,
        momentum=MOMENTUM,
        eps=EPS,
        activation="relu",
    )


def answer(n: Layer) -> dict[str, Tensor]:
    """Float64, from the closed form of the backward pass, not from autograd."""
    v = {name: value.detach().double() for name, value in vars(n).items()}
    x, shape, dims = v["x"], (1, -1, 1, 1), (0, 2, 3)
    count = x.numel() / x.shape[1]
    variance, mean = torch.var_mean(x, dims, correction=0)
    rstd = (variance + EPS).rsqrt()
    alpha = v["alpha"]
    scale = alpha * v["weight"] + (1 - alpha) * v["new_weight"]
    shift = alpha * v["bias"] + (1 - alpha) * v["new_bias"]
    normal = (x - mean.view(shape)) * rstd.view(shape)
    before = normal * scale.view(shape) + shift.view(shape)
    dy = torch.where(before > 0, v["gradient"], 0.0)
    total, weighted = dy.sum(dims), (dy * normal).sum(dims)
    centred = dy - (total / count).view(shape) - normal * (weighted / count).view(shape)
    unbiased = variance * count / (count - 1)

    def moved(name: str, value: Tensor) -> Tensor:
        return (1 - MOMENTUM) * v[name] + MOMENTUM * value

    return {
        "output_before_relu": before,
        "output": before.clamp(min=0),
        "d_x": (scale * rstd).view(shape) * centred,
        "d_weight": alpha * weighted,
        "d_bias": alpha * total,
        "d_new_weight": (1 - alpha) * weighted,
        "d_new_bias": (1 - alpha) * total,
        "d_alpha": (v["weight"] - v["new_weight"]) * weighted + (v["bias"] - v["new_bias"]) * total,
        "running_mean": moved("running_mean", mean),
        "running_var": moved("running_var", unbiased),
        "new_running_mean": moved("new_running_mean", mean),
        "new_running_var": moved("new_running_var", unbiased),
    }


def oracle(n: Layer) -> dict[str, Tensor]:
    outputs = answer(n)
    del outputs["output_before_relu"]
    return outputs


def case(name: str, layout: str = "contiguous", dtype: torch.dtype = torch.float32, device: str = "cpu") -> Case:
    shape = shapes.BATCH_NORM_INPUTS[name]
    return Case(
        op="blended_batch_norm",
        shape_name=name,
        shape=shape,
        inputs=lambda: inputs(shape, dtype, layout == "channels_last", device),
        oracle=oracle,
        candidates=(
            eager_step("eager two layers", two_layers, PUBLISHED),
            eager_step("blend", blend),
            compiled_step("eager two layers", two_layers, device),
            compiled_step("blend", blend, device),
            *ours("blended_batch_norm", lambda n: n.step(avfast_blend), dict, device),
        ),
        mode="forward+backward",
        layout=layout,
        dtype=dtype,
        device=device,
        # Forward: x for the statistics, x again, y. Backward: x and dy for the sums, both again, dx.
        bytes_moved=8 * torch.Size(shape).numel() * dtype.itemsize,
        traffic="copy",
    )


def cases(device: str = "cpu") -> list[Case]:
    return [
        *(case(name, device=device) for name in shapes.BATCH_NORM_INPUTS),
        case("resnet18.layer2", "channels_last", device=device),
        case("resnet18.layer2", dtype=torch.bfloat16, device=device),
    ]


def test_blended_batch_norm(case, candidate, measure):
    measure(case, candidate)
