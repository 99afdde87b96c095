"""Faults at random steps of small runs: a full disk, a disk that does not flush, data that go away, loader processes
that are killed, clips that hang, losses that are none. After each, ``--resume auto`` must end where the run that was
never disturbed ended, or the log must say what was left out.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import random
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from avfast.data import ClipSource
from avfast.engine.journal import parse_rows
from avfast.engine.signals import Budget, StopRequest
from avfast.errors import RunFault

from .rows import Row
from .toy import clip_set, differences, in_step, make_clips, make_trainer, toy_recipe, weights

UNIT, SMALL, LONG, MINUTES = "faults", 6, 180, 6
STEPS, CLIPS = 12, 20
RUN = {"steps": STEPS, "log_every": 2, "eval_every": 5, "save_every": 3}


class Trial:
    """One run in a folder of its own, with a copy of the clips, disturbed at ``step``."""

    def __init__(self, base: Path, number: int, step: int, workers: int) -> None:
        self.out, self.clips = base / f"run{number}", base / f"clips{number}"
        shutil.copytree(base / "clips", self.clips)
        self.step, self.workers = step, workers

    def trainer(self, *, resume: bool = False, timeout: float = 30.0, **run: Any) -> Any:
        source = ClipSource.open(self.clips)
        return make_trainer(
            self.out, clip_set(source, timeout=timeout), resume=resume, workers=self.workers, looks=source,
            **(RUN | run),
        )  # fmt: skip

    def at_step(self, trainer: Any, action: Callable[[], None]) -> None:
        in_step(trainer, lambda step: action() if step == self.step else None)

    def interrupted(self, expected: dict, words: str, action: Callable[[Any], None], repair: Callable[[], None]) -> str:
        """Run into a fault, repair what it did, go on; what did not hold."""
        trainer = self.trainer()
        self.at_step(trainer, lambda: action(trainer))
        try:
            fit(trainer)
            return "the fault was not noticed"
        except RunFault as error:
            message = str(error)
        finally:
            repair()
        torn = parse_rows(self.out / "metrics.jsonl")[1]
        again = self.trainer(resume=True)
        fit(again)
        odd = differences(again, expected)
        checks = {
            f"the message is '{message}'": words not in message,
            f"lines {torn} of the log are torn": torn,
            f"{len(odd)} tensors differ, first {odd[:1]}": odd,
            "temporary files are left": list(self.out.rglob("*.tmp")),
        }
        return "; ".join(text for text, wrong in checks.items() if wrong)


def fit(trainer: Any) -> Any:
    return trainer.fit(StopRequest(), Budget(None))


def full_disk(trial: Trial, expected: dict) -> str:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    return trial.interrupted(
        expected, "cannot write '",
        lambda trainer: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1])),
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before),
    )  # fmt: skip


def no_flush(trial: Trial, expected: dict) -> str:
    def fsync(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch = mock.patch.object(os, "fsync", fsync)
    return trial.interrupted(expected, "No space left", lambda trainer: patch.start(), patch.stop)


def lost_folder(trial: Trial, expected: dict) -> str:
    away = trial.clips.with_name("away")
    return trial.interrupted(
        expected, f"the data folder '{trial.clips}' does not exist",
        lambda trainer: trial.clips.rename(away), lambda: away.rename(trial.clips),
    )  # fmt: skip


def killed_loader(trial: Trial, expected: dict) -> str:
    trial.workers = 2
    kill = lambda trainer: os.kill(trainer.loader._iterator._workers[trial.step % 2].pid, signal.SIGKILL)  # noqa: E731
    return trial.interrupted(expected, "was killed by SIGKILL", kill, lambda: None)


def hanging_clip(trial: Trial, expected: dict) -> str:
    trainer = trial.trainer(timeout=5.0)
    victim = trial.clips / f"{trial.step:03d}.mp4"
    victim.unlink()
    os.mkfifo(victim)
    result = fit(trainer)
    want = {f"{victim}: timeout"}
    return "" if result.step == STEPS and set(result.errors) == want else f"counted {result.errors}, expected {want}"


def not_finite(trial: Trial, expected: dict) -> str:
    trainer = trial.trainer(on_nonfinite="skip")
    trainer.method.register_forward_hook(
        lambda module, args, out: (
            out._replace(loss=out.loss * float("nan")) if module.training and trainer.step + 1 == trial.step else out
        )
    )
    fit(trainer)
    faults = [row["step"] for row in parse_rows(trial.out / "metrics.jsonl")[0] if row["kind"] == "fault"]
    good = all(v.isfinite().all() for v in weights(trainer).values() if v.is_floating_point())
    return "" if good and faults == [trial.step] else f"dropped steps {faults}, finite: {good}"


SAME = "resumed, it ends bit for bit where the undisturbed run ends"
FAULTS: dict[str, tuple[Callable[[Trial, dict], str], str]] = {
    "full disk": (full_disk, f"files cannot grow any more (RLIMIT_FSIZE): the message names the file; {SAME}"),
    "disk that does not flush": (no_flush, f"fsync says ENOSPC: the message names the file; {SAME}"),
    "data folder gone": (lost_folder, f"the folder is renamed: the message names it; {SAME}"),
    "loader process killed": (killed_loader, f"SIGKILL in the middle of a step; {SAME}"),
    "clip that hangs": (hanging_clip, "a clip becomes a pipe: it is left out as 'timeout', the run ends by itself"),
    "loss that is NaN": (not_finite, "on_nonfinite=skip: one step is dropped and named, the weights stay finite"),
}


def check(size: int, seed: int, say: Callable[[str], None]) -> list[Row]:
    draw, found = random.Random(seed), {name: ([], 0.0, 0) for name in FAULTS}
    with tempfile.TemporaryDirectory() as scratch, toy_recipe():
        base = Path(scratch)
        make_clips(base / "clips", CLIPS)
        with contextlib.redirect_stdout(io.StringIO()):  # the progress of each run
            whole = Trial(base, -1, 0, 0).trainer()
            fit(whole)
        expected = weights(whole)
        for number in range(size):
            name = list(FAULTS)[number % len(FAULTS)]
            trial = Trial(base, number, draw.randint(2, STEPS - 2), draw.choice((0, 2)))
            where = f"step {trial.step}, {trial.workers} loader processes"
            began = time.monotonic()
            with contextlib.redirect_stdout(io.StringIO()):
                try:
                    wrong = FAULTS[name][0](trial, expected)
                except Exception as error:  # noqa: BLE001 - it is what the check found
                    wrong = f"{type(error).__name__}: {error}"
            failures, seconds, times = found[name]
            failures += [f"{where}: {wrong}"] if wrong else []
            found[name] = failures, seconds + time.monotonic() - began, times + 1
            for folder in (trial.out, trial.clips):
                shutil.rmtree(folder, ignore_errors=True)
            if (number + 1) % 20 == 0:
                say(f"{number + 1} faults, {sum(len(f) for f, _, _ in found.values())} failures")
    return [
        Row(name, FAULTS[name][1], times, failures, seconds)
        for name, (failures, seconds, times) in found.items()
        if times
    ]
