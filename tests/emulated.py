"""Builds the host-run CUDA kernels and calls them: what test_cuda_emulator.py stands on."""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "kernels" / "batch_norm"
CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-shared"]
TRAPS = ["-fsanitize=bounds,shift,signed-integer-overflow", "-fsanitize-undefined-trap-on-error"]
CANARY = 64  # bytes after the workspace


def build(folder: Path) -> ctypes.CDLL:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler on the PATH: the CUDA emulator cannot be built")
    here, out = ROOT / "tests" / "cuda_emulator", folder / "batch_norm.so"
    sources = [here / "batch_norm.cpp", *sorted(KERNELS.glob("*_cuda.cu"))]
    command = [compiler, *FLAGS, *TRAPS, f"-I{here}", "-x", "c++", *map(str, sources), "-o", str(out)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-4000:]
    loaded = ctypes.CDLL(str(out))
    for name in ("stats", "blended_fwd", "blended_bwd", "affine_bwd"):
        getattr(loaded, f"{name}_workspace").restype = ctypes.c_int64
    loaded.emulator_launches.restype = ctypes.c_int64
    return loaded


class Shape(ctypes.Structure):
    _fields_ = [(n, ctypes.c_int64) for n in ("samples", "channels", "positions")] + [
        ("order", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
    ]


class Params(ctypes.Structure):
    _fields_ = [(n, ctypes.c_void_p) for n in ("weight", "bias", "new_weight", "new_bias", "alpha")] + [
        ("alpha_per_channel", ctypes.c_bool)
    ]


class Layer(ctypes.Structure):
    _fields_ = [(n, ctypes.c_void_p) for n in ("weight", "bias", "running_mean", "running_var")] + [
        ("channels", ctypes.c_int64),
        ("offset", ctypes.c_int64),
        ("affine_dtype", ctypes.c_int32),
        ("stats_dtype", ctypes.c_int32),
    ]


def stored(x: torch.Tensor, order: str, offset: int = 0) -> torch.Tensor:
    """x [N, C, S] in memory as `order` says, `offset` elements past an aligned address; NaN around it."""
    flat = (x if order == "rows" else x.transpose(1, 2)).contiguous().reshape(-1)
    room = torch.full((flat.numel() + 32 + offset,), math.nan, dtype=x.dtype)
    assert room.data_ptr() % 16 == 0
    view = room[16 + offset : 16 + offset + flat.numel()]
    view.copy_(flat)
    return view


def restored(flat: torch.Tensor, x: torch.Tensor, order: str) -> torch.Tensor:
    n, c, s = x.shape
    return flat.reshape(n, c, s) if order == "rows" else flat.reshape(n, s, c).transpose(1, 2)


def shape_of(x, order):
    return Shape(*x.shape, 0 if order == "rows" else 1, CODES[x.dtype])


def pointer(t: torch.Tensor):
    return ctypes.c_void_p(t.data_ptr())


def cut(lib, x, order, flat):
    facts = (ctypes.c_int64 * 6)()
    lib.cut(ctypes.byref(shape_of(x, order)), pointer(flat), facts)
    names = ("count", "segments", "samples_per_slice", "width", "tile_packs", "blocks")
    return dict(zip(names, facts, strict=True))


def both_orders(lib, run, outputs):
    """Runs with ascending and descending threads on poisoned outputs; returns them after comparing bits."""
    results = []
    for descending in (False, True):
        lib.emulator_descending(ctypes.c_bool(descending))
        for t in outputs:
            t.view(torch.uint8).fill_(0xFF)
        assert run() == 0
        results.append([t.clone() for t in outputs])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8)), "results depend on the order of threads"
    return results[0]


class Workspace:
    def __init__(self, nbytes: int):
        self.nbytes = nbytes
        self.data = torch.full((nbytes + CANARY,), 0xFF, dtype=torch.uint8)

    def check(self):
        assert (self.data[self.nbytes :] == 0xFF).all(), "the workspace is smaller than what the kernel writes"
