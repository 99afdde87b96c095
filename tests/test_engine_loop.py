"""The loop on a toy method with dropout: exact continuation, clean stops, broken clips and refusals."""

from __future__ import annotations

import math

import pytest
import torch
from engine_fixtures import StopAt, Toy, ToyClips, ToyConfig, weights

pytest.importorskip("accelerate", reason="accelerate is not installed")

from avfast.engine import build  # noqa: E402
from avfast.engine.build import build_accelerator, build_schedule  # noqa: E402
from avfast.engine.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from avfast.engine.config import DataConfig, OptimConfig, RunConfig, TrainConfig  # noqa: E402
from avfast.engine.inputs import InputPipeline  # noqa: E402
from avfast.engine.journal import comparable, read_rows  # noqa: E402
from avfast.engine.loop import Trainer  # noqa: E402
from avfast.engine.signals import Budget, StopRequest  # noqa: E402
from avfast.engine.sources import evaluation_loader, readable  # noqa: E402
from avfast.engine.validate import Validator  # noqa: E402
from avfast.errors import AvfastError, CheckpointError  # noqa: E402


@pytest.fixture(autouse=True)
def toy_recipe(monkeypatch):
    monkeypatch.setattr(build, "get_method", lambda name: Toy)


def make(out, *, resume=None, force=False, clips=None, steps=17, workers=0, scale=1.0, kind="main", **run):
    run = {"log_every": 4, "eval_every": 6, "save_every": 3, **run}
    config = TrainConfig(
        "toy",
        DataConfig(batch_size=4, workers=workers),
        OptimConfig(),
        RunConfig(steps=steps, **run),
        ToyConfig(scale=scale),
    )
    validator = Validator(evaluation_loader(ToyClips(6), 4))
    return Trainer(
        config, clips or ToyClips(), validator, out, build_accelerator("cpu", "no"),
        fingerprint="abc", steps=steps, kind=kind, resume=resume, force=force,
    )  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_interrupted_and_continued_equals_uninterrupted_bit_for_bit(tmp_path, workers):
    whole = make(tmp_path / "a")
    whole.fit(StopRequest(), Budget(None))
    first = make(tmp_path / "b", workers=workers)
    result = first.fit(StopAt(first, 7), Budget(None))  # epochs have 5 steps: in the middle of the second
    assert result.stopped == "SIGTERM" and result.step == 7
    torch.manual_seed(99)  # whatever happened in between
    second = make(tmp_path / "b", resume=result.checkpoints["last"], workers=workers)
    assert second.step == 7
    end = second.fit(StopRequest(), Budget(None))
    assert end.stopped == "finished" and end.step == 17
    expected = weights(whole)
    assert all(torch.equal(v, expected[k]) for k, v in weights(second).items())
    assert expected["updates"] == 17
    one, two = (load_checkpoint(tmp_path / n / "checkpoints" / "final.pt") for n in "ab")
    assert one["counters"] == two["counters"] and one["sampler"] == two["sampler"] == {"epoch": 3, "step": 2}
    for p, q in zip(one["optimizer"]["state"].values(), two["optimizer"]["state"].values(), strict=True):
        assert torch.equal(p["exp_avg_sq"], q["exp_avg_sq"])
    rows = [comparable(read_rows(tmp_path / n / "metrics.jsonl")) for n in "ab"]
    assert rows[0] == rows[1] and len([r for r in rows[0] if r["kind"] == "val"]) == 3
    assert result.rows[-1]["partial"] and result.rows[-1]["step"] == 7, "said where it stopped"


def test_loss_goes_down_and_the_best_validation_is_kept(tmp_path):
    trainer = make(tmp_path, steps=60, scale=0.5)
    result = trainer.fit(StopRequest(), Budget(None))
    losses = [r["loss"] for r in result.rows if r["kind"] == "train"]
    assert losses[-1] < losses[0]
    val = {r["step"]: r["loss"] for r in result.rows if r["kind"] == "val"}
    assert val[result.best_step] == min(val.values()) and set(result.checkpoints) == {"last", "best", "final"}
    assert load_checkpoint(result.checkpoints["best"])["counters"]["step"] == result.best_step
    row = result.rows[-2]
    assert {"std", "effective_rank", "mean_cosine"} == set(row["collapse"]["audio"])
    assert row["data_s"] >= 0 and row["compute_s"] > 0 and row["samples_per_s"] > 0


def test_a_spent_budget_stops_after_the_step_under_way_and_saves(tmp_path):
    trainer = make(tmp_path, steps=10_000)
    result = trainer.fit(StopRequest(), Budget(0.3))
    assert result.stopped == "budget" and 0 < result.step < 10_000
    state = load_checkpoint(result.checkpoints["last"])
    assert state["counters"]["step"] == result.step and "final" not in result.checkpoints
    assert result.rows[-1]["kind"] == "val"  # evaluated where it stopped


def test_a_new_run_leaves_no_checkpoint_of_the_run_it_replaces(tmp_path):
    make(tmp_path, steps=6).fit(StopRequest(), Budget(None))
    assert (tmp_path / "checkpoints" / "final.pt").is_file()
    trainer = make(tmp_path, steps=50)
    result = trainer.fit(StopAt(trainer, 3), Budget(None))
    assert set(result.checkpoints) == {"last"} and not (tmp_path / "checkpoints" / "best.pt").exists()


def test_validation_changes_nothing(tmp_path):
    trainer = make(tmp_path)
    trainer.fit(StopAt(trainer, 3), Budget(None))
    before, rng = weights(trainer), torch.get_rng_state()
    trainer.method.train()
    row = trainer.validator(trainer.method, trainer.pipeline)
    assert math.isfinite(row["loss"]) and trainer.method.training
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in weights(trainer).items())


def test_a_changed_configuration_is_refused_with_the_changes_unless_forced(tmp_path):
    first = make(tmp_path)
    last = first.fit(StopAt(first, 5), Budget(None)).checkpoints["last"]
    with pytest.raises(CheckpointError, match=r"method.scale: 1.0 -> 2.0") as caught:
        make(tmp_path, resume=last, scale=2.0)
    assert "--force" in str(caught.value) and "run.seed" not in str(caught.value)
    assert make(tmp_path, resume=last, scale=2.0, force=True).step == 5
    assert make(tmp_path, resume=last, workers=2, log_every=1).step == 5  # these change nothing that is computed
    with pytest.raises(CheckpointError, match="belongs to a main run"):
        make(tmp_path, resume=last, kind="control")


def test_other_clips_are_refused(tmp_path, monkeypatch):
    first = make(tmp_path)
    last = first.fit(StopAt(first, 5), Budget(None)).checkpoints["last"]
    state = torch.load(last, weights_only=True)
    del state["schema"]
    save_checkpoint(last, {**state, "split_fingerprint": "other"})
    with pytest.raises(CheckpointError, match="data: fingerprint other -> abc"):
        make(tmp_path, resume=last)


def test_broken_clips_are_counted_and_left_out(tmp_path):
    trainer = make(tmp_path, clips=ToyClips(20, broken=(3, 4)), steps=10)
    result = trainer.fit(StopRequest(), Budget(None))
    assert result.step == 10  # two epochs
    assert result.errors == {"3.mp4: unreadable": 2, "4.mp4: unreadable": 2}
    assert [r for r in result.rows if r["kind"] == "train"][-1]["broken"] == 4


def test_batches_with_fewer_than_two_clips_are_skipped_not_trained(tmp_path):
    trainer = make(tmp_path, clips=ToyClips(8, broken=(0, 1, 2)), steps=40)
    assert trainer.fit(StopRequest(), Budget(None)).step == 40
    skipped = 40 - int(trainer.method.updates)
    assert 0 < skipped < 20  # one batch in seven holds all three


def test_data_without_two_readable_clips_are_an_error_not_a_run(tmp_path):
    trainer = make(tmp_path, clips=ToyClips(4, broken=(0, 1, 2)))
    with pytest.raises(AvfastError, match="media-scan"):
        trainer.fit(StopRequest(), Budget(None))


def test_a_diverged_loss_stops_with_a_way_out_and_keeps_the_good_state(tmp_path):
    trainer = make(tmp_path, steps=12, save_every=3)
    hook = trainer.method.register_forward_hook(
        lambda module, args, out: out._replace(loss=out.loss * float("nan")) if trainer.step >= 5 else out
    )
    with pytest.raises(AvfastError, match=r"loss is nan at step 6 \(batch of \d.*; the last good.*optim\.lr"):
        trainer.fit(StopRequest(), Budget(None))
    hook.remove()
    state = load_checkpoint(tmp_path / "checkpoints" / "last.pt")
    assert all(v.isfinite().all() for v in state["model"].values() if v.is_floating_point())


def test_schedule_warms_up_and_comes_down():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = build_schedule(optimizer, OptimConfig(warmup_steps=4), 20)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8]) and max(rates) == pytest.approx(1.0)
    assert rates[12] == pytest.approx(0.5) and rates[-1] < 0.02
    assert all(a >= b for a, b in zip(rates[4:], rates[5:], strict=False))


def test_frames_are_normalised_on_the_device():
    pipeline = InputPipeline(Toy(ToyConfig()).inputs)
    batch = pipeline(
        {"frames": torch.full((1, 1, 3, 2, 2), 255, dtype=torch.uint8), "index": torch.zeros(1), "id": ["x"]}
    )
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(batch["frames"][0, 0, :, 0, 0], expected)
    assert "id" not in batch


def test_a_batch_without_any_readable_clip_is_an_empty_batch_not_a_crash():
    loader = evaluation_loader(ToyClips(5, broken=(4,)), 2)  # the broken clip is alone in the last batch
    errors: dict[str, int] = {}
    assert [len(batch["index"]) for batch in readable(loader, errors)] == [2, 2]
    assert errors == {"4.mp4: unreadable": 1}
    with pytest.raises(AvfastError, match="no clip of a split could be read"):
        list(readable(evaluation_loader(ToyClips(2, broken=(0, 1)), 2)))
