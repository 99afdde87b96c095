"""``avfast finetune``: three stages that hand on encoders and confidences, resume on their own, and one report."""

from __future__ import annotations

import json
import shutil

import pytest
from engine_fixtures import real_clips
from report_fixtures import rebuilds_itself

for library in ("PIL", "av", "sklearn", "accelerate", "jsonargparse", "transformers", "safetensors"):
    pytest.importorskip(library, reason=f"{library} is not installed")

from avfast.cli import main  # noqa: E402
from avfast.engine.sources import open_data  # noqa: E402

TINY = ("method.size=32", "method.frames=1", "method.duration=1", "batch_size=8", "save_every=4", "log_every=4")

# Of the whole module, its trainings included: convolutions round by the number of threads.
pytestmark = pytest.mark.usefixtures("one_thread")


def finetune(out, *words, data=None) -> int:
    data = str(real_clips() if data is None else data)
    return main(
        ["finetune", "--recipe", "fusion-tuning", "--data", data, "--out", str(out), "--device", "cpu", *TINY, *words]
    )


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """All stages, with their controls; ABRi on the audio side, masks low enough to be drawn."""
    out = tmp_path_factory.mktemp("tuned")
    assert finetune(out, "steps=12", "method.audio_init=abri_channel", "method.threshold=0.05", "rho=1", "eta=4") == 0
    return out


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_stage_leaves_its_run_and_there_is_one_report(tuned):
    report = (tuned / "report.md").read_text()
    for stage in ("audio", "video", "joint"):
        assert (tuned / stage / "report.md").is_file() and f"]({stage}/report.md)" in report
        assert f"accuracy {stage}" in report
    for part in (
        "Shapley value audio", "share of the gradient", "linear probe video", "mean confidence", "shuffled labels",
        "clips are masked",
    ):  # fmt: skip
        assert part in report, part
    joint = (tuned / "joint" / "report.md").read_text()
    assert "Dead channels" in joint and "Shuffled labels" in joint and "batchnorm_visual_after_training.png" in joint


def test_all_reports_and_pictures_come_back_from_the_folder_alone(tuned, tmp_path, monkeypatch):
    rebuilds_itself(tuned, tmp_path / "copy", monkeypatch)


def test_stages_that_were_killed_have_a_report_of_what_there_is(tuned, tmp_path, capsys):
    out = tmp_path / "killed"
    shutil.copytree(tuned, out)
    shutil.rmtree(out / "joint")
    for path in (out / "run.json", out / "report.md", out / "video" / "results.json"):
        path.unlink()
    assert main(["report", str(out)]) == 0
    said, text = capsys.readouterr().out, (out / "report.md").read_text()
    assert text.startswith("demo data: real pictures") and "# fusion-tuning: report of all stages" in text
    for shown in (said, text):
        assert "audio: finished at step 12 of 12" in shown and "joint: not begun" in shown
        assert "video: no end on record: still running, or killed; the log ends at step 12 of 12" in shown
        assert "go on where it stopped: `avfast" in shown
    assert "accuracy audio" in text and "accuracy video" not in text


def test_confidences_are_of_every_training_clip_by_content(tuned):
    records = open_data(real_clips()).splits["train"].records
    for stage in ("audio", "video"):
        means = json.loads((tuned / stage / "confidence.json").read_text())["confidence"]
        assert set(means) <= {r.id for r in records} and len(means) == len(records)
        assert all(0 <= c <= 1 for c in means.values()) and len(set(means.values())) > len(means) // 2


def test_the_joint_stage_starts_where_the_others_ended_and_masks(tuned):
    from safetensors.torch import load_file

    config = json.loads((tuned / "joint" / "config.json").read_text())
    assert config["method.audio_weights"].endswith("audio/export/audio_unfolded")
    assert config["method.visual_weights"].endswith("video/export/visual")
    start = load_file(f"{config['method.audio_weights']}/model.safetensors")
    assert any("alpha" in name for name in start)
    train = [r for r in rows(tuned / "joint") if r["kind"] == "train"]
    assert any(r["masked_audio"] + r["masked_video"] > 0 for r in train)
    assert all(0 <= r["audio_gradient_share"] <= 1 for r in train)


def test_accuracies_stand_in_the_log_every_epoch(tuned):
    epochs = [r for r in rows(tuned / "joint") if r["kind"] == "val"]
    assert [r["step"] for r in epochs] == [6, 12]  # 48 clips in batches of 8
    for row in epochs:
        assert all(0 <= row[f"accuracy_{name}"] <= 1 for name in ("joint", "audio", "video"))
        assert not any("R@1" in name for name in row)


def test_resume_goes_on_with_the_stage_that_is_not_finished(tuned, tmp_path, no_pictures, capsys):
    out = tmp_path / "run"
    shutil.copytree(tuned, out)
    shutil.rmtree(out / "joint")
    for name in ("audio", "video"):  # paths of the copy
        (out / name / "marker").write_text("kept")
    assert finetune(out, "steps=12", "method.audio_init=abri_channel", "method.threshold=0.05", "rho=1", "eta=4",
                    "run.control=false", "--resume", "auto") == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "stage audio: finished before" in said and "stage video: finished before" in said
    assert (out / "joint" / "results.json").is_file()
    again = {m: rows(f / "joint")[-1]["loss"] for m, f in (("first", tuned), ("second", out))}
    assert again["first"] == again["second"], "the same start gives the same run"


def test_a_joint_stage_begins_anew_when_its_encoders_have_gone_on(tuned, tmp_path, no_pictures, capsys):
    """As after a budget: every stage has a run, and the audio stage was not at its end."""
    out = tmp_path / "run"
    shutil.copytree(tuned, out)
    (out / "audio" / "results.json").unlink()
    assert finetune(out, "steps=12", "method.audio_init=abri_channel", "method.threshold=0.05", "rho=1", "eta=4",
                    "run.control=false", "--resume", "auto") == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "stage video: finished before" in said and "stage audio: finished before" not in said
    assert "stage joint begins anew: the encoders and confidences that it starts from have gone on" in said
    assert [r["step"] for r in rows(out / "joint") if r["kind"] == "val"] == [6, 12], "its log too"
    assert rows(out / "joint")[-1]["loss"] == rows(tuned / "joint")[-1]["loss"], "the same encoders, the same run"


def test_dry_run_writes_nothing(tmp_path, capsys):
    assert finetune(tmp_path / "dry", "steps=4", "--dry-run") == 0
    assert "stage joint" in capsys.readouterr().out and not (tmp_path / "dry").exists()


def test_words_for_one_stage(tmp_path, no_pictures):
    out = tmp_path / "own"
    assert finetune(out, "steps=2", "joint:run.steps=3", "method.masks=none", "run.control=false") == 0
    steps = {s: json.loads((out / s / "results.json").read_text())["step"] for s in ("audio", "video", "joint")}
    assert steps == {"audio": 2, "video": 2, "joint": 3}
    assert "Masks: none" in (out / "report.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["joint:run.stepz=3"], "unknown key 'run.stepz'"),
        (["--resume", "some/where.pt"], "--resume: finetune continues its own stages"),
        (["method.rho=2"], "method.rho: expected a number in"),
    ],
)
def test_mistakes_are_said_before_anything_trains(tmp_path, capsys, words, message):
    assert finetune(tmp_path / "bad", "steps=2", *words) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "bad").exists()


def test_recipes_without_stages_and_clips_without_labels(tmp_path, capsys):
    command = ["finetune", "--recipe", "av-align", "--data", str(real_clips()), "--out", str(tmp_path / "o")]
    assert main(command) == 2
    assert "recipe 'av-align' has no stages" in capsys.readouterr().err
    bare = tmp_path / "bare"
    bare.mkdir()
    for i, path in enumerate(sorted(real_clips().rglob("*.mp4"))[:20]):
        shutil.copy(path, bare / f"{i}.mp4")
    assert finetune(tmp_path / "o", "steps=2", data=bare) == 2
    assert "learns classes: all clips need a label" in capsys.readouterr().err
