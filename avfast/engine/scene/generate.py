"""``avfast generate``: pictures from sound files, with a finished run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avfast.data.image_folder import read_picture
from avfast.data.layouts import AUDIO_EXTENSIONS
from avfast.data.sources import EXTENSIONS, media_files
from avfast.engine.scene.generate_options import GenerateOptions
from avfast.engine.scene.generated import GeneratedFolder
from avfast.engine.scene.manipulation import drawn_spectrograms
from avfast.engine.scene.sound import Sound, open_sound
from avfast.engine.scene.synthesis import Synthesiser
from avfast.errors import ConfigError, UnreadableFile
from avfast.nn.latents import mix_latents
from avfast.printable import printable

SOUNDS = (*AUDIO_EXTENSIONS, ".opus", ".aac", *EXTENSIONS)
"""What is looked for in a folder; a file that is named may have any extension."""
WORTH_SAYING = 0.001
"""Share of clipped samples from which on they are mentioned."""


def generate(
    audio: Sequence[Path],
    checkpoint: Path,
    out: Path,
    options: GenerateOptions,
    *,
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> int:
    """Draw pictures of every sound into `out`: a PNG each, ``contact_sheet.png`` and ``generated.json``.

    A sound is read, heard and drawn by itself: its pictures do not depend on the other files of the call.

    Args:
        audio: files with sound, or folders of them.
        checkpoint: folder of a finished sound2scene run.
        out: a new or empty folder, or one that this command wrote before; its pictures are replaced.
        device: auto, cpu or cuda.
        say: receives lines for the person at the terminal.

    Returns:
        0; 1 if some sounds failed (each is named on stderr with the cause), 2 if nothing could be drawn. A mixture
        lacks no part: there one failure is enough for 2.

    Raises:
        AvfastError: the options, the run, the picture or the folder cannot be used; nothing was written.
    """
    paths, failed = _files(audio)
    if options.mix and len(paths) + len(failed) < 2:
        raise ConfigError(f"--mix: expected two sounds or more, got {len(paths)}")
    facts = {"checkpoint": str(checkpoint), **options.to_dict()}
    GeneratedFolder(out, facts)  # refuses a wrong folder before the networks are read
    synthesiser = Synthesiser.load(checkpoint, _device(device))
    folder = GeneratedFolder(out, {**facts, "fingerprint": synthesiser.fingerprint})
    z_picture = None
    if options.picture is not None:
        z_picture = synthesiser.embed_pictures(read_picture(options.picture, synthesiser.inputs.size)[None])

    names = ["mix"] if options.mix else _names(paths)
    groups = [paths] if options.mix else [[path] for path in paths]
    for name, group in zip(names, groups, strict=True):
        if options.mix and failed:
            break
        try:
            sounds, waveform, pictures = _draw(group, synthesiser, z_picture, options)
        except UnreadableFile as error:
            failed.append(error)
            continue
        clipped = (waveform.abs() > 1).double().mean().item()
        parts = [_told(sound) for sound in sounds]
        entry = {**(parts[0] if len(parts) == 1 else {"parts": parts}), "clipped": clipped}
        folder.add(name, pictures, drawn_spectrograms(synthesiser, waveform)[0], entry)
        for sound in sounds:
            say(_line(sound))
        if clipped > WORTH_SAYING:
            say(f"note: {clipped:.1%} of the samples of '{name}' are beyond full scale and are clipped")
    for error in failed:
        print("error:", printable(error), file=sys.stderr)
    if not folder.sounds:
        return 2
    left = [{"file": error.path, "cause": error.cause, "detail": error.detail} for error in failed]
    title = f"sounds, and pictures drawn from them ({options})"
    sheet = folder.finish(left, duration=synthesiser.duration, title=title)
    say(f"{len(folder.sounds) * options.count} pictures in '{out}'" + (f"; see '{sheet}'" if sheet else ""))
    return 1 if failed else 0


def _draw(
    paths: Sequence[Path], synthesiser: Synthesiser, z_picture: Tensor | None, options: GenerateOptions
) -> tuple[list[Sound], Tensor, Tensor]:
    """The sounds of one scene, their sum ``[1, S]`` as it is heard, and its pictures uint8 ``[K, 3, S, S]``.

    Raises:
        UnreadableFile: a sound cannot be read, or the model does not answer to it.
    """
    sounds = [open_sound(path, synthesiser.sample_rate, synthesiser.duration) for path in paths]
    waveform = options.gain * torch.stack([sound.waveform for sound in sounds]).sum(dim=0, keepdim=True)
    z = synthesiser.embed(waveform)
    if not z.any():
        detail = "the audio encoder gives it a latent of zeros, which shows nothing"
        raise UnreadableFile(sounds[0].path, "unheard", detail)
    if z_picture is not None:
        z = mix_latents(z_picture, z, options.share)
    return sounds, waveform, synthesiser.images(z, seed=options.seed, count=options.count)[0]


def _line(sound: Sound) -> str:
    channels = "1 channel" if sound.channels == 1 else f"{sound.channels} channels"
    silent = "; silent: its pictures show what the model makes of nothing" if sound.silent else ""
    return f"{sound.path}: {sound.seconds:.1f} s, {sound.sample_rate} Hz, {channels}{silent}"


def _told(sound: Sound) -> dict[str, Any]:
    return {
        "file": str(sound.path), "duration": sound.seconds, "sample_rate": sound.sample_rate,
        "channels": sound.channels, "silent": sound.silent,
    }  # fmt: skip


def _files(audio: Sequence[Path]) -> tuple[list[Path], list[UnreadableFile]]:
    """The files that are meant, each once, and the folders without any."""
    found: dict[Path, Path] = {}
    failed = []
    for path in audio:
        files = media_files(path, SOUNDS) if path.is_dir() else [path]
        if not files:
            failed.append(UnreadableFile(path, "missing", f"holds no media files; looked for {' '.join(SOUNDS)}"))
        for file in files:
            found.setdefault(file.absolute(), file)
    return list(found.values()), failed


def _names(paths: Sequence[Path]) -> list[str]:
    """What the pictures of each file are called: its name without extension, numbered where that was taken.

    >>> _names([Path("a/rain.wav"), Path("b/rain.mp3"), Path("sea.wav")])
    ['rain', 'rain-2', 'sea']
    """
    taken: dict[str, None] = {}
    for path in paths:
        name, number = path.stem, 1
        while name in taken:
            number += 1
            name = f"{path.stem}-{number}"
        taken[name] = None
    return list(taken)


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: this torch sees no CUDA device; --device cpu works everywhere")
    return name
