"""SIGTERM and Ctrl-C at any point save and say where: while data are read, in validation, in the control, in a stage,
between stages, in the evaluation, within the write of a checkpoint, and with loader processes beside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from engine_fixtures import Toy, ToyClips, ToyConfig, real_clips, weights

for library in ("accelerate", "jsonargparse", "av", "transformers", "safetensors", "sklearn"):
    pytest.importorskip(library, reason=f"{library} is not installed")

from avfast.cli import main  # noqa: E402
from avfast.engine import build, finetune, loop, pretrain  # noqa: E402
from avfast.engine.build import build_accelerator  # noqa: E402
from avfast.engine.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from avfast.engine.config import DataConfig, OptimConfig, RunConfig, TrainConfig, parse_config  # noqa: E402
from avfast.engine.contents import content_hashes  # noqa: E402
from avfast.engine.generations import Generations  # noqa: E402
from avfast.engine.journal import comparable, read_rows  # noqa: E402
from avfast.engine.loop import Trainer  # noqa: E402
from avfast.engine.pretrain import Request  # noqa: E402
from avfast.engine.resume import finished  # noqa: E402
from avfast.engine.signals import Budget, Interrupted, StopRequest, interruptible  # noqa: E402
from avfast.engine.sources import evaluation_loader, open_data, training_loader, training_sampler  # noqa: E402
from avfast.engine.validate import Validator  # noqa: E402
from avfast.errors import CheckpointError  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(build, "get_method", lambda name: Toy)


class Signalling:
    """Wraps a function or a data set: the call with a number is accompanied by a signal to this process."""

    def __init__(self, inner, number: int, name: int = signal.SIGTERM) -> None:
        self.inner, self.left, self.name = inner, number, name

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.name)

    def __call__(self, *arguments, **options):
        self._count()
        return self.inner(*arguments, **options)

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, key):
        self._count()
        return self.inner[key]


def make(out, *, resume=None, clips=None, looks=None, **run):
    run = {"log_every": 4, "eval_every": 6, "save_every": 3, "steps": 14, **run}
    config = TrainConfig("toy", DataConfig(batch_size=4), OptimConfig(), RunConfig(**run), ToyConfig())
    validator = Validator(evaluation_loader(looks or ToyClips(6), 4))
    return Trainer(
        config, clips or ToyClips(), validator, out, build_accelerator("cpu", "no"), fingerprint="abc",
        steps=run["steps"], resume=resume,
    )  # fmt: skip


def fit(trainer):
    with StopRequest() as stop:
        return trainer.fit(stop, Budget(None))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run that nobody stopped comes to: weights, and rows of the log."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "get_method", lambda name: Toy)
        out = tmp_path_factory.mktemp("whole")
        trainer = make(out)
        fit(trainer)
    return weights(trainer), comparable(read_rows(out / "metrics.jsonl"))


def goes_on(out, whole) -> None:
    """Continued, the run comes to the same end, with the same log."""
    torch.manual_seed(99)
    again = make(out, resume=out / "checkpoints" / "last.pt")
    assert fit(again).stopped == "finished"
    assert all(torch.equal(value, weights(again)[name]) for name, value in whole[0].items())
    assert comparable(read_rows(out / "metrics.jsonl")) == whole[1]


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_while_data_are_read(toy, tmp_path, whole, name):
    trainer = make(tmp_path, clips=Signalling(ToyClips(), 27, name))  # within the seventh batch
    result = fit(trainer)
    assert result.stopped == signal.Signals(name).name and result.step == 7
    assert load_checkpoint(result.checkpoints["last"])["counters"]["step"] == 7
    goes_on(tmp_path, whole)


@pytest.mark.parametrize(("number", "step"), [(2, 6), (8, 12), (14, 14)])
def test_in_validation(toy, tmp_path, whole, number, step):
    """It is cut short, counts for nothing, and is done first when the run goes on."""
    result = fit(make(tmp_path, looks=Signalling(ToyClips(6), number)))
    assert result.stopped == "SIGTERM" and result.step == step
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert not any(row["kind"] == "val" and row["step"] == step for row in rows)
    assert load_checkpoint(result.checkpoints["last"])["counters"]["looked"] < step
    goes_on(tmp_path, whole)


@pytest.mark.parametrize("number", [1, 2, 3, 5, 8])
def test_within_the_write_of_a_checkpoint(toy, tmp_path, whole, number):
    with pytest.MonkeyPatch.context() as patch:
        trainer = make(tmp_path)
        patch.setattr(os, "fsync", Signalling(os.fsync, number))
        result = fit(trainer)
    assert result.stopped == "SIGTERM" and result.step in (4, 7)
    assert not list((tmp_path / "checkpoints").glob(".*"))
    goes_on(tmp_path, whole)


def test_the_second_ctrl_c_ends_at_once_and_the_last_save_is_whole(toy, tmp_path, whole):
    clips = Signalling(ToyClips(), 26, signal.SIGINT)
    clips.inner = Signalling(ToyClips(), 28, signal.SIGINT)
    trainer = make(tmp_path, clips=clips)
    with pytest.raises(KeyboardInterrupt):
        fit(trainer)
    assert trainer.generations.newest().step == 6
    goes_on(tmp_path, whole)


def test_loader_processes_survive_signals_meant_for_the_run():
    """Ctrl-C reaches the whole foreground group, a scheduler every process; only the parent's word ends a worker."""
    data = DataConfig(batch_size=4, workers=2)
    clips = ToyClips(40)
    sampler = training_sampler(len(clips), data, seed=0, accumulate=1, rank=0, processes=1)
    loader = training_loader(clips, sampler, data, pin_memory=False)
    batches = iter(loader)
    expected = [batch["index"].tolist() for batch in training_loader(
        clips, training_sampler(40, DataConfig(batch_size=4), seed=0, accumulate=1, rank=0, processes=1),
        DataConfig(batch_size=4), pin_memory=False)]  # fmt: skip
    found = [next(batches)["index"].tolist()]
    workers = batches._workers
    for name in ("-INT", "-TERM", "-INT", "-TERM"):
        subprocess.run(["kill", name, *(str(worker.pid) for worker in workers)], check=True)
    found += [batch["index"].tolist() for batch in batches]
    assert found == expected and all(worker.is_alive() for worker in workers)
    workers[0].terminate()  # as a loader that is closed does with one that hangs
    workers[0].join(30)
    assert not workers[0].is_alive()


# ------------------------------------------------------------------------------------------- the command line

SMALL = ("frames=1", "size=32", "method.duration=1", "batch_size=8", "log_every=1", "eval_every=9", "save_every=2")


def run(out, *words) -> int:
    command = ["pretrain", "--recipe", "av-align", "--data", str(real_clips()), "--out", str(out), "--device", "cpu"]
    return main([*command, *SMALL, "steps=4", "control=true", *words])


def test_in_the_control_and_in_the_evaluation(tmp_path, capsys, no_pictures):
    step = Trainer._train_step

    def stopped_in_control(self, batch):
        if self.kind == "control" and self.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Trainer, "_train_step", stopped_in_control)
        assert run(tmp_path) == 143
    last = tmp_path / "control" / "checkpoints" / "last.pt"
    assert f"SIGTERM at step 2 of 4: state saved in '{last}'; continue with --resume auto" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "conclude", Signalling(pretrain.conclude, 1))
        assert run(tmp_path, "--resume", "auto") == 143
    printed = capsys.readouterr()
    assert "control: continuing at step 2 of 4" in printed.out
    saved = tmp_path / "checkpoints" / "last.pt"
    assert f"SIGTERM in the evaluation: the training is saved in '{saved}'" in printed.err

    def twice(self, batch):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Trainer, "_train_step", twice)
        assert run(tmp_path / "other") == 130
    assert "Ctrl-C twice, stopped within step 1 of 4: nothing was saved" in capsys.readouterr().err

    assert run(tmp_path, "--resume", "auto") == 0
    assert (tmp_path / "results.json").is_file()


def test_ctrl_c_in_a_terminal_with_loader_processes_in_a_stage(tmp_path):
    """As a terminal sends it: to every process of the group."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "avfast", "finetune", "--recipe", "fusion-tuning", "--data", str(real_clips()),
               "--out", str(tmp_path), "--device", "cpu", "--workers", "2", *SMALL[:4], "log_every=1", "save_every=2",
               "steps=5000", "control=false"]  # fmt: skip
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    log, deadline = tmp_path / "audio" / "metrics.jsonl", time.monotonic() + 240
    while not (log.is_file() and '"step": 3,' in log.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    last = tmp_path / "audio" / "checkpoints" / "last.pt"
    assert process.returncode == 130 and "Traceback" not in errors and "KeyboardInterrupt" not in errors
    assert errors.strip().splitlines()[-1].startswith("error: SIGINT at step") and f"'{last}'" in errors
    assert load_checkpoint(last)["counters"]["step"] == read_rows(log)[-1]["step"]


def test_between_stages(tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "pretrain", lambda *request, **options: os.kill(os.getpid(), signal.SIGTERM))
    request = Request("fusion-tuning", str(real_clips()), tmp_path, words=["method.size=32"])
    with pytest.raises(Interrupted, match=f"SIGTERM between the stages: what is done is in '{tmp_path}'") as caught:
        finetune.finetune(request, say=lambda line: None)
    assert caught.value.code == 143


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Interrupted, match="SIGINT here"), interruptible("here"):
        os.kill(os.getpid(), signal.SIGINT)
    with StopRequest() as stop, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
        stop.at_once()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


# ------------------------------------------------------------------------------------------- stages and changes


def stage_of(out, data, **changes):
    """A finished audio stage as a folder on disk, and the request that finished it."""
    words = ["run.steps=3", "method.size=32", "method.stage=audio"]
    config = parse_config("fusion-tuning", words)
    state = {
        **{key: {} for key in ("model", "optimizer", "scheduler", "scaler", "sampler", "versions")},
        "rng": [{}], "local": [{}], "interval": [{}], "workers": "", "kind": "main",
        "counters": {"step": 3, "looked": 3}, "split_fingerprint": open_data(data).fingerprint,
        "config": {**config.to_dict(), "method.classes": 16, "steps": 3, "processes": 1, **changes},
        "contents": content_hashes(config.to_dict()),
    }  # fmt: skip
    generations = Generations(out / "checkpoints")
    generations.save({**state, "counters": {"step": 2, "looked": 2}})
    generations.save(state, final=True)
    (out / "results.json").write_text("{}")
    return Request("fusion-tuning", str(data), out, words=words, resume="auto")


def test_a_finished_stage_is_not_taken_for_one_of_another_configuration(tmp_path):
    import dataclasses

    request = stage_of(tmp_path, real_clips())
    assert finished(request)
    for word, line in (("optim.lr=0.5", "optim.lr: 0.002 -> 0.5"), ("run.seed=3", "run.seed: 0 -> 3")):
        other = dataclasses.replace(request, words=[*request.words, word])
        with pytest.raises(CheckpointError, match="was written under another configuration") as caught:
            finished(other)
        assert f"\n  {line}\n" in str(caught.value) and "--force" in str(caught.value)
        assert finished(dataclasses.replace(other, force=True))
    assert finished(dataclasses.replace(request, words=[*request.words, "run.save_every=1", "run.control=false"]))
    assert not finished(dataclasses.replace(request, words=["run.steps=4", *request.words[1:]])), "more to do"


def test_a_finished_stage_with_a_damaged_last_state_goes_on_from_the_one_before(tmp_path):
    request = stage_of(tmp_path, real_clips())
    last = tmp_path / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:-1])
    said: list[str] = []
    assert not finished(request, said.append)
    assert (
        "last.pt' is damaged (its checksum is missing)" in said[0]
        and "at step 2: 1 step(s) are computed again" in said[1]
    )


def test_a_finished_stage_of_other_data_is_refused(tmp_path):
    request = stage_of(tmp_path, real_clips())
    state = load_checkpoint(tmp_path / "checkpoints" / "last.pt")
    del state["schema"]
    save_checkpoint(tmp_path / "checkpoints" / "last.pt", {**state, "split_fingerprint": "f" * 64})
    with pytest.raises(CheckpointError, match="data: fingerprint ffffffffffff -> "):
        finished(request)
