"""Forward-mode derivatives are refused: a kernel without one would answer with zeros."""

from __future__ import annotations

import pytest
import torch

from avfast import (
    blended_batch_norm,
    channel_affine,
    correlate,
    mask_patches,
    masked_concat_linear,
    masked_fusion,
    rotated_box_bce,
    upsample_cross_entropy,
)

X, W = torch.ones(2, 3, 4, 4), torch.ones(5, 8)
ONES, BOXES = torch.ones(3), torch.tensor([[0.0, -8, -8, 8, 0]]).repeat(2, 1)
OPS = {
    "mask_patches": lambda x: mask_patches(x, 0.5, 2, seed=0)[0],
    "masked_fusion": lambda x: masked_fusion(x, X, mask_a=torch.tensor([True, False])),
    "masked_fusion of the second": lambda x: masked_fusion(X, x, mode="gated", weight_a=torch.zeros(4)),
    "masked_fusion of a weight": lambda x: masked_fusion(X, X, weight_a=x),
    "masked_concat_linear": lambda x: masked_concat_linear(x, X, W),
    "channel_affine": lambda x: channel_affine(x, ONES, ONES),
    "blended_batch_norm": lambda x: blended_batch_norm(x, *(ONES,) * 5),
    "correlate": lambda x: correlate(x, x[:, None], x[:, None]),
    "rotated_box_bce": lambda x: rotated_box_bce(x[:, :2], BOXES, size=16, source_size=16),
    "upsample_cross_entropy": lambda x: upsample_cross_entropy(
        x, torch.zeros(2, 8, 8, dtype=torch.long), align_corners=False
    ),
}


@pytest.mark.parametrize("name", OPS)
def test_refused_and_not_zero(name):
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.func.jvp(OPS[name], (X,), (X,))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(X.clone(), X)
        with pytest.raises((RuntimeError, NotImplementedError)):
            OPS[name](dual)


@pytest.mark.parametrize("name", OPS)
def test_what_has_no_tangent_goes_its_usual_way(name):
    with torch.autograd.forward_ad.dual_level():
        assert torch.equal(OPS[name](X), OPS[name](X.clone()))
    assert OPS[name](X.clone().requires_grad_()).requires_grad
    with torch.no_grad():
        assert not OPS[name](X.clone().requires_grad_()).requires_grad
