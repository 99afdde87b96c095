"""CIM against its recipe written out, its schedules and options, and what it learns from photographs."""

from __future__ import annotations

import copy
import io
import math
import os
import socket

import cim_fixtures as fixtures
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

import avfast
from avfast.errors import ConfigError
from avfast.methods import get_method
from avfast.methods.base import CorrelationInputs

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from avfast.methods.cim import CIM, CIMConfig  # noqa: E402

DIRECTIONS = ("context", "exemplar", "bidirectional", "correlation")


def test_it_is_a_recipe():
    assert get_method("cim") is CIM
    assert set(CIM.presets) == {"small", "vit-small", "vit-base", "resnet50", "released"}
    for name, preset in CIM.presets.items():
        config = CIMConfig(**{k.removeprefix("method."): v for k, v in preset.items() if k.startswith("method.")})
        if name == "small":
            assert (config.encoder, config.size, config.context, config.exemplar) == ("vit-tiny8", 64, 48, 24)
            continue
        assert (config.size, config.context, config.exemplar, config.count) == (224, 160, 64, 6)
        assert (config.decoder_dim, config.decoder_heads, config.momentum) == (512, 16, 0.99)
        assert (tuple(config.angle), config.contrastive_weight, config.freeze_patches) == ((-45, 45), 0, True)
        assert (config.compat, preset["optim.clip_norm"]) == (("released", 0) if name == "released" else ("none", 1))


# ------------------------------------------------------------------------------------------- the formulas


def target(boxes: Tensor, pixels: int, source: float, shrink: float = 0.0) -> Tensor:
    """Maps ``[M, pixels, pixels]`` from the closed form, in float64."""
    centre = (torch.arange(pixels).double() + 0.5) * source / pixels - source / 2
    maps = []
    for theta, top, left, bottom, right in boxes.double().tolist():
        cos, sin = math.cos(math.radians(theta)), math.sin(math.radians(theta))
        x, y = centre[None, :], centre[:, None]
        xr, yr = cos * x + sin * y, -sin * x + cos * y
        inside = (left + shrink <= xr) & (xr < right - shrink) & (top + shrink <= yr) & (yr < bottom - shrink)
        maps.append(inside)
    return torch.stack(maps)


class Plain:
    """The recipe written out exemplar by exemplar, with maps at full size and two-class cross-entropy."""

    def __init__(self, source: CIM, steps: int) -> None:
        self.c, self.steps, self.done = source.config, steps, 0
        self.net, self.slow = copy.deepcopy(source.branch), copy.deepcopy(source.branch)
        self.decoder = copy.deepcopy(source.decoder)
        self.predictor = copy.deepcopy(source.predictor)

    def parameters(self) -> list[Tensor]:
        modules = [m for m in (self.net, self.predictor, self.decoder) if m is not None]
        return [p for m in modules for p in m.parameters() if p.requires_grad]

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        c, decoder = self.c, self.decoder
        first = int(self.net.encoder.class_tokens)
        with torch.no_grad():
            if first:
                token = self.net.encoder.backbone.embeddings.cls_token
                self.slow.encoder.backbone.embeddings.cls_token.copy_(token)
            whole = self.slow.encoder.tokens(batch["context"])
            wanted = None if self.slow.projector is None else self.slow.projector(whole[:, 0])
        context = decoder.project(whole)
        context = torch.cat([context[:, :first], context[:, first:] + decoder.positions[first:]], dim=1)
        total = torch.zeros((), dtype=torch.float64)
        # Batch norm, which a ViT has not, sees the exemplars of all places in the order.
        together = None if first else self.net.encoder.tokens(batch["exemplars"].flatten(0, 1))
        for e in range(c.count):
            tokens = self.net.encoder.tokens(batch["exemplars"][:, e]) if first else together[e :: c.count]
            attended = decoder.blocks["context"](context, decoder.project(tokens).unsqueeze(1))[:, 0]
            cells = decoder.norm(attended)[:, first:].mT.unflatten(2, decoder.grid)
            logits = F.conv2d(cells, decoder.head.weight[:, :, None, None], decoder.head.bias)
            logits = F.interpolate(logits, (c.context, c.context), mode="bilinear", align_corners=True)
            released = c.compat == "released"
            truth = target(batch["boxes"][:, e], c.context, c.size + 2 * released, 0.25 * released)
            total = total + F.cross_entropy(logits, truth.long())
            if wanted is not None:
                z = F.normalize(self.predictor(self.net.projector(tokens[:, 0])), dim=1)
                scores = z @ F.normalize(wanted, dim=1).T / c.temperature
                nce = F.cross_entropy(scores, torch.arange(len(scores)))
                total = total + c.contrastive_weight * 2 * c.temperature * nce
        return total

    @torch.no_grad()
    def follow(self) -> None:
        m = 1 - (1 - self.c.momentum) * (1 + math.cos(math.pi * self.done / self.steps)) / 2
        for slow, fast in zip(self.slow.parameters(), self.net.parameters(), strict=True):
            slow.copy_(m * slow + (1 - m) * fast)
        self.done += 1


@pytest.mark.parametrize(
    ("options", "encoder"),
    [
        ({}, fixtures.vit),
        ({"context": 24, "momentum": 0.5}, fixtures.vit),
        ({"contrastive_weight": 0.5, "count": 2}, fixtures.vit),
        ({"compat": "released"}, fixtures.vit),
        ({}, fixtures.residual),
    ],
    ids=["default", "context-24", "global-branch", "released", "residual"],
)
def test_four_steps_equal_the_recipe_written_out(options, encoder):
    """Losses and every weight of both networks and the decoder."""
    exact = torch.float32 if options.get("compat") else torch.float64  # the released decoder computes in float32
    tolerance = {"rtol": 2e-3, "atol": 2e-4} if exact == torch.float32 else {"rtol": 1e-6, "atol": 1e-8}
    method = fixtures.method(encoder=encoder, **options).to(exact)
    method.prepare_training(4)
    plain = Plain(method, 4)
    groups = method.param_groups(0.0)
    optimizers = [torch.optim.SGD(p, lr=0.05, momentum=0.9) for p in (groups, plain.parameters())]
    for step in range(4):
        batch = fixtures.batch(6, seed=step, dtype=exact, options=options)
        losses = method(batch).loss, plain.loss(batch)
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-4 if exact == torch.float32 else 1e-8)
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        method.after_optimizer_step(step + 1)
        plain.follow()
    plain.slow.encoder.load_state_dict(
        {**plain.slow.encoder.state_dict(), **{k: v for k, v in plain.net.encoder.state_dict().items() if "cls" in k}}
    )
    pairs = [(method.branch, plain.net), (method.momentum_branch, plain.slow), (method.decoder, plain.decoder)]
    for mine, theirs in pairs:
        for name, value in mine.state_dict().items():
            if not name.startswith("positions"):
                torch.testing.assert_close(value, theirs.state_dict()[name], **tolerance, msg=name)


def test_the_first_loss_is_that_of_a_coin():
    """ln 2 for each exemplar, where the released weights of the head start far above."""
    losses = [fixtures.method(compat=compat, decoder_dim=64)(fixtures.batch()).loss for compat in ("none", "released")]
    assert losses[0].item() == pytest.approx(3 * math.log(2), rel=0.1)
    assert losses[1].item() > 2 * losses[0].item()


def test_metrics_are_those_of_maps_made_at_full_size():
    method, batch = fixtures.method().eval(), fixtures.batch(20)
    truth = target(batch["boxes"].flatten(0, 1), 32, 32)
    found = method.location_maps(batch)
    assert found.logits.shape == found.truth.shape == (20, 3, 32, 32)
    assert torch.equal(found.truth.flatten(0, 1).bool(), truth)
    metrics = method.validation_step(batch).metrics
    predicted = found.logits.flatten(0, 1) > 0
    cut = found.logits.flatten(0, 1).sigmoid() > found.level
    for name, maps in (("map_iou", cut), ("prior_iou", found.prior.expand_as(truth))):
        ious = [(a & b).sum() / (a | b).sum() for a, b in zip(maps, truth, strict=True)]
        assert metrics[name].item() == pytest.approx(torch.stack(ious).mean().item(), abs=1e-6)
    assert metrics["map_accuracy"].item() == pytest.approx((predicted == truth).float().mean().item(), abs=1e-6)
    assert metrics["background_accuracy"].item() == pytest.approx(1 - truth.float().mean().item(), abs=1e-6)
    some = method.train()(batch).metrics  # of 16 pictures
    ious = [(a & b).sum() / (a | b).sum() for a, b in zip(cut[:48], truth[:48], strict=True)]
    assert some["map_iou"].item() == pytest.approx(torch.stack(ious).mean().item(), abs=1e-3)


def test_the_fixed_prior_is_better_than_a_guess_and_its_loss_is_stated():
    method = fixtures.method()
    boxes = avfast.sample_exemplars(400, count=3, size=32, generator=99).boxes.flatten(0, 1)
    truth = target(boxes, 32, 32)
    prior = method.prior_mask
    iou = ((truth & prior).sum(dim=(1, 2)) / (truth | prior).sum(dim=(1, 2))).mean()
    everything = truth.float().mean(dim=(1, 2)).mean()
    assert iou > everything + 0.05
    rate = method.prior_rate.clamp(1e-6, 1 - 1e-6)
    loss = 3 * F.binary_cross_entropy(rate.expand(len(truth), -1, -1), truth.float()).item()
    bounds = method.loss_bounds(8)
    assert bounds["fixed prior"] == pytest.approx(loss, rel=0.05)
    assert bounds["fixed prior"] < bounds["one rate everywhere"] < 3 * math.log(2)
    assert fixtures.method(loss="focal_mse").loss_bounds(8) == {}


# ------------------------------------------------------------------------------------------- schedules


def test_momentum_rises_to_one_along_half_a_cosine():
    method = fixtures.method(momentum=0.9)
    assert method.momentum_at(1) == method.momentum_at(50) == 0.9, "of a run of unknown length"
    method.prepare_training(10)
    values = [method.momentum_at(step) for step in range(1, 12)]
    assert values[0] == pytest.approx(0.9) and values[5] == pytest.approx(0.95) and values[10] == 1.0
    assert values == sorted(values)


def test_the_slow_network_follows_and_reads_the_class_token_that_learns():
    method = fixtures.method(momentum=0.75)
    optimizer = torch.optim.SGD(method.param_groups(0.0), lr=0.5)
    before = copy.deepcopy(method.momentum_branch.state_dict())
    method(fixtures.batch()).loss.backward()
    optimizer.step()
    method.after_optimizer_step(1)
    online, slow = method.branch.state_dict(), method.momentum_branch.state_dict()
    moved = 0
    for name, value in slow.items():
        expected = online[name] if name.endswith("cls_token") else 0.75 * before[name] + 0.25 * online[name]
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
        moved += not torch.equal(value, before[name])
    assert moved > 10 and not torch.equal(
        slow["encoder.backbone.embeddings.cls_token"], before["encoder.backbone.embeddings.cls_token"]
    )


def test_optimiser_settings_of_the_recipe():
    pytest.importorskip("jsonargparse", reason="jsonargparse is not installed")
    from avfast.engine.build import build_optimizer, build_schedule, learning_rate
    from avfast.engine.config import parse_config

    config = parse_config("cim", ["data.batch_size=512"], preset="vit-small")
    assert learning_rate(config.optim, 4096) == pytest.approx(2.4e-3)
    method = fixtures.method()
    optimizer = build_optimizer(method, config.optim, 4096)
    assert type(optimizer) is torch.optim.AdamW and optimizer.defaults["betas"] == (0.9, 0.95)
    for group in optimizer.param_groups:
        assert group["weight_decay"] == (0.05 if group["params"][0].ndim > 1 else 0.0)
    schedule = build_schedule(optimizer, config.optim, 3000, 10)
    rates = []
    for _ in range(3000):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert max(rates) == pytest.approx(2.4e-3) and rates.index(max(rates)) == 400, "forty epochs of warm-up"
    assert rates[199] == pytest.approx(2.4e-3 * 200 / 401) and rates[1700] == pytest.approx(1.2e-3, rel=1e-3)
    frozen = [n for n, p in method.named_parameters() if not p.requires_grad and not n.startswith("momentum")]
    assert {n.partition("embeddings.")[2] for n in frozen} == {
        "position_embeddings", "patch_embeddings.projection.weight", "patch_embeddings.projection.bias"
    }  # fmt: skip


# ------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("encoder", [fixtures.vit, fixtures.residual], ids=["vit", "residual"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_direction_trains_all_it_has(direction, encoder):
    method = fixtures.method(direction=direction, encoder=encoder)
    output = method(fixtures.batch())
    output.loss.backward()
    assert output.embeddings["exemplar"].shape == output.embeddings["context"].shape == (4, method.encoder.channels)
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert method.encoder.backbone.state_dict().keys() == method.momentum_branch.encoder.backbone.state_dict().keys()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_exemplars_do_not_see_each_other(direction):
    method, batch = fixtures.method(direction=direction).eval(), fixtures.batch()
    order = torch.tensor([2, 0, 1])
    swapped = {**batch, "exemplars": batch["exemplars"][:, order], "boxes": batch["boxes"][:, order]}
    first, second = method.location_maps(batch).logits, method.location_maps(swapped).logits
    torch.testing.assert_close(first[:, order], second, rtol=1e-4, atol=1e-5)
    other = {**batch, "exemplars": batch["exemplars"].clone()}
    other["exemplars"][:, 0] += 1
    changed = (method.location_maps(other).logits - first).abs().amax(dim=(0, 2, 3))
    assert changed[0] > 1e-5 and changed[1:].max() < 1e-5


def test_where_the_context_comes_from():
    """The same maps at first; gradient through the context only where it is shared, memory of a copy only for ema."""
    outputs, sizes = {}, {}
    for target in ("ema", "shared", "stopgrad"):
        method, batch = fixtures.method(target=target), fixtures.batch()
        batch["context"].requires_grad_()
        output = method(batch)
        output.loss.backward()
        outputs[target], sizes[target] = output.loss.item(), len(method.state_dict())
        assert (batch["context"].grad is not None) == (target == "shared")
        assert (method.momentum_branch is None) == (target != "ema")
        method.after_optimizer_step(1)
    assert len({round(v, 6) for v in outputs.values()}) == 1
    assert sizes["ema"] > sizes["shared"] == sizes["stopgrad"]


def test_focal_error_by_hand():
    method, batch = fixtures.method(loss="focal_mse").double(), fixtures.batch(dtype=torch.float64)
    found = method.location_maps(batch)
    error = (found.logits.sigmoid() - found.truth).abs()
    assert method(batch).loss.item() == pytest.approx(3 * (error**3).mean().item(), rel=1e-9)


def test_the_global_branch_is_not_built_for_nothing():
    plain, method = fixtures.method(), fixtures.method(contrastive_weight=1.0)
    assert plain.predictor is None and plain.branch.projector is None
    assert not any("projector" in name or "predictor" in name for name in plain.state_dict())
    output = method(fixtures.batch())
    torch.testing.assert_close(output.loss, output.metrics["loss_map"] + output.metrics["loss_global"])
    assert "loss_global" not in plain(fixtures.batch()).metrics
    norms = [m for m in method.branch.projector if isinstance(m, nn.BatchNorm1d)]
    assert [m.affine for m in norms] == [True, True, False] and len(method.predictor) == 5


def test_patches_train_where_they_are_not_frozen():
    for freeze in (True, False):
        method = fixtures.method(freeze_patches=freeze)
        method(fixtures.batch()).loss.backward()
        weight = method.encoder.backbone.embeddings.patch_embeddings.projection.weight
        assert weight.requires_grad != freeze and (weight.grad is None) == freeze


def test_inputs_say_what_to_cut():
    method = fixtures.method(
        count=2, area=(0.1, 0.2), aspect=(0.5, 2.0), angle=(0.0, 0.0), colours="both", mirror=False
    )
    assert method.inputs == CorrelationInputs(
        32, context=32, exemplar=16, count=2, area=(0.1, 0.2), aspect=(0.5, 2.0), angle=(0.0, 0.0), colours="both",
        mirror=False,
    )  # fmt: skip
    assert isinstance(method.inputs, CorrelationInputs) and method.inputs.noun == "images"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"count": 0}, "count: expected at least 1, got 0"),
        ({"exemplar": 4}, "exemplar: expected at least 8, got 4"),
        ({"decoder_dim": 18, "decoder_heads": 3}, "decoder_dim: expected a multiple of 4 and of the 3 heads, got 18"),
        ({"momentum": 1.5}, r"momentum: expected a number in \[0, 1\]"),
        ({"contrastive_weight": -1.0}, "contrastive_weight: expected a number >= 0"),
        ({"temperature": 0.0}, "temperature: expected a positive number"),
        ({"direction": "up"}, "direction: expected one of context, exemplar, bidirectional, correlation, got 'up'"),
        ({"target": "slow"}, "target: expected one of ema, shared, stopgrad"),
        ({"loss": "dice"}, "loss: expected one of bce, focal_mse"),
        ({"compat": "0.1"}, "compat: expected one of none, released"),
        ({"colours": True}, "colours: expected one of none, exemplars, context, both, got 'True'"),
        ({"area": (0.5, 0.1)}, "method: avfast.sample_exemplars: area"),
    ],
)
def test_options_out_of_range(options, words):
    with pytest.raises(ConfigError, match=words):
        fixtures.method(**options)


# ------------------------------------------------------------------------------------------- state, precision


def steps(method: CIM, optimizer: torch.optim.Optimizer, count: range) -> list[float]:
    losses = []
    for step in count:
        output = method(fixtures.batch(seed=step))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        method.after_optimizer_step(step + 1)
        losses.append(output.loss.item())
    return losses


@pytest.mark.parametrize("options", [{}, {"contrastive_weight": 1.0}, {"target": "stopgrad"}], ids=str)
def test_a_resumed_training_is_the_same_training(options):
    method = fixtures.method(**options)
    method.prepare_training(6)
    optimizer = torch.optim.AdamW(method.param_groups(0.05), lr=1e-3)
    steps(method, optimizer, range(3))
    file = io.BytesIO()
    torch.save({"model": method.state_dict(), "optimizer": optimizer.state_dict()}, file)
    expected = steps(method, optimizer, range(3, 6))
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = fixtures.method(seed=7, **options)
    other.prepare_training(6)
    again = torch.optim.AdamW(other.param_groups(0.05), lr=1e-3)
    other.load_state_dict(state["model"])
    again.load_state_dict(state["optimizer"])
    assert steps(other, again, range(3, 6)) == expected
    for name, value in method.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_validation_moves_nothing():
    method = fixtures.method(encoder=fixtures.residual, contrastive_weight=1.0).eval()
    before = copy.deepcopy(method.state_dict())
    losses = []
    for _ in range(2):
        with torch.no_grad():
            losses.append(method.validation_step(fixtures.batch()).loss)
    assert torch.equal(*losses)
    for name, value in method.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_compiled_ops_follow_the_reference():
    curves = []
    for backend in ("auto", "torch"):
        with avfast.use_backend(backend):
            method = fixtures.method()
            curves.append(steps(method, torch.optim.AdamW(method.param_groups(0.05), lr=1e-3), range(8)))
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)


@pytest.mark.parametrize("target", ["ema", "shared", "stopgrad"])
@pytest.mark.parametrize("compat", ["none", "released"])
def test_autocast_changes_the_loss_by_rounding_and_trains_everything(target, compat):
    expected = fixtures.method(target=target, compat=compat)(fixtures.batch()).loss.item()
    method = fixtures.method(target=target, compat=compat)
    seen = {}
    method.decoder.head.register_forward_hook(lambda module, given, logits: seen.update(dtype=logits.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        output = method(fixtures.batch())
    output.loss.backward()
    assert output.loss.dtype == torch.float32 and output.loss.item() == pytest.approx(expected, rel=0.05)
    assert seen["dtype"] == (torch.float32 if compat == "released" else torch.bfloat16)
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


# ------------------------------------------------------------------------------------------- what a user takes home


def test_the_export_is_a_plain_vit(tmp_path):
    method = CIM(CIMConfig(encoder="vit-mini8")).eval()
    modules = method.exports()
    assert set(modules) == {"encoder", "momentum_encoder", "decoder"}
    x = torch.randn(2, 3, 64, 64)
    for name in ("encoder", "momentum_encoder"):
        modules[name].save_pretrained(tmp_path / name)
        plain = transformers.AutoModel.from_pretrained(
            tmp_path / name, local_files_only=True, add_pooling_layer=False
        ).eval()
        assert type(plain).__name__ == "ViTModel"
        with torch.no_grad():
            found = plain(x).last_hidden_state
            torch.testing.assert_close(found[:, 1:].mT.unflatten(2, (8, 8)), method.dense_features({"image": x}))
    with torch.no_grad():
        assert method.features({"image": x})["image"].shape == (2, 192)
    assert "momentum_encoder" not in fixtures.method(target="shared").exports()


def test_a_residual_network_of_the_paper_gives_maps():
    method = CIM(CIMConfig(encoder="resnet-small16"))
    output = method(fixtures.batch(2, options={"size": 64, "context": 48, "exemplar": 24}))
    output.loss.backward()
    assert method.decoder.grid == (3, 3) and type(method.exports()["encoder"]).__name__ == "ResNetModel"
    assert all(p.grad is not None for p in method.branch.parameters())


def test_shuffled_control_cuts_the_same_places_from_another_picture():
    from avfast.engine.inputs import build_pipeline

    method = fixtures.method()
    pipeline = build_pipeline(method.inputs)
    loaded = pipeline.example(4)
    batch = pipeline(loaded)
    control = pipeline({**loaded, "other": loaded["image"].flip(0)})
    swapped = pipeline({**loaded, "image": loaded["image"].flip(0)})
    for name in ("context", "boxes", "image"):
        assert torch.equal(batch[name], control[name]), name
    assert torch.equal(control["exemplars"], swapped["exemplars"])
    assert not torch.equal(control["exemplars"], batch["exemplars"])
    assert batch["context"].shape == (4, 3, 32, 32) and batch["exemplars"].shape == (4, 3, 3, 16, 16)
    assert batch["image"].shape == (4, 3, 32, 32) and "context" not in pipeline.plain(loaded)


# ------------------------------------------------------------------------------------------- two processes


def in_two_processes(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.save(trained(rank), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def trained(rank: int | None) -> dict[str, Tensor]:
    """State after three steps on the whole batch, or on the half of a process."""
    method = fixtures.method().double()
    method.prepare_training(3)
    optimizer = torch.optim.AdamW(method.param_groups(0.05), lr=1e-2)
    model = method if rank is None else nn.parallel.DistributedDataParallel(method)
    for step in range(3):
        batch = fixtures.batch(6, seed=step, dtype=torch.float64)
        own = batch if rank is None else {k: v[3 * rank : 3 * rank + 3] for k, v in batch.items()}
        optimizer.zero_grad()
        model(own).loss.backward()
        optimizer.step()
        method.after_optimizer_step(step + 1)
    return method.state_dict()


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without gloo")
def test_two_processes_train_as_one_does(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(in_two_processes, args=(port, str(tmp_path)), nprocs=2)
    alone = trained(None)
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pt")
        for name, value in alone.items():
            torch.testing.assert_close(state[name], value, rtol=1e-7, atol=1e-9, msg=name)


# ------------------------------------------------------------------------------------------- learning

EASY = {"area": (0.08, 0.25), "aspect": (0.7, 1.4), "angle": (0.0, 0.0)}


def learned(views, *, shuffled: bool) -> CIM:
    method = fixtures.method(decoder_dim=32, momentum=0.9, **EASY)
    method.prepare_training(500)
    optimizer = torch.optim.AdamW(method.param_groups(0.01), lr=3e-3, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(0)
    for step in range(500):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 20, (500 - step) / 150)
        seeds = torch.randint(1 << 40, (32,), generator=generator)
        batch = views(fixtures.collages("train", 32, generator), seeds)._asdict()
        if shuffled:
            batch["exemplars"] = batch["exemplars"].roll(1, 0)
        output = method(batch)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        method.after_optimizer_step(step + 1)
    return method.eval()


def test_it_finds_pieces_of_photographs_it_has_not_seen():
    pytest.importorskip("av", reason="PyAV is not installed")
    from avfast.data import CorrelationViews
    from avfast.evaluate import location_scores

    views = CorrelationViews(
        count=3, search=32, context=32, exemplar=16, scale=(0.8, 1.0), mirror_p=0.0, colours=None, **EASY
    )
    held_out = fixtures.collages("test", 256, torch.Generator().manual_seed(1))
    batch = views(held_out, torch.arange(256))._asdict()
    scores = {}
    for name, shuffled in (("trained", False), ("control", True)):
        scores[name] = location_scores([learned(views, shuffled=shuffled).location_maps(batch)])
    trained, control = (scores[name]["map IoU"] for name in ("trained", "control"))
    # All background has IoU 0; the other answer that needs no picture is the best fixed map.
    assert trained.interval[0] > trained.chance + 0.05, scores
    assert control.value < trained.chance + 0.03, scores
