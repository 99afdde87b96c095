"""Is the answer right? Errors against float64, and the allowance a candidate must stay within to be timed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .candidate import Answer


@dataclass(frozen=True)
class Error:
    """Distance of one output from the float64 answer."""

    relative: float  # ||a - b||_2 / ||b||_2; for masks and counts the fraction of entries that differ
    largest: float  # max |a - b|

    def to_dict(self) -> dict:
        return {"relative": self.relative, "largest": self.largest}


def error_of(actual: torch.Tensor, expected: torch.Tensor) -> Error:
    """Error of one output. NaN and infinity are errors unless the answer has the same in the same place."""
    actual, expected = actual.detach().cpu(), expected.detach().cpu()
    if actual.shape != expected.shape:
        raise ValueError(f"expected shape {tuple(expected.shape)}, got {tuple(actual.shape)}")
    if expected.numel() == 0:
        return Error(0.0, 0.0)
    if not expected.is_floating_point():
        differ = actual.to(torch.float64) != expected.to(torch.float64)
        return Error(differ.double().mean().item(), float(differ.any()))
    actual, expected = actual.double(), expected.double()
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    distance = torch.where(same, torch.zeros_like(expected), (actual - expected).abs())
    if not distance.isfinite().all():
        return Error(float("inf"), float("inf"))
    scale = torch.where(expected.isfinite(), expected, torch.zeros_like(expected)).norm().item()
    return Error(distance.norm().item() / max(scale, torch.finfo(torch.float64).tiny), distance.max().item())


def errors_of(actual: Answer, expected: Answer) -> dict[str, Error]:
    """Errors of all outputs. A missing or superfluous output raises: all candidates do equal work."""
    if set(actual) != set(expected):
        raise ValueError(f"expected outputs {sorted(expected)}, got {sorted(actual)}")
    return {name: error_of(actual[name], expected[name]) for name in expected}


def allowance(dtype: torch.dtype, baseline: Error | None, *, exact: bool = False, least: float = 0.0) -> float:
    """The relative error allowed: half of the digits of the dtype, or three times the published form's error.

    Wide on purpose: torch's own kernels lose that much in places, and an opponent must be timed with its
    error beside it, not struck out to our advantage. How exact avfast itself is, the tests say.
    ``least`` raises the allowance.
    """
    if exact:
        return 0.0
    eps = torch.finfo(dtype).eps if dtype.is_floating_point else 2.0**-8  # bytes
    return max(eps**0.5, 3 * baseline.relative if baseline else 0.0, least)


def objection(
    errors: dict[str, Error],
    baseline: dict[str, Error] | None,
    dtype: torch.dtype,
    exact: tuple[str, ...] = (),
    least: float = 0.0,
) -> str | None:
    """None if every output is within its allowance, else what is wrong, in words."""
    for name, error in errors.items():
        reference = baseline.get(name) if baseline else None
        allowed = allowance(dtype, reference, exact=name in exact, least=least)
        if not error.relative <= allowed:
            return f"wrong answer: {name} has relative error {error.relative:.2e}, allowed {allowed:.2e}"
    return None
