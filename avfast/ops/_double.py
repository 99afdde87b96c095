"""Second derivatives: a gradient written in plain PyTorch, for those who ask for one of the gradient."""

from __future__ import annotations

import torch
from torch import Tensor


def own_nodes(*inputs: Tensor) -> tuple[Tensor, ...]:
    """Each input as a node of its own in the graph: where one was computed from another, or is it, a gradient with
    respect to the inputs themselves would count that path a second time."""
    return tuple(x.view_as(x) for x in inputs)


def wanted_gradients(
    results: Tensor | tuple[Tensor, ...],
    leaves: tuple[Tensor, ...],
    grads: Tensor | tuple[Tensor, ...],
    needed: tuple[bool, ...],
) -> list[Tensor | None]:
    """Gradients, themselves differentiable, of those leaves that need one; None for the others."""
    chosen = [leaf for leaf, need in zip(leaves, needed, strict=False) if need]
    found = iter(torch.autograd.grad(results, chosen, grads, create_graph=True))
    return [next(found) if need else None for _, need in zip(leaves, needed, strict=False)]
