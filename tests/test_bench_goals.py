"""Asked against measured, and records of one family beside those of another."""

from __future__ import annotations

import copy

import pytest
from bench_fixtures import by_name, tiny_results

from avfast.benches import goals, registry, report, run
from avfast.benches.candidate import COMPILED, CONTEXT, LEAN, PEER, PUBLISHED


def record(**times):
    """A record of ours at 2 s and of others by role, weighed and held against a ceiling."""
    roles = {
        "eager": PUBLISHED,
        "compile(eager)": COMPILED,
        "compile(lean)": COMPILED,
        "peer": PEER,
        "MoCo-v2": CONTEXT,
    }
    ours = {"name": "avfast", "role": "ours", "status": "ok", "median_s": 2.0, "ceiling_share": 0.9}
    ours |= {"peak_bytes": 3 * 2**20, "peak_resident_bytes": 5 * 2**20, "saved_bytes": 10}
    others = [
        {"name": name, "role": roles[name], "status": "ok", "median_s": seconds}
        | {"peak_bytes": 101 * 2**20, "saved_bytes": 40}
        for name, seconds in times.items()
    ]
    return {"candidates": [*others, ours]}


def test_numbers_are_read_from_the_right_candidates():
    r = record(**{"eager": 12.0, "compile(eager)": 4.0, "compile(lean)": 5.0, "MoCo-v2": 1.6})
    assert goals.EAGER(r) == (6.0, "eager")
    assert goals.COMPILE(r) == (2.0, "compile(eager)")  # the quickest of them
    assert goals.LEANEST(r) == (2.5, "compile(lean)")
    assert goals.cost("MoCo")(r) == (1.25, "MoCo-v2")
    assert goals.share_of_peak(r)[0] == pytest.approx(90)
    assert goals.peak_mib(r)[0] == 5  # pages that kernels touch count, not tensors alone
    assert goals.saves_memory(2**20)(r)[0] == 25
    assert goals.held_share(r)[0] == 4
    assert goals.faster_than(LEAN)(r) is None and goals.faster_than(PEER)(r) is None


def test_a_peer_that_could_not_run():
    r = record(eager=4.0, peer=4.0)
    assert goals.refused("peer")(r)[0] == 0
    by_name(r)["peer"].update(status="unavailable", reason="cannot run in 14 GiB: MemoryError")
    assert goals.refused("peer")(r) == (1.0, "cannot run in 14 GiB")
    by_name(r)["peer"].update(reason="not installed: peer")
    assert goals.refused("peer")(r) is None


def test_missed_met_and_unmeasured_are_told_apart():
    case = goals.STEP.split("/")
    r = {**record(**{"MoCo-v2": 1.9}), "key": "/".join([*case, "train", "cpu"]), "threads": 2}
    one_thread = {**record(**{"MoCo-v2": 9.0}), "key": r["key"], "threads": 1}
    table = goals.goals_table([r, one_thread])
    assert "at most 1.010x | 1.053x (MoCo-v2) | **missed** |" in table
    assert "cost of a step with eager losses | at most 0.900x | not measured |  |" in table
    by_name(r)["MoCo-v2"]["median_s"] = 2.0
    assert "1.000x (MoCo-v2) | met |" in goals.goals_table([r])
    assert goals.goals_table([]) == ""


def test_a_goal_reads_the_mode_and_the_threads_it_is_of():
    def timed(mode, threads, seconds):
        return {**record(eager=seconds), "key": f"op/shape/contiguous/float32/{mode}/cpu", "threads": threads}

    records = [timed("forward", 1, 4.0), timed("forward", 2, 6.0), timed("forward+backward", 2, 8.0)]

    def found(case, **options):
        mine = goals.Goal(f"op/shape/contiguous/float32{case}", "over eager", goals.EAGER, 1, **options)
        chosen = mine.record_in(records)
        return chosen and mine.measure(chosen)[0]

    assert found("/forward") == 3 and found("/forward", threads=1) == 2 and found("/forward+backward") == 4
    assert found("/forward", threads=4) is None and found("/forw") is None
    records.append(timed("forward", 2, 10.0))
    assert found("/forward") == 5  # the newest


def test_every_goal_names_a_case_that_exists():
    keys = {
        case.key
        for name in registry.BENCHES
        if hasattr(registry.load(name), "cases")
        for case in registry.load(name).cases()
    }
    for goal in goals.GOALS:
        assert any(key.startswith(goal.case + "/") for key in keys), goal.case


def test_families_are_all_benches_once():
    assert [name for family in registry.FAMILIES.values() for name in family] == list(registry.BENCHES)
    with pytest.raises(SystemExit):
        run.main(["info_nce", "--only", "contrastive"])


def test_a_record_of_one_bench_keeps_the_others(tmp_path):
    first = tiny_results()
    first["overhead"] = [{"op": "double", "overhead_s": 1e-6}]
    run.record(first, tmp_path)
    second = copy.deepcopy(first)
    second["machine"]["commit"] = "later"
    second["overhead"] = []
    second["cases"][0]["op"] = "triple"
    run.record(second, tmp_path)
    (path,) = tmp_path.iterdir()
    merged = run.load(path)
    assert [case["op"] for case in merged["cases"]] == ["double", "triple"]
    assert merged["machine"]["commit"] == "later" and merged["overhead"][0]["op"] == "double"
    when = f"{first['machine']['commit']}, {first['machine']['date']}"
    assert merged["cases"][0]["measured_at"] == when and "measured_at" not in merged["cases"][1]
    assert f"Rows of double were measured at {when}." in report.readme_block(merged)
    run.record(second, tmp_path)  # once more: the mark stays that of the first measurement
    assert run.load(path)["cases"][0]["measured_at"] == when
