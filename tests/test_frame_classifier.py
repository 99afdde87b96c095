"""The judge of generated pictures: it learns, it is the same every time, and leaves the random state alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from avfast.evaluate import FrameClassifier, generation_scores, train_classifier
from avfast.evaluate.frame_classifier import _changed

pytestmark = pytest.mark.usefixtures("one_thread")


def frames(count, generator):
    """Four classes of stripes: which way they run, and how wide they are. Colour tells nothing."""
    labels = torch.arange(count) % 4
    place = torch.arange(16.0)
    waves = torch.stack(
        [(place * (0.8 if k % 2 else 1.8) + 6 * torch.rand((), generator=generator)).sin() for k in labels]
    )
    pictures = torch.where(labels[:, None, None] < 2, waves[:, None, :], waves[:, :, None]).expand(-1, 16, 16)
    colour = 0.3 + 0.4 * torch.rand(count, 3, 1, 1, generator=generator)
    return (colour * pictures[:, None] + 0.1 * torch.randn(count, 3, 16, 16, generator=generator)).clamp(-1, 1), labels


def network():
    backbone = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.1),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
    )  # fmt: skip
    return backbone, nn.Linear(32, 4)


def test_it_learns_frames_and_judges_others(generator):
    images, labels = frames(160, generator)
    judge = train_classifier(*network(), images, labels, steps=60, batch=32)
    unseen, truth = frames(200, generator)
    features, logits = judge(unseen)
    assert features.shape == (200, 32) and logits.shape == (200, 4)
    assert (logits.argmax(dim=1) == truth).float().mean() > 0.9
    assert not judge.training and not logits.requires_grad
    scores = generation_scores(judge, images, unseen, network_name="judge", labels=truth)
    shuffled = generation_scores(judge, images, unseen, network_name="judge", labels=truth[torch.randperm(200)])
    assert scores["R@1"].value > 0.9 > 0.5 > shuffled["R@1"].value
    noise = torch.rand(200, 3, 16, 16) * 2 - 1
    assert generation_scores(judge, images, noise, network_name="judge")["FID"].value > 10 * scores["FID"].value


def test_it_is_the_same_every_time_and_leaves_the_random_state_alone(generator):
    images, labels = frames(40, generator)
    backbone, head = network()
    before = torch.get_rng_state()
    judges = []
    for number, seed in enumerate((1, 1, 2)):
        torch.manual_seed(number)  # must not matter
        with torch.no_grad():
            judges.append(
                train_classifier(*copy.deepcopy((backbone, head)), images, labels, steps=5, seed=seed, batch=8)
            )
        torch.manual_seed(number)
        assert torch.equal(torch.get_rng_state(), torch.manual_seed(number).get_state())
    first, again, other = (judge(images)[1] for judge in judges)
    assert torch.equal(first, again) and not torch.equal(first, other)
    torch.set_rng_state(before)
    train_classifier(backbone, head, images, labels, steps=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_changes_keep_the_scale_and_do_not_depend_on_each_other():
    pictures = torch.rand(200, 3, 16, 16) * 2 - 1
    found = _changed(pictures, torch.Generator().manual_seed(0))
    assert found.shape == pictures.shape and found.abs().max() <= 1
    # A ramp from left to right says which ones were mirrored.
    ramp = torch.linspace(-0.5, 0.5, 16).expand(200, 3, 16, 16)
    mirrored = _changed(ramp, torch.Generator().manual_seed(0))[:, 0, 0]
    share = (mirrored[:, 0] > mirrored[:, -1]).float().mean()
    assert 0.35 < share < 0.65
    # A bright point says how far they were moved: up to an eighth of the side, as often one way as the other.
    point = torch.full((200, 3, 17, 17), -1.0)
    point[:, :, 8, 8] = 1.0
    rows = _changed(point, torch.Generator().manual_seed(1))[:, 0].amax(dim=2).argmax(dim=1)
    assert set(rows.tolist()) == {6, 7, 8, 9, 10}


def test_what_is_frozen_stays():
    backbone, head = network()
    backbone[:7].requires_grad_(False)
    backbone.eval()
    kept = backbone[0].weight.clone(), head.weight.clone()
    train_classifier(backbone, head, torch.rand(8, 3, 16, 16), torch.arange(8) % 4, steps=2)
    assert torch.equal(backbone[0].weight, kept[0]) and not torch.equal(head.weight, kept[1])


@pytest.mark.parametrize(
    "images, labels, options, message",
    [
        (torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.int64), {}, r"images: expected \[N >= 1, 3, S, S\]"),
        (torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64), {}, "images: expected"),
        (torch.zeros(4, 3, 8, 9), torch.zeros(4, dtype=torch.int64), {}, "images: expected"),
        (torch.full((4, 3, 8, 8), 128.0), torch.zeros(4, dtype=torch.int64), {}, r"values in \[-1, 1\]"),
        (torch.full((4, 3, 8, 8), torch.nan), torch.zeros(4, dtype=torch.int64), {}, r"values in \[-1, 1\]"),
        (torch.zeros(4, 3, 8, 8), torch.zeros(3, dtype=torch.int64), {}, r"labels: expected int64 \[4\]"),
        (torch.zeros(4, 3, 8, 8), torch.zeros(4), {}, r"labels: expected int64 \[4\]"),
        (torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 2, -1]), {}, "labels: expected classes from 0, got -1"),
        (
            torch.zeros(4, 3, 8, 8),
            torch.tensor([0, 1, 2, 4]),
            {},
            "labels: expected classes below the 4 of head, got 4",
        ),
        (torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64), {"steps": 0}, "steps: expected a positive number"),
        (torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64), {"batch": 0}, "batch: expected a positive number"),
    ],
)
def test_what_cannot_be_learnt_is_an_error_that_says_so(images, labels, options, message):
    with pytest.raises(ValueError, match=message):
        train_classifier(*network(), images, labels, **{"steps": 2} | options)


def test_bytes_are_no_images_and_a_backbone_needs_features():
    with pytest.raises(TypeError, match="images: expected a floating-point tensor"):
        train_classifier(*network(), torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4).long(), steps=1)
    with pytest.raises(ValueError, match=r"backbone: expected a backbone with an output \[B, D\] or \[B, D, h, w\]"):
        FrameClassifier(nn.Flatten(0), nn.Linear(2, 2))(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match="weights to train"):
        train_classifier(nn.Flatten(), nn.Identity(), torch.zeros(4, 3, 2, 2), torch.zeros(4).long(), steps=1)
