"""Two gloo processes train DenseCL as one process does on their batches together, shuffle and queues included."""

from __future__ import annotations

import copy
import datetime
from pathlib import Path

import densecl_fixtures as fixtures
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from avfast.methods.densecl import DenseCL, View, _keys
from avfast.nn import FeatureQueue, GroupShuffleBN, momentum_update
from avfast.ops._exchange import exchange_rows

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch was built without gloo"
)
WORLD, SIZE, STEPS = 2, 4, 4  # SIZE images per process: one batch-norm group of four there, two in one process
OPTIONS = [
    {"share_queue": share, **options}
    for share in (True, False)
    for options in ({}, {"loss_lambda": 0.0}, {"grid": 2, "queue_dtype": "bfloat16"})
]


def build(options: dict) -> DenseCL:
    method = fixtures.method(**options).double()
    for module in method.modules():
        if isinstance(module, GroupShuffleBN):
            module.average = True
    return method


def own(batch: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    return {name: value[rank * SIZE : (rank + 1) * SIZE] for name, value in batch.items()}


def global_batch(step: int) -> dict[str, Tensor]:
    return fixtures.batch(WORLD * SIZE, seed=step, dtype=torch.float64)


def train(method: DenseCL, loss_of_step, after=lambda step: None) -> dict[str, object]:
    """A few steps: the losses, the first gradients, and the state at the end."""
    optimizer = torch.optim.SGD(method.param_groups(1e-4), lr=0.2, momentum=0.9)
    losses, first = [], {}
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of_step(step)
        loss.backward()
        first = first or {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
        optimizer.step()
        after(step + 1)
        losses.append(loss.detach())
    return {"losses": torch.stack(losses), "grads": first, "state": copy.deepcopy(method.state_dict())}


# ------------------------------------------------------------------------------------------- in two processes


def trained(rank: int) -> list[dict]:
    seen = []
    for options in OPTIONS:
        method = build(options)
        parallel = DistributedDataParallel(method)
        seen.append(train(method, lambda step, model=parallel: model(own(global_batch(step), rank)).loss,
                          method.after_optimizer_step))  # fmt: skip
    return seen


def exchanged(rank: int) -> list[Tensor]:
    """Rows of two processes under several permutations, there and back."""
    rows = torch.arange(2.0 * SIZE * WORLD).view(-1, 2)[rank * SIZE : (rank + 1) * SIZE]
    seen = []
    for seed in range(3):
        order = torch.randperm(SIZE * WORLD, generator=torch.Generator().manual_seed(seed))
        there = exchange_rows("test", rows, order)
        seen += [there, exchange_rows("test", there, order.argsort())]
    return seen


def refused(rank: int) -> list[str]:
    messages = []
    for attempt in (
        lambda: GroupShuffleBN(nn.BatchNorm1d(2), 2)(torch.ones(4, 2, requires_grad=True)),
        lambda: build({})(own(global_batch(0), rank) if rank else global_batch(0)),
        lambda: FeatureQueue(5, 2, share=True).push(torch.ones(SIZE - rank, 2)),
    ):
        try:
            attempt()
            messages.append("no error")
        except ValueError as error:
            messages.append(str(error))
    return messages


def pushed(rank: int) -> list[Tensor]:
    """Queues that share and that do not, after pushes through DDP's forward, which broadcasts buffers."""

    class Model(nn.Module):
        def __init__(self, share: bool) -> None:
            super().__init__()
            self.queue = FeatureQueue(5, 2, shadow_dtype=torch.bfloat16, share=share)
            self.linear = nn.Linear(2, 2)
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, FeatureQueue.local_buffers(self))

        def forward(self, x: Tensor) -> Tensor:
            self.queue.push(x)
            return self.linear(x).sum()

    seen = []
    for share in (True, False):
        model = DistributedDataParallel(Model(share))
        for step in range(3):
            model(torch.full((2, 2), 10.0 * rank + step)).backward()
        seen += [model.module.queue.rows, model.module.queue.pointer, model.module.queue.negatives()]
    return seen


CASES = (trained, exchanged, refused, pushed)


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=60),
    )
    torch.save({case.__name__: case(rank) for case in CASES}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("densecl")
    mp.spawn(worker, args=(str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


# ------------------------------------------------------------------------------------------- in one


def alone(options: dict) -> dict[str, object]:
    """The global batch in one process, two groups of batch norm, one queue."""
    method = build(options)
    return train(method, lambda step: method(global_batch(step)).loss, method.after_optimizer_step)


def alone_with_two_queues(options: dict) -> tuple[dict[str, object], list[list[FeatureQueue]]]:
    """The same networks in one process; each half of the batch against queues of its own."""
    method = build(options)
    first = [queue for queue in (method.queue, method.dense_queue) if queue is not None]
    queues = [copy.deepcopy(first) for _ in range(WORLD)]
    waiting: list[tuple[FeatureQueue, Tensor]] = []

    def loss(step: int) -> Tensor:
        batch, parts = global_batch(step), []
        q = method.network(batch["view_q"])
        with torch.no_grad():
            k = method.momentum_network(batch["view_k"])
        for rank in range(WORLD):
            mine = slice(rank * SIZE, (rank + 1) * SIZE)
            half_q, half_k = (View(*(None if x is None else x[mine] for x in view)) for view in (q, k))
            negatives = [queue.negatives() for queue in queues[rank]]
            parts.append(method._loss(own(batch, rank), half_q, half_k, negatives).loss)
            waiting.extend(zip(queues[rank], _keys(half_k), strict=True))
        return sum(parts) / WORLD

    def after(step: int) -> None:
        momentum_update(method.network, method.momentum_network, method.config.momentum)
        for queue, rows in waiting:
            queue.push(rows)
        waiting.clear()
        method.step.fill_(step)

    return train(method, loss, after), queues


def assert_same_training(seen: list[dict], expected: dict, *, queues: bool) -> None:
    torch.testing.assert_close(sum(s["losses"] for s in seen) / WORLD, expected["losses"], rtol=1e-6, atol=1e-9)
    assert len(expected["grads"]) > 6
    for one in seen:
        assert one["grads"].keys() == expected["grads"].keys()
        for name, grad in expected["grads"].items():
            torch.testing.assert_close(one["grads"][name], grad, rtol=1e-6, atol=1e-9, msg=name)
        for name, value in expected["state"].items():
            if "queue" in name and not queues:
                continue
            torch.testing.assert_close(one["state"][name], value, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("i", range(len(OPTIONS)), ids=lambda i: "-".join(f"{k}={v}" for k, v in OPTIONS[i].items()))
def test_two_processes_train_as_one(ranks, i):
    seen = [rank["trained"][i] for rank in ranks]
    options = OPTIONS[i]
    if options["share_queue"]:
        assert_same_training(seen, alone(options), queues=True)
        return
    expected, queues = alone_with_two_queues(options)
    assert_same_training(seen, expected, queues=False)
    for one, (queue, *_) in zip(seen, queues, strict=True):
        torch.testing.assert_close(one["state"]["queue.rows"], queue.rows, rtol=1e-6, atol=1e-9)
    assert not torch.equal(seen[0]["state"]["queue.rows"], seen[1]["state"]["queue.rows"])


def test_each_row_goes_where_the_permutation_sends_it(ranks):
    rows = torch.arange(2.0 * SIZE * WORLD).view(-1, 2)
    for seed in range(3):
        order = torch.randperm(SIZE * WORLD, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(torch.cat([r["exchanged"][2 * seed] for r in ranks]), rows[order])
        assert torch.equal(torch.cat([r["exchanged"][2 * seed + 1] for r in ranks]), rows)


def test_what_cannot_be_computed_is_refused_by_every_process(ranks):
    for rank in ranks:
        gradient, uneven, pushed = rank["refused"]
        assert gradient.startswith("avfast.GroupShuffleBN: x: expected a call under torch.no_grad()")
        assert "view_q: expected the same number of rows on every process" in uneven and "[8, 4]" in uneven
        expected = "the same number of rows on every process when share=True, got [4, 3]"
        assert pushed == f"avfast.FeatureQueue.push: rows: expected {expected}"


def test_shared_queues_are_one_and_others_stay_apart(ranks):
    shared, pointer, shadow = ranks[0]["pushed"][:3]
    for result, other in zip(ranks[0]["pushed"][:3], ranks[1]["pushed"][:3], strict=True):
        assert torch.equal(result, other)
    # Pushed by rank: 0 0 10 10, 1 1 11 11, 2 2 12 12, into five places.
    assert shared[:, 0].tolist() == [12, 12, 11, 2, 2] and pointer.item() == 12 % 5
    assert torch.equal(shadow, shared.to(torch.bfloat16))
    for rank in range(WORLD):
        rows, pointer = ranks[rank]["pushed"][3:5]
        first = 10.0 * rank
        assert rows[:, 0].tolist() == [first + 2, first, first + 1, first + 1, first + 2] and pointer.item() == 1
