"""What the tests of CIM share: a small vision transformer and random batches."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from avfast import sample_exemplars
from avfast.encoders import Encoder
from avfast.methods.cim import CIM, CIMConfig
from avfast.vit import VIT_PRESETS, build_vit

SMALL = {"size": 32, "context": 32, "exemplar": 16, "count": 3, "decoder_dim": 16, "decoder_heads": 2,
         "head_hidden": 12, "head_dim": 6}  # fmt: skip
VIT_PRESETS_OF_TESTS = {
    "hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 48, "num_hidden_layers": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip


def vit() -> Encoder:
    """Two blocks of 24 channels, patches of 8 pixels, a table of 4 x 4 positions."""
    VIT_PRESETS["of-tests"] = VIT_PRESETS_OF_TESTS
    try:
        return build_vit("of-tests", in_channels=3)
    finally:
        del VIT_PRESETS["of-tests"]


def residual() -> Encoder:
    """A map an eighth of the picture's side, with batch norm."""
    net = nn.Sequential(nn.Conv2d(3, 12, 8, stride=8), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 20, 1))
    return Encoder(net, 20)


def method(*, seed: int = 0, encoder=vit, **options) -> CIM:
    torch.manual_seed(seed)
    return CIM(CIMConfig(**{**SMALL, **options}), encoder=encoder()).train()


def batch(
    size: int = 4, *, seed: int = 0, dtype: torch.dtype = torch.float32, options: dict | None = None
) -> dict[str, Tensor]:
    """A random batch for a method with these options beside those of :data:`SMALL`."""
    o = {**SMALL, **(options or {})}
    generator = torch.Generator().manual_seed(seed)

    def pictures(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return {
        "context": pictures(size, 3, o["context"], o["context"]),
        "exemplars": pictures(size, o["count"], 3, o["exemplar"], o["exemplar"]),
        "boxes": sample_exemplars(size, count=o["count"], size=o["size"], generator=seed).boxes,
        "image": pictures(size, 3, o["size"], o["size"]),
        "index": torch.arange(size),
    }


# ------------------------------------------------------------------------------------------- photographs


@functools.cache
def photographs(split: str) -> Tensor:
    """Nine photographs of avfast to train on or seven others to test with, ``[N, 3, 160, 160]`` in [0, 255]."""
    from avfast.data.demo.photos import shipped_photos

    held_out = {"astronaut", "photographer", "cat", "coffee", "galaxies", "retina", "handwriting"}
    chosen = [p.image for p in shipped_photos() if (p.name in held_out) == (split == "test")]
    return torch.cat([interpolate(p[None].float(), (160, 160), mode="bilinear", antialias=True) for p in chosen])


def collages(split: str, size: int, generator: torch.Generator) -> Tensor:
    """Pictures uint8 ``[size, 3, 48, 48]``, a crop of another photograph in each quarter."""
    photos, out = photographs(split), torch.empty(size, 3, 48, 48)
    for picture in out:
        for quarter, which in enumerate(torch.randperm(len(photos), generator=generator)[:4].tolist()):
            side = int(torch.randint(32, 96, (1,), generator=generator))
            top, left = torch.randint(0, 161 - side, (2,), generator=generator).tolist()
            crop = photos[which : which + 1, :, top : top + side, left : left + side]
            y, x = 24 * (quarter // 2), 24 * (quarter % 2)
            picture[:, y : y + 24, x : x + 24] = interpolate(crop, (24, 24), mode="bilinear", antialias=True)[0]
    return out.clamp(0, 255).to(torch.uint8)
