"""SIGKILL at random instants: the small form of the check that `make soak` runs for every recipe."""

from __future__ import annotations

import pytest
import torch

for library in ("av", "accelerate", "jsonargparse", "transformers", "safetensors", "sklearn", "PIL", "kornia"):
    pytest.importorskip(library, reason=f"{library} is not installed")

from avfast.benches.soak import kill  # noqa: E402


@pytest.fixture(scope="module")
def runner():
    with kill.Runner() as runner:
        yield runner


@pytest.mark.parametrize(("recipe", "size", "workers"), [("densecl", 3, (0, 2)), ("av-align", 2, (0,))])
def test_killed_runs_come_to_the_states_and_logs_of_one_that_was_not(runner, tmp_path, recipe, size, workers):
    """A queue, a momentum network and two views on the one side; two modalities and a control on the other."""
    row = kill.kills(recipe, size, 0, tmp_path, runner, print, workers=workers)
    assert not row.failures and row.times == size


def test_what_differs_is_found():
    one = {"a": torch.zeros(2), "b": [1.0, float("nan")], "c": {"d": "x"}}
    assert kill.differences(one, {**one, "a": torch.zeros(2)}) == []
    assert kill.differences(one, {**one, "a": torch.tensor([0.0, -0.0])}) == ["/a: tensors differ"]
    assert kill.differences(one, {**one, "a": torch.zeros(2).double()}) == ["/a: tensors differ"]
    assert kill.differences(one, {**one, "b": [1.0, 2.0]}) == ["/b/1: nan and 2.0"]
    assert kill.differences(one, {**one, "c": {}}) == ["/c: only one has d"]
