"""What is compared: a `Case` is one op on one input, a `Candidate` is one way of computing it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

#: Who a candidate is. Every role in OPPONENTS counts towards the headline, which is the *worst* ratio.
PUBLISHED = "published"  # the formulation as its paper or repository writes it, in eager PyTorch: the baseline
LEAN = "lean"  # the leanest plain PyTorch we can write
COMPILED = "compiled"  # torch.compile of either
PEER = "peer"  # the named competitor at its best documented setting
OURS = "ours"  # avfast as a user gets it
BACKEND = "backend"  # avfast held to one backend, or called in another way: shown, never a headline
CONTEXT = "context"  # shown for scale only, does other work (it is not checked against the answer)
OPPONENTS = (PUBLISHED, LEAN, COMPILED, PEER)

Call = Callable[[], Any]
Answer = Mapping[str, torch.Tensor]


def _as_it_is(result: Any) -> Answer:
    return result


def _never() -> None:
    return None


@dataclass(frozen=True)
class Candidate:
    """One way of computing a case.

    ``prepare(inputs)`` does what a user does once (build a plan, compile) and returns the call that is timed.
    ``view(result)`` names the outputs of that call for the check; it runs outside the timed region, so a
    candidate is never charged for the layout in which answers are compared.
    ``missing()`` returns None, or the reason in words why this candidate cannot run here.
    ``scope`` is entered around every slice of timing (a forced backend, autocast) and is not timed itself.
    """

    name: str
    prepare: Callable[[Any], Call]
    role: str
    view: Callable[[Any], Answer] = _as_it_is
    scope: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    missing: Callable[[], str | None] = _never
    slow: bool = False  # left out unless asked for (compiling networks or shapes of tests, many seconds per call)


@dataclass(frozen=True)
class Case:
    """One op, one shape, one dtype, one device, and everybody who competes on it.

    ``inputs()`` returns fresh, equal inputs at every call (seeded), because training-mode ops change buffers.
    ``oracle(inputs)`` is the answer in float64, from an independent formula.
    ``bytes_moved`` is the least traffic the op can do and ``flops`` the least arithmetic; ``traffic`` names the
    ceiling it is held against: bytes by ``"read"`` or ``"copy"``, flops by ``"fma"``.
    """

    op: str
    shape_name: str
    shape: tuple[int, ...]
    inputs: Callable[[], Any]
    oracle: Callable[[Any], Answer]
    candidates: tuple[Candidate, ...]
    mode: str = "forward"
    layout: str = "contiguous"
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    bytes_moved: int = 0
    flops: int = 0
    traffic: str = "read"
    exact: tuple[str, ...] = field(default=())  # outputs that must match bit for bit (masks, counts)
    slow_rounds: int = 0  # calls take about a second: so many rounds on a CPU, and on the most threads only
    least_allowance: float = 0.0  # relative error nobody can help (ReLU kinks deep inside a network)

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def key(self) -> str:
        """Stable name of the case, the same on every machine and commit."""
        return "/".join((self.op, self.shape_name, self.layout, self.dtype_name, self.mode, self.device))
