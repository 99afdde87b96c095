"""Modules that join two modalities, against the formulas of their docstrings."""

from __future__ import annotations

import pytest
import torch

from avfast.nn import MaskedFusion

A, V = (torch.randn(5, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(2))
SAMPLES = torch.tensor([True, False, True, False, True]), torch.tensor([True, True, False, False, True])
TOKENS = tuple(torch.rand(5, 3, generator=torch.Generator().manual_seed(i)) < 0.6 for i in (3, 4))


def expected(module: MaskedFusion, a, v, mask_a, mask_v):
    """The formulas, row by row and in the open."""
    rows = []
    for i in range(a.shape[0]):
        for t in range(a.shape[1]):
            x, y = a[i, t], v[i, t]
            has_a, has_v = bool(mask_a[i, t]), bool(mask_v[i, t])
            w_a, w_v = (1.0 if w is None else w for w in (module.weight_a, module.weight_v))
            if module.mode == "gated":
                both = torch.cat([x if has_a else x * 0, y if has_v else y * 0])
                z = torch.sigmoid(module.gate.weight @ both + module.gate.bias)
                w_a, w_v = z, 1 - z
            if module.mode == "film":
                gamma, beta = (module.modulation.weight @ y + module.modulation.bias).chunk(2)
                gamma, beta = (gamma, beta) if has_v else (torch.ones_like(x), torch.zeros_like(x))
                rows.append((gamma * x if has_a else 0 * x) + beta)
            elif module.mode == "concat":
                rows.append(torch.cat([w_a * x if has_a else 0 * x, w_v * y if has_v else 0 * y]))
            else:
                total = w_a + w_v
                c_a, c_v = (w_a if has_v else total), (w_v if has_a else total)
                rows.append((c_a * x if has_a else 0 * x) + (c_v * y if has_v else 0 * y))
    return torch.stack(rows).view(*a.shape[:2], -1)


def built(mode, weights=None, **options) -> MaskedFusion:
    torch.manual_seed(0)
    module = MaskedFusion(8, 8, mode, weights=weights, dtype=torch.float64, **options)
    with torch.no_grad():
        for p in module.parameters():
            p.normal_()
    return module


MODES = [("sum", None), ("sum", "scalar"), ("sum", "channel"), ("gated", None), ("film", None), ("concat", "channel")]


@pytest.mark.parametrize("masks", [SAMPLES, TOKENS], ids=["samples", "tokens"])
@pytest.mark.parametrize(("mode", "weights"), MODES)
def test_modes_are_their_formulas_with_gradients(mode, weights, masks):
    module = built(mode, weights)
    wide = [m if m.dim() == 2 else m[:, None].expand(5, 3) for m in masks]
    grad = torch.randn(5, 3, module.channels, dtype=torch.float64)
    results = []
    for run in (
        lambda a, v: module(a, v, mask_a=masks[0], mask_v=masks[1]),
        lambda a, v: expected(module, a, v, *wide),
    ):
        leaves = [x.clone().requires_grad_() for x in (A, V)]
        module.zero_grad()
        out = run(*leaves)
        out.backward(grad)
        results.append([out.detach(), *(x.grad for x in leaves), *(p.grad.clone() for p in module.parameters())])
    for found, want in zip(*results, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("mode", "weights"), MODES)
def test_nan_in_what_is_absent_reaches_nothing(mode, weights):
    module = built(mode, weights)
    a, v = (torch.where(m[:, None, None], x, torch.nan).requires_grad_() for x, m in zip((A, V), SAMPLES, strict=True))
    out = module(a, v, mask_a=SAMPLES[0], mask_v=SAMPLES[1])
    out.sum().backward()
    assert out.isfinite().all()
    assert all(x.grad.isfinite().all() for x in (a, v, *module.parameters()))
    assert (a.grad[~SAMPLES[0]] == 0).all() and (v.grad[~SAMPLES[1]] == 0).all()


def test_film_starts_from_a():
    module = MaskedFusion(8, 5, "film", dtype=torch.float64)
    torch.testing.assert_close(module(A, V[..., :5]), A)


@pytest.mark.parametrize("mode", ["sum", "gated", "film", "concat"])
def test_autocast_and_compile(mode):
    module = MaskedFusion(8, mode=mode)
    a, v = A.float(), V.float()
    want = module(a, v, mask_a=TOKENS[0])
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(module(a, v, mask_a=TOKENS[0]).float(), want, rtol=3e-2, atol=3e-2)
    compiled = torch.compile(module, fullgraph=True)
    torch.testing.assert_close(compiled(a, v, mask_a=TOKENS[0]), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "add"}, "mode: expected one of"),
        ({"mode": "gated", "dim_v": 4}, "dim_v: expected dim, 8, for mode 'gated'"),
        ({"mode": "film", "weights": "scalar"}, "weights: expected None for mode 'film'"),
        ({"weights": "row"}, "weights: expected one of"),
        ({"dim_v": 0}, "dim_v: expected a positive number"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message):
        MaskedFusion(8, **arguments)


def test_film_refuses_a_mask_of_elements_for_what_a_layer_reads():
    with pytest.raises(ValueError, match="mask_v: expected a mask of samples or tokens"):
        MaskedFusion(8, mode="film")(A.float(), V.float(), mask_v=torch.ones(5, 3, 8, dtype=torch.bool))
