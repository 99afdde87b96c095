"""Symmetric InfoNCE of two batches, forward and backward: CLIP's loss, and Sound2Scene's by Euclidean distance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .candidate import PEER, PUBLISHED, Candidate, Case
from .opponents import compiled_step, eager_step, ours
from .pairs import Pairs, pairs, through_unit, unit

TEMPERATURE = 0.07
CHUNK = 256

#: (N, D)
SHAPES = {
    "clip": (8192, 512),
    "audio-visual": (2048, 256),
    "small": (1024, 128),
}
SOUND2SCENE = {"l2-64": (64, 2048), "l2-256": (256, 2048)}
#: Its image features are constants: only those of sounds are trained.
FROZEN = {f"{name}-frozen": shape for name, shape in SOUND2SCENE.items()}


def _cross_entropies(logits: Tensor) -> Tensor:
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def published(n: Pairs) -> Tensor:
    """As in CLIP: one matrix of logits, cross-entropy over its rows and over its columns."""
    return _cross_entropies(F.normalize(n.z_a, dim=1) @ F.normalize(n.z_b, dim=1).T / TEMPERATURE)


def lean(n: Pairs) -> Tensor:
    """The positives by themselves, so that only the two log-sum-exps read the logits; summed in float32."""
    a, b = F.normalize(n.z_a, dim=1), F.normalize(n.z_b, dim=1)
    logits = (a @ b.T).float() / TEMPERATURE
    positive = (a * b).sum(1).float() / TEMPERATURE
    return ((logits.logsumexp(0) + logits.logsumexp(1)) / 2 - positive).mean()


def chunked_linear(n: Pairs) -> Tensor:
    """torch's chunked linear cross-entropy, once per direction, with chunks of the length that suits it here."""
    a, b = F.normalize(n.z_a, dim=1), F.normalize(n.z_b, dim=1)
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK)
    labels = torch.arange(len(a), device=a.device)
    directions = (F.linear_cross_entropy(x / TEMPERATURE, y, labels, options=options) for x, y in ((a, b), (b, a)))
    return sum(directions) / 2


def no_chunked_linear() -> str | None:
    return None if hasattr(F, "linear_cross_entropy") else f"torch {torch.__version__} has no linear_cross_entropy"


def published_l2(n: Pairs) -> Tensor:
    """As in Sound2Scene: minus the distances of unit vectors."""
    distance = torch.cdist(F.normalize(n.z_a, dim=1), F.normalize(n.z_b, dim=1))
    return _cross_entropies(-distance.clamp_min(1e-6))


def lean_l2(n: Pairs) -> Tensor:
    """Distances of unit vectors from their products."""
    products = F.normalize(n.z_a, dim=1) @ F.normalize(n.z_b, dim=1).T
    logits = -(2 - 2 * products).clamp_min(1e-12).sqrt()
    return ((logits.logsumexp(0) + logits.logsumexp(1)) / 2 - logits.diagonal()).mean()


def avfast_loss(n: Pairs) -> Tensor:
    import avfast

    return avfast.info_nce(n.z_a, n.z_b, temperature=TEMPERATURE)


def avfast_l2(n: Pairs) -> Tensor:
    import avfast

    return avfast.info_nce(n.z_a, n.z_b, temperature=1.0, distance="l2")


def oracle(n: Pairs, *, l2: bool = False) -> dict[str, Tensor]:
    """Float64, gradients in closed form."""
    (a, length_a), (b, length_b) = unit(n.z_a), unit(n.z_b)
    products = a @ b.T
    logits = -(2 - 2 * products).sqrt() if l2 else products / TEMPERATURE
    rows, columns = logits.logsumexp(1, keepdim=True), logits.logsumexp(0, keepdim=True)
    weights = (logits - rows).exp_().add_((logits - columns).exp_())
    weights.diagonal().sub_(2)
    weights /= 2 * len(a)
    # d logits / d product: 1 / distance for minus the distance of unit vectors
    weights *= -1 / logits if l2 else 1 / TEMPERATURE
    exact = {
        "output": ((rows.flatten() + columns.flatten()) / 2 - logits.diagonal()).mean(),
        "d_z_a": through_unit(weights @ b, a, length_a),
        "d_z_b": through_unit(weights.T @ a, b, length_b),
    }
    if not n.z_b.requires_grad:
        del exact["d_z_b"]
    return exact


def _case(name: str, shape: tuple[int, int], dtype: torch.dtype, device: str, candidates, l2: bool = False) -> Case:
    rows, width = shape
    forward = avfast_l2 if l2 else avfast_loss
    slow = 5 if rows >= 8192 else 0
    frozen = name in FROZEN
    # One product for each gradient, and the logits: once where they are kept for backward, else twice.
    kept = rows <= 2048 and dtype != torch.bfloat16 and device == "cpu"
    products = (1 if kept else 2) + (1 if frozen else 2)
    return Case(
        op="info_nce",
        shape_name=name,
        shape=shape,
        inputs=lambda: pairs(rows, width, dtype, device, frozen=frozen),
        oracle=lambda n: oracle(n, l2=l2),
        candidates=(*candidates, *ours("info_nce", lambda n: n.step(forward), dict, device, backends=not slow)),
        mode="forward+backward",
        dtype=dtype,
        device=device,
        bytes_moved=4 * rows * width * dtype.itemsize,
        flops=2 * products * rows * rows * width,
        traffic="fma",
        slow_rounds=slow,
    )


def case(name: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Case:
    """Cosine. In bfloat16 everybody's products are of bfloat16 operands."""
    candidates = (
        eager_step("eager", published, PUBLISHED),
        eager_step("lean", lean),
        Candidate("linear_cross_entropy", lambda n: n.step(chunked_linear), PEER, missing=no_chunked_linear),
        compiled_step("eager", published, device, slow=name == "small"),
        compiled_step("lean", lean, device, slow=name == "small"),
    )
    return _case(name, SHAPES[name], dtype, device, candidates)


def l2_case(name: str, device: str = "cpu") -> Case:
    candidates = (
        eager_step("cdist", published_l2, PUBLISHED),
        eager_step("products", lean_l2),
        compiled_step("cdist", published_l2, device),
        compiled_step("products", lean_l2, device),
    )
    return _case(name, {**SOUND2SCENE, **FROZEN}[name], torch.float32, device, candidates, l2=True)


def cases(device: str = "cpu") -> list[Case]:
    return [
        *(case(name, device=device) for name in SHAPES),
        case("audio-visual", torch.bfloat16, device),
        *(l2_case(name, device) for name in (*SOUND2SCENE, *FROZEN)),
    ]


def test_info_nce(case, candidate, measure):
    measure(case, candidate)
