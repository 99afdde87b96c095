"""What a person sees: a bar on a terminal, plain lines elsewhere, and a word when a training goes wrong."""

from __future__ import annotations

import json
import math
import os
import pty
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from engine_fixtures import Toy, ToyClips, real_clips, toy_trainer

pytest.importorskip("accelerate", reason="accelerate is not installed")

from avfast.engine import build  # noqa: E402
from avfast.engine.board import Board  # noqa: E402
from avfast.engine.config import DataConfig  # noqa: E402
from avfast.engine.journal import Journal, parse_rows, read_rows  # noqa: E402
from avfast.engine.progress import Progress  # noqa: E402
from avfast.engine.signals import Budget, StopRequest  # noqa: E402
from avfast.engine.watch import Watch, warnings_of  # noqa: E402
from avfast.evaluate import collapse_indicators, collapse_warning  # noqa: E402
from avfast.terminal import is_live  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def toy_recipe(monkeypatch):
    monkeypatch.setattr(build, "get_method", lambda name: Toy)


@pytest.fixture
def plain_environment(monkeypatch):
    """As at a desk: a capable terminal, and nothing that asks for quiet."""
    for name in ("NO_COLOR", "CI", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def fit(out, **options):
    trainer = toy_trainer(out, **options)
    return trainer.fit(StopRequest(), Budget(None))


# ------------------------------------------------------------------------------------------- terminals


@pytest.mark.usefixtures("plain_environment")
@pytest.mark.parametrize(
    ("variable", "value", "live"),
    [
        ("TERM", "xterm", True), ("TERM", "dumb", False), ("TERM", "", False), ("NO_COLOR", "1", False),
        ("NO_COLOR", "", True), ("CI", "true", False), ("CI", "false", True), ("FORCE_COLOR", "1", True),
    ],
)  # fmt: skip
def test_only_a_capable_terminal_is_drawn_over(monkeypatch, variable, value, live):
    monkeypatch.setenv(variable, value)
    leader, follower = pty.openpty()
    with open(follower, "w") as terminal, open(os.devnull, "w") as file:
        assert is_live(terminal) is live
        assert not is_live(file) and not is_live(None)
    assert not is_live(terminal)  # closed by now
    os.close(leader)


def on_a_terminal(command: list[str], folder: Path) -> str:
    """What a command writes to a terminal of its own, every byte of it."""
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "CI", "FORCE_COLOR")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    leader, follower = pty.openpty()
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=environment, cwd=folder)
    os.close(follower)
    parts = []

    def read() -> None:
        try:
            while data := os.read(leader, 65536):
                parts.append(data)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    assert process.wait(timeout=240) == 0, b"".join(parts)[-3000:]
    reader.join(timeout=10)
    os.close(leader)
    return b"".join(parts).decode()


TWICE = """
import os, sys
from avfast.cli import main
for folder, term in (("a", "xterm-256color"), ("b", "dumb")):
    os.environ["TERM"] = term
    status = main(["pretrain", "--out", folder, *sys.argv[1:]])
    print("status", status)
"""


def test_the_real_command_draws_a_bar_on_a_terminal_that_can_show_it(tmp_path):
    """In a pipe: see test_two_processes_train_one_model_and_one_report."""
    for library in ("av", "jsonargparse", "transformers", "safetensors", "sklearn", "rich"):
        pytest.importorskip(library, reason=f"{library} is not installed")
    words = ["steps=4", "batch_size=16", "log_every=2", "eval_every=4", "control=false", "frames=1", "size=32"]
    command = [sys.executable, "-c", TWICE, "--recipe", "av-align", "--data", str(real_clips()), "--device", "cpu"]
    drawn, plain = on_a_terminal([*command, *words], tmp_path).split("status 0")[:2]
    assert "\x1b[" in drawn and "━" in drawn, "a bar"
    assert "train 2/4  loss" not in drawn, "the bar says it"
    assert "train 4/4  validation: loss" in drawn
    plain = plain.replace("\r\n", "\n")  # the terminal's own line ends
    assert "\x1b" not in plain and "\r" not in plain and "━" not in plain
    lines = [line for line in plain.splitlines() if line.startswith("train ")]
    assert [line.split("  ")[0] for line in lines] == ["train 2/4", "train 4/4", "train 4/4"]
    assert "clips/s" in lines[0] and "validation: loss" in lines[2]


@pytest.mark.usefixtures("plain_environment")
@pytest.mark.parametrize("live", [False, True])
def test_a_line_per_interval_with_rate_and_times_or_the_bar_alone(monkeypatch, capsys, live):
    if live:
        pytest.importorskip("rich", reason="rich is not installed")
    monkeypatch.setattr("avfast.engine.progress.is_live", lambda stream: live)
    row = {"loss": 1.5, "samples_per_s": 20.0, "data_s": 0.3, "compute_s": 0.1}
    with Progress(100, "train") as progress:
        for step in (10, 20, 30):
            progress.advance(step)
            progress.line(step, row)
        progress.line(30, {**row, "loss": "nan"})  # as the log has it
    text = capsys.readouterr().out
    if not live:
        assert "train 30/100  loss 1.500  20 clips/s  data 300 ms + compute 100 ms per step  eta" in text
        assert "loss nan" in text and len(text.splitlines()) == 4
    with Progress(1, "other ranks", quiet=True) as progress:
        progress.line(1, row)
        progress.say("a word")
    assert capsys.readouterr().out == ""


# ------------------------------------------------------------------------------------------- the log


def test_every_line_of_the_log_is_json_with_what_its_page_promises(tmp_path):
    result = fit(tmp_path, steps=12, log_every=4, eval_every=6)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) for line in lines]
    assert rows == result.rows and [(r["kind"], r["step"]) for r in rows] == [
        ("train", 4), ("val", 6), ("train", 8), ("train", 12), ("val", 12)]  # fmt: skip
    train = rows[0]
    promised = {"kind", "step", "time", "epoch", "lr", "loss", "top", "grad_norm", "samples_per_s", "data_s",
                "compute_s", "collapse", "broken"}  # fmt: skip
    assert promised <= train.keys() <= promised | {"rss_mib", "cuda_peak_mib", "warnings"}
    assert abs(train["time"] - time.time()) < 60 and train["epoch"] == 0.8
    if Path("/proc/self/statm").exists():
        assert 50 < train["rss_mib"] < 100_000


@pytest.mark.parametrize("clip", [0.0, 1e-3, 1e3])
def test_the_gradient_norm_is_that_before_clipping(tmp_path, monkeypatch, clip):
    trainer = toy_trainer(tmp_path, steps=3, log_every=3, clip_norm=clip)
    expected = []
    step, clipping = trainer.optimizer.step, trainer.accelerator.clip_grad_norm_

    def norm() -> float:
        return math.sqrt(sum(p.grad.double().square().sum().item() for p in trainer.method.parameters()))

    def before_clipping(*arguments):
        expected.append(norm())
        return clipping(*arguments)

    monkeypatch.setattr(trainer.accelerator, "clip_grad_norm_", before_clipping)
    if clip == 0:
        monkeypatch.setattr(trainer.optimizer, "step", lambda: (expected.append(norm()), step()))
    rows = trainer.fit(StopRequest(), Budget(None)).rows
    assert len(expected) == 3
    wanted = sum(expected) / 3 if clip else expected[-1]
    assert rows[0]["grad_norm"] == pytest.approx(wanted, rel=1e-4)


def test_measuring_changes_nothing_that_is_computed(tmp_path, monkeypatch):
    often, seldom = (toy_trainer(tmp_path / n, steps=9, log_every=k) for n, k in (("a", 1), ("b", 9)))
    for trainer in (often, seldom):
        torch.manual_seed(5)
        trainer.fit(StopRequest(), Budget(None))
    assert all(torch.equal(v, seldom.method.state_dict()[k]) for k, v in often.method.state_dict().items())


def test_what_is_not_finite_is_a_word_and_torn_lines_are_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path)
    values = {"loss": math.nan, "parts": [1.0, math.inf], "nested": {"x": -math.inf}, "tensor": torch.tensor(0.5)}
    journal.write("train", step=1, **values)
    row = json.loads(path.read_text())
    assert (row["loss"], row["parts"], row["nested"], row["tensor"]) == ("nan", [1.0, "inf"], {"x": "-inf"}, 0.5)
    with open(path, "a") as handle:
        handle.write('3\n{"kind": "val"}\n[]\nnull\n\xff\n{"kind": "train", "step": 2}\n{"kind": "tr')
    rows, torn = parse_rows(path)
    assert [r["step"] for r in rows] == [1, 2] and torn == [2, 3, 4, 5, 6, 8]
    assert [r["step"] for r in Journal(path, resume_step=1).rows] == [1] and len(read_rows(path)) == 1


def test_the_log_can_be_read_at_every_step_of_the_run(tmp_path):
    trainer = toy_trainer(tmp_path, steps=6, log_every=1, eval_every=100)
    seen = []
    advance = Progress.advance

    class Reading(Progress):
        def advance(self, step):
            advance(self, step)
            seen.append(len(read_rows(tmp_path / "metrics.jsonl")))

    from avfast.engine import loop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Progress", Reading)
        trainer.fit(StopRequest(), Budget(None))
    assert seen == [0, 1, 2, 3, 4, 5]


# ------------------------------------------------------------------------------------------- collapse


def batch(kind: str, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    if kind == "constant":
        return torch.randn(1, 64, generator=g).expand(32, 64)
    if kind == "nearly all equal":
        return torch.randn(1, 64, generator=g) + 0.01 * torch.randn(32, 64, generator=g)
    if kind == "zeros":
        return torch.zeros(32, 64)
    if kind == "one line":
        return torch.randn(32, 1, generator=g) @ torch.randn(1, 64, generator=g)
    if kind == "not finite":
        return torch.full((32, 64), math.nan)
    if kind == "rectified":
        return torch.randn(32, 64, generator=g).relu()
    if kind == "four classes":
        return torch.randn(4, 64, generator=g).repeat(8, 1) + 0.1 * torch.randn(32, 64, generator=g)
    return torch.randn(32, 64, generator=g)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("constant", "nearly identical (mean cosine 1.000, std 0.00)"),
        ("nearly all equal", "nearly identical"),
        ("zeros", "nearly identical (mean cosine 0.000, std 0.00)"),
        ("one line", "nearly one-dimensional (effective rank 1.00)"),
        ("not finite", "not finite"),
    ],
)
def test_each_way_to_collapse_has_its_warning(kind, words):
    assert words in collapse_warning(collapse_indicators(batch(kind)))


@pytest.mark.parametrize("kind", ["healthy", "rectified", "four classes"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_healthy_embeddings_have_none(kind, seed):
    assert collapse_warning(collapse_indicators(batch(kind, seed))) is None


@pytest.mark.parametrize("how", ["constant", "low rank", "healthy"])
def test_a_model_that_collapses_is_named_in_the_log_and_on_the_terminal(tmp_path, capsys, how):
    """Of a model whose weights are made so; the visual tower stays as it is."""
    trainer = toy_trainer(tmp_path, steps=20, log_every=2, eval_every=100)
    last = trainer.method.audio[3]
    with torch.no_grad():
        if how == "constant":
            last.weight.zero_()
            last.bias.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        if how == "low rank":
            last.weight[1:] = 0
            last.bias.zero_()
    if how != "healthy":
        last.requires_grad_(False)
    rows = [r for r in trainer.fit(StopRequest(), Budget(None)).rows if r["kind"] == "train"]
    said = capsys.readouterr().out
    words = {"constant": "nearly identical", "low rank": "nearly one-dimensional"}.get(how)
    if words is None:
        assert not any("audio" in r.get("warnings", {}) for r in rows) and "audio embeddings" not in said
        return
    assert "warnings" not in rows[0], "a tenth of the run is left to warm-up"
    assert all(words in r["warnings"]["audio"] for r in rows[1:])
    assert said.count(f"main 4: audio embeddings {words}") == 1 and said.count("audio embeddings") == 1
    assert warnings_of(rows)[0].startswith(f"steps 4 to 20, the last ones: audio embeddings {words}")


def test_a_collapse_that_comes_back_is_said_again():
    watch = Watch(DataConfig(), 100)
    bad, row = collapse_indicators(batch("constant")), {"data_s": 0.0, "compute_s": 1.0}
    news = [
        watch.news(watch.warnings(step, row, {"audio": values}))
        for step, values in ((5, bad), (20, bad), (30, bad), (40, collapse_indicators(batch("ok"))), (50, bad))
    ]
    assert [len(lines) for lines in news] == [0, 1, 0, 0, 1]


# ------------------------------------------------------------------------------------------- the loader


class SlowClips(ToyClips):
    def __getitem__(self, key):
        time.sleep(0.01)
        return super().__getitem__(key)


def test_a_slow_loader_is_named_once_with_its_cure_and_a_fast_one_is_not(tmp_path, capsys):
    slow = fit(tmp_path / "slow", clips=SlowClips(), steps=8, log_every=2, eval_every=100)
    said = capsys.readouterr().out
    assert said.count("loader-bound") == 1 and "try data.workers=2 or data.cache=memory" in said
    assert any("loader-bound" in line and "% of the time waits for data" in line for line in warnings_of(slow.rows))
    clips = [ToyClips()[0, i] for i in range(20)]
    trainer = toy_trainer(tmp_path / "fast", clips=clips, steps=8, log_every=4, eval_every=100)
    trainer.method.register_forward_hook(lambda *arguments: time.sleep(0.05))  # a step that other jobs do not outlast
    fast = trainer.fit(StopRequest(), Budget(None))
    assert "loader-bound" not in capsys.readouterr().out and not warnings_of(fast.rows)


@pytest.mark.parametrize(
    ("data", "cure"),
    [
        (DataConfig(workers=0), "try data.workers=2 or data.cache=memory"),
        (DataConfig(workers=3), "try more than data.workers=3 or data.cache=memory"),
        (DataConfig(workers=0, cache="memory"), "try data.workers=2"),
    ],
)
def test_the_cure_is_something_that_is_not_done_already(data, cure):
    row = {"data_s": 0.3, "compute_s": 0.1}
    watch, long = Watch(data, 100), Watch(data, 10**6)
    said = [watch.warnings(step, row, {}) for step in (5, 10, 20)]
    assert said == [{}, {}, {"loader-bound": f"75% of the time waits for data; {cure}"}], "a tenth fills caches"
    assert [bool(long.warnings(step, row, {})) for step in (50, 100, 101)] == [False, False, True]
    assert Watch(data, 4).warnings(1, row, {}) == {}, "and the first interval in any case"


# ------------------------------------------------------------------------------------------- TensorBoard


def test_a_continued_run_and_its_control_have_their_own_curves(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from test_engine_board import read_back

    board = tmp_path / "tensorboard"
    first = toy_trainer(tmp_path, steps=4, log_every=1, eval_every=100, board_folder=board / "main")
    last = first.fit(StopRequest(), Budget(None)).checkpoints["last"]
    longer = toy_trainer(
        tmp_path, steps=6, log_every=1, eval_every=100, resume=last, force=True, board_folder=board / "main"
    )
    rows = longer.fit(StopRequest(), Budget(None)).rows
    toy_trainer(
        tmp_path / "control", steps=3, log_every=1, kind="control", board_folder=board / "control"
    ).fit(StopRequest(), Budget(None))  # fmt: skip
    shown = {e.step: e.value for e in read_back(board / "main").Scalars("train/loss")}
    assert shown == pytest.approx({r["step"]: r["loss"] for r in rows if r["kind"] == "train"}, rel=1e-5)
    assert list(shown) == [1, 2, 3, 4, 5, 6]
    assert len(read_back(board / "control").Scalars("train/loss")) == 3
    tags = read_back(board / "main").Tags()["scalars"]
    assert "train/grad_norm" in tags and "train/time" not in tags and isinstance(longer.board, Board)
