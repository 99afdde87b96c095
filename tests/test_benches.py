"""The bench harness: checked before timed, interleaved, weighed, and honest about a busy machine."""

from __future__ import annotations

import json
import time

import pytest
import torch
from bench_fixtures import SIZE, by_name, candidate, case, quick_protocol

from avfast.benches import (
    accuracy,
    compiled,
    harness,
    machine,
    memory,
    ratios,
    timing,
    training,
)
from avfast.benches.candidate import BACKEND, COMPILED, LEAN, OURS, PEER, PUBLISHED, Candidate, Case

# ------------------------------------------------------------------------------------- checked before timed


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (lambda x: 2 * x + 1, "relative error"),
        (lambda x: torch.full_like(x, float("nan")), "relative error inf"),
        (lambda x: 2 * x[:-1], "expected shape"),
    ],
    ids=["off by one", "nan", "short"],
)
def test_a_wrong_answer_is_struck_out_and_not_timed(wrong, complaint):
    log = []
    record = harness.run_case(
        case(candidate("right", PUBLISHED), candidate("wrong", OURS, result=wrong, log=log)), quick_protocol()
    )
    entry = by_name(record)["wrong"]
    assert entry["status"] in ("struck out", "failed") and complaint in entry["reason"]
    assert "median_s" not in entry and len(log) == 1  # the one call of the check
    assert by_name(record)["right"]["status"] == "ok"
    assert record["worst"] is None and record["ratio_to_published"] is None


def test_a_candidate_with_other_outputs_fails():
    extra = Candidate("extra", lambda x: lambda: {"y": 2 * x, "z": x}, OURS)
    record = harness.run_case(case(candidate("right", PUBLISHED), extra), quick_protocol())
    assert "expected outputs ['y'], got ['y', 'z']" in by_name(record)["extra"]["reason"]


def test_masks_must_match_exactly():
    flags = torch.tensor([True, False, True, True])
    errors = accuracy.errors_of({"m": flags}, {"m": flags})
    assert accuracy.objection(errors, None, torch.float32, ("m",)) is None
    errors = accuracy.errors_of({"m": flags}, {"m": ~flags})
    assert errors["m"].relative == 1.0
    assert "m has relative error" in accuracy.objection(errors, None, torch.float32, ("m",))


def test_allowance_follows_the_published_forms_own_error():
    baseline = {"y": accuracy.Error(1e-3, 1.0)}
    assert accuracy.objection({"y": accuracy.Error(2.9e-3, 1.0)}, baseline, torch.float32) is None
    assert accuracy.objection({"y": accuracy.Error(3.1e-3, 1.0)}, baseline, torch.float32)
    # Half the digits are always allowed, and no more unless the published form is worse.
    for known in (None, {"y": accuracy.Error(0.0, 0.0)}):
        assert accuracy.objection({"y": accuracy.Error(3e-4, 1.0)}, known, torch.float32) is None
        assert accuracy.objection({"y": accuracy.Error(4e-4, 1.0)}, known, torch.float32)


def test_infinities_in_place_are_right_and_out_of_place_are_wrong():
    answer = torch.tensor([1.0, float("inf"), float("nan")])
    assert accuracy.error_of(answer, answer.double()).relative == 0.0
    assert accuracy.error_of(answer.roll(1), answer.double()).relative == float("inf")


def test_unavailable_left_out_and_failing_candidates_say_why():
    def broken(x):
        raise RuntimeError("no such unit\nsecond line")

    record = harness.run_case(
        case(
            candidate("right", PUBLISHED),
            candidate("absent", PEER, missing=lambda: "the package 'peer' is not installed"),
            candidate("patience", COMPILED, slow=True),
            Candidate("broken", broken, LEAN),
        ),
        quick_protocol(),
    )
    entries = by_name(record)
    assert (entries["absent"]["status"], entries["absent"]["reason"]) == (
        "unavailable",
        "the package 'peer' is not installed",
    )
    assert entries["patience"]["status"] == "left out"
    assert (entries["broken"]["status"], entries["broken"]["reason"]) == (
        "failed",
        "RuntimeError: no such unit",
    )


def test_a_candidate_that_is_never_ready_is_given_up():
    record = harness.run_case(
        case(candidate("right", PUBLISHED), candidate("stuck", COMPILED, seconds=30)),
        quick_protocol(ready_limit=0.2),
    )
    assert "TooSlow" in by_name(record)["stuck"]["reason"]


def test_time_limit_restores_the_alarm():
    with compiled.time_limit(60):
        pass
    with pytest.raises(compiled.TooSlow), compiled.time_limit(0.05):
        time.sleep(5)
    time.sleep(0.06)  # an alarm left behind would end the test run here


# ----------------------------------------------------------------------------------------------- timing


def test_round_robin_moves_its_start():
    order = [name for _, name in timing.round_robin(["a", "b", "c"], 4)]
    assert order == list("abcbcacababc")


def test_candidates_are_interleaved_and_one_runs_twice():
    log = []
    record = harness.run_case(
        case(
            candidate("slow", PUBLISHED, seconds=2e-3, log=log),
            candidate("fast", OURS, seconds=1e-3, log=log),
        ),
        quick_protocol(),
    )
    assert record["twin"] == "fast"  # ours is what the noise floor must be known for
    rounds = ["".join(name[0] for name in log[-15:][i : i + 3]) for i in range(0, 15, 3)]
    # slow, fast, fast (again); then fast, fast, slow; then fast, slow, fast; and so on.
    assert rounds == ["sff", "ffs", "fsf", "sff", "ffs"]


def test_ratios_and_the_worst_of_them():
    record = harness.run_case(
        case(
            candidate("published", PUBLISHED, seconds=16e-3),
            candidate("lean", LEAN, seconds=8e-3),
            candidate("ours", OURS, seconds=4e-3),
            candidate("ours[other]", BACKEND, seconds=1e-3),
        ),
        quick_protocol(),
    )
    assert record["ratio_to_published"] == pytest.approx(4, rel=0.5)
    assert record["worst"]["against"] == "lean"  # not the backend: we do not compete with ourselves
    assert record["worst"]["ratio"] == pytest.approx(2, rel=0.5)
    assert set(record["speedups"]) == {"published", "lean"}
    entry = by_name(record)["ours"]
    assert entry["min_s"] <= entry["lower_s"] <= entry["median_s"] <= entry["upper_s"]
    assert entry["cpu_s"] < entry["median_s"]  # sleeping costs no CPU time
    assert entry["bytes_per_s"] == pytest.approx(8 * SIZE / entry["median_s"])
    assert 0 < entry["ceiling_share"] < 1


def test_noise_floor():
    assert timing.noise_floor([1.0] * 9, [1.0] * 9) == 0
    assert timing.noise_floor([1.0] * 9, [1.1] * 9) == pytest.approx(0.1)
    shaky = [0.8, 1.2] * 5  # equal medians must not hide a spread of 20 %
    assert timing.noise_floor([1.0] * 10, shaky) == pytest.approx(0.2)
    assert not ratios.is_difference(1.05, 0.1) and not ratios.is_difference(1 / 1.05, 0.1)
    assert ratios.is_difference(1.2, 0.1) and ratios.is_difference(1 / 1.2, 0.1)


def test_repeats_fill_a_slice_and_threads_are_restored():
    assert timing.repeats_for([lambda: time.sleep(1e-4)], "cpu", min_slice=5e-2) > 3
    before = torch.get_num_threads()
    with timing.threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_seconds_stop_a_case_after_complete_rounds():
    record = harness.run_case(
        case(candidate("slow", PUBLISHED, seconds=5e-3)), quick_protocol(rounds=1000, seconds=0.05)
    )
    assert 5 <= record["rounds"] < 100


# ----------------------------------------------------------------------------------------------- memory


def test_peak_memory_of_a_known_allocation():
    megabyte = 2**20

    def call():
        first = torch.ones(48 * megabyte // 4)
        second = torch.ones(16 * megabyte // 4)  # the peak: both at once
        del first
        return second

    peak = memory.peak_memory(call)
    assert peak.bytes == pytest.approx(64 * megabyte, abs=megabyte)
    again = memory.peak_memory(call)  # freed pages that were not given back would make it look free
    assert again.bytes == pytest.approx(64 * megabyte, abs=megabyte)


def test_a_small_call_is_weighed_by_the_exact_figure():
    x = torch.zeros(256)
    assert memory.peak_memory(x.clone).bytes == 1024


def test_saved_for_backward_counts_each_storage_once():
    x = torch.ones(1000, requires_grad=True)
    weight = torch.ones(1000, requires_grad=True)

    def forward():
        y = x * weight  # saves x and weight
        return (y * y.detach()).exp()  # saves y's storage, and the result

    saved = memory.saved_for_backward(forward, parameters=[weight], inputs=[x])
    assert (saved.total, saved.beyond_inputs) == (3 * 4000, 2 * 4000)


def test_a_step_returns_gradients_and_reports_what_it_holds():
    x = torch.arange(4.0).requires_grad_()
    step = training.Step(lambda: x.square(), {"x": x}, torch.ones(4), inputs=[x])
    assert step()["d_x"].tolist() == [0, 2, 4, 6]
    whole = Case(
        "square",
        "vector",
        (4,),
        inputs=lambda: x,
        oracle=lambda x: {"output": x.detach().double() ** 2, "d_x": 2 * x.detach().double()},
        candidates=(Candidate("eager", lambda x: step, PUBLISHED),),
    )
    entry = by_name(harness.run_case(whole, harness.Protocol(rounds=3)))["eager"]
    assert (entry["saved_bytes"], entry["saved_beyond_inputs_bytes"]) == (16, 0)


# -------------------------------------------------------------------------------------- machine and record


def test_a_busy_machine_is_not_published():
    assert machine.Busyness(0.9, 1.2, 0.1).objections(1) == []
    assert "load average 3.00 exceeds the 2 cores" in machine.Busyness(0.5, 3.0, 0.0).objections(2)[0]
    assert "other processes kept 0.50 cores busy" in machine.Busyness(0.5, 0.5, 0.5).objections(2)[0]


def test_noise_is_not_published(monkeypatch):
    """On a quiet machine too: half of a candidate's calls may wait for threads that another left spinning."""
    for noise, told in ((0.75, True), (0.2, False)):
        monkeypatch.setattr(harness, "_noise", lambda slices, twin, noise=noise: noise)
        record = harness.run_case(case(candidate("slow", PUBLISHED), candidate("fast", OURS)), quick_protocol())
        objections = record["not_for_publication"]
        assert any("fast differs from itself by 75%" in words for words in objections) == told
        assert record["publishable"] == (not objections)


def test_facts_name_the_machine():
    facts = machine.facts()
    assert facts["cores"] >= 1 and facts["torch"] == torch.__version__
    assert json.loads(json.dumps(facts)) == facts
    assert machine.slug(facts) and set(machine.slug(facts)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_bandwidth_of_a_copy_and_a_read_are_plausible():
    for kind in ("copy", "read"):
        assert 1e8 < machine.bandwidth(kind, 2**20, "cpu", torch.get_num_threads()) < 1e13
    with pytest.raises(ValueError, match="expected 'read' or 'copy', got 'write'"):
        machine.bandwidth("write", 2**20, "cpu", 1)


def test_the_multiply_add_ceiling():
    from avfast import _library

    assert machine.fma_rate(torch.float64, "cpu", 1) is None
    if _library.native is None:
        assert machine.fma_rate(torch.float32, "cpu", 1) is None
        return
    one = machine.fma_rate(torch.float32, "cpu", 1)
    a = torch.randn(512, 512)
    product = 2 * 512**3 / timing.best_seconds(lambda: a @ a, "cpu") / torch.get_num_threads()
    assert 0.8 * product < one < 1e12  # a loop that the compiler had thrown away would show more, a stalling one less
    assert machine.fma_rate(torch.bfloat16, "cpu", 1) > 0.8 * one
    with pytest.raises(ValueError, match="expected 'fp32' or 'bf16', got fp64"):
        _library.native.peak_gflops("fp64")
