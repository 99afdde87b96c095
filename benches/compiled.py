"""torch.compile as a competitor: only where a compiler works, and never for longer than it was given."""

from __future__ import annotations

import contextlib
import functools
import shutil
import signal
import threading
from collections.abc import Callable, Iterator

import torch


@functools.cache
def missing(device: str = "cpu") -> str | None:
    """None if torch.compile can build code here, else why not. Builds nothing."""
    if torch.device(device).type == "cuda":
        try:
            import triton  # noqa: F401
        except (ImportError, RuntimeError, OSError) as error:
            return f"torch.compile needs Triton on a GPU: {error}"
        return None
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        compiler = get_cpp_compiler()
    except Exception as error:  # torch raises its own private class, which differs between versions
        return f"torch.compile found no working C++ compiler: {str(error).splitlines()[0]}"
    return None if shutil.which(compiler) else f"torch.compile found no working C++ compiler ({compiler})"


def compiled(function: Callable) -> Callable:
    """torch.compile for exact shapes; Inductor bakes in the thread count of this moment."""
    return torch.compile(function, fullgraph=True, dynamic=False)


def forget() -> None:
    """Drop compiled code, for instance before the thread count changes."""
    torch._dynamo.reset()


@contextlib.contextmanager
def thread_count_known(count: int) -> Iterator[None]:
    """Tell Inductor the thread count by name: it is then part of the key of its on-disk cache."""
    try:
        import torch._inductor.config as config
    except Exception:  # a torch without Inductor has nothing to be told
        yield
        return
    with config.patch({"cpp.threads": count}):
        yield


class TooSlow(Exception):
    """A candidate was not ready within its time."""


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise `TooSlow` in the block after ``seconds``; no effect off the main thread."""
    if not seconds or threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def ring(signum, frame):
        raise TooSlow(f"not ready within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
