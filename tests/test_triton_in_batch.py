"""The in-batch losses in Triton, interpreted, against their references in float64."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from interpreted import ROUNDED, WIDE, assert_close, interpreted, launched, wide

import avfast
from avfast.reference import contrastive as reference

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.fixture
def pair():
    return importlib.import_module("avfast.kernels.contrastive.pair_nce_triton")


@pytest.fixture
def own():
    return importlib.import_module("avfast.kernels.contrastive.self_nce_triton")


@pytest.fixture
def sigmoid():
    return importlib.import_module("avfast.kernels.contrastive.sigmoid_nce_triton")


@pytest.fixture
def small_slabs(monkeypatch):
    """Slabs of a tile or two, so that a small batch is cut as a large one is."""
    sums = importlib.import_module("avfast.kernels.contrastive.weighted_sums_triton")
    for size, edge in ((2, 128), (4, 64), (8, 64)):
        monkeypatch.setitem(sums.SLAB, size, edge)


def vectors(shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def scalar(value, dtype):
    return torch.full((1,), value, dtype=torch.float64 if dtype is torch.float64 else torch.float32)


def slack(dtype, lse) -> float:
    """Weights carry the rounding of the stored log-sum-exp."""
    largest = max([abs(x) for x in lse.tolist() if math.isfinite(x)], default=0.0)
    return max(ROUNDED[dtype], torch.finfo(lse.dtype).eps * largest)


def check_pair(pair, a, b, temperature=0.1, labels=(None, None), positive=0, exclude=-1, distance=0, normalize=True,
               columns=True, elsewhere=0.0):  # fmt: skip
    """``elsewhere``: by how much the rows of other processes raise the logarithm of a column's sum."""
    t, options = scalar(temperature, a.dtype), (positive, exclude, distance, normalize, columns)
    got = launched(pair.pair_nce_fwd_triton, a, b, t, *labels, *options)
    exact = reference.pair_nce_forward(*wide(a, b, t, *labels), *options)
    assert got[3].dtype == torch.int32 and torch.equal(got[3], exact[3])
    limit = 20 * WIDE[a.dtype] if distance and not normalize else WIDE[a.dtype]  # |a|^2 + |b|^2 - 2 a.b cancels
    assert_close(got, exact, [limit, limit, WIDE[a.dtype], 0.0, 0.0, 0.0])
    grad_row = torch.where(exact[3] > 0, vectors(len(a), t.dtype, 1), 0.0)
    args = (grad_row, vectors(len(b), t.dtype, 2), a, b, t, got[0], got[1] + elsewhere, *labels, got[3])
    back = launched(pair.pair_nce_bwd_triton, *args, *options)
    exact_back = reference.pair_nce_backward(*wide(*args), *options)
    assert [x.dtype for x in back] == [a.dtype, b.dtype, t.dtype]
    limit = slack(a.dtype, got[0])
    assert_close(back[:2], exact_back[:2], [limit] * 2)
    check_scalar(back[2], exact_back[2], exact_back[:2], a.dtype, temperature)


def check_scalar(got, exact, gradients, dtype, temperature) -> None:
    """Nearly everything in this sum cancels: its error is measured against the gradients it is made with."""
    scale = sum(g.norm().item() for g in gradients) / temperature
    eps = torch.finfo(got.dtype).eps
    assert abs(got.item() - exact.item()) <= 50 * eps * (scale + abs(exact.item())), (got.item(), exact.item(), scale)


SHAPES = {  # N, M, D, positive, exclude
    "square": (5, 5, 20, 0, -1),
    "a rank's rows": (20, 50, 130, 25, -1),
    "several tiles, without itself": (70, 150, 16, 3, 0),
    "one row": (1, 2, 1, 1, -1),
}


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_pairs(pair, shape, dtype):
    n, m, d, positive, exclude = shape
    a, b = vectors((n, d), dtype), vectors((m, d), dtype, 3)
    check_pair(pair, a, b, positive=positive, exclude=exclude, normalize=d > 1)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_columns_shared_with_other_processes(pair, dtype):
    a, b = vectors((20, 30), dtype), vectors((50, 30), dtype, 3)
    check_pair(pair, a, b, positive=25, elsewhere=0.7)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normalize", [True, False], ids=["unit", "raw"])
def test_distances(pair, dtype, normalize):
    a, b = (vectors((n, 20), dtype, n) / 4 for n in (12, 17))
    b[5] = a[3]  # row 3's positive is itself: under the clamp
    check_pair(pair, a, b, positive=2, distance=1, normalize=normalize, temperature=0.3)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_labels(pair, dtype):
    a, b = vectors((12, 20), dtype), vectors((80, 20), dtype, 3)
    labels = torch.arange(12) % 5, torch.arange(80) % 4  # label 4 has no positive
    check_pair(pair, a, b, labels=labels, exclude=3, columns=False)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("temperature", [0.01, 0.028, 1.0])
def test_temperatures(pair, temperature, dtype):
    check_pair(pair, vectors((12, 20), dtype), vectors((17, 20), dtype, 3), temperature=temperature, positive=4)


@interpreted
def test_rows_of_any_length(pair):
    """Logits of 200, which no fixed shift holds."""
    a, b = (F.normalize(vectors((n, 20), torch.float32, n), dim=1) * 20 for n in (12, 17))
    check_pair(pair, a, b, temperature=2.0, normalize=False)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pairs_in_slabs(pair, small_slabs, dtype):
    a, b = vectors((130, 16), dtype), vectors((260, 16), dtype, 3)
    check_pair(pair, a, b, positive=100)
    check_pair(pair, a[:20], b[:150], positive=3, distance=1, normalize=False, temperature=2.0)


@interpreted
def test_any_strides_and_upstream_gradients_of_one_number(pair):
    a, b = vectors((20, 12), torch.float32).T, vectors((17, 40), torch.float32, 3)[:, ::2]
    assert not a.is_contiguous() and not b.is_contiguous()
    check_pair(pair, a, b)
    t = scalar(0.1, torch.float32)
    row, column, _, count, *_ = launched(pair.pair_nce_fwd_triton, a, b, t, None, None, 0, -1, 0, True, True)
    found = []
    for one in (torch.ones(()).expand, torch.ones):
        args = (one(12), one(17), a, b, t, row, column, None, None, count, 0, -1, 0, True, True)
        found.append(launched(pair.pair_nce_bwd_triton, *args))
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


@interpreted
def test_rows_of_zero(pair):
    a, b = vectors((12, 20), torch.float32), vectors((17, 20), torch.float32, 3)
    a[3], b[5], b[9] = 0, 0, b[9] * 1e-14
    check_pair(pair, a, b)


@interpreted
@pytest.mark.parametrize("n, m", [(0, 5), (0, 0), (4, 0)])
def test_empty(pair, n, m):
    labels = (torch.zeros(n, dtype=torch.int64), torch.zeros(m, dtype=torch.int64)) if n else (None, None)
    check_pair(pair, vectors((n, 20), torch.float32), vectors((m, 20), torch.float32), labels=labels, columns=not n)


@interpreted
def test_labels_by_columns_are_refused(pair):
    a, labels = vectors((4, 8), torch.float32), torch.zeros(4, dtype=torch.int64)
    t = scalar(0.1, torch.float32)
    out = launched(pair.pair_nce_fwd_triton, a, a, t, labels, labels, 0, -1, 0, True, True)
    with pytest.raises(NotImplementedError, match="columns"):
        pair.pair_nce_bwd_triton(out[0], out[1], a, a, t, out[0], out[1], labels, labels, out[3], 0, -1, 0, True, True)


# --------------------------------------------------------------------------------- a batch against itself


def check_self(own, z, labels=None, temperature=0.1, normalize=True):
    t = scalar(temperature, z.dtype)
    got = launched(own.self_nce_fwd_triton, z, t, labels, normalize)
    exact = reference.self_nce_forward(*wide(z, t, labels), normalize)
    assert got[2].dtype == torch.int32 and torch.equal(got[2], exact[2])
    assert_close(got, exact, [WIDE[z.dtype]] * 2 + [0.0])
    grad = torch.where(exact[2] > 0, vectors(len(z), t.dtype, 1), 0.0)
    args = (grad, z, t, got[0], labels, got[2])
    back = launched(own.self_nce_bwd_triton, *args, normalize)
    exact_back = reference.self_nce_backward(*wide(*args), normalize)
    assert [x.dtype for x in back] == [z.dtype, t.dtype]
    assert_close(back[:1], exact_back[:1], [slack(z.dtype, got[0])])
    check_scalar(back[1], exact_back[1], exact_back[:1], z.dtype, temperature)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("labelled", [False, True], ids=["pairs", "labels"])
@pytest.mark.parametrize("n, d", [(6, 96), (140, 16)])
def test_a_batch_against_itself(own, n, d, labelled, dtype):
    labels = torch.arange(n) % (n // 2 + 1) if labelled else None  # some have no positive
    check_self(own, vectors((n, d), dtype), labels)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("labelled", [False, True], ids=["pairs", "labels"])
def test_a_batch_against_itself_in_slabs(own, small_slabs, labelled, dtype):
    labels = torch.arange(140) % 7 if labelled else None
    check_self(own, vectors((140, 16), dtype), labels, temperature=0.5)


@interpreted
@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_temperatures_of_a_batch_against_itself(own, temperature):
    check_self(own, vectors((10, 130), torch.float32), temperature=temperature)
    check_self(own, vectors((10, 20), torch.float32) / 4, temperature=temperature, normalize=False)


@interpreted
def test_a_batch_of_none_or_one(own):
    for n in (0, 1):
        check_self(own, vectors((n, 20), torch.float32), torch.zeros(n, dtype=torch.int64))


# ---------------------------------------------------------------------------------------------- sigmoid


def check_sigmoid(sigmoid, a, b, positive=0, scale=10.0, bias=-10.0, normalize=True):
    s, o = scalar(scale, a.dtype), scalar(bias, a.dtype)
    loss = launched(sigmoid.sigmoid_nce_fwd_triton, a, b, s, o, positive, normalize)
    grad = vectors(len(a), s.dtype, 1)
    got = launched(sigmoid.sigmoid_nce_bwd_triton, grad, a, b, s, o, positive, normalize)
    exact = reference.sigmoid_nce_backward(*wide(grad, a, b, s, o), positive, normalize)
    assert [x.dtype for x in got] == [s.dtype, a.dtype, b.dtype, s.dtype, s.dtype]
    assert_close(loss + got[:3], (exact[0], *exact[:3]), [WIDE[a.dtype]] * 2 + [ROUNDED[a.dtype]] * 2)
    for x, y in zip(got[3:], exact[3:], strict=True):
        check_scalar(x, y, exact[1:3], a.dtype, 1.0)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 5, 20, 0), (20, 50, 130, 25), (1, 1, 8, 0)], ids=str)
def test_sigmoid(sigmoid, shape, dtype):
    n, m, d, positive = shape
    check_sigmoid(sigmoid, vectors((n, d), dtype), vectors((m, d), dtype, 3), positive)


@interpreted
@pytest.mark.parametrize("scale, bias", [(100.0, -20.0), (1.0, 0.0)])
def test_sigmoid_of_other_scales_and_lengths(sigmoid, small_slabs, scale, bias):
    a, b = vectors((70, 16), torch.float32) / 4, vectors((130, 16), torch.float32, 3) / 4
    check_sigmoid(sigmoid, a, b, 30, scale, bias)
    check_sigmoid(sigmoid, a[:20], b[:20], 0, scale, bias, normalize=False)


@interpreted
def test_sigmoid_of_nothing(sigmoid):
    check_sigmoid(sigmoid, vectors((0, 20), torch.float32), vectors((5, 20), torch.float32))


# ------------------------------------------------------------------------------------------- public ops


@interpreted
def test_public_ops_and_their_gradients():
    a, b, labels = vectors((12, 20), torch.float32), vectors((12, 20), torch.float32, 3), torch.arange(12) % 4
    scalars = {"scale": torch.tensor(10.0), "bias": torch.tensor(-10.0)}
    calls = {
        "cosine": lambda x, y: avfast.info_nce(x, y),
        "l2": lambda x, y: avfast.info_nce(x, y, distance="l2", symmetric=False),
        "nt_xent": lambda x, y: avfast.nt_xent(x, y),
        "sup_con": lambda x, y: avfast.sup_con(x + y, labels),
        "sigmoid": lambda x, y: avfast.sigmoid_contrastive(x, y, **scalars),
    }
    for name, call in calls.items():
        found = []
        for backend in ("triton", "torch"):
            leaves = [x.clone().requires_grad_() for x in (a, b)]
            with avfast.use_backend(backend), np.errstate(all="ignore"):
                loss = call(*leaves)
                loss.backward()
            found.append([loss.detach(), *(x.grad for x in leaves)])
        assert len(found) == 2, name
        assert_close(found[0], tuple(found[1]), [2e-6] * 3)
