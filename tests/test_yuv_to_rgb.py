"""Planes to RGB: the same bytes on every backend, at most a level from the exact value."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch.nn.functional import interpolate

import avfast
from avfast import _library, testing
from avfast.ops import yuv_to_rgb as op
from avfast.reference import yuv as reference

HERE = [isa for isa in testing.ISAS if _library.native and _library.native.has_isa(isa)]
KINDS = {"420": (2, 2), "422": (1, 2), "444": (1, 1)}


def planes(frames: int, height: int, width: int, kind: str = "420", seed: int = 0) -> list[torch.Tensor]:
    """Noise, whose values are as far from smooth as they can be."""
    generator = torch.Generator().manual_seed(seed)
    down, across = KINDS[kind]
    chroma = -(-height // down), -(-width // across)
    return [
        torch.randint(0, 256, (frames, *side), dtype=torch.uint8, generator=generator)
        for side in ((height, width), chroma, chroma)
    ]


# ------------------------------------------------------------------------------------------- what is exact


def exact_axis(pixels: int, ratio: int, offset: float, start: float, end: float, out: int) -> torch.Tensor:
    """Weights [out, pixels] of the same filter, as real numbers: written for the tests, with no whole number in it."""
    low, step = start / ratio + offset, (end - start) / ratio / out
    weights = torch.zeros(out, pixels, dtype=torch.float64)
    for i in range(out):
        for k in range(-2, pixels + 2):
            if step >= 1:
                begin = low + i * step
                share = max(0.0, min(begin + step, k + 1) - max(begin, k)) / step
            else:
                share = max(0.0, 1 - abs(low + (i + 0.5) * step - (k + 0.5)))
            weights[i, min(max(k, 0), pixels - 1)] += share
    return weights


def exact(y, u, v, size, box, red=0.299, blue=0.114, full=False, siting="left") -> torch.Tensor:
    """[T, 3, H, W] in float64, not rounded, held in 0 to 255."""
    shrunk = []
    for plane in (y, u, v):
        ratios = [1 if a == b else 2 for a, b in zip(plane.shape[1:], y.shape[1:], strict=True)]
        left = 0.5 - 0.5 / ratios[1] if siting == "left" else 0.0
        down = exact_axis(plane.shape[1], ratios[0], 0.0, box[0], box[2], size[0])
        across = exact_axis(plane.shape[2], ratios[1], left, box[1], box[3], size[1])
        shrunk.append(down @ plane.double() @ across.T)
    luma, cb, cr = shrunk
    luma = luma / 255 if full else (luma - 16) / 219
    cb, cr = ((c - 128) / (255 if full else 224) for c in (cb, cr))
    r, b = luma + 2 * (1 - red) * cr, luma + 2 * (1 - blue) * cb
    g = (luma - red * r - blue * b) / (1 - red - blue)
    return torch.stack([r, g, b], 1).clamp(0, 1) * 255


def test_at_most_a_level_from_the_exact_value(way):
    if way in ("cuda", "triton"):
        pytest.skip(f"{way}: no kernel of its own")
    chance = random.Random(0)
    for trial in range(60):
        kind, (h, w) = chance.choice(list(KINDS)), (chance.randint(1, 60), chance.randint(1, 90))
        size = chance.choice([(h, w), (chance.randint(1, 70), chance.randint(1, 70)), (1, 1), (17, 16)])
        top, left = chance.uniform(0, h * 0.7), chance.uniform(0, w * 0.7)
        box = top, left, chance.uniform(top + 0.1, h), chance.uniform(left + 0.1, w)
        box = chance.choice([box, (0, 0, h, w)])
        matrix, full = chance.choice(list(op.MATRICES)), chance.random() < 0.5
        siting = chance.choice(op.SITINGS)
        given = planes(2, h, w, kind, trial)
        found = avfast.yuv_to_rgb(
            *given, size=size, crop_box=box, matrix=matrix, full_range=full, siting=siting
        ).double()
        expected = exact(*given, size, box, *op.MATRICES[matrix], full, siting)
        assert found.shape == (2, 3, *size)
        assert (found - expected).abs().max() < 0.75, (trial, kind, h, w, size, box)


def test_it_is_the_mean_over_areas_and_bilinear(way):
    """Where planes shrink to whole parts, torch's area filter; where they grow, its bilinear one."""
    if way in ("cuda", "triton"):
        pytest.skip(f"{way}: no kernel of its own")
    y, u, v = planes(1, 24, 36, "444")
    grey = torch.full_like(u, 128)
    for size, mode in (((8, 12), "area"), ((48, 50), "bilinear")):
        found = avfast.yuv_to_rgb(y, grey, grey, size=size, full_range=True).double()
        assert (found - interpolate(y[None].double(), size, mode=mode)).abs().max() <= 0.51


def test_grey_keeps_its_level_at_every_size(way):
    if way in ("cuda", "triton"):
        pytest.skip(f"{way}: no kernel of its own")
    for level, size in itertools.product((0, 1, 127, 255), (1, 5, 16, 33, 100)):
        y, chroma = torch.full((1, 31, 47), level, dtype=torch.uint8), torch.full((1, 16, 24), 128, dtype=torch.uint8)
        found = avfast.yuv_to_rgb(y, chroma, chroma, size=size, full_range=True)
        assert (found == level).all()


def test_primary_colours():
    """The bytes that BT.601, BT.709 and BT.2020 give pure colours."""
    known = {  # y, u, v of red, green and blue
        "bt601": ((81, 90, 240), (145, 54, 34), (41, 240, 110)),
        "bt709": ((63, 102, 240), (173, 42, 26), (32, 240, 118)),
        "bt2020": ((74, 97, 240), (164, 47, 25), (29, 240, 119)),
    }
    for matrix, colours in known.items():
        y, u, v = torch.tensor(colours, dtype=torch.uint8).T[:, None, None].expand(3, 1, 4, 3)
        found = avfast.yuv_to_rgb(y, u, v, size=(4, 3), matrix=matrix)[0, :, 0].int()
        assert (found - 255 * torch.eye(3, dtype=torch.int32)).abs().max() <= 2, matrix


# ------------------------------------------------------------------------------------ one answer everywhere


def test_every_instruction_set_gives_the_bytes_of_the_reference(compiled):
    chance = random.Random(1)
    for trial in range(80):
        kind, (h, w) = chance.choice(list(KINDS)), (chance.randint(1, 80), chance.randint(1, 300))
        size = chance.randint(1, 90), chance.choice([1, 3, 15, 16, 17, chance.randint(1, 400)])
        box = [0, 0, h << 16, w << 16]
        if trial % 2:
            box[0], box[1] = chance.randrange(h << 15), chance.randrange(w << 15)
            box[2], box[3] = chance.randrange(box[0] + 1, (h << 16) + 1), chance.randrange(box[1] + 1, (w << 16) + 1)
        arguments = (
            *(list(plane) for plane in planes(2, h, w, kind, trial)), box, *size, chance.random() < 0.5,
            op._numbers(chance.choice(list(op.MATRICES)), chance.random() < 0.5), torch.empty(3, 0, dtype=torch.uint8),
        )  # fmt: skip
        found, expected = torch.ops.avfast.yuv_to_rgb(*arguments), reference.yuv_to_rgb(*arguments)
        assert found.dtype == torch.uint8 and torch.equal(found, expected), (trial, kind, h, w, size, box)


def test_lines_may_be_padded_and_planes_anywhere(compiled):
    """As decoders hand them out: rows apart, misaligned, nothing readable after the last pixel."""
    y, u, v = planes(3, 37, 53)
    expected = avfast.yuv_to_rgb(y, u, v, size=20)

    def padded(plane: torch.Tensor) -> torch.Tensor:
        wide = torch.full((3, plane.shape[1], plane.shape[2] + 11), 255, dtype=torch.uint8)[:, :, 3:-8]
        return wide.copy_(plane)

    views = {
        "padded": [padded(p) for p in (y, u, v)],
        "lists": [[p.clone() for p in plane] for plane in (y, u, v)],
        "columns apart": [testing.in_layout(p, "strided") for p in (y, u, v)],
        "transposed": [p.transpose(1, 2).contiguous().transpose(1, 2) for p in (y, u, v)],
    }
    for name, view in views.items():
        assert torch.equal(avfast.yuv_to_rgb(*view, size=20), expected), name
    same = torch.full((1, 1), 90, dtype=torch.uint8)
    quarter = [same.expand(4, 4)]
    assert avfast.yuv_to_rgb([same.expand(8, 8)], quarter, quarter, size=3).shape == (1, 3, 3, 3)
    with testing.poisoned():
        guarded = avfast.yuv_to_rgb(y, u, v, size=20)
    assert testing.guards_intact(guarded) and torch.equal(guarded, expected)


def test_frames_do_not_depend_on_each_other_or_on_threads(compiled):
    y, u, v = planes(9, 240, 320)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = avfast.yuv_to_rgb(y, u, v, size=(33, 44))
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(avfast.yuv_to_rgb(y, u, v, size=(33, 44)), first)
    finally:
        torch.set_num_threads(before)
    for t in range(9):
        assert torch.equal(avfast.yuv_to_rgb(y[t : t + 1], u[t : t + 1], v[t : t + 1], size=(33, 44))[0], first[t])


# ------------------------------------------------------------------------------------------- normalisation


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=lambda d: str(d)[6:])
def test_normalised_bytes(dtype, way):
    if way in ("cuda", "triton"):
        pytest.skip(f"{way}: no kernel of its own")
    given, mean, std = planes(2, 18, 26), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    rgb = avfast.yuv_to_rgb(*given, size=15).double() / 255
    found = avfast.yuv_to_rgb(*given, size=15, mean=mean, std=std, dtype=dtype)
    column = [torch.tensor(numbers, dtype=torch.float64).view(3, 1, 1) for numbers in (mean, std)]
    assert found.dtype == dtype and torch.equal(found, ((rgb - column[0]) / column[1]).to(dtype))
    assert torch.equal(avfast.yuv_to_rgb(*given, size=15, dtype=dtype), rgb.to(dtype))


def test_the_op_compiles_and_has_no_gradient():
    given = planes(2, 20, 30)

    options = {"size": (7, 9), "crop_box": (1, 2.5, 19, 29), "mean": 0.5, "std": 0.5, "dtype": torch.float32}

    def call(y, u, v):
        return avfast.yuv_to_rgb(y, u, v, **options)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*given), call(*given)) and not call(*given).requires_grad
    arguments = (*(list(p) for p in given), [0, 0, 20 << 16, 30 << 16], 5, 6, False, op._numbers("bt601", False))
    for table in (torch.empty(3, 0, dtype=torch.uint8), torch.rand(3, 256)):
        torch.library.opcheck(torch.ops.avfast.yuv_to_rgb.default, (*arguments, table))


@pytest.mark.parametrize("given", [torch.zeros(0, 4, 4, dtype=torch.uint8), []], ids=["tensor", "list"])
def test_no_frames(given, way):
    if way in ("cuda", "triton"):
        pytest.skip(f"{way}: no kernel of its own")
    assert avfast.yuv_to_rgb(given, given, given, size=(4, 6)).shape == (0, 3, 4, 6)
    floats = avfast.yuv_to_rgb(given, given, given, size=5, dtype=torch.float16)
    assert floats.shape == (0, 3, 5, 5) and floats.dtype == torch.float16


# --------------------------------------------------------------------------------------------------- refusals

Y, C = torch.zeros(2, 8, 8, dtype=torch.uint8), torch.zeros(2, 4, 4, dtype=torch.uint8)
BYTES = "expected uint8 (decoded pictures; no gradient flows), got torch.float32"
BAD = {
    "floats": ((Y.float(), C, C), {}, TypeError, f"y: {BYTES}"),
    "float colours": ((Y, C, C.float()), {}, TypeError, f"v: {BYTES}"),
    "array": ((Y.numpy(), C, C), {}, TypeError, "y: expected a tensor, or a list of them, got ndarray"),
    "one plane": ((Y[0], C, C), {}, ValueError, "y: expected shape [T, H, W], or a list of [H, W], got (8, 8)"),
    "sides": ((Y, Y[:, :3], Y[:, :3]), {}, ValueError,
              "u, v: expected the sides of y, (8, 8), or half of them, got (3, 8) and (3, 8)"),
    "u is not v": ((Y, C, Y), {}, ValueError,
                   "u, v: expected the sides of y, (8, 8), or half of them, got (4, 4) and (8, 8)"),
    "count": ((Y, C, C[:1]), {}, ValueError, "u, v: expected 2 planes, as of y, got 2 and 1"),
    "no pixel": ((Y[:, :0], C, C), {}, ValueError,
                 "y: expected planes [H, W] of one size, with sides of 1 to 32768, got (0, 8)"),
    "mixed": (([Y[0], Y[0, :4]], C, C), {}, ValueError,
              "y: expected planes [H, W] of one size, with sides of 1 to 32768, got (4, 8)"),
    "size": ((Y, C, C), {"size": 0}, ValueError, "size: expected integers from 1 to 32768, got 0"),
    "size kind": ((Y, C, C), {"size": 2.5}, TypeError, "size: expected an integer or (height, width), got 2.5"),
    "box": ((Y, C, C), {"crop_box": (0, 0, 9, 8)}, ValueError,
            "crop_box: expected top < bottom in [0, 8] and left < right in [0, 8], got (0, 0, 9, 8)"),
    "empty box": ((Y, C, C), {"crop_box": (3, 0, 3, 8)}, ValueError,
                  "crop_box: expected top < bottom in [0, 8] and left < right in [0, 8], got (3, 0, 3, 8)"),
    "box of nan": ((Y, C, C), {"crop_box": (0, 0, float("nan"), 8)}, ValueError,
                   "crop_box: expected a finite number, got nan"),
    "matrix": ((Y, C, C), {"matrix": "bt470"}, ValueError,
               "matrix: expected one of 'bt601', 'bt709', 'bt2020', got 'bt470'"),
    "siting": ((Y, C, C), {"siting": "right"}, ValueError, "siting: expected one of 'left', 'center', got 'right'"),
    "normalised bytes": ((Y, C, C), {"mean": 0.5}, ValueError,
                         "dtype: expected a floating-point dtype beside mean or std, got torch.uint8"),
    "dtype": ((Y, C, C), {"dtype": torch.int32}, ValueError,
              "dtype: expected uint8 or a floating-point dtype, got torch.int32"),
    "std": ((Y, C, C), {"std": (1, 1, 0), "dtype": torch.float32}, ValueError,
            "std: expected positive numbers, got (1, 1, 0)"),
    "means": ((Y, C, C), {"mean": (1, 2), "dtype": torch.float32}, ValueError,
              "mean: expected one number or three, got 2"),
    "gradient": ((Y, C, C), {"mean": torch.zeros(3, requires_grad=True), "dtype": torch.float32}, ValueError,
                 "mean: expected numbers, as no gradient flows here, got a tensor that requires one"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_refused_in_words(case):
    given, options, kind, message = BAD[case]
    with pytest.raises(kind) as caught:
        avfast.yuv_to_rgb(*given, **{"size": 4, **options})
    assert str(caught.value) == f"avfast.yuv_to_rgb: {message}"


def test_the_operator_refuses_what_would_read_outside():
    """Called past the public function, as torch.ops allows."""
    if not _library.has_kernel("yuv_to_rgb", "cpu"):
        pytest.skip("no compiled library on this machine")
    numbers, none = op._numbers("bt601", False), torch.empty(3, 0, dtype=torch.uint8)

    def call(y=Y, u=C, v=C, box=(0, 0, 8 << 16, 8 << 16), size=(4, 4), matrix=numbers, table=none):
        torch.ops.avfast.yuv_to_rgb([*y], [*u], [*v], list(box), *size, False, list(matrix), table)

    call()
    for wrong in (
        {"u": C[:, :3], "v": C[:, :3]}, {"v": C[:, :2]}, {"v": C[:1]}, {"y": Y.float()}, {"y": Y[..., None]},
        {"box": (0, 0, 8 << 16, (8 << 16) + 1)}, {"box": (-1, 0, 9, 9)}, {"box": (5, 5, 5, 6)}, {"box": (0, 0, 9)},
        {"size": (0, 4)}, {"size": (4, 1 << 16)}, {"matrix": numbers[:5]}, {"matrix": [1 << 20] * 6},
        {"table": torch.empty(3, 255)}, {"table": torch.zeros(3, 256, dtype=torch.uint8)}, {"table": torch.empty(3, 0)},
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match="avfast.yuv_to_rgb: "):
            call(**wrong)
