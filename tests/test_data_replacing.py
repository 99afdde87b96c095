"""Files kept beside the data are replaced whole, and what killed writers left of them goes at the next start."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

from avfast.data import replacing as module
from avfast.data.filecache import NAME, FileCache
from avfast.data.index_files import FOLDER, index_folder, save_index
from avfast.data.replacing import clear_half_written, replacing

WRITER = """
import runpy, sys
from pathlib import Path
with runpy.run_path(sys.argv[1])["replacing"](Path(sys.argv[2]), sys.argv[3]) as file:
    file.write(b"half")
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def writer(tmp_path):
    """Starts a process that is in the middle of writing a file of `tmp_path`."""
    processes = []

    def start(name, prefix):
        command = [sys.executable, "-c", WRITER, module.__file__, str(tmp_path / name), prefix]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        processes.append(process)
        assert process.stdout.readline() == b"writing\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def half_written(folder, prefix=""):
    return [path for path in folder.iterdir() if re.fullmatch(f"{re.escape(prefix)}[a-z0-9_]{{8}}", path.name)]


def test_what_a_killed_writer_left_goes_and_what_a_living_one_writes_stays(tmp_path, writer):
    killed, alive = writer("x", "x."), writer("x", "x.")
    assert len(half_written(tmp_path, "x.")) == 2
    clear_half_written(tmp_path, r"x\.")
    assert len(half_written(tmp_path, "x.")) == 2
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    clear_half_written(tmp_path, r"x\.")
    assert len(half_written(tmp_path, "x.")) == 1 and not (tmp_path / "x").exists()
    alive.communicate(b"")
    assert alive.returncode == 0 and (tmp_path / "x").read_bytes() == b"half" and not half_written(tmp_path, "x.")


def test_only_names_like_ours_go(tmp_path):
    ours = [f"{NAME}k3_9abcd", f"{NAME}00000000"]
    others = [f"{NAME}", f"{NAME}.bak", f"{NAME}ABCDEFGH", f"{NAME}k3_9abcde", f"my{NAME}k3_9abcd", "k3_9abcd"]
    for name in ours + others:
        (tmp_path / name).write_text("{}")
    (tmp_path / f"{NAME}afolder1").mkdir()
    FileCache(tmp_path, "scan")
    assert {path.name for path in tmp_path.iterdir()} == {*others, f"{NAME}afolder1"}


def test_the_folder_of_an_index_is_cleared_when_it_is_asked_for(tmp_path):
    folder = index_folder(tmp_path)
    save_index(folder / f"{16 * 'a'}.npz", {})
    (folder / f"{16 * 'a'}k3_9abcd").write_bytes(b"half")
    (folder / "notes").write_text("mine")
    assert index_folder(tmp_path) == folder == tmp_path / FOLDER
    assert sorted(path.name for path in folder.iterdir()) == [f"{16 * 'a'}.npz", "notes"]
    assert (folder / f"{16 * 'a'}.npz").stat().st_mode & 0o777 == 0o644


def test_an_error_in_mid_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path, "x.") as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_writer_that_was_taken_for_dead_replaces_nothing(tmp_path):
    """Between making its file and locking it: the loser of that race has its work to do again, and no more."""
    path = tmp_path / NAME
    path.write_text("{}")
    with pytest.raises(FileNotFoundError), replacing(path, NAME) as file:
        file.write(b"new")
        os.unlink(half_written(tmp_path, NAME)[0])
    assert path.read_text() == "{}"
    cache = FileCache(tmp_path, "scan")
    (tmp_path / "a.mp4").touch()
    cache.put(tmp_path / "a.mp4", 1)
    cache.save()
    assert FileCache(tmp_path, "scan").get(tmp_path / "a.mp4") == 1 and not half_written(tmp_path, NAME)
