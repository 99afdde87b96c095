"""Samples that depend on keys only, and an honest account of broken files."""

from __future__ import annotations

import shutil
from collections import Counter

import pytest
import torch
from data_fixtures import demo_dir, plain_clip  # noqa: F401

pytest.importorskip("av", reason="reading media needs PyAV")

from avfast.data import ClipDataset, ClipSource, EpochSampler, build_loader  # noqa: E402
from avfast.errors import DataError  # noqa: E402

SETTINGS = {"frames": 3, "size": 32, "duration": 1.0, "sample_rate": 16000, "seed": 5}


@pytest.fixture(scope="module")
def source(demo_dir):  # noqa: F811
    return ClipSource.open(demo_dir)


@pytest.fixture(scope="module")
def broken_source(demo_dir, tmp_path_factory):  # noqa: F811
    """Eight good files, and four that fail for four reasons."""
    root = tmp_path_factory.mktemp("broken")
    for path in sorted((demo_dir / "clips").iterdir())[:8]:
        shutil.copy(path, root)
    for name in ("truncated", "no_audio", "short"):
        shutil.copy(demo_dir / "faults" / f"{name}.mp4", root)
    (root / "garbage.mp4").write_bytes(b"\x00\x01garbage" * 300)
    return ClipSource.open(root)


CAUSES = {"unreadable": 2, "no-audio": 1, "too-short": 1}


def batches(dataset, *, workers=0, epochs=1, batch_size=4, **options):
    sampler = EpochSampler(len(dataset), seed=5, batch_size=batch_size, **options)
    loader = build_loader(dataset, sampler, workers=workers)
    return [batch for _ in range(epochs) for batch in loader]


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x["id"] == y["id"] and x["errors"] == y["errors"]
        for key in ("frames", "waveform", "label", "index"):
            assert torch.equal(x[key], y[key]), key


def test_batch_layout(source):
    batch = batches(ClipDataset(source, train=True, **SETTINGS))[0]
    assert batch["frames"].shape == (4, 3, 3, 32, 32) and batch["frames"].dtype == torch.uint8
    assert batch["waveform"].shape == (4, 16000) and batch["waveform"].dtype == torch.float32
    assert batch["errors"] == []
    for row in range(4):
        record = source.records[int(batch["index"][row])]
        assert batch["id"][row] == record.id
        assert source.classes[int(batch["label"][row])] == record.label


@pytest.mark.parametrize("cache", [None, "memory"])
def test_workers_do_not_change_anything(source, cache):
    dataset = ClipDataset(source, train=True, cache=cache, **SETTINGS)
    assert_same(batches(dataset, epochs=2), batches(dataset, workers=2, epochs=2))


def test_samples_depend_on_seed_epoch_and_id_only(source):
    dataset = ClipDataset(source, train=True, **SETTINGS)
    whole = batches(dataset, epochs=2)
    per_epoch = len(whole) // 2
    sampler = EpochSampler(len(dataset), seed=5, batch_size=4)
    sampler.set_position(1, 2)
    assert_same(list(build_loader(dataset, sampler)), whole[per_epoch + 2 :])

    a, b = dataset[0, 3], dataset[1, 3]
    assert not torch.equal(a["frames"], b["frames"]) and not torch.equal(a["waveform"], b["waveform"])
    other = ClipDataset(source, train=True, **(SETTINGS | {"seed": 6}))[0, 3]
    assert not torch.equal(a["frames"], other["frames"])
    # The id, not the position in the list, is the key: a sample is the same in another order.
    reversed_source = ClipSource(source.root, source.records[::-1], source.classes)
    same = ClipDataset(reversed_source, train=True, **SETTINGS)[0, len(source) - 4]
    assert torch.equal(a["frames"], same["frames"]) and torch.equal(a["waveform"], same["waveform"])


def test_memory_cache_gives_the_same_clips(source):
    plain = ClipDataset(source, train=True, **SETTINGS)
    cached = ClipDataset(source, train=True, cache="memory", **SETTINGS)
    cached.preload()
    assert_same(batches(plain), batches(cached))


def test_evaluation_is_the_middle_and_never_random(source):
    dataset = ClipDataset(source, train=False, **SETTINGS)
    assert torch.equal(dataset[0, 2]["frames"], dataset[9, 2]["frames"])
    from avfast.data import read_clip

    ask = {k: SETTINGS[k] for k in ("frames", "size", "duration", "sample_rate")}
    clip = read_clip(source.records[2].path, start=None, **ask)
    assert clip.start == pytest.approx(0.5, abs=0.01)
    assert torch.equal(dataset[0, 2]["frames"], clip.frames)
    assert torch.equal(dataset[0, 2]["waveform"], clip.waveform)


def test_augmentation_is_one_for_all_frames(tmp_path):
    """On a still picture every frame of a training clip must be the same; over epochs they must differ."""
    import numpy as np

    from avfast.data.demo.encode import write_clip

    picture = np.random.default_rng(0).integers(0, 255, (1, 12, 12, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    write_clip(tmp_path / "still.mp4", picture.repeat(24, 0), 12, np.ones(32000, np.float32) * 0.1, 16000)
    dataset = ClipDataset(ClipSource.open(tmp_path), train=True, **(SETTINGS | {"frames": 6}))
    clips = [dataset[epoch, 0]["frames"].float() for epoch in range(6)]
    for clip in clips:
        assert (clip - clip[:1]).abs().mean() < 4  # coding noise
        assert clip.std() > 20
    assert min((a - b).abs().mean() for i, a in enumerate(clips) for b in clips[:i]) > 10
    fixed = ClipDataset(dataset.source, train=True, crop_scale=(1, 1), flip=0.0, **SETTINGS)
    middle = ClipDataset(dataset.source, train=False, **SETTINGS)
    assert (fixed[0, 0]["frames"].float() - middle[0, 0]["frames"].float()).abs().mean() < 4


def test_flip_probability(source):
    ask = SETTINGS | {"frames": 1, "duration": 2.0}
    plain = ClipDataset(source, train=True, crop_scale=(1, 1), flip=0.0, cache="memory", **ask)
    half = ClipDataset(source, train=True, crop_scale=(1, 1), flip=0.5, cache="memory", **ask)
    flipped = 0
    for epoch in range(40):
        a, b = plain[epoch, 0]["frames"], half[epoch, 0]["frames"]
        assert torch.equal(a, b) or torch.equal(a.flip(-1), b)
        flipped += not torch.equal(a, b)
    assert 8 <= flipped <= 32


@pytest.mark.parametrize("workers", [0, 1])
def test_raise_names_the_file_in_one_line(broken_source, workers):
    dataset = ClipDataset(broken_source, train=False, **SETTINGS)
    with pytest.raises(DataError) as caught:
        batches(dataset, workers=workers, shuffle=False)
    message = str(caught.value)
    bad = {r.path.name for r in broken_source.records[8:]}
    assert any(name in message for name in bad)
    assert "on_error" in message and "Traceback" not in message and "\n" not in message


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache", [None, "memory"])
def test_skip_leaves_out_and_counts(broken_source, workers, cache):
    dataset = ClipDataset(broken_source, train=True, on_error="skip", cache=cache, **SETTINGS)
    result = batches(dataset, workers=workers, batch_size=6)
    errors = [e for batch in result for e in batch["errors"]]
    assert Counter(e["cause"] for e in errors) == CAUSES
    assert {e["policy"] for e in errors} == {"skip"}
    seen = torch.cat([batch["index"] for batch in result]).tolist()
    assert sorted(seen + [e["index"] for e in errors]) == list(range(12))
    assert all(len(b["frames"]) == len(b["waveform"]) == len(b["id"]) == len(b["label"]) for b in result)


@pytest.mark.parametrize("workers", [0, 2])
def test_resample_fills_with_real_clips(broken_source, workers):
    dataset = ClipDataset(broken_source, train=True, on_error="resample", **SETTINGS)
    result = batches(dataset, workers=workers)
    errors = [e for batch in result for e in batch["errors"]]
    causes = Counter(e["cause"] for e in errors)
    assert all(causes[cause] >= count for cause, count in CAUSES.items())  # a drawn clip may be broken, too
    assert {e["path"] for e in errors} == {str(r.path) for r in broken_source.records if r.path.name in BAD}
    for batch in result:
        assert len(batch["frames"]) == 4
        for row in range(4):
            assert batch["id"][row] == broken_source.records[int(batch["index"][row])].id
            assert batch["frames"][row].float().std() > 1 and batch["waveform"][row].std() > 1e-3
    assert_same(result, batches(dataset, workers=0))


BAD = {"truncated.mp4", "no_audio.mp4", "short.mp4", "garbage.mp4"}


def test_nothing_usable_is_an_error_with_every_policy(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.mp4").write_bytes(b"garbage %d" % i)
    source = ClipSource.open(tmp_path)
    for policy, message in (("skip", "none of the 4 clips of a batch"), ("resample", "clips in a row")):
        with pytest.raises(DataError, match=message):
            batches(ClipDataset(source, train=True, on_error=policy, **SETTINGS))


def test_a_deleted_file_is_reported_as_missing(tmp_path):
    for i in range(4):
        plain_clip(tmp_path / f"{i}.mp4", level=20 * i)
    source = ClipSource.open(tmp_path)
    (tmp_path / "2.mp4").unlink()
    batch = batches(ClipDataset(source, train=False, on_error="skip", **SETTINGS))[0]
    assert [e["cause"] for e in batch["errors"]] == ["missing"] and len(batch["id"]) == 3


def test_leaving_an_epoch_early_with_workers(source):
    """What workers had prepared ahead of the break must not turn up in the next epoch."""
    dataset = ClipDataset(source, train=True, **SETTINGS)
    expected = batches(dataset, epochs=2)
    sampler = EpochSampler(len(dataset), seed=5, batch_size=4)
    loader = build_loader(dataset, sampler, workers=1)
    for step, batch in enumerate(loader):
        assert batch["id"] == expected[step]["id"]
        if step == 1:
            break
    sampler.set_position(1, 0)
    assert_same(list(loader), expected[len(expected) // 2 :])
    assert sampler.state_dict() == {"epoch": 2, "step": 0}


def test_bad_arguments(source):
    with pytest.raises(TypeError, match="epoch, index"):
        ClipDataset(source, train=True, **SETTINGS)[3]
    for change, message in (
        ({"on_error": "ignore"}, "on_error"),
        ({"cache": "disk"}, "cache"),
        ({"frames": -1}, "positive"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
    ):
        with pytest.raises(ValueError, match=message):
            ClipDataset(source, train=True, **(SETTINGS | change))
    with pytest.raises(ValueError, match="sampler"):
        build_loader(ClipDataset(source, train=True, **SETTINGS), EpochSampler(3, seed=0, batch_size=1))
