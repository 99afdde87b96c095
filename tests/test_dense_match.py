"""Correspondence of two maps: the argmax of the cosine, its ties, its NaNs, its shapes."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F

import avfast
from avfast.testing import DTYPES, LAYOUTS, in_layout


def cosine_argmax(q, k):
    """Both maps normalised, in float64: how people write it."""
    q, k = (F.normalize(x.double().flatten(2), dim=1) for x in (q, k))
    similarity, index = (q.transpose(1, 2) @ k).max(2)
    return index, similarity


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_agrees_with_the_normalised_product(dtype, layout, way):
    if way in ("cuda", "triton"):
        pytest.skip(f"{way}: compared in test_contract")
    for b, c, s, other in ((2, 2048, 49, 49), (3, 16, 36, 64), (1, 5, 9, 1), (2, 130, 81, 200)):
        q, k = (in_layout(torch.randn(b, c, n).to(dtype), layout) for n in (s, other))
        index, similarity = cosine_argmax(q, k)
        result = avfast.dense_match(q, k)
        assert torch.equal(result.index, index)
        assert result.similarity.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(result.similarity.double(), similarity, rtol=0, atol=2e-6)


def test_random_shapes_agree_with_the_reference(compiled):
    """200 odd shapes: one position, more positions than a panel, channels that are no multiple of a slice."""
    chance = random.Random(0)
    for _ in range(200):
        b, c = chance.randint(1, 3), chance.randint(2, 150)
        q, k = torch.randn(b, c, chance.randint(1, 140)), torch.randn(b, c, chance.randint(1, 260))
        index, similarity = cosine_argmax(q, k)
        result = avfast.dense_match(q, k)
        # Where the two best keys differ by less than float32 can tell, either is right.
        torch.testing.assert_close(result.similarity.double(), similarity, rtol=0, atol=1e-6)
        wrong = result.index != index
        scores = F.normalize(q.double(), dim=1).transpose(1, 2) @ F.normalize(k.double(), dim=1)
        chosen = scores.gather(2, result.index[:, :, None]).squeeze(2)
        assert ((similarity - chosen)[wrong] < 1e-6).all()


def test_length_of_neither_map_matters(compiled):
    q, k = torch.randn(2, 33, 7, 7), torch.randn(2, 33, 7, 7)
    plain = avfast.dense_match(q, k)
    scaled = avfast.dense_match(q * torch.rand(2, 1, 7, 7).add(0.1), k * torch.rand(2, 1, 7, 7).mul(9).add(0.1))
    assert torch.equal(plain.index, scaled.index)
    torch.testing.assert_close(plain.similarity, scaled.similarity, rtol=1e-5, atol=1e-6)


def test_ties_take_the_lowest_index(way):
    device = "cuda" if way in ("cuda", "triton") else "cpu"
    one = torch.randn(2, 20, 5, device=device)
    k = torch.cat([one, one, one[:, :, :3], one], dim=2)  # four copies of each of the first three keys
    assert torch.equal(avfast.dense_match(one, k).index.cpu(), torch.arange(5).expand(2, 5))
    many = one.repeat(1, 1, 60)  # 300 keys: ties across blocks of keys
    assert torch.equal(avfast.dense_match(one, many).index.cpu(), torch.arange(5).expand(2, 5))


def test_zero_vectors_match_the_first_key_with_similarity_zero(compiled):
    result = avfast.dense_match(torch.zeros(1, 4, 3), torch.randn(1, 4, 6))
    assert result.index.tolist() == [[0, 0, 0]] and result.similarity.tolist() == [[0.0, 0.0, 0.0]]
    result = avfast.dense_match(torch.randn(1, 4, 3), torch.zeros(1, 4, 6))
    assert result.index.tolist() == [[0, 0, 0]] and result.similarity.tolist() == [[0.0, 0.0, 0.0]]


def test_the_first_nan_wins_and_stays_in_its_sample(way):
    device = "cuda" if way in ("cuda", "triton") else "cpu"
    q, k = torch.randn(2, 6, 4), torch.randn(2, 6, 200)
    k[0, 2, 150] = k[0, 3, 190] = float("nan")
    clean = avfast.dense_match(q[1:].to(device), k[1:].to(device))
    result = avfast.dense_match(q.to(device), k.to(device))
    assert result.index[0].tolist() == [150] * 4 and result.similarity[0].isnan().all()
    assert torch.equal(result.index[1:], clean.index) and torch.equal(result.similarity[1:], clean.similarity)


def test_spatial_maps_keep_their_shape_and_carry_no_gradient():
    q = torch.randn(2, 8, 3, 5, requires_grad=True)
    result = avfast.dense_match(q, torch.randn(2, 8, 4, 4))
    assert result.index.shape == result.similarity.shape == (2, 3, 5)
    assert not result.similarity.requires_grad
    empty = avfast.dense_match(q[:0], torch.randn(0, 8, 4))
    assert empty.index.shape == (0, 3, 5) and empty.index.dtype == torch.int64


def test_compiles():
    q, k = torch.randn(2, 8, 9), torch.randn(2, 8, 9)
    compiled = torch.compile(lambda q, k: avfast.dense_match(q, k).index, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k), avfast.dense_match(q, k).index)


@pytest.mark.parametrize(
    ("q", "k", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 3, 4), r"feat_q: expected shape \[B, C, \*S\], got \(2, 3\)"),
        (torch.ones(2, 3, 4), torch.ones(2, 3, 4).double(), r"feat_k: expected the dtype of feat_q, torch.float32"),
        (torch.ones(2, 3, 4), torch.ones(2, 4, 4), r"feat_k: expected shape \(2, 3, '\*'\), got \(2, 4, 4\)"),
        (torch.ones(2, 3, 4), torch.ones(2, 3, 0), "feat_k: expected at least one position"),
        (torch.ones(2, 3, 4).long(), torch.ones(2, 3, 4), "feat_q: expected a floating-point tensor"),
        ([[1.0]], torch.ones(2, 3, 4), "feat_q: expected a tensor, got list"),
    ],
)
def test_errors_name_the_argument(q, k, message):
    with pytest.raises((TypeError, ValueError), match=r"^avfast\.dense_match: " + message):
        avfast.dense_match(q, k)
