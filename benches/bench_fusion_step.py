"""A whole step of joint Fusion Tuning with ABRi: two ResNet-18, masks of both streams, a head over both, SGD.

The published form has two batch norms per layer, slice assignments for the masks and a concatenation; the leanest plain
one a single batch norm of the mixed parameters and a product in a view of patches. All hide the same patches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .bench_train_step import Blend, TwoLayers, with_avfast, with_layer
from .candidate import LEAN, OURS, PUBLISHED, Candidate, Case

BATCH, FRAMES, SIDE, TIME, MELS, CLASSES, RATIO, SEED = 8, 3, 112, 256, 128, 31, 0.25, 0
PATCHES = {"spectrogram": (32, 8), "frames": (10, 10)}
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Way:
    """How a step converts batch norms, hides patches and fuses."""

    convert: Callable[[nn.Module], nn.Module]
    hide: Callable[[Tensor, tuple[int, int], Tensor], Tensor]
    fuse: Callable[[nn.Module, Tensor, Tensor], Tensor]


def by_slices(x: Tensor, patch: tuple[int, int], hidden: Tensor) -> Tensor:
    out = x.clone()
    for picture, places in zip(out.flatten(0, -4), hidden.flatten(0, -3), strict=True):
        for row, column in places.nonzero().tolist():
            y, z = row * patch[0], column * patch[1]
            picture[..., y : y + patch[0], z : z + patch[1]] = 0
    return out


def in_view(x: Tensor, patch: tuple[int, int], hidden: Tensor) -> Tensor:
    out, (rows, columns) = x.clone(), hidden.shape[-2:]
    inside = out[..., : rows * patch[0], : columns * patch[1]]
    inside = inside.unflatten(-1, (columns, patch[1])).unflatten(-3, (rows, patch[0]))
    inside.mul_(~hidden[..., None, :, None, :, None])
    return out


def avfast_hide(x: Tensor, patch: tuple[int, int], hidden: Tensor) -> Tensor:
    import avfast

    return avfast.mask_patches(x, RATIO, patch, seed=SEED)[0]


def concatenated(head: nn.Module, a: Tensor, v: Tensor) -> Tensor:
    return F.linear(torch.cat([a, v], 1), head.weight, head.bias)


WAYS = {
    "two layers, slices, concatenation": Way(lambda m: with_layer(m, TwoLayers), by_slices, concatenated),
    "blend, masks in a view": Way(lambda m: with_layer(m, Blend), in_view, concatenated),
    "avfast": Way(with_avfast, avfast_hide, lambda head, a, v: head(a, v)),
}


class FusionStep:
    """Masks, forward, loss, backward, SGD. Returns the loss and the gradients at both ends."""

    def __init__(self, batch: Batch, way: Way) -> None:
        import avfast
        from avfast.methods.fusion_tuning import FusionTuning

        torch.manual_seed(0)
        options = {"audio": "resnet18", "visual": "resnet18", "classes": CLASSES, "size": SIDE, "frames": FRAMES}
        method = FusionTuning(FusionTuning.Config(**options))
        for encoder in (method.audio, method.visual):
            way.convert(encoder.backbone)
        self._method = method.to(batch["frames"].device, batch["frames"].dtype).train()
        self._batch, self._way = batch, way
        self._hidden = {
            name: avfast.mask_patches(batch[name], RATIO, patch, seed=SEED)[1].patches()
            for name, patch in PATCHES.items()
        }
        self._optimiser = torch.optim.SGD(self._method.parameters(), lr=1e-4)

    def __call__(self) -> dict[str, Tensor]:
        self._optimiser.zero_grad(set_to_none=True)
        hidden = {name: self._way.hide(self._batch[name], patch, self._hidden[name]) for name, patch in PATCHES.items()}
        found = self._method.features(hidden)
        loss = F.cross_entropy(self._way.fuse(self._method.head, found["audio"], found["video"]), self._batch["label"])
        loss.backward()
        self._optimiser.step()
        stem = self._method.audio.backbone.embedder.embedder.convolution
        return {"loss": loss.detach(), "d_stem": stem.weight.grad, "d_head": self._method.head.weight.grad}


def batch(device: str) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return {
        "spectrogram": torch.randn(BATCH, 1, TIME, MELS, generator=generator).to(device),
        "frames": torch.randn(BATCH, FRAMES, 3, SIDE, SIDE, generator=generator).to(device),
        "label": torch.randint(CLASSES, (BATCH,), generator=generator).to(device),
    }


def oracle(inputs: Batch) -> dict[str, Tensor]:
    wide = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    return FusionStep(wide, WAYS["two layers, slices, concatenation"])()


def cases(device: str = "cpu") -> list[Case]:
    roles = (PUBLISHED, LEAN, OURS)
    return [
        Case(
            op="fusion_step",
            shape_name="resnet18",
            shape=(BATCH, FRAMES, 3, SIDE, SIDE),
            inputs=lambda: batch(device),
            oracle=oracle,
            candidates=tuple(
                Candidate(name, lambda b, way=way: FusionStep(b, way), role)
                for (name, way), role in zip(WAYS.items(), roles, strict=True)
            ),
            mode="train",
            device=device,
            # Seventeen ReLUs deep, rounding decides branches: equally good gradients differ by this much.
            least_allowance=2e-2,
        )
    ]


def test_fusion_step(case, candidate, measure):
    measure(case, candidate)
