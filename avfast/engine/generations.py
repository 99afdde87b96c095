"""The checkpoints of one training: the last few, the best, the final one, and which of them to continue from."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avfast.data.outputs import writing
from avfast.engine.checkpoint import (
    DamagedCheckpoint,
    check_checkpoint,
    clear_temporary,
    load_checkpoint,
    save_checkpoint,
    sync_folder,
    temporary_of,
)
from avfast.errors import CheckpointError

NAMES = ("last", "best", "final")


@dataclass(frozen=True)
class Found:
    """A checkpoint that was read whole: ``path``, its ``step``, and a line for each one before it that was not good."""

    path: Path
    step: int
    refused: list[str] = field(default_factory=list)

    def account(self, reached: int) -> list[str]:
        """What a person must be told, where `reached` is the last step that is known of the run; nothing if all was
        good."""
        if not self.refused:
            return []
        again = max(0, reached - self.step)
        return [
            *self.refused,
            f"going on from the one before, '{self.path}' at step {self.step}: {again} step(s) are computed again",
        ]


class Generations:
    """The folder ``checkpoints`` of a training.

    Every save writes ``step-00000040.pt`` once; ``last.pt``, ``best.pt`` and ``final.pt`` are further names (hard
    links) of such files, or copies where the file system has no links. The newest `keep` steps stay, and what ``best``
    and ``final`` name. A name is moved by one rename after its file is on the disk, and old files go only after that,
    so a process killed at any moment leaves a whole ``last.pt``.

    Args:
        folder: created by the first save.
        keep: steps to keep, at least 1; with 1 there is none to go back to when the last is damaged.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def path(self, name: str) -> Path:
        """Of "last", "best" or "final"."""
        return self.folder / f"{name}.pt"

    def present(self) -> dict[str, Path]:
        """The names that exist."""
        return {name: self.path(name) for name in NAMES if self.path(name).is_file()}

    def steps(self) -> dict[int, Path]:
        """Files by step, newest first."""
        found = {number: p for p in self.folder.glob("step-*.pt") if (number := _number(p)) is not None}
        return dict(sorted(found.items(), reverse=True))

    def save(self, state: dict[str, Any], *, best: bool = False, final: bool = False) -> Path:
        """Write a state and name it ``last``, and ``best`` or ``final`` where asked; the path of ``last``."""
        step = state["counters"]["step"]
        path = self.folder / f"step-{step:08d}.pt"
        save_checkpoint(path, state)
        for name in ("last", *["best"] * best, *["final"] * final):
            self.name(path, name)
        # Later steps are those of a future that this run has left, by going back to an earlier state.
        for unwanted in (p for s, p in self.steps().items() if s > step):
            unwanted.unlink(missing_ok=True)
        self.prune(step)
        return self.path("last")

    def prune(self, step: int) -> None:
        """Remove what a save at `step` leaves too many; it may have been killed before it came to that."""
        older = [p for s, p in self.steps().items() if s < step]
        for unwanted in older[self.keep - 1 :]:
            unwanted.unlink(missing_ok=True)

    def name(self, source: Path, name: str) -> None:
        """Let "last", "best" or "final" be the checkpoint `source`."""
        target = self.path(name)
        temporary = temporary_of(target)
        temporary.unlink(missing_ok=True)
        try:
            try:
                os.link(source, temporary)
            except OSError:  # no links on this file system
                with writing(target):
                    shutil.copyfile(source, temporary)
                    with open(temporary, "rb") as handle:
                        os.fsync(handle.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)  # renaming a link to a link of the same file leaves both
        sync_folder(self.folder)

    def clear(self) -> None:
        """Remove every checkpoint: a new run takes the place of an old one."""
        for path in [*self.present().values(), *self.steps().values()]:
            path.unlink(missing_ok=True)
        clear_temporary(self.folder)

    def newest(self) -> Found | None:
        """The checkpoint to continue from: ``last``, or the newest other one that is whole; None where there is none.

        Raises:
            CheckpointError: there are some, and none is whole; or what is there is not of this version.
        """
        candidates = [p for p in (self.path("last"), *self.steps().values()) if p.is_file()]
        candidates += [p for name, p in self.present().items() if name != "last"]
        refused: list[str] = []
        seen: list[Path] = []
        found: Found | None = None
        for path in candidates:
            number = _number(path)
            if any(path.samefile(other) for other in seen) or (found and number is not None):
                continue  # another name of what was looked at; older than what was found
            seen.append(path)
            try:
                step = self._step(path)
            except DamagedCheckpoint as error:
                refused.append(str(error).split("; continue from")[0])
                continue
            if found is None or step > found.step:
                found = Found(path, step, refused)
            if path == self.path("last"):
                break
        if candidates and found is None:
            listing = "\n".join(f"  {line}" for line in refused)
            raise CheckpointError(
                f"no checkpoint in '{self.folder}' is whole, and nothing was changed there:\n{listing}\n"
                "put one back from a copy, or start anew: with another --out, or here with --force"
            )
        return found

    def step_of(self, name: str) -> int | None:
        """Step of "last", "best" or "final"; None where it is missing or damaged."""
        try:
            return self._step(self.path(name))
        except DamagedCheckpoint:
            return None

    def _step(self, path: Path) -> int:
        """Step of a checkpoint whose every byte was checked."""
        if check_checkpoint(path):
            for step, other in self.steps().items():
                if path.samefile(other):
                    return step
        return load_checkpoint(path)["counters"]["step"]

    def last_good(self) -> str:
        """Where the last good state is, as a clause for messages."""
        last = self.path("last")
        return f"the last good state is in '{last}'" if last.is_file() else "nothing was saved yet"

    def reached(self) -> int:
        """The last step that the names of files know of."""
        return max(self.steps(), default=0)


def _number(path: Path) -> int | None:
    """Step in the name of a file."""
    match = re.fullmatch(r"step-(\d+)\.pt", path.name)
    return int(match[1]) if match else None
