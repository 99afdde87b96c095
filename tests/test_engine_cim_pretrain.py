"""``avfast pretrain --recipe cim``: from pictures to a report with maps and a plain ViT."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from engine_fixtures import real_scenes
from report_fixtures import rebuilds_itself

for library in ("PIL", "av", "sklearn", "accelerate", "jsonargparse", "transformers", "safetensors"):
    pytest.importorskip(library, reason=f"{library} is not installed")

from avfast.cli import main  # noqa: E402
from avfast.engine.journal import comparable  # noqa: E402

TINY = ("encoder=vit-mini8", "size=32", "context=32", "exemplar=16", "decoder_dim=16", "decoder_heads=2",
        "batch_size=8", "eval_every=3", "log_every=3")  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")


def pretrain(data, out, *words) -> int:
    command = ["pretrain", "--recipe", "cim", "--data", str(data), "--out", str(out), "--device", "cpu"]
    return main([*command, *TINY, *words])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One complete run with its control."""
    out = tmp_path_factory.mktemp("cim")
    assert pretrain(real_scenes(), out, "steps=6") == 0
    return out


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_report_comes_back_from_the_folder_alone(trained, tmp_path, monkeypatch):
    rebuilds_itself(trained, tmp_path / "copy", monkeypatch)


def test_every_model_is_scored_in_every_metric(trained):
    scores = json.loads((trained / "results.json").read_text())["scores"]
    assert set(scores) == {"trained", "untrained", "shuffled"}
    for name in ("map IoU", "map accuracy", "mIoU", "kNN image", "linear probe image"):
        values = [scores[model][name] for model in scores]
        assert all(0 <= score["value"] <= 1 and score["n"] == 8 for score in values), name
        assert len({score["chance"] for score in values}) == 1, "every model is asked for the same exemplars"
    assert scores["trained"]["map IoU"]["chance"] > 0.3
    assert scores["trained"]["map accuracy"]["chance"] > 0.6
    learned, drawn = scores["trained"], scores["untrained"]  # six steps: all may be inside at the level of the cut
    assert any(learned[name]["value"] != drawn[name]["value"] for name in ("map IoU", "map accuracy", "mIoU"))


def test_training_and_its_control_log_the_same_things(trained):
    mine, control = rows(trained), rows(trained / "control")
    assert [r["step"] for r in mine] == [r["step"] for r in control] == [3, 3, 6, 6]
    for name in ("loss_map", "map_iou", "prior_iou", "map_accuracy", "background_accuracy"):
        assert 0 <= mine[0][name] and 0 <= control[0][name]
    assert mine[0]["prior_iou"] == control[0]["prior_iou"] and mine[0]["loss"] != control[0]["loss"]
    assert set(mine[0]["collapse"]) == {"exemplar", "context"}


def test_the_report_says_what_was_asked_of_the_maps(trained):
    text = (trained / "report.md").read_text()
    for words in (
        "map IoU", "exemplars cut from another image", "the best map that is the same for every exemplar",
        "all background", "one rate everywhere", "fixed prior", "Map curves",
    ):  # fmt: skip
        assert words in text, words
    assert "the second view" not in text
    if "no pictures" not in text:
        picture = trained / "figures" / "correlation_maps.png"
        assert picture.stat().st_size > 10_000 and "correlation_maps.png" in text


def test_the_export_is_a_plain_vit(trained):
    from transformers import AutoModel

    facts = json.loads((trained / "export" / "avfast.json").read_text())
    assert facts["modules"] == ["decoder", "encoder", "momentum_encoder"]
    assert facts["inputs"]["context"] == 32 and facts["inputs"]["count"] == 3
    model = AutoModel.from_pretrained(trained / "export" / "encoder", local_files_only=True, add_pooling_layer=False)
    assert type(model).__name__ == "ViTModel"
    assert model(torch.zeros(1, 3, 64, 64)).last_hidden_state.shape == (1, 65, 192)


def test_a_continued_run_is_the_same_run(trained, tmp_path):
    assert pretrain(real_scenes(), tmp_path / "run", "steps=6", "control=false", "save_every=3") == 0
    assert comparable(rows(tmp_path / "run")) == comparable(rows(trained))


def test_half_precision_changes_the_network_and_not_its_inputs(trained, tmp_path):
    words = ("steps=3", "control=false", "colours=both", "angle=[-45,45]", "mirror=true", "precision=bf16")
    assert pretrain(real_scenes(), tmp_path / "run", *words) == 0
    assert pretrain(real_scenes(), tmp_path / "full", *words[:-1]) == 0
    half, full = rows(tmp_path / "run"), rows(tmp_path / "full")
    for mine, other in zip(half, full, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=0.02) and mine["loss"] != other["loss"]


def test_a_folder_of_pictures_without_labels(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in sorted((real_scenes() / "images").glob("*.png"))[:24]:
        shutil.copy(path, folder / path.name)
    assert pretrain(folder, tmp_path / "run", "steps=2", "batch_size=4", "control=false") == 0
    scores = json.loads((tmp_path / "run" / "results.json").read_text())["scores"]["trained"]
    assert scores["map IoU"]["value"] is not None and scores["kNN image"]["value"] is None
