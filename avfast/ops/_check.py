"""Argument checks in one message style: ``avfast.op: argument: expected ..., got ...``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def fail(op: str, argument: str, expected: str, got: object, kind: type[Exception] = ValueError) -> None:
    raise kind(f"avfast.{op}: {argument}: expected {expected}, got {got}")


def floating(op: str, argument: str, x: object) -> None:
    if not isinstance(x, Tensor):
        fail(op, argument, "a tensor", type(x).__name__, TypeError)
    if x.dtype not in FLOATS:
        fail(op, argument, "a floating-point tensor", x.dtype, TypeError)
    strided(op, argument, x)


def strided(op: str, argument: str, x: Tensor) -> None:
    """A tensor that is not sparse."""
    if x.layout is not torch.strided:
        fail(op, argument, "a strided tensor", x.layout, TypeError)


def one_of(op: str, argument: str, value: object, options: tuple[object, ...]) -> None:
    if value not in options:
        fail(op, argument, "one of " + ", ".join(map(repr, options)), repr(value))


def number(op: str, argument: str, value: object, *, above: float = -math.inf, at_least: float = -math.inf) -> None:
    """A finite Python number above (or at least) a bound."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        fail(op, argument, "a number", type(value).__name__, TypeError)
    # Comparisons only: torch.compile may pass a symbolic number, and NaN fails every one of them.
    if not (value > above and value >= at_least and value < math.inf):
        bound = f" > {above:g}" if above > -math.inf else f" >= {at_least:g}" if at_least > -math.inf else ""
        fail(op, argument, f"a finite number{bound}", value)


def readable(x: Tensor) -> bool:
    """Whether values may be looked at: elsewhere the host would wait for the device, a graph would break, or there is
    no one value (under ``torch.func`` transforms and in fake tensors)."""
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return False
    return type(x) in (Tensor, torch.nn.Parameter) and not torch._C._functorch.is_functorch_wrapped_tensor(x)


def differentiated(*tensors: Tensor | None) -> bool:
    """Whether a derivative of these is wanted. With forward-mode derivatives too: a kernel knows none, and would give
    zeros where an autograd function says that it cannot."""
    given = [x for x in tensors if x is not None]
    if torch.autograd.forward_ad._current_level >= 0:
        return any(torch.autograd.forward_ad.unpack_dual(x).tangent is not None or x.requires_grad for x in given)
    return torch.is_grad_enabled() and any(x.requires_grad for x in given)


def vector(op: str, argument: str, x: object, length: int, like: Tensor) -> None:
    """A floating [length] tensor on the device of ``like``."""
    floating(op, argument, x)
    if tuple(x.shape) != (length,):
        fail(op, argument, f"shape ({length},)", tuple(x.shape))
    if x.device != like.device:
        fail(op, argument, f"a tensor on {like.device}", x.device)


def are_vectors(parameters: tuple[Tensor, ...], x: Tensor, dtype: torch.dtype) -> bool:
    """Whether every parameter is a [C] tensor of ``dtype`` beside ``x`` [N, C, *]: the usual case, told cheaply."""
    shape, device = x.shape[1:2], x.device
    for p in parameters:
        if p.shape != shape or p.dtype is not dtype or p.device != device or p.layout is not torch.strided:
            return False
    return True


def like(op: str, argument: str, x: object, other: Tensor, name: str) -> None:
    """A floating tensor of the shape, dtype and device of ``other``, which the message calls ``name``."""
    floating(op, argument, x)
    if x.shape != other.shape or x.dtype != other.dtype or x.device != other.device:
        expected = f"{tuple(other.shape)} {other.dtype} on {other.device}, like {name}"
        fail(op, argument, expected, f"{tuple(x.shape)} {x.dtype} on {x.device}")


def of_colours(op: str, argument: str, given: object, otherwise: float) -> tuple[float, ...]:
    """One finite number for each of red, green and blue; ``given`` may be one for all, three, or None."""
    given = otherwise if given is None else given
    if isinstance(given, Tensor):
        if differentiated(given):
            fail(op, argument, "numbers, as no gradient flows here", "a tensor that requires one")
        given = given.tolist()
    numbers = tuple(given) if isinstance(given, (tuple, list)) else (given,) * 3
    if len(numbers) != 3:
        fail(op, argument, "one number or three", len(numbers))
    for value in numbers:
        number(op, argument, value)
    return numbers
