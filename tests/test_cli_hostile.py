"""What people type by mistake, command by command: one line, status 2, and nothing lost."""

from __future__ import annotations

import errno

import pytest
import torch
from engine_fixtures import real_clips
from test_cli import refused
from torch import nn

from avfast.cli import main
from avfast.data.outputs import prepare_file, require_folder
from avfast.errors import ConfigError

TRAIN = ["pretrain", "--recipe", "av-align", "--device", "cpu", "batch_size=8", "control=false", "frames=1", "size=32"]


@pytest.fixture
def file(tmp_path):
    """A file where a folder is expected."""
    (tmp_path / "file.txt").write_text("hello")
    return tmp_path / "file.txt"


@pytest.fixture
def weights(tmp_path):
    torch.save(nn.BatchNorm1d(3).state_dict(), tmp_path / "weights.pt")
    return str(tmp_path / "weights.pt")


def one_line(capsys, *words) -> str:
    text = refused(capsys, *map(str, words))
    assert text.count("\n") == 1, text
    return text


def test_a_file_in_the_way_of_a_folder(capsys, tmp_path, file, weights):
    inside = file / "out.json"
    assert "is not a folder" in one_line(capsys, "demo-data", file)
    assert "is not a folder" in one_line(capsys, "demo", "--out", file)
    assert "--json: cannot write" in one_line(capsys, "bn-scan", weights, "--json", inside)
    assert "--plot: cannot write" in one_line(capsys, "bn-scan", weights, "--plot", inside)
    assert "--json: cannot write" in one_line(capsys, "bench", "--json", inside)
    assert "is a file, expected a folder" in one_line(capsys, "media-scan", file)
    assert "it is a folder" in one_line(capsys, "bn-scan", weights, "--json", tmp_path)
    assert file.read_text() == "hello"


def test_read_only_places_are_refused_before_the_work(monkeypatch, tmp_path):
    from avfast.data import outputs

    monkeypatch.setattr(outputs.os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(ConfigError, match="--out: cannot write to .* is read-only"):
        require_folder(tmp_path / "a" / "b", "--out")
    with pytest.raises(ConfigError, match="--json: cannot write"):
        prepare_file(tmp_path / "a" / "b.json", "--json")
    assert prepare_file(None, "--json") is None and not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line_and_other_errors_of_the_system_are_not_hidden(capsys, monkeypatch):
    from avfast.data import commands

    def fail(error):
        def command(*args, **kwargs):
            raise error

        monkeypatch.setattr(commands, "media_scan_command", command)

    fail(OSError(errno.ENOSPC, "No space left on device"))
    assert main(["media-scan", "x"]) == 3
    assert capsys.readouterr().err == "error: No space left on device\n"
    fail(PermissionError(errno.EACCES, "Permission denied", "x/y"))
    assert one_line(capsys, "media-scan", "x") == "error: Permission denied: 'x/y'\n"
    fail(OSError("something inside"))
    with pytest.raises(OSError, match="something inside"):
        main(["media-scan", "x"])


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["demo-data", "new", "--clips", "3"], "clips: expected at least 6, got 3"),
        (["demo-data", "new", "--clips", "abc"], "invalid int value: 'abc'"),
        (["demo-data", "new", "--seed", "-1"], "seed: expected 0 or more"),
        (["demo-data", "new", "--photos", "nowhere"], "nowhere"),
        (["demo-data", "new", "--sounds", "nowhere"], "nowhere"),
        (["media-scan", "nowhere"], "nowhere: no such folder"),
        (["media-scan", ".", "--workers", "-1"], "--workers: expected 0 or more"),
        (["media-scan", ".", "--min-duration", "nan"], "--min-duration: expected seconds"),
        (["bn-scan", "."], "which is a folder"),
        (["bn-scan", "x.pt", "--threshold", "-1"], "--threshold: expected a number"),
        (["bn-scan", "x.pt", "--threshold", "nan"], "--threshold: expected a number"),
        (["demo", "--budget", "0"], "--budget: expected a time"),
        (["demo", "--budget", "nonsense"], "--budget: expected a time"),
        (["demo", "--seed", "x"], "invalid int value: 'x'"),
        (["bench", "nonsense"], "got 'nonsense'"),
        (["recipes", "nonsense"], "unknown recipe 'nonsense'"),
    ],
)
def test_wrong_values(capsys, monkeypatch, tmp_path, words, answer):
    if words[0] in ("demo-data", "demo"):
        pytest.importorskip("av", reason="PyAV is not installed")
    monkeypatch.chdir(tmp_path)
    assert answer in one_line(capsys, *words)
    assert not list(tmp_path.iterdir())


def test_an_unreadable_checkpoint_and_an_unknown_kind_of_picture(capsys, file, weights, tmp_path):
    assert "cannot be read with weights only (" in one_line(capsys, "bn-scan", file)
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    assert "xyz" in one_line(capsys, "bn-scan", weights, "--plot", tmp_path / "a.xyz")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there(capsys):
    assert "sees no CUDA device" in one_line(capsys, "check", "--device", "cuda")


def needs_training():
    for library in ("av", "accelerate", "jsonargparse", "transformers", "safetensors", "sklearn"):
        pytest.importorskip(library, reason=f"{library} is not installed")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["optim.lr=abc"], "optim.lr: expected float, got abc"),
        (["optim.momentum=7"], "optim.momentum: expected at least 0 and below 1"),
        (["steps=0"], "run.steps: expected at least 1"),
        (["size=0"], "method.size: expected at least 8"),
        (["dim=0"], "method.dim: expected at least 1"),
        (["sample_rate=0"], "method.sample_rate: expected at least"),
        (["duration=-1"], "method.duration: expected a positive number"),
        (["sample_rate=1000", "frontend=kaldi-fbank", "duration=0.01"], "the model does not run with these settings"),
        (["visual=nowhere"], "encoder 'nowhere' is neither"),
        (["batch_size=100000"], "fewer than one batch"),
        (["nonsense"], "expected key=value"),
        (["--resume", "nowhere.pt"], "'nowhere.pt' does not exist"),
        (["--config", "nowhere.yaml"], "configuration file 'nowhere.yaml'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_settings_of_a_training(capsys, tmp_path, words, answer):
    needs_training()
    assert answer in one_line(capsys, *TRAIN, "--data", real_clips(), "--out", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_data_that_cannot_be_trained_on(capsys, tmp_path, file):
    needs_training()
    (tmp_path / "bad.csv").write_text("file,label\na.mp4,x\n")
    (tmp_path / "gone.csv").write_text("path,label\na.mp4,x\n")
    out = ["--out", tmp_path / "out"]
    assert "expected a column 'path'" in one_line(capsys, *TRAIN, "--data", tmp_path / "bad.csv", *out)
    assert "1 of 1 listed files do not exist (a.mp4)" in one_line(capsys, *TRAIN, "--data", tmp_path / "gone.csv", *out)
    assert "expected a folder, a .csv list" in one_line(capsys, *TRAIN, "--data", file, *out)
    assert not (tmp_path / "out").exists()
    assert "is not a folder" in one_line(capsys, *TRAIN, "--data", real_clips(), "--out", file)


def test_clips_without_sound_are_named(capsys, tmp_path):
    needs_training()
    import av

    (tmp_path / "mute").mkdir()
    for path in sorted((real_clips() / "clips").iterdir())[:20]:
        with av.open(str(path)) as source, av.open(str(tmp_path / "mute" / path.name), "w") as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(source.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
    text = one_line(capsys, *TRAIN, "--data", tmp_path / "mute", "--out", tmp_path / "out", "batch_size=4", "steps=1")
    assert "mp4" in text or "media-scan" in text


def test_a_demo_does_not_replace_a_run_that_is_no_demo(capsys, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").write_text("precious")
    assert "holds a run that is no demo" in one_line(capsys, "demo", "--out", tmp_path)
    assert (tmp_path / "checkpoints" / "last.pt").read_text() == "precious"


def test_ctrl_c_in_the_evaluation_loses_nothing(capsys, monkeypatch, no_pictures, tmp_path):
    needs_training()
    from avfast.engine import conclude

    command = [*TRAIN, "--data", str(real_clips()), "--out", str(tmp_path), "steps=2", "eval_every=100"]

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conclude, "assess", interrupt)
        assert main(command) == 130
    error = capsys.readouterr().err
    assert "SIGINT in the evaluation: the training is saved in" in error and "--resume auto" in error
    assert (tmp_path / "checkpoints" / "final.pt").is_file() and not (tmp_path / "report.md").exists()
    assert "already holds a run" in one_line(capsys, *command)
    assert main([*command, "--resume", "auto"]) == 0
    assert "continuing at step 2 of 2" in capsys.readouterr().out and (tmp_path / "report.md").is_file()
