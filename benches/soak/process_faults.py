"""One process of a run fails: how soon the others end, and what they say."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from .process_launch import start

CHILD = "avfast.benches.soak.process_faults_child"


class Ended(NamedTuple):
    """Exit status of the launcher, seconds from the failure to its end, what all processes printed, and the lines that
    begin with ``error:``."""

    code: int
    seconds: float
    output: str
    errors: list[str]


class Run:
    """A training of several processes of which one fails after three steps; `wait` for how it ends.

    Args:
        kind: ``killed``, ``hangs``, ``raises``, ``memory``, ``data``, or ``none``.
        data: folder of pictures.
        words: more words for avfast.
    """

    def __init__(
        self, kind: str, launcher: str, folder: Path, data: Path, *words: str, processes: int = 2, rank: int = 1
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.began = folder, time.time()
        small = ["method.encoder=resnet-tiny", "method.size=32", "method.queue=16", "method.dim=8",
                 "method.group_size=4", "batch_size=4", "steps=100000", "control=false", "log_every=1",
                 "eval_every=100000", "save_every=2"]  # fmt: skip
        training = ["pretrain", "--recipe", "densecl", "--data", str(data), "--out", str(folder / "run"),
                    "--device", "cpu", *small, *words]  # fmt: skip
        self.process = start(launcher, processes, CHILD, [kind, str(rank), str(folder), *training])

    def wait(self, limit: float) -> Ended:
        """Raises TimeoutError if something is left after ``limit`` seconds; it is killed then."""
        try:
            output, _ = self.process.communicate(timeout=limit)
        except subprocess.TimeoutExpired as error:
            os.killpg(self.process.pid, signal.SIGKILL)  # the session that `start` made for this launcher
            output, _ = self.process.communicate()
            raise TimeoutError(f"the run did not end in {limit:.0f} s; it said:\n{output[-3000:]}") from error
        note = self.folder / "failed_at"
        since = float(note.read_text()) if note.is_file() else self.began
        errors = [line for line in output.splitlines() if line.startswith("error: ")]
        return Ended(self.process.returncode, time.time() - since, output, errors)
