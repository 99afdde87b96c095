"""The dense loss: positives by index, by geometry and by features, in any layout, and what takes no part."""

from __future__ import annotations

import contrastive_formulas as plain
import pytest
import torch
import torch.nn.functional as F

import avfast
from avfast import Correspondence
from avfast.testing import relative_error

B, D, H, W, K = 2, 6, 3, 4, 20


def maps(dtype=torch.float64, channels: int = D, seed: int = 0, size=(H, W)):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(B, channels, *size, generator=g, dtype=torch.float64).to(dtype) for _ in range(2)]


def negatives(dtype=torch.float64):
    return F.normalize(torch.randn(K, D, generator=torch.Generator().manual_seed(9), dtype=torch.float64), dim=1).to(
        dtype
    )


def indices(missing: bool = True):
    return torch.randint(-1 if missing else 0, H * W, (B, H, W), generator=torch.Generator().manual_seed(4))


def test_value_gradients_and_reductions():
    q, k = (x.requires_grad_() for x in maps())
    match = indices()
    rows = avfast.dense_contrastive(q, k, negatives(), match, reduction="none")
    assert rows.shape == (B, H, W) and (rows[match < 0] == 0).all() and (rows[match >= 0] > 0).all()
    loss = avfast.dense_contrastive(q, k, negatives(), match)
    expected = plain.dense_contrastive(q.flatten(2), k.flatten(2), negatives(), match.flatten(1))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(rows.sum() / (match >= 0).sum(), loss)
    torch.testing.assert_close(avfast.dense_contrastive(q, k, negatives(), match, reduction="sum"), rows.sum())
    found, exact = (torch.autograd.grad(x, (q, k)) for x in (loss, expected))
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_other_types_and_layouts(dtype, layout):
    memory = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    q, k = (x.contiguous(memory_format=memory).requires_grad_() for x in maps(dtype))
    loss = avfast.dense_contrastive(q, k, negatives(dtype), indices())
    wide = [x.detach().double().flatten(2).requires_grad_() for x in (q, k)]
    exact = plain.dense_contrastive(*wide, negatives(dtype).double(), indices().flatten(1))
    loss.backward(), exact.backward()
    eps = torch.finfo(dtype).eps
    assert abs(loss.item() / exact.item() - 1) < max(1e-6, eps / 4)
    for x, y in zip((q, k), wide, strict=True):
        assert x.grad.dtype == dtype and relative_error(x.grad.flatten(2), y.grad) < max(3e-6, 2 * eps)


@pytest.fixture(scope="module")
def at_spec_shape():
    """Numbers that every type holds, at the shape of DenseCL's spec (section A.8): 32 images of 49 cells, 65,536 keys.

    With them the mean loss over three of the images, and its gradients, in float64.
    """
    g, weighed = torch.Generator().manual_seed(7), [0, 13, 31]

    def coarse(x: torch.Tensor, step: float) -> torch.Tensor:
        return (x / step).round().clamp(-127, 127) * step

    q, k = (coarse(torch.randn(32, 128, 49, generator=g), 1 / 32) for _ in range(2))
    queue = coarse(F.normalize(torch.randn(65536, 128, generator=g), dim=1), 1 / 256)
    match = torch.randint(-1, 49, (32, 49), generator=g)
    leaves = [x.double().requires_grad_() for x in (q[weighed], k[weighed], queue)]
    loss = plain.dense_contrastive(*leaves, match[weighed])
    return (q, k, queue), match, weighed, loss.detach(), torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_value_and_every_gradient_at_the_shape_of_the_spec(at_spec_shape, dtype):
    tensors, match, weighed, exact_loss, exact = at_spec_shape
    leaves = [x.to(dtype).requires_grad_() for x in tensors]
    rows = avfast.dense_contrastive(*leaves, match, reduction="none")
    loss = rows[weighed].sum() / (match[weighed] >= 0).sum()
    scale = 2.0**12  # a queue of 65,536 gets gradients of 1e-7, which float16 holds as a gradient scaler leaves them
    found = torch.autograd.grad(scale * loss, leaves)
    eps = torch.finfo(dtype).eps
    assert relative_error(loss, exact_loss) < max(1e-6, eps / 4)
    for name, a, x in zip(("q", "k", "queue"), found, exact, strict=True):
        a = a if name == "queue" else a[weighed]
        assert a.dtype == dtype and relative_error(a.double() / scale, x) < max(2e-6, 2 * eps), name


def test_match_by_features_is_dense_match():
    q, k = maps()
    feat_q, feat_k = maps(channels=11, seed=5)
    by_features = avfast.dense_contrastive(q, k, negatives(), "feature", feat_q=feat_q, feat_k=feat_k)
    index = avfast.dense_match(feat_q, feat_k).index
    assert torch.equal(by_features, avfast.dense_contrastive(q, k, negatives(), index))
    as_given = avfast.dense_contrastive(q, k, negatives(), avfast.dense_match(feat_q, feat_k))
    assert torch.equal(by_features, as_given)


def test_no_gradient_through_the_match():
    q = maps()[0].requires_grad_()
    feat = maps(channels=11, seed=5)[0].requires_grad_()
    avfast.dense_contrastive(q, q.detach(), negatives(), "feature", feat_q=feat, feat_k=feat).backward()
    assert feat.grad is None and q.grad.any()


def test_match_by_geometry_leaves_out_what_is_not_seen():
    """Two crops of one picture, side by side but for one column of cells."""
    crops = [torch.tensor([[0.0, 0.0, 10.0, 5.0, 0.0]] * B), torch.tensor([[0.0, 2.5, 10.0, 5.0, 0.0]] * B)]
    match = avfast.geometric_match(*crops, (H, W))
    assert isinstance(match, Correspondence) and match.valid.any() and not match.valid.all()
    q, k = maps()
    index = torch.where(match.valid, match.index, -1)
    expected = avfast.dense_contrastive(q, k, negatives(), index)
    assert torch.equal(avfast.dense_contrastive(q, k, negatives(), match), expected)
    nothing = Correspondence(match.index, torch.zeros_like(match.valid))
    assert avfast.dense_contrastive(q, k, negatives(), nothing).isnan()
    assert avfast.dense_contrastive(q, k, negatives(), nothing, reduction="sum") == 0


def test_the_key_map_may_have_another_size():
    q, k = maps()[0], maps(size=(2, 5), seed=7)[0]
    match = torch.randint(0, 10, (B, H, W), generator=torch.Generator().manual_seed(4))
    expected = plain.dense_contrastive(q.flatten(2), k.flatten(2), negatives(), match.flatten(1))
    torch.testing.assert_close(avfast.dense_contrastive(q, k, negatives(), match), expected)


def test_parts_explain_the_loss():
    q, k = maps()
    found = avfast.dense_contrastive(q, k, negatives(), indices(False), reduction="none", return_parts=True)
    assert found.positive.shape == found.negative.shape == (B, H, W)
    torch.testing.assert_close(found.loss, F.softplus(found.negative - found.positive))


def test_second_order():
    q, k = (x[:, :3, :2, :2].contiguous().requires_grad_() for x in maps())
    queue = F.normalize(negatives()[:4, :3], dim=1).requires_grad_()
    match = torch.tensor([[0, 3, 3, -1], [1, 2, 0, 0]])

    def loss(*tensors):
        return avfast.dense_contrastive(*tensors, match)

    assert torch.autograd.gradcheck(loss, (q, k, queue))
    assert torch.autograd.gradgradcheck(loss, (q, k, queue))


def test_compiles_whole():
    """Forward, and backward to queries, keys and queue."""
    torch.compiler.reset()
    tensors = [*maps(torch.float32), negatives(torch.float32)]
    feat_q, feat_k = maps(torch.float32, channels=11, seed=5)

    def loss(q, k, queue):
        return avfast.dense_contrastive(q, k, queue, "feature", feat_q=feat_q, feat_k=feat_k)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found = []
    for f in (loss, compiled):
        leaves = [x.clone().requires_grad_() for x in tensors]
        value = f(*leaves)
        found.append([value, *torch.autograd.grad(value, leaves)])
    for expected, result in zip(*found, strict=True):
        torch.testing.assert_close(result, expected)


Q, QUEUE, INDEX = torch.ones(B, D, H * W), torch.ones(K, D), torch.zeros(B, H * W, dtype=torch.int64)
MISTAKES = {
    "q: expected shape [B, D, *S], got (2, 6)": (Q[..., 0], Q, QUEUE, INDEX),
    "k: expected shape [2, 6, *S] torch.float32 on cpu, got (1, 6, 12) torch.float32 on cpu": (Q, Q[:1], QUEUE, INDEX),
    "queue: expected shape [K, 6], got (20, 7)": (Q, Q, torch.ones(K, D + 1), INDEX),
    "queue: expected shape [K, 6] (give a [D, K] buffer as its transpose, which costs nothing), got (6, 20)": (
        Q, Q, QUEUE.T, INDEX),
    "match: expected 'feature', or the correspondence that geometric_match or random_match gives, got 'geometry'": (
        Q, Q, QUEUE, "geometry"),
    "feat_q: expected a tensor, got NoneType": (Q, Q, QUEUE, "feature"),
    "match: expected int64 indices, a Correspondence, a DenseMatch, or 'feature', got NoneType": (Q, Q, QUEUE, None),
    "match: expected a tensor of torch.int64, got torch.int32": (Q, Q, QUEUE, INDEX.int()),
    "match: expected shape [2, 12], got (2, 11)": (Q, Q, QUEUE, INDEX[:, 1:]),
    "match.valid: expected a tensor of torch.bool, got torch.int64": (Q, Q, QUEUE, Correspondence(INDEX, INDEX)),
    "match: expected positions below 12, those of k, got 12": (Q, Q, QUEUE, INDEX + H * W),
}  # fmt: skip


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_named(message):
    with pytest.raises((TypeError, ValueError)) as caught:
        avfast.dense_contrastive(*MISTAKES[message])
    assert str(caught.value) == f"avfast.dense_contrastive: {message}"


def test_an_index_outside_the_key_map_does_no_harm_where_it_is_left_out():
    valid = torch.ones_like(INDEX, dtype=torch.bool)
    valid[0, 0] = False
    far = INDEX.clone()
    far[0, 0] = H * W
    expected = avfast.dense_contrastive(Q, Q, QUEUE, torch.where(valid, INDEX, -1))
    assert torch.equal(avfast.dense_contrastive(Q, Q, QUEUE, Correspondence(far, valid)), expected)


def test_vmap_equals_a_loop():
    """Pairs of images one by one; indices have no one value there, so they are not looked at."""
    (q, k), queue = maps(torch.float32), negatives(torch.float32)

    def loss(q, k, match):
        return avfast.dense_contrastive(q[None], k[None], queue, match[None])

    expected = torch.stack([loss(*each) for each in zip(q, k, indices(), strict=True)])
    torch.testing.assert_close(torch.func.vmap(loss)(q, k, indices()), expected)


def test_maps_only_where_features_are_matched():
    with pytest.raises(ValueError, match="feat_q, feat_k: expected maps only for match='feature'"):
        avfast.dense_contrastive(Q, Q, QUEUE, INDEX, feat_q=Q)
