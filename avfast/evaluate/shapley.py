"""What each modality adds to a score, whoever was there before."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from math import factorial


def shapley_values(worth: Mapping[frozenset[str], float]) -> dict[str, float]:
    r"""Shapley value of every player of a game.

    .. math:: \phi_i = \sum_{S \not\ni i} \frac{|S|! (n - |S| - 1)!}{n!} (w(S \cup \{i\}) - w(S))

    The values sum to the worth of all players less that of none. Source: Shapley 1953, "A value for n-person games";
    for modalities, Hu et al. 2022, "SHAPE: an unified approach to evaluate the contribution of modalities".

    Args:
        worth: score of every set of players, the empty one included; ``2 ** n`` of them.

    Raises:
        ValueError: the score of a set is missing.

    >>> score = {frozenset(): 0.1, frozenset("a"): 0.5, frozenset("v"): 0.3, frozenset("av"): 0.6}
    >>> {name: round(value, 3) for name, value in shapley_values(score).items()}
    {'a': 0.35, 'v': 0.15}
    """
    players = sorted(frozenset().union(*worth))
    n = len(players)
    missing = [s for size in range(n + 1) for s in combinations(players, size) if frozenset(s) not in worth]
    if missing:
        raise ValueError(f"avfast.evaluate.shapley_values: worth: expected that of {missing[0]} too, got {len(worth)}")
    values = {}
    for player in players:
        others = [p for p in players if p != player]
        values[player] = sum(
            factorial(len(s)) * factorial(n - len(s) - 1) / factorial(n) * (worth[s | {player}] - worth[s])
            for size in range(n)
            for s in map(frozenset, combinations(others, size))
        )
    return values
