"""What one file may cost: headers that ask for more memory than there is are refused before it is taken."""

from __future__ import annotations

import struct
import wave
import zlib
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
pytest.importorskip("av", reason="reading media needs PyAV")
pytest.importorskip("PIL", reason="reading pictures needs Pillow")

from data_fixtures import plain_clip  # noqa: E402

from avfast import env  # noqa: E402
from avfast.data import probe, read_clip  # noqa: E402
from avfast.data.image_folder import PictureError, read_picture  # noqa: E402
from avfast.data.media import MediaError, read_all  # noqa: E402
from avfast.data.scan import scan_file  # noqa: E402
from avfast.errors import ConfigError  # noqa: E402

WANTED = {"size": 32, "sample_rate": 16000}


def png(path: Path, width: int, height: int) -> Path:
    """A PNG of one line of pixels whose header says ``width`` x ``height``."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    line = zlib.compress(b"\0" + bytes(3 * 64))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", line) + chunk(b"IEND", b""))
    return path


def wav(path: Path, samples: np.ndarray, rate: int = 16000, channels: int = 1, kind: int = 3) -> Path:
    """A WAV of float (kind 3) or 16-bit (kind 1) samples with a header that may say anything."""
    data, width = samples.tobytes(), samples.dtype.itemsize
    rest = struct.pack("<HHIIHH", kind, channels, rate, rate * width & 0xFFFFFFFF, width * channels & 0xFFFF, 8 * width)
    body = b"WAVEfmt " + struct.pack("<I", len(rest)) + rest + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return path


def test_a_picture_of_many_pixels_is_refused_by_its_header(tmp_path):
    for width, height in ((60_000, 60_000), (9_460, 9_459), (2**31 - 1, 1)):
        with pytest.raises(PictureError, match=r"bomb\.png: ") as caught:
            read_picture(png(tmp_path / "bomb.png", width, height), 32)
        assert caught.value.cause in ("too-large", "broken")  # Pillow refuses the largest in words of its own


def test_the_limit_of_pixels_can_be_raised_and_lowered(tmp_path, monkeypatch):
    from PIL import Image

    Image.new("RGB", (120, 100)).save(tmp_path / "p.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5_000)  # Pillow's own, which would refuse 12,000 pixels
    with pytest.raises(PictureError, match="is a picture of 120 x 100, more than 11999 pixels; AVFAST_MAX_PIXELS"):
        monkeypatch.setenv("AVFAST_MAX_PIXELS", "11999")
        read_picture(tmp_path / "p.png", 32)
    monkeypatch.setenv("AVFAST_MAX_PIXELS", "12000")
    assert read_picture(tmp_path / "p.png", 32).shape == (3, 32, 32)
    for wrong in ("many", "0", "-1", "1e9"):
        monkeypatch.setenv("AVFAST_MAX_PIXELS", wrong)
        with pytest.raises(ConfigError, match=f"^AVFAST_MAX_PIXELS: expected a positive whole number, got '{wrong}'$"):
            read_picture(tmp_path / "p.png", 32)


def test_a_video_of_many_pixels_is_refused(tmp_path, monkeypatch):
    path = plain_clip(tmp_path / "clip.mp4")
    assert read_clip(path, start=0, duration=1, frames=2, **WANTED).frames.shape == (2, 3, 32, 32)
    monkeypatch.setenv("AVFAST_MAX_PIXELS", "1023")
    for function in (probe, lambda p: read_all(p, **WANTED)):
        with pytest.raises(MediaError, match="clip.mp4: shows pictures of 32 x 32, more than 1023 pixels") as caught:
            function(path)
        assert caught.value.cause == "too-large"
    report = scan_file(path)
    assert report.problems == ("too-large",) and "1023" in report.detail and not report.usable


def test_pictures_larger_than_the_header_says_are_refused_by_the_decoder(tmp_path, monkeypatch):
    """The size in a container and that in the stream need not agree: the decoder has the limit too."""
    path = plain_clip(tmp_path / "clip.mp4")
    from avfast.data import media

    monkeypatch.setenv("AVFAST_MAX_PIXELS", "1000")
    monkeypatch.setattr(media, "check_pixels", lambda *sizes: None)
    with pytest.raises(MediaError) as caught:
        read_all(path, **WANTED)
    assert caught.value.cause in ("unreadable", "too-short")


def test_pictures_of_odd_shapes_are_not_blown_up(tmp_path, monkeypatch):
    """2 x 32 pixels cut to 224 x 224 are scaled to 224 x 3584 first."""
    from avfast.data.demo.encode import write_clip

    path = tmp_path / "thin.mp4"
    write_clip(path, np.full((12, 32, 2, 3), 90, np.uint8), 12, np.zeros(16000, np.float32), 16000)
    monkeypatch.setenv("AVFAST_MAX_PIXELS", "500000")
    with pytest.raises(MediaError, match="pictures of 2 x 32, at the wanted size of 224 x 3584, more than 500000"):
        read_all(path, size=224, sample_rate=16000)
    assert read_all(path, size=224, sample_rate=16000, crop="squash").frames.shape[-2:] == (224, 224)


def test_sound_at_a_rate_that_nothing_records_is_refused_before_a_resampler_is_made(tmp_path):
    """One flipped bit of a wav's header; the filter from 822 MHz to 8 kHz would take 1.6 GiB."""
    path = tmp_path / "sound.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(b"\1\0" * 8000)
    assert len(read_all(path, pictures=False, **WANTED).waveform) == WANTED["sample_rate"]
    path.write_bytes(path.read_bytes()[:24] + (822_091_584).to_bytes(4, "little") + path.read_bytes()[28:])
    for function in (probe, lambda p: read_all(p, pictures=False, **WANTED)):
        with pytest.raises(MediaError, match="sound.wav: holds sound of 822091584 samples per second, more") as caught:
            function(path)
        assert caught.value.cause == "too-large"
    assert scan_file(path).problems == ("too-large",)


def test_a_file_that_decodes_to_too_much_is_stopped(tmp_path, monkeypatch):
    path = plain_clip(tmp_path / "clip.mp4")
    decoded = read_all(path, **WANTED)
    held = decoded.frames.numel() + 4 * decoded.waveform.numel()
    monkeypatch.setenv("AVFAST_MAX_FILE_BYTES", str(held))
    assert len(read_all(path, **WANTED).frames) == len(decoded.frames)
    monkeypatch.setenv("AVFAST_MAX_FILE_BYTES", str(held // 2))
    with pytest.raises(MediaError, match="decodes to more than .* bytes .*; AVFAST_MAX_FILE_BYTES raises") as caught:
        read_all(path, **WANTED)
    assert caught.value.cause == "too-large"


def test_the_limit_is_read_once_for_each_file(tmp_path, monkeypatch):
    path, asked, text = plain_clip(tmp_path / "clip.mp4"), [], env.text
    monkeypatch.setattr(env, "text", lambda name: asked.append(name) or text(name))
    for count in (1, 2):
        assert len(read_all(path, **WANTED).frames) > 8
        assert asked.count("AVFAST_MAX_FILE_BYTES") == count


def test_a_time_stamp_far_ahead_asks_for_no_silence(tmp_path):
    """Missing sound becomes silence: a week of it is refused before it is made."""
    import av

    path = tmp_path / "gap.mkv"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=16000, layout="mono")
        for at in (0.0, 7 * 86400.0):
            frame = av.AudioFrame.from_ndarray(np.full((1, 1600), 99, np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16000, round(at * 16000)
            file.mux(stream.encode(frame))
    with pytest.raises(MediaError, match="AVFAST_MAX_FILE_BYTES"):
        read_all(path, pictures=False, **WANTED)


@pytest.mark.parametrize("value, words", [("nan", "not finite"), ("inf", "not finite"), ("1e30", "1000 times")])
def test_sound_that_is_no_sound_is_refused(tmp_path, value, words):
    samples = np.zeros(16000, "<f4")
    samples[8000] = float(value)
    path = wav(tmp_path / "x.wav", samples)
    with pytest.raises(MediaError, match=words) as caught:
        read_all(path, pictures=False, **WANTED)
    assert caught.value.cause == "unreadable"
    report = scan_file(path)
    assert "unreadable" in report.problems and words in report.detail


@pytest.mark.parametrize("rate, channels", [(0, 1), (4_000_000_000, 1), (16000, 65535), (16000, 0), (1, 1)])
def test_headers_of_sound_that_cannot_be_meant(tmp_path, rate, channels):
    path = wav(tmp_path / "x.wav", np.ones(4000, "<i2"), rate, channels, kind=1)
    try:
        decoded = read_all(path, pictures=False, **WANTED)
        assert decoded.waveform.abs().max() <= 1
    except MediaError as error:
        assert str(error).startswith(f"{path}: ")
    assert scan_file(path).path


def test_the_wav_writer_here_writes_what_others_read(tmp_path):
    with wave.open(str(wav(tmp_path / "x.wav", np.arange(5, dtype="<i2"), kind=1))) as file:
        assert (file.getframerate(), file.getnframes()) == (16000, 5)
