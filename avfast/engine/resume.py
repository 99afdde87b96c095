"""Which checkpoint a request continues from, whether it may, and whether there is anything left to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avfast.engine.checkpoint import load_checkpoint
from avfast.engine.config import TrainConfig, config_diff, parse_config
from avfast.engine.contents import content_hashes
from avfast.engine.demo_data import MADE
from avfast.engine.generations import Found, Generations
from avfast.engine.journal import read_rows
from avfast.engine.sources import open_data
from avfast.errors import CheckpointError, ConfigError
from avfast.methods import get_method

if TYPE_CHECKING:
    from avfast.engine.pretrain import Request


def changes_since(
    state: Mapping[str, Any], config: TrainConfig, flat: Mapping[str, Any], contents: Mapping[str, str],
    fingerprint: str | None,
) -> list[str]:  # fmt: skip
    """Lines that say how a run differs from the one that wrote `state` in what it computes; `flat` is `config` with
    what else the checkpoint holds of it. Without `fingerprint`, data are not compared."""
    defaults = config.defaults()
    changes = config_diff(state["config"], flat, contents=(state["contents"], contents), defaults=defaults)
    if fingerprint is not None and state["split_fingerprint"] != fingerprint:
        changes.append(f"data: fingerprint {state['split_fingerprint'][:12]} -> {fingerprint[:12]}")
    return changes


def refuse_changes(path: Path, changes: list[str]) -> None:
    """
    Raises:
        CheckpointError: there are some.
    """
    if changes:
        listing = "\n".join(f"  {line}" for line in changes)
        raise CheckpointError(
            f"checkpoint '{path}' was written under another configuration:\n{listing}\n"
            "give the old values, another --out, or --force to continue with the new ones"
        )


def checkpoint_to_continue(request: Request, tell: Callable[[str], None]) -> Path | None:
    """The checkpoint that a request asks for, None for a new run; says where the newest one is not the last.

    Raises:
        CheckpointError: there is none where one was asked for, or all that are there are damaged.
        ConfigError: a new run would be written over an old one.
    """
    generations = Generations(request.out / "checkpoints")
    if request.resume == "auto":
        found = newest_of(request.out, tell)
        return None if found is None else found.path
    if request.resume is not None:
        path = Path(request.resume)
        if not path.is_file():
            raise CheckpointError(
                f"--resume: '{path}' does not exist; --resume auto looks in '{generations.folder}'"
            )  # fmt: skip
        return path
    if (generations.present() or generations.steps()) and not request.dry_run and not request.force:
        raise ConfigError(
            f"'{request.out}' already holds a run; continue it with --resume auto, choose another --out, "
            "or overwrite it with --force"
        )
    return None


def newest_of(out: Path, tell: Callable[[str], None] = lambda line: None) -> Found | None:
    """The newest whole checkpoint of a run folder, saying aloud what was found damaged and what that costs."""
    generations = Generations(out / "checkpoints")
    found = generations.newest()
    if found is not None and found.refused:
        log = out / "metrics.jsonl"
        rows = read_rows(log) if log.is_file() else []
        reached = max([generations.reached(), *(row.get("step", 0) for row in rows)])
        for line in found.account(reached):
            tell(line)
    return found


def control_to_continue(out: Path, steps: int, tell: Callable[[str], None]) -> Path | None:
    """The checkpoint of a control that was meant for as many steps; a longer main run needs a new control."""
    found = newest_of(out, tell)
    return found.path if found and load_checkpoint(found.path)["config"].get("steps") == steps else None


def finished(request: Request, tell: Callable[[str], None] = lambda line: None) -> bool:
    """Whether an earlier call of this request came to its end; one that asks for more steps now did not.

    Raises:
        CheckpointError: it did, under another configuration or with other data, and there is no ``--force``.
    """
    if not (request.out / "results.json").is_file() or (found := newest_of(request.out, tell)) is None:
        return False
    state = load_checkpoint(found.path)
    config = parse_config(request.recipe, request.words, preset=request.preset, file=request.config_file)
    wanted, kept = config.to_dict(), state["config"]
    as_long = all(kept.get(key) == wanted[key] for key in ("run.steps", "run.epochs"))
    if not as_long or state["counters"]["step"] != kept["steps"]:
        return False
    flat = {**wanted, "steps": kept["steps"], "processes": kept["processes"]}
    if wanted.get("method.classes") == 0:  # as many as the data have
        flat["method.classes"] = kept["method.classes"]
    fingerprint = None
    if request.data not in MADE:
        inputs = get_method(request.recipe).build(config.method).inputs
        fingerprint = open_data(request.data, inputs).fingerprint
    changes = changes_since(state, config, flat, content_hashes(wanted), fingerprint)
    if not request.force:
        refuse_changes(found.path, changes)
    return True
