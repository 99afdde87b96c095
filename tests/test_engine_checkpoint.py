"""Checkpoints: whole or not at all, checked before use, and never code."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch

from avfast.engine.checkpoint import KEYS, clear_temporary_below, load_checkpoint, save_checkpoint, write_atomic
from avfast.engine.journal import Journal, read_rows
from avfast.engine.state import restore_rng_state, rng_state
from avfast.errors import CheckpointError, RunFault


def state() -> dict:
    return {k: {} for k in KEYS - {"schema"}} | {"model": {"w": torch.arange(50_000.0)}, "rng": [rng_state()]}


def test_round_trip(tmp_path):
    path = tmp_path / "a" / "last.pt"
    save_checkpoint(path, state())
    assert torch.equal(load_checkpoint(path)["model"]["w"], torch.arange(50_000.0))
    assert [p.name for p in path.parent.iterdir()] == ["last.pt"]  # no temporary file is left


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, state())
    before = path.read_bytes()

    def fail(temporary):
        temporary.write_bytes(b"half of")
        raise OSError("disk full")

    with pytest.raises(RunFault, match="cannot write '.*last.pt': disk full"):
        write_atomic(path, fail)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.999])
def test_truncated_files_are_named_and_the_other_one_offered(tmp_path, keep):
    last, best = tmp_path / "last.pt", tmp_path / "best.pt"
    save_checkpoint(last, state())
    save_checkpoint(best, state())
    data = last.read_bytes()
    last.write_bytes(data[: int(keep * len(data)) if keep < 1 else keep])
    with pytest.raises(CheckpointError, match="last.pt' is truncated or damaged") as caught:
        load_checkpoint(last)
    assert f"--resume {best}" in str(caught.value)


def test_one_flipped_bit_is_found(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, state())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


class Payload:
    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('owned').touch()",)


def test_code_in_a_checkpoint_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"schema": 1, "model": Payload()}, "evil.pt")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "plain.pt")
    assert not (tmp_path / "owned").exists()


def test_strangers_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(tmp_path / "none.pt")
    torch.save({"w": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="not written by avfast pretrain"):
        load_checkpoint(tmp_path / "other.pt")
    torch.save({"schema": 99}, tmp_path / "new.pt")
    with pytest.raises(CheckpointError, match="schema 99"):
        load_checkpoint(tmp_path / "new.pt")
    with pytest.raises(CheckpointError, match="schema"):
        save_checkpoint(tmp_path / "x.pt", {"model": {}})


def test_random_state_comes_back_through_a_file(tmp_path):
    def draw():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random(), random.gauss(0, 1)]

    random.gauss(0, 1), np.random.randn()  # leave a cached second normal in both generators
    save_checkpoint(tmp_path / "r.pt", state())
    expected = draw()
    draw()
    restore_rng_state(load_checkpoint(tmp_path / "r.pt")["rng"][0])
    assert draw() == expected


def test_journal_drops_what_will_be_computed_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path)
    for step in (1, 2, 3):
        journal.write("train", step=step, loss=1.0 / step)
    with open(path, "a") as handle:
        handle.write('{"kind": "train", "st')  # a kill in the middle of a line
    assert [r["step"] for r in read_rows(path)] == [1, 2, 3]
    resumed = Journal(path, resume_step=2)
    resumed.write("train", step=3, loss=0.5)
    assert [(r["step"], r["loss"]) for r in read_rows(path)] == [(1, 1.0), (2, 0.5), (3, 0.5)]


def test_what_a_kill_left_half_written_goes_and_nothing_else(tmp_path):
    export = tmp_path / "export"
    left = [export / ".avfast.json.17.tmp", export / "encoder" / ".config.json.17.tmp"]
    kept = [export / "encoder" / "config.json", tmp_path / ".other.json.17.tmp"]
    for path in (*left, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{")
    clear_temporary_below(export, tmp_path / "not there")
    assert not any(path.exists() for path in left) and all(path.exists() for path in kept)
