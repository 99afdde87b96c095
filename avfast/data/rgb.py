"""From decoded frames to RGB pictures of one size: the fused op where their format allows, else FFmpeg's converter."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avfast.data.limits import check_pixels
from avfast.ops.yuv_to_rgb import LONGEST, convert, is_compiled, prepare

# Formats of three planes of bytes -> whether these run from 0 to 255.
PLANAR = {f"yuv{j}{kind}p": j == "j" for j in ("", "j") for kind in ("420", "422", "444")}
# FFmpeg's numbers of colour spaces; 2 is "not told", which it takes for BT.601 as well.
MATRICES = {1: "bt709", 2: "bt601", 5: "bt601", 6: "bt601", 9: "bt2020"}
FULL_RANGE = 2
# PyAV does not tell where halved colours lie. FFmpeg's decoders of these say on the left of two pixels, unless a
# stream says otherwise; between them is what MPEG-1 and JPEG have, and what FFmpeg takes where it is not told.
LEFT = ("h264", "hevc", "mpeg2video", "mpeg4")
# Frames wait until so many bytes of planes are there: one call for many small ones, while they are in the cache.
WAITING = 1 << 19


@dataclass(frozen=True)
class Cut:
    """The picture wanted of frames of one size: resized to ``stored`` (rows, columns), cut out from ``top, left`` on at
    the size ``height, width``, then turned by ``turns`` quarters to the left."""

    stored: tuple[int, int]
    top: int
    left: int
    height: int
    width: int
    turns: int


def plan_cut(frame: tuple[int, int], turns: int, size: tuple[int, int], crop: str) -> Cut:
    """How frames of (height, width) as stored become pictures of ``size``, see :class:`Cut`."""
    upright = frame[::-1] if turns % 2 else frame
    whole = size
    if crop == "center":
        scale = max(size[0] / upright[0], size[1] / upright[1])
        whole = max(round(upright[0] * scale), size[0]), max(round(upright[1] * scale), size[1])
    top, left = ((n - wanted) // 2 for n, wanted in zip(whole, size, strict=True))
    below, beside = whole[0] - size[0] - top, whole[1] - size[1] - left
    corner = ((top, left), (left, below), (below, beside), (beside, top))[turns]
    if turns % 2:
        return Cut(whole[::-1], *corner, *size[::-1], turns)
    return Cut(whole, *corner, *size, turns)


class RgbConverter:
    """Collects frames as pictures of one size. ``crop``: ``"center"`` or ``"squash"``; ``codec``: FFmpeg's name."""

    def __init__(self, av: ModuleType, size: tuple[int, int], crop: str, codec: str = "") -> None:
        self.size, self.crop = size, crop
        self.siting = "left" if codec in LEFT else "center"
        kinds = av.video.reformatter.Interpolation
        self._flags = kinds.AREA | kinds.ACCURATE_RND | kinds.FULL_CHR_H_INT
        self._reformatter = av.video.reformatter.VideoReformatter()
        self._done: list[Tensor] = []
        self._waiting: list[list[Tensor]] = []
        self._kind: tuple | None = None
        self._cut: Cut | None = None
        self._options: tuple | None = None

    def add(self, frame: Any) -> None:
        kind = (frame.format.name, frame.height, frame.width, frame.rotation, frame.colorspace, frame.color_range)
        if kind != self._kind:
            self._convert()
            self._kind = kind
            self._plan(*kind)
        if self._options is None:
            self._done.append(self._reformat(frame))
            return
        self._waiting.append([_plane(plane) for plane in frame.planes])
        if len(self._waiting) * 2 * frame.height * frame.width >= WAITING:
            self._convert()

    def pictures(self) -> Tensor:
        """uint8 ``[F, 3, H, W]``, contiguous, in the order of the frames."""
        self._convert()
        if not self._done:
            return torch.empty(0, 3, *self.size, dtype=torch.uint8)
        return self._done[0] if len(self._done) == 1 else torch.cat(self._done)

    def _plan(self, name: str, height: int, width: int, rotation: int, space: int, span: int) -> None:
        cut = self._cut = plan_cut((height, width), round(rotation / 90) % 4, self.size, self.crop)
        if self.crop == "center":
            # A picture of 2 x 16384 is small, and as high as a clip it is not.
            check_pixels(*cut.stored[::-1], f"shows pictures of {width} x {height}, at the wanted size")
        self._options = None
        if not is_compiled():
            return  # in plain PyTorch it is slower than FFmpeg
        if name not in PLANAR or space not in MATRICES or max(height, width, *cut.stored) > LONGEST:
            return
        down, across = height / cut.stored[0], width / cut.stored[1]
        bottom, right = min((cut.top + cut.height) * down, height), min((cut.left + cut.width) * across, width)
        self._options = prepare(
            height,
            width,
            size=(cut.height, cut.width),
            crop_box=(cut.top * down, cut.left * across, bottom, right),
            matrix=MATRICES[space],
            full_range=PLANAR[name] or span == FULL_RANGE,
            siting=self.siting,
        )

    def _convert(self) -> None:
        """What is waiting, in one call."""
        if not self._waiting:
            return
        y, u, v = map(list, zip(*self._waiting, strict=True))
        self._waiting = []
        self._done.append(self._turned(convert(y, u, v, *self._options)))

    def _reformat(self, frame: Any) -> Tensor:
        cut = self._cut
        # One thread: workers of a loader are the parallelism, and starting two costs more than such a frame.
        rgb = self._reformatter.reformat(
            frame, width=cut.stored[1], height=cut.stored[0], format="rgb24", interpolation=self._flags, threads=1
        ).to_ndarray()
        rgb = torch.from_numpy(rgb)[cut.top : cut.top + cut.height, cut.left : cut.left + cut.width]
        return self._turned(rgb.permute(2, 0, 1)[None].contiguous())

    def _turned(self, pictures: Tensor) -> Tensor:
        turns = self._cut.turns
        return torch.rot90(pictures, turns, (2, 3)).contiguous() if turns else pictures


def _plane(plane: Any) -> Tensor:
    """A plane of a frame without its padding, in the frame's own memory, which lives as long as this does."""
    rows = np.ndarray((plane.height, plane.width), np.uint8, plane, 0, (plane.line_size, 1))
    return torch.from_numpy(rows)
