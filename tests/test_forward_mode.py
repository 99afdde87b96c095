"""Forward-mode derivatives of the fusion ops are refused: a kernel without one would answer with zeros."""

from __future__ import annotations

import pytest
import torch

from avfast import mask_patches, masked_concat_linear, masked_fusion

X, W = torch.ones(2, 3, 4, 4), torch.ones(5, 8)
OPS = {
    "mask_patches": lambda x: mask_patches(x, 0.5, 2, seed=0)[0],
    "masked_fusion": lambda x: masked_fusion(x, X, mask_a=torch.tensor([True, False])),
    "masked_fusion of the second": lambda x: masked_fusion(X, x, mode="gated", weight_a=torch.zeros(4)),
    "masked_fusion of a weight": lambda x: masked_fusion(X, X, weight_a=x),
    "masked_concat_linear": lambda x: masked_concat_linear(x, X, W),
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
