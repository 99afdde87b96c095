"""What the engine does on request or beside the training: TensorBoard, the allocator, aligned tables."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from avfast.cli import main
from avfast.engine.board import Board, require_tensorboard
from avfast.engine.journal import Journal
from avfast.engine.tables import align_tables
from avfast.errors import MissingDependency


def read_back(folder):
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    events = accumulators.EventAccumulator(str(folder))
    events.Reload()
    return events


def test_rows_of_the_log_are_read_back_and_a_resume_hides_what_it_repeats(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    journal = Journal(tmp_path / "metrics.jsonl", board=Board(tmp_path / "tb"))
    for step in (1, 2, 3):
        journal.write("train", step=step, loss=1.0 / step, collapse={"audio": {"std": 0.5}}, note="text")
    journal.board.flush()
    board = Board(tmp_path / "tb", step=2)  # continues after step 2: the third row is computed again
    Journal(tmp_path / "metrics.jsonl", resume_step=2, board=board).write("train", step=3, loss=7.0)
    board.flush()
    events = read_back(tmp_path / "tb")
    assert [(e.step, round(e.value, 3)) for e in events.Scalars("train/loss")] == [(1, 1.0), (2, 0.5), (3, 7.0)]
    assert events.Scalars("train/collapse/audio/std")[0].value == 0.5
    assert set(events.Tags()["scalars"]) == {"train/loss", "train/collapse/audio/std"}


def test_pictures_are_read_back_with_their_size(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    figure = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed")
    figure.Figure(figsize=(2, 1)).savefig(tmp_path / "a.png", dpi=50)
    Board(tmp_path / "tb").pictures({"Curves": tmp_path / "a.png"}, 4)
    image = read_back(tmp_path / "tb").Images("Curves")[0]
    assert (image.step, image.width, image.height) == (4, 100, 50)


def test_without_tensorboard_nothing_starts_and_the_extra_is_named(tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingDependency, match="tensorboard"):
        require_tensorboard()
    pytest.importorskip("jsonargparse", reason="jsonargparse is not installed")
    words = ["--data", "nowhere", "--out", str(tmp_path / "out"), "run.tensorboard=true"]
    assert main(["pretrain", "--recipe", "av-align", *words]) == 2
    message = "error: run.tensorboard=true needs the package 'tensorboard': pip install 'avfast[tb]'\n"
    assert capsys.readouterr().err == message


PROBE = """
import sys
from avfast.engine.allocator import keep_freed_memory
print(keep_freed_memory())
import resource, torch
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(8 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def probe(**variables) -> tuple[str, int]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | variables
    done = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    took, faults = done.stdout.split()
    return took, int(faults)


def test_freed_memory_is_kept_and_the_users_own_setting_is_left_alone():
    took, kept = probe()
    if took == "False":
        pytest.skip("this C library is not glibc, or refuses the limits")
    left_alone, returned = probe(MALLOC_TRIM_THRESHOLD_="100000")
    assert left_alone == "False"
    assert kept * 10 < returned  # 20 blocks of 32 MiB: mapped anew each time, or not at all


def test_another_c_library_is_not_touched(monkeypatch):
    from avfast.engine import allocator

    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert allocator.keep_freed_memory() is False

    def refuse(name):
        raise OSError("static build")

    monkeypatch.setattr(allocator.ctypes, "CDLL", refuse)
    assert allocator.keep_freed_memory() is False


def test_tables_are_padded_and_other_lines_left_alone():
    text = "# a | b\n\n| name | x |\n|---|---|\n| a | 10.5 µs |\n| longer | - |\n\n- end | of\n"
    lines = align_tables(text).split("\n")
    assert lines[0] == "# a | b" and lines[-2:] == ["- end | of", ""]
    assert lines[2:6] == [
        "| name   | x       |",
        "|--------|---------|",
        "| a      | 10.5 µs |",
        "| longer | -       |",
    ]
    assert align_tables("\n".join(lines)) == "\n".join(lines)
