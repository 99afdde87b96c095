"""Two processes with half a batch each give the gradient of one process with the whole batch."""

from __future__ import annotations

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from avfast.encoders import Encoder
from avfast.methods.av_align import AvAlign, AvAlignConfig

SIZE = 6


def build() -> AvAlign:
    torch.manual_seed(0)
    encoders = {
        "visual": Encoder(nn.Sequential(nn.Conv2d(3, 5, 3, stride=2), nn.Tanh()), 5),
        "audio": Encoder(nn.Sequential(nn.Conv2d(1, 5, 3, stride=2), nn.Tanh()), 5),
    }
    return AvAlign(AvAlignConfig(dim=4), **encoders).double()


def batch(rows: slice):
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(SIZE, 2, 3, 8, 8, generator=generator, dtype=torch.float64)
    sound = torch.randn(SIZE, 1, 8, 8, generator=generator, dtype=torch.float64)
    return {"frames": frames[rows], "spectrogram": sound[rows]}


def worker(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    method = nn.parallel.DistributedDataParallel(build())
    half = SIZE // 2
    method(batch(slice(rank * half, (rank + 1) * half))).loss.backward()
    torch.save({k: p.grad for k, p in method.module.named_parameters()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_gradients_of_the_global_batch(tmp_path):
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this torch has no gloo backend")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(worker, args=(port, str(tmp_path)), nprocs=2)
    whole = build()
    whole(batch(slice(None))).loss.backward()
    for rank in range(2):
        grads = torch.load(tmp_path / f"{rank}.pt")
        for name, parameter in whole.named_parameters():
            torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-10, atol=1e-12)
