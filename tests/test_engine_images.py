"""Image recipes inside the engine: views, the shuffled-pair control, learning rates, and exact continuation."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from engine_fixtures import IMAGES, StopAt, scenes_split, weights

for library in ("PIL", "av", "sklearn", "kornia", "accelerate", "jsonargparse", "transformers"):
    pytest.importorskip(library, reason=f"{library} is not installed")

from avfast.data import EpochSampler  # noqa: E402
from avfast.engine import build  # noqa: E402
from avfast.engine.checkpoint import load_checkpoint  # noqa: E402
from avfast.engine.config import OptimConfig, parse_config  # noqa: E402
from avfast.engine.image_inputs import ImagePipeline  # noqa: E402
from avfast.engine.loop import Trainer  # noqa: E402
from avfast.engine.signals import Budget, StopRequest  # noqa: E402
from avfast.engine.sources import evaluation_loader, training_loader  # noqa: E402
from avfast.engine.validate import Validator  # noqa: E402
from avfast.evaluate import ShuffledPairs, shuffled_order  # noqa: E402

WORDS = ("size=32", "queue=16", "dim=8", "batch_size=7", "group_size=3", "method.momentum=0.9", "warmup_steps=0")

pytestmark = pytest.mark.usefixtures("one_thread")


def config(*words):
    return parse_config("densecl", [*WORDS, *words])


def batches(data, *, workers=0):
    sampler = EpochSampler(len(data), seed=0, batch_size=7)
    return list(training_loader(data, sampler, config(f"workers={workers}").data, pin_memory=False))


# ------------------------------------------------------------------------------------------- what goes in


def test_two_views_follow_the_seed_and_not_the_number_of_workers():
    pipeline = ImagePipeline(IMAGES)
    here, there = ([pipeline(b) for b in batches(scenes_split(), workers=n)] for n in (0, 2))
    assert len(here) == len(there) == 4
    for one, two in zip(here, there, strict=True):
        assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    first = here[0]
    assert first["view_q"].shape == first["view_k"].shape == first["image"].shape == (7, 3, 32, 32)
    assert first["crop_q"].shape == (7, 5) and first["mask"].shape == (7, 32, 32)
    assert not torch.equal(first["view_q"], first["view_k"])
    other = pipeline(batches(scenes_split(seed=1))[0])
    assert torch.equal(other["image"], first["image"]) and not torch.equal(other["view_q"], first["view_q"])


def test_evaluation_sees_the_whole_picture_without_views():
    pipeline, batch = ImagePipeline(IMAGES), batches(scenes_split())[0]
    assert batch["image"].shape == (7, 3, IMAGES.source_size, IMAGES.source_size)
    plain = pipeline.plain(batch)
    assert "view_q" not in plain and torch.equal(plain["image"], pipeline(batch)["image"])
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    shown = plain["image"] * std + mean
    assert -1e-6 <= shown.min() and shown.max() <= 1 + 1e-6
    torch.testing.assert_close(shown.mean(dim=(2, 3)), batch["image"].float().mean(dim=(2, 3)) / 255, atol=0.02, rtol=0)


def test_the_control_cuts_the_second_view_from_another_picture():
    order = shuffled_order(28, seed=0)
    pipeline, true = ImagePipeline(IMAGES), scenes_split()
    batch = batches(ShuffledPairs(true, order))[0]
    drawn, paired = pipeline(batch), pipeline({k: v for k, v in batch.items() if k != "other"})
    assert torch.equal(drawn["view_q"], paired["view_q"])
    partners = torch.stack([true[0, order[i]]["image"] for i in batch["index"].tolist()])
    assert torch.equal(batch["other"], partners) and not torch.equal(batch["other"], batch["image"])
    assert torch.equal(drawn["view_k"], pipeline({**batch, "image": partners})["view_k"])


# ------------------------------------------------------------------------------------------- how it is trained


def test_the_cosine_moves_once_per_epoch():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = build.build_schedule(optimizer, OptimConfig(schedule="cosine-epoch", warmup_steps=0), 2400, 3)
    rates = []
    for _ in range(2400):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    expected = [0.15 * (1 + math.cos(math.pi * epoch / 800)) for epoch in range(800) for _ in range(3)]
    assert rates == pytest.approx(expected, rel=1e-9)
    assert rates[-1] == pytest.approx(1.157e-6, rel=1e-3)  # what a log of the published training shows


def make(out, *words, resume=None, data=None) -> Trainer:
    settings = config("steps=9", "save_every=4", "eval_every=4", "log_every=2", *words)
    return Trainer(
        settings, data or scenes_split(), Validator(evaluation_loader(scenes_split("val"), 4)), out,
        build.build_accelerator("cpu", "no"), fingerprint="abc", steps=9, resume=resume,
    )  # fmt: skip


def test_the_rate_is_scaled_to_the_batch(tmp_path):
    optim = OptimConfig(lr=0.3, lr_batch=256)
    assert [build.learning_rate(optim, n) for n in (64, 256, 1024)] == pytest.approx([0.075, 0.3, 1.2])
    assert build.learning_rate(dataclasses.replace(optim, lr_batch=0), 64) == 0.3
    trainer = make(tmp_path, "lr=0.3", "lr_batch=14", "schedule=constant")
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [0.15]


class Killed(BaseException):
    """Ends a process as SIGKILL would: nothing is saved on the way out."""


class KillAt(StopAt):
    @property
    def signal_name(self):
        if self.trainer.step >= self.at:
            raise Killed
        return None

    @signal_name.setter
    def signal_name(self, value):
        pass


@pytest.mark.parametrize("pairs", ["true", "shuffled"])
def test_killed_and_continued_equals_uninterrupted_bit_for_bit(tmp_path, pairs):
    """Queues, key network, permutations of the shuffled batch norm and views included: epochs have four steps."""
    data = scenes_split() if pairs == "true" else ShuffledPairs(scenes_split(), shuffled_order(28, seed=0))
    whole = make(tmp_path / "a", data=data)
    whole.fit(StopRequest(), Budget(None))
    first = make(tmp_path / "b", data=data)
    with pytest.raises(Killed):
        first.fit(KillAt(first, 6), Budget(None))
    last = tmp_path / "b" / "checkpoints" / "last.pt"
    assert load_checkpoint(last)["counters"]["step"] == 4
    torch.manual_seed(99)
    second = make(tmp_path / "b", data=data, resume=last)
    assert second.fit(StopRequest(), Budget(None)).step == 9
    expected, found = weights(whole), weights(second)
    assert expected.keys() == found.keys() and "queue.rows" in expected
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    assert not torch.equal(expected["queue.rows"], weights(make(tmp_path / "c"))["queue.rows"])
