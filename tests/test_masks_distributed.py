"""Masks of two processes are those of one: the draw and its ratio belong to the clip, wherever it is read."""

from __future__ import annotations

import json
import socket
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from avfast import mask_patches, mask_ratio
from avfast.nn.confidences import Confidences
from avfast.ops._counter import content_key

IDS = [f"clip {i}" for i in range(12)]
RULE = partial(mask_ratio, threshold=0.2, eta=3.0, rho=0.9)


def files(folder) -> list[str]:
    paths = []
    for name, shift in (("audio", 0), ("video", 5)):
        means = {id: ((7 * i + shift) % 12) / 11 for i, id in enumerate(IDS)}
        (folder / f"{name}.json").write_text(json.dumps({"confidence": means}))
        paths.append(str(folder / f"{name}.json"))
    return paths


def masked(rows: list[int], paths: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames ``[B, T, C, H, W]`` of these clips, audio side masked as stage 2 does it."""
    keys = torch.tensor([content_key(IDS[i]) for i in rows])
    ratio = Confidences.read(*paths).ratios(keys, mean=False, of=RULE)[0]
    pictures = torch.stack([torch.full((2, 1, 16, 16), float(i + 1)) for i in rows])
    return mask_patches(pictures, ratio, 2, seed=3, sample_ids=keys, step=9)[0], ratio


def worker(rank: int, port: int, folder: str, paths: list[str]) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    parts = [masked(rows, paths)[0] for rows in (list(range(rank, 8, 2)), list(range(8 + rank, 12, 2)))]
    torch.save(torch.cat(parts), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_mask_what_one_masks(tmp_path):
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this torch has no gloo backend")
    paths = files(tmp_path)
    whole, ratio = masked(list(range(12)), paths)
    assert 0 < (ratio > 0).sum() < 12, "some clips are masked, some are not"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(worker, args=(port, str(tmp_path), paths), nprocs=2)
    for rank in range(2):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pt"), whole[rank::2])


@pytest.mark.parametrize("sizes", [(12,), (1,) * 12, (5, 7), (3, 4, 5)])
def test_any_batch_split(tmp_path, sizes):
    paths = files(tmp_path)
    whole, _ = masked(list(range(12)), paths)
    parts, first = [], 0
    for n in sizes:
        parts.append(masked(list(range(first, first + n)), paths)[0])
        first += n
    assert torch.equal(torch.cat(parts), whole)
