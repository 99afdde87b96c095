"""The demonstration set: what it holds, that it is honest, and that it does not harm other files."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data_fixtures import CLIPS, demo_dir  # noqa: F401

av = pytest.importorskip("av", reason="making media needs PyAV")

from avfast.data import ClipSource, probe  # noqa: E402
from avfast.data.commands import demo_data_command  # noqa: E402
from avfast.data.demo import honesty_line, make_demo_clips  # noqa: E402
from avfast.data.demo.clips import _split, content_hash  # noqa: E402
from avfast.data.demo.modelled import MODELS, RATE  # noqa: E402
from avfast.data.demo.photos import SHIPPED, shipped_photos  # noqa: E402
from avfast.data.demo.sounds import choose_sounds, folder_sounds, synthetic_sounds  # noqa: E402
from avfast.data.identity import file_sha256  # noqa: E402
from avfast.data.media import read_all  # noqa: E402
from avfast.errors import DataError  # noqa: E402


@pytest.fixture(scope="module")
def manifest(demo_dir):  # noqa: F811
    return json.loads((demo_dir / "manifest.json").read_text())


def test_files_are_as_promised(demo_dir, manifest):  # noqa: F811
    assert len(manifest["clips"]) == CLIPS
    for clip in manifest["clips"]:
        info = probe(demo_dir / clip["path"])
        assert (info.width, info.height, info.fps, info.n_frames) == (96, 96, 12.0, 24)
        assert (info.video_codec, info.audio_codec, info.sample_rate) == ("h264", "aac", 16000)
        assert info.duration == pytest.approx(2.0, abs=0.01)
    assert len({clip["content"] for clip in manifest["clips"]}) == CLIPS


def test_manifest_credits_and_hashes(demo_dir, manifest):  # noqa: F811
    for clip in manifest["clips"]:
        assert clip["sha256"] == file_sha256(demo_dir / clip["path"])
        for part in ("photo", "sound"):
            assert all(clip[part][field] for field in ("name", "source", "licence", "author"))
        assert clip["sound"]["kind"] in ("recording", "synthetic")
        assert len(clip["crop_path"]) == 24 and clip["seed"][0] == manifest["recipe"]["seed"]
    assert manifest["clips"][5]["content"] == content_hash(demo_dir / manifest["clips"][5]["path"])


def test_a_class_is_one_picture_and_one_sound(demo_dir, manifest):  # noqa: F811
    pairs = {(c["label"], c["photo"]["name"], c["sound"]["name"]) for c in manifest["clips"]}
    assert len(pairs) == len({p[0] for p in pairs}) == len({p[1] for p in pairs}) == len({p[2] for p in pairs}) == 8
    source = ClipSource.open(demo_dir)
    assert source.splits == {"train": 8, "val": 8, "test": 8}
    for split in ("train", "val", "test"):
        assert set(source.split(split).labels) == set(range(8))


def test_split_of_the_full_set():
    splits = Counter(_split(take, 10) for take in range(10))
    assert splits == {"train": 7, "val": 1, "test": 2}  # of 160 clips, 32 are for testing


def test_pictures_zoom_in_with_loudness(demo_dir, manifest):  # noqa: F811
    correlations = []
    for clip in manifest["clips"]:
        wave = read_all(demo_dir / clip["path"], size=96, sample_rate=RATE).waveform.numpy()[: 2 * RATE]
        parts = np.array_split(wave, 24)
        loudness = np.sqrt([np.mean(p**2) for p in parts])
        correlations.append(np.corrcoef(loudness, [side for *_, side in clip["crop_path"]])[0, 1])
    assert np.median(correlations) < -0.8 and max(correlations) < -0.4


def test_same_arguments_keep_the_set_and_others_replace_it(tmp_path):
    calls = []
    first = make_demo_clips(tmp_path, clips=6, seed=1, progress=lambda *a: calls.append(a))
    assert calls[-1] == (6, 6)
    (tmp_path / "clips" / "mine.txt").write_text("keep me")
    calls.clear()
    assert make_demo_clips(tmp_path, clips=6, seed=1, progress=lambda *a: calls.append(a)) == first
    assert calls == []
    (tmp_path / first["clips"][2]["path"]).write_bytes(b"damaged")
    again = make_demo_clips(tmp_path, clips=6, seed=1)
    assert [c["content"] for c in again["clips"]] == [c["content"] for c in first["clips"]]
    other = make_demo_clips(tmp_path, clips=7, seed=2)
    assert len(list((tmp_path / "clips").glob("*.mp4"))) == 7
    assert not {c["content"] for c in other["clips"]} & {c["content"] for c in first["clips"]}
    assert (tmp_path / "clips" / "mine.txt").read_text() == "keep me"


def test_another_programs_manifest_is_not_overwritten(tmp_path):
    (tmp_path / "manifest.json").write_text('{"clips": []}')
    with pytest.raises(DataError, match="not written by avfast demo-data"):
        make_demo_clips(tmp_path, clips=6)
    assert (tmp_path / "manifest.json").read_text() == '{"clips": []}'
    with pytest.raises(DataError, match="at least 6"):
        make_demo_clips(tmp_path / "x", clips=3)


def test_a_tampered_manifest_deletes_nothing_outside(tmp_path):
    root = tmp_path / "set"
    manifest = make_demo_clips(root, clips=6, seed=1)
    victim = tmp_path / "precious.mp4"
    victim.write_bytes(b"x")
    manifest["clips"][0]["path"] = "clips/../../precious.mp4"
    manifest["clips"][1]["path"] = str(victim)
    (root / "manifest.json").write_text(json.dumps(manifest))
    make_demo_clips(root, clips=6, seed=2)
    assert victim.exists()


def test_honesty_line():
    synthetic = honesty_line({"media": {"photos": 16, "recordings": 0, "synthetic": 16}})
    mixed = honesty_line({"media": {"photos": 16, "recordings": 10, "synthetic": 6}})
    real = honesty_line({"media": {"photos": 16, "recordings": 16, "synthetic": 0}})
    assert "SYNTHETIC sounds (16 of 16)" in synthetic and "SYNTHETIC sounds (6 of 16)" in mixed
    assert "real recordings" in real and "SYNTHETIC" not in real
    assert all("pairing and motion artificial" in line for line in (synthetic, mixed, real))
    assert honesty_line(None) == honesty_line({"clips": []}) == "media as given by the user"


def test_shipped_photographs_are_credited():
    photos = shipped_photos()
    assert len(photos) == 16 == len({p.name for p in photos})
    files = {p.name for p in SHIPPED.glob("*.jpg")}
    assert files == {f"{p.name}.jpg" for p in photos}
    assert sum(p.stat().st_size for p in SHIPPED.glob("*.jpg")) < 400_000
    text = (SHIPPED.parent / "LICENSES.md").read_text()
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines(), delimiter="|") if len(row) > 6]
    credits = {row[1]: row for row in rows}
    for photo in photos:
        assert photo.licence in ("CC0-1.0", "public domain")
        _, _, title, author, licence, source, *_ = credits[f"{photo.name}.jpg"]
        assert (title, author, licence, source) == (photo.title, photo.author, photo.licence, photo.source)
        assert min(photo.image.shape[1:]) == 200 and photo.image.std() > 5


def test_modelled_sounds_are_sixteen_different_ones():
    sounds = synthetic_sounds(seed=0)
    assert len(sounds) == 16 == len({s.name for s in sounds}) == len(MODELS)
    assert {s.kind for s in sounds} == {"synthetic"}
    spectra = []
    for sound in sounds:
        assert sound.waveform.dtype == np.float32 and np.isfinite(sound.waveform).all()
        assert np.abs(sound.waveform).max() == pytest.approx(1)
        # Loudness must vary, or there is no synchrony to learn.
        power = np.square(sound.waveform).reshape(-1, RATE // 8).mean(1)
        assert power.std() / power.mean() > 0.15, sound.name
        spectrum = np.abs(np.fft.rfft(sound.waveform)) ** 2
        bands = np.add.reduceat(spectrum, np.geomspace(200, len(spectrum) - 1, 40).astype(int))
        spectra.append(np.log(bands / bands.sum() + 1e-6))
    distance = [np.abs(a - b).mean() for i, a in enumerate(spectra) for b in spectra[:i]]
    assert min(distance) > 0.3
    assert not np.array_equal(synthetic_sounds(seed=1)[0].waveform, sounds[0].waveform)
    assert np.array_equal(synthetic_sounds(seed=0)[4].waveform, sounds[4].waveform)


def write_wav(path: Path, wave: np.ndarray, rate: int = 22050) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray((wave * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_user_recordings_are_used_once_each_and_filled_up(tmp_path):
    rng = np.random.default_rng(0)
    same = rng.uniform(-0.5, 0.5, 22050)
    write_wav(tmp_path / "a.wav", same)
    write_wav(tmp_path / "b.wav", same)  # a copy under another name
    write_wav(tmp_path / "c.wav", rng.uniform(-0.5, 0.5, 22050))
    write_wav(tmp_path / "silent.wav", np.zeros(22050))
    write_wav(tmp_path / "tiny.wav", rng.uniform(-0.5, 0.5, 300))
    (tmp_path / "broken.wav").write_bytes(b"RIFF nothing")
    assert [s.name for s in folder_sounds(tmp_path, "me", "mine")] == ["a", "c"]
    sounds, notes = choose_sounds(4, seed=0, folder=tmp_path)
    assert [s.kind for s in sounds] == ["recording", "recording", "synthetic", "synthetic"]
    assert "2 distinct recordings" in notes[0]
    manifest = make_demo_clips(tmp_path / "set", clips=9, sounds=tmp_path)
    assert manifest["media"] == {"photos": 3, "recordings": 2, "synthetic": 1}
    with pytest.raises(DataError, match="no recordings found"):
        choose_sounds(4, seed=0, folder=tmp_path / "set")


def test_user_photographs(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    for name in ("brick.jpg", "cat.jpg"):
        os.symlink(SHIPPED / name, tmp_path / name)
    manifest = make_demo_clips(tmp_path / "set", clips=6, photos=tmp_path)
    assert {c["photo"]["name"] for c in manifest["clips"]} == {"brick", "cat"}
    with pytest.raises(DataError, match="3 pictures are needed, 2 can be read"):
        make_demo_clips(tmp_path / "other", clips=9, photos=tmp_path)


def test_command_says_what_the_data_are(tmp_path, capsys):
    assert demo_data_command(tmp_path, clips=6) == 0
    out = capsys.readouterr().out.splitlines()
    assert "pairing and motion artificial" in out[0]
    assert any("6 clips" in line for line in out) and str(tmp_path / "manifest.json") in out[-1]


def test_labelled_clips_are_told_by_ear_or_by_eye(tmp_path):
    from avfast.data.demo import honesty_line, make_labelled_clips
    from avfast.data.demo.labelled import KINDS, WRONG_PHOTO, WRONG_SOUND, with_noise

    manifest = make_labelled_clips(tmp_path / "a", clips=48, seed=1)
    again = make_labelled_clips(tmp_path / "b", clips=48, seed=1)
    assert [c["content"] for c in manifest["clips"]] == [c["content"] for c in again["clips"]]
    assert make_labelled_clips(tmp_path / "a", clips=48, seed=1) == manifest, "a set that is there is kept"
    assert "noise artificial" in honesty_line(manifest)
    wrong = [c for c in manifest["clips"] if c["label"] != f"{c['photo']['name']}+{c['sound']['name']}"]
    assert 10 < len(wrong) < 40
    assert len({c["label"] for c in manifest["clips"]}) == 16
    with pytest.raises(DataError, match="not written by avfast demo-data; choose another folder"):
        make_demo_clips(tmp_path / "a", clips=48)
    rng = np.random.default_rng(0)
    for label in range(4):
        takes = [with_noise(label, 16, rng) for _ in range(4000)]
        kind = KINDS[label]
        assert abs(np.mean([t.photo != label for t in takes]) - WRONG_PHOTO[kind]) < 0.03
        assert abs(np.mean([t.sound != label for t in takes]) - WRONG_SOUND[kind]) < 0.03


def test_clips_that_cut_away_show_their_photograph_when_the_manifest_says(tmp_path):
    from avfast.data.demo import make_cutaway_clips
    from avfast.data.demo.clips import SECONDS
    from avfast.data.demo.cutaways import SHARE

    manifest = make_cutaway_clips(tmp_path / "a", clips=24, seed=1)
    assert make_cutaway_clips(tmp_path / "a", clips=24, seed=1) == manifest, "a set that is there is kept"
    plain = make_demo_clips(tmp_path / "b", clips=24, seed=1)
    for cut, whole in zip(manifest["clips"], plain["clips"], strict=True):
        start, end = cut["shown"]
        assert end - start == pytest.approx(SHARE * SECONDS, abs=1e-3) and cut["label"] == whole["label"]
        a, b = (read_all(tmp_path / f / c["path"], size=96, sample_rate=16000) for f, c in (("a", cut), ("b", whole)))
        apart = (a.frames.float() - b.frames.float()).abs().mean(dim=(1, 2, 3))
        inside = [i for i, t in enumerate(a.times) if start + 0.09 < t + 0.04 < end - 0.09]
        outside = [i for i, t in enumerate(a.times) if not start - 0.09 < t + 0.04 < end + 0.09]
        assert apart[inside].max() < apart[outside].min(), "the same pictures inside, others outside"
    assert honesty_line(manifest).startswith("demo data: real pictures")
