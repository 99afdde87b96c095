"""Numbers that are none: the step is named and the good state kept, or the step is dropped without a trace."""

from __future__ import annotations

import json

import pytest
import torch
from engine_fixtures import ToyClips, weights

for library in ("accelerate", "av"):
    pytest.importorskip(library, reason=f"{library} is not installed")

from fault_fixtures import (  # noqa: E402, F401
    STEPS,
    assert_same_weights,
    before_step,
    fit,
    make,
    rows_of,
    saved_step,
    toys_as_recipes,
)

from avfast.engine import finite  # noqa: E402
from avfast.engine.build import build_accelerator  # noqa: E402
from avfast.engine.checkpoint import load_checkpoint  # noqa: E402
from avfast.errors import AvfastError  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread", "toy_recipe")


class Poisoned(ToyClips):
    """In some epochs one sample holds NaN, or (for comparison) all of its batch are unreadable."""

    def __init__(self, epochs, *, index=5, value=float("nan"), lost=()):
        super().__init__()
        self.epochs, self.index, self.value, self.lost = epochs, index, value, lost

    def __getitem__(self, key):
        sample = super().__getitem__(key)
        if key[0] in self.epochs and key[1] in self.lost:
            return {"errors": [{"index": key[1], "path": f"{key[1]}.mp4", "cause": "unreadable", "detail": "is torn"}]}
        if key[0] in self.epochs and key[1] == self.index and not self.lost:
            sample["waveform"][3] = self.value
        return sample


def batch_with(trainer, epoch, index):
    """(number of the step, indices) of the batch that holds a sample in an epoch."""
    order = list(map(int, trainer.sampler.order(epoch)))
    place = order.index(index) // 4
    return epoch * len(trainer.sampler) + place + 1, order[4 * place : 4 * place + 4]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38], ids=["nan", "inf", "overflow"])
def test_a_dropped_step_leaves_no_trace(tmp_path, value):
    """Neither in weights and moments, nor in the statistics of batch norms, nor in random numbers."""
    poisoned = make(tmp_path / "a", Poisoned((0, 1), value=value), on_nonfinite="skip")
    dropped = [batch_with(poisoned, epoch, 5) for epoch in (0, 1)]
    result = fit(poisoned)
    assert result.step == STEPS and result.errors == {}
    lost = sorted({i for _, indices in dropped for i in indices})

    class Lost(Poisoned):
        def __getitem__(self, key):
            self.lost = dropped[key[0]][1] if key[0] in (0, 1) else lost
            return super().__getitem__(key)

    without = make(tmp_path / "b", Lost((0, 1)), on_nonfinite="skip")
    fit(without)
    assert_same_weights(poisoned, weights(without))
    assert all(torch.isfinite(v).all() for v in weights(poisoned).values() if v.is_floating_point())
    for p, q in zip(*(t.optimizer.state_dict()["state"].values() for t in (poisoned, without)), strict=True):
        assert torch.equal(p["exp_avg"], q["exp_avg"]) and torch.equal(p["step"], q["step"])
    faults = rows_of(tmp_path / "a", "fault")
    assert [(row["step"], row["cause"]) for row in faults] == [(step, "nonfinite") for step, _ in dropped]
    assert [sorted(map(int, row["id"])) for row in faults] == [sorted(indices) for _, indices in dropped]
    assert [row.get("dropped", 0) for row in rows_of(tmp_path / "a", "train")][-1] == 2


def test_dropped_steps_are_counted_over_a_resume(tmp_path):
    first = make(tmp_path, Poisoned((0, 1, 2)), on_nonfinite="skip")
    at = batch_with(first, 0, 5)[0]
    assert at <= 5
    before_step(first, 7, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fit(first)
    again = make(tmp_path, Poisoned((0, 1, 2)), on_nonfinite="skip", resume=True)
    assert again.step == 6
    fit(again)
    expected = [step for epoch in range(3) if (step := batch_with(again, epoch, 5)[0]) <= STEPS]
    assert [row["step"] for row in rows_of(tmp_path, "fault")] == expected
    assert rows_of(tmp_path, "train")[-1]["dropped"] == len(expected)


def test_raise_names_the_step_and_its_samples_and_keeps_the_good_state(tmp_path):
    trainer = make(tmp_path, Poisoned((1,)), log_every=4)
    step, indices = batch_with(trainer, 1, 5)
    with pytest.raises(AvfastError, match=rf"the loss is nan at step {step} \(batch of ") as caught:
        fit(trainer)
    message = str(caught.value)
    named = message.split("batch of ")[1].split(")")[0].split(", ")
    assert sorted(map(int, named)) == sorted(indices)
    assert f"the last good state is in '{tmp_path / 'checkpoints' / 'last.pt'}'" in message
    assert "run.on_nonfinite=skip" in message
    state = load_checkpoint(tmp_path / "checkpoints" / "last.pt")
    assert state["counters"]["step"] < step
    assert all(v.isfinite().all() for v in state["model"].values() if v.is_floating_point())
    again = make(tmp_path, Poisoned((1,)), on_nonfinite="skip", resume=True)  # which needs no --force
    assert fit(again).step == STEPS


def test_statistics_alone_are_looked_at_too(tmp_path):
    """A loss scaler saves the weights from a NaN, and nobody saves the running means of batch norms."""
    trainer = make(tmp_path)

    def poison():
        trainer.method.audio[1].running_mean[2] = float("nan")

    before_step(trainer, 5, poison)
    with pytest.raises(AvfastError, match=r"the state is not finite \('audio\.1\.running_mean'\) at step 6"):
        fit(trainer)
    assert saved_step(tmp_path) == 3


def test_endless_overflow_is_not_dropped_for_ever(tmp_path):
    trainer = make(tmp_path, steps=40, on_nonfinite="skip", save_every=2)
    trainer.method.register_forward_hook(
        lambda module, args, out: out._replace(loss=out.loss * (float("inf") if trainer.step >= 5 else 1.0))
    )
    with pytest.raises(AvfastError, match=rf"{finite.MOST} steps in a row were dropped, up to step 15, .*loss is inf"):
        fit(trainer)
    state = load_checkpoint(tmp_path / "checkpoints" / "last.pt")
    assert all(v.isfinite().all() for v in state["model"].values() if v.is_floating_point())
    assert len(rows_of(tmp_path, "fault")) == finite.MOST


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_overflow_of_scaled_gradients_is_not_a_fault(tmp_path, policy):
    """Loss scaling (fp16) finds its scale by overflowing: the scaler leaves such a step out and goes on by itself."""
    accelerator = build_accelerator("cpu", "no")
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    accelerator.native_amp = True
    trainer = make(tmp_path, accelerator=accelerator, on_nonfinite=policy)
    assert fit(trainer).step == STEPS
    assert rows_of(tmp_path, "fault") == [] and accelerator.scaler.get_scale() < 2.0**127
    assert weights(trainer)["updates"] == STEPS


def test_a_scaler_survives_a_dropped_step(tmp_path):
    accelerator = build_accelerator("cpu", "no")
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    accelerator.native_amp = True
    trainer = make(tmp_path, Poisoned((0, 1)), accelerator=accelerator, on_nonfinite="skip")
    assert fit(trainer).step == STEPS
    assert [row["step"] for row in rows_of(tmp_path, "fault")] == [batch_with(trainer, e, 5)[0] for e in (0, 1)]
    assert all(torch.isfinite(v).all() for v in weights(trainer).values() if v.is_floating_point())


def test_looking_at_steps_costs_the_others_nothing(tmp_path, monkeypatch):
    """With "raise" the device is read only where the log, a look or a checkpoint reads it anyway."""
    looks = []
    monkeypatch.setattr(finite.FiniteWatch, "look", lambda self: looks.append(1))
    monkeypatch.setattr(finite, "is_finite_step", lambda *a, **k: pytest.fail("looked at a single step"))
    fit(make(tmp_path, log_every=6, save_every=6))
    assert len(looks) == 2


def test_the_log_is_json_that_any_reader_takes(tmp_path):
    fit(make(tmp_path, Poisoned((0,)), on_nonfinite="skip"))
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
