"""Many clips: one walk, one look at each file, little memory, and nothing slower than the number of clips."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from engine_fixtures import StopAt, weights

for library in ("av", "accelerate", "jsonargparse", "transformers", "safetensors"):
    pytest.importorskip(library, reason=f"{library} is not installed")

from avfast.benches.soak import folder as soak  # noqa: E402
from avfast.data import identity, waiting  # noqa: E402
from avfast.data.index_files import FOLDER, index_folder  # noqa: E402
from avfast.data.listing import look, walk  # noqa: E402
from avfast.data.records import ClipRecord, Records  # noqa: E402
from avfast.data.sampler import EpochSampler  # noqa: E402
from avfast.data.sources import EXTENSIONS, ClipSource  # noqa: E402
from avfast.engine.build import build_accelerator, build_method  # noqa: E402
from avfast.engine.config import parse_config  # noqa: E402
from avfast.engine.loop import Trainer  # noqa: E402
from avfast.engine.signals import Budget, StopRequest  # noqa: E402
from avfast.engine.sources import build_dataset, open_data  # noqa: E402

TINY = ("method.size=32", "method.frames=1", "method.duration=0.4", "batch_size=8", "run.control=false")

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_long_check_holds_when_it_is_small():
    """Listing once, reading once, memory, lists, shards and resuming: `make soak` does it with 100,000 clips."""
    rows = soak.check(soak.SMALL, 0, lambda line: None)
    assert len(rows) == 8 and not [failure for row in rows for failure in row.failures]
    per = {row.name: row.numbers for row in rows}["memory"]
    assert per["bytes_per_record"] < 700, "100 of them for a record, the rest for the index of 600"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many") / "clips"
    soak.tiny_clips(folder, 200)
    return folder


RUN = """
import json, os, sys, torch
torch.set_num_threads(1)
from pathlib import Path
from avfast.benches.soak.folder import counted
from avfast.cli import main
from avfast.engine.loop import Trainer
root, out = Path(sys.argv[1]), Path(sys.argv[2])
with counted(root) as found:
    def fit(self, *rest):
        batch = next(iter(self.loader))
        counts = {**found, "batch": len(batch["id"])}
        (out.parent / f"counts{os.environ.get('RANK', '0')}.json").write_text(json.dumps(counts))
        os._exit(0)
    Trainer.fit = fit
    main(["pretrain", "--recipe", "av-align", "--data", str(root), "--out", str(out), "--device", "cpu", *sys.argv[3:]])
sys.exit(1)
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_from_the_command_to_the_first_batch_the_data_are_listed_once(clips, tmp_path, processes):
    """The main process lists and reads; one beside it takes the index and looks at no file."""
    import json
    import shutil
    import socket

    data = tmp_path / "data"
    shutil.copytree(clips, data, ignore=shutil.ignore_patterns(FOLDER))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = [*TINY, "steps=1", "data.cache=none"]
    running = []
    for rank in range(processes):
        env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        if processes > 1:
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
                    "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
        call = [sys.executable, "-c", RUN, str(data), str(tmp_path / "run"), *words]
        running.append(subprocess.Popen(call, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    ends = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0] * processes, ends
    counts = [json.loads((tmp_path / f"counts{rank}.json").read_text()) for rank in range(processes)]
    assert counts[0]["listed"] == soak.CLASSES + 1 and counts[0]["read"] == 200
    assert {count["batch"] for count in counts} == {8}
    if processes > 1:
        assert counts[1]["listed"] == 0 and counts[1]["read"] == 0
        assert counts[1]["looked"] < 100, "only clips that it opens, not all 200"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_on_many_clips_continues_bit_for_bit(clips, tmp_path, workers):
    """Stopped in mid-epoch; the second start takes everything from the index."""

    def make(out, workers, resume=None):
        config = parse_config("av-align", [*TINY, "run.steps=7", f"data.workers={workers}"])
        method = build_method(config)
        bundle = open_data(clips, method.inputs)
        data = build_dataset(bundle.splits["train"], method.inputs, config.data, seed=0, train=True, cache=False)
        return Trainer(
            config, data, None, tmp_path / out, build_accelerator("cpu", "no"), fingerprint=bundle.fingerprint,
            steps=7, kind="main", resume=resume, force=False,
        )  # fmt: skip

    whole = make("a", 0)
    whole.fit(StopRequest(), Budget(None))
    first = make("b", workers)
    result = first.fit(StopAt(first, 4), Budget(None))
    assert result.step == 4
    second = make("b", workers, resume=result.checkpoints["last"])
    assert second.fit(StopRequest(), Budget(None)).step == 7
    expected = weights(whole)
    assert all(torch.equal(value, expected[key]) for key, value in weights(second).items())


# ---------------------------------------------------------------------------------------------- listing and index


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.fsencode(name))
    return root


def test_the_walk_finds_what_it_should_in_the_order_of_paths(tmp_path):
    names = ("a/b.mp4", "a-1.mp4", "a/.hidden.mp4", ".no/x.mp4", "a/deep/er/c.MP4", "b.txt", "\udcff.mp4")
    put(tmp_path, *names)
    (tmp_path / "link").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "file.mp4").symlink_to(tmp_path / "a" / "b.mp4")
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    found = walk(tmp_path, EXTENSIONS).names
    assert found == ["a/b.mp4", "a/deep/er/c.MP4", "a-1.mp4", "file.mp4", "\udcff.mp4"]
    assert found == [str(p.relative_to(tmp_path)) for p in sorted(tmp_path / name for name in found)]
    source = ClipSource.open(tmp_path)
    assert [r.path.name for r in source.records] == ["b.mp4", "c.MP4", "a-1.mp4", "file.mp4", "\udcff.mp4"]
    assert [r.path.is_file() for r in source.records] == [True] * 5


def test_a_process_beside_the_main_one_lists_again_where_folders_changed(tmp_path):
    root = put(tmp_path, "a/1.mp4", "b/2.mp4")
    assert len(ClipSource.open(root, trust=True)) == 2, "without an index it looks itself"
    with soak.counted(root) as found:
        assert ClipSource.open(root, trust=True) == ClipSource.open(root, trust=True)
    assert found == {"listed": 0, "looked": 0, "read": 0}
    put(root, "b/3.mp4")
    with soak.counted(root) as found:
        assert len(ClipSource.open(root, trust=True)) == 3
    assert found["listed"] == 3 and found["read"] == 1
    (root / "l.csv").write_text("path\na/1.mp4\nb/3.mp4\n")
    first = ClipSource.open(root / "l.csv")
    with soak.counted(root) as found:
        assert ClipSource.open(root / "l.csv", trust=True) == first
    assert found == {"listed": 0, "looked": 0, "read": 0}


def test_what_was_read_before_an_interruption_is_not_read_again(tmp_path, monkeypatch):
    root = put(tmp_path, *(f"{i:04d}.mp4" for i in range(600)))
    real, read = identity.content_digest, []

    def digest(path):
        if len(read) == 300:
            raise KeyboardInterrupt
        read.append(path)
        return real(path)

    monkeypatch.setattr(identity, "content_digest", digest)
    with pytest.raises(KeyboardInterrupt):
        ClipSource.open(root)
    monkeypatch.setattr(identity, "content_digest", lambda path: read.append(path) or real(path))
    assert len(ClipSource.open(root)) == 600 and len(read) <= 600 + 8
    assert [r.id for r in ClipSource.open(root).records] == [real(root / f"{i:04d}.mp4").hex() for i in range(600)]


def test_stamps_of_listed_files(tmp_path):
    put(tmp_path, "a.mp4")
    (tmp_path / "d.mp4").mkdir()
    stamps, there = look(tmp_path, ["a.mp4", "no.mp4", "d.mp4", "\0.mp4"])
    assert there.tolist() == [True, False, False, False] and stamps[0, 0] == 5


def test_the_index_lies_beside_the_data_or_in_the_cache(tmp_path, monkeypatch):
    assert index_folder(tmp_path) == tmp_path / FOLDER
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    one, two = index_folder(tmp_path / "a_b"), index_folder(tmp_path / "a" / "b")
    assert one != two and one.parent == tmp_path / "cache" / "avfast"


def test_somebody_who_waits_is_told(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now[0])
    report = waiting.waiting("/data")
    for step in range(1, 31):
        now[0] = float(step)
        report(step * 1000, 30_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "indexing /data: 3,000 of 30,000 files, about 27 s left" and len(lines) == 3


# --------------------------------------------------------------------------------------------- columns and orders


def test_columns_hold_what_records_hold(tmp_path):
    records = tuple(
        ClipRecord(tmp_path / f"{i}.mp4", f"{i:064x}", None if i % 3 else f"c{i}", ("train", "val", None)[i % 3],
                   None if i % 2 else i / 4 + 1, tmp_path / f"{i}.png" if i == 3 else None)
        for i in range(7)
    )  # fmt: skip
    columns = Records.of(tmp_path, records)
    assert tuple(columns) == records and columns[-1] == records[-1] and tuple(columns[::-2]) == records[::-2]
    assert columns[2:5] == Records.of(tmp_path, records[2:5]) and columns[2:5] != columns[1:4]
    assert hash(columns) == hash(Records.of(tmp_path, records)) and not columns.masked
    with pytest.raises(IndexError):
        columns[7]
    outside = ClipRecord(Path("/elsewhere/x.mp4"), "0" * 64)
    assert Records.of(tmp_path, [outside])[0].path == outside.path


def test_splits_share_their_columns(clips):
    bundle = open_data(clips)
    train, test = bundle.splits["train"], bundle.splits["test"]
    assert train.records.columns is test.records.columns is bundle.source.records.columns
    both = {r.id for r in train.records} | {r.id for r in test.records}
    assert len(both) == len(train) + len(test)


def test_an_epoch_of_a_million_starts_at_once():
    """No list of a million numbers: the order is an array, and batches are cut from it."""
    sampler = EpochSampler(1_000_000, seed=0, batch_size=64)
    began = time.process_time()
    first = next(iter(sampler))
    assert time.process_time() - began < 2.0 and len(first) == 64
    sampler.set_position(0, 10_000)
    assert next(iter(sampler)) == [(0, int(i)) for i in sampler.order(0)[640_000:640_064]]
