"""The sound localiser: its scores are the formula's, it finds what is heard among what is not, and frames are chosen
by content."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from avfast.evaluate import localisation_scores
from avfast.nn import SoundLocaliser, select_frames
from avfast.nn.encoder import Encoder
from avfast.ops._counter import content_key

SIDE, PATCH = 32, 8

# Sums in another order would change what little training there is.
pytestmark = pytest.mark.usefixtures("one_thread")


def localiser(**options):
    visual = nn.Sequential(nn.Conv2d(3, 32, 4, 4), nn.ReLU(), nn.Conv2d(32, 32, 1))
    audio = nn.Sequential(nn.Conv2d(1, 32, (3, 4), (3, 4)), nn.ReLU(), nn.Conv2d(32, 32, 1))
    return SoundLocaliser(Encoder(visual, 32), Encoder(audio, 32), dim=16, **options)


def toy(count, generator):
    """Pictures with two coloured patches, sounds whose three bands are the colour of one of them, and its box."""
    frames = 0.1 * torch.randn(count, 3, SIDE, SIDE, generator=generator)
    colours = F.normalize(torch.randn(count, 2, 3, generator=generator), dim=2)
    corners = torch.stack([torch.randperm(16, generator=generator)[:2] for _ in range(count)])  # of a 4 x 4 grid
    for n in range(count):
        for which in range(2):
            y, x = corners[n, which] // 4 * PATCH, corners[n, which] % 4 * PATCH
            frames[n, :, y : y + PATCH, x : x + PATCH] += colours[n, which, :, None, None]
    sound = colours[:, 0, None, :, None] + 0.1 * torch.randn(count, 1, 3, 12, generator=generator)
    left, top = corners[:, 0] % 4 / 4, corners[:, 0] // 4 / 4
    return frames, sound, torch.stack([left, top, left + 0.25, top + 0.25], dim=1)


def test_it_learns_from_pairs_which_patch_is_heard(generator):
    model = localiser(temperature=0.07)
    frames, sound, boxes = toy(200, generator)

    def scored():
        with torch.no_grad():
            return localisation_scores(model.maps(frames, sound), boxes, size=SIDE, share=1 / 16)

    before = scored()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(250):
        loss, _ = model(*toy(32, generator)[:2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = scored()
    found, prior = after["mean cIoU"], after["centre mean cIoU"]
    assert found.interval[0] > max(prior.interval[1], before["mean cIoU"].interval[1], found.chance_range[1]) + 0.2
    assert after["cIoU@0.5"].value > 0.6  # two patches in every picture: one looked for without the sound is half right


def test_scores_are_the_best_cosine_over_places_of_every_pair(generator):
    model = localiser().double()
    frames, sound, _ = toy(5, generator)
    frames, sound = frames.double(), sound.double()
    loss, scores = model(frames, sound)
    places = model.visual_head(model.visual(frames)).detach().numpy()
    sounds = model.audio_head(model.audio.pooled(sound)).detach().numpy()
    expected = np.empty((5, 5))
    for i in range(5):
        for j in range(5):
            vectors = places[j].reshape(16, -1)
            cosines = sounds[i] @ vectors / np.linalg.norm(vectors, axis=0) / np.linalg.norm(sounds[i])
            expected[i, j] = cosines.max()
            if i == j:
                np.testing.assert_allclose(model.maps(frames, sound)[i].detach().flatten(), cosines, atol=1e-12)
    np.testing.assert_allclose(scores.detach(), expected, atol=1e-12)
    logits = expected / model.temperature
    rows = np.log(np.exp(logits).sum(axis=1)) - logits.diagonal()
    columns = np.log(np.exp(logits).sum(axis=0)) - logits.diagonal()
    assert loss.item() == pytest.approx((rows.mean() + columns.mean()) / 2, rel=1e-12)


def test_gradients_of_the_loss_are_right(generator):
    model = localiser(temperature=0.5).double()
    frames, sound, _ = toy(3, generator)
    inputs = frames[:, :, :8, :8].double().requires_grad_(), sound.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda f, s: model(f, s)[0], inputs)
    model(*inputs)[0].backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0, name


def test_frames_are_scored_one_by_one(generator):
    model = localiser()
    frames, sound, _ = toy(4, generator)
    clips = torch.stack([frames, frames.roll(1, 0), torch.zeros_like(frames)], dim=1)
    scores = model.frame_scores(clips, sound)
    assert scores.shape == (4, 3)
    for t in range(3):
        expected = model.maps(clips[:, t], sound).amax(dim=(1, 2))
        torch.testing.assert_close(scores[:, t], expected)
    torch.testing.assert_close(scores[:, 0], model.scores(frames, sound).diagonal())


def test_half_precision_encoders_give_cosines_in_float32(generator):
    model = localiser()
    frames, sound, _ = toy(3, generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, scores = model(frames, sound)
    assert scores.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(scores, model.scores(frames, sound), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    "frames, sound, message",
    [
        (torch.zeros(2, 3, 32), torch.zeros(2, 1, 3, 12), r"frames: expected \[B, 3, H, W\], got \[2, 3, 32\]"),
        (torch.zeros(2, 3, 32, 32), torch.zeros(3, 1, 3, 12), "spectrogram: expected as many as frames"),
        (torch.zeros(0, 3, 32, 32), torch.zeros(0, 1, 3, 12), "at least one, 0, got 0"),
    ],
)
def test_batches_that_do_not_fit(frames, sound, message):
    with pytest.raises(ValueError, match=message):
        localiser()(frames, sound)
    with pytest.raises(ValueError, match=r"frames: expected \[B, T, 3, H, W\]"):
        localiser().frame_scores(frames, sound)


def test_an_encoder_without_a_map_and_options_out_of_range():
    pooled = Encoder(nn.Sequential(nn.Flatten(), nn.Linear(12, 8)), 8)
    with pytest.raises(ValueError, match="visual: expected an encoder with a map"):
        SoundLocaliser(pooled, pooled, dim=4)(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match="temperature: expected a finite number > 0"):
        SoundLocaliser(pooled, pooled, temperature=0.0)
    with pytest.raises(ValueError, match="dim: expected a positive number"):
        SoundLocaliser(pooled, pooled, dim=0)


IDS = [f"clip {n}" for n in range(2000)]


def test_rules_choose_what_they_say():
    scores = torch.randn(2000, 30)
    place = scores.argsort(dim=1, descending=True).argsort(dim=1)  # 0 for the best
    rows = torch.arange(2000)
    assert (place[rows, select_frames(scores)] == 0).all()
    assert (select_frames(scores, "middle") == 15).all()
    ten = place[rows, select_frames(scores, "top10", ids=IDS)]
    assert ten.max() == 9 and ten.bincount(minlength=10).min() > 150  # 200 of each on average
    counts = select_frames(scores, "random", ids=IDS).bincount(minlength=30)
    assert len(counts) == 30 and counts.min() > 35  # 67 on average
    for rule in ("top1", "middle", "top10", "random"):
        assert select_frames(scores, rule, ids=IDS).dtype == torch.int64
        assert (select_frames(scores[:, :1], rule, ids=IDS) == 0).all()
    few = select_frames(scores[:, :4], "top10", ids=IDS)
    assert set(few.tolist()) == {0, 1, 2, 3}


def test_equal_scores_give_the_first_frame():
    assert select_frames(torch.zeros(3, 40)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("rule", ["top10", "random"])
def test_draws_depend_on_seed_id_and_step_only(rule):
    scores = torch.randn(200, 20)
    ids = IDS[:200]
    drawn = select_frames(scores, rule, generator=3, ids=ids)
    order = torch.randperm(200)
    shuffled = select_frames(scores[order], rule, generator=3, ids=[ids[i] for i in order])
    assert torch.equal(shuffled, drawn[order])
    assert torch.equal(select_frames(scores[7:9], rule, generator=3, ids=ids[7:9]), drawn[7:9])
    keys = torch.tensor([content_key(id) for id in ids])
    assert torch.equal(select_frames(scores, rule, generator=3, ids=keys), drawn)
    for other in ({"generator": 4}, {"generator": 3, "step": 1}):
        assert 0.5 < (select_frames(scores, rule, ids=ids, **other) != drawn).float().mean() < 1
    one, two = (select_frames(scores, rule, generator=torch.Generator().manual_seed(5), ids=ids) for _ in range(2))
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    "arguments, options, error, message",
    [
        ((torch.zeros(2, 3), "best"), {}, ValueError, "rule: expected one of 'top1', 'top10', 'middle', 'random'"),
        ((torch.zeros(2, 0),), {}, ValueError, r"scores: expected \[N, T >= 1\]"),
        ((torch.zeros(2),), {}, ValueError, r"scores: expected \[N, T >= 1\]"),
        ((torch.full((2, 3), torch.nan),), {}, ValueError, "scores: expected numbers, got NaN"),
        ((torch.zeros(2, 3, dtype=torch.int64),), {}, TypeError, "scores: expected a floating-point tensor"),
        ((torch.zeros(2, 3), "random"), {}, ValueError, "ids of 2 clips, as rule 'random' needs, got None"),
        ((torch.zeros(2, 3), "top10"), {"ids": ["a"]}, ValueError, "ids of 2 clips, as rule 'top10' needs, got 1"),
        ((torch.zeros(2, 3), "random"), {"ids": torch.zeros(2)}, TypeError, "an int64 tensor"),
        ((torch.zeros(2, 3), "random"), {"ids": ["a", "b"], "generator": 0.5}, TypeError, "an integer seed"),
    ],
)
def test_choices_that_cannot_be_made(arguments, options, error, message):
    with pytest.raises(error, match=message):
        select_frames(*arguments, **options)
