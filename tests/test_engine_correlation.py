"""What the engine does for methods that say where pieces of a picture belong: inputs, control, schedules, picture."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from avfast.engine.build import build_optimizer, build_schedule
from avfast.engine.config import OptimConfig
from avfast.engine.inputs import build_pipeline
from avfast.methods.base import CorrelationInputs, ImageInputs

INPUTS = CorrelationInputs(32, context=24, exemplar=16, count=2, angle=(-20.0, 20.0))


def test_batches_hold_a_context_its_exemplars_and_their_boxes():
    pipeline = build_pipeline(INPUTS)
    batch = pipeline(pipeline.example(5))
    shapes = {"context": (5, 3, 24, 24), "exemplars": (5, 2, 3, 16, 16), "boxes": (5, 2, 5), "image": (5, 3, 32, 32)}
    for name, shape in shapes.items():
        assert batch[name].shape == shape and batch[name].dtype == torch.float32
    assert batch["boxes"][..., 0].abs().max() <= 20
    plain = pipeline.plain(pipeline.example(5))
    assert "context" not in plain and torch.equal(plain["image"], batch["image"])
    assert isinstance(INPUTS, ImageInputs) and INPUTS.source_size == 37


def test_options_of_the_inputs_reach_the_views():
    views = build_pipeline(INPUTS).views
    assert (views.search, views.context, views.exemplar, views.mirror_p) == (32, 24, 16, 0.5)
    assert views.options["angle"] == (-20.0, 20.0)
    plain = build_pipeline(CorrelationInputs(32, context=24, exemplar=16, mirror=False)).views
    assert plain.mirror_p == 0.0 and plain.options["count"] == 6


@pytest.mark.parametrize("chosen", ["none", "exemplars", "context", "both"])
def test_colours_change_where_asked(chosen):
    inputs = CorrelationInputs(32, context=24, exemplar=16, count=2, angle=(-20.0, 20.0), colours=chosen)
    pipeline, plain = build_pipeline(inputs), build_pipeline(dataclasses.replace(inputs, colours="none"))
    batch, quiet = (p(p.example(6)) for p in (pipeline, plain))
    for name in ("exemplars", "context"):
        changed = not torch.equal(batch[name], quiet[name])
        assert changed == (chosen in (name, "both")), name
    assert torch.equal(batch["boxes"], quiet["boxes"]) and torch.equal(batch["image"], quiet["image"])


def test_the_control_cuts_the_same_places_from_another_picture():
    pipeline = build_pipeline(INPUTS)
    loaded = pipeline.example(4)
    batch = pipeline(loaded)
    control = pipeline({**loaded, "other": loaded["image"].flip(0)})
    swapped = pipeline({**loaded, "image": loaded["image"].flip(0)})
    for name in ("context", "boxes", "image"):
        assert torch.equal(batch[name], control[name]), name
    assert torch.equal(control["exemplars"], swapped["exemplars"])
    assert not torch.equal(control["exemplars"], batch["exemplars"])


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_second_moment_decays_as_asked(name):
    method = SimpleNamespace(param_groups=lambda decay: [{"params": [nn.Parameter(torch.ones(2))]}])
    optimizer = build_optimizer(method, OptimConfig(name=name, beta2=0.95), 8)
    assert optimizer.defaults["betas"] == (0.9, 0.95)


def test_warm_up_in_epochs_replaces_warm_up_in_steps():
    rates = {}
    for words, options in (("epochs", {"warmup_epochs": 3, "warmup_steps": 2}), ("steps", {"warmup_steps": 12})):
        optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=1.0)
        schedule = build_schedule(optimizer, OptimConfig(**options), 40, steps_per_epoch=4)
        rates[words] = [schedule.get_last_lr()[0]]
        for _ in range(39):
            optimizer.step()
            schedule.step()
            rates[words].append(schedule.get_last_lr()[0])
    assert rates["epochs"] == rates["steps"] and rates["steps"].index(1.0) == 12


def test_the_picture_shows_exemplars_beside_their_maps(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from avfast.engine.figures_maps import correlation_maps

    pipeline = build_pipeline(INPUTS)
    batch = pipeline(pipeline.example(3))
    truth = torch.zeros(3, 2, 24, 24, dtype=torch.uint8)
    truth[:, :, 4:12, 6:20] = 1
    maps = SimpleNamespace(
        logits=torch.randn(3, 2, 24, 24), truth=truth, prior=truth[0, 0] > 0, level=torch.tensor(0.4)
    )
    path = correlation_maps(batch["context"], batch["exemplars"], maps).draw(tmp_path / "maps.png")
    assert path.stat().st_size > 5000


def test_no_picture_without_matplotlib(tmp_path, monkeypatch):
    from avfast.engine import figures_maps

    monkeypatch.setattr(figures_maps, "matplotlib_figure", lambda: None)
    assert figures_maps.draw_correlation_maps(tmp_path / "maps.png", None, None, None, None, None, 0.0, 0.0) is None
