"""What a training does about numbers that are none: it drops the step, or ends before they are saved."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from avfast.engine import finite
from avfast.engine.finite import CURE, MOST, Snapshot, batch_words, named
from avfast.engine.processes import anywhere
from avfast.errors import AvfastError
from avfast.methods import StepOutput

if TYPE_CHECKING:
    from avfast.engine.loop import Trainer


def dropped(trainer: Trainer, output: StepOutput, batch: dict[str, Any], before: Snapshot) -> bool:
    """Whether this step is dropped, as all processes must agree; then as if its batch had never come."""
    scaler = trainer.accelerator.scaler
    watched = trainer.finite.statistics()
    good = finite.is_finite_step(trainer.model, output.loss, trainer.grad_norm, watched, scaled=scaler is not None)
    if not anywhere(trainer.accelerator, not good):
        trainer.finite.good_step()
        return False
    before.restore()
    trainer.method.forget_step()
    if scaler is not None:  # it has seen this step begin, and must see it end: without a change, as for an overflow
        next(p for p in trainer.model.parameters() if p.grad is not None).grad.fill_(math.inf)
        trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    trainer.grad_norm = None
    what = "the gradient or the state is not finite"
    if not output.loss.isfinite():
        what = f"the loss is {output.loss.item()}"
    rows = [{"loss": output.loss.item(), **named(batch, trainer.source)}]
    if trainer.accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        rows = gather_object(rows)
    found = [row for row in rows if not math.isfinite(row["loss"])] or rows  # gradients do not tell whose they are
    step = trainer.step + 1
    for row in found:
        trainer.journal.write("fault", step=step, cause="nonfinite", **row)
    if trainer.finite.dropped_step():
        raise AvfastError(
            f"{MOST} steps in a row were dropped, up to step {step}, the last because {what} "
            f"({batch_words(found[0])}); {trainer.generations.last_good()}. {CURE}"
        )
    return True


def require_finite(trainer: Trainer) -> None:
    """Stop before a diverged state is evaluated, logged as progress or saved over a good one; all processes do."""
    found = trainer.finite.look()
    if not anywhere(trainer.accelerator, found is not None):
        return
    what, step, batch = found or ("another process has a loss that is not finite", trainer.step, {})
    words = f" ({batch_words(named(batch, trainer.source))})" if batch else ""
    raise AvfastError(
        f"{what} at step {step}{words}; {trainer.generations.last_good()}. {CURE}, and run.on_nonfinite=skip drops "
        "such steps"
    )
