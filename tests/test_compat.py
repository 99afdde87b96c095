"""Losses under other libraries' names give the values of those libraries' formulas, written out here in float64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from avfast.compat import lightly, mmselfsup, open_clip, pytorch_metric_learning

N, D = 10, 6


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(x: torch.Tensor) -> torch.Tensor:
    return F.normalize(x, dim=-1)


def check(ours, theirs, *inputs: torch.Tensor) -> None:
    """Value, and the gradient of every input."""
    leaves = [[x.clone().requires_grad_() for x in inputs] for _ in range(2)]
    values = [f(*xs) for f, xs in zip((ours, theirs), leaves, strict=True)]
    torch.testing.assert_close(values[0], values[1], rtol=1e-9, atol=1e-12)
    found, expected = (torch.autograd.grad(v, xs) for v, xs in zip(values, leaves, strict=True))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-12)


# ------------------------------------------------------------------------------------------------- lightly


def nt_xent_formula(a, b, temperature):
    z = torch.cat([unit(a), unit(b)])
    logits = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(2 * len(a)).roll(len(a)))


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_lightly_without_a_bank(temperature):
    loss = lightly.NTXentLoss(temperature)
    check(loss, lambda a, b: nt_xent_formula(a, b, temperature), random(N, D, seed=1), random(N, D, seed=2))
    assert lightly.NTXentLoss().temperature == 0.5


@pytest.mark.parametrize("size", [(32, D), 32], ids=["made at once", "made by the first batch"])
def test_lightly_with_a_bank(size):
    loss = lightly.NTXentLoss(0.3, memory_bank_size=size)
    a, b = random(N, D, seed=1), random(N, D, seed=2)
    loss(a, b)  # no gradient: nothing joins
    bank = loss.memory_bank.negatives().double().clone()
    assert bank.shape == (32, D) and loss.memory_bank.filled == 0

    def formula(out0, out1):
        positive = (unit(out0) * unit(out1)).sum(1, keepdim=True)
        logits = torch.cat([positive, unit(out0) @ bank.T], 1) / 0.3
        return F.cross_entropy(logits, torch.zeros(len(out0), dtype=torch.int64))

    fresh = copy.deepcopy(loss)
    check(lambda *x: copy.deepcopy(fresh)(*x), formula, a, b)
    loss(a.requires_grad_(), b)
    torch.testing.assert_close(loss.memory_bank.negatives()[:N].double(), unit(b), rtol=0, atol=1e-6)
    assert torch.equal(loss.memory_bank.negatives()[N:].double(), bank[N:])
    for _ in range(4):
        loss(a, b)  # past the end, where the batch does not fit
    assert loss.memory_bank.filled == 1


def test_a_bank_is_saved_and_loaded_whoever_made_it():
    """A loss that was told only the number of rows takes the width from the saved bank."""
    trained = lightly.NTXentLoss(memory_bank_size=32)
    trained(random(N, D, seed=1).requires_grad_(), random(N, D, seed=2))
    for size in (32, (32, D)):
        resumed = lightly.NTXentLoss(memory_bank_size=size)
        resumed.load_state_dict(trained.state_dict())
        assert torch.equal(resumed.memory_bank.negatives(), trained.memory_bank.negatives())
        assert resumed.memory_bank.filled == N / 32
    with pytest.raises(RuntimeError, match="size mismatch for memory_bank.rows"):
        lightly.NTXentLoss(memory_bank_size=16).load_state_dict(trained.state_dict())


def test_lightly_against_itself():
    library = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    check(lightly.NTXentLoss(0.2), library.NTXentLoss(0.2), random(N, D, seed=1), random(N, D, seed=2))


# ----------------------------------------------------------------------------------------------- open_clip


def clip_formula(image, text, scale):
    logits, own = scale * image @ text.T, torch.arange(len(image))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def test_clip():
    image, text = (unit(random(N, D, seed=seed)) for seed in (1, 2))
    scale = torch.tensor(14.0, dtype=torch.float64)
    check(open_clip.ClipLoss(), clip_formula, image, text, scale)
    # Features come as they are: of another length they give another loss.
    check(open_clip.ClipLoss(), clip_formula, 1.3 * image, 0.7 * text, scale)


def test_clip_with_a_bias_and_a_dictionary():
    image, text = (unit(random(N, D, seed=seed)) for seed in (1, 2))
    bias = torch.tensor(-3.0, dtype=torch.float64, requires_grad=True)
    found = open_clip.ClipLoss()(image, text, 14.0, logit_bias=bias, output_dict=True)
    assert list(found) == ["contrastive_loss"]
    torch.testing.assert_close(found["contrastive_loss"], clip_formula(image, text, 14.0))
    found["contrastive_loss"].backward()
    assert bias.grad == 0


def test_siglip():
    def formula(image, text, scale, bias):
        signs = 2 * torch.eye(len(image), dtype=image.dtype) - 1
        return -F.logsigmoid(signs * (scale * image @ text.T + bias)).sum() / len(image)

    image, text = (unit(random(N, D, seed=seed)) for seed in (1, 2))
    scalars = [torch.tensor(x, dtype=torch.float64) for x in (10.0, -10.0)]
    check(open_clip.SigLipLoss(), formula, image, text, *scalars)
    assert list(open_clip.SigLipLoss()(image, text, *scalars, output_dict=True)) == ["contrastive_loss"]


# ------------------------------------------------------------------------------- pytorch-metric-learning


def pairs_formula(z, labels, temperature, other=None, other_labels=None):
    """Pair by pair, as the library documents it."""
    own = other is None
    columns, column_labels = (z, labels) if own else (other, other_labels)
    s = torch.exp(unit(z) @ unit(columns).T / temperature)
    terms = []
    for a in range(len(z)):
        negatives = sum((s[a, n] for n in range(len(columns)) if column_labels[n] != labels[a]), s.new_zeros(()))
        for p in range(len(columns)):
            if column_labels[p] == labels[a] and not (own and a == p):
                terms.append(-torch.log(s[a, p] / (s[a, p] + negatives)))
    return torch.stack(terms).mean()


LABELS = {
    "two views": torch.arange(5).repeat(2),
    "several positives": torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 3, 3]),
    "some alone": torch.tensor([0, 0, 1, 2, 3, 4, 5, 6, 7, 7]),
}


@pytest.mark.parametrize("kind", LABELS)
def test_metric_learning(kind):
    labels = LABELS[kind]
    loss = pytorch_metric_learning.NTXentLoss(0.2)
    check(lambda z: loss(z, labels), lambda z: pairs_formula(z, labels, 0.2), random(N, D, seed=1))


def test_metric_learning_against_references():
    labels, others = LABELS["several positives"], torch.tensor([0, 1, 2, 3, 3, 9])
    loss = pytorch_metric_learning.NTXentLoss()
    assert loss.temperature == 0.07
    check(
        lambda z, other: loss(z, labels, ref_emb=other, ref_labels=others),
        lambda z, other: pairs_formula(z, labels, 0.07, other, others),
        random(N, D, seed=1), random(6, D, seed=2),
    )  # fmt: skip


def test_metric_learning_without_a_positive_or_a_negative():
    z = random(N, D, seed=1).requires_grad_()
    loss = pytorch_metric_learning.NTXentLoss(0.2)
    for labels in (torch.arange(N), torch.zeros(N, dtype=torch.int64)):
        value = loss(z, labels)
        value.backward()
        assert value == 0 and not z.grad.any()


MINED = {
    "pairs": ([0, 0, 3, 7], [1, 2, 4, 6], [0, 3, 3, 5], [5, 9, 8, 1]),
    "triplets": ([0, 0, 3, 3], [1, 1, 4, 4], [5, 9, 8, 8]),  # one of them twice
    "no positive": ([], [], [0], [5]),
    "no negative": ([0], [1], [], []),
}


@pytest.mark.parametrize("kind", MINED)
@pytest.mark.parametrize("referred", [False, True], ids=["own rows", "references"])
def test_metric_learning_with_a_miner(kind, referred):
    mined = tuple(torch.tensor(rows, dtype=torch.int64) for rows in MINED[kind])
    anchor, positive, of_negative, negative = mined if len(mined) == 4 else (*mined[:2], mined[0], mined[2])

    def formula(z, other):
        s = torch.exp(unit(z) @ unit(other).T / 0.2)
        terms = []
        for a, p in zip(anchor, positive, strict=True):
            negatives = sum((s[a, n] for b, n in zip(of_negative, negative, strict=True) if b == a), s.new_zeros(()))
            terms.append(-torch.log(s[a, p] / (s[a, p] + negatives)))
        return torch.stack(terms).mean() if terms else 0 * (z.sum() + other.sum())

    loss = pytorch_metric_learning.NTXentLoss(0.2)
    z, other = random(N, D, seed=1), random(N, D, seed=2)
    if referred:
        check(lambda z, other: loss(z, None, mined, ref_emb=other), formula, z, other)
    else:
        check(lambda z: loss(z, None, mined), lambda z: formula(z, z), z)


def test_metric_learning_of_nothing_and_under_autocast():
    loss = pytorch_metric_learning.NTXentLoss(0.2)
    none = torch.empty(0, D, requires_grad=True)
    assert loss(none, torch.empty(0, dtype=torch.int64)) == 0
    z, labels = random(N, D, seed=1).float(), LABELS["several positives"]
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(z, labels)
    assert torch.equal(found, loss(z, labels))


@pytest.mark.parametrize("kind", LABELS)
def test_metric_learning_against_itself(kind):
    library = pytest.importorskip("pytorch_metric_learning.losses", reason="pytorch-metric-learning is not installed")
    labels = LABELS[kind]
    ours, theirs = pytorch_metric_learning.NTXentLoss(0.2), library.NTXentLoss(0.2)
    check(lambda z: ours(z, labels), lambda z: theirs(z, labels), random(N, D, seed=1))


# ----------------------------------------------------------------------------------------------- mmselfsup


def test_densecl():
    loss = mmselfsup.DenseCL(queue_len=12, feat_dim=D, loss_lambda=0.3).double()
    queue, queue2 = loss.queue.negatives().clone(), loss.queue2.negatives().clone()
    assert not torch.equal(queue, queue2)
    feature_q, feature_k = random(4, 7, 9, seed=1), random(4, 7, 9, seed=2)
    q, grid_q, k, grid_k = random(4, D, seed=3), random(4, D, 9, seed=4), random(4, D, seed=5), random(4, D, 9, seed=6)

    def head(positive, negative):
        logits = torch.cat([positive, negative], 1) / 0.2
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64))

    def formula(q, grid_q):
        single = head((unit(q) * unit(k)).sum(1, keepdim=True), unit(q) @ queue.T)
        at = (F.normalize(feature_q, dim=1).transpose(1, 2) @ F.normalize(feature_k, dim=1)).argmax(2)
        keys = F.normalize(grid_k, dim=1).gather(2, at[:, None].expand(-1, D, -1))
        rows = F.normalize(grid_q, dim=1)
        positive = (rows * keys).sum(1).reshape(-1, 1)
        dense = head(positive, rows.transpose(1, 2).reshape(-1, D) @ queue2.T)
        return 0.7 * single + 0.3 * dense

    start = copy.deepcopy(loss)

    def ours(q, grid_q):
        parts = copy.deepcopy(start)(feature_q, (q, grid_q, None), feature_k, (k, grid_k, grid_k.mean(2)))
        return parts["loss_single"] + parts["loss_dense"]

    check(ours, formula, q, grid_q)
    loss(feature_q, (q, grid_q, None), feature_k, (k, grid_k, grid_k.mean(2)))
    torch.testing.assert_close(loss.queue.negatives()[:4], unit(k))
    torch.testing.assert_close(loss.queue2.negatives()[:4], unit(grid_k.mean(2)))


def test_densecl_momentum_is_the_share_of_new_weights():
    new, old = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(new.weight), torch.nn.init.zeros_(old.weight)
    mmselfsup.DenseCL(4, 2).update(new, old)
    assert old.weight.item() == pytest.approx(0.001)


# ------------------------------------------------------------------------------------------------ mistakes


Z = torch.eye(4)
MISTAKES = {
    "temperature of zero": (lambda: lightly.NTXentLoss(0.0), "lightly.NTXentLoss: temperature: expected"),
    "negative bank": (lambda: lightly.NTXentLoss(memory_bank_size=-1), "lightly.NTXentLoss: memory_bank_size: "),
    "horovod": (lambda: open_clip.ClipLoss(use_horovod=True), "open_clip.ClipLoss: use_horovod: expected False"),
    "local loss without the columns' gradient": (
        lambda: open_clip.ClipLoss(local_loss=True, world_size=2), "open_clip.ClipLoss: gather_with_grad: "),
    "processes that are not there": (
        lambda: open_clip.ClipLoss(rank=1, world_size=2)(Z, Z, 1.0),
        "open_clip.ClipLoss: rank, world_size: expected 1, 2 as torch.distributed says, got 0, 1 there"),
    "a scale of zero": (lambda: open_clip.ClipLoss()(Z, Z, 0.0), "open_clip.ClipLoss: logit_scale: expected a finite"),
    "unknown exchange": (lambda: open_clip.SigLipLoss(dist_impl="ring"), "open_clip.SigLipLoss: dist_impl: "),
    "a miner of another kind": (
        lambda: pytorch_metric_learning.NTXentLoss()(Z, torch.arange(4), indices_tuple=(Z,) * 2),
        "pytorch_metric_learning.NTXentLoss: indices_tuple: expected (anchor, positive, anchor, negative) or "),
    "too few labels": (
        lambda: pytorch_metric_learning.NTXentLoss()(Z, torch.arange(3)),
        "pytorch_metric_learning.NTXentLoss: labels: expected shape [4], got (3,)"),
    "no labels": (
        lambda: pytorch_metric_learning.NTXentLoss()(Z),
        "pytorch_metric_learning.NTXentLoss: labels: expected a tensor, got NoneType"),
    "references of another width": (
        lambda: pytorch_metric_learning.NTXentLoss()(Z, torch.arange(4), ref_emb=Z[:, 1:], ref_labels=torch.arange(4)),
        "pytorch_metric_learning.NTXentLoss: ref_emb: expected shape [M, 4], got (4, 3)"),
    "a bank of a word": (
        lambda: lightly.NTXentLoss(memory_bank_size="4096"),
        "lightly.NTXentLoss: memory_bank_size: expected rows >= 0, or (rows, width), got '4096'"),
    "references without labels": (
        lambda: pytorch_metric_learning.NTXentLoss()(Z, torch.arange(4), ref_emb=Z),
        "pytorch_metric_learning.NTXentLoss: ref_emb, ref_labels: expected both or neither"),
    "momentum of the other convention": (
        lambda: mmselfsup.DenseCL(momentum=0.999),
        "mmselfsup.DenseCL: momentum: expected a number in [0, 0.5], the share of new weights, got 0.999"),
    "lambda above one": (lambda: mmselfsup.DenseCL(loss_lambda=1.5), "mmselfsup.DenseCL: loss_lambda: expected"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake):
    make, message = MISTAKES[mistake]
    with pytest.raises((TypeError, ValueError)) as caught:
        make()
    assert str(caught.value).startswith(f"avfast.compat.{message}")
