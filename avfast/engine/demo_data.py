"""Data that are made on the spot: ``--data demo`` and ``--data labelled``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from avfast.data import demo
from avfast.data.commands import progress_bar
from avfast.errors import ConfigError
from avfast.methods import Inputs
from avfast.methods.base import ImageInputs

MADE = ("demo", "labelled")
FOLDERS = ("demo-clips", "demo-scenes", "labelled-clips")


def made_folder(data: str, out: Path, inputs: Inputs | ImageInputs) -> tuple[Path, Callable[..., dict]]:
    """Where data of that name go in the run folder, and what makes them.

    Raises:
        ConfigError: labelled clips for a method of still pictures.
    """
    images = isinstance(inputs, ImageInputs)
    if data == "labelled" and images:
        raise ConfigError("--data labelled: are clips, and the recipe learns from still pictures; use --data demo")
    if images:
        return out / "demo-scenes", demo.make_scenes
    if data == "labelled":
        return out / "labelled-clips", demo.make_labelled_clips
    return out / "demo-clips", demo.make_demo_clips


def make_data(folder: Path, make: Callable[..., dict], tell: Callable[[str], None]) -> Path:
    """Make them, or keep what is there from before."""
    noun = "scenes" if make is demo.make_scenes else "clips"
    with progress_bar(f"making {noun}") as progress:
        tell(demo.honesty_line(make(folder, progress=progress)))
    tell(f"{noun} in '{folder}'")
    return folder
