"""Every public op on tensors of any size, layout and value: the reference's answer or an error that names the op."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import avfast

from .hostile_tensors import INCOMPARABLE, Draw, Seeded, laid_out
from .op_specs import SPECS, Call, Maker
from .rows import Row

UNIT, SMALL, LONG, MINUTES = "calls", 400, 200_000, 30

# Largest difference from the reference, over 1 + the largest number of the answer: not precision, which other tests
# hold, but the wrong element.
CLOSE = {torch.float64: 1e-8, torch.float32: 2e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}
# The reference multiplies by weights that are 0, and 0 times NaN is NaN; kernels do not read what has no weight.
UNREAD = ("upsample_cross_entropy", "rotated_box_bce", "crop_exemplars", "masked_fusion")
# What is wrong with an argument, where something is made to be.
WRONGS = ("dtype", "device", "dimensions", "size", "layout")
# What torch itself says of such arguments, before an op of avfast sees them.
KNOWN = (ValueError, TypeError, RuntimeError)


def check(size: int, seed: int, say: Callable[[str], None], backend: str = "auto") -> list[Row]:
    """``size`` calls, ops in turn; one in four with something wrong in its arguments."""
    began, failures, outcomes = time.monotonic(), [], Counter()
    names = tuple(SPECS)
    with avfast.use_backend(backend):
        for number in range(size):
            name = names[number % len(names)]
            outcome, what = attempt(name, Seeded(f"{seed} {number}"))
            outcomes[outcome] += 1
            if outcome == "failed":
                failures.append(f"seed {seed} call {number}: {what}")
            if number % 10_000 == 9_999:
                say(f"{number + 1} of {size} calls, {len(failures)} failures")
    done = "the value and gradients of the reference, NaN where it has them, or an error that names the op"
    return [Row("mutated tensors", done, size, failures, time.monotonic() - began, dict(outcomes))]


def attempt(name: str, draw: Draw) -> tuple[str, str]:
    """One call: ``"equal"``, ``"refused"`` or ``"failed"``, and what was called."""
    call = SPECS[name](Maker(draw))
    tensors, words = {}, [call.kind]
    for argument, x in call.tensors.items():
        tensors[argument], layout = laid_out(draw, x)
        words.append(f"{argument} {layout} {tuple(x.shape)} {str(x.dtype)[6:]}")
    wrong = ""
    if draw.integer(0, 3) == 0 and call.checked:
        argument = draw.choice(sorted(tensors))
        wrong = draw.choice(WRONGS)
        tensors[argument] = spoilt(tensors[argument], wrong)
        words.append(f"{argument}: wrong {wrong}")
    needed = tuple(n for n in call.learned if draw.integer(0, 1) and tensors[n].is_floating_point())
    what = f"{name}({', '.join(words)}; gradients of {', '.join(needed) or 'none'})"
    before = {n: _bytes(x) for n, x in tensors.items()}
    ours, theirs = (answered(call, tensors, needed, way) for way in (None, "torch"))
    if any(_bytes(x) != before[n] for n, x in tensors.items()):
        return "failed", f"{what}: an argument was written to"
    for answer in (ours, theirs):
        if isinstance(answer, Exception) and not clear(answer, name, bool(wrong)):
            return "failed", f"{what}: {type(answer).__name__}: {str(answer)[:300]}"
    if isinstance(ours, Exception) or isinstance(theirs, Exception):
        both = isinstance(ours, Exception) and isinstance(theirs, Exception)
        return ("refused", what) if both else ("failed", f"{what}: ours {ours!r:.200}, reference {theirs!r:.200}")
    coarsest = max([CLOSE[x.dtype] for x in tensors.values() if x.dtype in CLOSE], default=0.0)
    problem = different(ours, theirs, call.kind, max(coarsest, CLOSE[torch.float32]), name in UNREAD)
    return ("failed", f"{what}: {problem}") if problem else ("equal", what)


def spoilt(x: Tensor, wrong: str) -> Tensor:
    """``x`` with something that its op does not take, or takes as something else."""
    if wrong == "dtype":
        return x.to(torch.complex64 if x.is_floating_point() else torch.float32)
    if wrong == "device":
        return x.to("meta")
    if wrong == "dimensions":
        return x.unsqueeze(-1) if x.dim() < 2 else x.reshape(-1)
    if wrong == "size":
        return torch.cat([x, x[:1] if len(x) else x.new_zeros((1, *x.shape[1:]))]) if x.dim() else x.expand(3)
    return x.detach().clone().to_sparse()


def answered(call: Call, tensors: dict[str, Tensor], needed: Sequence[str], backend: str | None):
    """Results and gradients, or the error."""
    leaves = {n: x.detach().requires_grad_() if n in needed else x for n, x in tensors.items()}
    with avfast.use_backend(backend or avfast.backends.current()):
        try:
            results = call.run(**leaves)
            differentiable = [r for r in results if r.requires_grad]
            if not differentiable or not needed:
                return [*results]
            grads = [_weights(r) for r in differentiable]
            found = torch.autograd.grad(differentiable, [leaves[n] for n in needed], grads, allow_unused=True)
            return [*(r.detach() for r in results), *(g for g in found if g is not None)]
        except KNOWN as error:
            return error


def _weights(result: Tensor) -> Tensor:
    """A gradient of the output that is not contiguous."""
    ramp = torch.linspace(0.5, 1.5, 2 * result.numel() + 1).to(result.device, result.dtype)
    return ramp[: 2 * result.numel() : 2].view(result.shape)


def clear(error: Exception, name: str, wrong: bool) -> bool:
    """Whether a message says which op was called (a loss built of others may be named by them)."""
    text = str(error)
    if isinstance(error, KNOWN) and re.match(r"avfast\.\w+: [\w., ()\[\]]+: ", text):
        return True
    return bool(re.search(rf"avfast(::|\.|_){name}|avfast::", text))


def different(ours: list[Tensor], theirs: list[Tensor], kind: str, close: float, fewer: bool) -> str:
    """How two answers differ, or nothing. ``fewer``: where the reference has NaN, ours may have a number."""
    if len(ours) != len(theirs):
        return f"{len(ours)} results, the reference has {len(theirs)}"
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
            seen, wanted = (f"{tuple(x.shape)} {x.dtype} {x.device}" for x in (a, b))
            return f"result {i}: {seen}, the reference {wanted}"
        if not a.numel() or a.device.type == "meta":
            continue
        if not a.is_floating_point():
            if int((a.long() - b.long()).abs().max()) > (a.dtype == torch.uint8):
                return f"result {i}: {a.flatten()[:5].tolist()}, the reference {b.flatten()[:5].tolist()}"
            continue
        if kind in INCOMPARABLE:
            continue
        a, b = a.double(), b.double()
        if not torch.equal(a.isnan(), b.isnan() & (a.isnan() if fewer else True)) or not torch.equal(
            a.isinf(), b.isinf()
        ):
            return f"result {i}: {_odd(a)}, the reference {_odd(b)}"
        if i == 0 and a.dim() <= 1 and bool(a.isnan().any()):
            return ""  # a loss that is NaN has no gradient to speak of
        a, b = (x.nan_to_num(0.0, 0.0, 0.0).masked_fill(ours[i].isnan() | theirs[i].isnan(), 0.0) for x in (a, b))
        gap = float((a - b).abs().max() / (1 + b.abs().max()))
        if gap > close:
            return f"result {i}: {gap:.1e} apart, {a.flatten()[:4].tolist()}, the reference {b.flatten()[:4].tolist()}"
    return ""


def _odd(x: Tensor) -> str:
    return f"{int(x.isnan().sum())} NaN and {int(x.isinf().sum())} infinite of {x.numel()}"


def _bytes(x: Tensor) -> int:
    """A number that changes with the content."""
    if x.layout is not torch.strided or x.device.type == "meta" or not x.numel():
        return 0
    x = x.resolve_neg()
    base = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage()) if x.data_ptr() % x.element_size() == 0 else x
    return hash(base.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
