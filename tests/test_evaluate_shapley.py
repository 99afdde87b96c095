"""Shapley values against the mean over all orders of arrival, and what they must always be."""

from __future__ import annotations

from itertools import chain, combinations, permutations

import pytest
import torch

from avfast.evaluate import shapley_values


def game(players: str, seed: int) -> dict[frozenset[str], float]:
    generator = torch.Generator().manual_seed(seed)
    sets = chain.from_iterable(combinations(players, n) for n in range(len(players) + 1))
    return {frozenset(s): torch.rand((), generator=generator).item() for s in sets}


@pytest.mark.parametrize("players", ["a", "av", "avt", "avtx"])
def test_mean_over_orders(players):
    worth = game(players, len(players))
    orders = list(permutations(players))
    for player, value in shapley_values(worth).items():
        gains = [worth[frozenset(o[: o.index(player) + 1])] - worth[frozenset(o[: o.index(player)])] for o in orders]
        assert value == pytest.approx(sum(gains) / len(orders))


def test_they_sum_to_the_whole_and_a_dummy_gets_nothing():
    worth = game("avt", 9)
    assert sum(shapley_values(worth).values()) == pytest.approx(worth[frozenset("avt")] - worth[frozenset()])
    dummy = {s | extra: w for s, w in game("av", 1).items() for extra in (frozenset(), frozenset("d"))}
    assert shapley_values(dummy)["d"] == pytest.approx(0)


def test_a_missing_set_is_named():
    worth = game("av", 0)
    del worth[frozenset("v")]
    with pytest.raises(ValueError, match=r"avfast.evaluate.shapley_values: worth: expected that of \('v',\) too"):
        shapley_values(worth)
