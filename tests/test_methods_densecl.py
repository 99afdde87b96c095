"""DenseCL and MoCo-v2 against their formulas, their state, and what they learn from photographs."""

from __future__ import annotations

import copy
import io
import math
import warnings

import densecl_fixtures as fixtures
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import avfast
from avfast.encoders import Encoder
from avfast.errors import ConfigError
from avfast.methods import get_method
from avfast.methods.densecl import DenseCL, DenseCLConfig, own_key_share


def test_it_is_a_recipe():
    assert get_method("densecl") is DenseCL
    assert set(DenseCL.presets) == {"moco-v2", "coco-800", "imagenet-200"}
    for preset in DenseCL.presets.values():
        options = {k.removeprefix("method."): v for k, v in preset.items() if k.startswith("method.")}
        DenseCLConfig(**options)


# ------------------------------------------------------------------------------------------- the formulas


class Plain:
    """The recipe written out for one device and plain batch norm, with nothing of avfast in it but the initial weights.

    Every logit is stored, keys are gathered, queues are shifted rather than written in a ring.
    """

    def __init__(self, source: DenseCL) -> None:
        self.c = source.config
        self.net, self.slow = copy.deepcopy(source.network), copy.deepcopy(source.network)
        self.queue = source.queue.rows.clone()
        self.dense_queue = source.dense_queue.rows.clone() if source.dense_queue else None

    @staticmethod
    def run(net: nn.Module, x: Tensor, grid: int):
        features = net.encoder.backbone(x)
        q = F.normalize(net.neck.mlp(features.mean(dim=(2, 3))), dim=1)
        if net.neck.convs is None:
            return features, q, None, None
        dense = net.neck.convs(features)
        if grid:
            features, dense = F.adaptive_avg_pool2d(features, grid), F.adaptive_avg_pool2d(dense, grid)
        pooled = F.normalize(dense.mean(dim=(2, 3)), dim=1)
        return F.normalize(features.flatten(2), dim=1), q, F.normalize(dense.flatten(2), dim=1), pooled

    def cross_entropy(self, positive: Tensor, negatives: Tensor) -> Tensor:
        logits = torch.cat([positive.unsqueeze(1), negatives], dim=1) / self.c.temperature
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64))

    @torch.no_grad()
    def follow(self) -> None:
        for slow, fast in zip(self.slow.parameters(), self.net.parameters(), strict=True):
            slow.copy_(self.c.momentum * slow + (1 - self.c.momentum) * fast)

    def loss(self, view_q: Tensor, view_k: Tensor) -> Tensor:
        features_q, q, cells_q, _ = self.run(self.net, view_q, self.c.grid)
        self.follow()
        with torch.no_grad():
            features_k, k, cells_k, pooled = self.run(self.slow, view_k, self.c.grid)
        loss = self.cross_entropy((q * k).sum(dim=1), q @ self.queue.T)
        if cells_q is not None:
            match = torch.einsum("bcs,bct->bst", features_q, features_k).argmax(dim=2)
            positives = torch.stack([cells_k[b][:, match[b]] for b in range(len(match))])
            rows = cells_q.movedim(1, 2).flatten(0, 1)
            dense = self.cross_entropy((cells_q * positives).sum(dim=1).flatten(), rows @ self.dense_queue.T)
            loss = (1 - self.c.loss_lambda) * loss + self.c.loss_lambda * dense
            self.dense_queue = torch.cat([self.dense_queue, pooled])[-self.c.queue :]
        self.queue = torch.cat([self.queue, k])[-self.c.queue :]
        return loss


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0], ids=["moco-v2", "half", "dense-only"])
@pytest.mark.parametrize("grid", [0, 1, 3, 5])
def test_four_steps_equal_the_recipe_written_out(share, grid):
    """Losses and every weight of both networks, in float64, through a queue that wraps around (20 is not 3 x 8)."""
    method = fixtures.method(loss_lambda=share, grid=grid, group_size=0).double()
    plain = Plain(method)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.3, momentum=0.9) for m in (method.network, plain.net)]
    for step in range(4):
        batch = fixtures.batch(seed=step, dtype=torch.float64)
        losses = method(batch).loss, plain.loss(batch["view_q"], batch["view_k"])
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-9)
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        method.after_optimizer_step(step + 1)
    plain.follow()  # the published code moves the keys' network before it is used, here it moves after a step
    for name, value in method.network.state_dict().items():
        torch.testing.assert_close(value, plain.net.state_dict()[name], rtol=1e-8, atol=1e-10, msg=name)
    for name, value in method.momentum_network.state_dict().items():
        torch.testing.assert_close(value, plain.slow.state_dict()[name], rtol=1e-8, atol=1e-10, msg=name)
    start = method.queue.pointer
    torch.testing.assert_close(method.queue.rows.roll(-int(start), 0), plain.queue, rtol=1e-8, atol=1e-10)


def test_lambda_zero_has_no_dense_branch():
    method, dense = fixtures.method(loss_lambda=0.0), fixtures.method()
    names = {name for name, _ in method.named_modules()}
    assert method.dense_queue is None and not any("convs" in name for name in names)
    output = method(fixtures.batch())
    assert "loss_dense" not in output.metrics and set(output.embeddings) == {"image"}
    torch.testing.assert_close(output.loss, dense(fixtures.batch()).metrics["loss_global"])


def test_a_loop_that_forgets_the_end_of_a_step_is_told():
    method = fixtures.method(queue=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):  # batches of 8 whose gradients may be accumulated
            method(fixtures.batch())
    with pytest.warns(UserWarning, match="call method.after_optimizer_step"):
        method(fixtures.batch())
    assert method.queue.filled == 0 and len(method._waiting) == 3, "no more is held than the queue takes"


def test_batches_of_one_step_meet_the_same_negatives():
    method = fixtures.method(queue=20)
    method(fixtures.batch(seed=0))
    before = method.queue.rows.clone()
    method(fixtures.batch(seed=1))
    assert torch.equal(method.queue.rows, before) and method.queue.filled == 0
    method.after_optimizer_step(1)
    assert method.queue.filled.item() == pytest.approx(16 / 20) and method.step == 1


def test_lambda_waits_for_its_step():
    method = fixtures.method(loss_lambda=1.0, lambda_start=2)
    for step in range(3):
        output = method(fixtures.batch(seed=step))
        method.zero_grad()
        output.loss.backward()
        counts, waits = method.network.neck.convs[0].weight, method.network.neck.mlp[0].weight
        if step == 2:
            counts, waits = waits, counts
        assert counts.grad.abs().max() == 0 and waits.grad.abs().max() > 0
        torch.testing.assert_close(output.loss, output.metrics["loss_dense" if step == 2 else "loss_global"])
        method.after_optimizer_step(step + 1)
    assert method.dense_queue.filled == 1, "its queue fills while it waits"


def test_the_key_network_follows_and_learns_nothing_itself():
    method = fixtures.method()
    twins = list(zip(method.network.parameters(), method.momentum_network.parameters(), strict=True))
    assert all(torch.equal(fast, slow) for fast, slow in twins)
    groups = method.param_groups(1e-4)
    assert len(groups) == 1 and groups[0]["weight_decay"] == 1e-4, "biases and gains decay too"
    assert {id(p) for p in groups[0]["params"]} == {id(fast) for fast, _ in twins}
    method(fixtures.batch()).loss.backward()
    assert all(slow.grad is None and fast.grad is not None for fast, slow in twins)


def test_validation_moves_nothing_and_does_not_see_the_queue():
    method = fixtures.method()
    method(fixtures.batch())
    method.after_optimizer_step(1)
    method.eval()
    before = copy.deepcopy(method.state_dict())
    with torch.no_grad():
        loss = method.validation_step(fixtures.batch(seed=1)).loss
    for name, value in method.state_dict().items():
        assert torch.equal(value, before[name]), name
    method.queue.rows.neg_()
    with torch.no_grad():
        assert torch.equal(method.validation_step(fixtures.batch(seed=1)).loss, loss)


# ------------------------------------------------------------------------------------------- matches


def test_views_that_are_the_same_picture_match_cell_by_cell():
    method = fixtures.method(group_size=0)
    batch = fixtures.batch()
    batch |= {"view_k": batch["view_q"], "crop_k": batch["crop_q"]}
    metrics = method(batch).metrics
    assert metrics["match_agreement"] == 1
    assert metrics["pos_sim"].item() == pytest.approx(1, abs=1e-5) == metrics["dense_pos_sim"].item()
    found = method.eval().correspondences(batch)
    assert found.grid == (4, 4) and found.keep.all()
    assert torch.equal(found.index, torch.arange(16).expand(8, 16)) and torch.equal(found.truth.index, found.index)


def test_picture_keeps_mutual_pairs_above_the_threshold():
    method = fixtures.method().eval()
    batch = fixtures.batch()
    found = method.correspondences(batch, threshold=-1)
    there = method.correspondences({**batch, "view_q": batch["view_k"], "view_k": batch["view_q"]}, threshold=-1)
    for b in range(8):
        for s, j in enumerate(found.index[b].tolist()):
            assert found.keep[b, s] == (there.index[b, j] == s)
    assert 0 < found.keep.sum() < found.keep.numel()
    cut = found.similarity[found.keep].median().item()
    above = method.correspondences(batch, threshold=cut).keep
    assert torch.equal(above, found.keep & (found.similarity >= cut)) and above.sum() < found.keep.sum()


def test_geometry_takes_positives_from_the_crops():
    """In float64 by hand, with the cells that fall outside left out of the mean."""
    method = fixtures.method(match="geometry", group_size=0).double()
    batch = fixtures.batch(dtype=torch.float64)
    with torch.no_grad():
        q, k = (normalised(method.network(batch[name]).dense) for name in ("view_q", "view_k"))
    match = avfast.geometric_match(batch["crop_q"], batch["crop_k"], 4)
    assert 0 < match.valid.sum() < match.valid.numel()
    rows = []
    for b, s in match.valid.nonzero().tolist():
        negatives = method.dense_queue.rows @ q[b, :, s]
        logits = torch.cat([(q[b, :, s] @ k[b, :, match.index[b, s]])[None], negatives]) / 0.2
        rows.append(torch.logsumexp(logits, 0) - logits[0])
    assert method(batch).metrics["loss_dense"].item() == pytest.approx(torch.stack(rows).mean().item(), rel=1e-9)


def normalised(x: Tensor) -> Tensor:
    return F.normalize(x.flatten(2), dim=1)


def test_crops_that_share_nothing_leave_the_global_loss():
    method, batch = fixtures.method(match="geometry"), fixtures.batch()
    batch["crop_q"] = torch.tensor([[0.0, 0.0, 1.0, 0.5, 0.0]]).expand(8, 5)
    batch["crop_k"] = torch.tensor([[0.0, 0.5, 1.0, 0.5, 0.0]]).expand(8, 5)
    output = method(batch)
    output.loss.backward()
    assert output.metrics["loss_dense"] == 0 and output.metrics["match_agreement"] == 0
    assert all(p.grad.isfinite().all() for p in method.network.parameters())


def test_random_matches_are_worse_positives():
    batch = fixtures.batch()
    batch |= {"view_k": batch["view_q"], "crop_k": batch["crop_q"]}
    by_feature, by_chance = (fixtures.method(match=m)(batch).metrics["dense_pos_sim"] for m in ("feature", "random"))
    assert by_chance < by_feature


def test_random_matches_belong_to_the_pictures_and_not_to_the_process():
    """Two processes draw for their halves of a batch what one process draws for all of it."""
    method = fixtures.method(match="random", group_size=0).eval()
    batch = fixtures.batch() | {"seed": torch.arange(8) + 2**60}

    def matches(batch):
        return method._match(batch, *(method.network(batch[view]) for view in ("view_q", "view_k")))[0]

    whole = matches(batch)
    halves = [matches({name: values[part] for name, values in batch.items()}) for part in (slice(4), slice(4, 8))]
    assert torch.equal(torch.cat(halves), whole)
    assert not torch.equal(matches(batch | {"seed": batch["seed"] + 8}), whole), "another epoch, another draw"


# ------------------------------------------------------------------------------------------- state, precision, backends


def steps(method: DenseCL, optimizer: torch.optim.Optimizer, count: range) -> list[float]:
    losses = []
    for step in count:
        output = method(fixtures.batch(seed=step))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        method.after_optimizer_step(step + 1)
        losses.append(output.loss.item())
    return losses


@pytest.mark.parametrize("options", [{}, {"queue_dtype": "bfloat16", "lambda_start": 4}, {"loss_lambda": 0.0}], ids=str)
def test_a_resumed_training_is_the_same_training(options):
    method = fixtures.method(**options)
    optimizer = torch.optim.SGD(method.param_groups(1e-4), lr=0.1, momentum=0.9)
    steps(method, optimizer, range(3))
    file = io.BytesIO()
    torch.save({"model": method.state_dict(), "optimizer": optimizer.state_dict()}, file)
    expected = steps(method, optimizer, range(3, 6))
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = fixtures.method(seed=7, **options)
    again = torch.optim.SGD(other.param_groups(1e-4), lr=0.1, momentum=0.9)
    other.load_state_dict(state["model"])
    again.load_state_dict(state["optimizer"])
    assert steps(other, again, range(3, 6)) == expected
    for name, value in method.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize(("match", "tolerance"), [("geometry", 2e-4), ("feature", 3e-3)])
def test_the_compiled_ops_follow_the_reference(match, tolerance):
    # Two cells that resemble a third almost equally may be told apart otherwise by another order of sums; such a match
    # moves the loss of a batch by up to a thousandth.
    curves = []
    for backend in ("auto", "torch"):
        with avfast.use_backend(backend):
            method = fixtures.method(queue=200, dim=16, match=match)
            curves.append(steps(method, torch.optim.SGD(method.param_groups(0.0), lr=0.05, momentum=0.9), range(12)))
    assert curves[0] == pytest.approx(curves[1], rel=tolerance)
    assert abs(curves[0][-1] - curves[0][0]) > 0.05, "twelve steps that change nothing would show nothing"


def test_autocast_and_a_shadow_queue_change_the_loss_by_rounding():
    batch = fixtures.batch()
    expected = fixtures.method(queue=512)(batch)
    method = fixtures.method(queue=512, queue_dtype="bfloat16")
    with torch.autocast("cpu", torch.bfloat16):
        output = method(batch)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=0.02) and output.loss != expected.loss
    assert method.queue.negatives().dtype == torch.bfloat16 and method.queue.rows.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in method.network.parameters())


def test_loss_bounds_are_the_losses_of_features_that_say_nothing():
    method, batch = fixtures.method(queue=50), fixtures.batch()
    bounds = method.loss_bounds(8)
    assert set(bounds) == {"chance", "chance in validation"}
    for head in (method.network.neck, method.momentum_network.neck):
        for p in head.parameters():
            nn.init.zeros_(p)  # one vector for every picture and cell
    method.momentum_network.load_state_dict(method.network.state_dict(), strict=False)
    with torch.no_grad():
        assert method.training_step(batch).loss.item() == pytest.approx(bounds["chance"], rel=1e-5)
        assert method.validation_step(batch).loss.item() == pytest.approx(bounds["chance in validation"], rel=1e-5)
    assert "queue_fill" in method.notes()[0] and len(method.notes()) == 1
    assert "lambda_start" in fixtures.method(loss_lambda=1.0).notes()[1]


# ------------------------------------------------------------------------------------------- what a user takes home


def test_features_are_of_the_plain_image_and_heads_are_apart():
    method, batch = fixtures.method(grid=2).eval(), fixtures.batch()
    with torch.no_grad():
        dense, pooled = method.dense_features(batch), method.features(batch)["image"]
        assert dense.shape == (8, 16, 4, 4), "a segmentation head reads the map, whatever grid the loss took"
        torch.testing.assert_close(pooled, dense.mean(dim=(2, 3)))
        torch.testing.assert_close(dense, method.encoder(batch["image"]))
        assert method.embed(batch)["image"].shape == (8, 6)


def test_the_export_is_a_plain_resnet(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    method = DenseCL(DenseCLConfig(size=64)).eval()
    modules = method.exports()
    assert set(modules) == {"encoder", "neck"}
    modules["encoder"].save_pretrained(tmp_path)
    plain = transformers.AutoModel.from_pretrained(tmp_path, local_files_only=True).eval()
    assert type(plain).__name__ == "ResNetModel"
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(plain(x).last_hidden_state, method.dense_features({"image": x}))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss_lambda": 1.5}, r"loss_lambda: expected a number in \[0, 1\], got 1.5"),
        ({"momentum": -1}, "momentum: expected"),
        ({"temperature": 0.0}, "temperature: expected a positive number"),
        ({"group_size": 1}, "group_size: expected 0 .plain batch norm. or at least 2, got 1"),
        ({"queue": 0}, "queue: expected at least 1, got 0"),
        ({"grid": -1}, "grid: expected at least 0"),
        ({"match": "colour"}, "match: expected one of feature, geometry, random, got 'colour'"),
        ({"queue_dtype": "int8"}, "queue_dtype: expected one of float32, bfloat16"),
    ],
)
def test_options_out_of_range(options, words):
    with pytest.raises(ConfigError, match=words):
        fixtures.method(**options)


def test_missing_crops_and_missing_maps_are_named():
    batch = {k: v for k, v in fixtures.batch().items() if not k.startswith("crop")}
    assert "match_agreement" not in fixtures.method()(batch).metrics
    with pytest.raises(ConfigError, match="match=geometry: the batch has no crop_q"):
        fixtures.method(match="geometry")(batch)
    flat = Encoder(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5)), 5)
    with pytest.raises(ConfigError, match=r"a feature map \[B, C, h, w\], got \[8, 5\]"):
        DenseCL(DenseCLConfig(queue=8), encoder=flat)(batch)


# ------------------------------------------------------------------------------------------- learning


def test_pictures_seldom_meet_their_own_older_keys():
    """By default, on as many pictures as `--data demo` trains on; a queue longer than an epoch holds nearly all."""
    from avfast.data import EpochSampler

    def share(queue: int) -> float:
        sampler, seen, met = EpochSampler(840, seed=0, batch_size=32, world_size=1), [], []
        for _ in range(8):
            for batch in sampler:
                numbers = [index for _, index in batch]
                if len(seen) >= queue:
                    met += [number in seen[-queue:] for number in numbers]
                seen += numbers
        return sum(met) / len(met)

    assert share(DenseCLConfig().queue) < 0.1 < 0.6 < share(1024)
    for queue in (256, 700, 1024):
        assert share(queue) == pytest.approx(own_key_share(queue, 840), abs=0.03)


def test_a_queue_that_does_not_fit_the_data_is_remarked_on():
    method = fixtures.method(queue=1000)
    assert method.data_notes(samples=5000, shown=1000) == []
    (never_full,) = method.data_notes(samples=5000, shown=999)
    assert "the queue of 1000 never fills: 999 images are shown" in never_full
    (own,) = method.data_notes(samples=1000, shown=3000)
    assert own.startswith("50% of images meet an older key of their own")


def train(shuffled: bool) -> tuple[DenseCL, list[dict[str, float]]]:
    """150 steps on crops of photographs, from the same weights."""
    method = fixtures.method(channels=1, width=16, dim=32, queue=1024, momentum=0.99, group_size=16)
    optimizer = torch.optim.AdamW(method.param_groups(1e-4), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for step in range(150):
        output = method(fixtures.photo_views(64, generator, shuffled=shuffled))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        method.after_optimizer_step(step + 1)
        rows.append({name: value.item() for name, value in output.metrics.items()} | {"loss": output.loss.item()})
    return method, rows


def accuracy(method: DenseCL) -> float:
    """Which of sixteen photographs a crop is from, by its nearest neighbours."""
    from avfast.evaluate import knn_accuracy

    features = {}
    for seed in (1, 2):
        pictures, labels = fixtures.labelled_crops(512, seed)
        with torch.no_grad():
            features[seed] = method.eval().features({"image": pictures})["image"], labels
    return knn_accuracy(*features[1], *features[2]).value


def test_it_learns_from_photographs_what_shuffled_pairs_do_not_teach():
    pytest.importorskip("av", reason="PyAV is not installed")
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    untrained = fixtures.method(channels=1, width=16)
    for seed in range(3):  # running statistics of the data, or the comparison would be unfair
        untrained.train().features({"image": fixtures.labelled_crops(64, seed)[0]})
    (method, rows), (control, control_rows) = train(False), train(True)
    scores = [accuracy(m) for m in (method, untrained, control)]
    assert scores[0] > max(scores[1], scores[2]) + 0.08, scores
    # The early loss rises while random rows leave the queue; from there it falls.
    full = next(i for i, row in enumerate(rows) if row["queue_fill"] == 1)
    assert full == 16, "1024 rows in batches of 64, counted before the push"
    assert rows[full]["loss_global"] > rows[0]["loss_global"] + 1
    assert rows[-1]["loss_global"] < rows[full]["loss_global"] - 0.3
    assert rows[-1]["loss_global"] < min(math.log(1025), control_rows[-1]["loss_global"]) - 0.1
    assert rows[-1]["pos_sim"] > rows[-1]["neg_sim"] + 0.1
