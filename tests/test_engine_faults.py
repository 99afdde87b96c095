"""Real faults in a run: a full disk, data that go away, processes that die or hang, numbers that are none.

Whatever happens, the old state stays, the message names the file or the step, and --resume auto ends where the run that
was never disturbed ends.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import shutil
import signal
import time
from collections import Counter

import pytest
import torch
from engine_fixtures import Toy, ToyClips, ToyConfig, weights
from torch.utils.data import get_worker_info

for library in ("accelerate", "av"):
    pytest.importorskip(library, reason=f"{library} is not installed")

from data_fixtures import plain_clip  # noqa: E402

from avfast.cli import main  # noqa: E402
from avfast.data import ClipDataset, ClipSource  # noqa: E402
from avfast.engine import breakage, build, finite  # noqa: E402
from avfast.engine.build import build_accelerator  # noqa: E402
from avfast.engine.checkpoint import load_checkpoint  # noqa: E402
from avfast.engine.config import DataConfig, OptimConfig, RunConfig, TrainConfig  # noqa: E402
from avfast.engine.export import export_modules  # noqa: E402
from avfast.engine.journal import parse_rows  # noqa: E402
from avfast.engine.loop import Trainer  # noqa: E402
from avfast.engine.signals import Budget, StopRequest  # noqa: E402
from avfast.engine.sources import evaluation_loader  # noqa: E402
from avfast.engine.validate import Validator  # noqa: E402
from avfast.errors import AvfastError, DataError, RunFault  # noqa: E402
from avfast.methods import Inputs  # noqa: E402

STEPS = 12

pytestmark = pytest.mark.usefixtures("one_thread")


class ClipToy(Toy):
    """The toy on files: pictures of 2 x 2, of the sound every 500th sample."""

    @property
    def inputs(self) -> Inputs:
        return Inputs(frames=1, size=2, duration=1.0, sample_rate=8000)

    def features(self, batch):
        return super().features({**batch, "waveform": batch["waveform"][:, ::500]})


@pytest.fixture(autouse=True)
def toy_recipe(monkeypatch):
    """The recipe "toy" is the toy method, and "clips" the one that reads files; other names are what they are."""
    toys, real = {"toy": Toy, "clips": ClipToy}, build.get_method
    monkeypatch.setattr(build, "get_method", lambda name: toys.get(name) or real(name))


def make(out, clips=None, *, resume=False, workers=0, data=None, accelerator=None, recipe="toy", **run):
    run = {"steps": STEPS, "log_every": 2, "eval_every": 100, "save_every": 3, **run}
    config = TrainConfig(
        recipe, DataConfig(batch_size=4, workers=workers, **(data or {})), OptimConfig(), RunConfig(**run), ToyConfig()
    )
    last = out / "checkpoints" / "last.pt"
    return Trainer(
        config, clips or ToyClips(), None, out, accelerator or build_accelerator("cpu", "no"),
        fingerprint="abc", steps=run["steps"], resume=last if resume else None,
    )  # fmt: skip


def fit(trainer):
    return trainer.fit(StopRequest(), Budget(None))


def saved_step(out):
    return load_checkpoint(out / "checkpoints" / "last.pt")["counters"]["step"]


def rows_of(out, kind):
    rows, torn = parse_rows(out / "metrics.jsonl")
    assert torn == []
    return [row for row in rows if row["kind"] == kind]


def assert_same_weights(trainer, expected):
    found = weights(trainer)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Weights after twelve steps in which nothing happened."""
    patch = pytest.MonkeyPatch()
    patch.setattr(build, "get_method", lambda name: Toy)
    trainer = make(tmp_path_factory.mktemp("whole"))
    fit(trainer)
    patch.undo()
    return weights(trainer)


def before_step(trainer, step, action):
    """Calls `action` in the forward pass of a step."""

    def hook(module, args):
        if trainer.step + 1 == step:
            action()

    trainer.method.register_forward_pre_hook(hook)


# ------------------------------------------------------------------------------------------------------ a full disk


class FullDisk:
    """From `start` on no file of this process can grow beyond `size` bytes: writing fails as on a full disk."""

    def __init__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def start(self, size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, self.before[1]))

    def end(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


@pytest.fixture
def disk():
    full = FullDisk()
    yield full
    full.end()


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path, disk, undisturbed):
    trainer = make(tmp_path)
    before_step(trainer, 6, lambda: disk.start(4000))
    with pytest.raises(RunFault, match=r"^cannot write '.*\.pt': it was cut short \(a full disk"):
        fit(trainer)
    disk.end()
    assert saved_step(tmp_path) == 3
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith(".tmp")]
    again = make(tmp_path, resume=True)
    assert again.step == 3
    fit(again)
    assert_same_weights(again, undisturbed)


def test_a_disk_that_fails_when_it_is_flushed(tmp_path, monkeypatch):
    def fsync(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    trainer = make(tmp_path)
    before_step(trainer, 6, lambda: monkeypatch.setattr(os, "fsync", fsync))
    with pytest.raises(RunFault, match=r"^cannot write '.*(\.pt|metrics\.jsonl)': No space left on device"):
        fit(trainer)
    monkeypatch.undo()
    assert saved_step(tmp_path) == 3


def test_the_log_is_never_torn(tmp_path, disk, undisturbed):
    """A row goes in whole or not at all: half a line would take the next one with it."""
    trainer = make(tmp_path)
    log = tmp_path / "metrics.jsonl"
    before_step(trainer, 8, lambda: disk.start(log.stat().st_size + 40))
    with pytest.raises(RunFault, match=r"cannot write '.*metrics\.jsonl': File too large"):
        fit(trainer)
    disk.end()
    assert log.read_text().endswith("}\n") and [row["step"] for row in rows_of(tmp_path, "train")] == [2, 4, 6]
    again = make(tmp_path, resume=True)
    fit(again)
    assert_same_weights(again, undisturbed)
    assert [row["step"] for row in rows_of(tmp_path, "train")] == [2, 4, 6, 8, 10, 12]


def test_a_full_disk_in_an_export_names_the_file(tmp_path, disk):
    pytest.importorskip("safetensors", reason="exports need safetensors")
    modules = {"audio": torch.nn.Linear(64, 64)}
    export_modules(tmp_path, modules, {})
    before = (tmp_path / "audio" / "model.safetensors").read_bytes()
    disk.start(4000)
    with pytest.raises(RunFault, match=r"cannot write '.*audio/model\.safetensors': File too large"):
        export_modules(tmp_path, {"audio": torch.nn.Linear(64, 64)}, {})
    disk.end()
    assert (tmp_path / "audio" / "model.safetensors").read_bytes() == before


def test_a_full_disk_in_a_command_is_one_line_and_status_3(tmp_path, disk, capsys):
    clips = tmp_path / "clips"
    clips.mkdir()
    for i in range(6):
        plain_clip(clips / f"{i}.mp4", level=20 * i)
    disk.start(100)
    assert main(["media-scan", str(clips), "--json", str(tmp_path / "scan.json"), "--workers", "0"]) == 3
    disk.end()
    error = capsys.readouterr().err
    assert error == f"error: cannot write '{tmp_path / 'scan.json'}': File too large\n"


# ------------------------------------------------------------------------------------------------ data that go away


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for i in range(20):
        plain_clip(folder / f"{i:02d}.mp4", level=11 * i)
    return folder


def clip_set(folder, on_error="skip", source=None):
    inputs = ClipToy(ToyConfig()).inputs
    return ClipDataset(
        source or ClipSource.open(folder), frames=1, size=2, duration=1.0, sample_rate=inputs.sample_rate, seed=0,
        train=True, on_error=on_error, timeout=20,
    )  # fmt: skip


@pytest.mark.parametrize(("policy", "workers"), [("skip", 0), ("resample", 0), ("raise", 0), ("skip", 2)])
def test_a_data_folder_that_vanishes_stops_the_run_and_is_waited_for(tmp_path, clips, policy, workers):
    whole = make(tmp_path / "whole", clip_set(clips), recipe="clips")
    fit(whole)
    folder = shutil.copytree(clips, tmp_path / "mounted")
    trainer = make(tmp_path / "run", clip_set(folder, policy), recipe="clips", workers=workers)
    before_step(trainer, 4, lambda: folder.rename(tmp_path / "elsewhere"))
    with pytest.raises(AvfastError) as caught:
        fit(trainer)
    message, last = str(caught.value), tmp_path / "run" / "checkpoints" / "last.pt"
    assert str(folder) in message and "\n" not in message
    if policy == "skip":
        assert message.startswith(f"the data folder '{folder}' does not exist any more: the last is ")
        assert isinstance(caught.value, RunFault) and caught.value.code == 3
    assert f"in '{last}'; --resume auto continues" in message
    step = saved_step(tmp_path / "run")
    assert f"state saved at step {step} of {STEPS}" in message and 4 <= step <= 4 + 2 * workers
    (fault,) = rows_of(tmp_path / "run", "fault")
    assert fault["cause"] == "data" and fault["step"] == step and str(folder) in fault["text"]
    (tmp_path / "elsewhere").rename(folder)
    again = make(tmp_path / "run", clip_set(folder, policy), recipe="clips", workers=workers, resume=True)
    result = fit(again)
    assert_same_weights(again, weights(whole))
    assert result.errors == {}  # nothing of the batch that stopped it was counted


def test_a_folder_that_vanishes_before_a_look_at_the_validation_split(tmp_path, clips):
    folder = shutil.copytree(clips, tmp_path / "clips")
    trainer = make(tmp_path / "run", clip_set(folder), recipe="clips", eval_every=4, save_every=100)
    trainer.validator = Validator(evaluation_loader(clip_set(folder), 4))
    before_step(trainer, 4, lambda: folder.rename(tmp_path / "away"))
    with pytest.raises(RunFault, match=rf"the data folder '{folder}' does not exist any more: .*saved at step 4 of 12"):
        fit(trainer)
    (tmp_path / "away").rename(folder)
    again = make(tmp_path / "run", clip_set(folder), recipe="clips", eval_every=4, resume=True)
    again.validator = Validator(evaluation_loader(clip_set(folder), 4))
    fit(again)
    assert [row["step"] for row in rows_of(tmp_path / "run", "val")] == [4, 8, 12]


def test_an_empty_folder_is_a_disk_that_is_not_mounted(tmp_path):
    watch = breakage.Breakage(tmp_path, "clips")
    error = {"path": f"{tmp_path}/7.mp4", "detail": "no such file"}
    with pytest.raises(RunFault, match=r"is empty \(unmounted\?\).*the last is .*7\.mp4, which no such file"):
        watch.note(0, [error])


def test_data_that_can_hardly_be_read_stop_the_run(tmp_path):
    (tmp_path / "one.mp4").touch()
    error = {"path": "/data/7.mp4", "detail": "cannot be read (Input/output error)"}
    watch = breakage.Breakage(tmp_path, "clips")
    for _ in range(50):
        watch.note(0, 2 * [error])
        watch.note(0, 2 * [error])
        watch.note(9, [])
    with pytest.raises(RunFault, match="no clips of '.*' can be read any more: 3 batches in a row.*Input/output error"):
        for _ in range(3):
            watch.note(0, [error])
    watch = breakage.Breakage(None, "images")
    for _ in range(100):
        watch.note(4, 4 * [error])  # half of them: much, and no more than is allowed
    with pytest.raises(RunFault, match=r"1\d\d of the last 2\d\d images could not be read"):
        for _ in range(100):
            watch.note(3, 5 * [error])


def test_what_breaks_in_mid_epoch_is_counted_once_over_a_resume(tmp_path, clips):
    """Two passes over 20 clips of which two break in the first: an interrupted run counts what the other counts."""

    def run(name, stop_at=None):
        folder, out = shutil.copytree(clips, tmp_path / name), tmp_path / f"{name}-run"
        source = ClipSource.open(folder)
        trainer = make(out, clip_set(folder, source=source), recipe="clips", steps=10)

        def damage():
            (folder / "03.mp4").unlink()
            os.truncate(folder / "04.mp4", 700)

        before_step(trainer, 2, damage)
        if stop_at:
            before_step(trainer, stop_at, lambda: folder.rename(tmp_path / "away"))
            with pytest.raises(RunFault):
                fit(trainer)
            (tmp_path / "away").rename(folder)
            trainer = make(out, clip_set(folder, source=source), recipe="clips", steps=10, resume=True)
        result = fit(trainer)
        assert rows_of(out, "train")[-1]["broken"] == sum(result.errors.values())
        counts = Counter()
        for key, count in result.errors.items():  # a list that is read anew knows the damaged file as it is now
            counts[os.path.basename(key).split(":")[0]] += count
        return counts

    plain, resumed = run("plain"), run("resumed", stop_at=6)
    assert plain == resumed and plain["03.mp4"] in (1, 2) and plain["04.mp4"] in (1, 2)


# ------------------------------------------------------------------------------------------- processes that die, hang


class Once(ToyClips):
    """Does something terrible in the loader process that reads a sample; the first time only."""

    def __init__(self, flag, action, at=(1, 7)):
        super().__init__()
        self.flag, self.action, self.at = flag, action, at

    def __getitem__(self, key):
        if key == self.at and get_worker_info() is not None and not self.flag.exists():
            self.flag.touch()
            self.action()
        return super().__getitem__(key)


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), r"was killed by SIGKILL, most often because memory ran out"),
        (lambda: ctypes.string_at(0), r"was killed by SIGSEGV"),
        (lambda: os._exit(7), r"ended with status 7"),
    ],
    ids=["killed", "crashed", "left"],
)
def test_a_loader_process_that_dies_loses_nothing(tmp_path, undisturbed, action, words, capfd):
    trainer = make(tmp_path, Once(tmp_path / "flag", action), workers=2, save_every=100)
    began = time.monotonic()
    with pytest.raises(RunFault, match=rf"^loader process \d+ {words}.*state saved at step \d+ of 12.*--resume auto"):
        fit(trainer)
    assert time.monotonic() - began < 5  # torch alone waits 5 s for each process
    step = saved_step(tmp_path)
    assert 1 <= step < STEPS
    again = make(tmp_path, Once(tmp_path / "flag", action), workers=2, resume=True)
    assert again.step == step
    fit(again)
    assert_same_weights(again, undisturbed)


def test_a_death_in_the_middle_of_a_step_waits_for_its_end(tmp_path, undisturbed):
    """Torch raises it wherever the main thread is: between the forward pass and the optimiser, for instance."""
    trainer = make(tmp_path, workers=2, save_every=100)

    def kill():
        os.kill(trainer.loader._iterator._workers[0].pid, signal.SIGKILL)
        time.sleep(0.3)

    before_step(trainer, 4, kill)
    with pytest.raises(RunFault, match="SIGKILL.*state saved at step"):
        fit(trainer)
    again = make(tmp_path, resume=True)
    assert 4 <= again.step <= 6
    fit(again)
    assert_same_weights(again, undisturbed)


def test_a_crash_names_the_file_that_was_read(tmp_path, clips, monkeypatch):
    def crash(self, epoch, index):
        if index == 7:
            os.kill(os.getpid(), signal.SIGSEGV)
        return sample(self, epoch, index)

    sample = ClipDataset._sample
    monkeypatch.setattr(ClipDataset, "_sample", crash)
    trainer = make(tmp_path, clip_set(clips), recipe="clips", workers=1)
    with pytest.raises(RunFault, match=rf"SIGSEGV while it read {clips}/07\.mp4, its decoder crashed"):
        fit(trainer)


def test_a_process_that_hangs_beyond_help_ends_the_run(tmp_path, clips, monkeypatch):
    """C code that never lets Python run: no thread of that process can count the seconds, so the main one does."""

    def hang(self, epoch, index):
        if index == 7:
            ctypes.PyDLL(None).sleep(1000)
        return sample(self, epoch, index)

    sample = ClipDataset._sample
    monkeypatch.setattr(ClipDataset, "_sample", hang)
    trainer = make(tmp_path, clip_set(clips), recipe="clips", workers=1, data={"timeout": 0.4})
    began = time.monotonic()
    with pytest.raises(RunFault, match=rf"the loader hangs: no batch within 4\.8 s; .*{clips}/07\.mp4"):
        fit(trainer)
    assert time.monotonic() - began < 15


# --------------------------------------------------------------------------------------------- numbers that are none


class Poisoned(ToyClips):
    """In some epochs one sample holds NaN, or (for comparison) all of its batch are unreadable."""

    def __init__(self, epochs, *, index=5, value=float("nan"), lost=()):
        super().__init__()
        self.epochs, self.index, self.value, self.lost = epochs, index, value, lost

    def __getitem__(self, key):
        sample = super().__getitem__(key)
        if key[0] in self.epochs and key[1] in self.lost:
            return {"errors": [{"index": key[1], "path": f"{key[1]}.mp4", "cause": "unreadable", "detail": "is torn"}]}
        if key[0] in self.epochs and key[1] == self.index and not self.lost:
            sample["waveform"][3] = self.value
        return sample


def batch_with(trainer, epoch, index):
    """(number of the step, indices) of the batch that holds a sample in an epoch."""
    order = list(map(int, trainer.sampler.order(epoch)))
    place = order.index(index) // 4
    return epoch * len(trainer.sampler) + place + 1, order[4 * place : 4 * place + 4]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38], ids=["nan", "inf", "overflow"])
def test_a_dropped_step_leaves_no_trace(tmp_path, value):
    """Neither in weights and moments, nor in the statistics of batch norms, nor in random numbers."""
    poisoned = make(tmp_path / "a", Poisoned((0, 1), value=value), on_nonfinite="skip")
    dropped = [batch_with(poisoned, epoch, 5) for epoch in (0, 1)]
    result = fit(poisoned)
    assert result.step == STEPS and result.errors == {}
    lost = sorted({i for _, indices in dropped for i in indices})

    class Lost(Poisoned):
        def __getitem__(self, key):
            self.lost = dropped[key[0]][1] if key[0] in (0, 1) else lost
            return super().__getitem__(key)

    without = make(tmp_path / "b", Lost((0, 1)), on_nonfinite="skip")
    fit(without)
    assert_same_weights(poisoned, weights(without))
    assert all(torch.isfinite(v).all() for v in weights(poisoned).values() if v.is_floating_point())
    for p, q in zip(*(t.optimizer.state_dict()["state"].values() for t in (poisoned, without)), strict=True):
        assert torch.equal(p["exp_avg"], q["exp_avg"]) and torch.equal(p["step"], q["step"])
    faults = rows_of(tmp_path / "a", "fault")
    assert [(row["step"], row["cause"]) for row in faults] == [(step, "nonfinite") for step, _ in dropped]
    assert [sorted(map(int, row["id"])) for row in faults] == [sorted(indices) for _, indices in dropped]
    assert [row.get("dropped", 0) for row in rows_of(tmp_path / "a", "train")][-1] == 2


def test_dropped_steps_are_counted_over_a_resume(tmp_path):
    first = make(tmp_path, Poisoned((0, 1, 2)), on_nonfinite="skip")
    at = batch_with(first, 0, 5)[0]
    assert at <= 5
    before_step(first, 7, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fit(first)
    again = make(tmp_path, Poisoned((0, 1, 2)), on_nonfinite="skip", resume=True)
    assert again.step == 6
    fit(again)
    expected = [step for epoch in range(3) if (step := batch_with(again, epoch, 5)[0]) <= STEPS]
    assert [row["step"] for row in rows_of(tmp_path, "fault")] == expected
    assert rows_of(tmp_path, "train")[-1]["dropped"] == len(expected)


def test_raise_names_the_step_and_its_samples_and_keeps_the_good_state(tmp_path):
    trainer = make(tmp_path, Poisoned((1,)), log_every=4)
    step, indices = batch_with(trainer, 1, 5)
    with pytest.raises(AvfastError, match=rf"the loss is nan at step {step} \(batch of ") as caught:
        fit(trainer)
    message = str(caught.value)
    named = message.split("batch of ")[1].split(")")[0].split(", ")
    assert sorted(map(int, named)) == sorted(indices)
    assert f"the last good state is in '{tmp_path / 'checkpoints' / 'last.pt'}'" in message
    assert "run.on_nonfinite=skip" in message
    state = load_checkpoint(tmp_path / "checkpoints" / "last.pt")
    assert state["counters"]["step"] < step
    assert all(v.isfinite().all() for v in state["model"].values() if v.is_floating_point())
    again = make(tmp_path, Poisoned((1,)), on_nonfinite="skip", resume=True)  # which needs no --force
    assert fit(again).step == STEPS


def test_statistics_alone_are_looked_at_too(tmp_path):
    """A loss scaler saves the weights from a NaN, and nobody saves the running means of batch norms."""
    trainer = make(tmp_path)

    def poison():
        trainer.method.audio[1].running_mean[2] = float("nan")

    before_step(trainer, 5, poison)
    with pytest.raises(AvfastError, match=r"the state is not finite \('audio\.1\.running_mean'\) at step 6"):
        fit(trainer)
    assert saved_step(tmp_path) == 3


def test_endless_overflow_is_not_dropped_for_ever(tmp_path):
    trainer = make(tmp_path, steps=40, on_nonfinite="skip", save_every=2)
    trainer.method.register_forward_hook(
        lambda module, args, out: out._replace(loss=out.loss * (float("inf") if trainer.step >= 5 else 1.0))
    )
    with pytest.raises(AvfastError, match=rf"{finite.MOST} steps in a row were dropped, up to step 15, .*loss is inf"):
        fit(trainer)
    state = load_checkpoint(tmp_path / "checkpoints" / "last.pt")
    assert all(v.isfinite().all() for v in state["model"].values() if v.is_floating_point())
    assert len(rows_of(tmp_path, "fault")) == finite.MOST


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_overflow_of_scaled_gradients_is_not_a_fault(tmp_path, policy):
    """Loss scaling (fp16) finds its scale by overflowing: the scaler leaves such a step out and goes on by itself."""
    accelerator = build_accelerator("cpu", "no")
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    accelerator.native_amp = True
    trainer = make(tmp_path, accelerator=accelerator, on_nonfinite=policy)
    assert fit(trainer).step == STEPS
    assert rows_of(tmp_path, "fault") == [] and accelerator.scaler.get_scale() < 2.0**127
    assert weights(trainer)["updates"] == STEPS


def test_a_scaler_survives_a_dropped_step(tmp_path):
    accelerator = build_accelerator("cpu", "no")
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    accelerator.native_amp = True
    trainer = make(tmp_path, Poisoned((0, 1)), accelerator=accelerator, on_nonfinite="skip")
    assert fit(trainer).step == STEPS
    assert [row["step"] for row in rows_of(tmp_path, "fault")] == [batch_with(trainer, e, 5)[0] for e in (0, 1)]
    assert all(torch.isfinite(v).all() for v in weights(trainer).values() if v.is_floating_point())


def test_looking_at_steps_costs_the_others_nothing(tmp_path, monkeypatch):
    """With "raise" the device is read only where the log, a look or a checkpoint reads it anyway."""
    looks = []
    monkeypatch.setattr(finite.FiniteWatch, "look", lambda self: looks.append(1))
    monkeypatch.setattr(finite, "is_finite_step", lambda *a, **k: pytest.fail("looked at a single step"))
    fit(make(tmp_path, log_every=6, save_every=6))
    assert len(looks) == 2


def test_the_log_is_json_that_any_reader_takes(tmp_path):
    fit(make(tmp_path, Poisoned((0,)), on_nonfinite="skip"))
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_broken_file_with_raise_ends_with_the_state_saved(tmp_path, clips):
    folder = shutil.copytree(clips, tmp_path / "clips")
    trainer = make(tmp_path / "run", clip_set(folder, "raise"), recipe="clips", save_every=100)
    before_step(trainer, 2, lambda: os.truncate(folder / "07.mp4", 300))
    with pytest.raises(DataError, match=r"07\.mp4: is not the file any more.*on_error.*state saved at step [2-5] "):
        fit(trainer)
    again = make(tmp_path / "run", clip_set(folder, "skip"), recipe="clips", resume=True, data={"on_error": "skip"})
    assert fit(again).step == STEPS
