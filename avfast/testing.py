"""How avfast checks itself, for its own tests, for ``avfast check``, and for yours.

An op is right when it is about as close to float64 as plain PyTorch in the same dtype: at most 2 times as far forward
and 3 times backward, plus a few units in the last place. Tolerances are computed from that rule, never chosen.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from . import _library, backends
from .errors import BackendError
from .ops import _layout, _registry
from .reference import (
    batch_norm,
    colours,
    concat_linear,
    contrastive,
    correlation,
    exemplar_crop,
    fusion,
    map_loss,
    match,
    patch_mask,
    queue,
    yuv,
)

FORWARD_FACTOR, BACKWARD_FACTOR = 2.0, 3.0
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
ISAS = ("base", "avx2", "avx512", "avx512_bf16")
GUARD = 64  # elements on each side of a poisoned output; csrc/tensor_utils.h
LAYOUTS = ("contiguous", "channels_last", "strided")


# ------------------------------------------------------------------------------------------------- errors


def relative_error(result: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm of the exact value, in float64; infinite where NaN patterns differ."""
    a, b = result.detach().double().flatten(), exact.detach().double().flatten()
    if a.shape != b.shape or not torch.equal(a.isnan(), b.isnan()):
        return float("inf")
    a, b = a.nan_to_num(), b.nan_to_num()
    scale = b.norm().item()
    return (a - b).norm().item() / (scale if scale > 0 else 1.0)


def budget(eager: Tensor, exact: Tensor, factor: float) -> float:
    """Largest allowed :func:`relative_error`, from what plain PyTorch made of it in the same dtype."""
    dtype = eager.dtype if eager.is_floating_point() else torch.float64
    # In float64 the yardstick and the thing measured are alike rounded, so their difference gets the room instead.
    last_places = 64 if dtype == torch.float64 else 4
    return factor * relative_error(eager, exact) + last_places * torch.finfo(dtype).eps


# -------------------------------------------------------------------------------------------------- cases


@dataclass(frozen=True)
class Case:
    """One registered operator and how to test it.

    ``make(shape, dtype, generator)`` gives its arguments; ``eager`` is how people write it in plain PyTorch, in the
    dtype of the input: the yardstick of the error budget. ``exact`` gets float64 arguments.
    """

    name: str  # registered operator, avfast::name
    op: str  # public function
    make: Callable[[tuple[int, ...], torch.dtype, torch.Generator], tuple]
    exact: Callable[..., tuple[Tensor, ...]]
    eager: Callable[..., tuple[Tensor, ...]]
    factor: float
    # bfloat16 inputs may be multiplied as such: instruction sets agree to its rounding only.
    bf16_products: bool = False

    def run(self, *args) -> tuple[Tensor, ...]:
        return as_tuple(getattr(torch.ops.avfast, self.name).default(*args))

    def errors(self, *args) -> list[tuple[float, float]]:
        """(error, budget) of each output on these arguments."""
        exact = self.exact(*widened(args))
        eager = self.eager(*args)
        return [
            (relative_error(r, x), budget(e, x, self.factor))
            for r, e, x in zip(self.run(*args), eager, exact, strict=True)
        ]


def as_tuple(out: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (out,) if isinstance(out, Tensor) else tuple(out)


def widened(args: tuple) -> tuple:
    """Float tensors, also inside lists, in float64; everything else as it is."""

    def wide(a):
        if isinstance(a, list):
            return [wide(x) for x in a]
        return a.double() if isinstance(a, Tensor) and a.is_floating_point() else a

    return tuple(map(wide, args))


def activation(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Values like a layer's output: offset from zero, with exact zeros, a dead sample and a dead channel."""
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 1.5 + 0.7
    x = torch.where(torch.rand(shape, generator=generator) < 0.3, 0.0, x)
    if x.numel():
        x[0, 0] = 0
        x[:, -1] = 0
    return x.to(dtype)


def in_layout(x: Tensor, layout: str) -> Tensor:
    """The same values in another memory order; ``strided`` is neither dense order and starts off alignment."""
    if layout == "channels_last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "strided":
        wider = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1] + 1)
        wider[..., 1::2] = x
        return wider[..., 1::2]
    return x.contiguous()


def laid_out(args: tuple, layout: str) -> tuple:
    """Arguments with every floating tensor of two or more dimensions in ``layout``."""

    def one(a):
        features = isinstance(a, Tensor) and a.dim() > 1 and a.is_floating_point()
        return in_layout(a, layout) if features else a

    return tuple(map(one, args))


def _vectors(n: int, count: int, x: Tensor, generator: torch.Generator) -> list[Tensor]:
    wide = _layout.accumulation_dtype(x)
    return [torch.randn(n, generator=generator, dtype=torch.float64).to(wide) for _ in range(count)]


def _make_stats(shape, dtype, generator):
    return activation(shape, dtype, generator), 0.0


def _make_affine(shape, dtype, generator):
    x = activation(shape, dtype, generator)
    return (x, *_vectors(shape[1], 2, x, generator), True)


def _make_blended(shape, dtype, generator):
    x = activation(shape, dtype, generator)
    return (x, *_vectors(shape[1], 5, x, generator), 1e-5, True)


def _with_grad(make):
    def made(shape, dtype, generator):
        x, *rest = make(shape, dtype, generator)
        return (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype), x, *rest)

    return made


def _make_blended_backward(shape, dtype, generator):
    grad, x, *rest = _with_grad(_make_blended)(shape, dtype, generator)
    mean, var, _, _ = batch_norm.channel_stats(x, 0.0)
    wide = _layout.accumulation_dtype(x)
    return (grad, x, mean.to(wide), var.to(wide), *rest)


def _make_scan(shape, dtype, generator):
    """Three layers; the last has no affine parameters, the second no running statistics."""
    n, none = shape[1], torch.empty(0)

    def row(scale: float) -> Tensor:
        v = torch.randn(n, generator=generator, dtype=torch.float64) * scale
        v[: n // 3] = 0
        return v.to(dtype)

    weight, bias, mean = [row(1.0), row(0.1), none], [row(0.5), row(0.1), none], [row(1.0), none, row(2.0)]
    return weight, bias, mean, [row(1.0).abs(), none, row(1.0).square()], 1e-10


def _make_queue(shape, dtype, generator):
    """Queries and keys [B, D, S], a queue of more than one block, matches of which some are missing."""
    b, d, s = shape[0], shape[1], math.prod(shape[2:])
    q, k = (torch.randn(b, d, s, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    negatives = torch.randn(300, d, generator=generator, dtype=torch.float64)
    match = torch.randint(-1, s, (b, s), generator=generator) if s else torch.empty(b, 0, dtype=torch.int64)
    # A row of one number has no direction to learn: its gradient would be compared with rounding noise.
    return q, k, torch.nn.functional.normalize(negatives, dim=1).to(dtype), match, 0.2, d > 1, True


def _make_queue_gradient(shape, dtype, generator):
    q, k, negatives, match, temperature, normalize, _ = _make_queue(shape, dtype, generator)
    _, _, lse = queue.queue_nce(q, k, negatives, match, temperature, normalize)
    grad = torch.randn(lse.shape, generator=generator, dtype=torch.float64).to(lse.dtype)
    return grad, q, negatives, lse, match, temperature, normalize


def _make_match(shape, dtype, generator):
    """Maps [B, C, S] and [B, C, L] without ties: a few more channels than the shape, not too many positions."""
    b, c, s = shape[0], shape[1] + 3, min(math.prod(shape[2:]), 150)
    q, k = (torch.randn(b, c, n, generator=generator, dtype=torch.float64).to(dtype) for n in (s, s + 2))
    return q, k


def _make_pairs(shape, dtype, generator):
    """Rows [N, D] and seven columns more; the positives start at column 3, and one column is left out of each row."""
    n, d = min(shape[0] * math.prod(shape[2:]), 300), shape[1]
    a, b = (torch.randn(m, d, generator=generator, dtype=torch.float64).to(dtype) for m in (n, n + 7))
    return a, b, torch.full((1,), 0.2, dtype=_layout.accumulation_dtype(a)), None, None, 3, 0, 0, d > 1, True


def _row_gradient(n: int, x: Tensor, generator: torch.Generator) -> Tensor:
    """Of one sign, as a mean has it: scalar gradients would else be small differences, each a draw of its rounding."""
    return torch.rand(n, generator=generator, dtype=torch.float64).add(0.5).to(_layout.accumulation_dtype(x))


def _make_pairs_gradient(shape, dtype, generator):
    a, b, temperature, *rest = _make_pairs(shape, dtype, generator)
    row_lse, col_lse, _, count, *_ = contrastive.pair_nce_forward(a, b, temperature, *rest)
    # Of other processes' rows, a column may have summed up more than it is shown here.
    col_lse += torch.rand(len(b), generator=generator, dtype=torch.float64).mul(1.4).sub(0.7).relu().to(col_lse.dtype)
    grads = [_row_gradient(len(x), a, generator) for x in (a, b)]
    labels, options = rest[:2], rest[2:]
    return (*grads, a, b, temperature, row_lse, col_lse, *labels, count, *options)


def _make_self(shape, dtype, generator):
    n, d = min(shape[0] * math.prod(shape[2:]), 300) // 2 * 2, shape[1]
    n = max(n, 4) if n else 0  # of one pair alone the gradient is zero, and would be compared with rounding noise
    z = torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)
    return z, torch.full((1,), 0.2, dtype=_layout.accumulation_dtype(z)), None, d > 1


def _make_self_gradient(shape, dtype, generator):
    z, temperature, labels, normalize = _make_self(shape, dtype, generator)
    lse, _, count = contrastive.self_nce_forward(z, temperature, labels, normalize)
    return _row_gradient(len(z), z, generator), z, temperature, lse, labels, count, normalize


def _make_sigmoid(shape, dtype, generator):
    """A bias at which negatives outweigh positives: its gradient would else be their small difference."""
    a, b, *_ = _make_pairs(shape, dtype, generator)
    wide = _layout.accumulation_dtype(a)
    return a, b, torch.full((1,), 10.0, dtype=wide), torch.full((1,), -1.0, dtype=wide), 3, shape[1] > 1


def _make_sigmoid_gradient(shape, dtype, generator):
    a, *rest = _make_sigmoid(shape, dtype, generator)
    return (_row_gradient(len(a), a, generator), a, *rest)


def _make_crops(shape, dtype, generator):
    """Three boxes of each image: the whole, a turned one reaching beyond it, a mirrored one."""
    b, c = shape[:2]
    h, w = (shape[2] if len(shape) > 3 else 5), math.prod(shape[3:] or shape[2:])
    h, w = max(1, min(h, 40)), max(1, min(w, 40))
    images = activation((b, c, h, w), dtype, generator) if c else torch.zeros(b, c, h, w, dtype=dtype)
    draw = torch.rand(5, b, generator=generator)
    theta, top, left = 180 * draw[0] - 90, (draw[1] - 1.2) * h / 2, (draw[2] - 1.2) * w / 2
    bottom, right = top + (0.2 + draw[3]) * h, left + (0.2 + draw[4]) * w
    whole = torch.tensor([0, -h / 2, -w / 2, h / 2, w / 2]).expand(b, 5)
    boxes = [
        whole,
        torch.stack([theta, top, left, bottom, right], 1),
        torch.stack([theta, top, right, bottom, left], 1),
    ]
    return images, torch.stack(boxes, dim=1), 7, b % 2 == 1, shape[1] != 3


def _make_correlate(shape, dtype, generator):
    """Three heads of a width from the shape, two exemplars, some keys of which may not be attended; a map by parity."""
    b, keys, positions, width = shape[0], shape[1], min(math.prod(shape[2:]), 150), shape[-1] % 41 + 1

    def draw(*sizes):
        return torch.randn(*sizes, generator=generator, dtype=torch.float64).to(dtype)

    q, k, v = draw(b, positions, 3, width), draw(b, 2, keys, 3, width), draw(b, 2, keys, 3, width)
    mask = torch.rand(b, 2, keys, generator=generator) < 0.8
    mask[:, :, :1] = True
    return q, k, v, mask if shape[0] % 2 else None, width**-0.5, shape[1] % 4


def _make_correlate_gradient(shape, dtype, generator):
    q, k, v, mask, scale, chosen = _make_correlate(shape, dtype, generator)
    out, lse, heat = correlation.correlate_forward(q, k, v, mask, scale, chosen)
    grads = (torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in (out, heat))
    return *grads, q, k, v, mask, lse, scale, chosen


def _make_patch_mask(shape, dtype, generator):
    """Pictures of three channels; patches of 3 x 2; counts from none to all; normalised, shifted or neither by size."""
    height, width = _map_sizes(shape)
    x = torch.randn(shape[0], 3, height, width, generator=generator, dtype=torch.float64).to(dtype)
    keys = torch.randint(-(2**62), 2**62, shape[:1], generator=generator)
    counts = torch.randint(0, (height // 3) * (width // 2) + 2, shape[:1], generator=generator)
    scale, shift = _vectors(3, 2, x, generator)
    return x, keys, counts, 3, 2, 0.25, scale if shape[0] % 2 else None, shift if shape[0] % 3 else None


def _make_fusion(shape, dtype, generator):
    """Rows of two modalities; mode, masks and weights from the sizes, so that every kind comes up."""
    rows, depth, mode = shape[0], math.prod(shape[1:]), (shape[1] + shape[-1]) % 4
    depth_v = 2 * depth if mode == fusion.FILM else depth + 3 if mode == fusion.CONCAT else depth
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def draw(n, d, kind):
        return torch.randn(n, d, generator=generator, dtype=torch.float64).to(kind)

    def mask(d):
        return torch.rand(rows, d, generator=generator) < 0.6

    weight_a = draw(*((1, 1), (rows, 1), (1, depth), (rows, depth))[shape[-1] % 4], wide)
    weight_v = draw(1, depth_v, wide) if mode in (fusion.SUM, fusion.CONCAT) else None
    return (
        draw(rows, depth, dtype), draw(rows, depth_v, dtype), mask(1) if shape[1] % 3 else mask(depth),
        mask(1) if shape[-1] % 3 else None, None if mode == fusion.FILM else weight_a, weight_v, mode, rows % 2 == 0,
    )  # fmt: skip


def _make_fusion_gradient(shape, dtype, generator):
    args = _make_fusion(shape, dtype, generator)
    out = fusion.masked_fusion_forward(*args)
    return torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype), *args


def _make_concat_linear(shape, dtype, generator):
    """Rows of two modalities of unlike width; which masks and whether there is a bias, from the sizes."""
    rows, depth, classes = shape[0] * shape[-1], shape[1] + 2, min(math.prod(shape[1:]), 70) + 1

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    def mask():
        return torch.rand(rows, generator=generator) < 0.6

    return (
        draw(rows, depth), draw(rows, 2 * depth + 1), draw(classes, 3 * depth + 1) / depth**0.5,
        draw(classes) if shape[1] % 2 else None, mask() if shape[1] % 3 else None, mask() if shape[-1] % 4 else None,
    )  # fmt: skip


def _make_concat_linear_gradient(shape, dtype, generator):
    a, v, weight, bias, mask_a, mask_v = _make_concat_linear(shape, dtype, generator)
    grad = torch.randn(a.shape[0], weight.shape[0], generator=generator, dtype=torch.float64).to(dtype)
    return grad, a, v, weight, mask_a, mask_v, True, shape[-1] % 5 != 0, bias is not None


def _plain_concat_linear(a, v, weight, bias, mask_a, mask_v):
    """As people write it, in the dtype of the input: masks as factors, a concatenation, a linear layer."""
    a, v = (x if m is None else x * m[:, None] for x, m in ((a, mask_a), (v, mask_v)))
    return (torch.nn.functional.linear(torch.cat([a, v], 1), weight, bias),)


def _plain_concat_linear_gradient(grad, a, v, weight, mask_a, mask_v, need_inputs, need_weight, need_bias):
    leaves = [x.detach().requires_grad_() for x in (a, v, weight, weight.new_zeros(weight.shape[0]))]
    with torch.enable_grad():
        (out,) = _plain_concat_linear(*leaves, mask_a, mask_v)
    found = torch.autograd.grad(out, leaves, grad)
    needed = (need_inputs, need_inputs, need_weight, need_bias)
    return tuple(g if need else a.new_empty(0) for g, need in zip(found, needed, strict=True))


def _map_sizes(shape) -> tuple[int, int]:
    """Height and width of small maps: at least one position, few enough to be upsampled."""
    return (min(max(shape[2], 1), 12) if len(shape) > 3 else 5), min(max(math.prod(shape[3:] or shape[2:]), 1), 40)


def _make_box_loss(shape, dtype, generator):
    """One or two channels; boxes of all angles, partly beyond the image; larger along one axis and smaller along the
    other."""
    m, (h, w) = shape[0], _map_sizes(shape)
    logits = torch.randn(m, 1 + shape[1] % 2, h, w, generator=generator, dtype=torch.float64).mul(2).to(dtype)
    draw = torch.rand(5, m, generator=generator)
    top, left = (80 * draw[1:3] - 60).unbind()
    boxes = torch.stack([180 * draw[0] - 90, top, left, top + 10 + 60 * draw[3], left + 10 + 60 * draw[4]], 1)
    return logits, boxes, None, 3 * h + 2, max(1, 2 * w // 3 + 37 * (m % 2)), 96.0, shape[1] % 4 < 2, 0.5, True


def _make_upsample(shape, dtype, generator):
    """Classes of every width of integer, some pixels ignored; weights and smoothing by parity. A single class has no
    gradient: it would be compared with rounding noise."""
    b, c, (h, w) = shape[0], max(shape[1], 2), _map_sizes(shape)
    logits = torch.randn(b, c, h, w, generator=generator, dtype=torch.float64).mul(2).to(dtype)
    target = torch.randint(0, c, (b, 3 * h + 2, max(1, 2 * w // 3 + 37 * (b % 2))), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.2] = 254
    target = target.to((torch.uint8, torch.int16, torch.int32, torch.int64)[b % 4])
    weight = torch.rand(c, generator=generator, dtype=torch.float64).add(0.5).to(_layout.accumulation_dtype(logits))
    return logits, target, weight if c % 2 else None, shape[1] % 4 < 2, 254, 0.1 * (c % 3), False, True


def _make_upsample_gradient(shape, dtype, generator):
    logits, target, *rest, _, _ = _make_upsample(shape, dtype, generator)
    grad = torch.randn(target.shape, generator=generator, dtype=torch.float64).to(_layout.accumulation_dtype(logits))
    return grad, logits, target, *rest


def _make_recolour(shape, dtype, generator):
    """Pictures at most 40 wide; one in three has no jitter, another third nothing after it."""
    n, h, w = shape[0], (shape[2] if len(shape) > 3 else 5), min(math.prod(shape[3:] or shape[2:]), 40)
    pictures = torch.rand(n, 3, h, w, generator=generator, dtype=torch.float64).mul_(1.2).sub_(0.1)
    low, wide = torch.tensor([[0.5, 0.5, 0.5, -0.5], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    factors = low + wide * torch.rand(n, 4, generator=generator, dtype=torch.float64)
    finish = torch.rand(n, 3, generator=generator, dtype=torch.float64).sub_(0.4).clamp_min_(0).mul_(4)
    third = torch.arange(n) % 3
    factors[third == 1] = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    finish[third == 2] = 0
    affine = torch.tensor([[4.0, 5.0, 4.5], [-2.0, -1.5, 0.0]], dtype=torch.float64)
    return pictures.to(dtype), factors, torch.rand(n, 4, generator=generator).argsort(1), finish, affine


def _make_yuv(shape, dtype, generator):
    """Frames as high as the channels and as wide as the rest, at most 200; colours halved along one axis or both.
    Larger and smaller outputs of a part of the picture, looked up in the dtype."""
    h, w = shape[1], min(math.prod(shape[2:]), 200)
    frames = min(shape[0], 3) if h and w else 0
    ch, cw = (h + 1) // 2 if h % 3 else h, (w + 1) // 2 if w % 3 else w
    y, u, v = (
        list(torch.randint(0, 256, (frames, *side), dtype=torch.uint8, generator=generator).unbind())
        for side in ((h, w), (ch, cw), (ch, cw))
    )
    box = [h << 14, 0, h << 16, (w << 16) - (w << 13)] if frames else [0, 0, 1, 1]
    table = torch.randn(3, 256, dtype=torch.float64, generator=generator).to(dtype)
    return (
        y,
        u,
        v,
        box,
        2 * h // 3 + 1,
        1 + w // (1 + w % 3),
        bool(h % 2),
        [16, 9539, 13075, -3209, -6660, 16525],
        table,
    )


def autocast(function: Callable, position: int = 0) -> Callable[..., tuple[Tensor, ...]]:
    """A reference as people run it in half precision: under autocast, by the type of its ``position``-th argument."""

    def run(*args):
        dtype = args[position].dtype
        half = dtype in (torch.float16, torch.bfloat16)
        with torch.autocast("cpu", dtype=dtype if half else torch.bfloat16, enabled=half):
            return as_tuple(function(*args))

    return run


def _eager_stats(x: Tensor, threshold: float):
    wide = x.to(_layout.accumulation_dtype(x))
    var, mean = torch.var_mean(wide, batch_norm.other_dims(x), correction=0)
    return mean, var, *batch_norm.channel_stats(x, threshold)[2:]


CASES = (
    Case("channel_stats_fwd", "channel_stats", _make_stats, batch_norm.channel_stats, _eager_stats, FORWARD_FACTOR),
    Case("bn_scan", "scan_batchnorm", _make_scan, batch_norm.bn_scan, batch_norm.bn_scan, FORWARD_FACTOR),
    Case(
        "blended_bn_fwd",
        "blended_batch_norm",
        _make_blended,
        batch_norm.blended_bn_forward,
        batch_norm.blended_bn_forward,
        FORWARD_FACTOR,
    ),
    Case(
        "blended_bn_bwd",
        "blended_batch_norm",
        _make_blended_backward,
        batch_norm.blended_bn_backward,
        batch_norm.blended_bn_backward,
        BACKWARD_FACTOR,
    ),
    Case(
        "channel_affine_fwd",
        "channel_affine",
        _make_affine,
        lambda *a: (batch_norm.channel_affine_forward(*a),),
        lambda *a: (batch_norm.channel_affine_forward(*a),),
        FORWARD_FACTOR,
    ),
    Case(
        "channel_affine_bwd",
        "channel_affine",
        _with_grad(_make_affine),
        batch_norm.channel_affine_backward,
        batch_norm.channel_affine_backward,
        BACKWARD_FACTOR,
    ),
    Case(
        "pair_nce_fwd",
        "info_nce",
        _make_pairs,
        contrastive.pair_nce_forward,
        autocast(contrastive.pair_nce_forward),
        FORWARD_FACTOR,
        bf16_products=True,
    ),
    Case(
        "pair_nce_bwd",
        "info_nce",
        _make_pairs_gradient,
        contrastive.pair_nce_backward,
        autocast(contrastive.pair_nce_backward, 2),
        BACKWARD_FACTOR,
        bf16_products=True,
    ),
    Case(
        "self_nce_fwd",
        "nt_xent",
        _make_self,
        contrastive.self_nce_forward,
        autocast(contrastive.self_nce_forward),
        FORWARD_FACTOR,
        bf16_products=True,
    ),
    Case(
        "self_nce_bwd",
        "nt_xent",
        _make_self_gradient,
        contrastive.self_nce_backward,
        autocast(contrastive.self_nce_backward, 1),
        BACKWARD_FACTOR,
        bf16_products=True,
    ),
    Case(
        "sigmoid_nce_fwd",
        "sigmoid_contrastive",
        _make_sigmoid,
        lambda *a: (contrastive.sigmoid_nce_forward(*a),),
        autocast(contrastive.sigmoid_nce_forward),
        FORWARD_FACTOR,
        bf16_products=True,
    ),
    Case(
        "sigmoid_nce_bwd",
        "sigmoid_contrastive",
        _make_sigmoid_gradient,
        contrastive.sigmoid_nce_backward,
        autocast(contrastive.sigmoid_nce_backward, 1),
        BACKWARD_FACTOR,
        bf16_products=True,
    ),
    Case(
        "queue_nce_fwd",
        "queue_info_nce",
        _make_queue,
        queue.queue_nce_forward,
        autocast(queue.queue_nce_forward),
        BACKWARD_FACTOR,
        bf16_products=True,
    ),
    Case(
        "queue_nce_bwd_queue",
        "queue_info_nce",
        _make_queue_gradient,
        lambda *a: (queue.queue_nce_backward_queue(*a),),
        autocast(queue.queue_nce_backward_queue, 1),
        BACKWARD_FACTOR,
        bf16_products=True,
    ),
    Case(
        "correlate_fwd",
        "correlate",
        _make_correlate,
        correlation.correlate_forward,
        correlation.correlate_forward,
        FORWARD_FACTOR,
    ),
    Case(
        "correlate_bwd",
        "correlate",
        _make_correlate_gradient,
        correlation.correlate_backward,
        correlation.correlate_backward,
        BACKWARD_FACTOR,
    ),
    Case(
        "masked_fusion_fwd",
        "masked_fusion",
        _make_fusion,
        lambda *a: (fusion.masked_fusion_forward(*a),),
        lambda *a: (fusion.masked_fusion_forward(*a),),
        FORWARD_FACTOR,
    ),
    Case(
        "masked_fusion_bwd",
        "masked_fusion",
        _make_fusion_gradient,
        fusion.masked_fusion_backward,
        fusion.masked_fusion_backward,
        BACKWARD_FACTOR,
    ),
    Case(
        "concat_linear_fwd",
        "masked_concat_linear",
        _make_concat_linear,
        lambda *a: (concat_linear.concat_linear_forward(*a),),
        _plain_concat_linear,
        FORWARD_FACTOR,
    ),
    Case(
        "concat_linear_bwd",
        "masked_concat_linear",
        _make_concat_linear_gradient,
        concat_linear.concat_linear_backward,
        _plain_concat_linear_gradient,
        BACKWARD_FACTOR,
    ),
    Case(
        "patch_mask_fwd",
        "mask_patches",
        _make_patch_mask,
        lambda *a: (patch_mask.patch_mask_forward(*a),),
        lambda *a: (patch_mask.patch_mask_forward(*a),),
        FORWARD_FACTOR,
    ),
    Case(
        "exemplar_crop",
        "crop_exemplars",
        _make_crops,
        lambda *a: (exemplar_crop.exemplar_crop(*a),),
        lambda *a: (exemplar_crop.exemplar_crop(*a),),
        FORWARD_FACTOR,
    ),
    Case(
        "recolour",
        "recolour",
        _make_recolour,
        lambda *a: (colours.recolour(*a),),
        lambda *a: (colours.recolour(*a),),
        FORWARD_FACTOR,
    ),
    Case(
        "yuv_to_rgb",
        "yuv_to_rgb",
        _make_yuv,
        lambda *a: (yuv.yuv_to_rgb(*a),),
        lambda *a: (yuv.yuv_to_rgb(*a),),
        FORWARD_FACTOR,
    ),
    Case(
        "box_bce_fwd",
        "rotated_box_bce",
        _make_box_loss,
        map_loss.box_bce_forward,
        map_loss.box_bce_forward,
        BACKWARD_FACTOR,
    ),
    Case(
        "upsample_ce_fwd",
        "upsample_cross_entropy",
        _make_upsample,
        map_loss.upsample_ce_forward,
        map_loss.upsample_ce_forward,
        BACKWARD_FACTOR,
    ),
    Case(
        "upsample_ce_bwd",
        "upsample_cross_entropy",
        _make_upsample_gradient,
        lambda *a: (map_loss.upsample_ce_backward(*a),),
        lambda *a: (map_loss.upsample_ce_backward(*a),),
        BACKWARD_FACTOR,
    ),
    Case("dense_match_fwd", "dense_match", _make_match, match.dense_match, match.dense_match, FORWARD_FACTOR),
)


# ----------------------------------------------------------------------------------------------- contexts


@contextlib.contextmanager
def forced_isa(name: str) -> Iterator[None]:
    """CPU kernels of one instruction set inside the block.

    Raises:
        BackendError: no compiled library, or this machine lacks the set.
    """
    if _library.native is None:
        raise BackendError(f"avfast.testing.forced_isa: no compiled library: {_library.reason or 'no _native module'}")
    if not _library.native.has_isa(name):
        raise BackendError(f"avfast.testing.forced_isa: this machine has no {name}")
    before = _library.isa()
    _library.native.force_isa(name)
    try:
        yield
    finally:
        _library.native.force_isa(before)


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Outputs of compiled kernels start as NaN (integers as -1), between guards that must stay so."""
    if _library.native is None:
        raise BackendError("avfast.testing.poisoned: no compiled library")
    _library.native.poison_outputs(True)
    try:
        yield
    finally:
        _library.native.poison_outputs(False)


def guards_intact(out: Tensor) -> bool:
    """Whether a poisoned output's guards are as they were: nothing was written outside it."""
    base = torch.empty(0, dtype=out.dtype, device=out.device).set_(out.untyped_storage())
    guards = torch.cat([base[:GUARD], base[-GUARD:]])
    untouched = guards.isnan() if out.is_floating_point() else guards == torch.tensor(-1).to(out.dtype)
    return out.storage_offset() == GUARD and bool(untouched.all())


# -------------------------------------------------------------------------------------------------- check

CHECK_SHAPES = ((4, 6, 7, 5), (3, 33, 17), (19, 70), (2, 64, 28, 28))


@dataclass(frozen=True)
class CheckRow:
    op: str
    dtype: str
    backend: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


def unable(device: str = "cpu") -> dict[str, str]:
    """Public ops that the backend chosen by name cannot take on this device, and why."""
    name = backends.current()
    if name == "auto":
        return {}
    reasons = {op: backends._reason(name, op, device) for op in _registry.public_ops()}
    return {op: reason for op, reason in reasons.items() if reason}


def check(device: str = "cpu", seed: int = 0) -> Iterator[CheckRow]:
    """Run every op against its reference on this machine: the worst output of each op, dtype and backend."""
    left_out = unable(device)
    for case in CASES:
        if case.op in left_out:
            continue
        backend = backends.explain(case.op, torch.empty(0, device=device)).chosen
        for dtype in DTYPES:
            generator = torch.Generator().manual_seed(seed)
            rows: list[tuple[float, float]] = []
            for shape in CHECK_SHAPES:
                for layout in LAYOUTS[:2]:
                    args = tuple(_to(a, device) for a in laid_out(case.make(shape, dtype, generator), layout))
                    rows += case.errors(*args)
            yield CheckRow(case.name, str(dtype)[6:], backend, *max(rows, key=lambda row: row[0] / row[1]))


def _to(a: object, device: str) -> object:
    if isinstance(a, list):
        return [_to(x, device) for x in a]
    return a.to(device) if isinstance(a, Tensor) else a


def check_command(backend: str | None = None, device: str = "cpu") -> int:
    """Print :func:`check`; 0 if every op is inside its tolerance, else 1."""
    start = time.perf_counter()
    failed = 0
    print(f"{'op':<20} {'dtype':<9} {'backend':<8} {'error':>9} {'tolerance':>10}")
    with backends.use_backend(backend or backends.current()):
        isa = f", instruction set {_library.isa()}" if _library.isa() else ""
        for row in check(device):
            failed += not row.passed
            verdict = "ok" if row.passed else "WRONG"
            print(f"{row.op:<20} {row.dtype:<9} {row.backend:<8} {row.error:>9.1e} {row.tolerance:>10.1e}  {verdict}")
        for op, reason in unable(device).items():
            print(f"{op:<20} not checked: {reason}")
    print(f"{'all ops agree with float64' if not failed else f'{failed} rows are wrong'}"
          f" ({time.perf_counter() - start:.1f} s{isa})")  # fmt: skip
    return 1 if failed else 0
