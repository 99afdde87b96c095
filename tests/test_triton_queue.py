"""The queue loss and dense correspondence in Triton, interpreted, against their references in float64."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from interpreted import ROUNDED, WIDE, assert_close, interpreted, launched, wide

import avfast
from avfast.reference import match as match_reference
from avfast.reference import queue as reference

HALVES = (torch.float16, torch.bfloat16)


@pytest.fixture
def kernel():
    return importlib.import_module("avfast.kernels.contrastive.queue_nce_triton")


def problem(shape, dtype, matched=False, length=1.0, queue_dtype=None, seed=0):
    """q [B, D, S], k [B, D, L], a queue of unit rows [K, D], and matches of which one is missing."""
    b, d, s, keys, k = shape
    generator = torch.Generator().manual_seed(seed)
    q, key = (torch.randn(b, d, n, generator=generator, dtype=torch.float64) for n in (s, keys))
    if length != 1.0:
        q, key = F.normalize(q, dim=1) * length, F.normalize(key, dim=1) * length
    queue = F.normalize(torch.randn(k, d, generator=generator, dtype=torch.float64), dim=1)
    match = None
    if matched:
        match = torch.randint(0, keys, (b, s), generator=generator)
        match[-1, s // 2] = -1
    return q.to(dtype), key.to(dtype), queue.to(queue_dtype or dtype), match


def check(kernel, q, k, queue, match=None, temperature=0.2, normalize=True):
    got = launched(kernel.queue_nce_fwd_triton, q, k, queue, match, temperature, normalize, True)
    exact = reference.queue_nce_forward(*wide(q, k, queue, match), temperature, normalize, True)
    limits = [WIDE[q.dtype]] * 3 + [ROUNDED[q.dtype]]
    assert_close(got, exact, limits)
    alone = launched(kernel.queue_nce_fwd_triton, q, k, queue, match, temperature, normalize, False)
    assert_close(alone, (*exact[:3], torch.empty(0)), limits)
    grad = torch.randn(got[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(got[0].dtype)
    args = (grad, q, queue, got[2], match)
    got = launched(kernel.queue_nce_bwd_queue_triton, *args, temperature, normalize)
    exact = reference.queue_nce_backward_queue(*wide(*args), temperature, normalize)
    # Weights carry the rounding of the stored log-sum-exp.
    largest = args[3].abs().max().item() if args[3].numel() else 0.0
    assert_close(got, (exact,), [max(ROUNDED[q.dtype], torch.finfo(grad.dtype).eps * largest)])


SHAPES = {  # B, D, S, L, K
    "odd": (2, 20, 7, 7, 70),
    "96": (1, 96, 5, 5, 33),
    "130": (1, 130, 3, 3, 20),
    "in slices": (1, 260, 3, 3, 7),
    "in parts": (1, 20, 3, 3, 1100),
    "one": (1, 1, 1, 1, 1),
}


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapes(kernel, shape, dtype):
    check(kernel, *problem(shape, dtype, length=1.0 if shape[1] > 1 else 0.5), normalize=shape[1] > 1)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("temperature", [0.01, 0.03, 0.07, 1.0])
def test_temperatures(kernel, temperature, dtype):
    check(kernel, *problem((2, 20, 5, 9, 50), dtype, matched=True), temperature=temperature)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
def test_rows_of_any_length(kernel, dtype):
    """Far beyond what a fixed shift holds: logits reach 200."""
    check(kernel, *problem((2, 20, 5, 9, 50), dtype, matched=True, length=20.0), temperature=0.1, normalize=False)


@interpreted
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.float16, torch.bfloat16)], ids=str)
def test_queue_of_another_type(kernel, dtypes):
    q, k, queue, _ = problem((2, 20, 5, 5, 50), dtypes[0], queue_dtype=dtypes[1])
    loss, _, _, dq = launched(kernel.queue_nce_fwd_triton, q, k, queue, None, 0.2, True, True)
    exact = reference.queue_nce_forward(*wide(q, k, queue), None, 0.2, True, True)
    mixed = dtypes[0] is torch.float16  # its queries are read as bfloat16
    assert_close([loss, dq], (exact[0], exact[3]), [2e-3, 9e-3] if mixed else [WIDE[dtypes[0]], ROUNDED[dtypes[0]]])


@interpreted
def test_any_strides(kernel):
    q, k, queue, match = problem((2, 20, 5, 9, 50), torch.float32, matched=True)
    rows = q.transpose(1, 2).contiguous().transpose(1, 2)
    columns = queue.T.contiguous().T
    wider = torch.zeros(2, 20, 19)
    wider[..., 1::2] = k
    contiguous = launched(kernel.queue_nce_fwd_triton, q, k, queue, match, 0.2, True, True)
    strided = launched(
        kernel.queue_nce_fwd_triton, rows, wider[..., 1::2], columns, match.T.contiguous().T, 0.2, True, True
    )
    assert_close(strided, tuple(contiguous), [1e-7] * 4)
    assert strided[3].is_contiguous()


@interpreted
@pytest.mark.parametrize("shape", [(2, 20, 5, 5, 0), (0, 20, 5, 5, 9), (2, 20, 0, 0, 9), (2, 0, 3, 3, 9)], ids=str)
def test_empty(kernel, shape):
    check(kernel, *problem(shape, torch.float32))
    if shape[4] == 0:
        args = (*problem(shape, torch.float32), 0.2, True, True)
        loss, positive, lse, dq = launched(kernel.queue_nce_fwd_triton, *args)
        assert not loss.any() and not dq.any() and torch.equal(positive, lse)


@interpreted
def test_rows_that_do_not_count(kernel):
    q, k, queue, match = problem((2, 20, 5, 9, 50), torch.float32, matched=True)
    check(kernel, q, k, queue, torch.full_like(match, -1))
    for x in launched(kernel.queue_nce_fwd_triton, q, k, queue, torch.full_like(match, -1), 0.01, True, True):
        assert not x.any()


@interpreted
def test_rows_of_zero(kernel):
    q, k, queue, _ = problem((2, 20, 5, 5, 50), torch.float32)
    q[0, :, 2] = 0
    q[1, :, 3] *= 1e-14
    k[1, :, 1] = 0
    check(kernel, q, k, queue)


@interpreted
def test_a_loss_of_almost_nothing_is_not_lost(kernel):
    """log-sum-exp minus positive would be 0 in float32; and the gradient carries 1 - p to the last places."""
    q, _, _, _ = problem((1, 20, 1, 1, 1), torch.float32)
    queue = -F.normalize(q[0].T, dim=1).expand(6, 20) + 0.3 * torch.eye(6, 20)
    loss, _, _, dq = launched(kernel.queue_nce_fwd_triton, q, q, queue, None, 0.08, True, True)
    exact = reference.queue_nce_forward(*wide(q, q, queue), None, 0.08, True, True)
    assert 0 < exact[0].min() < 1e-7
    assert_close([loss, dq], (exact[0], exact[3]), [5e-6, 5e-6])


@interpreted
def test_a_nan_stays_in_its_row(kernel):
    q, k, queue, _ = problem((2, 20, 5, 5, 50), torch.float32)
    q[1, 4, 2] = float("nan")
    loss, _, _, dq = launched(kernel.queue_nce_fwd_triton, q, k, queue, None, 0.2, True, True)
    assert loss.isnan().nonzero().tolist() == [[1, 2]]
    assert dq[1, :, 2].isnan().all() and dq.isnan().sum() == 20


@interpreted
def test_public_op_and_its_gradients():
    q, k, queue, _ = problem((1, 20, 1, 1, 50), torch.float32)
    found = []
    for backend in ("triton", "torch"):
        leaves = [x.clone().requires_grad_() for x in (q[..., 0], k[..., 0], queue)]
        with avfast.use_backend(backend), np.errstate(all="ignore"):
            loss = avfast.queue_info_nce(*leaves, temperature=0.1)
            loss.backward()
        found.append([loss.detach(), *(x.grad for x in leaves)])
    assert_close(found[0], tuple(found[1]), [2e-6] * 4)


# ------------------------------------------------------------------------------------- dense correspondence


@pytest.fixture
def matcher():
    return importlib.import_module("avfast.kernels.contrastive.dense_match_triton")


def maps(dtype, b=2, channels=40, s=7, keys=9):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(b, channels, n, generator=generator, dtype=torch.float64).to(dtype) for n in (s, keys)]


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
@pytest.mark.parametrize("sizes", [(2, 40, 7, 9), (1, 40, 70, 150), (2, 1, 3, 1), (1, 20, 1, 65)], ids=str)
def test_matches(matcher, sizes, dtype):
    q, k = maps(dtype, *sizes)
    index, similarity = launched(matcher.dense_match_fwd_triton, q, k)
    exact = match_reference.dense_match(*wide(q, k))
    assert torch.equal(index, exact[0])
    assert_close([similarity], exact[1:], [WIDE[dtype]])


@interpreted
def test_ties_go_to_the_lowest_index_across_tiles(matcher):
    q, k = maps(torch.float32, keys=150)
    k[0, :, [30, 70, 149]] = q[0, :, 0, None]
    k[1] = 0
    index, similarity = launched(matcher.dense_match_fwd_triton, q, k)
    assert index[0, 0] == 30 and not index[1].any() and not similarity[1].any()


@interpreted
def test_the_first_nan_wins(matcher):
    q, k = maps(torch.float32, keys=150)
    k[0, 3, 140] = k[0, 5, 80] = float("nan")
    q[1, 0, 2] = float("nan")
    index, similarity = launched(matcher.dense_match_fwd_triton, q, k)
    exact = match_reference.dense_match(q, k)
    assert torch.equal(index, exact[0]) and (index[0] == 80).all()
    assert torch.equal(similarity.isnan(), exact[1].isnan())


@interpreted
def test_matches_of_any_strides_and_none(matcher):
    q, k = maps(torch.float32)
    rows = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k)]
    results = launched(matcher.dense_match_fwd_triton, *rows), matcher.dense_match_fwd_triton(q, k)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert matcher.dense_match_fwd_triton(q[:, :, :0], k)[0].shape == (2, 0)
