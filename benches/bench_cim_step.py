"""A whole CIM training step of a ViT-S/16, against the same step written plainly, as published and as lean as can be.

All steps train the same recipe `cim` from the same weights on the same batch: one network for exemplars, its slow copy
for the context, decoder, map loss, AdamW, momentum update. The published form goes from exemplar to exemplar through
encoder, decoder and loss, with attention and maps at full size; its maps come ready-made, as from its loader.

What a step answers is the loss curve from the first step on, and the gradient of the decoder's head after it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .bench_correlate import attend
from .bench_rotated_box_bce import drawn
from .candidate import BACKEND, CONTEXT, LEAN, OURS, PUBLISHED, Candidate, Case
from .opponents import installed

#: name -> images per step, options of the recipe
SHAPES = {
    "vit-small": (
        8,
        {"encoder": "vit-small", "size": 224, "context": 160, "exemplar": 64, "count": 6, "momentum": 0.99,
         "decoder_dim": 512, "decoder_heads": 16},
    ),
    "small": (4, {"encoder": "vit-mini8"}),
}  # fmt: skip
CURVE = 4  # steps whose losses are compared
STEPS = 100  # of the run this would be the beginning of, for the momentum's schedule
Batch = Mapping[str, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]


# ----------------------------------------------------------------------------------------- the step, written plainly


def published(method: nn.Module, batch: Batch) -> Tensor:
    """Exemplar by exemplar; the context is normalised and asked again for each."""
    decoder, loss = method.decoder, 0.0
    block, context = decoder.blocks["context"], _context(method, batch)
    for e in range(batch["exemplars"].shape[1]):
        pieces = decoder.project(method.encoder.tokens(batch["exemplars"][:, e]))
        q, k, v = _heads(block, block.norm(context), block.norm(pieces))
        logits = _logits(decoder, _rest(block, context, attend(q, k, v)))
        maps = batch["maps"][:, e]
        large = F.interpolate(logits, maps.shape[1:], mode="bilinear", align_corners=True)
        loss = loss + F.cross_entropy(large, maps)
    return loss


def lean(method: nn.Module, batch: Batch) -> Tensor:
    """Exemplars as one batch, the context asked once, torch's attention, one channel at full size."""
    decoder, count = method.decoder, batch["exemplars"].shape[1]
    block, context = decoder.blocks["context"], _context(method, batch)
    pieces = decoder.project(method.encoder.tokens(batch["exemplars"].flatten(0, 1)))
    q, k, v = _heads(block, block.norm(context), block.norm(pieces))
    q = q.repeat_interleave(count, dim=0)
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    logits = _logits(decoder, _rest(block, context.repeat_interleave(count, dim=0), attended))
    odds, inside = logits[:, 1:] - logits[:, :1], batch["inside"].flatten(0, 1)
    large = F.interpolate(odds, inside.shape[1:], mode="bilinear", align_corners=True)
    return count * F.binary_cross_entropy_with_logits(large[:, 0], inside)


def _context(method: nn.Module, batch: Batch) -> Tensor:
    with torch.no_grad():
        whole = method.momentum_branch.encoder.tokens(batch["context"])
    return method.decoder.project(whole) + method.decoder.positions


def _heads(block: nn.Module, context: Tensor, pieces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, heads before positions."""
    found = (block.q(context), *block.kv(pieces).chunk(2, dim=-1))
    return tuple(x.unflatten(-1, (block.heads, -1)).transpose(1, 2) for x in found)


def _rest(block: nn.Module, context: Tensor, attended: Tensor) -> Tensor:
    x = context + block.proj(attended)
    return x + block.mlp(block.mlp_norm(x))


def _logits(decoder: nn.Module, cells: Tensor) -> Tensor:
    return decoder.head(decoder.norm(cells)[:, decoder.class_tokens :]).mT.unflatten(2, decoder.grid)


def avfast_loss(method: nn.Module, batch: Batch) -> Tensor:
    """The recipe, metrics and all."""
    return method.training_step({name: batch[name] for name in ("context", "exemplars", "boxes")}).loss


def encoders_alone(method: nn.Module, batch: Batch) -> Tensor:
    """Both encoders and nothing else: no decoder and no loss can cost less than nothing."""
    with torch.no_grad():
        method.momentum_branch.encoder.tokens(batch["context"])
    return method.encoder.tokens(batch["exemplars"].flatten(0, 1)).square().mean()


# ------------------------------------------------------------------------------------------------------ the step


class TrainStep:
    """Loss, backward, AdamW, slow copy. The first call ends the curve that is compared; the others are timed."""

    def __init__(self, name: str, batch: Batch, loss: Loss, *, plain: bool = False, autocast: bool = False) -> None:
        from avfast.methods.cim import CIM

        torch.manual_seed(0)
        self._method = CIM(CIM.Config(**SHAPES[name][1])).to(batch["context"].device, batch["context"].dtype).train()
        self._method.prepare_training(STEPS)
        if plain:
            for branch in (self._method.branch, self._method.momentum_branch):
                branch.encoder.backbone.set_attn_implementation("eager")
        self._batch, self._loss, self._plain, self._autocast = batch, loss, plain, autocast
        weights = [p for p in self._method.parameters() if p.requires_grad]
        groups = [{"params": [p for p in weights if p.dim() > 1]}]
        groups += [{"params": [p for p in weights if p.dim() <= 1], "weight_decay": 0.0}]
        self._optimiser = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)
        self._steps, self._curve = 0, []
        for _ in range(CURVE - 1):
            self()

    def __call__(self) -> dict[str, Tensor]:
        self._optimiser.zero_grad(set_to_none=True)
        precision = torch.autocast(self._batch["context"].device.type, torch.bfloat16)
        with precision if self._autocast else contextlib.nullcontext():
            loss = self._loss(self._method, self._batch)
        loss.backward()
        self._optimiser.step()
        self._steps += 1
        self._follow()
        if len(self._curve) < CURVE:
            self._curve.append(loss.detach())
        return {"loss": torch.stack(self._curve), "d_head": self._method.decoder.head.weight.grad}

    @torch.no_grad()
    def _follow(self) -> None:
        if not self._plain:
            self._method.after_optimizer_step(self._steps)
            return
        fast, slow, m = self._method.branch, self._method.momentum_branch, self._method.momentum_at(self._steps)
        for source, target in zip(fast.parameters(), slow.parameters(), strict=True):
            target.copy_(target * m + source * (1 - m))
        slow.encoder.class_token.copy_(fast.encoder.class_token)


def batch(name: str, device: str) -> Batch:
    """Smooth pictures; an exemplar is its box out of the turned picture, not exactly: nearest pixels will do."""
    import avfast
    from avfast.methods.cim import CIM

    images, options = SHAPES[name]
    c, generator = CIM.Config(**options), torch.Generator().manual_seed(1)
    pictures = F.interpolate(torch.rand(images, 3, 9, 9, generator=generator), c.size, mode="bicubic").clamp(0, 1)
    exemplars = avfast.sample_exemplars(images, count=c.count, size=c.size, generator=0)
    boxes = exemplars.boxes
    maps = drawn(boxes.flatten(0, 1), c.context, c.size).unflatten(0, (images, c.count))
    crops = avfast.crop_exemplars(pictures.mul(255).byte(), exemplars, c.exemplar)
    fixed = {
        "context": F.interpolate(pictures, c.context, mode="bilinear", antialias=True) * 4 - 2,
        "exemplars": crops.float().div(255) * 4 - 2,
        "boxes": boxes,
        "maps": maps.long(),
        "inside": maps.float(),
    }
    return {key: value.to(device) for key, value in fixed.items()}


def oracle(name: str, inputs: Batch) -> dict[str, Tensor]:
    wide = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    return TrainStep(name, wide, published, plain=True)()


def case(name: str, device: str = "cpu") -> Case:
    images, options = SHAPES[name]
    missing = installed("transformers")

    def entry(label: str, role: str, loss: Loss, **form) -> Candidate:
        return Candidate(label, lambda b: TrainStep(name, b, loss, **form), role, missing=missing)

    return Case(
        op="cim_step",
        shape_name=name,
        shape=(images, options.get("count", 3), 3, options.get("size", 64)),
        inputs=lambda: batch(name, device),
        oracle=lambda inputs: oracle(name, inputs),
        candidates=(
            entry("CIM, as published", PUBLISHED, published, plain=True),
            entry("CIM, lean", LEAN, lean),
            entry("CIM, avfast", OURS, avfast_loss),
            entry("CIM, avfast, bfloat16 autocast", BACKEND, avfast_loss, autocast=True),
            entry("encoders alone", CONTEXT, encoders_alone),
        ),
        mode="train",
        device=device,
        slow_rounds=5 if name == "vit-small" else 0,
        least_allowance=5e-2,  # of bfloat16; the others' errors stand beside their times
    )


def cases(device: str = "cpu") -> list[Case]:
    return [case("vit-small", device)]


def test_cim_step(case, candidate, measure):
    measure(case, candidate)
