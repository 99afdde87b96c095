"""Checkpoint files: any damage is found, one good generation is always there, and going back to it is said aloud."""

from __future__ import annotations

import os
import random

import pytest
import torch
from engine_fixtures import DyingCalls, Killed

from avfast.engine import checkpoint
from avfast.engine.checkpoint import KEYS, SCHEMA, DamagedCheckpoint, load_checkpoint, save_checkpoint
from avfast.engine.config import config_diff
from avfast.engine.contents import content_hash, content_hashes
from avfast.engine.generations import Generations
from avfast.engine.resume import newest_of
from avfast.engine.seal import add_seal, check_seal
from avfast.errors import CheckpointError


def state(step: int = 0, size: int = 4) -> dict:
    empty = {key: {} for key in KEYS - {"schema"}}
    return empty | {"model": {"w": torch.full((size,), float(step))}, "counters": {"step": step}, "rng": [{}]}


def flip(path, place: int | None = None, bit: int = 0) -> None:
    """In place, so in every name of the file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 1 << bit
    path.write_bytes(data)


# ------------------------------------------------------------------------------------------- damage


def test_a_flipped_bit_anywhere_is_found(tmp_path):
    """In tensors, in headers and the padding between them, in the directory, in the checksum itself."""
    path, draw = tmp_path / "last.pt", random.Random(0)
    save_checkpoint(path, state())
    good = path.read_bytes()
    assert check_seal(path) and b"avfast-sha256:" in good[-60:]
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << draw.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(DamagedCheckpoint):
            load_checkpoint(path)
    path.write_bytes(good)
    assert load_checkpoint(path)["model"]["w"].tolist() == [0.0] * 4


def test_cut_short_and_grown_files_are_found(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, state())
    good = path.read_bytes()
    for length in [*range(0, len(good), 97), *range(len(good) - 60, len(good))]:
        path.write_bytes(good[:length])
        with pytest.raises(DamagedCheckpoint):
            load_checkpoint(path)
    for more in (b"\0", good, b"avfast-sha256:" + bytes(32)):
        path.write_bytes(good + more)
        with pytest.raises(DamagedCheckpoint):
            load_checkpoint(path)


def test_torch_reads_a_sealed_file(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, state(3))
    assert torch.load(path, weights_only=True)["model"]["w"].tolist() == [3.0] * 4
    assert torch.load(path, weights_only=True, mmap=True)["schema"] == SCHEMA
    (tmp_path / "no.zip").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="expected a zip archive"):
        add_seal(tmp_path / "no.zip")


# ------------------------------------------------------------------------------------------- schema


def old_state(step: int) -> dict:
    """As schema 1 had it: no checksum of the file, and without what was added since."""
    kept = {key: value for key, value in state(step, size=5000).items() if key not in checkpoint.ADDED}
    return {"schema": 1, **kept}


def test_a_checkpoint_of_schema_1_is_migrated(tmp_path):
    path = tmp_path / "last.pt"
    torch.save(old_state(8), path)
    found = load_checkpoint(path)
    assert found.keys() == KEYS and found["schema"] == SCHEMA
    assert found["counters"] == {"step": 8, "looked": 8} and found["local"] == [{}] == found["interval"]
    assert Generations(tmp_path).newest().step == 8
    flip(path)
    with pytest.raises(DamagedCheckpoint, match="damaged"):
        load_checkpoint(path)


def test_newer_and_odd_schemas_are_named_not_passed_over(tmp_path):
    generations = Generations(tmp_path)
    generations.save(state(4))
    last = generations.path("last")
    last.unlink()
    torch.save({**state(8), "schema": SCHEMA + 1}, last)
    add_seal(last)
    for read in (lambda: load_checkpoint(last), lambda: load_checkpoint(generations.newest().path)):
        with pytest.raises(CheckpointError, match=f"has schema {SCHEMA + 1}, this version of avfast reads 1 to"):
            read()
    torch.save({**old_state(8), "colour": {}}, last)
    with pytest.raises(CheckpointError, match="does not follow its schema 1: colour"):
        load_checkpoint(last)


def test_the_schema_covers_what_a_run_is():
    text = checkpoint.__doc__ + open(checkpoint.__file__).read()
    assert all(f"``{key}``" in text for key in KEYS) and "(seed, epoch, id)" in checkpoint.WORKERS


# ------------------------------------------------------------------------------------------- generations


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_steps_stay_with_the_best_and_the_final_one(tmp_path):
    generations = Generations(tmp_path, keep=2)
    for step in (2, 4, 6, 8):
        generations.save(state(step), best=step == 4, final=step == 8)
    assert names(tmp_path) == ["best.pt", "final.pt", "last.pt", "step-00000006.pt", "step-00000008.pt"]
    steps = {name: load_checkpoint(path)["counters"]["step"] for name, path in generations.present().items()}
    assert steps == {"last": 8, "best": 4, "final": 8} and generations.step_of("best") == 4
    assert generations.path("last").samefile(generations.path("final")), "one file, several names"
    assert len({path.stat().st_ino for path in tmp_path.iterdir()}) == 3, "two generations and the best"
    Generations(tmp_path, keep=1).save(state(9))
    assert names(tmp_path) == ["best.pt", "final.pt", "last.pt", "step-00000009.pt"]


def test_without_links_names_are_copies(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *names: (_ for _ in ()).throw(OSError("no links here")))
    generations = Generations(tmp_path, keep=2)
    for step in (1, 2, 3):
        generations.save(state(step), best=step == 1)
    assert names(tmp_path) == ["best.pt", "last.pt", "step-00000002.pt", "step-00000003.pt"]
    assert generations.step_of("best") == 1 and generations.newest().step == 3


def test_steps_of_a_future_that_was_left_go_with_the_next_save(tmp_path):
    generations = Generations(tmp_path)
    for step in (2, 4, 6):
        generations.save(state(step))
    flip(generations.path("last"))
    assert generations.newest().step == 4
    generations.save(state(5))
    assert list(generations.steps()) == [5, 4] and generations.newest().step == 5


def test_killed_at_every_instant_of_a_save_one_good_state_is_left(tmp_path, monkeypatch):
    """Every call that changes the folder is once the last one; what is left then always has a newest whole state."""
    calls = DyingCalls(monkeypatch)

    def saves(folder, last):
        generations = Generations(folder, keep=2)
        for step in range(2, last + 1, 2):
            generations.save(state(step), best=step == 4, final=step == 8)

    saves(tmp_path / "whole", 8)
    total, seen = calls.count, set()
    for instant in range(1, total + 1):
        folder = tmp_path / str(instant)
        calls.count, calls.fatal = 0, instant
        with pytest.raises(Killed):
            saves(folder, 8)
        calls.count = calls.fatal = 0
        generations = Generations(folder, keep=2)
        found = generations.newest()
        begun = [p for p in folder.iterdir() if p.suffix == ".pt"]
        assert (found is not None) == bool(begun) and not (found and found.refused)
        for path in generations.present().values():
            load_checkpoint(path)
        seen.add(found.step if found else 0)
        checkpoint.clear_temporary(folder)
        assert not list(folder.glob(".*"))
        generations.prune(found.step if found else 0)
        for step in range((found.step if found else 0) + 2, 9, 2):  # the run goes on
            generations.save(state(step), best=step == 4, final=step == 8)
        if not generations.path("final").is_file():
            generations.save(state(8), final=True)
        kept = ["final.pt", "last.pt", "step-00000006.pt", "step-00000008.pt"]
        assert [name for name in names(folder) if name != "best.pt"] == kept, f"killed at call {instant}"
    assert seen == {0, 2, 4, 6, 8}


# ------------------------------------------------------------------------------------------- the one before


def filled(out) -> Generations:
    generations = Generations(out / "checkpoints", keep=3)
    for step in (2, 4, 8, 12):
        generations.save(state(step), best=step == 2)
    (out / "metrics.jsonl").write_text('{"kind": "train", "step": 14}\n')
    return generations


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_the_one_before_is_used_and_said_aloud(tmp_path, damage):
    last = filled(tmp_path).path("last")
    if damage == "flip":
        flip(last)
    else:
        os.truncate(last, 0 if damage == "empty" else last.stat().st_size // 2)
    said: list[str] = []
    found = newest_of(tmp_path, said.append)
    assert found.path.name == "step-00000008.pt" and found.step == 8
    assert len(said) == 2 and f"'{last}' is " in said[0] and "damaged" in said[0]
    assert said[1].endswith("step-00000008.pt' at step 8: 6 step(s) are computed again")


def test_of_copies_the_newest_whole_one_is_used(tmp_path):
    """A folder that was copied has no links: last.pt may be damaged alone."""
    generations = filled(tmp_path)
    last = generations.path("last")
    data = last.read_bytes()
    last.unlink()
    last.write_bytes(data[:100])
    assert newest_of(tmp_path).step == 12
    for path in generations.steps().values():
        flip(path)
    found = newest_of(tmp_path)
    assert found.path.name == "best.pt" and found.step == 2 and len(found.refused) == 4


def test_all_damaged_is_an_error_and_changes_nothing(tmp_path):
    generations = filled(tmp_path)
    for path in {p.stat().st_ino: p for p in generations.folder.iterdir()}.values():
        flip(path)
    before = {path: path.read_bytes() for path in generations.folder.iterdir()}
    with pytest.raises(CheckpointError, match="no checkpoint in .* is whole, and nothing was changed there") as caught:
        newest_of(tmp_path)
    assert str(caught.value).count("is damaged") == 4 and "--force" in str(caught.value)
    assert {path: path.read_bytes() for path in generations.folder.iterdir()} == before


def test_good_ones_are_used_in_silence(tmp_path):
    filled(tmp_path)
    said: list[str] = []
    assert newest_of(tmp_path, said.append).path.name == "last.pt" and said == []
    assert newest_of(tmp_path / "nothing") is None


# ------------------------------------------------------------------------------------------- contents


def test_a_moved_folder_is_no_change_and_another_content_is_one(tmp_path):
    for name in "abc":
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / "w").write_text("same" if name != "c" else "other")
    (tmp_path / "b" / ".cache").write_text("hidden files do not count")
    configs = [{"method.visual": str(tmp_path / name), "method.dim": 3, "run.steps": 4} for name in "abc"]
    a, b, c = (content_hashes(config) for config in configs)
    assert a == b != c and a.keys() == {"method.visual"}
    assert config_diff(configs[0], configs[1], contents=(a, b)) == []
    (line,) = config_diff(configs[0], configs[2], contents=(a, c))
    assert line.startswith(f"method.visual: {tmp_path / 'a'} (content ") and str(tmp_path / "c") in line
    before = content_hash(tmp_path / "a")
    (tmp_path / "a" / "inner" / "w").write_text("sane")
    assert content_hash(tmp_path / "a") != before
    (line,) = config_diff(configs[0], configs[0], contents=(a, content_hashes(configs[0])))
    assert "content" in line, "another content at the same place"


def test_a_key_that_an_older_version_did_not_have_is_no_change_at_its_default():
    old, new = {"run.steps": 3}, {"run.steps": 3, "run.novel": 1}
    assert config_diff(old, new, defaults={"run.novel": 1}) == []
    assert config_diff(old, new, defaults={"run.novel": 2}) == ["run.novel: absent -> 1"]
    assert config_diff(old, new) == ["run.novel: absent -> 1"]
