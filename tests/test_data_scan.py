"""The media scan finds each planted fault, nothing else, and survives garbage."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from data_fixtures import CLIPS, demo_dir, plain_clip  # noqa: F401

pytest.importorskip("av", reason="reading media needs PyAV")

from avfast.data import ClipSource  # noqa: E402
from avfast.data.commands import media_scan_command  # noqa: E402
from avfast.data.scan import PROBLEMS, scan_file, scan_media  # noqa: E402
from avfast.errors import DataError  # noqa: E402


@pytest.fixture(scope="module")
def report(demo_dir):  # noqa: F811
    return scan_media(demo_dir, workers=2, cache=False)


def test_finds_each_planted_fault_exactly(report, demo_dir):  # noqa: F811
    planted = json.loads((demo_dir / "manifest.json").read_text())["faults"]
    assert len(planted) == 6
    found = {f.path: f.problems for f in report.files if f.problems}
    assert found == {fault["path"]: (fault["problem"],) for fault in planted}
    assert len(report.files) == CLIPS + 6
    # Opus in webm plays; the other five do not serve.
    assert {f.path for f in report.unusable} == {f["path"] for f in planted if f["problem"] != "odd-codec"}


def test_report_forms(report):
    data = json.loads(json.dumps(report.to_dict()))
    assert data["files"] == CLIPS + 6 and data["usable"] == CLIPS + 1
    assert data["counts"] == {p: 1 for p in PROBLEMS if p not in ("truncated", "no-video", "too-large")}
    assert len(data["problems"]) == 6
    text = str(report)
    assert f"{CLIPS + 1} of {CLIPS + 6} files usable" in text and "faults/muted.mp4" in text
    pytest.importorskip("rich", reason="tables are printed with rich")
    assert report.table().row_count == 6


def test_a_source_is_scanned_file_by_file(demo_dir):  # noqa: F811
    source = ClipSource.open(demo_dir).split("val")
    report = scan_media(source, cache=False)
    assert len(report.files) == 8 and not report.unusable


def test_cache_by_size_and_time(tmp_path, monkeypatch):
    import avfast.data.scan as scan

    plain_clip(tmp_path / "a.mp4")
    plain_clip(tmp_path / "b.mp4", sound=False)
    first = scan_media(tmp_path)
    assert first.cached == 0
    looked = []
    monkeypatch.setattr(scan, "scan_file", lambda p, *rest: looked.append(p.name) or scan_file(p, *rest))
    second = scan_media(tmp_path)
    assert looked == [] and second.cached == 2 and second.files == first.files
    plain_clip(tmp_path / "b.mp4")
    third = scan_media(tmp_path)
    assert looked == ["b.mp4"] and third.cached == 1 and not third.unusable
    assert scan_media(tmp_path, min_duration=5.0).counts == {"too-short": 2}


@pytest.mark.parametrize("seed", range(3))
def test_garbage_never_crashes(tmp_path, seed):
    """Random bytes, and good files with bytes changed or cut anywhere: always a report."""
    rng = np.random.default_rng(seed)
    good = bytearray(plain_clip(tmp_path / "good.mp4").read_bytes())
    webm = bytearray(plain_clip(tmp_path / "good.mkv").read_bytes())
    for i in range(12):
        (tmp_path / f"noise{i}.avi").write_bytes(rng.bytes(int(rng.integers(0, 4000))))
        for name, data in (("mp4", good), ("mkv", webm)):
            bad = bytearray(data)
            for at in rng.integers(0, len(bad), int(rng.integers(1, 60))):
                bad[at] = rng.integers(256)
            (tmp_path / f"bad{i}.{name}").write_bytes(bad[: int(rng.integers(1, len(bad) + 1))])
    report = scan_media(tmp_path, workers=2, cache=False)
    assert len(report.files) == 38
    good_ones = [f for f in report.files if f.path in ("good.mp4", "good.mkv")]
    assert len(good_ones) == 2 and all(f.usable and not f.problems for f in good_ones)
    assert all(not f.usable for f in report.files if f.path.startswith("noise"))
    str(report), json.dumps(report.to_dict())


def test_interrupted_downloads_are_truncated(tmp_path):
    whole = plain_clip(tmp_path / "x.mp4", seconds=4.0, options={"movflags": "faststart"}).read_bytes()
    (tmp_path / "x.mp4").write_bytes(whole[: len(whole) * 6 // 10])
    assert "truncated" in scan_file(tmp_path / "x.mp4").problems


def test_a_small_moving_thing_is_not_still(tmp_path):
    """A talking head moves a little of the picture; that is not a still."""
    from avfast.data.demo.encode import write_clip

    frames = np.full((24, 96, 96, 3), 120, np.uint8)
    for i in range(24):
        frames[i, 40:48, 44:54] = 60 + 8 * (i % 12)
    tone = (0.2 * np.sin(np.arange(32000) * 0.2)).astype(np.float32)
    write_clip(tmp_path / "head.mp4", frames, 12, tone, 16000)
    assert scan_file(tmp_path / "head.mp4").problems == ()


def test_bad_folders(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        scan_media(tmp_path / "absent")
    with pytest.raises(DataError, match="holds no media files"):
        scan_media(tmp_path)


def test_command_exit_status_and_json(demo_dir, tmp_path, capsys):  # noqa: F811
    shutil.copytree(demo_dir / "faults", tmp_path / "bad")
    assert media_scan_command(tmp_path / "bad", json_path=tmp_path / "out" / "scan.json") == 1
    assert "muted" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "scan.json").read_text())["usable"] == 1
    plain_clip(tmp_path / "good.mp4")
    shutil.rmtree(tmp_path / "bad")
    assert media_scan_command(tmp_path) == 0
    assert "1 of 1 files usable" in capsys.readouterr().out
