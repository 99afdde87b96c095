"""``avfast pretrain --recipe sound2scene``: all stages from clips to pictures, continued, and checked on the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from engine_fixtures import real_clips
from report_fixtures import rebuilds_itself

for library in ("PIL", "av", "sklearn", "accelerate", "jsonargparse", "transformers", "safetensors"):
    pytest.importorskip(library, reason=f"{library} is not installed")

from avfast.cli import main  # noqa: E402
from avfast.data.sources import MANIFEST  # noqa: E402
from avfast.engine.checkpoint import load_checkpoint  # noqa: E402
from avfast.engine.pretrain import Request  # noqa: E402
from avfast.engine.pretrain import pretrain as pretrain_one  # noqa: E402
from avfast.engine.scene import scores  # noqa: E402
from avfast.engine.scene.frames import extract_frames  # noqa: E402
from avfast.engine.scene.localise import mosaics  # noqa: E402
from avfast.engine.scene.synthesis import Synthesiser  # noqa: E402
from avfast.engine.sources import open_data  # noqa: E402
from avfast.errors import ConfigError, DataError  # noqa: E402
from avfast.methods.base import ImageInputs, Inputs  # noqa: E402
from avfast.nn.scene_targets import SceneTargets  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
TINY = ("method.frames=2", "method.visual_size=32", "method.visual=resnet-tiny", "method.duration=1",
        "data.batch_size=8", "image:data.batch_size=8", "image:method.group_size=4", "image:run.steps=3",
        "localiser:run.steps=3", "generator:run.steps=4", "generator:run.save_every=2",
        "audio:run.steps=3")  # fmt: skip

# Of the whole module, its trainings included: convolutions round by the number of threads.
pytestmark = pytest.mark.usefixtures("one_thread")


def pretrain(out, *words, data=None) -> int:
    data = str(real_clips() if data is None else data)
    command = ["pretrain", "--recipe", "sound2scene", "--data", data, "--out", str(out), "--device", "cpu"]
    return main([*command, *TINY, *words])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """All stages of a few steps each."""
    out = tmp_path_factory.mktemp("scene")
    assert pretrain(out) == 0
    return out


@pytest.fixture
def briefly(no_pictures, monkeypatch):
    """No pictures and a judge of a few steps, where `run` has both."""
    monkeypatch.setattr(scores, "JUDGE_STEPS", 20)


def test_every_stage_leaves_its_run_and_there_is_one_report(run):
    for name in ("image", "localiser", "generator", "audio"):
        assert (run / name / "report.md").is_file() and (run / name / "results.json").is_file()
    text = (run / "report.md").read_text()
    assert text.startswith("demo data: real pictures")
    for words in ("A judge trained on real frames", "shuffled pairs", "mean picture", "nearest training frame", "cIoU",
                  "The judge itself is right on", "FID", "fingerprint=", "avfast generate --audio"):  # fmt: skip
        assert words in text, words
    if "no pictures" not in text:
        for name in ("scenes", "volume", "mixture", "image_and_sound", "edit", "localisation"):
            assert (run / "figures" / f"{name}.png").stat().st_size > 5_000 and f"{name}.png" in text


def test_the_reports_come_back_from_the_folder_alone(run, tmp_path, monkeypatch):
    rebuilds_itself(run, tmp_path / "copy", monkeypatch)


def test_every_arm_is_scored_by_the_same_judge(run):
    results = json.loads((run / "results.json").read_text())
    arms = ("trained", "shuffled", "untrained", "mean", "nearest", "true")
    for arm in arms:
        assert {"FID", "IS", "precision", "coverage", "R@1", "R@5", "R@10"} <= results[arm].keys()
        assert results[arm]["R@1"]["chance"] == pytest.approx(1 / 16)
        assert results[arm]["FID"]["n"] == (16 if arm == "nearest" else 128)
    assert len({results[arm]["FID"]["protocol"].split("real=")[1].split()[0] for arm in arms}) == 1
    assert results["judge"]["accuracy"]["value"] > 0.5, "real frames are easy"
    assert results["trained"]["FID"]["value"] != results["shuffled"]["FID"]["value"]


def test_targets_are_of_the_frozen_encoder_by_content(run):
    table = SceneTargets.read(run / "targets.safetensors")
    assert len(table) == 80 and table.frames == 2 and table.dim == 128
    assert {"encoder", "localiser", "source", "inputs"} == table.facts.keys()
    state = load_checkpoint(run / "audio" / "checkpoints" / "last.pt")
    assert not any("visual" in name for name in state["model"]), "the audio stage carries no image encoder"


def test_the_export_draws_pictures(run):
    scene = Synthesiser.load(run)
    z = scene.embed(torch.randn(2, 16000).clamp(-1, 1) * 0.1)
    pictures = scene.images(z, count=3)
    assert pictures.shape == (2, 3, 3, 32, 32) and pictures.dtype == torch.uint8
    card = json.loads((run / "export" / "avfast.json").read_text())
    assert card["recipe"] == "sound2scene" and len(card["classes"]) == 16


def test_a_continued_run_equals_one_that_was_never_stopped(run, tmp_path, briefly, capsys):
    """Stopped within the generator stage: the stages before are kept, and it ends with the same bits."""
    out = tmp_path / "again"
    shutil.copytree(run, out)
    for name in ("audio", "export", "targets.safetensors", "report.md", "results.json"):
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(out / "generator")
    words = [w for w in TINY if not w.startswith("generator:run.steps")]
    command = ["pretrain", "--recipe", "sound2scene", "--data", str(out / "frames"), "--out", str(out / "generator")]
    stage = [w.removeprefix("generator:") for w in words if not w.startswith(("image:", "localiser:", "audio:"))]
    visual = f"method.visual={out / 'image' / 'export' / 'encoder'}"
    budget = [*command, *stage, "method.stage=generator", visual, "--device", "cpu", "optim.lr=5e-4",
              "optim.schedule=constant", "run.eval_every=200", "run.log_every=50", "run.steps=4"]  # fmt: skip
    assert main([*budget, "--budget", "0.01s"]) == 0
    stopped = load_checkpoint(out / "generator" / "checkpoints" / "last.pt")
    assert stopped["counters"]["step"] < 4
    (out / "generator" / "results.json").unlink()
    assert pretrain(out, "--resume", "auto") == 0  # the path of the encoder is another one, its content is not
    said = capsys.readouterr().out
    assert "stage image: finished before" in said and "stage localiser: finished before" in said
    assert "continuing at step" in said
    whole, again = (load_checkpoint(f / "generator" / "checkpoints" / "last.pt")["model"] for f in (run, out))
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole if isinstance(whole[name], torch.Tensor))


def test_more_steps_for_an_early_stage_begin_the_later_ones_anew(run, tmp_path, briefly, capsys):
    out = tmp_path / "more"
    shutil.copytree(run, out)
    words = ("image:run.steps=5", "--resume", "auto", "--force")
    assert pretrain(out, *words) == 0
    said = capsys.readouterr().out
    assert "main: continuing at step 3 of 5" in said
    for name in ("localiser", "generator", "audio"):
        assert f"stage {name} begins anew" in said, name
    state = load_checkpoint(out / "image" / "checkpoints" / "last.pt")
    assert state["counters"]["step"] == 5
    # The steps added change what follows where one of them is the best on the validation split.
    chosen = [json.loads((folder / "image" / "results.json").read_text())["best_step"] for folder in (out, run)]
    facts = [SceneTargets.read(folder / "targets.safetensors").facts for folder in (out, run)]
    assert (facts[0] == facts[1]) == (chosen[0] == chosen[1])


def test_a_given_encoder_and_generator_replace_their_stages(run, tmp_path, briefly, capsys):
    from avfast.generator import build_generator
    from avfast.icgan import icgan_names

    out, encoder = tmp_path / "given", run / "image" / "export" / "encoder"
    drawn = build_generator("scene-32", condition=128)
    state = {name: drawn.state_dict()[own] for own, name in icgan_names(drawn).items()}
    torch.save(state, tmp_path / "g.pth")
    given = f"method.visual={encoder}", f"method.generator_weights={tmp_path / 'g.pth'}"
    assert pretrain(out, *given, "audio:run.control=false") == 0
    said = capsys.readouterr().out
    assert "stage image: left out" in said and not (out / "image").exists()
    assert "stage generator: left out" in said and "tensors loaded" in said
    assert (out / "report.md").read_text().count("left out") == 2
    assert Synthesiser.load(out).images(torch.rand(1, 128)).shape == (1, 1, 3, 32, 32)
    results = json.loads((out / "results.json").read_text())
    assert "shuffled" not in results and "mean" in results


def test_clips_without_labels(tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for i, path in enumerate(sorted(real_clips().rglob("*.mp4"))[:40]):
        shutil.copy(path, bare / f"{i}.mp4")
    assert pretrain(tmp_path / "run", "audio:run.control=false", data=bare) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["trained"]["FID"]["value"] > 0 and results["trained"]["IS"]["value"] is None
    assert "R@1" not in results["trained"] and "judge" not in results


def test_dry_run_writes_nothing(tmp_path, capsys):
    for data in (None, "demo"):
        assert pretrain(tmp_path / "dry", "--dry-run", "--budget", "60s", data=data) == 0
        said = capsys.readouterr().out
        assert "generator: recipe sound2scene, method.stage=generator, 45% of the budget" in said
        assert not (tmp_path / "dry").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generator:optim.lrr=1"], "unknown key 'optim.lrr'"),
        (["image:method.lambda=1"], "unknown key 'method.lambda'"),
        (["--resume", "some/where.pt"], "continues its own stages with --resume auto"),
        (["method.temperature=0"], "method.temperature: expected a positive number"),
        (["--preset", "none"], "has no preset 'none'"),
        (["method.generator=icgan-128"], "'icgan-128' has no opponent to train with here"),
        (["--preset", "paper"], "'icgan-128' has no opponent to train with here"),
    ],
)
def test_mistakes_are_said_before_anything_trains(tmp_path, capsys, words, message):
    assert pretrain(tmp_path / "bad", *words) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "bad").exists()


# Frames of clips as pictures.


def test_frames_keep_split_label_and_clip(tmp_path):
    bundle = open_data(real_clips(), Inputs(1, 32, 1.0, 16000))
    folder = extract_frames(bundle, tmp_path / "frames", frames=3, size=24, duration=1.0)
    entries = json.loads((folder / MANIFEST).read_text())["clips"]
    assert len(entries) == 3 * 80 and {e["frame"] for e in entries} == {0, 1, 2}
    stills = open_data(folder, ImageInputs(24))
    assert stills.source.classes == bundle.source.classes
    assert {n: 3 * c for n, c in bundle.source.splits.items()} == stills.source.splits
    of_clip = {record.id: (record.label, record.split) for record in bundle.source.records}
    assert all((e["label"], e["split"]) == of_clip[e["clip"]] for e in entries)


def test_frames_are_made_once_and_again_for_other_settings(tmp_path):
    bundle = open_data(real_clips(), Inputs(1, 32, 1.0, 16000))
    folder = extract_frames(bundle, tmp_path / "frames", frames=1, size=24, duration=1.0)
    first = sorted((folder / "pictures").rglob("*.jpg"))
    times = {path: path.stat().st_mtime_ns for path in first}
    extract_frames(bundle, folder, frames=1, size=24, duration=1.0)
    assert times == {path: path.stat().st_mtime_ns for path in first}
    extract_frames(bundle, folder, frames=2, size=24, duration=1.0)
    assert len(list((folder / "pictures").rglob("*.jpg"))) == 160


def test_broken_clips_are_left_out_and_listed(tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    for i, path in enumerate(sorted(real_clips().rglob("*.mp4"))[:6]):
        shutil.copy(path, clips / f"{i}.mp4")
    (clips / "0.mp4").write_bytes(b"no clip")
    bundle = open_data(clips, Inputs(1, 32, 1.0, 16000))
    folder = extract_frames(bundle, tmp_path / "frames", frames=1, size=24, duration=1.0)
    manifest = json.loads((folder / MANIFEST).read_text())
    assert len(manifest["clips"]) == 5 and [u["path"].split("/")[-1] for u in manifest["unreadable"]] == ["0.mp4"]


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / MANIFEST).write_text('{"clips": []}')
    bundle = open_data(real_clips(), Inputs(1, 32, 1.0, 16000))
    with pytest.raises(DataError, match="not written by this recipe"):
        extract_frames(bundle, tmp_path, frames=1, size=24, duration=1.0)


def test_mosaics_hold_the_clip_where_the_box_says():
    frames = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 8, 8)
    labels = torch.tensor([0, 0, 1, 2, 3, 4])
    pictures, boxes = mosaics(frames, labels)
    for i in range(6):
        left, top, right, bottom = (8 * boxes[i]).int().tolist()
        assert (pictures[i, :, top:bottom, left:right] == i).all()
        others = {int(x) for x in pictures[i].unique()} - {i}
        assert len(others) == 3 and all(labels[o] != labels[i] for o in others)
    assert len({tuple(b.tolist()) for b in boxes}) > 1, "not always the same corner"


def test_one_stage_by_name_needs_what_the_others_made(tmp_path):
    request = Request("sound2scene", str(real_clips()), tmp_path / "x", words=["method.stage=audio", "run.steps=2",
                      "data.batch_size=8", "method.duration=1"], device="cpu")  # fmt: skip
    with pytest.raises(ConfigError, match="the audio stage needs the features of the frames"):
        pretrain_one(request, say=lambda line: None)


def test_two_processes_train_one_scene_and_one_report(tmp_path, tmp_path_factory):
    """Without pictures, of which two processes draw some in tests/test_engine_pretrain.py."""
    hidden = tmp_path_factory.mktemp("hidden")
    (hidden / "matplotlib.py").write_text("raise ImportError('left out')")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "avfast"]
    words = ["pretrain", "--recipe", "sound2scene", "--data", str(real_clips()), "--out", str(tmp_path), *TINY,
             "--device", "cpu", "audio:run.control=false", "data.batch_size=4", "image:data.batch_size=4",
             "image:method.group_size=2"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{hidden}{os.pathsep}{ROOT}"}
    done = subprocess.run([*launch, *words], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count(f"read '{tmp_path}/report.md' first") == 1 and done.stdout.count("stage generator\n") == 1
    for name in ("image", "localiser", "generator", "audio"):
        state = load_checkpoint(tmp_path / name / "checkpoints" / "last.pt")
        assert state["config"]["processes"] == 2 and len(state["rng"]) == 2
    assert json.loads((tmp_path / "results.json").read_text())["trained"]["FID"]["value"] > 0
