"""The training loop: batches in, weights out, interruptible at any step and exact when continued."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from avfast.engine.batches import agree_on_size, parts
from avfast.engine.board import Board
from avfast.engine.breakage import Breakage
from avfast.engine.build import build_method, build_optimizer, build_schedule
from avfast.engine.checkpoint import clear_temporary
from avfast.engine.config import TrainConfig
from avfast.engine.contents import content_hashes
from avfast.engine.fetch import DataLost, close_loader, fetched
from avfast.engine.finite import FiniteWatch, Snapshot
from avfast.engine.generations import Generations
from avfast.engine.gradients import clip_and_measure
from avfast.engine.inputs import build_pipeline
from avfast.engine.interval import Interval, combined, mean_over_processes, timed
from avfast.engine.journal import Journal
from avfast.engine.memory import memory_row
from avfast.engine.nonfinite import dropped, require_finite
from avfast.engine.parallel import parallel_method
from avfast.engine.processes import anywhere
from avfast.engine.progress import Progress
from avfast.engine.saving import restore, save
from avfast.engine.signals import Budget, StopRequest
from avfast.engine.sources import ADVICE, count_errors, training_loader, training_sampler
from avfast.engine.validate import Validator
from avfast.engine.watch import Watch
from avfast.errors import AvfastError, DataError, RunFault
from avfast.evaluate import collapse_indicators
from avfast.methods import Method, StepOutput


@dataclass
class TrainResult:
    """How a training ended. ``stopped`` is "finished", "budget" or the name of a signal."""

    method: Method
    stopped: str
    step: int
    steps: int
    best_step: int
    best_loss: float
    rows: list[dict[str, Any]]
    errors: dict[str, int]
    checkpoints: dict[str, Path] = field(default_factory=dict)


class Trainer:
    """One training: the main run or its control.

    Args:
        config: the run's configuration.
        dataset: training samples by ``(epoch, index)``.
        validator: what to ask at each look at the validation split, or None.
        out: folder for ``metrics.jsonl`` and ``checkpoints/``.
        accelerator: from :func:`build_accelerator`.
        fingerprint: of the data, stored in checkpoints and compared on resume.
        steps: optimiser steps; a batch that was skipped for its broken files counts.
        kind: "main" or "control".
        resume: checkpoint to continue from.
        force: continue although the configuration or the data changed.
        board_folder: where TensorBoard's event files go, if wanted.

    Attributes:
        remarks: what a person must be told of a run that was continued.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: Any,
        validator: Validator | None,
        out: Path,
        accelerator: Any,
        *,
        fingerprint: str,
        steps: int,
        kind: str = "main",
        resume: Path | None = None,
        force: bool = False,
        board_folder: Path | None = None,
    ) -> None:
        self.config, self.validator, self.out, self.accelerator = config, validator, out, accelerator
        self.fingerprint, self.steps, self.kind = fingerprint, steps, kind
        self.method = build_method(config)
        self.method.prepare_training(steps)
        rank, world = accelerator.process_index, accelerator.num_processes
        samples = config.data.batch_size * config.optim.accumulate * world
        self.parallel = parallel_method(
            accelerator, self.method, config.run, lambda method: build_optimizer(method, config.optim, samples)
        )
        self.model, self.optimizer = self.parallel.model, self.parallel.optimizer
        self.pipeline = build_pipeline(self.method.inputs).to(accelerator.device)
        torch.manual_seed(config.run.seed + rank)  # dropout differs between processes, initial weights do not
        self.sampler = training_sampler(
            len(dataset), config.data, seed=config.run.seed, accumulate=config.optim.accumulate, rank=rank,
            processes=world,
        )  # fmt: skip
        # The schedule watches the bare optimiser: accelerate would step it once per process.
        self.scheduler = build_schedule(self.parallel.bare, config.optim, steps, len(self.sampler))
        on_gpu = accelerator.device.type == "cuda"
        self.eval_every = config.run.eval_epochs * len(self.sampler) or config.run.eval_every
        self.loader = training_loader(dataset, self.sampler, config.data, pin_memory=on_gpu)
        self.step, self.looked, self.best_step, self.best_loss = 0, 0, 0, math.inf
        self.errors: dict[str, int] = {}
        self.stop: StopRequest | None = None
        self.grad_norm: torch.Tensor | None = None
        self.interval = Interval()
        self.remarks: list[str] = []
        self.generations = Generations(out / "checkpoints", config.run.keep_last)
        self.contents = content_hashes(config.to_dict())
        self.unsaved, self.best_unsaved = True, False
        if accelerator.is_main_process:
            clear_temporary(out, self.generations.folder)
        if resume is not None:
            restore(self, resume, force=force)
        self.watch = Watch(config.data, steps, start=self.step)
        self.source = getattr(getattr(dataset, "dataset", dataset), "source", None)  # a control wraps the data set
        self.breakage = Breakage(None if self.source is None else self.source.root, self.method.inputs.noun)
        self.finite = FiniteWatch(self.method)
        is_main = accelerator.is_main_process
        resumed_at = self.step if resume is not None else None
        self.board = Board(board_folder, step=self.step) if is_main and board_folder is not None else None
        self.journal = Journal(out / "metrics.jsonl" if is_main else None, resume_step=resumed_at, board=self.board)
        self.started_at = self.step
        self.finite.dropped = len({row["step"] for row in self.journal.rows if row.get("cause") == "nonfinite"})

    def fit(self, stop: StopRequest, budget: Budget) -> TrainResult:
        """Train until the last step, a signal or the end of the budget; the state on disk is complete
        afterwards."""
        budget.start()
        self.stop = stop
        if self.step == 0 and self.accelerator.is_main_process:
            self.generations.clear()  # of a run that this one replaces
        if self.best_unsaved:  # it was killed between the two names of this state, and the next one is another
            save(self, final=self.step == self.steps)
        quiet = not self.accelerator.is_main_process
        title = "train" if self.kind == "main" else self.kind
        noun = self.method.inputs.noun
        with Progress(self.steps, title, start=self.step, quiet=quiet, noun=noun) as progress:
            stopped = self._steps(progress, stop, budget)
            if stopped == "budget" and self.looked < self.step:
                self._look(progress, stop)
        done = self.step == self.steps
        if self.unsaved or (done and not self.generations.path("final").is_file()):
            save(self, final=done)
        if self.board is not None:
            self.board.flush()
        method = self.parallel.trained(lambda: build_method(self.config))
        return TrainResult(
            method, stopped, self.step, self.steps, self.best_step, self.best_loss, self.journal.rows,
            self.errors, self.generations.present(),
        )  # fmt: skip

    def _steps(self, progress: Progress, stop: StopRequest, budget: Budget) -> str:
        """Train, log, look and save; why it ended."""
        run = self.config.run
        if self._look_is_due() and self.looked < self.step and not self._look(progress, stop):
            return self._reason_to_stop(stop, budget) or "signal"
        for batch, data_s in timed(self._batches()):
            began = time.perf_counter()
            output = self._train_step(batch)
            self.step += 1
            self.unsaved = True
            samples = len(batch["index"]) * self.accelerator.num_processes
            self.interval.add(output, samples, data_s, time.perf_counter() - began, self.grad_norm)
            progress.advance(self.step)
            last = self.step == self.steps
            stopped = self._reason_to_stop(stop, budget) or ("finished" if last else "")
            if stopped or any(self.step % n == 0 for n in (run.log_every, self.eval_every, run.save_every)):
                began = time.perf_counter()
                require_finite(self)  # waits for a GPU to end the steps under way: their time too
                self.interval.compute_s += time.perf_counter() - began
            if self.step % run.log_every == 0 or (last and self.interval.outputs):
                self._log(progress)
                self.interval = Interval()
            elif stopped and self.interval.outputs:
                self._log(progress, partial=True)
            if self._look_is_due() and not self._look(progress, stop):
                stopped = self._reason_to_stop(stop, budget) or "signal"
            if stopped:
                return stopped
            if self.best_unsaved or self.step % run.save_every == 0:
                save(self)
        return "finished"

    def _batches(self) -> Iterator[dict[str, Any]]:
        try:
            while self.step < self.steps:
                epoch, offset = divmod(self.step, len(self.sampler))
                self.sampler.set_position(epoch, offset)
                for batch in fetched(self.loader):
                    self.breakage.note(len(batch["index"]), batch["errors"])
                    yield batch
                    if self.step == self.steps:
                        return
        except (DataLost, RunFault) as fault:
            raise self._lost(fault) from fault.__cause__
        finally:
            close_loader(self.loader)

    def _lost(self, fault: DataLost | RunFault) -> AvfastError:
        """Save what was trained when no further batch comes, between two steps; the error that says so."""
        reason = fault.reason if isinstance(fault, DataLost) else fault
        kept = self.generations.last_good()
        if self.accelerator.num_processes == 1 and self.step > self.started_at:
            require_finite(self)
            try:
                self.journal.write("fault", step=self.step, cause="data", text=str(reason))
                if self.unsaved:
                    save(self)
                kept = f"state saved at step {self.step} of {self.steps} in '{self.generations.path('last')}'"
            except RunFault as full:
                kept = f"{full}; {kept}"
        return type(reason)(f"{reason}; {kept}; --resume auto continues")

    def _train_step(self, batch: dict[str, Any]) -> StepOutput | None:
        self.model.train()
        self.grad_norm = None
        count_errors(self.errors, batch["errors"])
        size = agree_on_size(self.accelerator, batch)
        work = parts(batch, size, self.config.data.batch_size)
        if not work:
            return None
        dropping = self.config.run.on_nonfinite == "skip"
        before = Snapshot(self.method) if dropping else None
        outputs = []
        for part, share in work:
            last = len(outputs) == len(work) - 1
            with nullcontext() if last else self.parallel.without_sync():
                output = self.model(self.pipeline(part))
                self.accelerator.backward(output.loss * share)
            outputs.append((output, share))
        output = combined(outputs)
        wanted = dropping or (self.step + 1) % self.config.run.log_every == 0
        self.grad_norm = clip_and_measure(self.accelerator, self.model, self.config.optim.clip_norm, wanted=wanted)
        if before is not None and dropped(self, output, batch, before):
            return None
        self.finite.note(self.step + 1, output.loss, batch)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.method.after_optimizer_step(self.step + 1)
        return output

    def _reason_to_stop(self, stop: StopRequest, budget: Budget) -> str | None:
        if anywhere(self.accelerator, stop.signal_name is not None):
            return stop.signal_name or "signal"
        return "budget" if anywhere(self.accelerator, budget.spent()) else None

    def _log(self, progress: Progress, **marks: bool) -> None:
        interval = self.interval
        if not interval.outputs and self.finite.dropping:
            return  # every step was dropped, and the rows of the log say so
        if not interval.outputs:
            noun, broken = self.method.inputs.noun, next(iter(self.errors), "")
            example = f" ({broken})" if broken else ""
            raise AvfastError(f"no step of this interval had two readable {noun}{example}; {ADVICE[noun]}")
        row = mean_over_processes(self.accelerator, interval.summary())
        indicators = {name: collapse_indicators(z) for name, z in interval.embeddings.items() if len(z) > 1}
        epoch = self.step / len(self.sampler)
        lr = self.scheduler.get_last_lr()[0]
        broken = sum(self.errors.values())
        values = {"epoch": epoch, "lr": lr, **row, "collapse": indicators, "broken": broken, **memory_row(), **marks}
        if self.finite.dropped:
            values["dropped"] = self.finite.dropped
        if warnings := self.watch.warnings(self.step, row, indicators):
            values["warnings"] = warnings
        row = self.journal.write("train", step=self.step, **values)
        progress.line(self.step, row)
        for text in self.watch.news(warnings):
            progress.say(f"{self.kind} {self.step}: {text}")

    def _look_is_due(self) -> bool:
        return self.step > 0 and (self.step % self.eval_every == 0 or self.step == self.steps)

    def _look(self, progress: Progress, stop: StopRequest) -> bool:
        """Validate, and note whether this is the best state so far; False where a signal cut it short, so that it
        counts for nothing and is to be done again."""
        row = None
        if self.validator is not None:
            alone = self.accelerator.num_processes == 1  # several go through it together
            stopping = lambda: alone and stop.signal_name is not None  # noqa: E731
            try:
                row = self.validator(self.method, self.pipeline, self.accelerator.autocast, stop=stopping)
            except DataError as error:
                raise self._lost(DataLost(self.breakage.explain(error))) from error
            if anywhere(self.accelerator, row is None):
                return False
        self.looked, self.unsaved = self.step, True
        if row is None:
            return True
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            # Running statistics differ a little between processes; one of them decides what is best for all.
            row = broadcast_object_list([row])[0]
        self.journal.write("val", step=self.step, **row)
        progress.validation(self.step, row)
        if row["loss"] < self.best_loss:
            self.best_loss, self.best_step, self.best_unsaved = row["loss"], self.step, True
        return True
