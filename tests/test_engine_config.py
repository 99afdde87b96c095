"""Configuration: sources in order, names with suggestions, types, ranges and differences."""

from __future__ import annotations

import re

import pytest

from avfast.engine.config import config_diff, describe_options, parse_config
from avfast.engine.signals import parse_budget
from avfast.errors import ConfigError

pytest.importorskip("jsonargparse", reason="jsonargparse is not installed")


def test_later_sources_win(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("recipe: av-align\noptim: {lr: 0.5, weight_decay: 0.25}\nmethod.dim: 7\n")
    config = parse_config("av-align", ["optim.lr=0.125"], preset="sound2scene", file=file)
    assert (config.optim.lr, config.optim.weight_decay, config.method.dim) == (0.125, 0.25, 7)
    assert config.method.distance == "l2" and config.method.temperature == 1.0  # the preset
    assert config.run.seed == 0  # the default


def test_short_keys_where_they_are_unambiguous():
    config = parse_config("av-align", ["lr=1e-3", "steps=7", "frames=4", "control=false"])
    assert (config.optim.lr, config.run.steps, config.method.frames, config.run.control) == (
        1e-3,
        7,
        4,
        False,
    )


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("optim.lrr=1", "unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
        ("learning_rate=1", "did you mean 'optim.lr'?"),
        ("method.temprature=1", "did you mean 'method.temperature'?"),
        ("zzzzzz=1", "`avfast recipes av-align` lists the keys"),
        ("run.steps", "expected key=value"),
        ("optim.lr=fast", "optim.lr: expected float, got fast"),
        ("method.distance=dot", "method.distance: expected Literal['cosine', 'l2'], got dot"),
        ("data.batch_size=1", "data.batch_size: expected at least 2, got 1"),
        ("run.steps=0", "run.steps: expected at least 1, got 0"),
    ],
)
def test_mistakes_are_one_line_with_the_cure(word, answer):
    with pytest.raises(ConfigError, match=re.escape(answer)) as caught:
        parse_config("av-align", [word])
    assert "\n" not in str(caught.value)


def test_unknown_presets_and_files(tmp_path):
    with pytest.raises(ConfigError, match="no preset 'papr'; presets: sound2scene"):
        parse_config("av-align", preset="papr")
    with pytest.raises(ConfigError, match="nowhere.yaml"):
        parse_config("av-align", file=tmp_path / "nowhere.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="expected sections"):
        parse_config("av-align", file=tmp_path / "list.yaml")


def test_differences_leave_out_what_does_not_change_the_result():
    old = parse_config("av-align").to_dict()
    new = parse_config("av-align", ["lr=0.1", "workers=2", "save_every=3", "control=false"]).to_dict()
    assert config_diff(old, new) == ["optim.lr: 0.002 -> 0.1"]


def test_every_option_is_explained():
    lines = describe_options("av-align")
    assert len(lines) > 25
    for line in lines:
        key, meaning = line.split("  ", 1)
        assert "=" in key and len(meaning) > 5, line


def test_budgets():
    assert [parse_budget(t) for t in ("60s", "10m", "0.5h", "45", None)] == [60, 600, 1800, 45, None]
    for text in ("", "fast", "-3s", "0", "inf", "nan", "10 minutes"):
        with pytest.raises(ConfigError, match="60s, 10m"):
            parse_budget(text)
