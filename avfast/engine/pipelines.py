"""Recipes that train in several runs: what `avfast pretrain` calls for them instead of a single training."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from avfast.engine.pretrain import Request
from avfast.engine.record import LOG, START, read_json
from avfast.engine.stages import rebuild_stages

STAGE_REPORTS = {
    "fusion-tuning": ("avfast.engine.finetune_report", ("audio", "video", "joint")),
    "sound2scene": ("avfast.engine.scene.report", ("image", "localiser", "generator", "audio")),
}
"""Recipe to the module whose ``compose`` makes the report of all its stages, and the names of these."""

PIPELINES = {"sound2scene": "avfast.engine.scene.pipeline:train_scene"}
"""Recipe to ``module:function``; the function takes a request and returns the path of its report, or None."""


def pipeline_of(request: Request) -> Callable[..., Path | None] | None:
    """The pipeline of a recipe, or None where there is none or the request names one stage of it.

    >>> pipeline_of(Request("sound2scene", "demo", Path("o"))).__name__
    'train_scene'
    >>> pipeline_of(Request("sound2scene", "demo", Path("o"), words=["stage=audio"])) is None
    True
    """
    one_stage = any(word.partition("=")[0] in ("stage", "method.stage") for word in request.words)
    if one_stage or request.recipe not in PIPELINES:
        return None
    module, name = PIPELINES[request.recipe].split(":")
    return getattr(importlib.import_module(module), name)


def pipeline_report(folder: Path) -> Callable[..., int] | None:
    """What ``avfast report`` calls for a folder of stages, or None for that of one run. The function takes the folder,
    where the report goes (folder and name) and `say`, and returns a status."""
    facts, _ = read_json(folder / START)
    recipe = facts.get("pipeline")
    if recipe is None and not any((folder / name).is_file() for name in (START, LOG)):
        # Killed before its end, or of a version that kept nothing: known by the folders of its stages.
        counts = {
            name: sum((folder / stage / LOG).is_file() for stage in stages)
            for name, (_, stages) in STAGE_REPORTS.items()
        }
        recipe = max(counts, key=counts.get) if any(counts.values()) else None
    if recipe not in STAGE_REPORTS:
        return None
    module, stages = STAGE_REPORTS[recipe]
    compose = importlib.import_module(module).compose

    def run(folder: Path, base: Path, name: str, *, say: Callable[[str], None]) -> int:
        return rebuild_stages(folder, recipe, stages, compose, base, name, say)

    return run
