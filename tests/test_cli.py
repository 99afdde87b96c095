"""The command line: messages instead of tracebacks, exit statuses, and what may not be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from avfast.cli import main

ROOT = Path(__file__).resolve().parents[1]


def refused(capsys, *words) -> str:
    """Run, expect status 2, and return the message."""
    assert main(list(words)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and "Traceback" not in captured.err
    return captured.err


def python(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_recipes_lists_what_runs_and_what_is_planned(capsys):
    assert main(["recipes"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("av-align\n") and "arXiv 2303.17490" in text and "needs: " in text
    runnable, planned = text.split("planned, not in this version: ")
    assert "elo" in planned and "elo" not in runnable and "cim" not in planned
    assert "cim" in runnable and "densecl" in runnable and "av-align" not in planned


def test_recipes_explains_the_keys_of_one(capsys):
    assert main(["recipes", "av-align"]) == 0
    assert "method.temperature=0.1  divides the logits" in capsys.readouterr().out


def test_simple_commands_need_torch_and_numpy_only():
    """With every optional library blocked, `recipes` and the help still work."""
    blocked = ["av", "accelerate", "rich", "matplotlib", "sklearn", "transformers", "safetensors",
               "jsonargparse", "yaml", "tensorboard"]  # fmt: skip
    out = python(
        f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
        "from avfast.cli import main\nassert main(['recipes']) == 0 and main([]) == 0"
    )
    assert "av-align" in out and "media-scan" in out


def test_a_missing_library_is_named_with_its_remedy():
    out = python(
        "import sys\nsys.modules['jsonargparse'] = None\nsys.stderr = sys.stdout\n"
        "from avfast.cli import main\n"
        "assert main(['pretrain', '--recipe', 'av-align', '--data', 'demo', '--dry-run']) == 2"
    )
    assert "needs the package 'jsonargparse': pip install 'avfast[train]'" in out


def test_no_command_prints_help(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    for command in (
        "env",
        "check",
        "bench",
        "recipes",
        "demo",
        "demo-data",
        "media-scan",
        "bn-scan",
        "pretrain",
    ):
        assert command in text


@pytest.mark.parametrize("way", ["python -m avfast", "avfast"])
def test_a_wrong_backend_in_the_environment_is_one_line(way):
    """The variable is obeyed while the package is imported, before the command line exists."""
    script = "import sys; sys.argv = ['/usr/bin/avfast', 'env']; from avfast.cli import main; sys.exit(main())"
    command = [sys.executable, *(["-m", "avfast", "env"] if way.startswith("python") else ["-c", script])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "AVFAST_BACKEND": "turbo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: AVFAST_BACKEND=turbo: ") and done.stderr.count("\n") == 1


def test_unknown_command(capsys):
    assert "did you mean 'pretrain'?" in refused(capsys, "pretran")
    assert "commands: env" in refused(capsys, "xyzzy")


def test_unknown_option(capsys):
    text = refused(capsys, "pretrain", "--recipe", "av-align", "--data", "x", "--budgt", "3s")
    assert "unknown argument '--budgt'; did you mean '--budget'?" in text
    assert "required" in refused(capsys, "pretrain", "--data", "x")
    assert "unknown argument 'extra'" in refused(capsys, "recipes", "av-align", "extra")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--recipe", "av-aling"], "unknown recipe 'av-aling': did you mean 'av-align'?"),
        (["--recipe", "elo"], "recipe 'elo' is planned"),
        (["--recipe", "av-align", "--budget", "soon"], "--budget: expected a time such as 60s"),
    ],
)
def test_mistakes_before_anything_is_read(capsys, words, answer):
    assert answer in refused(capsys, "pretrain", "--data", "nowhere", *words)


def test_mistakes_in_keys_folders_and_devices(capsys, tmp_path):
    pytest.importorskip("jsonargparse", reason="jsonargparse is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    base = ["pretrain", "--recipe", "av-align", "--out", str(tmp_path / "out"), "--device", "cpu", "--data"]
    assert "did you mean 'optim.lr'?" in refused(capsys, *base, "nowhere", "optim.lrr=3")
    assert "nowhere: no such file or folder" in refused(capsys, *base, "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no media files" in refused(capsys, *base, str(tmp_path / "empty"))
    assert "--device: expected auto, cpu or cuda" in refused(capsys, *base, "nowhere", "--device", "tpu")
    assert "does not exist" in refused(capsys, *base, "nowhere", "--resume", str(tmp_path / "gone.pt"))
    assert not (tmp_path / "out").exists()  # nothing was written on the way to any of these


def test_demo_data_then_media_scan_finds_what_was_planted(capsys, tmp_path):
    pytest.importorskip("av", reason="PyAV is not installed")
    assert main(["demo-data", str(tmp_path), "--clips", "6", "--faults"]) == 0
    assert "6 clips" in capsys.readouterr().out
    assert main(["media-scan", str(tmp_path / "clips"), "--json", str(tmp_path / "good.json")]) == 0
    assert main(["media-scan", str(tmp_path / "faults"), "--json", str(tmp_path / "bad.json")]) == 1
    assert (tmp_path / "good.json").is_file() and (tmp_path / "bad.json").is_file()


def test_env_and_check_run(capsys):
    assert main(["env"]) == 0
    assert "torch" in capsys.readouterr().out
    assert main(["check", "--backend", "torch"]) == 0
    assert "pair_nce_fwd" in capsys.readouterr().out
    assert "nonsense" in refused(capsys, "check", "--backend", "nonsense")


def test_bn_scan_names_what_it_cannot_find(capsys, tmp_path):
    assert "does not exist" in refused(capsys, "bn-scan", str(tmp_path / "gone.pt"))


def test_module_entry_point():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "avfast", "nonsense"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: avfast: unknown command")
