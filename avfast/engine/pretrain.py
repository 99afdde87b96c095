"""``avfast pretrain``: configuration, plan, training, control, evaluation, exports and report, in this
order."""

from __future__ import annotations

import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from avfast.data.demo import honesty_line
from avfast.data.outputs import require_folder
from avfast.engine.allocator import keep_freed_memory
from avfast.engine.board import Board, require_tensorboard
from avfast.engine.build import build_accelerator, build_method, with_classes
from avfast.engine.checkpoint import clear_temporary_below
from avfast.engine.conclude import Outcome, conclude, curves_title
from avfast.engine.config import TrainConfig, parse_config
from avfast.engine.demo_data import MADE, made_folder, make_data
from avfast.engine.loop import Trainer, TrainResult
from avfast.engine.plan import make_plan
from avfast.engine.processes import main_first, patience, together, wait_for_all
from avfast.engine.rebuild import CURVES
from avfast.engine.record import RunSummary, Section, read_run, write_json, write_results, write_start, write_stopped
from avfast.engine.report import how_lines, write_report
from avfast.engine.resume import checkpoint_to_continue, control_to_continue
from avfast.engine.signals import Budget, Interrupted, StopRequest, exit_code, interruptible
from avfast.engine.sources import (
    DataBundle,
    build_dataset,
    evaluation_loader,
    fits_in_memory,
    open_data,
    training_sampler,
)
from avfast.engine.validate import Validator
from avfast.errors import AvfastError, ConfigError
from avfast.evaluate import ShuffledLabels, ShuffledPairs, shuffled_order
from avfast.methods import Method
from avfast.methods.base import LabelledInputs


@dataclass(frozen=True)
class Request:
    """What the command line asked for; `words` are ``key=value`` overrides, `budget` is in seconds."""

    recipe: str
    data: str
    out: Path
    budget: float | None = None
    dry_run: bool = False
    resume: str | None = None
    force: bool = False
    device: str = "auto"
    words: list[str] = field(default_factory=list)
    preset: str | None = None
    config_file: Path | None = None

    def words_of(self, stage: str, stages: Sequence[str]) -> tuple[list[str], list[str]]:
        """Words for all stages of a recipe, and those for one of them, without its mark.

        >>> request = Request("r", "d", Path("o"), words=["lr=1", "audio:lr=2", "joint:lr=3"])
        >>> request.words_of("audio", ("audio", "joint"))
        (['lr=1'], ['lr=2'])
        """
        marks = tuple(f"{name}:" for name in stages)
        common = [word for word in self.words if not word.startswith(marks)]
        return common, [word.removeprefix(f"{stage}:") for word in self.words if word.startswith(f"{stage}:")]


def pretrain(
    request: Request,
    *,
    say: Callable[[str], None] = print,
    extra: Callable[[Outcome, Method], list[Section]] | None = None,
) -> RunSummary | None:
    """Run a request to its report.

    Args:
        say: receives lines for the person at the terminal.
        extra: called after the evaluation with what came out and the trained method; returns more report
            sections.

    Returns:
        The summary, or None after a dry run.

    Raises:
        Interrupted: SIGTERM or Ctrl-C came; the message says where the state is.
        AvfastError: anything the user can change.
    """
    with interruptible(f"outside of training: what '{request.out}' holds is whole; --resume auto goes on from it"):
        return _pretrain(request, say, extra)


def _pretrain(
    request: Request, say: Callable[[str], None], extra: Callable[[RunSummary, Method], list[Section]] | None
) -> RunSummary | None:
    config = parse_config(request.recipe, request.words, preset=request.preset, file=request.config_file)
    if config.run.tensorboard:
        require_tensorboard()
    require_folder(request.out, "--out")
    accelerator = build_accelerator(request.device, config.run.precision)
    tell = say if accelerator.is_main_process else (lambda line: None)
    resume = checkpoint_to_continue(request, tell)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    with ExitStack() as stack:
        stack.enter_context(together())
        with main_first(request.device):  # demo clips and file hashes are written once
            method = build_method(config)
            job = Job(request, config, accelerator, tell, method, _data_folder(request, method, stack, tell))
        plan_lines = job.plan()
        if request.dry_run:
            tell("dry run: no run folder was written")
            return None
        return job.run(plan_lines, resume, extra)


class Job:
    """The state shared by the stages of one run."""

    def __init__(
        self,
        request: Request,
        config: TrainConfig,
        accelerator: Any,
        tell: Callable[[str], None],
        method: Method,
        folder: Path,
    ) -> None:
        self.request, self.config, self.accelerator, self.tell = request, config, accelerator, tell
        self.method = method
        self.bundle: DataBundle = open_data(folder, method.inputs, on_error=config.data.on_error)
        if isinstance(method.inputs, LabelledInputs) and config.method.classes == 0:
            self.config = config = with_classes(config, self.bundle)
            self.method = build_method(config)
        inputs, seed = self.method.inputs, config.run.seed
        cache = fits_in_memory(self.bundle, inputs, config.data)
        self.train_set = build_dataset(
            self.bundle.splits["train"], inputs, config.data, seed=seed, train=True, cache=cache
        )
        self.fixed = {
            name: None
            if part is None
            else build_dataset(part, inputs, config.data, seed=seed, train=False, cache=cache)
            for name, part in self.bundle.splits.items()
        }
        processes, accumulate = accelerator.num_processes, config.optim.accumulate
        batch = config.data.batch_size
        if config.data.drop_last and batch * accumulate * processes > len(self.train_set):
            raise ConfigError(
                f"data.batch_size: the training split has {len(self.train_set)} {self.bundle.noun}, "
                f"fewer than one batch of {batch}"
                + (f", {accumulate} accumulated" if accumulate > 1 else "")
                + (f" on {processes} processes" if processes > 1 else "")
            )
        sampler = training_sampler(
            len(self.train_set), config.data, seed=seed, accumulate=accumulate, processes=processes
        )  # fmt: skip
        self.steps_per_epoch = len(sampler)
        self.steps = config.run.epochs * self.steps_per_epoch or config.run.steps
        self.loaders = {n: None if d is None else evaluation_loader(d, batch) for n, d in self.fixed.items()}
        self.seconds: dict[str, float] = {}
        self.board: Board | None = None

    def plan(self) -> list[str]:
        """Print what is about to happen and return the lines."""
        plan = make_plan(
            self.config, self.bundle, self.method, self.train_set, steps=self.steps,
            steps_per_epoch=self.steps_per_epoch, processes=self.accelerator.num_processes,
            budget=self.request.budget, device=self.accelerator.device,
        )  # fmt: skip
        self.bounds = plan.bounds
        card = self.method.card
        lines = plan.lines(f"{card.name}: {card.title} ({card.venue}, arXiv {card.arxiv})")
        for line in lines:
            self.tell(line)
        return lines

    def run(self, plan_lines: list[str], resume: Path | None, extra: Any) -> RunSummary:
        out, config = self.request.out, self.config
        self.plan_lines = plan_lines
        if self.accelerator.is_main_process:
            clear_temporary_below(out / "figures", out / "export")
        with StopRequest() as stop:
            share = 0.5 if config.run.control else 1.0
            budget = Budget(None if self.request.budget is None else self.request.budget * share)
            trained = self._train(self.train_set, out, resume, stop, budget, self.steps, "main")
            control = None
            if config.run.control:
                order = shuffled_order(len(self.train_set), seed=config.run.seed)
                again = None if resume is None else control_to_continue(out / "control", trained.step, self.tell)
                wrong = (
                    ShuffledLabels(self.train_set, order, self.train_set.source.labels)
                    if isinstance(self.method.inputs, LabelledInputs)
                    else ShuffledPairs(self.train_set, order)
                )
                control = self._train(wrong, out / "control", again, stop, Budget(None), trained.step, "control")
            if not self.accelerator.is_main_process:
                wait_for_all(stop)
                return None
            try:
                stop.at_once()
                summary = self._conclude(trained, control, extra)
            except KeyboardInterrupt:
                name, last = stop.signal_name or "SIGINT", trained.checkpoints["last"]
                write_stopped(out, f"{name} in the evaluation")
                raise Interrupted(
                    f"{name} in the evaluation: the training is saved in '{last}'; evaluate with --resume auto",
                    exit_code(name),
                ) from None
        wait_for_all()
        return summary

    def _conclude(self, trained: TrainResult, control: TrainResult | None, extra: Any) -> RunSummary:
        """Evaluation, exports and report."""
        out = self.request.out
        outcome, chosen = conclude(self, trained, control)
        outcome.results["sections"] += extra(outcome, chosen) if extra else []
        outcome.results["how"] = [f"ended: {_now()}"]
        write_results(out, outcome.results)
        # From here on everything is read from the folder, as `avfast report` will read it.
        summary = read_run(out)
        curves = {summary.curves: CURVES} if (out / CURVES).is_file() else {}
        summary.pictures = curves | {n: str(p.relative_to(out)) for n, p in outcome.album.pictures.items()}
        write_report(summary)
        return summary

    def _write_start(self, step: int) -> None:
        """What the report needs to know of the request, and the configuration. Results go that a training from
        `step` on makes old."""
        if step < self.steps:
            (self.request.out / "results.json").unlink(missing_ok=True)
        if step == 0:  # of a run that this one replaces
            (self.request.out / "control" / "metrics.jsonl").unlink(missing_ok=True)
        out, method = self.request.out, self.method
        precision = self.config.run.precision
        device = f"{self.accelerator.device}, {torch.get_num_threads()} CPU threads, precision {precision}"
        words = sys.argv[1:] if sys.argv[1:2] in (["pretrain"], ["finetune"]) else _words(self.request)
        write_json(out / "config.json", self.config.to_dict())
        write_start(out, {
            "recipe": self.config.recipe, "honesty": honesty_line(self.bundle.source.manifest),
            "noun": self.bundle.noun, "shuffled": method.inputs.control, "curves": curves_title(method.inputs),
            "supervised": isinstance(method.inputs, LabelledInputs), "plan": self.plan_lines, "bounds": self.bounds,
            "steps": self.steps, "device": device, "command": shlex.join(["avfast", *words]),
            "how": [
                f"command: `{shlex.join(['avfast', *sys.argv[1:]])}`; every setting is in `config.json`",
                *how_lines(device), f"begun: {_now()}",
            ],
        })  # fmt: skip

    def _train(
        self,
        dataset: Any,
        out: Path,
        resume: Path | None,
        stop: StopRequest,
        budget: Budget,
        steps: int,
        kind: str,
    ) -> TrainResult:
        began = time.monotonic()
        validator = None if self.loaders["val"] is None else Validator(self.loaders["val"])
        trainer = Trainer(
            self.config, dataset, validator, out, self.accelerator,
            fingerprint=self.bundle.fingerprint, steps=steps, kind=kind, resume=resume,
            force=self.request.force,
            board_folder=self.request.out / "tensorboard" / kind if self.config.run.tensorboard else None,
        )  # fmt: skip
        if kind == "main":
            self.board = trainer.board
        if trainer.step:
            self.tell(f"{kind}: continuing at step {trainer.step} of {steps} from '{resume}'")
        for line in trainer.remarks:
            self.tell(f"{kind}: {line}")
        main, where = self.accelerator.is_main_process, "" if kind == "main" else f" in its {kind}"
        if kind == "main" and main:
            self._write_start(trainer.step)
        try:
            with (
                together(lambda: f"in step {trainer.step + 1}; continue with --resume auto"),
                patience(self.config.run.timeout),
            ):
                result = trainer.fit(stop, budget)
        except KeyboardInterrupt:
            last = trainer.generations.present().get("last")
            kept = f"the last saved state is in '{last}'; continue with --resume auto" if last else "nothing was saved"
            if main:
                write_stopped(self.request.out, f"SIGINT{where}")
            raise Interrupted(f"Ctrl-C twice, stopped within step {trainer.step + 1} of {steps}: {kept}", 130) from None
        except AvfastError as error:
            if main:
                write_stopped(self.request.out, f"an error{where} ({error})")
            raise
        if result.stopped.upper().startswith("SIG"):
            if main:
                write_stopped(self.request.out, f"{result.stopped}{where}")
            raise Interrupted(
                f"{result.stopped} at step {result.step} of {result.steps}: state saved in "
                f"'{result.checkpoints['last']}'; continue with --resume auto", exit_code(result.stopped)
            )  # fmt: skip
        if result.stopped == "budget":
            self.tell(f"budget spent at step {result.step} of {result.steps}; continue with --resume auto")
        self.seconds["training" if kind == "main" else "shuffled-pair control"] = time.monotonic() - began
        return result


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z")


def _words(request: Request) -> list[str]:
    """A request as it would be typed."""
    words = ["pretrain", "--recipe", request.recipe, "--data", request.data, "--out", str(request.out)]
    for option, value in (("--preset", request.preset), ("--config", request.config_file)):
        words += [] if value is None else [option, str(value)]
    return [*words, "--device", request.device, *request.words]


def _data_folder(request: Request, method: Method, stack: ExitStack, tell: Callable[[str], None]) -> Path:
    if request.data not in MADE:
        return Path(request.data)
    folder, make = made_folder(request.data, request.out, method.inputs)
    if request.dry_run and not folder.exists():
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / folder.name
    return make_data(folder, make, tell)
