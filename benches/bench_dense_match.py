"""Which cell of the other view is most similar? The correspondence of DenseCL, from the backbone's maps."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from .candidate import LEAN, Case
from .opponents import compile_of, ours, plain

#: (B, C, S)
SHAPES = {
    "resnet50": (32, 2048, 49),
    "small": (8, 64, 36),
}

Maps = tuple[Tensor, Tensor]


@functools.lru_cache(maxsize=1)  # nobody writes to it
def maps(shape: tuple[int, int, int], dtype: torch.dtype) -> Maps:
    """Maps after a ReLU; every cell of the second is one of the first under noise."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(shape, generator=generator).relu()
    where = torch.randint(shape[2], (shape[0], 1, shape[2]), generator=generator)
    second = first.gather(2, where.expand(shape)) + torch.randn(shape, generator=generator).relu()
    return first.to(dtype), second.to(dtype)


def published(m: Maps) -> Maps:
    """Both maps normalised, all products, their maximum."""
    q, k = (F.normalize(x, dim=1) for x in m)
    similarity, index = torch.bmm(q.transpose(1, 2), k).max(2)
    return index, similarity


def lean(m: Maps) -> Maps:
    """No map is normalised: the length of a query changes no argmax, and that of a key divides its scores."""
    q, k = m
    scores = torch.bmm(q.transpose(1, 2), k).float() / k.norm(dim=1, keepdim=True, dtype=torch.float32)
    best, index = scores.max(2)
    return index, best / q.norm(dim=1, dtype=torch.float32)


def avfast_match(m: Maps):
    import avfast

    return lambda: avfast.dense_match(*m)


def view(result: Maps) -> dict[str, Tensor]:
    return dict(zip(("index", "similarity"), result, strict=True))


def oracle(m: Maps) -> dict[str, Tensor]:
    q, k = (x.double() for x in m)
    cosine = torch.einsum("bcs,bcl->bsl", q / q.norm(dim=1, keepdim=True), k / k.norm(dim=1, keepdim=True))
    similarity, index = cosine.max(2)
    return view((index, similarity))


def case(name: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Case:
    b, c, s = shape = SHAPES[name]
    return Case(
        op="dense_match",
        shape_name=name,
        shape=shape,
        inputs=lambda: tuple(x.to(device) for x in maps(shape, dtype)),
        oracle=oracle,
        candidates=(
            plain("eager", published, view),
            plain("lean", lean, view, LEAN),
            compile_of("eager", published, view, device, slow=name == "small"),
            compile_of("lean", lean, view, device, slow=name == "small"),
            *ours("dense_match", avfast_match, view, device),
        ),
        dtype=dtype,
        device=device,
        bytes_moved=2 * b * c * s * dtype.itemsize,
        flops=2 * b * c * s * s,
    )


def cases(device: str = "cpu") -> list[Case]:
    return [case("resnet50", device=device), case("resnet50", torch.bfloat16, device), case("small", device=device)]


def test_dense_match(case, candidate, measure):
    measure(case, candidate)
