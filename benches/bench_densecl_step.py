"""A whole DenseCL training step of a ResNet-50, against the MoCo-v2 step and against DenseCL with eager losses.

The paper's own headline is that the dense branch costs less than a hundredth of a MoCo-v2 step; its losses and its
correspondence are what avfast computes. All three steps are the recipe `densecl`, with the same encoder, views, queues
and optimiser; MoCo-v2 is its lambda 0, which has no dense branch at all.
"""

from __future__ import annotations

import contextlib
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from .candidate import CONTEXT, OURS, PUBLISHED, Candidate, Case
from .opponents import installed

#: (images per step, side of a view, encoder, keys per queue)
SHAPES = {
    "resnet50": (8, 224, "resnet50", 65536),
    "small": (4, 64, "resnet-tiny", 256),
}
Views = tuple[Tensor, Tensor]


# ------------------------------------------------------------------- the losses as the papers' code writes them


def _loss(q: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, positive and negative part of unit rows, from the matrix of all logits."""
    positive = torch.einsum("nd,nd->n", q, keys).unsqueeze(1)
    negative = torch.einsum("nd,dk->nk", q, queue.T.clone())
    logits = torch.cat([positive, negative], dim=1) / temperature
    loss = F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64), reduction="none")
    return loss, positive.detach().flatten() / temperature, torch.zeros_like(loss)


def eager_queue_info_nce(q, k, queue, *, temperature, return_parts):
    from avfast.ops.queue_info_nce import QueueLoss

    loss, *parts = _loss(F.normalize(q, dim=1), F.normalize(k, dim=1), queue, temperature)
    return QueueLoss(loss.mean(), *parts)


def eager_dense_contrastive(q, k, queue, match, *, temperature, reduction, return_parts):
    from avfast.ops.queue_info_nce import QueueLoss

    q, k = (F.normalize(x.flatten(2), dim=1) for x in (q, k))
    keys = k.gather(2, match[:, None].expand_as(q))
    rows = (x.movedim(1, 2).flatten(0, 1) for x in (q, keys))
    return QueueLoss(*_loss(*rows, queue, temperature))


def eager_dense_match(feat_q, feat_k):
    from avfast.ops.dense_match import DenseMatch

    q, k = (F.normalize(x.detach().flatten(2), dim=1) for x in (feat_q, feat_k))
    similarity, index = torch.bmm(q.transpose(1, 2), k).max(2)
    shape = (len(q), *feat_q.shape[2:])
    return DenseMatch(index.view(shape), similarity.view(shape))


def eager_losses() -> contextlib.AbstractContextManager:
    """The recipe with the published forms in place of avfast's ops."""
    return mock.patch.multiple(
        "avfast.methods.densecl",
        queue_info_nce=eager_queue_info_nce,
        dense_contrastive=eager_dense_contrastive,
        dense_match=eager_dense_match,
    )


def no_dense_loss(q, k, queue, match, *, temperature, reduction, return_parts):
    from avfast.ops.queue_info_nce import QueueLoss

    rows = q.flatten(2).mean(1)
    return QueueLoss(rows, rows.detach(), rows.detach())


def no_match(feat_q, feat_k):
    from avfast.ops.dense_match import DenseMatch

    shape = (len(feat_q), *feat_q.shape[2:])
    return DenseMatch(torch.zeros(shape, dtype=torch.int64), torch.zeros(shape))


def free_losses() -> contextlib.AbstractContextManager:
    """The dense heads and their gradients, but a loss and a correspondence that cost nothing: no op can do better."""
    return mock.patch.multiple("avfast.methods.densecl", dense_contrastive=no_dense_loss, dense_match=no_match)


# ------------------------------------------------------------------------------------------------------ the step


class TrainStep:
    """Both networks, losses, backward, queues, SGD. Returns the loss and the gradients of both heads' last layers."""

    def __init__(self, name: str, views: Views, loss_lambda: float) -> None:
        from avfast.methods.densecl import DenseCL

        images, side, encoder, queue = SHAPES[name]
        torch.manual_seed(0)
        config = DenseCL.Config(
            encoder=encoder, size=side, queue=queue, loss_lambda=loss_lambda, group_size=images // 2, share_queue=False
        )
        self._method = DenseCL(config).to(views[0].device, views[0].dtype).train()
        self._batch = {"view_q": views[0], "view_k": views[1]}
        weights = [p for p in self._method.parameters() if p.requires_grad]
        self._optimiser = torch.optim.SGD(weights, lr=1e-4, momentum=0.9, weight_decay=1e-4)

    def __call__(self) -> dict[str, Tensor]:
        torch.manual_seed(1)  # the shuffle of the keys
        self._optimiser.zero_grad(set_to_none=True)
        loss = self._method.training_step(self._batch).loss
        loss.backward()
        self._optimiser.step()
        self._method.after_optimizer_step(1)
        neck = self._method.network.neck
        heads = {"global": neck.mlp[-1], **({"dense": neck.convs[-1]} if neck.convs is not None else {})}
        return {"loss": loss.detach(), **{f"d_{name}": head.weight.grad for name, head in heads.items()}}


def views(name: str, device: str) -> Views:
    """Two noisy looks at the same smooth pictures."""
    images, side, *_ = SHAPES[name]
    generator = torch.Generator().manual_seed(2)
    common = F.interpolate(torch.randn(images, 3, 8, 8, generator=generator), size=side, mode="bilinear")
    return tuple((common + 0.3 * torch.randn(common.shape, generator=generator)).to(device) for _ in range(2))


def oracle(name: str, inputs: Views) -> dict[str, Tensor]:
    with eager_losses():
        return TrainStep(name, tuple(view.double() for view in inputs), 0.5)()


def case(name: str, device: str = "cpu") -> Case:
    images, side, *_ = SHAPES[name]
    missing = installed("transformers")

    def entry(label: str, role: str, loss_lambda: float = 0.5, **options) -> Candidate:
        return Candidate(label, lambda v: TrainStep(name, v, loss_lambda), role, missing=missing, **options)

    return Case(
        op="densecl_step",
        shape_name=name,
        shape=(images, 3, side, side),
        inputs=lambda: views(name, device),
        oracle=lambda inputs: oracle(name, inputs),
        candidates=(
            entry("DenseCL, eager losses", PUBLISHED, scope=eager_losses),
            entry("DenseCL, avfast", OURS),
            entry("MoCo-v2, avfast", CONTEXT, loss_lambda=0.0),
            entry("DenseCL, dense loss for free", CONTEXT, scope=free_losses),
        ),
        mode="train",
        device=device,
        slow_rounds=5 if name == "resnet50" else 0,
        # Fifty ReLUs deep, rounding decides branches: equally good gradients differ by this much.
        least_allowance=5e-2,
    )


def cases(device: str = "cpu") -> list[Case]:
    return [case("resnet50", device)]


def test_densecl_step(case, candidate, measure):
    measure(case, candidate)
