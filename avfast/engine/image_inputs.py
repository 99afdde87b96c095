"""From a loader's batch of pictures to an image method's batch, on the training device."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avfast.data.colours import Colours
from avfast.data.correlation_views import CorrelationViews
from avfast.data.images import NormalizeFrames
from avfast.data.views import TwoViews
from avfast.methods.base import CorrelationInputs, ImageInputs


class ImagePipeline(nn.Module):
    """Draw the views and normalise the plain picture.

    Input (a batch of :class:`avfast.data.image_folder.ImageDataset`): ``image`` uint8 ``[B, 3, H, W]``, ``seed`` int64
    ``[B]``, ``label``, ``index``. With ``other``, pictures like ``image``, the second view or the exemplars are cut
    from those: the shuffled-pair control. Output: see :data:`avfast.methods.base.Batch`.
    """

    frontend = None  # as of the pipeline for clips: there is no sound

    def __init__(self, inputs: ImageInputs) -> None:
        super().__init__()
        self.inputs = inputs
        self.views = _views(inputs)
        self.normalize = NormalizeFrames()
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        moved = self._moved(batch)
        images, seeds = moved["image"], moved["seed"]
        if self.views is not None:
            drawn = self.views(images, seeds)
            if "other" in moved:
                half = "exemplars" if isinstance(self.inputs, CorrelationInputs) else "view_k"
                drawn = drawn._replace(**{half: getattr(self.views(moved["other"], seeds), half)})
            moved |= drawn._asdict()
        moved["image"] = self._plain(images)
        return moved

    @torch.no_grad()
    def plain(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The same without the views, for evaluation."""
        moved = self._moved(batch)
        return moved | {"image": self._plain(moved["image"])}

    def _moved(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        device = self.normalize.scale.device
        return {k: v.to(device, non_blocking=True) for k, v in batch.items() if isinstance(v, Tensor)}

    def _plain(self, images: Tensor) -> Tensor:
        """The whole picture at the size of a view."""
        size = (self.inputs.size, self.inputs.size)
        if images.shape[-2:] == size:
            return self.normalize(images)
        small = F.interpolate(images.float(), size, mode="bilinear", antialias=True).clamp(0, 255)
        return torch.addcmul(self.normalize.shift, small, self.normalize.scale)

    def example(self, batch_size: int) -> dict[str, Tensor]:
        """A random batch as a loader would give it, for plans."""
        side = self.inputs.source_size
        generator = torch.Generator().manual_seed(0)
        return {
            "image": torch.randint(0, 256, (batch_size, 3, side, side), dtype=torch.uint8, generator=generator),
            "seed": torch.arange(batch_size),
            "label": torch.zeros(batch_size, dtype=torch.int64),
            "index": torch.arange(batch_size),
        }


def _views(inputs: ImageInputs) -> nn.Module | None:
    """What draws a method's views: two of each picture, a context and its exemplars, or nothing."""
    if isinstance(inputs, CorrelationInputs):
        return CorrelationViews(
            count=inputs.count, search=inputs.size, context=inputs.context, exemplar=inputs.exemplar,
            scale=inputs.scale, area=inputs.area, aspect=inputs.aspect, angle=inputs.angle,
            mirror_p=0.5 if inputs.mirror else 0.0,
            colours=Colours() if inputs.colours in ("exemplars", "both") else None,
            context_colours=Colours() if inputs.colours in ("context", "both") else None,
        )  # fmt: skip
    return TwoViews(inputs.size, scale=inputs.scale) if inputs.views == 2 else None
