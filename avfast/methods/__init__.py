"""Systems, one file each. A file named ``some_recipe.py`` in this folder is the recipe ``some-recipe``."""

from __future__ import annotations

import difflib
import importlib
import pkgutil

from avfast.errors import ConfigError
from avfast.methods.base import Inputs, Method, MethodCard, StepOutput

__all__ = ["PLANNED", "Inputs", "Method", "MethodCard", "StepOutput", "get_method", "recipe_names"]

PLANNED = (
    "av-align", "densecl", "cim", "fusion-tuning", "sound2scene", "lgsimclr",
    "viewrefer", "meta-pretrain", "elo", "multitask", "distill", "temporal-ssl",
)  # fmt: skip
"""The recipes this project sets out to hold; :func:`recipe_names` says which of them exist."""


def recipe_names() -> list[str]:
    """Recipes that can run, found by looking at the files of this folder; imports none of them."""
    modules = (m.name for m in pkgutil.iter_modules(__path__))
    found = [name.replace("_", "-") for name in modules if name != "base" and not name.startswith("_")]
    return sorted(found, key=lambda name: (PLANNED.index(name) if name in PLANNED else len(PLANNED), name))


def get_method(name: str) -> type[Method]:
    """The method class of a recipe.

    Raises:
        ConfigError: no such recipe; the message suggests the nearest name.
    """
    names = recipe_names()
    if name not in names:
        if name in PLANNED:
            raise ConfigError(f"recipe '{name}' is planned but not part of this version; available: {', '.join(names)}")
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(f"unknown recipe '{name}': {hint}available: {', '.join(names)}")
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__:
            if value.card.name == name:
                return value
    raise ConfigError(f"{module.__name__} defines no Method whose card is named '{name}'")
