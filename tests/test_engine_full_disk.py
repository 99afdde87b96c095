"""A disk that is full, or that fails when it is flushed: the old files stay, and the message names the new one."""

from __future__ import annotations

import errno
import os
import resource

import pytest
import torch

for library in ("accelerate", "av"):
    pytest.importorskip(library, reason=f"{library} is not installed")

from data_fixtures import plain_clip  # noqa: E402
from fault_fixtures import (  # noqa: E402, F401
    assert_same_weights,
    before_step,
    fit,
    make,
    rows_of,
    saved_step,
    toys_as_recipes,
    undisturbed_weights,
)

from avfast.cli import main  # noqa: E402
from avfast.engine.export import export_modules  # noqa: E402
from avfast.errors import RunFault  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread", "toy_recipe")


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
