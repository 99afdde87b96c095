"""``avfast pretrain --recipe densecl``: from scenes to a report and a plain ResNet; folders nobody should train on."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_fixtures import real_clips, real_scenes
from report_fixtures import rebuilds_itself

for library in ("PIL", "av", "sklearn", "kornia", "accelerate", "jsonargparse", "transformers", "safetensors"):
    pytest.importorskip(library, reason=f"{library} is not installed")

from PIL import Image  # noqa: E402

from avfast.cli import main  # noqa: E402
from avfast.data.demo import make_scenes  # noqa: E402
from avfast.engine.build import build_method  # noqa: E402
from avfast.engine.checkpoint import load_checkpoint  # noqa: E402
from avfast.engine.config import parse_config  # noqa: E402

TINY = ("size=32", "queue=32", "dim=16", "batch_size=8", "group_size=4", "eval_every=4", "log_every=2")

pytestmark = pytest.mark.usefixtures("one_thread")


def pretrain(data, out, *words) -> int:
    command = ["pretrain", "--recipe", "densecl", "--data", str(data), "--out", str(out), "--device", "cpu"]
    return main([*command, *TINY, *words])


def shortly(data, out, *words) -> int:
    return pretrain(data, out, "steps=2", "batch_size=4", "group_size=2", "control=false", *words)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One complete run with its control."""
    out = tmp_path_factory.mktemp("densecl")
    assert pretrain(real_scenes(), out, "steps=8") == 0
    return out


# ------------------------------------------------------------------------------------------- a run and its report


def test_the_report_comes_back_from_the_folder_alone(trained, tmp_path, monkeypatch):
    rebuilds_itself(trained, tmp_path / "copy", monkeypatch)


def test_every_model_is_scored_in_every_metric(trained):
    scores = json.loads((trained / "results.json").read_text())["scores"]
    assert set(scores) == {"trained", "untrained", "shuffled"}
    for name in ("mIoU", "pixel accuracy", "kNN image", "linear probe image"):
        values = [scores[model][name] for model in scores]
        assert all(0 <= score["value"] <= 1 and score["n"] == 8 for score in values), name
        assert len({score["chance"] for score in values}) == 1
    control = [json.loads(line) for line in open(trained / "control" / "metrics.jsonl")]
    mine = [json.loads(line) for line in open(trained / "metrics.jsonl")]
    assert [r["step"] for r in mine] == [r["step"] for r in control] == [2, 4, 4, 6, 8, 8]
    assert mine[0]["loss"] != control[0]["loss"] and mine[-2]["samples_per_s"] > 0
    assert mine[-2]["queue_fill"] == 1.0  # 64 keys for 32 places


def test_the_report_speaks_of_images(trained):
    text = (trained / "report.md").read_text()
    assert text.startswith("demo data: ")
    for words in (
        "| mIoU ", "| kNN image ", "images/s", "28 train, 4 val, 8 test", "second view cut from another image",
        "images that could not be read: 0 files", "adamw, learning rate 0.002", "match agreement is",
    ):  # fmt: skip
        assert words in text, words
    for words in ("clip", "sound", "media-scan", "R@1"):
        assert words not in text.split("## How it was run")[0], words
    listed = [line[3:-1] for line in text.split("## Files")[1].splitlines() if line.startswith("- `")]
    assert {"figures/correspondence.png", "curves.png", "export/encoder/model.safetensors"} <= set(listed)
    assert all((trained / name).is_file() for name in listed)
    for name in ("figures/correspondence.png", "curves.png"):
        pixels = np.asarray(Image.open(trained / name).convert("L"), dtype=float)
        assert min(pixels.shape) > 300 and pixels.std() > 5, name
        assert f"]({name})" in text


def test_the_export_is_a_plain_resnet_with_its_input_described(trained):
    from transformers import AutoModel

    plain = AutoModel.from_pretrained(trained / "export" / "encoder", local_files_only=True).eval()
    assert type(plain).__name__ == "ResNetModel"
    method = build_method(parse_config("densecl", TINY)).eval()
    method.load_state_dict(load_checkpoint(trained / "checkpoints" / "best.pt")["model"])
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(plain(x).last_hidden_state, method.dense_features({"image": x}))
    card = json.loads((trained / "export" / "avfast.json").read_text())
    assert card["inputs"]["size"] == 32 and card["frame_mean"] == [0.485, 0.456, 0.406]
    assert card["modules"] == ["encoder", "neck"]


@pytest.mark.usefixtures("no_pictures")
def test_demo_scenes_are_made_beside_the_run_and_not_in_a_dry_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("avfast.data.demo.make_scenes", functools.partial(make_scenes, images=40, size=32))
    out = tmp_path / "out"
    assert shortly("demo", out, "--dry-run", "--preset", "coco-800", "encoder=resnet-small16", "epochs=0") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("demo data: ") and not out.exists()
    # The paper's rate is for 256 images per step.
    assert "sgd, learning rate 0.0046875 (0.3 for 256 images per step, scaled to 4), cosine-epoch" in printed
    assert shortly("demo", out, "--budget", "20s") == 0
    assert len(list((out / "demo-scenes" / "images").iterdir())) == 40
    assert "demo-scenes" not in (out / "report.md").read_text().split("## Files")[1]


def test_help_says_that_images_are_welcome(capsys):
    with pytest.raises(SystemExit):
        main(["pretrain", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "a folder of clips or of images" in text and "clips or images, whichever the recipe needs" in text


# ------------------------------------------------------------------------------------------- folders as they come


def picture(path: Path, *, mode: str = "RGB", size: tuple[int, int] = (40, 40), seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, *path.name.encode()])
    if mode == "I;16":
        Image.fromarray(rng.integers(0, 65536, size).astype(np.uint16)).save(path)
    else:
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).convert(mode).save(path)


def folder_of(path: Path, count: int) -> Path:
    for number in range(count):
        picture(path / f"{number}.png")
    return path


@pytest.mark.usefixtures("no_pictures")
def test_odd_pictures_are_trained_on_and_broken_ones_named(tmp_path, capsys):
    folder = folder_of(tmp_path / "mixed", 12)
    for mode in ("RGBA", "L", "LA", "P", "I;16"):
        picture(folder / f"{mode.replace(';', '')}.png", mode=mode)
    picture(folder / "dot.png", size=(1, 1))
    picture(folder / "line.png", size=(1, 300))
    (folder / "text.jpg").write_text("not a picture")
    (folder / "zero.png").write_bytes(b"")
    picture(folder / "torn.jpg", size=(90, 90))
    (folder / "torn.jpg").write_bytes((folder / "torn.jpg").read_bytes()[:2000])
    (folder / "link.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "folder.png").mkdir()
    out = tmp_path / "out"
    assert shortly(folder, out, "epochs=1") == 0
    printed, text = capsys.readouterr().out, (out / "report.md").read_text()
    counted = next(line for line in printed.splitlines() if line.startswith("images "))
    numbers = [int(part.split()[0]) for part in counted.removeprefix("images").split(";")[0].split(",")]
    assert sum(numbers) == 22 and "no labels" in counted  # neither the dangling link nor the folder
    assert "images that could not be read: 3 files" in text
    for line in ("text.jpg: broken", "zero.png: empty", "torn.jpg: broken"):
        assert line in text
    for line in ("mIoU: not available (the data have no masks)", "kNN image: not available (needs labels)"):
        assert line in printed
    capsys.readouterr()
    assert shortly(folder, tmp_path / "strict", "epochs=1", "on_error=raise") == 2
    assert "on_error='skip' or 'resample' goes on without it" in capsys.readouterr().err


def refused(capsys, data, out, *words) -> str:
    assert shortly(data, out, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "media-scan" not in error
    return error


def test_folders_that_cannot_be_trained_on_are_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "empty: holds no pictures; looked for .jpg" in refused(capsys, tmp_path / "empty", tmp_path / "out")
    one = folder_of(tmp_path / "one", 1)
    assert "training needs at least 2 images in the split 'train'" in refused(capsys, one, tmp_path / "out")
    few = folder_of(tmp_path / "few", 9)
    assert "images, fewer than one batch of 64" in refused(capsys, few, tmp_path / "out", "batch_size=64")
    assert not (tmp_path / "out").exists()


def test_files_that_are_all_broken_are_refused_with_an_example(tmp_path, capsys):
    folder = tmp_path / "broken"
    folder.mkdir()
    for number in range(24):
        (folder / f"{number}.jpg").write_text(f"nothing {number}")
    error = refused(capsys, folder, tmp_path / "out")
    assert "no step of this interval had two readable images (" in error and ".jpg: broken); remove the broken" in error


def test_the_other_kind_of_data_is_refused_before_anything_is_trained(tmp_path, capsys):
    error = refused(capsys, real_clips(), tmp_path / "out")
    assert "the recipe needs images, and there are only files such as" in error and ".mp4" in error
    command = ["pretrain", "--recipe", "av-align", "--data", str(real_scenes()), "--out", str(tmp_path / "out")]
    assert main([*command, "--device", "cpu"]) == 2
    assert "the recipe needs clips, and there are only files such as" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_pictures")
def test_copies_of_one_picture_train_and_leave_nothing_to_score(tmp_path, capsys):
    picture(tmp_path / "same" / "0.png")
    for number in range(1, 8):
        shutil.copy(tmp_path / "same" / "0.png", tmp_path / "same" / f"{number}.png")
    assert shortly(tmp_path / "same", tmp_path / "out", "steps=4") == 0
    printed = capsys.readouterr().out
    assert "no test split: segmentation and probes are not available" in printed
    # When it begins, and once more at the end; not at every line.
    assert printed.count("image embeddings nearly identical") == 2
    assert "mIoU: not available (no test split)" in printed
