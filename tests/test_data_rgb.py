"""Decoded frames to RGB: as FFmpeg's accurate conversion has them, whatever the format, the crop and the rotation."""

from __future__ import annotations

import gc
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from avfast import _library
from avfast.data import rgb
from avfast.data.demo.photos import shipped_photos

av = pytest.importorskip("av", reason="decoding needs PyAV")
reformatter = pytest.importorskip("av.video.reformatter")

KINDS = reformatter.Interpolation
ACCURATE = KINDS.AREA | KINDS.ACCURATE_RND | KINDS.FULL_CHR_H_INT
# codec, pixel format, colour range, colour space (FFmpeg's numbers)
STREAMS = {
    "h264": ("libx264", "yuv420p", None, None),
    "h264 4:2:2": ("libx264", "yuv422p", None, None),
    "h264 4:4:4": ("libx264", "yuv444p", None, None),
    "h264 full range": ("libx264", "yuv420p", 2, None),
    "h264 bt709": ("libx264", "yuv420p", None, 1),
    "h264 bt2020": ("libx264", "yuv420p", None, 9),
    "mjpeg": ("mjpeg", "yuvj420p", None, None),
    "mjpeg 4:2:2": ("mjpeg", "yuvj422p", None, None),
    "hevc": ("libx265", "yuv420p", None, None),
    "mpeg2": ("mpeg2video", "yuv420p", None, None),
    "mpeg4": ("mpeg4", "yuv420p", None, None),
    "vp8": ("libvpx", "yuv420p", None, None),
    "vp9": ("libvpx-vp9", "yuv420p", None, None),
    "av1": ("libsvtav1", "yuv420p", None, None),
    "ffv1": ("ffv1", "yuv420p", None, None),
    "theora": ("libtheora", "yuv420p", None, None),
}
needs_kernel = pytest.mark.skipif(
    not _library.has_kernel("yuv_to_rgb", "cpu"), reason="no compiled library: FFmpeg converts every frame"
)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """uint8 [120, 160, 3]."""
    image = torch.nn.functional.interpolate(shipped_photos()[0].image[None], size=(120, 160), mode="bicubic")
    return image[0].clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()


def decoded(path, photo, codec, pixels, span=None, space=None, frames=3):
    """Frames of a stream whose picture moves."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=12)
        stream.height, stream.width, stream.pix_fmt = *photo.shape[:2], pixels
        for name, value in (("color_range", span), ("colorspace", space)):
            if value is not None:
                setattr(stream.codec_context, name, value)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.roll(photo, 7 * number, 1), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 12)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        return list(container.decode(video=0)), container.streams.video[0].codec_context.name


def accurate(frame, height: int, width: int) -> torch.Tensor:
    converted = reformatter.VideoReformatter().reformat(
        frame, width=width, height=height, format="rgb24", interpolation=ACCURATE, threads=1
    )
    return torch.from_numpy(converted.to_ndarray()).permute(2, 0, 1)


def convert(frames, size, crop="squash", codec="") -> torch.Tensor:
    converter = rgb.RgbConverter(av, size, crop, codec)
    for frame in frames:
        converter.add(frame)
    return converter.pictures()


def difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.int() - b.int()).abs().float()


@needs_kernel
@pytest.mark.parametrize("name", STREAMS)
def test_as_accurate_as_ffmpeg(name, tmp_path, photo, monkeypatch):
    """Without a change of size to the bit, or nearly; with one to a level, which FFmpeg's own rounding takes."""
    try:
        frames, codec = decoded(tmp_path / "clip.mkv", photo, *STREAMS[name])
    except (av.FFmpegError, ValueError) as error:
        pytest.skip(f"this FFmpeg does not write {name}: {error}")
    monkeypatch.setattr(rgb.RgbConverter, "_reformat", lambda *_: pytest.fail("not by the op"))
    for size, share in (((120, 160), 0.001), ((64, 80), 0.03), ((90, 33), 0.03), ((200, 240), 0.03)):
        found = convert(frames, size, codec=codec)
        away = difference(found, torch.stack([accurate(frame, *size) for frame in frames]))
        assert found.shape == (3, 3, *size) and found.is_contiguous()
        assert away.max() <= 1 and away.mean() < share, (size, away.max(), away.mean())


@pytest.mark.parametrize("pixels", ["yuv420p10le", "nv12", "rgb24", "gray", "yuva420p", "yuv411p", "gbrp"])
def test_other_formats_come_close(pixels, photo):
    """Through FFmpeg, and looking like the same picture through the op."""
    picture = photo.mean(2, keepdims=True).astype(np.uint8).repeat(3, 2) if pixels == "gray" else photo
    plain = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv444p", interpolation=ACCURATE)
    other = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels, interpolation=ACCURATE)
    for crop in ("center", "squash"):
        a, b = convert([plain], (48, 40), crop), convert([other], (48, 40), crop)
        assert a.shape == b.shape == (1, 3, 48, 40) and b.is_contiguous()
        assert difference(a, b).mean() < 2.5


def test_formats_that_change_within_a_stream_keep_their_order(photo):
    frames = []
    for number, (pixels, side) in enumerate(
        [("yuv420p", 0), ("yuv420p", 0), ("nv12", 0), ("yuv420p", 20), ("yuv444p", 20), ("rgb24", 0), ("yuv420p", 0)]
    ):
        grey = np.full((60 + side, 60, 3), 30 * number + 20, np.uint8)
        frames.append(av.VideoFrame.from_ndarray(grey, format="rgb24").reformat(format=pixels))
    found = convert(frames, (16, 16), "center").float().mean((1, 2, 3))
    assert (found - (30 * torch.arange(7) + 20)).abs().max() < 2


def test_cut_is_what_cropping_the_upright_picture_gives():
    """Whatever the rotation: columns of a phone's picture are rows of its sensor, and odd remainders have a side."""
    for height, width in ((40, 64), (64, 40), (33, 57), (120, 7), (5, 5)):
        for size in ((16, 16), (9, 14), (31, 8), (64, 64)):
            for turns in range(4):
                for crop in ("center", "squash"):
                    cut = rgb.plan_cut((height, width), turns, size, crop)
                    stored = np.arange(np.prod(cut.stored)).reshape(cut.stored)
                    upright = np.rot90(stored, turns)
                    top, left = ((n - s) // 2 for n, s in zip(upright.shape, size, strict=True))
                    expected = upright[top : top + size[0], left : left + size[1]]
                    part = stored[cut.top : cut.top + cut.height, cut.left : cut.left + cut.width]
                    assert expected.shape == size and np.array_equal(np.rot90(part, cut.turns), expected)
                    if crop == "squash":
                        assert upright.shape == size
                    else:  # one side fits, and the aspect is kept to a pixel
                        sides = (width, height) if turns % 2 else (height, width)
                        scale = max(s / n for s, n in zip(size, sides, strict=True))
                        assert all(abs(n * scale - got) <= 1 for n, got in zip(sides, upright.shape, strict=True))


@pytest.mark.parametrize("turns", range(4))
def test_turned_frames_are_turned_back(turns, photo):
    """By the op and by FFmpeg alike."""
    frame = av.VideoFrame.from_ndarray(photo, format="rgb24").reformat(format="yuv444p", interpolation=ACCURATE)
    names = ("format", "height", "width", "colorspace", "color_range", "planes")
    turned = SimpleNamespace(rotation=90 * turns, **{name: getattr(frame, name) for name in names})
    converter = rgb.RgbConverter(av, (50, 40), "center")
    converter.add(turned)
    by_op = converter.pictures()[0]
    cut = rgb.plan_cut((120, 160), turns, (50, 40), "center")
    whole = accurate(frame, *cut.stored)[:, cut.top : cut.top + cut.height, cut.left : cut.left + cut.width]
    assert by_op.shape == (3, 50, 40) and by_op.is_contiguous()
    assert difference(by_op, torch.rot90(whole, turns, (1, 2))).max() <= 1


def test_frames_are_kept_alive_until_they_are_converted(tmp_path, photo, monkeypatch):
    monkeypatch.setattr(rgb, "WAITING", 1 << 40)
    frames, codec = decoded(tmp_path / "clip.mkv", photo, "libx264", "yuv420p", frames=40)
    expected = torch.cat([convert([frame], (30, 40), codec=codec) for frame in frames])
    del frames
    converter = rgb.RgbConverter(av, (30, 40), "center", codec)
    with av.open(str(tmp_path / "clip.mkv")) as container:
        for frame in container.decode(video=0):
            converter.add(frame)
            del frame
            gc.collect(0)
    assert torch.equal(converter.pictures(), expected)


@needs_kernel
def test_few_bytes_wait(photo, monkeypatch):
    """However long a file is, planes of half a megabyte at most are held; how many wait changes no picture."""
    frame = av.VideoFrame.from_ndarray(photo, format="rgb24").reformat(format="yuv420p")
    converter = rgb.RgbConverter(av, (24, 32), "center")
    for _ in range(100):
        converter.add(frame)
        assert len(converter._waiting) * 120 * 160 * 3 // 2 <= rgb.WAITING
    together = converter.pictures()
    monkeypatch.setattr(rgb, "WAITING", 0)
    assert together.shape[0] == 100 and torch.equal(convert([frame] * 100, (24, 32), "center"), together)


@needs_kernel
def test_without_the_library_ffmpeg_does_it(tmp_path, photo, monkeypatch):
    frames, codec = decoded(tmp_path / "clip.mkv", photo, "libx264", "yuv420p")
    by_op = convert(frames, (64, 80), codec=codec)
    monkeypatch.setattr(_library, "_kernels", frozenset())
    assert difference(convert(frames, (64, 80), codec=codec), by_op).max() <= 1


def test_no_frames():
    assert rgb.RgbConverter(av, (5, 6), "center").pictures().shape == (0, 3, 5, 6)
