"""Every recipe in 2 and 4 processes, DDP and FSDP, whole and accumulated: losses, gradients and weights of one process.

Started by `torchrun` and `accelerate launch`; and what happens when one process is killed, fails or hangs.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .process_faults import Run
from .process_launch import start
from .rows import Row

UNIT, SMALL, LONG, MINUTES = "steps of each", 5, 20, 25
TOLERANCE = 1e-6
CHILD = "avfast.benches.soak.processes_child"
FSDP, PARTS = ["run.parallel=fsdp"], ["optim.accumulate=2"]
REFUSED = {"sound2scene, generator": "generator.attention.gamma"}
"""Cases that FSDP refuses, with what the message names: a parameter of one number."""
FAULTS = ("killed", "raises", "memory", "data", "hangs")


class Launch(NamedTuple):
    """Processes that work on a list of jobs, and the process of their launcher."""

    folder: Path
    world: int
    process: Any

    def results(self, limit: float) -> list[dict[str, Any]]:
        """What each process saw, by job.

        Raises:
            RuntimeError: the launcher failed, with the end of what it printed.
        """
        import torch

        output, _ = self.process.communicate(timeout=limit)
        if self.process.returncode:
            raise RuntimeError(output[-3000:])
        names = [f"rank{rank}.pt" for rank in range(self.world)] if self.world > 1 else ["alone.pt"]
        return [torch.load(self.folder / name, weights_only=True) for name in names]


def launch(folder: Path, jobs: list[dict], world: int, how: str = "torchrun") -> Launch:
    """Start ``world`` processes on jobs; one is started without a launcher."""
    import os
    import subprocess

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    words = [str(folder), str(folder / "jobs.json")]
    if world > 1:
        return Launch(folder, world, start(how, world, CHILD, words))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", CHILD, *words]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return Launch(folder, 1, subprocess.Popen(command, env=environment, **streams))


def jobs_of(cases: Sequence[str], steps: int, *, world: int = 1, title: str = "", **options: Any) -> list[dict]:
    """One job per case for a process of several, or with ``world`` for the one that does their work alone."""
    from .process_cases import BATCH

    if world > 1:
        options |= {"batch": world * BATCH, "in_turn": world}
    return [{"name": f"{case}{title}", "case": case, "steps": steps, **options} for case in cases]


def compare(several: list[dict], alone: dict, job: str, reference: str) -> float:
    """`process_cases.difference` of one job.

    Raises:
        RuntimeError: the job failed in one of the processes.
    """
    from .process_cases import Training, difference

    found = [seen.get(job, {"error": "the processes did not come to it"}) for seen in several] + [alone[reference]]
    for one in found:
        if "error" in one:
            raise RuntimeError(one["error"])
    trainings = [Training(one["losses"], one["gradients"], one["state"]) for one in found]
    return difference(trainings[:-1], trainings[-1])


def check(size: int, seed: int, say: Callable[[str], None]) -> list[Row]:
    """``size`` steps of every case in each way; ``seed`` is not used: samples are numbers."""
    from .process_cases import CASES, MEANS

    rows = []
    with tempfile.TemporaryDirectory() as name:
        for world, how in ((2, "torchrun"), (4, "accelerate")):
            began, folder = time.monotonic(), Path(name) / str(world)
            whole = [case for case in CASES if case not in REFUSED]
            jobs = jobs_of(CASES, size) + jobs_of(whole, size, title=" / FSDP", extra=FSDP)
            jobs += jobs_of(MEANS, size, title=" / parts", extra=PARTS, batch=2)
            jobs += jobs_of(MEANS, size, title=" / FSDP, parts", extra=FSDP + PARTS, batch=2)
            several = launch(folder / "several", jobs, world, how).results(3600)
            alone = launch(folder / "alone", jobs_of(CASES, size, world=world), 1).results(3600)[0]
            say(f"{world} processes: {len(jobs)} trainings")
            for title, words in (("", "DDP"), (" / FSDP", "FSDP"), (" / parts", "DDP, accumulated"),
                                 (" / FSDP, parts", "FSDP, accumulated")):  # fmt: skip
                cases = [job["case"] for job in jobs if job["name"] == f"{job['case']}{title}"]
                found = {case: _tried(several, alone, f"{case}{title}", case) for case in cases}
                bad = [f"{case}: {value}" for case, value in found.items()
                       if isinstance(value, str) or not value <= TOLERANCE]  # fmt: skip
                worst = max((value for value in found.values() if isinstance(value, float)), default=0.0)
                rows.append(
                    Row(f"{world} processes, {words}, {how}",
                        f"losses, gradients and weights of {len(cases)} trainings equal one process to {TOLERANCE:g}",
                        len(cases), bad, time.monotonic() - began, {"largest relative difference": worst})
                )  # fmt: skip
        rows += faults(Path(name), say)
    return rows


def _tried(several: list[dict], alone: dict, job: str, reference: str) -> float | str:
    try:
        return compare(several, alone, job, reference)
    except RuntimeError as error:
        return str(error).strip().splitlines()[-1]


def faults(folder: Path, say: Callable[[str], None]) -> list[Row]:
    """One of 2 and of 4 processes fails, under both launchers: the others end, and one line says why."""
    from avfast.data.demo import make_scenes

    make_scenes(folder / "scenes", images=40, size=32)
    rows = []
    for processes, how in ((2, "torchrun"), (2, "accelerate"), (4, "torchrun")):
        for kind in FAULTS:
            words = ["run.timeout=10"] if kind == "hangs" else []
            run = Run(kind, how, folder / f"{kind}-{how}-{processes}", folder / "scenes", *words, processes=processes)
            ended, bad = run.wait(300), []
            if ended.seconds > 60:
                bad.append(f"the others ended {ended.seconds:.0f} s later")
            if ended.code == 0 or len(ended.errors) != 1 or "process 1" not in ended.errors[0]:
                bad.append(f"status {ended.code}, {ended.errors}")
            say(f"{kind}, {how}, {processes} processes: {ended.seconds:.0f} s")
            rows.append(
                Row(f"process 1 of {processes}: {kind}, {how}", "the others end within a minute and say why, once",
                    1, bad, ended.seconds, {"seconds to the end": ended.seconds})
            )  # fmt: skip
    return rows
