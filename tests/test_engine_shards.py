"""Every recipe trains from tar shards, and what it computes is what it computes from the files that were packed."""

from __future__ import annotations

import functools
import json
import os
import shutil
import tarfile

import pytest
import torch
from engine_fixtures import StopAt, real_clips, real_scenes, weights

for library in ("PIL", "av", "sklearn", "kornia", "accelerate", "jsonargparse", "transformers", "safetensors"):
    pytest.importorskip(library, reason=f"{library} is not installed")

from avfast.cli import main  # noqa: E402
from avfast.data.shard_writer import write_shards  # noqa: E402
from avfast.data.sources import IMAGE_EXTENSIONS, ClipSource  # noqa: E402
from avfast.engine.build import build_accelerator, build_method  # noqa: E402
from avfast.engine.checkpoint import load_checkpoint  # noqa: E402
from avfast.engine.config import parse_config  # noqa: E402
from avfast.engine.loop import Trainer  # noqa: E402
from avfast.engine.signals import Budget, StopRequest  # noqa: E402
from avfast.engine.sources import build_dataset, open_data  # noqa: E402

ALIGN = ("method.size=32", "method.frames=1", "method.duration=1", "batch_size=8", "run.control=false")
SMALL = {
    "av-align": ("steps=2", *ALIGN),
    "densecl": ("size=32", "queue=32", "dim=16", "batch_size=4", "group_size=2", "steps=2", "control=false"),
    "cim": ("encoder=vit-mini8", "size=32", "context=32", "exemplar=16", "decoder_dim=16", "decoder_heads=2",
            "batch_size=8", "steps=2", "control=false"),
}  # fmt: skip
SCENE = ("method.frames=1", "method.visual_size=32", "method.visual=resnet-tiny", "method.duration=1",
         "data.batch_size=8", "run.control=false", "image:data.batch_size=8", "image:method.group_size=4",
         "image:run.steps=1", "localiser:run.steps=1", "generator:run.steps=1", "audio:run.steps=1")  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Folders of shards of the clips and of the scenes."""

    @functools.cache
    def of(kind: str):
        folder = tmp_path_factory.mktemp(kind)
        source = ClipSource.open({"clips": real_clips, "scenes": real_scenes}[kind](), extensions=IMAGE_EXTENSIONS)
        write_shards(source, folder, size=300_000)
        return folder

    return of


def command(name, recipe, data, out, *words) -> int:
    return main([name, "--recipe", recipe, "--data", str(data), "--out", str(out), "--device", "cpu", *words])


@pytest.mark.parametrize("recipe", SMALL)
def test_shards_train_to_the_bits_of_their_folder(packed, tmp_path, recipe):
    """Scores and weights alike: ids, splits, labels, masks, order and views are the same."""
    kind, folder = ("clips", real_clips()) if recipe == "av-align" else ("scenes", real_scenes())
    for name, data in (("folder", folder), ("shards", packed(kind))):
        assert command("pretrain", recipe, data, tmp_path / name, *SMALL[recipe]) == 0
    one, two = (load_checkpoint(tmp_path / name / "checkpoints" / "last.pt") for name in ("folder", "shards"))
    assert one["split_fingerprint"] == two["split_fingerprint"]
    tensors = {key: value for key, value in one["model"].items() if isinstance(value, torch.Tensor)}
    assert len(tensors) > 10 and all(torch.equal(value, two["model"][key]) for key, value in tensors.items())
    scores = [json.loads((tmp_path / n / "results.json").read_text())["scores"] for n in ("folder", "shards")]
    assert scores[0] == scores[1]
    assert (tmp_path / "shards" / "report.md").read_text().startswith("demo data: ")


def test_fusion_tuning_keys_its_confidences_by_content(packed, tmp_path):
    words = ("steps=2", "method.size=32", "method.frames=1", "method.duration=1", "batch_size=8", "control=false")
    assert command("finetune", "fusion-tuning", packed("clips"), tmp_path, *words) == 0
    of_files = {record.id for record in open_data(real_clips()).splits["train"].records}
    for stage in ("audio", "video"):
        means = json.loads((tmp_path / stage / "confidence.json").read_text())["confidence"]
        assert means and set(means) <= of_files, "ids of the files that were packed"
    assert (tmp_path / "joint" / "report.md").is_file()


def test_sound2scene_takes_its_frames_from_shards(packed, tmp_path, monkeypatch):
    monkeypatch.setattr("avfast.engine.scene.scores.JUDGE_STEPS", 20)
    assert command("pretrain", "sound2scene", packed("clips"), tmp_path, *SCENE) == 0
    assert (tmp_path / "report.md").is_file()
    frames = json.loads((tmp_path / "frames" / "manifest.json").read_text())
    assert frames["recipe"]["source"] == open_data(real_clips()).fingerprint and not frames["unreadable"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_on_shards_continues_bit_for_bit(packed, tmp_path, workers):
    """Stopped in the middle of the second epoch."""

    def make(out, workers, resume=None):
        words = [*ALIGN, "run.steps=14", f"data.workers={workers}"]
        config = parse_config("av-align", words)
        method = build_method(config)
        bundle = open_data(packed("clips"), method.inputs)
        data = build_dataset(bundle.splits["train"], method.inputs, config.data, seed=0, train=True, cache=False)
        return Trainer(
            config, data, None, tmp_path / out, build_accelerator("cpu", "no"), fingerprint=bundle.fingerprint,
            steps=14, kind="main", resume=resume, force=False,
        )  # fmt: skip

    whole = make("a", 0)
    whole.fit(StopRequest(), Budget(None))
    first = make("b", workers)
    result = first.fit(StopAt(first, 8), Budget(None))  # epochs have 6 steps
    assert result.step == 8
    torch.manual_seed(99)
    second = make("b", workers, resume=result.checkpoints["last"])
    assert second.fit(StopRequest(), Budget(None)).step == 14
    expected = weights(whole)
    assert all(torch.equal(value, expected[key]) for key, value in weights(second).items())


def test_damaged_and_hostile_shards_in_a_run(packed, tmp_path, capsys):
    folder = tmp_path / "shards"
    shutil.copytree(packed("clips"), folder)
    cut = sorted(folder.glob("train-*.tar"))[0]
    os.truncate(cut, cut.stat().st_size // 2)
    assert command("pretrain", "av-align", folder, tmp_path / "a", *SMALL["av-align"], "data.on_error=raise") == 2
    assert f"{cut.name}: " in (said := capsys.readouterr().err) and "data.on_error=skip" in said
    assert len(said.splitlines()) == 1
    assert command("pretrain", "av-align", folder, tmp_path / "b", *SMALL["av-align"]) == 0
    assert f"note: {cut.name} " in capsys.readouterr().out
    assert f"{cut.name} " in (tmp_path / "b" / "report.md").read_text(), "the report says what was left out"
    with tarfile.open(folder / "z.tar", "w") as file:
        link = tarfile.TarInfo("x.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    assert command("pretrain", "av-align", folder, tmp_path / "c", *SMALL["av-align"]) == 2
    assert "z.tar: refused, because it holds a symbolic link: 'x.mp4'" in capsys.readouterr().err
