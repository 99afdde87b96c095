"""Composed scenes: masks that fit, splits that share nothing, the same files from the same seed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from avfast.data.demo.scenes import CLASSES, PARTS, make_scenes
from avfast.data.identity import file_sha256
from avfast.data.image_folder import ImageDataset
from avfast.data.sources import IMAGE_EXTENSIONS, ClipSource
from avfast.errors import DataError

PIL = pytest.importorskip("PIL.Image", reason="the package 'pillow' is not installed")
pytest.importorskip("sklearn", reason="the package 'scikit-learn' is not installed")
pytest.importorskip("av", reason="the package 'av' is not installed")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    return folder, make_scenes(folder, images=40, size=64)


def test_every_scene_has_two_to_four_objects_and_a_label(scenes):
    folder, manifest = scenes
    assert len(manifest["clips"]) == 40
    for clip in manifest["clips"]:
        mask = np.array(PIL.open(folder / clip["mask"]))
        assert mask.shape == (64, 64) and np.array(PIL.open(folder / clip["path"])).shape == (64, 64, 3)
        areas = np.bincount(mask.ravel(), minlength=len(CLASSES))
        assert 1 <= (areas[1:] > 0).sum() <= 4  # one may lie under others
        assert clip["label"] == CLASSES[1 + areas[1:].argmax()]
    seen = {clip["label"] for clip in manifest["clips"]}
    assert len(seen) >= 6


def test_pictures_differ_where_the_mask_says_an_object_is(scenes):
    """The mask is not decoration: without its objects a scene is a smooth photograph."""
    folder, manifest = scenes
    inside, outside = [], []
    for clip in manifest["clips"]:
        picture = np.array(PIL.open(folder / clip["path"])).astype(float)
        mask = np.array(PIL.open(folder / clip["mask"]))
        edge = np.abs(np.diff(picture, axis=1)).sum(2)
        border = np.diff(mask.astype(int), axis=1) != 0
        inside.append(edge[border].mean())
        outside.append(edge[~border].mean())
    assert np.mean(inside) > 1.5 * np.mean(outside)


def test_splits_are_disjoint_parts_of_the_photographs():
    parts = sorted(PARTS.values())
    assert parts[0][0] == 0 and parts[-1][1] == 1
    assert all(a[1] == b[0] for a, b in zip(parts, parts[1:], strict=False))


def test_the_same_seed_gives_the_same_files(scenes, tmp_path):
    folder, manifest = scenes
    again = make_scenes(tmp_path, images=40, size=64)
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(manifest))
    for clip in again["clips"][:5]:
        for key in ("path", "mask"):
            assert file_sha256(tmp_path / clip[key]) == file_sha256(folder / clip[key])


def test_a_set_that_is_there_is_kept_and_a_stranger_is_left_alone(scenes, tmp_path):
    folder, _ = scenes
    before = (folder / "images" / "00000.png").stat().st_mtime_ns
    make_scenes(folder, images=40, size=64)
    assert (folder / "images" / "00000.png").stat().st_mtime_ns == before
    for stranger in ('{"clips": []}', '{"generator": "avfast demo-data", "clips": []}', "no json"):
        (tmp_path / "manifest.json").write_text(stranger)
        with pytest.raises(DataError, match="was not written by avfast demo-data --kind scenes"):
            make_scenes(tmp_path, images=40)


def test_a_smaller_set_leaves_nothing_of_a_larger_one(tmp_path):
    make_scenes(tmp_path, images=14, size=32)
    make_scenes(tmp_path, images=10, size=32)
    assert len(list((tmp_path / "images").iterdir())) == len(list((tmp_path / "masks").iterdir())) == 10


def test_scenes_load_as_a_data_set_with_masks(scenes):
    folder, _ = scenes
    source = ClipSource.open(folder, extensions=IMAGE_EXTENSIONS)
    assert source.splits == {"train": 28, "val": 4, "test": 8}
    data = ImageDataset(source.split("train"), size=48, seed=0, train=True, mask_size=64)
    sample = data[0, 0]
    assert sample["image"].shape == (3, 48, 48) and sample["mask"].shape == (64, 64)
    assert data.has_masks and 0 < int(sample["mask"].max()) < len(CLASSES)


@pytest.mark.parametrize("options", [{"images": 3}, {"size": 8}])
def test_impossible_sets_are_refused(tmp_path, options):
    with pytest.raises(DataError, match="^make_scenes: "):
        make_scenes(tmp_path, **options)
