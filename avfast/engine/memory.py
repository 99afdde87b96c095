"""How much memory a training takes, asked without disturbing it."""

from __future__ import annotations

import os

import torch

_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0


def memory_row() -> dict[str, int]:
    """``rss_mib`` of this process, and ``cuda_peak_mib`` where CUDA is in use; neither waits for a device. Empty where
    the system does not tell."""
    found = {}
    try:
        with open("/proc/self/statm") as handle:
            found["rss_mib"] = int(handle.read().split()[1]) * _PAGE // 2**20
    except (OSError, IndexError, ValueError):  # not Linux
        pass
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["cuda_peak_mib"] = torch.cuda.max_memory_allocated() // 2**20
    return found
