"""200 damaged files through every reader, in a process of its own: a result or an error that names the file."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("av", reason="reading media needs PyAV")
pytest.importorskip("PIL", reason="reading pictures needs Pillow")

from avfast.benches.soak import fuzz_media, mutations  # noqa: E402
from avfast.data.media import read_all  # noqa: E402
from avfast.data.scan import scan_file  # noqa: E402


def test_damaged_files_never_crash_hang_or_swell():
    (row,) = fuzz_media.check(fuzz_media.SMALL, 0, print)
    assert not row.failures and not row.missing
    assert row.times == 200 and row.numbers["read"] > 200 and row.numbers["refused"] > 200  # both are exercised


def test_a_crash_and_a_hang_are_put_down_to_their_file(monkeypatch):
    """The check can fail: its child dies at one file and hangs at another, and the rest is still read."""
    child = fuzz_media._child

    def damaged(folder, seed, first, size):
        for line in child(folder, seed, first, size):
            if line.get("file") in (3, 5):
                yield {"ended": "the process died of signal 11"}
                return
            yield line

    monkeypatch.setattr(fuzz_media, "_child", damaged)
    (row,) = fuzz_media.check(8, 1, print)
    assert [text.split(" (")[0] for text in row.failures] == ["seed 1 file 3", "seed 1 file 5"]
    assert row.numbers["processes"] == 3


def test_a_child_that_dies_says_how(monkeypatch, tmp_path):
    """A folder without originals: the child ends with an error of its own."""
    (line,) = fuzz_media._child(str(tmp_path), 0, 0, 1)
    assert line == {"ended": "the process ended with 1"}


def test_mutations_are_the_same_every_time(tmp_path):
    files = mutations.write_originals(tmp_path)
    assert [f.name for f in files] == sorted(f.name for f in files) and len(files) == 8
    first = [mutations.mutated(files, 4, i) for i in range(64)]
    assert first == [mutations.mutated(files, 4, i) for i in range(64)]
    used = {name for what, _ in first for name in what.split(": ")[1].split(", ")}
    assert len(used) > 7 and first != [mutations.mutated(files, 5, i) for i in range(64)]


@pytest.mark.parametrize("channels", [9, 12, 64])
def test_sound_of_more_channels_than_planes(tmp_path, channels):
    """Once a crash: PyAV reads eight planes of a frame and takes the others from where there are none."""
    path = tmp_path / "many.wav"
    tone = np.repeat((1000 * np.sin(np.arange(4000) / 9)).astype("<i2")[:, None], channels, axis=1)
    path.write_bytes(mutations.wav(tone, kind=1, channels=channels))
    decoded = read_all(path, size=32, sample_rate=8000, pictures=False)
    expected = tone[:, 0] / 32768
    assert np.abs(decoded.waveform.numpy() - expected).max() < 1e-4
    assert "unreadable" not in scan_file(path).problems
