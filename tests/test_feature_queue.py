"""The ring of negatives: what stays, where it is written, what survives a checkpoint."""

from __future__ import annotations

import copy

import pytest
import torch

from avfast.nn import FeatureQueue


def numbered(start: int, count: int, dim: int = 3) -> torch.Tensor:
    """Rows that say which they are."""
    return torch.arange(start, start + count, dtype=torch.float32)[:, None].expand(count, dim)


@pytest.mark.parametrize("sizes", [[4, 4, 4], [3, 3, 3, 3], [10, 1], [7], [25, 2], [1] * 23, [0, 5, 0]])
def test_the_last_rows_stay_whatever_the_batches(sizes):
    """Against the same rows pushed one at a time into a list."""
    queue = FeatureQueue(10, 3)
    oldest_first = queue.rows.clone().unbind()
    expected, position, start = list(oldest_first), 0, 0
    for size in sizes:
        queue.push(numbered(start, size))
        for row in numbered(start, size):
            expected[position] = row
            position = (position + 1) % 10
        start += size
        assert torch.equal(queue.rows, torch.stack(expected))
        assert queue.pointer.item() == position
        assert queue.filled.item() == pytest.approx(min(start, 10) / 10)


def test_initial_rows_are_unit_gaussian_directions_of_their_seed():
    state = torch.get_rng_state()
    queue = FeatureQueue(4096, 16)
    assert torch.equal(torch.get_rng_state(), state), "building a queue must not move the global generator"
    torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(4096))
    assert queue.rows.mean(dim=0).abs().max() < 5 / (4096 * 16) ** 0.5
    torch.testing.assert_close(queue.rows.T @ queue.rows / 4096, torch.eye(16) / 16, atol=0.01, rtol=0)
    assert torch.equal(FeatureQueue(4096, 16).rows, queue.rows)
    assert not torch.equal(FeatureQueue(4096, 16, seed=1).rows, queue.rows)
    assert queue.filled.item() == 0


def test_shadow_is_the_rounded_rows():
    queue = FeatureQueue(8, 3, shadow_dtype=torch.bfloat16)
    for count in (3, 3, 3, 20):
        queue.push(torch.randn(count, 3))
        assert queue.negatives().dtype == torch.bfloat16 and queue.rows.dtype == torch.float32
        assert torch.equal(queue.negatives(), queue.rows.to(torch.bfloat16))
    assert FeatureQueue(8, 3).negatives().dtype == torch.float32


@pytest.mark.parametrize("shadow", [None, torch.bfloat16])
def test_state_round_trip(shadow):
    queue, other = (FeatureQueue(8, 3, shadow_dtype=shadow, seed=s) for s in (0, 1))
    queue.push(torch.randn(11, 3))
    state = copy.deepcopy(queue.state_dict())
    assert set(state) == {"rows", "pointer", "count"}
    other.load_state_dict(state)
    more = torch.randn(6, 3)
    queue.push(more)
    other.push(more)
    assert torch.equal(other.negatives(), queue.negatives())
    assert torch.equal(other.pointer, queue.pointer) and torch.equal(other.filled, queue.filled)


def test_a_change_of_dtype_is_one_of_the_rows():
    queue = FeatureQueue(4, 2, shadow_dtype=torch.bfloat16).double()
    assert queue.rows.dtype == torch.float64 and queue.negatives().dtype == torch.bfloat16
    assert queue.pointer.dtype == torch.int64
    queue.push(torch.ones(1, 2, dtype=torch.float16))  # rows arrive in any float type
    assert queue.rows[0].tolist() == [1, 1]


def test_pushed_rows_carry_no_gradient_and_queries_keep_theirs():
    queue = FeatureQueue(4, 2)
    q = torch.randn(3, 2, requires_grad=True)
    logits = q @ queue.negatives().clone().T
    queue.push(q)
    logits.sum().backward()
    assert not queue.negatives().requires_grad and q.grad is not None


@pytest.mark.parametrize("batch", [2, 9])
def test_push_compiles_without_a_graph_break(batch):
    eager, compiled = (FeatureQueue(8, 3, shadow_dtype=torch.bfloat16) for _ in range(2))
    push = torch.compile(compiled.push, fullgraph=True, backend="aot_eager")
    for _ in range(5):
        rows = torch.randn(batch, 3)
        eager.push(rows)
        push(rows)
    assert torch.equal(compiled.negatives(), eager.negatives()) and torch.equal(compiled.pointer, eager.pointer)


def test_names_of_the_buffers_that_processes_do_not_share():
    model = torch.nn.ModuleDict({"a": FeatureQueue(2, 2, shadow_dtype=torch.bfloat16), "b": torch.nn.BatchNorm1d(3)})
    assert FeatureQueue.local_buffers(model) == ["a.rows", "a.pointer", "a.count", "a.shadow"]
    assert FeatureQueue.local_buffers(FeatureQueue(2, 2)) == ["rows", "pointer", "count"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 0, "dim": 2}, "size: expected a positive integer, got 0"),
        ({"size": 2, "dim": 2.0}, "dim: expected a positive integer, got 2.0"),
        ({"size": 2, "dim": 2, "shadow_dtype": torch.int8}, "shadow_dtype: expected one of"),
    ],
)
def test_options_out_of_range(options, words):
    with pytest.raises(ValueError, match=words):
        FeatureQueue(**options)


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        (torch.zeros(2, 3), ValueError, r"rows: expected shape \[N, 2\], got \(2, 3\)"),
        (torch.zeros(2), ValueError, "rows: expected shape"),
        (torch.zeros(2, 2, dtype=torch.int64), TypeError, "rows: expected a floating-point tensor"),
        (torch.zeros(2, 2, device="meta"), ValueError, "rows: expected a tensor on cpu, got meta"),
    ],
)
def test_rows_that_do_not_fit(rows, error, words):
    with pytest.raises(error, match=words):
        FeatureQueue(4, 2).push(rows)
