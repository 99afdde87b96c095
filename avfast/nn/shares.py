"""Parameters of which a process may hold a share only."""

from __future__ import annotations

from torch import Tensor


def own_share(x: Tensor) -> Tensor:
    """What this process holds of a tensor that is divided among processes (FSDP), without a copy; any other tensor as
    it is. What is done to every element by itself is done to the shares."""
    return x.to_local() if hasattr(x, "to_local") else x
