"""The main job on real mp4 files: it learns, says how much, survives a kill, and exports its weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from engine_fixtures import real_clips
from report_fixtures import rebuilds_itself

for library in ("av", "accelerate", "jsonargparse", "transformers", "safetensors", "sklearn"):
    pytest.importorskip(library, reason=f"{library} is not installed")

from safetensors.torch import load_file  # noqa: E402

from avfast.cli import main  # noqa: E402
from avfast.engine.checkpoint import load_checkpoint  # noqa: E402
from avfast.engine.journal import comparable, read_rows  # noqa: E402
from avfast.engine.record import comparable_results  # noqa: E402

SMALL = ["batch_size=16", "log_every=1", "eval_every=7", "control=false", "frames=1", "size=32"]
ROOT = Path(__file__).resolve().parents[1]

# Bit-equality holds for equal numbers of threads; the runs in processes of their own use one.
pytestmark = pytest.mark.usefixtures("one_thread")


def arguments(out, *more) -> list[str]:
    return [
        "pretrain",
        "--recipe",
        "av-align",
        "--data",
        str(real_clips()),
        "--out",
        str(out),
        "--device",
        "cpu",
        *more,
    ]


def start(out, *more) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "avfast", *arguments(out, *more)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(process, out, step) -> None:
    """Until the run has logged `step` and a checkpoint is there."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        log = out / "metrics.jsonl"
        rows = log.read_text().splitlines() if log.is_file() else []
        if any(f'"step": {step},' in row for row in rows) and (out / "checkpoints" / "last.pt").is_file():
            return
        if process.poll() is not None:
            raise AssertionError(f"the run ended early: {process.communicate()}")
        time.sleep(0.01)
    process.kill()
    raise AssertionError("the run did not reach the step in four minutes")


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """One complete run with its control."""
    out = tmp_path_factory.mktemp("learned")
    assert main(arguments(out, "steps=60", "batch_size=24", "eval_every=15", "warmup_steps=5")) == 0
    return out


def test_it_learns_and_the_controls_do_not(learned):
    scores = json.loads((learned / "results.json").read_text())["scores"]
    name = "R@1 audio->video class-level"
    trained, untrained, shuffled = (scores[k][name] for k in ("trained", "untrained", "shuffled"))
    assert trained["chance"] == pytest.approx(1 / 16)
    assert trained["value"] >= 5 * trained["chance"]
    assert trained["value"] > untrained["value"] + 0.25
    low, high = shuffled["chance_range"]
    assert low <= shuffled["value"] <= high < trained["value"]
    assert trained["interval"][0] > high  # not by luck either


def test_the_log_shows_a_falling_loss(learned):
    rows = [json.loads(line) for line in open(learned / "metrics.jsonl")]
    losses = [r["loss"] for r in rows if r["kind"] == "train"]
    assert losses[-1] < 0.6 * losses[0]
    assert [r["step"] for r in rows if r["kind"] == "val"] == [15, 30, 45, 60]


def test_the_report_begins_honestly_and_lists_what_exists(learned):
    text = (learned / "report.md").read_text()
    first = text.splitlines()[0]
    assert first.startswith("demo data: real pictures") and "pairing and motion artificial" in first
    head = next(line for line in text.splitlines() if line.startswith("| metric"))
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    assert columns == ["metric", "trained", "chance", "untrained", "shuffled pairs", "n", "protocol"]
    for words in (
        "finds the class and guesses the clip within it would score 1.000",  # one test clip per class here
        "fingerprint=",
        "kNN audio",
        "linear probe video",
        "torch ",
    ):
        assert words in text
    listed = [line[3:-1] for line in text.split("## Files")[1].splitlines() if line.startswith("- `")]
    assert "report.md" in listed and "checkpoints/final.pt" in listed
    assert all((learned / name).is_file() for name in listed)
    shown = [part.split(")")[0] for part in text.split("](")[1:]]
    assert all((learned / name).stat().st_size > 5000 for name in shown)


def test_the_report_comes_back_from_the_folder_alone(learned, tmp_path, monkeypatch):
    """Moved, and without the clips."""
    rebuilds_itself(learned, tmp_path / "moved", monkeypatch)


def test_exported_encoders_load_without_avfast(learned):
    """A process that cannot import avfast computes the features of the trained model."""
    code = f"""
import sys, torch
sys.modules["avfast"] = None
from safetensors.torch import load_file
from transformers import AutoModel
model = AutoModel.from_pretrained({str(learned / "export" / "audio")!r}, local_files_only=True).eval()
head = torch.nn.Linear(128, 128)
head.load_state_dict(load_file({str(learned / "export" / "audio_head" / "model.safetensors")!r}))
torch.manual_seed(0)
with torch.no_grad():
    z = head(model(torch.randn(2, 1, 64, 64)).last_hidden_state.mean(dim=(2, 3)))
torch.save(z, {str(learned / "z.pt")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    from avfast.engine.build import build_method
    from avfast.engine.config import parse_config

    method = build_method(parse_config("av-align")).eval()
    method.load_state_dict(load_checkpoint(learned / "checkpoints" / "best.pt")["model"])
    torch.manual_seed(0)
    with torch.no_grad():
        expected = method.audio_head(method.audio.pooled(torch.randn(2, 1, 64, 64)))
    torch.testing.assert_close(torch.load(learned / "z.pt"), expected, rtol=1e-5, atol=1e-6)
    card = json.loads((learned / "export" / "avfast.json").read_text())
    assert card["inputs"]["frontend"] == "log-mel" and card["inputs"]["sample_rate"] == 16000
    assert set(card["modules"]) == {"audio", "audio_head", "visual", "visual_head"}


def test_the_exported_encoder_can_be_scanned(learned, capsys):
    assert main(["bn-scan", str(learned / "export" / "visual" / "model.safetensors")]) == 0
    assert "of 720 channels" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.usefixtures("no_pictures")
def test_killed_in_mid_epoch_then_resumed_equals_uninterrupted(tmp_path, capsys):
    steps = ["steps=14", "save_every=4", *SMALL]  # epochs have 3 steps
    assert main(arguments(tmp_path / "whole", *steps)) == 0
    process = start(tmp_path / "killed", *steps)
    wait_for_step(process, tmp_path / "killed", 6)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "checkpoints" / "final.pt").exists()
    at = load_checkpoint(tmp_path / "killed" / "checkpoints" / "last.pt")["counters"]["step"]
    assert 4 <= at < 14
    assert main(arguments(tmp_path / "killed", "--resume", "auto", *steps)) == 0
    assert f"continuing at step {at} of 14" in capsys.readouterr().out
    whole, killed = (load_checkpoint(tmp_path / n / "checkpoints" / "final.pt") for n in ("whole", "killed"))
    assert whole["model"].keys() == killed["model"].keys()
    for name, value in whole["model"].items():
        assert torch.equal(value, killed["model"][name]), name
    one, two = (load_file(tmp_path / n / "export" / "audio" / "model.safetensors") for n in ("whole", "killed"))
    assert all(torch.equal(v, two[k]) for k, v in one.items())
    rows = [comparable(read_rows(tmp_path / n / "metrics.jsonl")) for n in ("whole", "killed")]
    assert rows[0] == rows[1] and len([r for r in rows[0] if r["kind"] == "train"]) == 14
    results = [json.loads((tmp_path / n / "results.json").read_text()) for n in ("whole", "killed")]
    assert comparable_results(results[0]) == comparable_results(results[1])


def test_sigterm_saves_and_says_where_and_how_to_go_on(tmp_path, capsys):
    process = start(tmp_path, "steps=5000", *SMALL, "save_every=2", "eval_every=5000")
    wait_for_step(process, tmp_path, 4)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    last = tmp_path / "checkpoints" / "last.pt"
    assert "SIGTERM at step" in errors and str(last) in errors and "--resume auto" in errors
    assert "Traceback" not in errors
    step = load_checkpoint(last)["counters"]["step"]
    rows = [json.loads(line) for line in open(tmp_path / "metrics.jsonl")]
    assert rows[-1]["step"] == step  # the state of the last step, not of the last multiple of save_every

    # Another configuration is refused with the difference, a torn checkpoint with its name.
    capsys.readouterr()
    assert main(arguments(tmp_path, "--resume", "auto", "steps=5000", *SMALL, "optim.lr=0.5")) == 2
    refusal = capsys.readouterr().err
    assert "optim.lr: 0.002 -> 0.5" in refusal and "--force" in refusal
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    assert main(arguments(tmp_path, "--resume", "auto", "steps=5000", *SMALL)) == 2
    assert "is whole, and nothing was changed there" in (said := capsys.readouterr().err)
    assert said.count("is truncated or damaged") == 2, "the last and the one before, each once"
    assert main(arguments(tmp_path, "steps=5000", *SMALL)) == 2  # nor is an old run overwritten silently
    assert "already holds a run" in capsys.readouterr().err


@pytest.mark.usefixtures("no_pictures")
def test_a_budget_stops_reports_and_can_be_continued(tmp_path, capsys):
    words = ["steps=100000", *SMALL, "eval_every=50"]
    assert main(arguments(tmp_path, "--budget", "1s", *words)) == 0
    printed = capsys.readouterr().out
    assert "budget spent at step" in printed and (tmp_path / "report.md").is_file()
    first = load_checkpoint(tmp_path / "checkpoints" / "last.pt")["counters"]["step"]
    assert 0 < first < 100000
    assert main(arguments(tmp_path, "--budget", "0.5s", "--resume", "auto", *words)) == 0
    assert load_checkpoint(tmp_path / "checkpoints" / "last.pt")["counters"]["step"] > first


def test_a_dry_run_plans_and_writes_nothing(tmp_path, capsys):
    before = {p: p.stat().st_mtime_ns for p in real_clips().rglob("*") if p.is_file()}
    assert main(arguments(tmp_path / "out", "--dry-run", "--budget", "10m")) == 0
    printed = capsys.readouterr().out
    for words in (
        "48 train, 16 val, 16 test",
        "16 classes",
        "steps",
        "650,368",
        "MiB",
        "chance 3.47",
        "600 s",
    ):
        assert words in printed
    assert not (tmp_path / "out").exists()
    after = {p: p.stat().st_mtime_ns for p in real_clips().rglob("*") if p.is_file()}
    assert {p for p in after if after[p] != before.get(p)} <= {real_clips() / ".avfast-cache.json"}


@pytest.mark.usefixtures("no_pictures")
def test_clips_without_labels_and_a_broken_file(tmp_path, capsys):
    """A plain folder: metrics that need labels say so, and a torn file is counted, not trained on."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for number, path in enumerate(sorted((real_clips() / "clips").iterdir())[:40]):
        data = path.read_bytes()
        (folder / path.name).write_bytes(data[: len(data) // 3] if number % 4 == 0 else data)
    command = arguments(tmp_path / "out", "steps=6", *SMALL, "save_every=100", "batch_size=8", "log_every=6")
    command[command.index("--data") + 1] = str(folder)
    assert main(command) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.splitlines()[0] == "media as given by the user"
    assert "not available: needs labels" in text and "R@1 audio->video instance-level" in text
    assert "clips that could not be read: 0 files" not in text and "unreadable" in text
    assert "no labels" in capsys.readouterr().out


def test_two_processes_train_one_model_and_one_report(tmp_path, capsys):
    words = ["steps=4", *SMALL, "batch_size=8", "save_every=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "FORCE_COLOR": "1"}
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "avfast",
    ]
    done = subprocess.run(
        [*launch, *arguments(tmp_path, *words)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [done.stdout.count(f"train {step}/4  loss") for step in (1, 4)] == [1, 1], "one process speaks"
    assert "\x1b" not in done.stdout and "\r" not in done.stdout, "a pipe gets plain lines, whatever the environment"
    assert done.stdout.count("written:") == 1 and "8 clips x 2 processes, 3 steps per epoch" in done.stdout
    rows = [json.loads(line) for line in open(tmp_path / "metrics.jsonl")]
    assert [r["step"] for r in rows if r["kind"] == "train"] == [1, 2, 3, 4]
    state = load_checkpoint(tmp_path / "checkpoints" / "final.pt")
    assert len(state["rng"]) == 2 and not torch.equal(state["rng"][0]["torch"], state["rng"][1]["torch"])
    assert main(arguments(tmp_path, "--resume", "auto", *words)) == 2
    assert "processes: 2 -> 1" in capsys.readouterr().err


@pytest.mark.usefixtures("no_pictures")
def test_a_control_can_be_added_to_a_finished_run_and_is_not_trained_twice(tmp_path, capsys):
    words = ["steps=4", *SMALL]
    assert main(arguments(tmp_path, *words)) == 0
    assert "Shuffled pairs: not run" in (tmp_path / "report.md").read_text()
    weights = load_checkpoint(tmp_path / "checkpoints" / "final.pt")["model"]
    assert main(arguments(tmp_path, "--resume", "auto", *words, "control=true")) == 0
    assert "a second training of 4 steps" in (tmp_path / "report.md").read_text()
    again = load_checkpoint(tmp_path / "checkpoints" / "final.pt")["model"]
    assert all(torch.equal(v, again[k]) for k, v in weights.items())
    capsys.readouterr()
    assert main(arguments(tmp_path, "--resume", "auto", *words, "control=true")) == 0
    assert "control: continuing at step 4 of 4" in capsys.readouterr().out


def test_without_matplotlib_the_report_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(arguments(tmp_path, "steps=2", *SMALL)) == 0
    text = (tmp_path / "report.md").read_text()
    assert "no pictures: matplotlib is not installed" in text and not list(tmp_path.rglob("*.png"))
