"""A training's state on disk: what goes into a checkpoint, and how a trainer continues from one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avfast.engine.checkpoint import WORKERS, load_checkpoint
from avfast.engine.interval import Interval
from avfast.engine.processes import wait_for_all
from avfast.engine.resume import changes_since, refuse_changes
from avfast.engine.state import local_buffers, restore_rng_state, rng_state, versions
from avfast.errors import CheckpointError

if TYPE_CHECKING:
    from avfast.engine.loop import Trainer


def save(trainer: Trainer, *, final: bool = False) -> None:
    """Write the state of all processes between two steps, under the names that it has earned."""
    own = [{"rng": rng_state(), "local": local_buffers(trainer.method), "interval": trainer.interval.state()}]
    if trainer.accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        own = gather_object(own)
    model, optimizer = trainer.parallel.states()
    if trainer.accelerator.is_main_process:
        trainer.journal.sync()
        epoch, offset = divmod(trainer.step, len(trainer.sampler))
        trainer.sampler.set_position(epoch, offset)
        scaler = trainer.accelerator.scaler
        state = {
            "model": model,
            "optimizer": optimizer,
            "scheduler": trainer.scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
            "sampler": trainer.sampler.state_dict(),
            **{name: [process[name] for process in own] for name in ("rng", "local", "interval")},
            "workers": WORKERS,
            "counters": {
                "step": trainer.step, "looked": trainer.looked, "best_step": trainer.best_step,
                "best_loss": trainer.best_loss, "errors": trainer.errors,
            },
            "config": run_config(trainer),
            "contents": trainer.contents,
            "split_fingerprint": trainer.fingerprint,
            "kind": trainer.kind,
            "versions": versions(trainer.accelerator.device),
        }  # fmt: skip
        trainer.generations.save(state, best=trainer.best_unsaved, final=final)
        if not trainer.best_step:
            trainer.generations.path("best").unlink(missing_ok=True)  # of a future that this run has left
    trainer.unsaved = trainer.best_unsaved = False
    wait_for_all(trainer.stop)


def restore(trainer: Trainer, path: Path, *, force: bool) -> None:
    """Go on from a checkpoint; ``force`` takes one of another configuration or other data.

    Raises:
        CheckpointError: it is damaged, of another kind of run, of other settings, or does not fit the model.
    """
    state = load_checkpoint(path)
    if state["kind"] != trainer.kind:
        raise CheckpointError(f"checkpoint '{path}' belongs to a {state['kind']} run, not a {trainer.kind} run")
    if not force:
        changes = changes_since(state, trainer.config, run_config(trainer), trainer.contents, trainer.fingerprint)
        refuse_changes(path, changes)
    rank, processes = trainer.accelerator.process_index, trainer.accelerator.num_processes
    same = len(state["rng"]) == processes
    local = state["local"][rank] if same else {}
    try:
        trainer.parallel.load_states({**state["model"], **local}, state["optimizer"])
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"checkpoint '{path}' does not fit the model: {str(error).strip()}") from error
    trainer.scheduler.load_state_dict(state["scheduler"])
    if trainer.accelerator.scaler is not None and state["scaler"]:
        trainer.accelerator.scaler.load_state_dict(state["scaler"])
    counters = state["counters"]
    trainer.step, trainer.looked = counters["step"], counters["looked"]
    trainer.best_step, trainer.best_loss = counters["best_step"], counters["best_loss"]
    trainer.errors = dict(counters["errors"])
    if same:
        trainer.interval = Interval.of(state["interval"][rank], trainer.accelerator.device)
        restore_rng_state(state["rng"][rank])
    was, now = state["versions"], versions(trainer.accelerator.device)
    if other := [f"{k} {was[k]} -> {now.get(k)}" for k in was if was[k] != now.get(k)]:
        trainer.remarks.append(f"written elsewhere ({', '.join(other)}): the last bits of what follows may differ")
    trainer.unsaved = path.resolve() != trainer.generations.path("last").resolve()
    if not trainer.unsaved and trainer.accelerator.is_main_process:
        trainer.generations.prune(trainer.step)
    _find_best(trainer)


def _find_best(trainer: Trainer) -> None:
    """The best state so far is ``best.pt``, unless that was lost, or belongs to steps that will be done again."""
    found = trainer.generations.step_of("best") if trainer.best_step else 0
    if found == trainer.best_step:
        return
    if trainer.best_step == trainer.step:
        trainer.unsaved = trainer.best_unsaved = True
        return
    if found is None:
        best = trainer.generations.path("best")
        trainer.remarks.append(f"'{best}' of step {trainer.best_step} is missing or damaged: the best is chosen anew")
    trainer.best_step, trainer.best_loss = 0, math.inf


def run_config(trainer: Trainer) -> dict[str, Any]:
    """The configuration as a checkpoint holds it: what a batch is depends on the processes that share it."""
    return {**trainer.config.to_dict(), "steps": trainer.steps, "processes": trainer.accelerator.num_processes}
