"""Changes of colour: bytes and numbers against float64, what changes nothing, what a picture depends on."""

from __future__ import annotations

import itertools

import pytest
import torch

import avfast
from avfast import testing
from avfast.data.images import NormalizeFrames
from avfast.nn.pictures import IMAGENET_MEAN, IMAGENET_STD
from avfast.reference import colours as reference

SHAPES = ((64, 64), (1, 1), (5, 33), (17, 16), (3, 2), (2, 70))


def noise(n, h, w):
    return torch.randint(0, 256, (n, 3, h, w), dtype=torch.uint8)


def strengths(n):
    """Every order of the jitter in turn, every second with each of the rest."""
    orders = torch.tensor(list(itertools.permutations(range(4))))[torch.arange(n) % 24]
    return {
        "factors": torch.rand(n, 4) + torch.tensor([0.5, 0.5, 0.5, -0.5]),
        "order": orders,
        "gray": torch.arange(n) % 8 == 1,
        "sigma": torch.rand(n) * 2 * (torch.arange(n) % 2),
        "solarize": torch.arange(n) % 4 > 1,
    }


def raw(drawn, pictures):
    """The operator's arguments."""
    finish = torch.stack([drawn[k].double() for k in ("gray", "sigma", "solarize")], 1)
    affine = torch.tensor([[4.0, 5.0, 3.0], [-2.0, 0.5, 0.0]], dtype=torch.float64)
    return pictures, drawn["factors"].double(), drawn["order"], finish, affine


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bytes_are_as_close_to_float64_as_the_reference(shape, compiled):
    pictures, drawn = noise(24, *shape), strengths(24)
    exact = reference.recolour(*raw(drawn, pictures.double() / 255))
    plain = reference.recolour(*raw(drawn, pictures))
    found = torch.ops.avfast.recolour(*raw(drawn, pictures))
    assert found.dtype == torch.float32
    # Of numbers up to 5; the floor is for pictures of few pixels, where the worst one is down to luck.
    allowed = 2 * max((plain - exact).abs().max().item(), 20 * torch.finfo(torch.float32).eps)
    assert (found - exact).abs().max() <= allowed


@pytest.mark.parametrize("dtype", [torch.uint8, *testing.DTYPES], ids=lambda dtype: str(dtype)[6:])
def test_what_changes_nothing_leaves_every_bit(dtype, compiled):
    pictures = noise(3, 9, 21) if dtype == torch.uint8 else torch.rand(3, 3, 9, 21).to(dtype)
    n, plain = len(pictures), avfast.recolour(pictures)
    nothing = {"factors": torch.tensor([[1.0, 1, 1, 0]]).expand(n, 4), "sigma": torch.zeros(n)}
    nothing |= {"gray": torch.zeros(n, dtype=torch.bool), "solarize": torch.zeros(n, dtype=torch.bool)}
    if dtype == torch.uint8:
        assert (plain - pictures / 255).abs().max() < 1e-7
    else:
        assert torch.equal(plain, pictures) and plain.data_ptr() != pictures.data_ptr()
    atol = 1e-7 if dtype == torch.uint8 else 0
    torch.testing.assert_close(avfast.recolour(pictures, **nothing), plain, rtol=0, atol=atol)


def test_bytes_are_normalised_as_frames_are(compiled):
    pictures = noise(2, 31, 17)
    found = avfast.recolour(pictures, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    torch.testing.assert_close(found, NormalizeFrames()(pictures), rtol=0, atol=1e-6)


def test_a_picture_depends_on_its_row_alone(compiled):
    pictures, drawn = noise(24, 20, 36), strengths(24)
    whole = avfast.recolour(pictures, **drawn)
    for some in ([3], [20, 1, 7]):
        assert torch.equal(avfast.recolour(pictures[some], **{k: v[some] for k, v in drawn.items()}), whole[some])
    laid = testing.in_layout(pictures, "channels_last")
    assert torch.equal(avfast.recolour(laid, **drawn), whole)


def test_numbers_are_held_between_0_and_1_and_nan_is_0(compiled):
    x = torch.tensor([-1.0, float("nan"), 2.0]).view(1, 3, 1, 1).expand(1, 3, 2, 3)
    assert (avfast.recolour(x, solarize=torch.tensor([True]), std=0.5) == 0).all()
    assert avfast.recolour(x)[0, :, 1, 2].tolist() == [0.0, 0.0, 1.0]


def test_a_blur_wider_than_the_picture_is_its_mean(compiled):
    x = torch.rand(2, 3, 4, 3)
    found = avfast.recolour(x, sigma=torch.tensor([1e4, float("inf")]))
    torch.testing.assert_close(found, x.mean((2, 3), keepdim=True).expand_as(x), rtol=0, atol=1e-5)


def test_no_gradient_flows_and_the_op_compiles():
    x = torch.rand(2, 3, 4, 4, requires_grad=True)
    assert not avfast.recolour(x, sigma=torch.ones(2)).requires_grad
    torch.library.opcheck(torch.ops.avfast.recolour.default, raw(strengths(2), noise(2, 5, 6)))


P, F, N = torch.zeros(2, 3, 4, 4), torch.ones(2, 4), torch.arange(4).expand(2, 4)
DEVICE = "sigma: expected a tensor on cpu, like pictures, got meta"
BAD = {
    "list": ((0,), {}, TypeError, "pictures: expected a tensor, got int"),
    "channels": ((P[:, :2],), {}, ValueError, "pictures: expected shape [N, 3, H, W], got (2, 2, 4, 4)"),
    "factors": ((P,), {"factors": F[:1]}, ValueError, "factors: expected shape (2, 4), got (1, 4)"),
    "int factors": ((P,), {"factors": N}, TypeError, "factors: expected a floating-point tensor, got torch.int64"),
    "order alone": ((P,), {"order": N}, ValueError, "order: expected nothing without factors, got a tensor"),
    "order": (
        (P,),
        {"factors": F, "order": N.clamp_max(2)},
        ValueError,
        "order: expected permutations of 0, 1, 2, 3, got [[0, 1, 2, 2], [0, 1, 2, 2]]",
    ),
    "gray": ((P,), {"gray": F[:, 0]}, TypeError, "gray: expected torch.bool, got torch.float32"),
    "sigma": ((P,), {"sigma": F}, ValueError, "sigma: expected shape (2,), got (2, 4)"),
    "device": ((P,), {"sigma": F[:, 0].to("meta")}, ValueError, DEVICE),
    "std": ((P,), {"std": (1.0, 0.0, 1.0)}, ValueError, "std: expected positive numbers, got (1.0, 0.0, 1.0)"),
    "mean": ((P,), {"mean": (1.0, 0.0)}, ValueError, "mean: expected one number or three, got 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_refused_in_words(case):
    args, options, kind, message = BAD[case]
    with pytest.raises(kind) as caught:
        avfast.recolour(*args, **options)
    assert str(caught.value) == f"avfast.recolour: {message}"
