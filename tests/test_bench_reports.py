"""What is made of bench results: files, reports, README numbers, the regression gate, comparisons."""

from __future__ import annotations

import copy

import pytest
from bench_fixtures import by_name, tiny_results

from avfast.benches import compare, gate, machine, report, run


@pytest.fixture
def results():
    return tiny_results()


def test_json_round_trip(results, tmp_path):
    run.save(results, tmp_path / "sub" / "results.json")
    assert run.load(tmp_path / "sub" / "results.json") == results
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["results.json"]
    (tmp_path / "other.json").write_text('{"schema": 0}')
    with pytest.raises(ValueError, match="expected avfast bench results"):
        run.load(tmp_path / "other.json")


def test_only_a_quiet_run_is_recorded(results, tmp_path, capsys):
    assert run.record(results, tmp_path) == 0
    (path,) = tmp_path.iterdir()
    assert path.name == f"{machine.slug(results['machine'])}.json"
    recorded = path.read_bytes()
    assert report.headline(run.load(path)["cases"][0]) == report.headline(results["cases"][0])
    results["cases"][0].update(publishable=False, not_for_publication=["fast differs from itself by 75%"])
    assert run.record(results, tmp_path) == 0, "of a quiet machine, a noisy case is kept"
    assert "1 cases were measured on a busy machine or with much noise" in report.readme_block(run.load(path))
    recorded = path.read_bytes()
    results["cases"][0].update(busy=True, not_for_publication=["load average 9.00 exceeds"])
    assert run.record(results, tmp_path) == 1
    assert "load average 9.00" in capsys.readouterr().err
    assert path.read_bytes() == recorded


# ----------------------------------------------------------------------------------------------- report


def test_the_headline_is_the_worst_ratio(results):
    record = results["cases"][0]
    record["speedups"] = {"published": 39.0, "lean": 1.5, "peer": 23.0}
    record["worst"] = {"against": "lean", "ratio": 1.5}
    assert report.headline(record) == "1.50x against lean, the best of 3 opponents"
    record["noise_floor"] = 0.6
    assert report.headline(record).startswith("no difference against lean")
    row = report.readme_block(results).splitlines()[4]
    assert "no difference (lean)" in row and "39.00x" not in row


def test_a_case_too_large_for_everybody_else_has_its_row(results):
    record = copy.deepcopy(results["cases"][0])
    for entry in record["candidates"]:
        if entry["role"] != "ours":
            reason = "not installed" if entry["name"] == "absent" else "cannot run in 8 GiB: MemoryError"
            entry.update(status="unavailable", reason=reason)
    record.update(worst=None, ratio_to_published=None, speedups={})
    row = report.readme_block({**results, "cases": [record]}).splitlines()[4]
    assert "| published, lean cannot run in 8 GiB | - |" in row
    record["candidates"] = [entry for entry in record["candidates"] if entry["role"] != "ours"]
    assert "cannot run" not in report.readme_block({**results, "cases": [record]})


def test_the_table_shows_everybody(results):
    text = report.markdown(results)
    for name in ("published", "lean", "**ours**", "| absent | unavailable: not installed"):
        assert name in text
    results["cases"][0].update(publishable=False, not_for_publication=["load average 9.00 exceeds"])
    assert "**Not for publication:** load average 9.00" in report.markdown(results)
    block = report.readme_block(results)
    assert "double" not in block and "1 cases were measured on a busy machine" in block


def test_readme_numbers_are_replaced_between_the_markers(results, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- bench:begin -->\nold numbers\n<!-- bench:end -->\nafter\n")
    saved = tmp_path / "results.json"
    run.save(results, saved)
    assert report.main([str(saved), "--readme", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    assert "old numbers" not in text and "| double forward |" in text
    assert not report.update_readme(readme, report.readme_block(results))  # a second time changes nothing
    readme.write_text("no markers")
    with pytest.raises(ValueError, match="expected one"):
        report.update_readme(readme, "x")


def test_report_writes_markdown_and_plots(results, tmp_path):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    run.save(results, tmp_path / "results.json")
    report.main([str(tmp_path / "results.json"), "--out", str(tmp_path / "out")])
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "report.md",
        "double-speedup.png",
        "double-memory.png",
    }


# ------------------------------------------------------------------------------------- gate and comparison


def fabricated(ratio, key="double/vector/contiguous/float32/forward/cpu", threads=1):
    return {
        "schema": run.SCHEMA,
        "cases": [{"key": key, "op": "double", "threads": threads, "ratio_to_published": ratio}],
    }


class Measured:
    """Returns the given ratios in turn and remembers what was asked for."""

    def __init__(self, *outcomes):
        self.outcomes, self.asked = list(outcomes), []

    def __call__(self, keys):
        self.asked.append(keys)
        return fabricated(self.outcomes.pop(0))


def test_gate_passes_within_fifteen_percent_at_once():
    measure = Measured(8.6)
    assert gate.gate(measure, fabricated(10.0)) == []
    assert measure.asked == [None]


def test_gate_fails_only_after_three_measurements():
    measure = Measured(8.0, 8.1, 8.2)
    (failure,) = gate.gate(measure, fabricated(10.0))
    assert "8.20x the published form, committed 10.00x, allowed 8.50x" in failure
    key = ("double/vector/contiguous/float32/forward/cpu", 1)
    assert measure.asked == [None, [key], [key]]


def test_gate_forgives_one_bad_measurement_and_a_lost_ratio():
    assert gate.gate(Measured(5.0, 9.9), fabricated(10.0)) == []
    assert gate.gate(Measured(None, 9.9), fabricated(10.0)) == []


def test_gate_fails_when_a_case_has_no_ratio_any_more():
    (failure,) = gate.gate(Measured(None, None, None), fabricated(10.0))
    assert "no valid ratio" in failure


def test_gate_on_this_machine(tmp_path, monkeypatch, capsys):
    assert compare.run_gate([], tmp_path) == 2
    assert "no committed results for this machine" in capsys.readouterr().err
    run.save(fabricated(10.0), tmp_path / f"{machine.slug(machine.facts())}.json")
    monkeypatch.setattr(run, "measure", lambda *_, **__: fabricated(9.0))
    assert compare.run_gate([], tmp_path) == 0
    monkeypatch.setattr(run, "measure", lambda *_, **__: fabricated(2.0))
    assert compare.run_gate([], tmp_path) == 1
    assert "regression: double/" in capsys.readouterr().err


def test_comparison_of_two_commits_has_a_control(results):
    slower = copy.deepcopy(results)
    ours = by_name(slower["cases"][0])["ours"]
    ours["median_s"] *= 2
    table = compare.comparison([slower], [results])  # B is the faster one
    assert "| 2.00x | 1.00x |" in table
    gone = copy.deepcopy(results)
    by_name(gone["cases"][0])["ours"]["status"] = "struck out"
    assert "only in A" in compare.comparison([results], [gone])
