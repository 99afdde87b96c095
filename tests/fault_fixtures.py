"""What the tests of faults share: the toy on numbers and the toy on files, and a run in which nothing happened.

Fixtures, for modules that import them: `toy_recipe`, `undisturbed` and `clips`.
"""

from __future__ import annotations

import pytest
import torch
from engine_fixtures import Toy, ToyClips, ToyConfig, weights

from avfast.benches.soak.toy import ToyClips as ClipToy
from avfast.benches.soak.toy import clip_set as clips_of
from avfast.benches.soak.toy import make_clips
from avfast.data import ClipSource
from avfast.engine import build
from avfast.engine.build import build_accelerator
from avfast.engine.checkpoint import load_checkpoint
from avfast.engine.config import DataConfig, OptimConfig, RunConfig, TrainConfig
from avfast.engine.journal import parse_rows
from avfast.engine.loop import Trainer
from avfast.engine.signals import Budget, StopRequest

STEPS = 12


@pytest.fixture(name="toy_recipe")
def toys_as_recipes(monkeypatch):
    """The recipe "toy" is the toy on numbers, and "clips" the one that reads files; other names are what they are."""
    toys, real = {"toy": Toy, "clips": ClipToy}, build.get_method
    monkeypatch.setattr(build, "get_method", lambda name: toys.get(name) or real(name))


def make(out, clips=None, *, resume=False, workers=0, data=None, accelerator=None, recipe="toy", **run):
    run = {"steps": STEPS, "log_every": 2, "eval_every": 100, "save_every": 3, **run}
    config = TrainConfig(
        recipe, DataConfig(batch_size=4, workers=workers, **(data or {})), OptimConfig(), RunConfig(**run), ToyConfig()
    )
    last = out / "checkpoints" / "last.pt"
    return Trainer(
        config, clips or ToyClips(), None, out, accelerator or build_accelerator("cpu", "no"),
        fingerprint="abc", steps=run["steps"], resume=last if resume else None,
    )  # fmt: skip


def fit(trainer):
    return trainer.fit(StopRequest(), Budget(None))


def saved_step(out):
    return load_checkpoint(out / "checkpoints" / "last.pt")["counters"]["step"]


def rows_of(out, kind):
    rows, torn = parse_rows(out / "metrics.jsonl")
    assert torn == []
    return [row for row in rows if row["kind"] == kind]


def assert_same_weights(trainer, expected):
    found = weights(trainer)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.fixture(scope="module", name="undisturbed")
def undisturbed_weights(tmp_path_factory):
    """Weights after twelve steps in which nothing happened."""
    patch = pytest.MonkeyPatch()
    patch.setattr(build, "get_method", lambda name: Toy)
    trainer = make(tmp_path_factory.mktemp("whole"))
    fit(trainer)
    patch.undo()
    return weights(trainer)


@pytest.fixture(scope="module", name="clips")
def twenty_clips(tmp_path_factory):
    return make_clips(tmp_path_factory.mktemp("clips"), 20)


def clip_set(folder, on_error="skip", source=None):
    return clips_of(source or ClipSource.open(folder), on_error=on_error)


def before_step(trainer, step, action):
    """Calls `action` in the forward pass of a step."""

    def hook(module, args):
        if trainer.step + 1 == step:
            action()

    trainer.method.register_forward_pre_hook(hook)
