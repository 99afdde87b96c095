"""SigLIP's loss, forward and backward, with learned scale and bias: every pair is a decision of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .candidate import LEAN, PUBLISHED, Case
from .opponents import compiled_step, eager_step, ours
from .pairs import Pairs, pairs, through_unit, unit

CHUNK = 1024

#: (N, D)
SHAPES = {
    "siglip": (4096, 768),
    "small": (1024, 256),
}


def _logits(a: Tensor, b: Tensor, n: Pairs) -> Tensor:
    return n.scalars["scale"] * a @ b.T + n.scalars["bias"]


def published(n: Pairs) -> Tensor:
    """As in the paper: a matrix of labels, +1 on the diagonal and -1 elsewhere."""
    a, b = F.normalize(n.z_a, dim=1), F.normalize(n.z_b, dim=1)
    labels = 2 * torch.eye(len(a), device=a.device) - 1
    return -F.logsigmoid(labels * _logits(a, b, n)).sum() / len(a)


def chunked(n: Pairs) -> Tensor:
    """The same a chunk of rows at a time, as open_clip does for large batches; autograd keeps every chunk."""
    a, b = F.normalize(n.z_a, dim=1), F.normalize(n.z_b, dim=1)
    total = a.new_zeros(())
    for first in range(0, len(a), CHUNK):
        logits = _logits(a[first : first + CHUNK], b, n)
        labels = -torch.ones_like(logits)
        labels.diagonal(first).fill_(1)
        total = total - F.logsigmoid(labels * logits).sum()
    return total / len(a)


def lean(n: Pairs) -> Tensor:
    """No labels: softplus of all logits, and the diagonal's own logit taken off."""
    a, b = F.normalize(n.z_a, dim=1), F.normalize(n.z_b, dim=1)
    logits = _logits(a, b, n)
    return (F.softplus(logits).sum() - logits.diagonal().sum()) / len(a)


def avfast_loss(n: Pairs) -> Tensor:
    import avfast

    return avfast.sigmoid_contrastive(n.z_a, n.z_b, **n.scalars)


def oracle(n: Pairs) -> dict[str, Tensor]:
    """Float64, gradients in closed form."""
    (a, length_a), (b, length_b) = unit(n.z_a), unit(n.z_b)
    scale, bias = (n.scalars[name].detach().double() for name in ("scale", "bias"))
    products = a @ b.T
    logits = scale * products + bias
    weights = torch.sigmoid(logits) / len(a)
    weights.diagonal().copy_(-torch.sigmoid(-logits.diagonal()) / len(a))
    # softplus(x) - x = softplus(-x) on the diagonal; logaddexp has no threshold
    loss = torch.logaddexp(logits, torch.zeros_like(logits)).sum() - logits.diagonal().sum()
    return {
        "output": loss / len(a),
        "d_z_a": through_unit(scale * weights @ b, a, length_a),
        "d_z_b": through_unit(scale * weights.T @ a, b, length_b),
        "d_scale": (weights * products).sum(),
        "d_bias": weights.sum(),
    }


def case(name: str, device: str = "cpu") -> Case:
    rows, width = shape = SHAPES[name]
    slow = 5 if name == "siglip" else 0
    return Case(
        op="sigmoid_contrastive",
        shape_name=name,
        shape=shape,
        inputs=lambda: pairs(rows, width, torch.float32, device, scale=10.0, bias=-10.0),
        oracle=oracle,
        candidates=(
            eager_step("eager", published, PUBLISHED),
            eager_step("chunked", chunked, LEAN),
            eager_step("lean", lean),
            compiled_step("eager", published, device, slow=not slow),
            compiled_step("lean", lean, device, slow=not slow),
            *ours("sigmoid_contrastive", lambda n: n.step(avfast_loss), dict, device, backends=not slow),
        ),
        mode="forward+backward",
        device=device,
        bytes_moved=4 * rows * width * 4,
        flops=6 * rows * rows * width,  # logits once, one product for each gradient
        traffic="fma",
        slow_rounds=slow,
    )


def cases(device: str = "cpu") -> list[Case]:
    return [case(name, device) for name in SHAPES]


def test_sigmoid_contrastive(case, candidate, measure):
    measure(case, candidate)
