"""Two gloo processes compute what one process computes on their batches together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import distributed_child as child
import pytest
import torch

import avfast
from avfast.testing import relative_error

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this torch was built without gloo",
)
TIMEOUT = 120  # seconds; a collective that waits for the other process must fail, not hang


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Results of both processes, one launch for all cases."""
    folder = tmp_path_factory.mktemp("gloo")
    script = str(Path(child.__file__).resolve())
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = []
    for rank in range(child.WORLD):
        log = open(folder / f"log{rank}", "w")
        command = [sys.executable, script, str(rank), str(folder)]
        processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
        log.close()
    try:
        codes = [process.wait(TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    logs = "\n".join((folder / f"log{rank}").read_text() for rank in range(child.WORLD))
    assert codes == [0] * child.WORLD, logs
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(child.WORLD)]


@pytest.fixture
def ranks(both, request):
    """What each process returned from the case named by the test."""
    for seen in both:
        for result in seen.values():
            if isinstance(result, RuntimeError):
                pytest.fail(str(result))
    return [seen[request.param] for seen in both]


def of(case):
    """Run a test on the results of one case of tests/distributed_child.py."""
    return pytest.mark.parametrize("ranks", [case.__name__], indirect=True)


def assert_same(results: dict, expected: dict, tolerance: float = 1e-6) -> None:
    """Tensor by tensor. Some gradients are zero by symmetry (a bias before a batch norm): there, only rounding."""
    assert results.keys() == expected.keys()
    zero = {name for name, value in expected.items() if value.abs().max() < 1e-12}
    assert len(zero) <= 1 and len(expected) > 3
    for name, value in expected.items():
        if name in zero:
            assert results[name].abs().max() < 1e-12, name
        else:
            assert relative_error(results[name], value) < tolerance, name


# ----------------------------------------------------------------------------------------------- info_nce


@of(child.gathered_gradients)
@pytest.mark.parametrize("i", range(len(child.LOSSES)), ids=lambda i: "-".join(map(str, child.LOSSES[i].values())))
def test_gathered_info_nce_is_the_loss_of_the_global_batch(ranks, i):
    """Losses, and the gradients of encoders and temperature after DDP's average, of one process on all pairs."""
    model = child.TwoTowers(reduction="none", **child.LOSSES[i])
    rows = model(*child.pairs())
    rows.mean().backward()
    assert relative_error(torch.cat([r[i]["rows"] for r in ranks]), rows) < 1e-6
    assert relative_error(sum(r[i]["mean"] for r in ranks) / child.WORLD, rows.mean()) < 1e-6
    for seen in ranks:
        assert_same(seen[i]["grads"], child.gradients(model))


@of(child.gathered_others)
@pytest.mark.parametrize("i", range(len(child.OTHERS)), ids=["-".join(case) for case in child.OTHERS])
def test_gathered_losses_are_those_of_the_global_batch(ranks, i):
    op, reduction = child.OTHERS[i]
    alone = child.TwoTowers(op, reduction="none")(*child.pairs(), child.LABELS)
    together = [seen[i]["rows"] for seen in ranks]
    if op == "nt_xent":  # both views of one process, then both of the other
        together = [half for k in (0, 1) for half in (rows.chunk(2)[k] for rows in together)]
    assert relative_error(torch.cat(together), alone) < 1e-6

    model = child.TwoTowers(op, reduction=reduction)
    loss = model(*child.pairs(), child.LABELS)
    # DDP averages gradients. A mean is averaged so too; of a sum each process has its rows' part.
    share = 1 if reduction == "mean" else 1 / child.WORLD
    (loss * share).backward()
    assert relative_error(sum(seen[i]["loss"] for seen in ranks) / child.WORLD, loss * share) < 1e-6
    for seen in ranks:
        assert_same(seen[i]["grads"], child.gradients(model))


@of(child.gathered_float32)
@pytest.mark.parametrize("i", range(len(child.FLOAT32)), ids=child.FLOAT32)
def test_gathered_losses_in_float32(ranks, i):
    a, b = (x.requires_grad_() for x in child.pairs())
    loss = child.loss_of(child.FLOAT32[i], a, b, child.LABELS)
    (loss * child.WORLD).backward()
    for position, exact in enumerate((a.grad, b.grad)):
        assert relative_error(torch.cat([seen[i][position] for seen in ranks]), exact) < 1e-6


@of(child.clip_losses)
@pytest.mark.parametrize("i", range(len(child.CLIPS)), ids=lambda i: "-".join(map(str, child.CLIPS[i].values())))
def test_clip_loss_of_several_processes(ranks, i):
    """open_clip's own rules: value of the local rows or of all; without the gather's gradient, features get a share."""
    options = child.CLIPS[i]
    model = child.TwoTowers("clip")
    loss = model(*child.pairs())
    loss.backward()
    exact = child.gradients(model)
    values = [seen[i]["loss"] for seen in ranks]
    assert relative_error(sum(values) / child.WORLD, loss) < 1e-6
    assert (relative_error(values[0], loss) < 1e-6) == (not options["local_loss"])
    share = 1 if options["gather_with_grad"] else 1 / child.WORLD
    for seen in ranks:
        found = seen[i]["grads"]
        assert relative_error(found.pop("temperature"), exact["temperature"]) < 1e-6
        assert_same(found, {name: grad * share for name, grad in exact.items() if name != "temperature"})


@of(child.compat_losses)
@pytest.mark.parametrize("i", range(len(child.COMPAT)), ids=("siglip", "lightly", "lightly with a bank"))
def test_losses_of_other_libraries_on_several_processes(ranks, i):
    """One process on all pairs, two steps; the bank holds the keys of both processes, in order."""
    op, options = child.COMPAT[i]
    model = child.TwoTowers(op, **options)
    losses = []
    for _ in range(2):
        model.zero_grad()
        losses.append(model(*child.pairs()))
        losses[-1].backward()
    if "memory_bank_size" in options:
        assert losses[0] != losses[1]
    assert relative_error(sum(seen[i]["losses"] for seen in ranks) / child.WORLD, torch.stack(losses)) < 1e-6
    for seen in ranks:
        assert_same(seen[i]["grads"], child.gradients(model))


@of(child.gathered_half)
def test_gathered_info_nce_in_bfloat16(ranks):
    a, b = (x.to(torch.bfloat16).double().requires_grad_() for x in child.pairs())
    loss = avfast.info_nce(a, b)
    (loss * child.WORLD).backward()  # DDP's average is still to come
    assert abs(sum(r["mean"] for r in ranks) / child.WORLD / loss - 1) < 1e-5
    for position, exact in enumerate((a.grad, b.grad)):
        mine = torch.cat([r["grads"][position] for r in ranks])
        assert mine.dtype == torch.bfloat16
        # Own rows arrive twice, as queries and as keys, and the keys' share is summed over processes in bfloat16.
        assert relative_error(mine, exact) < 4 * torch.finfo(torch.bfloat16).eps


@of(child.gathered_in_a_group)
def test_gather_stays_in_its_group(ranks):
    for grouped, local in ranks:
        assert torch.equal(grouped, local)
    assert not torch.equal(ranks[0][1], ranks[1][1])


@of(child.second_gradient)
def test_no_second_gradient_through_the_gather(ranks):
    for message in ranks:
        assert "a second derivative through gather=True is not defined" in message


@of(child.uneven_gather)
def test_uneven_gather_is_refused_by_every_process(ranks):
    for message in ranks:
        assert message == (
            "avfast.info_nce: z_a: expected the same number of rows on every process when gather=True, got [6, 5]"
        )


@of(child.forgotten_gather)
def test_forgotten_gather_is_said_once_where_it_was_called(ranks):
    for seen in ranks:
        ((file, message),) = seen
        assert Path(file).name == "distributed_child.py"
        assert message == (
            "avfast.info_nce: 2 processes are running but gather=False: negatives come from this process only"
        )


def test_alone_nothing_is_said_and_gather_changes_nothing(recwarn):
    a, b = child.pairs()
    assert torch.equal(avfast.info_nce(a, b, gather=True), avfast.info_nce(a, b))
    assert not recwarn.list


# --------------------------------------------------------------------------------------------- batch norm


@of(child.synchronised)
@pytest.mark.parametrize("i", (0, 1), ids=("relu-channel", "none-scalar"))
def test_synchronised_batch_norm_is_that_of_the_global_batch(ranks, i):
    """With 5 and 3 samples: gradients of input and every parameter, and both sets of running statistics."""
    activation, alpha_shape = (("relu", "channel"), (None, "scalar"))[i]
    model = child.normalised_network(False, activation, alpha_shape)
    x, weight = child.pictures()
    x.requires_grad_()
    ((model(x) * weight).sum() / len(x)).backward()
    assert relative_error(torch.cat([r[i]["input"] for r in ranks]), x.grad) < 1e-6
    for seen in ranks:
        assert_same(seen[i]["grads"], child.gradients(model))
        assert_same(seen[i]["buffers"], {name: b.double() for name, b in model.named_buffers()})


@of(child.synchronised_single_values)
def test_synchronised_batch_norm_takes_one_value_per_process(ranks):
    layer = avfast.nn.AdaptiveBatchNorm1d(3).double()
    expected = layer(child.random(child.WORLD, 3, seed=7))
    assert relative_error(torch.cat(ranks), expected) < 1e-6


@of(child.synchronised_half)
def test_synchronised_batch_norm_in_bfloat16(ranks):
    y = torch.cat(ranks)
    assert y.dtype == torch.bfloat16
    x = child.random(sum(child.SHARDS), 3, 4, 4, seed=8).to(torch.bfloat16)
    expected = avfast.nn.AdaptiveBatchNorm2d(3)(x.double())
    assert relative_error(y, expected) < torch.finfo(torch.bfloat16).eps


@of(child.plain_training)
def test_batch_norm_per_process_trains_under_ddp(ranks):
    first, second = ranks
    assert first["losses"] != second["losses"], "each process has data of its own"
    for seen in ranks:
        assert sum(seen["losses"][-3:]) / 3 < 0.5 * seen["losses"][0]
    assert any(name.endswith("alpha") for name in first["parameters"])
    for name, value in first["parameters"].items():
        if "running" not in name:  # statistics are per process until the next forward broadcasts them
            assert torch.equal(value, second["parameters"][name]), name
