"""The sampler is a function of seed and epoch, and its whole state is a position."""

from __future__ import annotations

import numpy as np
import pytest

from avfast.data.randomness import Draws, mix64, permutation
from avfast.data.sampler import EpochSampler
from avfast.errors import DataError


def indices(batches):
    return [index for batch in batches for _, index in batch]


def test_order_is_a_function_of_seed_and_epoch():
    a, b = (EpochSampler(50, seed=7, batch_size=8) for _ in range(2))
    first, second = list(a), list(a)
    assert list(b) == first
    assert indices(first) != indices(second)
    assert {epoch for batch in second for epoch, _ in batch} == {1}
    b.set_position(0, 0)
    assert list(b) == first
    assert indices(EpochSampler(50, seed=8, batch_size=8)) != indices(first)


def test_permutation_is_pinned():
    """A stored run must find the same order in a later release of avfast, torch or numpy."""
    assert mix64(np.array([0, 1], np.uint64)).tolist() == [0xE220A8397B1DCDAF, 0x910A2DEC89025CC1]
    assert permutation(8, "order", 0, 0).tolist() == [6, 5, 2, 4, 3, 1, 0, 7]


def test_permutations_are_uniform():
    counts = np.zeros((6, 6))
    for epoch in range(3000):
        counts[np.arange(6), permutation(6, "order", 1, epoch)] += 1
    # 3000 / 6 = 500 per cell with standard deviation 20.4; five of them for the largest of 36 cells.
    assert np.abs(counts - 500).max() < 105


def test_draws_are_uniform_and_keyed():
    draws = Draws(1, 2, "x")
    values = np.array([draws.uniform() for _ in range(4000)])
    assert abs(values.mean() - 0.5) < 0.025 and abs(values.var() - 1 / 12) < 0.006
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 0.08
    assert Draws(1, 2, "y").uniform() != Draws(1, 2, "x").uniform()
    assert {Draws(0, k).integer(3) for k in range(50)} == {0, 1, 2}
    assert all(2 <= Draws(0, k).uniform(2, 3) < 3 for k in range(50))


@pytest.mark.parametrize("drop_last", [True, False])
def test_resuming_equals_continuing(drop_last):
    whole = EpochSampler(23, seed=1, batch_size=4, drop_last=drop_last)
    reference = list(whole) + list(whole)
    per_epoch = len(whole)
    for done in range(2 * per_epoch):
        resumed = EpochSampler(23, seed=1, batch_size=4, drop_last=drop_last)
        resumed.load_state_dict({"epoch": done // per_epoch, "step": done % per_epoch})
        got = []
        while resumed.epoch < 2:
            got += list(resumed)
        assert got == reference[done:]


def test_iterating_does_not_move_the_state_before_the_end():
    """A loader draws keys ahead: the position changes when the loop says so, or at the end of the epoch."""
    sampler = EpochSampler(12, seed=0, batch_size=4)
    keys = iter(sampler)
    next(keys), next(keys)
    assert sampler.state_dict() == {"epoch": 0, "step": 0}
    sampler.set_position(0, 1)
    assert sampler.state_dict() == {"epoch": 0, "step": 1}
    sampler.set_position(0, 3)
    assert sampler.state_dict() == {"epoch": 1, "step": 0}
    assert list(keys) and sampler.state_dict() == {"epoch": 1, "step": 0}


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("n", [30, 31, 34])
def test_ranks_cover_everything_exactly_once(n, world_size):
    ranks = [
        EpochSampler(n, seed=3, batch_size=2, drop_last=False, rank=r, world_size=world_size) for r in range(world_size)
    ]
    batches = [list(rank) for rank in ranks]
    assert [len(b) for b in batches] == [len(rank) for rank in ranks]
    assert sorted(i for b in batches for i in indices(b)) == list(range(n))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_the_global_batch(world_size):
    """One batch over all ranks holds the same samples whatever the number of ranks."""
    one = list(EpochSampler(64, seed=3, batch_size=8))
    ranks = [
        list(EpochSampler(64, seed=3, batch_size=8 // world_size, rank=r, world_size=world_size))
        for r in range(world_size)
    ]
    for step, batch in enumerate(one):
        assert sorted(batch) == sorted(key for rank in ranks for key in rank[step])


def test_drop_last_gives_equal_full_batches():
    ranks = [list(EpochSampler(31, seed=0, batch_size=4, rank=r, world_size=2)) for r in range(2)]
    assert [len(r) for r in ranks] == [3, 3]
    assert {len(b) for rank in ranks for b in rank} == {4}
    seen = [i for rank in ranks for i in indices(rank)]
    assert len(set(seen)) == len(seen) == 24


@pytest.mark.parametrize("n", [22, 23, 19, 16, 3])
def test_a_shorter_last_batch_is_equal_on_all_ranks(n):
    """What cannot be dealt out evenly is left out; a last batch below the least is no batch."""
    options = {"seed": 3, "batch_size": 4, "drop_last": False, "least": 2, "world_size": 2}
    if n == 3:
        with pytest.raises(DataError, match="do not fill"):
            EpochSampler(n, **options)
        return
    ranks = [EpochSampler(n, rank=rank, **options) for rank in range(2)]
    sizes = [[len(batch) for batch in rank] for rank in ranks]
    rest = n % 8 // 2
    assert sizes[0] == sizes[1] == [4] * (n // 8) + ([rest] if rest >= 2 else [])
    assert all(len(rank) == len(sizes[0]) for rank in ranks)


def test_errors():
    with pytest.raises(DataError, match="5 samples do not fill one batch of 8"):
        EpochSampler(5, seed=0, batch_size=8)
    with pytest.raises(DataError, match="no samples"):
        EpochSampler(0, seed=0, batch_size=8)
    with pytest.raises(ValueError, match="rank"):
        EpochSampler(8, seed=0, batch_size=1, rank=2, world_size=2)
    with pytest.raises(ValueError, match="set_position"):
        EpochSampler(8, seed=0, batch_size=2).set_position(0, 5)
