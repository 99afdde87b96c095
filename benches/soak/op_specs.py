"""How every public op is called with tensors of any shape: its arguments by name, and what they must be to be right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import avfast

from .hostile_tensors import FLOATS, VALUES, Draw, size, values

Result = tuple[Tensor, ...]


@dataclass
class Call:
    """One call: ``run(**tensors)`` gives tensors. ``learned`` names the arguments that may have a gradient, ``kind``
    how values were drawn. Not ``checked``: an operator behind a module, which gets no wrong arguments."""

    run: Callable[..., Result]
    tensors: Mapping[str, Tensor]
    learned: tuple[str, ...] = ()
    kind: str = "usual"
    checked: bool = True


class Maker:
    """Draws the arguments of one call; all floating ones share a dtype and a kind of values."""

    def __init__(self, draw: Draw) -> None:
        self.draw, self.dtype, self.kind = draw, draw.choice(FLOATS), draw.choice(VALUES)

    def size(self, least: int = 0) -> int:
        return size(self.draw, least)

    def x(self, *shape: int, dtype: torch.dtype | None = None, kind: str | None = None) -> Tensor:
        return values(self.draw, shape, dtype or self.dtype, kind or self.kind)

    def whole(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        generator = torch.Generator().manual_seed(self.draw.integer(0, 2**16))
        return torch.randint(low, max(high, low) + 1, shape, generator=generator).to(dtype)

    def flags(self, *shape: int) -> Tensor:
        return self.whole(0, 1, *shape).bool()

    def maybe(self, tensor: Tensor) -> dict[str, Tensor] | Tensor | None:
        return tensor if self.draw.integer(0, 1) else None

    def pick(self, *options: Any) -> Any:
        return self.draw.choice(options)

    def call(self, run: Callable[..., Any], tensors: dict[str, Tensor | None], *learned: str) -> Call:
        given = {name: x for name, x in tensors.items() if x is not None}
        return Call(lambda **t: flat(run(**t)), given, tuple(n for n in learned if n in given), self.kind)


def flat(result: Any) -> Result:
    """Tensors of a result, whatever it is made of."""
    if isinstance(result, Tensor):
        return (result,)
    if isinstance(result, (tuple, list)):
        return tuple(t for part in result for t in flat(part))
    return ()


def _features(m: Maker, name: str, **options: Any) -> Call:
    n, d = m.size(), m.size()
    tensors = {"z_a": m.x(n, d), "z_b": m.x(n, d)}
    options["normalize"], options["reduction"] = m.pick(True, False), m.pick("mean", "sum", "none")
    return m.call(lambda **t: getattr(avfast, name)(**t, **options), tensors, "z_a", "z_b")


def info_nce(m: Maker) -> Call:
    options = {"distance": m.pick("cosine", "l2"), "symmetric": m.pick(True, False)}
    return _features(m, "info_nce", temperature=m.pick(0.1, 1.0, 5.0), **options)


def nt_xent(m: Maker) -> Call:
    return _features(m, "nt_xent", temperature=m.pick(0.1, 1.0))


def sigmoid_contrastive(m: Maker) -> Call:
    return _features(m, "sigmoid_contrastive", scale=m.pick(1.0, 10.0), bias=m.pick(-10.0, 0.0, 1.0))


def sup_con(m: Maker) -> Call:
    n, d = m.size(), m.size()
    tensors = {"z": m.x(n, d), "labels": m.whole(-2, n // 2, n)}
    options = {"normalize": m.pick(True, False), "reduction": m.pick("mean", "sum", "none")}
    return m.call(lambda **t: avfast.sup_con(**t, temperature=0.3, **options), tensors, "z")


def queue_info_nce(m: Maker) -> Call:
    n, d = m.size(), m.size()
    tensors = {"q": m.x(n, d), "k": m.x(n, d), "queue": m.x(m.size(), d, kind="usual")}
    options = {"normalize": m.pick(True, False), "reduction": m.pick("mean", "sum", "none")}
    return m.call(lambda **t: avfast.queue_info_nce(**t, temperature=0.5, **options), tensors, "q", "k", "queue")


def dense_contrastive(m: Maker) -> Call:
    b, d, s, keys = m.size(), m.size(), m.size(), m.size(1)
    match = m.whole(m.pick(-2, -1, 0, -(2**62)), m.pick(keys - 1, keys - 1, keys - 1, keys, 2**31, 2**62), b, s)
    tensors = {"q": m.x(b, d, s), "k": m.x(b, d, keys), "queue": m.x(m.size(), d, kind="usual"), "match": match}
    options = {"normalize": m.pick(True, False), "reduction": m.pick("mean", "sum", "none")}
    return m.call(lambda **t: avfast.dense_contrastive(**t, temperature=0.5, **options), tensors, "q", "k", "queue")


def dense_match(m: Maker) -> Call:
    b, c = m.size(), m.size()
    tensors = {"feat_q": m.x(b, c, m.size()), "feat_k": m.x(b, c, m.size())}
    # Of equal scores rounding may find another; what it finds must be as similar.
    return m.call(lambda **t: avfast.dense_match(**t).similarity, tensors)


def channel_stats(m: Maker) -> Call:
    shape = [m.size() for _ in range(m.pick(2, 2, 3, 4))]
    return m.call(lambda x: tuple(avfast.channel_stats(x, dead_threshold=0.25))[:4], {"x": m.x(*shape)})


def _vectors(m: Maker, c: int, *names: str) -> dict[str, Tensor]:
    wide = torch.float64 if m.dtype == torch.float64 else torch.float32
    return {name: m.x(c, dtype=m.pick(wide, m.dtype), kind="usual") for name in names}


def channel_affine(m: Maker) -> Call:
    shape = [m.size() for _ in range(m.pick(2, 3, 4))]
    tensors = {"x": m.x(*shape), **_vectors(m, shape[1], "scale", "shift")}
    activation = m.pick(None, "relu")
    return m.call(lambda **t: avfast.channel_affine(**t, activation=activation), tensors, "x", "scale", "shift")


def blended_batch_norm(m: Maker) -> Call:
    shape = [m.size() for _ in range(m.pick(2, 3, 4))]
    names = ("weight", "bias", "new_weight", "new_bias", "alpha")
    tensors = {"x": m.x(*shape), **_vectors(m, shape[1], *names)}
    activation = m.pick(None, "relu")
    return m.call(lambda **t: avfast.blended_batch_norm(**t, activation=activation), tensors, "x", *names)


def scan_batchnorm(m: Maker) -> Call:
    c = m.size(1)
    tensors = {name: m.x(c) for name in ("weight", "bias", "running_mean")}
    tensors["running_var"] = m.x(c).abs()

    def run(**t: Tensor) -> Result:
        return torch.ops.avfast.bn_scan(*([t[name]] for name in tensors), 1e-10)

    call = m.call(run, tensors)
    call.checked = False
    return call


def correlate(m: Maker) -> Call:
    b, e, nq, nk, h, d = m.size(), m.size(), m.size(), m.size(), m.size(1), m.size(1)
    tensors = {"q": m.x(b, nq, h, d), "k": m.x(b, e, nk, h, d), "v": m.x(b, e, nk, h, d)}
    tensors["key_mask"] = m.maybe(m.flags(b, e, nk))
    chosen = m.pick(None, "lse", "max", "mean_prob")
    return m.call(lambda **t: avfast.correlate(**t, correlation=chosen), tensors, "q", "k", "v")


def _boxes(m: Maker, *shape: int) -> Tensor:
    return m.x(*shape, 5, dtype=m.pick(torch.float32, torch.float64)) * 20


def crop_exemplars(m: Maker) -> Call:
    b, c, h, w = m.size(), m.size(), m.size(), m.size()
    images = m.whole(0, 255, b, c, h, w, dtype=torch.uint8) if m.pick(0, 1) else m.x(b, c, h, w)
    options = {"out": m.pick(1, 2, 7, 16), "filter": m.pick("bicubic", "bilinear"), "antialias": m.pick(True, False)}
    tensors = {"images": images, "exemplars": _boxes(m, b, m.size())}
    return m.call(lambda **t: avfast.crop_exemplars(**t, **options), tensors)


def recolour(m: Maker) -> Call:
    n, h, w = m.size(), m.size(), m.size()
    pictures = m.whole(0, 255, n, 3, h, w, dtype=torch.uint8) if m.pick(0, 1) else m.x(n, 3, h, w)
    tensors = {"pictures": pictures, "gray": m.maybe(m.flags(n)), "solarize": m.maybe(m.flags(n))}
    tensors["factors"] = m.maybe(m.x(n, 4, kind="usual"))
    tensors["sigma"] = m.maybe(m.x(n, kind="usual").abs() * m.pick(0.1, 1.0, 1e9))
    if tensors["factors"] is not None:
        tensors["order"] = m.maybe(m.x(n, 4, kind="usual").argsort(1))
    options = {"mean": m.pick(None, 0.5, (0.1, 0.2, 0.3)), "std": m.pick(None, 0.25, (1.0, 2.0, 3.0))}
    return m.call(lambda **t: avfast.recolour(**t, **options), tensors)


def rotated_box_bce(m: Maker) -> Call:
    n, grid = m.size(), (m.pick(1, 7, 20), m.pick(1, 8, 33))
    boxes = m.flags(n, *grid) if m.pick(0, 0, 1) else _boxes(m, n)
    tensors = {"logits": m.x(n, m.pick(1, 2), m.size(), m.size()), "boxes": boxes}
    options = {"size": grid, "source_size": m.pick(1.0, 32.0, 1e6), "align_corners": m.pick(True, False)}
    options |= {"shrink": m.pick(0.0, 0.5, 100.0), "reduction": m.pick("mean", "sum", "none")}
    return m.call(lambda **t: avfast.rotated_box_bce(**t, **options), tensors, "logits")


def rotated_box_mask(m: Maker) -> Call:
    options = {"size": (m.pick(1, 7, 20), m.pick(1, 8, 33)), "source_size": m.pick(1.0, 32.0)}
    return m.call(lambda boxes: avfast.rotated_box_mask(boxes, **options), {"boxes": _boxes(m, m.size())})


def upsample_cross_entropy(m: Maker) -> Call:
    b, c = m.size(), m.size()
    kind, far = m.pick(torch.uint8, torch.int16, torch.int32, torch.int64), m.pick(0, 0, 0, 1, 90)
    target = m.whole(0, max(c - 1, 0) + far, b, m.size(), m.size(), dtype=kind)
    tensors = {"logits": m.x(b, c, m.size(), m.size()), "target": target, "weight": m.maybe(m.x(c, kind="usual").abs())}
    options = {"align_corners": m.pick(True, False), "ignore_index": m.pick(-100, 0, 255, -(2**62))}
    options |= {"label_smoothing": m.pick(0.0, 0.1, 1.0), "reduction": m.pick("mean", "sum", "none")}
    return m.call(lambda **t: avfast.upsample_cross_entropy(**t, **options), tensors, "logits")


def masked_fusion(m: Maker) -> Call:
    mode, d = m.pick("sum", "gated", "film", "concat"), m.size()
    lead = [m.size() for _ in range(m.pick(1, 1, 2))]
    other = {"film": 2 * d, "concat": m.size()}.get(mode, d)
    tensors = {"a": m.x(*lead, d), "v": m.x(*lead, other), "mask_a": m.maybe(m.flags(lead[0]))}
    tensors["mask_v"] = m.maybe(m.flags(*lead, d if mode == "film" else other))
    if mode == "gated" or (mode != "film" and m.pick(0, 1)):
        tensors["weight_a"] = m.x(*m.pick((), (1,), (d,)), kind="usual")
    options = {"mode": mode, "renormalize": m.pick(True, False)}
    return m.call(lambda **t: avfast.masked_fusion(**t, **options), tensors, "a", "v", "weight_a")


def masked_concat_linear(m: Maker) -> Call:
    n, da, dv, c = m.size(), m.size(), m.size(), m.size()
    tensors = {"a": m.x(n, da), "v": m.x(n, dv), "weight": m.x(c, da + dv, kind="usual")}
    tensors |= {"bias": m.maybe(m.x(c)), "mask_a": m.maybe(m.flags(n)), "mask_v": m.maybe(m.flags(n))}
    return m.call(lambda **t: avfast.masked_concat_linear(**t), tensors, "a", "v", "weight", "bias")


def mask_patches(m: Maker) -> Call:
    shape = [m.size() for _ in range(m.pick(4, 4, 5))]
    tensors = {"x": m.x(*shape), "sample_ids": m.maybe(m.whole(-(2**62), 2**62, shape[0]))}
    patch, value, step = m.pick(1, 2, (3, 2), 40), m.pick(0.0, -1.5), m.pick(0, 3, 2**62, -(2**62))
    tensors["ratio"] = m.maybe(torch.rand(shape[0], generator=torch.Generator().manual_seed(5)))
    options = {"ratio": m.pick(0.0, 0.3, 1.0)} if tensors["ratio"] is None else {}
    options["normalize"] = m.pick(None, (0.5, 2.0))

    def run(**t: Tensor) -> Result:
        return avfast.mask_patches(**t, patch=patch, value=value, seed=step - 7, step=step, **options)[0]

    return m.call(run, tensors, "x")


def mask_ratio(m: Maker) -> Call:
    n, rule = m.size(), m.pick("symmetric", "released", "figure", "mean")
    tensors = {"conf_a": m.x(n).sigmoid(), "conf_v": m.x(n).sigmoid()}
    return m.call(lambda **t: avfast.mask_ratio(**t, rule=rule), tensors)


def yuv_to_rgb(m: Maker) -> Call:
    t, h, w, halved = m.size(), m.size(), m.size(), m.pick(True, False)
    colours = (t, (h + 1) // 2, (w + 1) // 2) if halved else (t, h, w)
    shapes = {"y": (t, h, w), "u": colours, "v": colours}
    tensors = {name: m.whole(0, 255, *shape, dtype=torch.uint8) for name, shape in shapes.items()}
    options = {"size": (m.pick(1, 5, 16), m.pick(1, 7, 16)), "matrix": m.pick("bt601", "bt709", "bt2020")}
    options |= {
        "full_range": m.pick(True, False),
        "siting": m.pick("left", "center"),
        "dtype": m.pick(torch.uint8, m.dtype),
    }
    return m.call(lambda **t: avfast.yuv_to_rgb(**t, **options), tensors)


SPECS: dict[str, Callable[[Maker], Call]] = {
    function.__name__: function
    for function in (
        blended_batch_norm, channel_affine, channel_stats, correlate, crop_exemplars, dense_contrastive, dense_match,
        info_nce, mask_patches, mask_ratio, masked_concat_linear, masked_fusion, nt_xent, queue_info_nce,
        recolour, rotated_box_bce, rotated_box_mask, scan_batchnorm, sigmoid_contrastive, sup_con,
        upsample_cross_entropy, yuv_to_rgb,
    )
}  # fmt: skip
