"""Any folder of pictures becomes samples; what cannot be read is said by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from avfast.data import EpochSampler, build_loader
from avfast.data.image_folder import ImageDataset, PictureError, read_mask, read_picture
from avfast.data.sources import IMAGE_EXTENSIONS, ClipSource
from avfast.errors import DataError

PIL = pytest.importorskip("PIL.Image", reason="the package 'pillow' is not installed")


def save(path, value=128, size=(20, 12), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    PIL.fromarray(np.full((size[1], size[0], *channels), value, np.uint8), mode).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    for label, value in (("dark", 20), ("light", 230)):
        for i in range(4):
            save(tmp_path / label / f"{i}.png", value + i)
    return tmp_path


def source(path):
    return ClipSource.open(path, extensions=IMAGE_EXTENSIONS)


def dataset(path, **options):
    return ImageDataset(source(path), **({"size": 8, "seed": 0, "train": True} | options))


def test_a_folder_of_class_folders(folder):
    data = dataset(folder)
    batch = next(iter(build_loader(data, EpochSampler(len(data), seed=0, batch_size=8, shuffle=False))))
    assert batch["image"].shape == (8, 3, 8, 8) and batch["image"].dtype == torch.uint8
    assert batch["label"].tolist() == [0] * 4 + [1] * 4
    assert data.source.classes == ("dark", "light")
    assert (batch["image"].float().mean((1, 2, 3)) > 128).tolist() == [False] * 4 + [True] * 4
    assert batch["seed"].dtype == torch.int64 and len(set(batch["seed"].tolist())) == 8


def test_seeds_follow_the_epoch_in_training_only(folder):
    train, fixed = dataset(folder), dataset(folder, train=False)
    assert train[0, 1]["seed"] == train[0, 1]["seed"] != train[1, 1]["seed"]
    assert fixed[0, 1]["seed"] == fixed[5, 1]["seed"]


def test_splits_and_fingerprint_are_those_of_clips(folder):
    parts = source(folder).with_splits()
    assert sum(parts.splits.values()) == 8 and set(parts.splits) == {"train", "val", "test"}


def test_the_central_square_is_kept(tmp_path):
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 200
    PIL.fromarray(pixels).save(tmp_path / "wide.png")
    assert (read_picture(tmp_path / "wide.png", 10) == 200).all()


def test_every_kind_of_picture_becomes_rgb(tmp_path):
    save(tmp_path / "gray.png", 77, mode="L")
    save(tmp_path / "alpha.png", 0, mode="RGBA")
    PIL.fromarray(np.full((9, 9), 65535 // 2, np.uint16)).save(tmp_path / "deep.png")
    PIL.fromarray(np.full((9, 9), 3, np.uint8), "P").save(tmp_path / "palette.gif")
    save(tmp_path / "photo.jpg", 90)
    for path in sorted(tmp_path.iterdir()):
        assert read_picture(path, 6).shape == (3, 6, 6)
    assert (read_picture(tmp_path / "gray.png", 6) == 77).all()
    assert (read_picture(tmp_path / "alpha.png", 6) == 255).all(), "transparent pixels lie on white"
    assert abs(int(read_picture(tmp_path / "deep.png", 6)[0, 0, 0]) - 127) <= 1


def test_exif_orientation_is_obeyed(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255
    exif = PIL.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    PIL.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    image = read_picture(tmp_path / "turned.png", 8)
    assert (image[:, :, 4:] == 255).all() and (image[:, :, :4] == 0).all()


@pytest.mark.parametrize(
    "content, cause",
    [(b"", "is empty"), (b"no picture at all", "cannot be read as a picture"), (None, "does not exist")],
)
def test_broken_files_are_named(tmp_path, content, cause):
    path = tmp_path / "broken.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PictureError, match=rf"broken.jpg: {cause}"):
        read_picture(path, 8)


def test_truncated_jpeg_is_named(tmp_path):
    rng = np.random.default_rng(0)
    PIL.fromarray(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:600])
    with pytest.raises(PictureError, match="cannot be read as a picture"):
        read_picture(tmp_path / "a.jpg", 8)


@pytest.mark.parametrize("policy", ["raise", "skip", "resample"])
def test_policies_for_broken_pictures(folder, policy):
    (folder / "dark" / "0.png").write_bytes(b"broken")
    data = dataset(folder, on_error=policy)
    bad = next(i for i, r in enumerate(data.source.records) if r.path.name == "0.png" and r.label == "dark")
    if policy == "raise":
        with pytest.raises(DataError, match="0.png: cannot be read as a picture .* goes on without it"):
            data[0, bad]
        return
    sample = data[0, bad]
    assert sample["errors"] and all(e["path"].endswith("0.png") for e in sample["errors"])
    assert ("image" in sample) == (policy == "resample")


def test_memory_cache_gives_the_same(folder):
    plain, cached = dataset(folder), dataset(folder, cache="memory")
    for _ in range(2):
        assert torch.equal(plain[0, 3]["image"], cached[0, 3]["image"])


def test_a_folder_without_pictures_says_what_it_looked_for(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(DataError, match=r"holds no pictures; looked for \.jpg"):
        source(tmp_path)


def test_masks_are_class_numbers(tmp_path):
    mask = np.zeros((10, 20), np.uint8)
    mask[:, 5:10] = 3
    PIL.fromarray(mask).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png", 10).unique().tolist() == [0, 3]
    save(tmp_path / "colour.png")
    with pytest.raises(PictureError, match="expected one channel of class numbers"):
        read_mask(tmp_path / "colour.png", 10)
