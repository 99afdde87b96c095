"""Recipes that train in several runs: what `avfast pretrain` calls for them instead of a single training."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from avfast.engine.pretrain import Request

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
