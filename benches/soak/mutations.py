"""Media files with something wrong in them: what a mutation is, and the sound files that they start from."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

# What a length, a size or a count may be replaced by.
EXTREME = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)

Mutation = Callable[[random.Random, bytearray, str], bytearray]


def write_originals(folder: Path) -> list[Path]:
    """Whole files of every kind: mp4 with and without sound, wav of integers and of floats, png, jpg, gif, tiff."""
    from PIL import Image

    from avfast.data.demo.encode import write_clip

    folder.mkdir(parents=True, exist_ok=True)
    steps = np.arange(16)
    pictures = np.broadcast_to((steps[:, None, None] * 9 + np.arange(48) * 3)[:, :32, :, None] % 256, (16, 32, 48, 3))
    tone = (0.4 * np.sin(np.arange(12_000) / 5)).astype(np.float32)
    write_clip(folder / "clip.mp4", pictures.astype(np.uint8), 12, tone, 8000)
    write_clip(folder / "mute.mp4", pictures.astype(np.uint8), 12, None, 8000)
    (folder / "int.wav").write_bytes(wav((tone * 30_000).astype("<i2"), kind=1))
    (folder / "float.wav").write_bytes(wav(tone.astype("<f4"), kind=3))
    picture = Image.fromarray(np.ascontiguousarray(pictures[3], dtype=np.uint8))
    for ending in ("png", "jpg", "gif", "tiff"):
        picture.save(folder / f"picture.{ending}")
    return sorted(folder.iterdir())


def wav(samples: np.ndarray, *, kind: int, rate: int = 8000, channels: int = 1) -> bytes:
    """A WAV file of 16-bit (kind 1) or float (kind 3) samples, whose header may say anything."""
    data, width = samples.tobytes(), samples.dtype.itemsize
    rest = struct.pack("<HHIIHH", kind, channels, rate, rate * width & 0xFFFFFFFF, width * channels & 0xFFFF, 8 * width)
    body = b"WAVEfmt " + struct.pack("<I", len(rest)) + rest + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def mutated(files: list[Path], seed: int, number: int) -> tuple[str, bytes]:
    """File ``number`` of ``seed``: (what was done to what, its content). One mutation in two thirds of all, else up to
    four."""
    draw = random.Random(f"{seed} {number}")
    source = files[number % len(files)]
    content, names = bytearray(source.read_bytes()), []
    for _ in range(1 if draw.random() < 0.66 else draw.randint(2, 4)):
        choices = [m for m in MUTATIONS if m.__name__.partition("_")[0] not in ("png", "wav") or fits(m, source.suffix)]
        chosen = draw.choice(choices)
        content = chosen(draw, content, source.suffix)
        names.append(chosen.__name__)
    return f"{source.name}: {', '.join(names)}", bytes(content)


def fits(mutation: Mutation, suffix: str) -> bool:
    return mutation.__name__.startswith(suffix[1:] + "_")


def flip_bits(draw: random.Random, content: bytearray, suffix: str) -> bytearray:
    for _ in range(draw.choice((1, 1, 4, 16, 64)) if content else 0):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return content


def flip_header(draw: random.Random, content: bytearray, suffix: str) -> bytearray:
    """Where most of the structure is: the first bytes, in mp4 the last too."""
    for _ in range(draw.randint(1, 8) if content else 0):
        near = draw.randrange(min(len(content), 256))
        content[-1 - near if suffix == ".mp4" and draw.random() < 0.7 else near] = draw.randrange(256)
    return content


def truncate(draw: random.Random, content: bytearray, suffix: str) -> bytearray:
    return content[: draw.choice((0, 1, 11, draw.randint(0, len(content)), max(len(content) - 1, 0)))]


def repeat_chunk(draw: random.Random, content: bytearray, suffix: str) -> bytearray:
    start, end = sorted(draw.randint(0, len(content)) for _ in range(2))
    at = draw.randint(0, len(content))
    return content[:at] + content[start:end] * draw.choice((1, 2, 50 if end - start < 2000 else 1)) + content[at:]


def drop_chunk(draw: random.Random, content: bytearray, suffix: str) -> bytearray:
    start, end = sorted(draw.randint(0, len(content)) for _ in range(2))
    return content[:start] + content[end:]


def swap_chunks(draw: random.Random, content: bytearray, suffix: str) -> bytearray:
    a, b, c = sorted(draw.randint(0, len(content)) for _ in range(3))
    return content[:a] + content[b:c] + content[a:b] + content[c:]


def noise(draw: random.Random, content: bytearray, suffix: str) -> bytearray:
    start = draw.randint(0, len(content))
    length = draw.choice((4, 64, 1024))
    content[start : start + length] = draw.randbytes(length)
    return content


def extreme_number(draw: random.Random, content: bytearray, suffix: str) -> bytearray:
    """A length, size or count: four bytes before or after a four-letter name, or any four."""
    if len(content) < 8:
        return content
    names = [i for i in range(4, len(content) - 8) if content[i : i + 4].isalnum()]
    at = (
        draw.choice(names) + draw.choice((-4, 4)) if names and draw.random() < 0.8 else draw.randrange(len(content) - 4)
    )
    struct.pack_into(draw.choice("<>") + "I", content, at, draw.choice(EXTREME))
    return content


def png_dimensions(draw: random.Random, content: bytearray, suffix: str) -> bytearray:
    """Any width, height, depth and colour type, with a checksum that is right."""
    if len(content) < 33:
        return content
    sizes = (0, 1, 48, 4096, 60_000, 0x7FFFFFFF)
    header = struct.pack(">II", draw.choice(sizes), draw.choice(sizes))
    if draw.random() < 0.5:
        header += bytes((draw.choice((1, 2, 4, 8, 16)), draw.choice((0, 2, 3, 4, 6)), 0, 0, draw.randrange(2)))
    content[16 : 16 + len(header)] = header
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return content


def wav_header(draw: random.Random, content: bytearray, suffix: str) -> bytearray:
    """Rates, channels and widths that no sound has."""
    if len(content) < 36:
        return content
    field, layout = draw.choice(((20, "<H"), (22, "<H"), (24, "<I"), (28, "<I"), (32, "<H"), (34, "<H"), (40, "<I")))
    most = 0xFFFF if layout == "<H" else 0xFFFFFFFF
    struct.pack_into(layout, content, field, draw.choice([x & most for x in (*EXTREME, 4_000_000_000, 65535, 3, 6)]))
    return content


def wav_numbers(draw: random.Random, content: bytearray, suffix: str) -> bytearray:
    """NaN, infinity and numbers far beyond full scale."""
    for _ in range(draw.choice((1, 100)) if len(content) > 60 else 0):
        at = 44 + 4 * draw.randrange((len(content) - 44) // 4)
        struct.pack_into("<f", content, at, draw.choice((float("nan"), float("inf"), float("-inf"), 3e38, 1e-45)))
    return content


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits, flip_header, truncate, repeat_chunk, drop_chunk, swap_chunks, noise, extreme_number, extreme_number,
    png_dimensions, png_dimensions, wav_header, wav_header, wav_numbers,
)  # fmt: skip
