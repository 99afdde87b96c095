"""Files that hang, vanish, change or break while they are being used, and a process that runs out of handles."""

from __future__ import annotations

import os
import pickle
import resource
import shutil
import subprocess
import sys
import threading
import time
import traceback

import pytest
import torch
from data_fixtures import plain_clip

pytest.importorskip("av", reason="reading media needs PyAV")
pytest.importorskip("PIL", reason="reading pictures needs Pillow")

from avfast.data import ClipDataset, ClipSource, EpochSampler, build_loader  # noqa: E402
from avfast.data.deadline import MANY, TimeLimit  # noqa: E402
from avfast.data.image_folder import ImageDataset  # noqa: E402
from avfast.data.sources import IMAGE_EXTENSIONS  # noqa: E402
from avfast.errors import DataError, RunFault, UnreadableFile  # noqa: E402

SETTINGS = {"frames": 2, "size": 16, "duration": 1.0, "sample_rate": 8000, "seed": 5, "train": True}
CLIPS = 6
PATIENCE = 3
"""Seconds: what a busy machine may hold a good file up, and what each test of a hanging one costs."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for i in range(CLIPS):
        plain_clip(folder / f"{i}.mp4", level=30 * i)
    return folder


@pytest.fixture
def folder(clips, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(clips, tmp_path / "clips")


def hang(path):
    """Whoever opens the file waits for ever: a pipe that nobody writes to."""
    path.unlink()
    os.mkfifo(path)


def release(path):
    """Ends the waiting of all who have it open."""
    os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))


def loader_of(dataset, *, workers=0, batch_size=3):
    return build_loader(dataset, EpochSampler(len(dataset), seed=0, batch_size=batch_size), workers=workers)


def errors_of(batches):
    return [(os.path.basename(e["path"]), e["cause"]) for batch in batches for e in batch["errors"]]


# ------------------------------------------------------------------------------------------------ reading that hangs


@pytest.mark.parametrize(("workers", "cache"), [(0, None), (0, "memory"), (2, None), (2, "memory")])
def test_a_clip_that_hangs_is_left_out_after_its_time(folder, workers, cache):
    dataset = ClipDataset(ClipSource.open(folder), on_error="skip", cache=cache, timeout=PATIENCE, **SETTINGS)
    hang(folder / "2.mp4")
    loader = loader_of(dataset, workers=workers)
    began = time.monotonic()
    batches = [*loader, *loader]
    assert errors_of(batches) == 2 * [("2.mp4", "timeout")]
    assert sum(len(batch["id"]) for batch in batches) == 2 * (CLIPS - 1)
    assert time.monotonic() - began < 8  # and not for ever
    del loader


def test_the_policy_decides_about_a_clip_that_hangs(folder):
    source = ClipSource.open(folder)
    strict, generous = (ClipDataset(source, on_error=p, timeout=PATIENCE, **SETTINGS) for p in ("raise", "resample"))
    hang(folder / "2.mp4")
    with pytest.raises(DataError, match=r"2\.mp4: could not be read within 3 s.*on_error") as caught:
        list(loader_of(strict, workers=1))
    assert "Traceback" not in str(caught.value)
    batches = list(loader_of(generous))
    assert [len(batch["id"]) for batch in batches] == [3, 3] and set(errors_of(batches)) == {("2.mp4", "timeout")}


def test_a_picture_that_hangs(tmp_path):
    from PIL import Image

    for i in range(3):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    source = ClipSource.open(tmp_path, extensions=IMAGE_EXTENSIONS)
    dataset = ImageDataset(source, size=8, seed=0, train=True, on_error="skip", timeout=PATIENCE)
    assert not dataset[0, 0]["errors"]
    hang(tmp_path / "1.png")
    assert errors_of(loader_of(dataset)) == [("1.png", "timeout")]


def test_one_thread_per_hanging_file_and_another_try_once_it_has_ended(folder):
    source = ClipSource.open(folder)
    assert not ClipDataset(source, on_error="skip", timeout=0, **SETTINGS)[0, 0]["errors"]  # imports the decoder
    dataset = ClipDataset(source, on_error="skip", timeout=6, **SETTINGS)
    good = (folder / "2.mp4").read_bytes()
    assert not dataset[0, 0]["errors"]
    before = set(threading.enumerate())
    hang(folder / "2.mp4")
    assert "within 6 s" in dataset[0, 2]["errors"][0]["detail"]
    for epoch in range(1, 50):  # not waited for again
        assert "since an earlier try" in dataset[epoch, 2]["errors"][0]["detail"]
    assert not dataset[1, 1]["errors"] and len(set(threading.enumerate()) - before) == 1
    release(folder / "2.mp4")
    (folder / "2.mp4").unlink()
    (folder / "2.mp4").write_bytes(good)
    deadline = time.monotonic() + 30
    while dataset[50, 2]["errors"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not dataset[51, 2]["errors"]
    assert len([t for t in threading.enumerate() if t.name == "avfast-read" and t not in before]) <= 1


def test_a_disk_that_hangs_is_not_blamed_on_the_clips():
    gate, limit = threading.Event(), TimeLimit(0.02)
    for i in range(MANY - 1):
        with pytest.raises(UnreadableFile, match=f"{i}.mp4: could not be read within 0.02 s"):
            limit.run(f"/mnt/far/{i}.mp4", gate.wait)
    with pytest.raises(RunFault, match=rf"{MANY} files did not answer .* under '/mnt/far'"):
        limit.run("/mnt/far/last.mp4", gate.wait)
    gate.set()


def test_the_thread_of_a_limit_ends_with_it():
    before = set(threading.enumerate())
    limits = [TimeLimit(30) for _ in range(5)]
    assert [limit.run("x", int, "7") for limit in limits] == 5 * [7]
    own = set(threading.enumerate()) - before
    assert len(own) == 5
    del limits
    for thread in own:
        thread.join(10)
        assert not thread.is_alive()


def test_the_limit_passes_on_what_happens():
    limit = TimeLimit(30)
    assert limit.run("x", divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        limit.run("x", divmod, 7, 0)
    assert pickle.loads(pickle.dumps(limit)).run("x", divmod, 7, 2) == (3, 1)
    here = threading.current_thread().name
    assert TimeLimit(0).run("x", lambda: threading.current_thread().name) == here
    assert limit.run("x", lambda: threading.current_thread().name) != here
    with pytest.raises(ValueError, match="timeout: expected seconds"):
        TimeLimit(-1)


# -------------------------------------------------------------------------------------- files that change under us


def test_a_clip_that_becomes_another_one_is_not_taken_for_the_first(folder):
    source = ClipSource.open(folder)
    dataset = ClipDataset(source, on_error="skip", **SETTINGS)
    first = dataset[0, 1]
    shutil.copy2(folder / "0.mp4", folder / "3.mp4")  # with the modification time of the other
    os.replace(shutil.copy2(folder / "1.mp4", folder / "copy"), folder / "1.mp4")  # the same bytes in another file
    (error,) = dataset[0, 3]["errors"]
    assert error["cause"] == "changed" and error["path"].endswith("3.mp4") and "any more" in error["detail"]
    again = dataset[0, 1]
    assert not again["errors"] and torch.equal(again["frames"], first["frames"])


def test_what_breaks_in_mid_epoch_is_counted_by_its_cause(folder):
    dataset = ClipDataset(ClipSource.open(folder), on_error="skip", **SETTINGS)
    assert errors_of(loader_of(dataset)) == []
    (folder / "0.mp4").unlink()
    os.truncate(folder / "1.mp4", 700)
    (folder / "2.mp4").unlink()
    (folder / "2.mp4").symlink_to("/proc/self/mem")  # every read of it is an input/output error
    found = errors_of(loader_of(dataset, batch_size=6))
    assert sorted(found) == [("0.mp4", "missing"), ("1.mp4", "changed"), ("2.mp4", "unreadable")]


def test_a_stale_file_handle_is_an_unreadable_file(folder, monkeypatch):
    """What a network file system answers after its server came back: an OSError of the first call that touches it."""
    dataset = ClipDataset(ClipSource.open(folder), on_error="skip", timeout=5, **SETTINGS)
    real = os.stat

    def stale(path, *arguments, **options):
        if str(path).endswith("4.mp4"):
            raise OSError(116, "Stale file handle", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", stale)
    (error,) = dataset[0, 4]["errors"]
    assert (error["cause"], error["detail"]) == ("unreadable", "cannot be read (Stale file handle)")


def test_a_process_without_handles_does_not_call_its_clips_broken(folder):
    dataset = ClipDataset(ClipSource.open(folder), on_error="skip", **SETTINGS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.open(os.devnull, os.O_RDONLY)
    os.close(spare)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
        with pytest.raises(RunFault, match=r"0\.mp4: cannot be read, and that is not the file's fault: too many open"):
            dataset[0, 0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not dataset[0, 0]["errors"]


def test_an_error_that_is_kept_in_memory_does_not_grow(folder):
    """A traceback grows each time its error is raised, and every entry keeps a frame with its samples."""
    os.truncate(folder / "1.mp4", 700)
    dataset = ClipDataset(ClipSource.open(folder), on_error="skip", cache="memory", **SETTINGS)
    for epoch in range(50):
        assert dataset[epoch, 1]["errors"]
    assert len(traceback.extract_tb(dataset._decoded[1].__traceback__)) < 12


def test_python_ends_although_a_read_hangs(tmp_path):
    """A thread that never comes back must not keep the process alive."""
    os.mkfifo(tmp_path / "pipe")
    code = (
        "import sys; from avfast.data.deadline import TimeLimit; from avfast.errors import UnreadableFile\n"
        "try: TimeLimit(0.1).run(sys.argv[1], open, sys.argv[1])\n"
        "except UnreadableFile as error: print(error.cause)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "pipe")], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "timeout\n"
