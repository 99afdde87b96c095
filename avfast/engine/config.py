"""The configuration of a run: four dataclasses, read from defaults, a preset, a file and ``key=value`` words.

Types and files are jsonargparse's work. Names are checked here first, because the most common mistake is a
misspelt key and its cure is a suggestion.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from avfast.engine.config_file import read_config_file, refuse_deep
from avfast.errors import ConfigError, MissingDependency
from avfast.methods import Method, get_method


@dataclass(frozen=True)
class DataConfig:
    """How clips or pictures are read.

    Attributes:
        batch_size: samples per step and process.
        workers: loader processes; 0 reads in the training process.
        on_error: what an unreadable file does to its batch.
        drop_last: leave out the samples of an epoch that do not fill a batch on every process; otherwise the last batch
            is a shorter one, of equal size on all processes.
        cache: keep decoded samples in memory; "auto" does if they take less than about 1 GiB.
        timeout: seconds that reading one sample may take, after which it counts as unreadable; 0 waits for ever.
    """

    batch_size: int = 32
    workers: int = 0
    on_error: Literal["raise", "skip", "resample"] = "skip"
    drop_last: bool = True
    cache: Literal["auto", "memory", "none"] = "auto"
    timeout: float = 60.0


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser.

    Attributes:
        name: optimiser of torch.optim.
        lr: peak learning rate.
        lr_batch: samples per step (all processes together) that lr is meant for; other batches scale it linearly.
            0: lr as it is.
        weight_decay: on matrices and filters; on everything where the recipe says so.
        momentum: of SGD.
        beta2: decay of the mean of squared gradients, of adam and adamw.
        schedule: after the warm-up, down a cosine to zero at the last step, the same in steps of one epoch
            (cosine-epoch), constant, or constant and a tenth of that from seven tenths of the steps on (step).
        warmup_steps: steps of linear warm-up.
        warmup_epochs: passes over the training split of linear warm-up; replaces `warmup_steps` when positive.
        clip_norm: largest gradient norm; 0 does not clip.
        accumulate: batches of data.batch_size, one after the other, that make one step: their gradients are averaged.
    """

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = 2e-3
    lr_batch: int = 0
    weight_decay: float = 1e-4
    momentum: float = 0.9
    beta2: float = 0.999
    schedule: Literal["cosine", "cosine-epoch", "constant", "step"] = "cosine"
    warmup_steps: int = 10
    warmup_epochs: int = 0
    clip_norm: float = 0.0
    accumulate: int = 1


@dataclass(frozen=True)
class RunConfig:
    """The run.

    Attributes:
        seed: of initial weights, data order and augmentation.
        steps: optimiser steps.
        epochs: passes over the training split; replaces `steps` when positive.
        precision: arithmetic of the forward pass.
        log_every: steps between lines of the log.
        eval_every: steps between looks at the validation split, which selects the best checkpoint.
        eval_epochs: passes over the training split between these looks; replaces `eval_every` when positive.
        save_every: steps between checkpoints.
        keep_last: checkpoints of the newest steps that are kept, beside the best and the final one; with 1 there is
            none to go back to when the last one is damaged.
        control: train the shuffled-pair control for as many steps, so that the report can show it.
        parallel: how several processes share the work: ddp, every one has the whole model; fsdp, every one has a share
            of weights, gradients and moments; auto, fsdp where `accelerate launch --use_fsdp` says so.
        sync_batchnorm: batch norms of all processes use the statistics of all their batches together.
        timeout: seconds that a process waits for the others within a step before it gives them up.
        on_nonfinite: what a loss or gradient that is not finite does: "raise" stops the run, at the next line of the
            log at the latest and before anything is saved; "skip" drops that step and all its traces. It looks at every
            step, for which a GPU waits. Ten such steps in a row stop the run too.
        tensorboard: also write scalars and pictures for TensorBoard, to the folder tensorboard of the run.
    """

    seed: int = 0
    steps: int = 120
    epochs: int = 0
    precision: Literal["no", "bf16", "fp16"] = "no"
    log_every: int = 10
    eval_every: int = 20
    eval_epochs: int = 0
    save_every: int = 40
    keep_last: int = 2
    control: bool = True
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    sync_batchnorm: bool = False
    timeout: float = 300.0
    on_nonfinite: Literal["raise", "skip"] = "raise"
    tensorboard: bool = False


@dataclass(frozen=True)
class TrainConfig:
    """A recipe's name and its four sections."""

    recipe: str
    data: DataConfig
    optim: OptimConfig
    run: RunConfig
    method: Any

    def defaults(self) -> dict[str, Any]:
        """The same keys as :meth:`to_dict`, each with the value that nobody asked for."""
        sections = {name: type(getattr(self, name))() for name in ("data", "optim", "run", "method")}
        return TrainConfig(self.recipe, **sections).to_dict()

    def to_dict(self) -> dict[str, Any]:
        """``{"recipe": ..., "optim.lr": ..., ...}``: flat, dotted, JSON-able."""
        flat: dict[str, Any] = {"recipe": self.recipe}
        for section in ("data", "optim", "run", "method"):
            for name, value in dataclasses.asdict(getattr(self, section)).items():
                flat[f"{section}.{name}"] = list(value) if isinstance(value, tuple) else value
        return flat


ALIASES = {
    "learning_rate": "optim.lr", "wd": "optim.weight_decay", "optimizer": "optim.name",
    "warmup": "optim.warmup_steps", "grad_clip": "optim.clip_norm", "max_steps": "run.steps",
    "max_epochs": "run.epochs", "num_epochs": "run.epochs", "num_workers": "data.workers",
    "bs": "data.batch_size", "grad_accum": "optim.accumulate", "gradient_accumulation_steps": "optim.accumulate",
    "tau": "method.temperature", "amp": "run.precision",
}  # fmt: skip
"""What other tools call the same thing; used for suggestions only."""

HARMLESS = {
    "data.workers", "data.cache", "data.timeout", "data.on_error", "run.log_every", "run.save_every", "run.keep_last",
    "run.control", "run.on_nonfinite", "run.tensorboard", "run.parallel", "run.timeout",
}  # fmt: skip
"""Keys that do not change what is computed, or only where something fails; a resumed run may differ in them."""


def parse_config(
    recipe: str, words: Iterable[str] = (), *, preset: str | None = None, file: str | Path | None = None
) -> TrainConfig:
    """Build the configuration of a run; later sources win: defaults, those of the recipe, `preset`, `file`,
    `words`.

    Args:
        recipe: a name of ``avfast recipes``.
        words: overrides ``key=value``; a key may drop its section where that is unambiguous (``lr=1e-3``).
        preset: a named set of overrides of the recipe.
        file: YAML or JSON with the sections data, optim, run and method.

    Raises:
        ConfigError: unknown recipe, preset or key (with a suggestion), or a value of the wrong type or range.

    >>> parse_config("av-align", ["lr=1e-3", "method.dim=64"]).optim.lr
    0.001
    """
    method = get_method(recipe)
    sections = _sections(recipe)
    keys = [f"{s}.{f.name}" for s, cls in sections.items() for f in dataclasses.fields(cls)]
    values: dict[str, Any] = {}
    for source in (
        method.defaults,
        _preset(method, preset),
        read_config_file(file),
        dict(_split(word) for word in words),
    ):
        values |= {_resolve(key, keys, recipe): value for key, value in source.items()}
    texts = {key: _as_text(value) for key, value in values.items()}
    for key, text in texts.items():
        refuse_deep(text, key)
    arguments = [f"--{key}={text}" for key, text in texts.items()]
    parsed = _parse(sections, arguments)
    config = TrainConfig(recipe, **{name: cls(**vars(parsed[name])) for name, cls in sections.items()})
    _check_ranges(config)
    return config


def config_diff(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    *,
    contents: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {}),
    defaults: Mapping[str, Any] | None = None,
) -> list[str]:
    """Lines ``key: old -> new`` for every key that changes what a run computes.

    Args:
        contents: hashes of the files that `old` and `new` name, by key: a file elsewhere with the same content is no
            change, another content at the same place is one.
        defaults: values that a key of a newer version has where the older one did not know it.

    >>> config_diff({"optim.lr": 0.1, "data.workers": 0}, {"optim.lr": 0.2, "data.workers": 2})
    ['optim.lr: 0.1 -> 0.2']
    """
    lines = []
    for key in [*old, *(k for k in new if k not in old)]:
        was, now = (side.get(key, "absent") for side in (old, new))
        held, holds = (side.get(key) for side in contents)
        unknown = key not in old and defaults is not None and now == defaults.get(key, "absent")
        if key in HARMLESS or unknown:
            continue
        if held and holds:
            if held != holds:
                lines.append(f"{key}: {was} (content {held[:12]}) -> {now} (content {holds[:12]})")
        elif was != now:
            lines.append(f"{key}: {was} -> {now}")
    return lines


def describe_options(recipe: str) -> list[str]:
    """Every key of a recipe with its default and its meaning, one line each."""
    lines, own = [], get_method(recipe).defaults
    for section, cls in _sections(recipe).items():
        meaning = _documented(cls)
        for item in dataclasses.fields(cls):
            key = f"{section}.{item.name}"
            lines.append(f"{key}={_as_text(own.get(key, item.default))}  {meaning.get(item.name, '')}")
    return lines


def _documented(cls: type) -> dict[str, str]:
    """The ``Attributes:`` part of a docstring by name."""
    text = inspect.getdoc(cls).split("Attributes:")[-1]
    entries = re.split(r"\n    (?=\w+: )", text)
    return {name.strip(): " ".join(rest.split()) for name, _, rest in (e.partition(":") for e in entries)}


def _sections(recipe: str) -> dict[str, type]:
    return {"data": DataConfig, "optim": OptimConfig, "run": RunConfig, "method": get_method(recipe).Config}


def _split(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals or not key:
        raise ConfigError(f"'{word}': expected key=value")
    return key.lstrip("-"), value


def _resolve(key: str, keys: list[str], recipe: str) -> str:
    if key in keys:
        return key
    tails = [full for full in keys if full.split(".", 1)[1] == key]
    if len(tails) == 1:
        return tails[0]
    if tails:
        raise ConfigError(f"key '{key}' is ambiguous: {', '.join(tails)}")
    near = [ALIASES[key.split(".")[-1]]] if key.split(".")[-1] in ALIASES else []
    near = near or difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    if not near:
        short = {full.split(".", 1)[1]: full for full in keys}
        near = [short[name] for name in difflib.get_close_matches(key.split(".")[-1], list(short), n=1, cutoff=0.5)]
    hint = f"; did you mean '{near[0]}'?" if near else f"; `avfast recipes {recipe}` lists the keys"
    raise ConfigError(f"unknown key '{key}'{hint}")


def _preset(method: type[Method], name: str | None) -> dict[str, Any]:
    if name is None:
        return {}
    if name not in method.presets:
        known = ", ".join(method.presets) or "none"
        raise ConfigError(f"recipe '{method.card.name}' has no preset '{name}'; presets: {known}")
    return dict(method.presets[name])


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _parse(sections: dict[str, type], arguments: list[str]) -> Any:
    try:
        import jsonargparse
    except (ImportError, RuntimeError, OSError) as error:
        raise MissingDependency("jsonargparse", extra="train", purpose="reading the configuration") from error
    parser = jsonargparse.ArgumentParser(exit_on_error=False, add_help=False)
    for name, cls in sections.items():
        parser.add_class_arguments(cls, name)
    try:
        return parser.parse_args(arguments)
    except jsonargparse.ArgumentError as error:
        raise ConfigError(_one_line(str(error))) from error


def _one_line(message: str) -> str:
    found = re.search(r'Parser key "([^"]+)":\s*(.*)', message, re.S)
    text = f"{found[1]}: {found[2]}" if found else message
    text = re.sub(r"<class '([^']+)'>", r"\1", text).replace("typing.", "")
    text = text.replace("Expected a ", "expected ").replace(". Got value:", ", got")
    return " ".join(text.split())


def _check_ranges(config: TrainConfig) -> None:
    smallest = {
        "data.batch_size": 2, "data.workers": 0, "data.timeout": 0, "run.epochs": 0, "run.steps": 1,
        "run.log_every": 1, "run.eval_epochs": 0,
        "run.eval_every": 1, "run.save_every": 1, "run.keep_last": 1, "optim.warmup_steps": 0, "optim.clip_norm": 0,
        "optim.warmup_epochs": 0, "optim.weight_decay": 0, "optim.lr": 0, "optim.lr_batch": 0,
        "optim.accumulate": 1, "run.timeout": 1,
    }  # fmt: skip
    flat = config.to_dict()
    for key, least in smallest.items():
        if flat[key] < least:
            raise ConfigError(f"{key}: expected at least {least}, got {flat[key]}")
    for name in ("momentum", "beta2"):
        if not 0 <= getattr(config.optim, name) < 1:
            raise ConfigError(f"optim.{name}: expected at least 0 and below 1, got {getattr(config.optim, name)}")
