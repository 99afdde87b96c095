"""``avfast finetune``: a recipe of several stages, each a run of its own that can be continued.

Fusion Tuning: the audio encoder alone, the visual encoder alone, then both. A stage is ``avfast pretrain`` with
``method.stage`` set; what this module adds is what one stage hands to the next, and one report of all.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avfast.engine.checkpoint import clear_temporary, load_checkpoint, write_atomic
from avfast.engine.conclude import Outcome
from avfast.engine.config import parse_config
from avfast.engine.dead_channels import dead_channels
from avfast.engine.demo_data import MADE, made_folder, make_data
from avfast.engine.finetune_report import STAGES, compose
from avfast.engine.pretrain import Request, pretrain
from avfast.engine.processes import is_main, main_first
from avfast.engine.record import Section
from avfast.engine.report_scores import headline
from avfast.engine.resume import finished, newest_of
from avfast.engine.signals import interruptible
from avfast.engine.sources import open_data
from avfast.engine.stages import begin_stages, closing_lines, read_stages, write_stages_report
from avfast.errors import ConfigError
from avfast.methods import Method, get_method
from avfast.nn.confidences import Confidences

SHARES = {"audio": 0.25, "video": 0.25, "joint": 0.5}
"""Of the budget; what a stage leaves goes to those after it."""
ENCODERS = {"audio": "audio", "video": "visual"}


@dataclass(frozen=True)
class Stage:
    """One stage: its request, and whether an earlier call finished it."""

    name: str
    request: Request
    finished: bool


def finetune(request: Request, *, say: Callable[[str], None] = print) -> Path | None:
    """Run the stages that are not finished and write one report; its path, or None after a dry run and in all but the
    main process.

    Args:
        request: as of ``avfast pretrain``; ``out`` gets a folder per stage. A word ``audio:KEY=VALUE`` (or ``video:``,
            ``joint:``) is for that stage alone.
        say: receives lines for the person at the terminal.

    Raises:
        Interrupted: a signal came; the same command with ``--resume auto`` goes on where it was. A joint stage whose
            encoders then learn more (a budget had cut them short) begins anew from them.
        AvfastError: anything the user can change.
    """
    with interruptible(f"between the stages: what is done is in '{request.out}'; continue with --resume auto"):
        return _finetune(request, say)


def _finetune(request: Request, say: Callable[[str], None]) -> Path | None:
    if not hasattr(get_method(request.recipe).Config, "stage"):
        raise ConfigError(
            f"recipe '{request.recipe}' has no stages: `avfast pretrain --recipe {request.recipe}` trains it"
        )
    if request.resume not in (None, "auto"):
        raise ConfigError(f"--resume: finetune continues its own stages with --resume auto, got '{request.resume}'")
    words = stage_words(request)
    for name in STAGES:  # a mistake in the last stage is found before the first one trains
        parse_config(request.recipe, _without_files(words[name]), preset=request.preset, file=request.config_file)
    say = say if is_main() else lambda line: None
    began, left, spent, moved = time.monotonic(), 1.0, 0.0, False
    data = request.data
    clear_temporary(request.out, *(request.out / name for name in STAGES))
    if data in MADE and not request.dry_run:  # made once, for all stages
        method = get_method(request.recipe)
        with main_first(request.device):
            data = str(make_data(*made_folder(data, request.out, method(method.Config()).inputs), say))
    for name in STAGES:
        stage = _stage(request, name, data, words[name], say)
        if moved and name == "joint" and (stage.request.out / "checkpoints").is_dir():
            say("stage joint begins anew: the encoders and confidences that it starts from have gone on")
            own = dataclasses.replace(stage.request, resume=None, force=True)
            stage = Stage(name, own, finished=False)
        if stage.finished:
            say(f"stage {name}: finished before, in '{stage.request.out}'")
        else:
            say(f"stage {name}")
            budget = None
            if request.budget is not None:
                budget = max(1.0, (request.budget - spent) * SHARES[name] / left)
            started = time.monotonic()
            extra = _sections(name, stage.request.out, data)
            summary = pretrain(dataclasses.replace(stage.request, budget=budget), say=say, extra=extra)
            for line in headline(summary.scores) if summary else ():
                say(line)
            spent += time.monotonic() - started
            moved = moved or name in ENCODERS
        left -= SHARES[name]
        if request.dry_run:
            continue
        if name in ENCODERS and stage.finished:  # perhaps by a call that came no further
            with main_first(request.device):
                if is_main():
                    hand_over(stage.request.out, name, data)
    if request.dry_run:
        say("the joint stage will start from the encoders and confidences of the other two")
        return None
    if not is_main():
        return None
    begin_stages(request.out, request.recipe, seconds=time.monotonic() - began)
    stages = read_stages(request.out, request.recipe, STAGES)
    report = write_stages_report(stages, compose)
    for line in closing_lines(stages, report):
        say(line)
    return report


def _sections(name: str, folder: Path, data: str) -> Callable[[Outcome, Method], list[Section]]:
    """What a stage does before its report: hand on what it knows, and look at its batch norms."""

    def sections(outcome: Outcome, method: Method) -> list[Section]:
        if name in ENCODERS:
            hand_over(folder, name, data)
        return dead_channels(outcome, method)

    return sections


def stage_words(request: Request) -> dict[str, list[str]]:
    """The overrides of each stage: those for all, its own, and what earlier stages hand to it.

    >>> words = stage_words(Request("fusion-tuning", "demo", Path("o"), words=["optim.lr=1e-3", "joint:run.steps=9"]))
    >>> words["audio"]
    ['optim.lr=1e-3', 'method.stage=audio', 'method.masks=none']
    >>> words["joint"][:3]
    ['optim.lr=1e-3', 'run.steps=9', 'method.stage=joint']
    """
    found: dict[str, list[str]] = {}
    for name in STAGES:
        common, own = request.words_of(name, STAGES)
        found[name] = [*common, *own, f"method.stage={name}"]
        if name != "joint":
            found[name].append("method.masks=none")
            continue
        if not any(w.split("=")[0] in ("method.masks", "masks") for w in (*common, *own)):
            found[name].append("method.masks=conf")
        for stream, encoder in ENCODERS.items():
            folder = request.out / stream
            found[name] += [f"method.{encoder}_weights={_export(folder, encoder)}",
                            f"method.{encoder}_confidence={folder / 'confidence.json'}"]  # fmt: skip
    return found


def _without_files(words: list[str]) -> list[str]:
    return [w for w in words if "_weights=" not in w and "_confidence=" not in w]


def _export(folder: Path, encoder: str) -> Path:
    """The encoder as it was trained: with ABRi layers where it has them."""
    unfolded = folder / "export" / f"{encoder}_unfolded"
    return unfolded if unfolded.is_dir() else folder / "export" / encoder


def _stage(request: Request, name: str, data: str, words: list[str], say: Callable[[str], None]) -> Stage:
    if name == "joint":  # the exports exist now; which one it is was not known before
        words = stage_words(request)["joint"]
        if request.dry_run:
            words = [*_without_files(words), "method.masks=none"]
    own = dataclasses.replace(request, out=request.out / name, data=data, words=words)
    done = request.resume == "auto" and finished(own, say)
    return Stage(name, own, done)


def hand_over(folder: Path, name: str, data: str) -> None:
    """``confidence.json``: how sure the stage was of every training clip, by content id, over its whole training."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    state = load_checkpoint(newest_of(folder).path)["model"]["_extra_state"]
    known = Confidences.of(state["confidences"])
    ids = [record.id for record in open_data(data, on_error=config["data.on_error"]).splits["train"].records]
    text = json.dumps({"stage": name, "steps": state["step"], "seed": config["run.seed"],
                       "confidence": known.by_id(ids)}, indent=1)  # fmt: skip
    write_atomic(folder / "confidence.json", lambda path: path.write_text(text + "\n"))
