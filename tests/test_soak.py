"""The frame of the long checks: what runs, what is kept, what is said."""

from __future__ import annotations

import types

import pytest

from avfast.benches import run as bench_run
from avfast.benches.soak import registry, report, run
from avfast.benches.soak.rows import Row
from avfast.errors import ConfigError


def module(check, **facts):
    return types.SimpleNamespace(check=check, **{"UNIT": "turns", "SMALL": 2, "LONG": 100, "MINUTES": 5, **facts})


@pytest.fixture
def checks(monkeypatch):
    """Three checks: one holds, one does not, one raises."""

    def good(size, seed, say):
        say(f"{size} with {seed}")
        return [Row("good", "counts | turns", size, numbers={"rate_hz": 0.12345, "turns": size})]

    def bad(size, seed, say):
        return [Row("bad", "fails", size, failures=("step 7 | differs",)), Row("rest", "is absent", missing="no gloo")]

    def broken(size, seed, say):
        raise OSError("no such file: x.mp4")

    known = {"good": module(good), "bad": module(bad), "broken": module(broken)}
    monkeypatch.setattr(registry, "CHECKS", dict.fromkeys(known, ""))
    monkeypatch.setattr(registry, "load", known.__getitem__)
    return known


def test_every_check_that_is_named_can_be_called_small():
    for name in registry.CHECKS:
        found = registry.load(name)
        assert callable(found.check) and 0 < found.SMALL <= found.LONG and found.MINUTES > 0 and found.UNIT, name
    with pytest.raises(ConfigError, match="got 'nothing'"):
        registry.load("nothing")


def test_sizes_follow_the_minutes(checks):
    lines: list[str] = []
    run.measure(["good", "bad"], say=lines.append)
    run.measure(["good", "bad"], minutes=5, say=lines.append)
    run.measure(["good"], minutes=0.001, seed=3, say=lines.append)
    said = [line for line in lines if line.startswith("good: ")]
    assert said == ["good: 100 turns", "good: 50 turns", "good: 2 turns"] and "  good: 2 with 3" in lines


def test_what_fails_is_named_and_the_others_run(checks, capsys):
    assert run.main(["bad", "broken", "good"]) == 1
    out = capsys.readouterr().out
    assert "bad: bad: failed" in out and "failed: step 7 | differs" in out and "bad: rest: not run" in out
    assert "broken: the check itself: failed" in out and "OSError: no such file: x.mp4" in out
    assert "good: good: ok, 0.123 rate_hz, 100 turns" in out
    assert run.main(["good"]) == 0
    with pytest.raises(SystemExit):
        run.main(["nothing"])


def test_an_interrupt_keeps_what_is_done(checks, tmp_path, capsys):
    def stopped(size, seed, say):
        raise KeyboardInterrupt

    checks["bad"].check = stopped
    assert run.main(["good", "bad", "broken", "--json", str(tmp_path / "soak.json")]) == 130
    kept = report.load(tmp_path / "soak.json")
    assert [record["check"] for record in kept["checks"]] == ["good"] and kept["interrupted"] == "bad"
    assert "interrupted in bad" in capsys.readouterr().err


def test_a_record_keeps_the_checks_it_did_not_run(checks, tmp_path):
    table = tmp_path / "SOAK.md"
    first = run.measure(["good", "bad"], command="first", say=lambda line: None)
    second = run.measure(["good"], size=7, command="second", say=lambda line: None)
    run.keep(first, tmp_path, table)
    path = run.keep(second, tmp_path, table)
    assert [(r["check"], r["command"]) for r in report.load(path)["checks"]] == [("good", "second"), ("bad", "first")]
    text = table.read_text()
    assert "| good: good | counts \\| turns | 7 | ok | 0.0 s | rate_hz 0.123, turns 7 |" in text
    assert "| bad: bad | fails | 100 | **1 failed** |" in text and "not run: no gloo" in text
    assert "* bad, bad: step 7 | differs" in text and "`second`, 7 turns, avfast " in text
    assert [found.name for found in tmp_path.glob("amd*.json")] == []  # that is how the README's numbers are found
    with pytest.raises(ValueError, match="expected avfast bench results"):
        bench_run.load(path)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="expected avfast soak results"):
        report.load(tmp_path / "other.json")
