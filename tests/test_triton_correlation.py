"""The correlation family in Triton, interpreted, against its references in float64."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from interpreted import ROUNDED, WIDE, assert_close, interpreted, launched, wide

import avfast
from avfast.reference import correlation, exemplar_crop, map_loss

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
FAMILY = "avfast.kernels.correlation"


def launcher(module, name):
    return getattr(importlib.import_module(f"{FAMILY}.{module}"), name)


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# ------------------------------------------------------------------------------------------- binary maps

MAPS = {  # M, channels, h, w, H, W
    "odd": (2, 2, 3, 4, 13, 17),
    "in tiles": (1, 1, 5, 20, 13, 45),
    "made smaller": (1, 2, 9, 5, 4, 3),
    "mixed": (1, 1, 4, 40, 9, 6),
    "one": (2, 1, 1, 1, 3, 2),
    "to one": (1, 2, 3, 2, 1, 1),
}


def boxes(count):
    return torch.tensor([[0.0, -60, -50, 40, 70], [33.0, -80, -30, 20, 55]])[:count]


def check_boxes(z, target, mask, size, align_corners=True):
    launch = launcher("box_bce_triton", "box_bce_fwd_triton")
    options = *size, 224.0, align_corners, 3.0
    exact = map_loss.box_bce_forward(*wide(z, target, mask), *options, True)
    limit = WIDE[z.dtype]
    assert_close(launched(launch, z, target, mask, *options, True), exact, [limit, 2 * limit])
    assert_close(launched(launch, z, target, mask, *options, False), (exact[0], torch.empty(0)), [limit, limit])


@interpreted
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("shape", MAPS.values(), ids=MAPS)
def test_boxes(shape, align_corners):
    m, channels, h, w, *size = shape
    check_boxes(4 * normal(m, channels, h, w), boxes(m), None, size, align_corners)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_boxes_and_masks_of_every_dtype(dtype):
    z = 4 * normal(2, 2, 3, 4, dtype=dtype)
    check_boxes(z, boxes(2).double(), None, (13, 17))
    check_boxes(z, None, (normal(2, 13, 17) > 0.5).to(torch.uint8), (13, 17), align_corners=False)


@interpreted
def test_maps_of_any_strides_and_none():
    z, target = 4 * normal(2, 2, 3, 4), boxes(2)
    launch, options = launcher("box_bce_triton", "box_bce_fwd_triton"), (13, 17, 224.0, True, 0.0, True)
    plain = launched(launch, z, target, None, *options)
    strided = z.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    columns = target.T.contiguous().T
    assert all(
        torch.equal(a, b) for a, b in zip(launched(launch, strided, columns, None, *options), plain, strict=True)
    )
    loss, grad = launch(z[:0], target[:0], None, *options)
    assert loss.shape == (0,) and grad.shape == (0, 1, 3, 4)


@interpreted
def test_logits_of_any_size_lose_nothing():
    """A loss of 1e-20 is not 0, and one of 1e4 not infinite."""
    mask = torch.zeros(1, 6, 6, dtype=torch.uint8)
    for level in (-45.0, -1e4, 1e4):
        z = normal(1, 1, 3, 3) + level
        check_boxes(z, None, mask, (6, 6))


@interpreted
def test_a_nan_stays_in_its_map_and_its_rows():
    launch = launcher("box_bce_triton", "box_bce_fwd_triton")
    z = normal(2, 1, 6, 6)
    z[1, 0, 2, 3] = float("nan")
    loss, grad = launched(launch, z, boxes(2), None, 24, 24, 224.0, False, 0.0, True)
    assert loss.isnan().tolist() == [False, True]
    hit = torch.zeros(6, 6, dtype=torch.bool)
    hit[1:4] = True
    assert not grad[0].isnan().any() and torch.equal(grad[1, 0].isnan(), hit)


@interpreted
def test_boxes_of_the_public_op():
    found = []
    for backend in ("triton", "torch"):
        z = (2 * normal(2, 2, 3, 4)).requires_grad_()
        with avfast.use_backend(backend), np.errstate(all="ignore"):
            loss = avfast.rotated_box_bce(z, boxes(2), size=(13, 17), source_size=224, shrink=2.0)
            loss.backward()
        found.append([loss.detach(), z.grad])
    assert_close(found[0], tuple(found[1]), [2e-6] * 2)


# --------------------------------------------------------------------------------------- class per pixel

CLASSES = {  # B, C, h, w, H, W
    "odd": (2, 3, 3, 4, 13, 17),
    "in tiles": (1, 2, 5, 20, 13, 45),
    "made smaller": (1, 5, 9, 5, 4, 3),
    "mixed": (1, 2, 4, 40, 9, 6),
    "one": (2, 1, 1, 1, 3, 2),
    "twenty": (1, 20, 2, 3, 7, 5),
    "in chunks": (1, 300, 2, 2, 3, 4),
}


def targets(b, classes, height, width, ignored=True, dtype=torch.int64):
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, classes, (b, height, width), generator=generator)
    if ignored:
        target[torch.rand(target.shape, generator=generator) < 0.2] = 255
    return target.to(dtype)


def check_classes(z, target, weight=None, smoothing=0.0, align_corners=False):
    forward = launcher("upsample_ce_triton", "upsample_ce_fwd_triton")
    backward = launcher("upsample_ce_triton", "upsample_ce_bwd_triton")
    options = align_corners, 255, smoothing
    limits = [2 * WIDE[z.dtype]] * 3
    for per_pixel, need_grad in ((False, True), (True, False)):
        exact = map_loss.upsample_ce_forward(*wide(z, target, weight), *options, per_pixel, need_grad)
        got = launched(forward, z, target, weight, *options, per_pixel, need_grad)
        assert_close(got, exact, limits)
    grad = normal(*target.shape, dtype=got[0].dtype)
    exact = map_loss.upsample_ce_backward(*wide(grad, z, target, weight), *options)
    assert_close(launched(backward, grad, z, target, weight, *options), (exact,), limits[:1])


@interpreted
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("shape", CLASSES.values(), ids=CLASSES)
def test_classes(shape, align_corners):
    b, classes, h, w, *size = shape
    check_classes(3 * normal(b, classes, h, w), targets(b, classes, *size), align_corners=align_corners)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_classes_of_every_dtype(dtype):
    z = 3 * normal(2, 3, 3, 4, dtype=dtype)
    check_classes(z, targets(2, 3, 7, 9))


@interpreted
@pytest.mark.parametrize("classes", [3, 20, 300])
def test_weights_and_smoothing(classes):
    z, target = 3 * normal(1, classes, 2, 3), targets(1, classes, 5, 4)
    weight = normal(classes).abs()
    check_classes(z, target, weight, 0.1)
    if classes < 300:
        check_classes(z, target, weight)
        check_classes(z, target, None, 0.1)


@interpreted
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32], ids=str)
def test_targets_of_every_type_and_strides(dtype):
    z = (3 * normal(2, 3, 3, 4)).permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    check_classes(z, targets(2, 3, 7, 9, dtype=dtype).transpose(1, 2).contiguous().transpose(1, 2))


@interpreted
def test_an_expanded_gradient_of_pixels():
    backward = launcher("upsample_ce_triton", "upsample_ce_bwd_triton")
    z, target = normal(2, 3, 3, 4), targets(2, 3, 7, 9)
    ones = torch.ones(()).expand(target.shape)
    exact = map_loss.upsample_ce_backward(*wide(ones, z, target, None), True, 255, 0.0)
    assert_close(launched(backward, ones, z, target, None, True, 255, 0.0), (exact,), [2e-6])


@interpreted
def test_images_without_a_class_and_no_images():
    forward = launcher("upsample_ce_triton", "upsample_ce_fwd_triton")
    z, target = normal(2, 3, 3, 4), targets(2, 3, 7, 9, ignored=False)
    target[1] = 255
    loss, total, grad = launched(forward, z, target, None, False, 255, 0.0, False, True)
    assert loss[0] > 0 and loss[1] == 0 and total.tolist() == [63, 0] and grad[0].any() and not grad[1].any()
    for per_pixel, shape in ((False, (0,)), (True, (0, 7, 9))):
        out = forward(z[:0], target[:0], None, False, 255, 0.0, per_pixel, True)
        assert [tuple(x.shape) for x in out] == [shape, (0,), (0, 3, 3, 4)]


@interpreted
def test_a_class_out_of_range_is_a_nan():
    forward = launcher("upsample_ce_triton", "upsample_ce_fwd_triton")
    z, target = normal(2, 3, 3, 4), targets(2, 3, 7, 9, ignored=False)
    target[1, 2, 3] = 3
    assert launched(forward, z, target, None, False, 255, 0.0, True, False)[0].isnan().nonzero().tolist() == [[1, 2, 3]]


@interpreted
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_classes_of_the_public_op(reduction):
    found = []
    for backend in ("triton", "torch"):
        z = (2 * normal(2, 3, 3, 4)).requires_grad_()
        with avfast.use_backend(backend), np.errstate(all="ignore"):
            loss = avfast.upsample_cross_entropy(
                z, targets(2, 3, 7, 9), align_corners=False, ignore_index=255, reduction=reduction
            )
            loss.square().sum().backward()
        found.append([loss.detach(), z.grad])
    assert_close(found[0], tuple(found[1]), [2e-6] * 2)


# ----------------------------------------------------------------------------------------- cross-attention

HEATS = {"no map": 0, "lse": 1, "max": 2, "mean_prob": 3}
ATTENTIONS = {  # B, E, queries, keys, heads, width
    "odd": (2, 2, 21, 17, 2, 8),
    "one": (1, 1, 1, 1, 1, 1),
    "few keys": (1, 3, 101, 5, 1, 32),
    "many queries": (1, 2, 140, 9, 1, 20),
    "many keys": (1, 1, 5, 150, 2, 20),
    "130 features": (1, 1, 5, 6, 1, 130),
}


def attention(shape, dtype, masked):
    b, e, queries, keys, heads, width = shape
    q = normal(b, queries, heads, width, dtype=dtype)
    k, v = (normal(b, e, keys, heads, width, dtype=dtype, seed=n) for n in (1, 2))
    mask = None
    if masked:
        mask = normal(b, e, keys, seed=3) < 0.3
        if e > 1:
            mask[0, 1] = False
    return q, k, v, mask


def check_attention(q, k, v, mask, scale, heat, grad_out=None):
    forward, backward = (launcher("correlate_triton", f"correlate_{x}_triton") for x in ("fwd", "bwd"))
    limit, rounded = 2 * WIDE[q.dtype], 1.5 * ROUNDED[q.dtype]
    got = launched(forward, q, k, v, mask, scale, heat)
    exact = correlation.correlate_forward(*wide(q, k, v), mask, scale, heat)
    assert_close(got, exact, [rounded, limit, limit])
    grad_out = normal(*got[0].shape, dtype=q.dtype, seed=4) if grad_out is None else grad_out
    grad_map = normal(*got[2].shape, dtype=got[2].dtype, seed=5)
    args = grad_out, grad_map, q, k, v, mask
    exact = correlation.correlate_backward(*wide(*args, exact[1]), scale, heat)
    found = launched(backward, *args, got[1], scale, heat)
    assert_close(found, exact, [rounded] * 3)
    return got + found


@interpreted
@pytest.mark.parametrize("heat", HEATS.values(), ids=HEATS)
@pytest.mark.parametrize("shape", ATTENTIONS.values(), ids=ATTENTIONS)
def test_attention(shape, heat):
    check_attention(*attention(shape, torch.float32, masked=heat % 2 == 0), shape[5] ** -0.5, heat)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heat", HEATS.values(), ids=HEATS)
def test_attention_of_every_dtype(heat, dtype):
    check_attention(*attention(ATTENTIONS["odd"], dtype, masked=True), 0.35, heat)
    several = (1, 1, 140, 70, 1, 70) if dtype.itemsize == 2 else (1, 1, 70, 35, 1, 20)  # tiles of everything
    check_attention(*attention(several, dtype, masked=False), 0.12, heat)


@interpreted
@pytest.mark.parametrize("scale", [-0.3, 0.0, 10.0])
def test_scores_of_any_sign_and_size(scale):
    q, k, v, mask = attention((1, 2, 7, 9, 1, 8), torch.float64, masked=True)
    check_attention(q, k, v, mask, scale, HEATS["mean_prob"])
    check_attention(q, k, v, mask, scale, HEATS["lse"])


@interpreted
@pytest.mark.parametrize("heat", HEATS.values(), ids=HEATS)
@pytest.mark.parametrize("shape", [(1, 2, 140, 17, 1, 8), (1, 2, 21, 70, 1, 8)], ids=["many queries", "many keys"])
def test_keys_that_may_not_be_attended_are_never_read(shape, heat):
    q, k, v, mask = attention(shape, torch.float32, masked=True)
    plain = check_attention(q, k, v, mask, 0.3, heat)
    poisoned = [x.masked_fill(~mask[..., None, None], float("nan")) for x in (k, v)]
    found = check_attention(q, *poisoned, mask, 0.3, heat)
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    assert not found[0][0, 1].any() and (found[1][0, 1] == float("-inf")).all()
    assert all(not x[~mask].any() for x in found[4:])


@interpreted
def test_attention_to_nothing_and_of_nothing():
    for shape in ((1, 0, 3, 4, 2, 8), (0, 2, 3, 4, 2, 8), (1, 2, 0, 4, 2, 8), (1, 2, 3, 0, 2, 8)):
        for heat in HEATS.values():
            check_attention(*attention(shape, torch.float32, masked=False), 0.3, heat)


@interpreted
def test_attention_of_any_strides():
    """Keys and values as halves of one projection, and a gradient that is one number."""
    q, k, v, _ = attention(ATTENTIONS["odd"], torch.float32, masked=False)
    plain = check_attention(q, k, v, None, 0.3, HEATS["max"])
    both = torch.stack((k, v), dim=3)
    columns = q.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    strided = check_attention(columns, *both.unbind(3), None, 0.3, HEATS["max"])
    assert all(torch.equal(a, b) for a, b in zip(strided, plain, strict=True))
    check_attention(q, k, v, None, 0.3, HEATS["no map"], torch.ones(()).expand(plain[0].shape))


@interpreted
def test_gradients_of_max_go_to_the_first_of_equal_keys():
    backward = launcher("correlate_triton", "correlate_bwd_triton")
    for queries, keys in ((2, 3), (2, 70), (140, 3)):
        q, k = torch.ones(1, queries, 1, 4), torch.ones(1, 1, keys, 1, 4)
        lse = torch.full((1, 1, 1, queries), 2.0 + np.log(keys))
        grad_map = torch.ones(1, 1, queries)
        _, dk, _ = launched(backward, torch.zeros(1, 1, queries, 4), grad_map, q, k, k, None, lse, 0.5, HEATS["max"])
        assert (dk[0, 0, 0] == queries / 2).all() and not dk[0, 0, 1:].any()


@interpreted
def test_a_nan_stays_in_its_query():
    forward = launcher("correlate_triton", "correlate_fwd_triton")
    q, k, v, _ = attention(ATTENTIONS["odd"], torch.float32, masked=False)
    q[0, 3, 1, 2] = float("nan")
    out, lse, heat = launched(forward, q, k, v, None, 0.3, HEATS["max"])
    hit = torch.zeros(out.shape, dtype=torch.bool)
    hit[0, :, 3, 8:] = True
    assert torch.equal(out.isnan(), hit) and torch.equal(heat.isnan(), hit.any(-1)) and lse.isnan().sum() == 2


@interpreted
def test_attention_of_the_public_op():
    found = []
    for backend in ("triton", "torch"):
        leaves = [x.requires_grad_() for x in attention(ATTENTIONS["odd"], torch.float32, masked=False)[:3]]
        with avfast.use_backend(backend), np.errstate(all="ignore"):
            out, heat = avfast.correlate(*leaves, correlation="mean_prob")
            (out.square().sum() + heat.square().sum()).backward()
        found.append([out.detach(), heat.detach(), *(x.grad for x in leaves)])
    assert_close(found[0], tuple(found[1]), [2e-6] * 5)


# ------------------------------------------------------------------------------------------- exemplar crops


def crop_boxes(b, count):
    kinds = [[0.0, -9, -11, 9, 11], [33.0, -7, -10, 12, 4.3], [-40.0, 5, 8, -6, -9], [10.0, -30, -2, 40, 1]]
    return torch.tensor(kinds)[:count].expand(b, count, 5).contiguous()


def check_crops(images, boxes, out, cubic=True, antialias=True):
    launch = launcher("exemplar_crop_triton", "exemplar_crop_triton")
    (got,) = launched(launch, images, boxes, out, cubic, antialias)
    exact = exemplar_crop.exemplar_crop(*wide(images, boxes), out, cubic, antialias)
    if images.dtype == torch.uint8:
        assert got.dtype == torch.uint8
        difference = (got.int() - exact.int()).abs()
        assert difference.max() <= 1 and (difference > 0).float().mean() < 0.01
    else:
        half = images.dtype.itemsize == 2
        assert_close([got], (exact,), [ROUNDED[images.dtype] if half else 4 * WIDE[images.dtype]])
    return got


@interpreted
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("cubic", [True, False], ids=["bicubic", "bilinear"])
def test_crops(cubic, antialias):
    images = normal(2, 1, 23, 30)
    check_crops(images, crop_boxes(2, 4), 7, cubic, antialias)
    check_crops(images[:1], crop_boxes(1, 2), 70, cubic, antialias)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_crops_of_every_dtype(dtype):
    check_crops(normal(1, 2, 23, 30, dtype=dtype), crop_boxes(1, 3).double(), 20)


@interpreted
def test_crops_of_bytes_and_any_strides():
    images = (normal(2, 3, 23, 30) * 60 + 128).clamp(0, 255).to(torch.uint8)
    plain = check_crops(images, crop_boxes(2, 3), 9)
    last = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    columns = crop_boxes(2, 3).permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert torch.equal(check_crops(last, columns, 9), plain)
    whole = torch.tensor([[[0.0, -11.5, -11.5, 11.5, 11.5]]]).expand(2, 1, 5)
    square = images[..., :23]
    assert torch.equal(check_crops(square, whole, 23)[:, 0], square)


@interpreted
def test_boxes_that_are_no_boxes():
    """None reads or asks for more than a picture has."""
    nan, far = float("nan"), 1e30
    boxes = torch.tensor([[[nan, -3, -3, 3, 3], [0, nan, -3, 3, 3], [0, -far, -far, far, far], [0, 2, 2, 2, 2.0]]])
    assert check_crops(normal(1, 1, 5, 6), boxes, 4).isfinite().all()


@interpreted
def test_no_crops():
    launch = launcher("exemplar_crop_triton", "exemplar_crop_triton")
    for b, count, channels in ((0, 2, 3), (2, 0, 3), (2, 2, 0)):
        out = launch(normal(b, channels, 5, 6), crop_boxes(b, count), 4, True, True)
        assert out.shape == (b, count, channels, 4, 4)
