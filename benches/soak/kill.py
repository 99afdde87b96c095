"""SIGKILL at random instants, then ``--resume auto``: every state equals that of a run never killed, to the bit.

Instants are drawn from the processor time of a whole run (from its start to its report, so also within an epoch, a
validation, the control and between stages) and from its file operations (so also between writing a checkpoint and
renaming it). A run may be killed again after it was resumed. Kills take turns with 0 and 2 loader processes.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .rows import Row

UNIT = "kills per recipe"
SMALL, LONG, MINUTES = 2, 20, 15

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("av", "accelerate", "jsonargparse", "transformers", "safetensors", "sklearn", "PIL", "kornia")
CLIPS, SCENES = 48, 40
CPU = ("--device", "cpu")
_CLIP = ("method.size=32", "method.frames=1", "method.duration=1", "data.batch_size=8")
_RUN = ("run.log_every=3", "run.save_every=4")
RECIPES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "av-align": ("pretrain", "clips", (*_CLIP[:2], "data.batch_size=8", *_RUN, "run.steps=11", "run.eval_every=5",
                                       "run.control=true")),
    "densecl": ("pretrain", "scenes", (*_RUN, "method.size=32", "method.queue=20", "method.dim=16",
                                       "method.group_size=4", "data.batch_size=8", "run.steps=11", "run.eval_every=5",
                                       "run.control=false")),
    "cim": ("pretrain", "scenes", (*_RUN, "method.encoder=vit-mini8", "method.size=32", "method.context=32",
                                   "method.exemplar=16", "method.decoder_dim=16", "method.decoder_heads=2",
                                   "data.batch_size=8", "run.steps=8", "run.eval_every=5", "run.control=false")),
    "fusion-tuning": ("finetune", "clips", (*_CLIP, *_RUN, "run.steps=7", "method.audio_init=abri_channel",
                                            "method.threshold=0.05", "run.control=false")),
    "sound2scene": ("pretrain", "clips", (
        "method.frames=2", "method.visual_size=32", "method.visual=resnet-tiny", "method.duration=1",
        "data.batch_size=8", "image:data.batch_size=8", "image:method.group_size=4", "image:method.queue=20",
        "image:run.steps=5", "image:run.save_every=2", "localiser:run.steps=5", "generator:run.steps=5",
        "generator:run.save_every=2", "audio:run.steps=5", "audio:run.save_every=2", "localiser:run.save_every=2",
        "audio:run.control=false",
    )),
}  # fmt: skip
"""Recipe to command, data and words: runs of seconds, with the parts of a real one."""


def check(size: int, seed: int, say: Callable[[str], None]) -> list[Row]:
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        return [Row("SIGKILL", "runs are killed and resumed", missing=f"without {', '.join(missing)}")]
    with tempfile.TemporaryDirectory(prefix="avfast-kill-") as folder, Runner() as runner:
        return [kills(name, size, seed, Path(folder), runner, say) for name in RECIPES]


class Runner:
    """Runs of the command line, each in a process forked from one that has imported everything."""

    def __enter__(self) -> Runner:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "avfast.benches.soak.kill_child"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )  # fmt: skip
        self._answer()
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.stdin.close()
        self._process.wait()

    def __call__(self, argv: Sequence[str], log: Path, **end: float) -> dict[str, Any]:
        self._process.stdin.write(json.dumps({"argv": list(argv), "log": str(log), **end}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._answer())

    def _answer(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that forks runs has ended with status {self._process.wait()}")
        return line


def kills(
    recipe: str, size: int, seed: int, folder: Path, runner: Runner, say: Callable[[str], None],
    *, workers: Sequence[int] = (0, 2),
) -> Row:  # fmt: skip
    """Kill runs of a recipe `size` times and compare what becomes of them."""
    began, draw = time.monotonic(), random.Random(f"{seed} {recipe}")
    command, kind, words = RECIPES[recipe]
    data, out, log = _data(folder, kind, runner), folder / "run", folder / f"{recipe}.log"
    base = [command, "--recipe", recipe, "--data", str(data), "--out", str(out), *CPU, "--resume", "auto", *words]
    wholes: dict[int, dict[str, Any]] = {}
    facts: dict[int, dict[str, Any]] = {}
    for count in workers:  # never killed; loader processes change nothing
        facts[count] = _finish(runner, [*base, "--workers", str(count)], log)
        wholes[count] = snapshot(out)
        shutil.rmtree(out)
    failures = [f"{n} workers: {line}" for n in wholes for line in differences(wholes[workers[0]], wholes[n])]
    done = between = again = 0
    while done < size and not failures:
        count = workers[done % len(workers)]
        argv, fact = [*base, "--workers", str(count)], facts[count]
        instants: list[str] = []
        for _ in range(draw.choice((1, 1, 2, 3))):
            if draw.random() < 0.5:
                end = {"cpu": fact["cpu"] * draw.random()}
            else:
                end = {"call": draw.randint(1, max(1, fact["calls"]))}
            status = runner(argv, log, **end)["status"]
            if status not in (0, -9):
                failures.append(f"after {instants}: status {status}: {_last_lines(log)}")
            if status != -9:
                break
            done += 1
            again += bool(instants)
            between += "call" in end
            instants.append(" ".join(f"{name} {value:.4g}" for name, value in end.items()))
            if done == size:
                break
        if not failures:
            _finish(runner, argv, log)
            found = differences(wholes[workers[0]], snapshot(out))
            failures += [f"seed {seed}, {count} workers, killed at {', '.join(instants)}: {line}" for line in found[:5]]
            failures += [f"left behind: {path}" for path in out.rglob("*.tmp")]
        shutil.rmtree(out, ignore_errors=True)
        say(f"{recipe}: {done} of {size} kills, {len(failures)} failures")
    return Row(
        recipe, f"SIGKILL, --resume auto, with {' and '.join(map(str, workers))} workers: all states and logs equal",
        times=done, failures=tuple(failures), seconds=time.monotonic() - began,
        numbers={"at file operations": between, "killed again": again, "cpu_s of a run": facts[workers[0]]["cpu"],
                 "file operations of a run": facts[workers[0]]["calls"]},
    )  # fmt: skip


def _data(folder: Path, kind: str, runner: Runner) -> Path:
    data, log = folder / kind, folder / "data.log"
    if not data.is_dir():
        count = ["--clips", str(CLIPS)] if kind == "clips" else ["--kind", "scenes", "--images", str(SCENES)]
        _finish(runner, ["demo-data", str(data), *count], log)
    return data


def _finish(runner: Runner, argv: Sequence[str], log: Path) -> dict[str, Any]:
    answer = runner(argv, log)
    if answer["status"]:
        raise RuntimeError(f"{' '.join(argv)} ended with status {answer['status']}: {_last_lines(log)}")
    return answer


def _last_lines(log: Path) -> str:
    return " / ".join(log.read_text().splitlines()[-4:])


def snapshot(out: Path) -> dict[str, Any]:
    """What a finished run holds: by file, the states of its final checkpoints, the weights of the best ones, the rows
    of its logs, its scores and its exports."""
    from avfast.engine.checkpoint import load_checkpoint
    from avfast.engine.journal import comparable, read_rows
    from avfast.engine.record import comparable_results

    held: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.name == "final.pt":
            held[name] = load_checkpoint(path)
            held[name]["config"].pop("data.workers")
            for interval in held[name]["interval"]:
                interval.pop("data_s", None), interval.pop("compute_s", None)
        elif path.name == "best.pt":
            state = load_checkpoint(path)
            held[name] = {key: state[key] for key in ("model", "optimizer", "counters")}
        elif path.name == "metrics.jsonl":
            held[name] = comparable(read_rows(path))
        elif path.name in ("results.json", "confidence.json"):
            held[name] = comparable_results(json.loads(path.read_text()))
        elif path.suffix == ".safetensors":
            held[name] = path.read_bytes()
        elif path.parent.name == "checkpoints":
            held[name] = True
    return held


def differences(one: Any, two: Any, where: str = "") -> list[str]:
    """Where two nested values are not equal to the bit."""
    import torch

    if isinstance(one, dict) and isinstance(two, dict):
        odd = sorted(map(str, one.keys() ^ two.keys()))
        lines = [f"{where}: only one has {', '.join(odd[:5])}"] if odd else []
        for key in one.keys() & two.keys():
            lines += differences(one[key], two[key], f"{where}/{key}")
        return lines
    if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)) and len(one) == len(two):
        return [
            line for i, (a, b) in enumerate(zip(one, two, strict=True)) for line in differences(a, b, f"{where}/{i}")
        ]
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        same = one.dtype == two.dtype and one.shape == two.shape and _bits(one) == _bits(two)
        return [] if same else [f"{where}: tensors differ"]
    if isinstance(one, float) and isinstance(two, float) and math.isnan(one) and math.isnan(two):
        return []
    if type(one) is type(two) and one == two:
        return []
    return [f"{where}: {str(one)[:80]} and {str(two)[:80]}"]


def _bits(value: Any) -> bytes:
    import torch

    return value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
