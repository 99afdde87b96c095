"""What a checkpoint holds: nothing that a method learns, and nothing that decides the next step, lives outside."""

from __future__ import annotations

import copy
import json
import random
import shutil
import types
from typing import Any

import numpy as np
import pytest
import torch
from engine_fixtures import DyingCalls, Killed, StopAt, Toy, ToyClips, ToyConfig, real_clips, weights
from torch import nn

pytest.importorskip("accelerate", reason="accelerate is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from avfast.engine import build  # noqa: E402
from avfast.engine.build import build_accelerator, build_method, build_optimizer  # noqa: E402
from avfast.engine.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from avfast.engine.config import DataConfig, OptimConfig, RunConfig, TrainConfig, parse_config  # noqa: E402
from avfast.engine.inputs import build_pipeline  # noqa: E402
from avfast.engine.interval import Interval  # noqa: E402
from avfast.engine.journal import comparable, read_rows  # noqa: E402
from avfast.engine.loop import Trainer  # noqa: E402
from avfast.engine.signals import Budget, StopRequest  # noqa: E402
from avfast.engine.sources import evaluation_loader, open_data, training_loader, training_sampler  # noqa: E402
from avfast.engine.state import local_buffers, restore_rng_state, rng_state  # noqa: E402
from avfast.engine.validate import Validator  # noqa: E402
from avfast.methods import StepOutput, get_method, recipe_names  # noqa: E402
from avfast.ops._counter import content_key  # noqa: E402

SMALL = {
    "av-align": [("method.size=32", "method.frames=1", "method.duration=1")],
    "densecl": [("method.size=32", "method.queue=20", "method.dim=8", "method.group_size=2", *more)
                for more in ((), ("method.queue_dtype=bfloat16", "method.match=random"), ("method.loss_lambda=0",))],
    "cim": [("method.encoder=vit-mini8", "method.size=32", "method.context=32", "method.exemplar=16",
             "method.decoder_dim=16", "method.decoder_heads=2", "method.head_hidden=8", "method.head_dim=4", *more)
            for more in ((), ("method.contrastive_weight=1",))],
    "fusion-tuning": [("method.classes=3", "method.size=32", "method.frames=1", "method.duration=1",
                       f"method.stage={stage}", *more)
                      for stage, more in (("audio", ("method.audio_init=abri_channel", "method.sparsity=1e-4")),
                                          ("video", ()), ("joint", ("method.head=gated",)),
                                          ("joint", ("method.masks=conf", "method.audio_confidence={}/a.json",
                                                     "method.visual_confidence={}/v.json")))],
    "sound2scene": [("method.visual_size=32", "method.visual=resnet-tiny", "method.duration=1", f"method.stage={stage}")
                    for stage in ("localiser", "generator", "audio")],
}  # fmt: skip
"""Recipe to the words of each of its forms; {} is a folder with what earlier stages leave."""
MOVES = {"densecl": (".queue._buffers.rows", ".queue._buffers.pointer", "momentum_network", "_generator"),
         "cim": ("momentum_branch",)}  # fmt: skip
"""What must have moved in these two steps, for the check to say anything about it."""
FORMS = [(name, words) for name, forms in SMALL.items() for words in forms]


def test_every_recipe_is_walked_over():
    assert SMALL.keys() == set(recipe_names()), "a new recipe needs its words here and in benches/soak/kill.py"
    from avfast.benches.soak.kill import RECIPES

    assert RECIPES.keys() == SMALL.keys()
    stages = {name: set(get_method(name).stages) for name in SMALL}
    mark = "method.stage="
    walked = {name: {w.removeprefix(mark) for f in SMALL[name] for w in f if w.startswith(mark)} for name in SMALL}
    assert all(stages[name] <= walked[name] for name in SMALL)


def inside(value: Any, where: str, found: dict[str, Any], seen: dict[int, Any]) -> dict[str, Any]:
    """Everything that an object holds, by its path: tensors, numbers, generators, and what its attributes hold."""
    if isinstance(value, torch.Tensor):
        found[where] = value.detach().clone()
    elif isinstance(value, torch.Generator):
        found[where] = value.get_state()
    elif isinstance(value, np.ndarray):
        found[where] = value.tolist()
    elif isinstance(value, random.Random):
        found[where] = value.getstate()
    elif isinstance(value, (int, float, str, bytes, bool, type(None), torch.dtype, torch.device)):
        found[where] = value
    elif isinstance(value, (types.FunctionType, types.MethodType, types.BuiltinFunctionType, type)):
        pass
    elif id(value) not in seen:
        seen[id(value)] = value  # held, or its id would be given to another one
        if isinstance(value, dict):
            found[f"{where}#"] = [str(key) for key in value]
            for key, inner in value.items():
                inside(inner, f"{where}.{key}", found, seen)
        elif isinstance(value, (list, tuple, set, frozenset)):
            found[f"{where}#"] = len(value)
            for i, inner in enumerate(value):
                inside(inner, f"{where}[{i}]", found, seen)
        elif hasattr(value, "__dict__"):
            inside({k: v for k, v in vars(value).items() if not k.endswith("_hooks")}, where, found, seen)
    return found


def batches(method, words):
    """Two batches as the pipeline of the method gives them."""
    pipeline = build_pipeline(method.inputs)
    for seed in (0, 1):
        torch.manual_seed(seed)
        batch = pipeline(pipeline.example(6))
        batch["label"] = torch.arange(6) % 3
        batch["key"] = torch.tensor([content_key(str(i + 3 * seed)) for i in range(6)])
        yield batch


def step(method, optimizer, batch, number) -> torch.Tensor:
    """One training step; the audio stage, which reads targets that are not made here, takes its step on an example."""
    stage = getattr(method.config, "stage", "")
    output = method.example_step(batch) if stage == "audio" and hasattr(method, "targets") else method(batch)
    output.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    method.after_optimizer_step(number)
    return output.loss.detach()


@pytest.mark.parametrize(("recipe", "words"), FORMS, ids=[f"{n}-{i}" for i, (n, _) in enumerate(FORMS)])
def test_nothing_that_changes_in_training_lives_outside_the_state(recipe, words, tmp_path):
    """Queues, momentum copies, generators, counters: after two steps, a fresh method that loads the state, through a
    file, holds all that the trained one holds, in every attribute of every object in it, and goes on with its bits."""
    for name, sure in (("a", 0.9), ("v", 0.3)):
        means = {str(i): sure - 0.02 * i for i in range(9)}
        (tmp_path / f"{name}.json").write_text(json.dumps({"confidence": means}))
    config = parse_config(recipe, [word.format(tmp_path) for word in words])
    method = build_method(config).train()
    method.prepare_training(9)
    optimizer = build_optimizer(method, config.optim, 6)
    fresh_before = inside(method, "", {}, {})
    data = list(batches(method, words))
    for number, batch in enumerate(data, 1):
        step(method, optimizer, dict(batch), number)
    held = inside(method, "", {}, {})
    changed = {key for key in held if key not in fresh_before or not same(held[key], fresh_before[key])}
    assert len(changed) > 5 and all(any(part in key for key in changed) for part in MOVES.get(recipe, ())), changed

    torch.save({"model": method.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "s.pt")
    saved, rng = torch.load(tmp_path / "s.pt", weights_only=True), rng_state()
    other = build_method(config).train()
    other.prepare_training(9)
    other_optimizer = build_optimizer(other, config.optim, 6)
    other.load_state_dict(saved["model"])
    other_optimizer.load_state_dict(saved["optimizer"])
    restored = inside(other, "", {}, {})
    odd = [k for k in {**held, **restored} if k not in held or k not in restored or not same(held[k], restored[k])]
    assert not odd, f"{recipe} {words}: not in the state: {odd[:5]}"

    losses = []
    for one, optim in ((method, optimizer), (other, other_optimizer)):
        restore_rng_state(rng)
        losses.append(step(one, optim, copy.deepcopy(data[0]), 3))
    one, two = (inside(it, "", {}, {}) for it in (method, other))
    assert torch.equal(*losses) and all(same(value, two[key]) for key, value in one.items())


def same(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and one.dtype == two.dtype and torch.equal(one, two)
    return type(one) is type(two) and (one == two or one != one)


def test_the_walk_finds_what_is_kept_outside(tmp_path):
    """The check above can fail: a queue in a plain attribute is seen."""

    class Leaky(nn.Module):
        def __init__(self):
            super().__init__()
            self.queue, self.count = [torch.zeros(2)], 0

    leaky = Leaky()
    before = inside(leaky, "", {}, {})
    leaky.queue[0] += 1
    leaky.count += 1
    after = inside(leaky, "", {}, {})
    assert {k for k in after if not same(after[k], before[k])} == {".queue[0]", ".count"}


# ------------------------------------------------------------------------------------------- the loop's own


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(build, "get_method", lambda name: Toy)


def make(out, *, resume=None, workers=0, validator=None, force=False, **run):
    run = {"log_every": 4, "eval_every": 6, "save_every": 3, "steps": 17, **run}
    config = TrainConfig(
        "toy", DataConfig(batch_size=4, workers=workers), OptimConfig(clip_norm=1.0), RunConfig(**run), ToyConfig()
    )
    validator = validator or Validator(evaluation_loader(ToyClips(6), 4))
    return Trainer(
        config, ToyClips(), validator, out, build_accelerator("cpu", "no"), fingerprint="abc", steps=run["steps"],
        resume=resume, force=force,
    )  # fmt: skip


def whole(out, **options):
    trainer = make(out, **options)
    trainer.fit(StopRequest(), Budget(None))
    return trainer


@pytest.mark.parametrize("saved", [3, 6, 9, 12, 15])
def test_from_every_checkpoint_the_log_goes_on_as_if_nothing_had_been(toy, tmp_path, saved):
    """Lines of the log are means over four steps, checkpoints come every three: intervals are taken up where they
    were, in every mean and norm."""
    first = whole(tmp_path / "a", keep_last=9)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    again = make(tmp_path / "b", resume=tmp_path / "b" / "checkpoints" / f"step-{saved:08d}.pt", keep_last=9)
    again.fit(StopRequest(), Budget(None))
    rows = [comparable(read_rows(tmp_path / name / "metrics.jsonl")) for name in "ab"]
    assert rows[0] == rows[1] and len(rows[0]) == 8 and "grad_norm" in rows[0][0]
    finals = [load_checkpoint(tmp_path / name / "checkpoints" / "final.pt") for name in "ab"]
    assert finals[0]["counters"] == finals[1]["counters"]
    assert all(torch.equal(v, weights(again)[k]) for k, v in weights(first).items())


def test_an_interval_goes_through_a_file_to_the_bit(tmp_path):
    torch.manual_seed(0)
    one = Interval()
    for _ in range(3):
        metrics = {"a": torch.rand(()), "b": torch.rand(()).bfloat16()}
        one.add(StepOutput(torch.rand(()), metrics, {"z": torch.rand(3, 2)}), 4, 0.1, 0.2, torch.rand(()))
    one.add(None, 0, 0.3, 0.4)
    torch.save(one.state(), tmp_path / "i.pt")
    two = Interval.of(torch.load(tmp_path / "i.pt", weights_only=True))
    assert one.summary() == two.summary() and torch.equal(one.embeddings["z"], two.embeddings["z"])
    assert Interval().state() == {} and Interval.of({}).steps == 0


def test_loader_processes_hold_no_random_state(tmp_path):
    """Augmentation is a function of (seed, epoch, id): with 0 or 2 workers, from the start or in mid-epoch, and
    whatever was drawn before, every batch is the same to the bit."""
    pytest.importorskip("av")
    from avfast.engine.sources import build_dataset

    inputs = parse_config("av-align", ["method.size=32", "method.frames=1", "method.duration=1"])
    inputs = get_method("av-align")(inputs.method).inputs
    part = open_data(real_clips()).splits["train"]

    def read(workers: int, epoch: int, first: int) -> list[dict]:
        dataset = build_dataset(part, inputs, DataConfig(workers=workers), seed=3, train=True, cache=False)
        data = DataConfig(batch_size=8, workers=workers)
        sampler = training_sampler(len(dataset), data, seed=3, accumulate=1, rank=0, processes=1)
        sampler.set_position(epoch, first)
        return list(training_loader(dataset, sampler, data, pin_memory=False))

    expected = read(0, 1, 0)
    torch.manual_seed(99), np.random.seed(99), random.seed(99)
    assert not torch.equal(expected[0]["frames"], read(0, 2, 0)[0]["frames"]), "it does augment"
    for workers, first in ((2, 0), (0, 3), (2, 3)):
        found = read(workers, 1, first)
        assert len(found) == len(expected) - first
        for one, two in zip(expected[first:], found, strict=True):
            assert one["id"] == two["id"] and torch.equal(one["waveform"], two["waveform"])
            assert torch.equal(one["frames"], two["frames"])


def test_queues_of_each_process_are_kept_apart(monkeypatch):
    from avfast.nn import FeatureQueue

    model = nn.ModuleDict({"own": FeatureQueue(4, 2), "shared": FeatureQueue(4, 2, share=True)})
    assert local_buffers(model) == {}, "one process: they are in its model"
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *group: 2)
    model["own"].push(torch.ones(3, 2))
    found = local_buffers(model)
    assert found.keys() == {"own.rows", "own.pointer", "own.count"} and int(found["own.pointer"]) == 3
    assert found.keys() <= model.state_dict().keys()


# ------------------------------------------------------------------------------------------- the best one


class BestAt3(Validator):
    """The look after step 3 is the best one."""

    def __call__(self, method, *rest, **more):
        return {"loss": abs(float(method.updates) - 3)}


class Falling(Validator):
    """Every look is better than the one before."""

    def __call__(self, method, *rest, **more):
        return {"loss": 100.0 - float(method.updates)}


def test_a_damaged_best_is_chosen_anew_and_said(toy, tmp_path):
    first = make(tmp_path, validator=Falling(None))
    last = first.fit(StopAt(first, 8), Budget(None)).checkpoints["last"]
    best = first.generations.path("best")
    assert first.best_step == 6
    best.write_bytes(best.read_bytes()[:100])
    again = make(tmp_path, resume=last, validator=Falling(None))
    assert again.remarks == [f"'{best}' of step 6 is missing or damaged: the best is chosen anew"]
    assert again.fit(StopRequest(), Budget(None)).best_step == 17 and again.generations.step_of("best") == 17


def test_a_best_of_steps_that_are_done_again_does_not_stay(toy, tmp_path):
    """The last state was lost, and with another configuration (--force) the best of the old future may never come."""
    first = whole(tmp_path, validator=Falling(None), keep_last=9)
    assert first.generations.step_of("best") == 17
    earlier = first.generations.steps()[9]
    again = make(tmp_path, resume=earlier, keep_last=9)
    assert again.remarks == [] and again.best_step == 0
    again.fit(StopAt(again, 10), Budget(None))
    assert "best" not in again.generations.present() and max(again.generations.steps()) == 10


def test_another_machine_is_said(toy, tmp_path):
    first = make(tmp_path)
    last = first.fit(StopAt(first, 5), Budget(None)).checkpoints["last"]
    state = load_checkpoint(last)
    del state["schema"]
    save_checkpoint(last, {**state, "versions": {**state["versions"], "torch": "1.0"}})
    (remark,) = make(tmp_path, resume=last).remarks
    assert f"torch 1.0 -> {torch.__version__}" in remark and "last bits" in remark


def test_the_damaged_last_of_a_run_is_passed_over_and_the_end_is_the_same(toy, tmp_path):
    from avfast.engine.resume import newest_of

    first = whole(tmp_path / "a")
    second = make(tmp_path / "b")
    last = second.fit(StopAt(second, 10), Budget(None)).checkpoints["last"]
    data = bytearray(last.read_bytes())
    data[len(data) // 3] ^= 4
    last.write_bytes(data)
    said: list[str] = []
    found = newest_of(tmp_path / "b", said.append)
    assert found.step == 9 and "1 step(s) are computed again" in said[-1]
    again = make(tmp_path / "b", resume=found.path)
    again.fit(StopRequest(), Budget(None))
    assert all(torch.equal(v, weights(again)[k]) for k, v in weights(first).items())
    assert newest_of(tmp_path / "b").path.name == "last.pt", "the damaged one was replaced"
    rows = [comparable(read_rows(tmp_path / name / "metrics.jsonl")) for name in "ab"]
    assert rows[0] == rows[1]


def test_killed_at_every_call_that_changes_the_folder_and_again_soon_after(toy, tmp_path, monkeypatch):
    """Each fsync, replace, link and unlink of a run is once its last, and often one of the run that went on is too: the
    folder in the end is that of a run that was never killed."""
    from avfast.benches.soak.kill import differences, snapshot
    from avfast.engine.resume import newest_of

    calls = DyingCalls(monkeypatch)

    def run(out, at=0):
        calls.count, calls.fatal = 0, at
        try:
            found = newest_of(out)
            whole(out, resume=found and found.path, validator=BestAt3(None), steps=7, save_every=2, eval_every=3)
        except Killed:
            pass
        finally:
            calls.fatal = 0

    run(tmp_path / "whole")
    total, held = calls.count, snapshot(tmp_path / "whole")
    assert {"checkpoints/step-00000006.pt", "metrics.jsonl"} <= held.keys() and total > 50
    assert held["checkpoints/best.pt"]["counters"]["step"] == 3
    for instant in range(1, total + 1):
        out = tmp_path / str(instant)
        run(out, instant)
        if again := instant % 12:
            run(out, again)
        run(out)
        assert not differences(held, snapshot(out)), f"killed at call {instant}, then at call {again}"
        assert {p.name for p in out.rglob("*")} == {p.name for p in (tmp_path / "whole").rglob("*")}


def test_left_overs_of_killed_runs_go_with_the_next_start(toy, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    left = [tmp_path / "checkpoints" / ".step-00000003.pt.123.tmp", tmp_path / ".metrics.jsonl.99.tmp"]
    other = tmp_path / "checkpoints" / "notes.tmp"
    for path in (*left, other):
        path.write_text("half")
    make(tmp_path)
    assert not any(path.exists() for path in left) and other.exists()
