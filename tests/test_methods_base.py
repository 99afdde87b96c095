"""The registry, the contract's defaults, and av-align against its formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import avfast
from avfast.encoders import Encoder
from avfast.errors import ConfigError
from avfast.methods import PLANNED, Method, get_method, recipe_names
from avfast.methods.av_align import AvAlign, AvAlignConfig
from avfast.methods.base import contrastive_bounds, pair_metrics


class Conv(nn.Module):
    """A one-layer encoder, so that these tests need no transformers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 6, 3, stride=4), nn.BatchNorm2d(6), nn.ReLU())

    def forward(self, x):
        return self.body(x)


def make(**options) -> AvAlign:
    torch.manual_seed(0)
    encoders = {"visual": Encoder(Conv(3), 6), "audio": Encoder(Conv(1), 6)}
    return AvAlign(AvAlignConfig(dim=5, **options), **encoders)


def make_batch(size: int = 4):
    generator = torch.Generator().manual_seed(1)
    return {
        "frames": torch.randn(size, 2, 3, 16, 16, generator=generator),
        "spectrogram": torch.randn(size, 1, 12, 20, generator=generator),
        "label": torch.zeros(size, dtype=torch.int64),
        "index": torch.arange(size),
    }


def test_every_recipe_file_is_a_runnable_recipe_with_a_complete_card():
    assert "av-align" in recipe_names()
    for name in recipe_names():
        method = get_method(name)
        assert issubclass(method, Method) and method.card.name == name
        assert all(vars(method.card).values())
        assert method.__doc__ and method.Config.__doc__
        method.Config()  # every option has a default


@pytest.mark.parametrize(
    ("name", "words"),
    [("av-alin", "did you mean 'av-align'"), ("viewrefer", "planned"), ("xyz", "available: av-align")],
)
def test_unknown_recipes_are_explained(name, words):
    assert name not in recipe_names()
    with pytest.raises(ConfigError, match=words):
        get_method(name)


def test_planned_names_are_the_projects_names():
    assert "av-align" in PLANNED and len(set(PLANNED)) == len(PLANNED) == 12


@pytest.mark.parametrize("distance", ["cosine", "l2"])
@pytest.mark.parametrize("rectified", [False, True])
def test_bounds_are_the_loss_of_the_best_and_of_no_embedding(distance, rectified):
    size = 8
    # Orthogonal rows are as far apart as non-negative vectors get; without that limit it is the simplex.
    best = torch.eye(size, dtype=torch.float64) - (0 if rectified else 1 / size)
    bounds = contrastive_bounds(size, temperature=0.5, distance=distance, rectified=rectified)
    loss = avfast.info_nce(best, best, temperature=0.5, distance=distance)
    assert bounds["floor"] == pytest.approx(loss.item(), abs=1e-5)
    same = torch.ones(size, 3, dtype=torch.float64)
    chance = avfast.info_nce(same, same, temperature=0.5, distance=distance)
    assert bounds["chance"] == pytest.approx(chance.item(), abs=1e-5) == pytest.approx(math.log(size))


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_loss_is_the_symmetric_cross_entropy_of_the_embeddings(distance):
    method, batch = make(distance=distance, temperature=0.3).double(), make_batch()
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    output = method(batch)
    a, v = (nn.functional.normalize(output.embeddings[k], dim=1) for k in ("audio", "video"))
    scores = a @ v.T if distance == "cosine" else -(a[:, None] - v[None]).norm(dim=2)
    target = torch.arange(4)
    expected = sum(nn.functional.cross_entropy(s / 0.3, target) for s in (scores, scores.T)) / 2
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-10)
    assert not any(z.requires_grad for z in output.embeddings.values())


def test_video_embedding_is_the_mean_over_frames():
    method, batch = make().eval(), make_batch()
    one = [method.features({**batch, "frames": batch["frames"][:, t : t + 1]})["video"] for t in range(2)]
    torch.testing.assert_close(method.features(batch)["video"], (one[0] + one[1]) / 2)


def test_a_frozen_visual_encoder_does_not_move():
    method, batch = make(train_visual=False), make_batch()
    before = {k: v.clone() for k, v in method.visual.state_dict().items()}
    method.train()
    optimizer = torch.optim.SGD(method.param_groups(0.0), lr=1.0)
    method(batch).loss.backward()
    optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in method.visual.state_dict().items())
    assert method.audio.backbone.body[0].weight.grad is not None
    assert method.embed(batch)["video"].shape == method.embed(batch)["audio"].shape == (4, 6)
    assert "random weights" in method.notes()[0] and set(method.exports()) == {"audio", "audio_head"}


def test_param_groups_hold_every_trainable_parameter_once_and_decay_only_matrices():
    method = make()
    groups = method.param_groups(0.1)
    held = [id(p) for g in groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in method.parameters())
    assert {p.ndim for p in groups[1]["params"]} == {1} and groups[1]["weight_decay"] == 0.0
    assert min(p.ndim for p in groups[0]["params"]) == 2 and groups[0]["weight_decay"] == 0.1


def test_pair_metrics_by_hand():
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0], [5.0, 0.0]])
    b = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 1.0]])  # the third pair is orthogonal
    metrics = {k: round(v.item(), 6) for k, v in pair_metrics(a, b).items()}
    assert metrics == {"cos_pos": 0.666667, "cos_neg": 0.333333, "batch_r1": 0.666667}


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"frames": 0}])
def test_options_out_of_range(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        make(**options)
