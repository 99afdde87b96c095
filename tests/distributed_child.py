"""One of two gloo processes of tests/test_distributed.py: runs every case below and saves what it saw.

    python distributed_child.py RANK FOLDER

A case gets its rank and returns something torch.save can write. The parent imports this file too, to build the same
models and data for the single process that the two are compared with.
"""

from __future__ import annotations

import datetime
import sys
import traceback
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import avfast
from avfast.compat.lightly import NTXentLoss
from avfast.compat.open_clip import ClipLoss, SigLipLoss

WORLD = 2
ROWS = 6  # pairs per process
SHARDS = (5, 3)  # samples of each process where they differ
LOSSES = [
    {"distance": distance, "symmetric": symmetric, "normalize": normalize}
    for distance in ("cosine", "l2")
    for symmetric in (True, False)
    for normalize in (True, False)
]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in module.named_parameters()}


# ----------------------------------------------------------------------------------------------- info_nce


class TwoTowers(nn.Module):
    """Two encoders and a learned temperature, with the loss inside so that DDP wraps all of it."""

    def __init__(self, op: str = "info_nce", **options) -> None:
        super().__init__()
        self.op = op
        torch.manual_seed(3)
        self.f, self.g = (nn.Sequential(nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 4)).double() for _ in range(2))
        self.temperature = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.options = options
        self.lightly = NTXentLoss(0.3, **options) if op == "lightly" else None

    def forward(self, a: Tensor, b: Tensor, labels: Tensor | None = None) -> Tensor:
        a, b, options = self.f(a), self.g(b), self.options
        if self.op == "sup_con":
            return avfast.sup_con(a + b, labels, temperature=self.temperature, **options)
        if self.op == "sigmoid_contrastive":
            return avfast.sigmoid_contrastive(a, b, scale=1 / self.temperature, bias=-2 * self.temperature, **options)
        if self.op == "clip":
            return ClipLoss(**options)(F.normalize(a, dim=1), F.normalize(b, dim=1), 1 / self.temperature)
        if self.op == "siglip":
            scale, bias = 1 / self.temperature, -2 * self.temperature
            return SigLipLoss(**options)(F.normalize(a, dim=1), F.normalize(b, dim=1), scale, bias)
        if self.lightly is not None:
            return self.temperature * self.lightly(a, b)
        return getattr(avfast, self.op)(a, b, temperature=self.temperature, **options)


def pairs() -> tuple[Tensor, Tensor]:
    return random(WORLD * ROWS, 8, seed=1), random(WORLD * ROWS, 8, seed=2)


def own(x: Tensor, rank: int) -> Tensor:
    return x[rank * ROWS : (rank + 1) * ROWS]


def gathered_gradients(rank: int) -> list[dict]:
    """Per set of options: this process's losses per row, the mean, and the gradients after DDP's average."""
    a, b = (own(x, rank) for x in pairs())
    seen = []
    for options in LOSSES:
        model = DistributedDataParallel(TwoTowers(gather=True, **options))
        loss = model(a, b)
        loss.backward()
        with torch.no_grad():
            rows = TwoTowers(gather=True, reduction="none", **options)(a, b)
        seen.append({"mean": loss.detach(), "rows": rows, "grads": gradients(model.module)})
    return seen


OTHERS = [(op, reduction) for op in ("nt_xent", "sup_con", "sigmoid_contrastive") for reduction in ("mean", "sum")]
LABELS = torch.arange(WORLD * ROWS) * 3 % 7  # two of them occur once


def gathered_others(rank: int) -> list[dict]:
    """The same for the other losses, per op and reduction."""
    a, b, labels = (own(x, rank) for x in (*pairs(), LABELS))
    seen = []
    for op, reduction in OTHERS:
        model = DistributedDataParallel(TwoTowers(op, gather=True, reduction=reduction))
        loss = model(a, b, labels)
        loss.backward()
        with torch.no_grad():
            rows = TwoTowers(op, gather=True, reduction="none")(a, b, labels)
        seen.append({"loss": loss.detach(), "rows": rows, "grads": gradients(model.module)})
    return seen


FLOAT32 = ("info_nce", "nt_xent", "sup_con", "sigmoid_contrastive")


def loss_of(op: str, a: Tensor, b: Tensor, labels: Tensor, **options) -> Tensor:
    if op == "sup_con":
        return avfast.sup_con(a + b, labels, **options)
    if op == "sigmoid_contrastive":
        return avfast.sigmoid_contrastive(a, b, scale=4.0, bias=-2.0, **options)
    return getattr(avfast, op)(a, b, **options)


def gathered_float32(rank: int) -> list[tuple[Tensor, Tensor]]:
    """The kernels of everyday precision: both gradients of each loss."""
    found = []
    for op in FLOAT32:
        a, b = (own(x, rank).float().requires_grad_() for x in pairs())
        loss_of(op, a, b, own(LABELS, rank), gather=True).backward()
        found.append((a.grad, b.grad))
    return found


CLIPS = [
    {"local_loss": local, "gather_with_grad": flowing}
    for local, flowing in ((False, False), (False, True), (True, True))
]


def clip_losses(rank: int) -> list[dict]:
    """ClipLoss of avfast.compat.open_clip, per set of options."""
    a, b = (own(x, rank) for x in pairs())
    seen = []
    for options in CLIPS:
        model = DistributedDataParallel(TwoTowers("clip", rank=rank, world_size=WORLD, **options))
        loss = model(a, b)
        loss.backward()
        seen.append({"loss": loss.detach(), "grads": gradients(model.module)})
    return seen


COMPAT = [("siglip", {}), ("lightly", {}), ("lightly", {"memory_bank_size": (20, 4)})]


def compat_losses(rank: int) -> list[dict]:
    """Two steps of other libraries' losses across processes; the second one meets the first one's keys in a bank."""
    a, b = (own(x, rank) for x in pairs())
    seen = []
    for op, options in COMPAT:
        processes = {"rank": rank, "world_size": WORLD} if op == "siglip" else {"gather_distributed": True}
        model = DistributedDataParallel(TwoTowers(op, **options, **processes))
        losses = []
        for _ in range(2):
            model.zero_grad()
            losses.append(model(a, b))
            losses[-1].backward()
        seen.append({"losses": torch.stack(losses).detach(), "grads": gradients(model.module)})
    return seen


def gathered_half(rank: int) -> dict:
    """The same in bfloat16: gathered as bfloat16, computed in float32."""
    a, b = (own(x, rank).to(torch.bfloat16).requires_grad_() for x in pairs())
    loss = avfast.info_nce(a, b, gather=True)
    loss.backward()
    return {"mean": loss.detach(), "grads": (a.grad, b.grad)}


def gathered_in_a_group(rank: int) -> list[Tensor]:
    """A group of this process alone gives the local loss, whatever the world does."""
    groups = [dist.new_group([r]) for r in range(WORLD)]
    a, b = (own(x, rank) for x in pairs())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        local = avfast.info_nce(a, b)
    return [avfast.info_nce(a, b, gather=True, process_group=groups[rank]), local]


def second_gradient(rank: int) -> str:
    """The gather has no second gradient: it must say so, not leave a part out."""
    a, b = (own(x, rank).requires_grad_() for x in pairs())
    loss = avfast.info_nce(a, b, gather=True)
    try:
        (grad,) = torch.autograd.grad(loss, a, create_graph=True)
        grad.square().sum().backward()
    except RuntimeError as error:
        return str(error)
    return "no error"


def uneven_gather(rank: int) -> str:
    """Processes with different numbers of rows: both must hear of it."""
    rows = ROWS - rank
    try:
        avfast.info_nce(random(rows, 4, seed=1), random(rows, 4, seed=2), gather=True)
    except ValueError as error:
        return str(error)
    return "no error"


def forgotten_gather(rank: int) -> list[tuple[str, str]]:
    """(file, message) of each warning in three calls without gather."""
    a, b = (own(x, rank) for x in pairs())
    avfast.ops._distributed._warn_once.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            avfast.info_nce(a, b)
        avfast.info_nce(a, b, gather=True)
    return [(w.filename, str(w.message)) for w in caught]


# --------------------------------------------------------------------------------------------- batch norm


def normalised_network(sync: bool, activation: str | None = "relu", alpha_shape: str = "channel") -> nn.Sequential:
    torch.manual_seed(4)
    norm = avfast.nn.AdaptiveBatchNorm2d(6, 0.3, alpha_shape, activation, sync=sync)
    with torch.no_grad():
        for p in norm.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return nn.Sequential(nn.Conv2d(3, 6, 3), norm, nn.Conv2d(6, 4, 2)).double()


def pictures() -> tuple[Tensor, Tensor]:
    """Inputs of the global batch, and the weights of its loss, ``(output * weight).sum() / N``."""
    n = sum(SHARDS)
    return random(n, 3, 6, 5, seed=5) * 2 + 1, random(n, 4, 3, 2, seed=6)


def shard(x: Tensor, rank: int) -> Tensor:
    return x[sum(SHARDS[:rank]) :][: SHARDS[rank]]


def synchronised(rank: int) -> list[dict]:
    x, weight = pictures()
    seen = []
    for activation, alpha_shape in (("relu", "channel"), (None, "scalar")):
        model = DistributedDataParallel(normalised_network(True, activation, alpha_shape), broadcast_buffers=False)
        mine = shard(x, rank).clone().requires_grad_()
        # The share of the global mean, times the world size that DDP's average divides by.
        loss = (model(mine) * shard(weight, rank)).sum() / len(x) * WORLD
        loss.backward()
        seen.append(
            {
                "input": mine.grad / WORLD,
                "grads": gradients(model.module),
                "buffers": dict(model.module.named_buffers()),
            }
        )
    return seen


def synchronised_single_values(rank: int) -> Tensor:
    """One value per channel and process is enough when there are two of them."""
    layer = avfast.nn.AdaptiveBatchNorm1d(3, sync=True).double()
    return layer(random(WORLD, 3, seed=7)[rank : rank + 1]).detach()


def synchronised_half(rank: int) -> Tensor:
    """bfloat16, channels-last: sums in float32, output in the input's own type."""
    layer = avfast.nn.AdaptiveBatchNorm2d(3, sync=True)
    x = random(sum(SHARDS), 3, 4, 4, seed=8).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    return layer(shard(x, rank)).detach()


def plain_training(rank: int) -> dict:
    """Batch norm per process under DDP: twelve steps of regression."""
    torch.manual_seed(9)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 1))
    model = DistributedDataParallel(avfast.convert_abri(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x = random(16, 3, 6, 6, seed=10 + rank).float()
    target = x.mean((1, 2, 3))[:, None] * 3
    losses = []
    for _ in range(12):
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return {"losses": losses, "parameters": dict(model.module.state_dict())}


CASES = (
    gathered_gradients,
    gathered_others,
    gathered_float32,
    clip_losses,
    compat_losses,
    gathered_half,
    gathered_in_a_group,
    second_gradient,
    uneven_gather,
    forgotten_gather,
    synchronised,
    synchronised_single_values,
    synchronised_half,
    plain_training,
)


def main(rank: int, folder: Path) -> int:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'rendezvous'}",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=30),
    )
    seen: dict[str, object] = {}
    for case in CASES:
        try:
            dist.barrier()
            seen[case.__name__] = case(rank)
        except Exception:
            # The processes are out of step from here on: what follows would only time out.
            seen[case.__name__] = RuntimeError(traceback.format_exc())
            break
    torch.save(seen, folder / f"rank{rank}.pt")
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2])))
