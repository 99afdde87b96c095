"""Loader processes that die or hang: nothing is lost, and the message says which file it was."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import threading
import time

import pytest
from engine_fixtures import ToyClips
from torch.utils.data import get_worker_info

for library in ("accelerate", "av"):
    pytest.importorskip(library, reason=f"{library} is not installed")

from fault_fixtures import (  # noqa: E402, F401
    STEPS,
    assert_same_weights,
    before_step,
    clip_set,
    fit,
    make,
    saved_step,
    toys_as_recipes,
    twenty_clips,
    undisturbed_weights,
)

from avfast.data import ClipDataset  # noqa: E402
from avfast.errors import RunFault  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread", "toy_recipe")


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


def test_a_death_while_a_batch_is_handed_over_is_no_lost_connection(tmp_path, undisturbed):
    """The process's socket closes some time before it is gone and torch is told, which must not be while the state is
    saved."""
    trainer = make(tmp_path, workers=2, save_every=100)

    def reset(timeout):
        threading.Timer(0.1, os.kill, (trainer.loader._iterator._workers[0].pid, signal.SIGKILL)).start()
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    before_step(trainer, 4, lambda: setattr(trainer.loader._iterator, "_try_get_data", reset))
    with pytest.raises(RunFault, match=r"^loader process \d+ was killed by SIGKILL.*state saved at step [45] of 12"):
        fit(trainer)
    again = make(tmp_path, resume=True)
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
    with pytest.raises(RunFault, match=rf"SIGSEGV while it read {clips}/007\.mp4, its decoder crashed"):
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
    with pytest.raises(RunFault, match=rf"the loader hangs: no batch within 4\.8 s; .*{clips}/007\.mp4"):
        fit(trainer)
    assert time.monotonic() - began < 15


def test_a_process_that_hangs_while_its_earlier_batch_is_fetched_ends_the_run(tmp_path, clips, monkeypatch):
    """The batch is announced, and the process that would hand over its tensors answers no more."""

    def hang(self, epoch, index):
        if index == stuck:
            ctypes.PyDLL(None).sleep(1000)
        return sample(self, epoch, index)

    sample = ClipDataset._sample
    monkeypatch.setattr(ClipDataset, "_sample", hang)
    trainer = make(tmp_path, clip_set(clips), recipe="clips", workers=1, data={"timeout": 0.4})
    stuck = int(trainer.sampler.order(0)[2 * 4])  # of the third batch
    before_step(trainer, 1, lambda: time.sleep(2))
    began = time.monotonic()
    with pytest.raises(RunFault, match=rf"the loader hangs: no batch within 4\.8 s; .*{clips}/{stuck:03d}\.mp4"):
        fit(trainer)
    assert time.monotonic() - began < 20
    assert saved_step(tmp_path) == 1
