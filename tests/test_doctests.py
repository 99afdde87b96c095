"""Every example in the documentation runs and prints what it says; every public name has one."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import torch

import avfast

# Containers of results, shown in the examples of the functions that return them.
WITHOUT_EXAMPLE = {"BatchNormReport", "ChannelWatch", "CrossModalInit"}
# The other dimensions of AdaptiveBatchNorm2d, whose docstring they point to.
WITHOUT_EXAMPLE |= {"AdaptiveBatchNorm1d", "AdaptiveBatchNorm3d"}


def modules() -> list[str]:
    """Every module of avfast, except the kernels and benches that come from folders of their own."""
    apart = ("avfast.kernels", "avfast.benches", "avfast._native", "avfast.libavfast", "avfast.__main__")
    found = [m.name for m in pkgutil.walk_packages(avfast.__path__, "avfast.") if not m.name.startswith(apart)]
    return ["avfast", *found]


@pytest.mark.parametrize("name", modules())
def test_examples_of_module(name):
    module = importlib.import_module(name)
    finder, runner = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestRunner(verbose=False)
    printed: list[str] = []
    for test in finder.find(module, name):
        if test.examples:
            test.globs = {"torch": torch, "nn": torch.nn, "avfast": avfast, **vars(module)}
            torch.manual_seed(0)
            runner.run(test, out=printed.append)
    assert runner.failures == 0, "".join(printed)


def test_the_examples_are_found():
    """A finder that found nothing would pass every test above."""
    finder = doctest.DocTestFinder()
    examples = sum(len(t.examples) for name in modules() for t in finder.find(importlib.import_module(name), name))
    assert examples >= 40


@pytest.mark.parametrize("name", sorted(set(avfast.__all__) | set(avfast.nn.__all__)))
def test_public_names_are_documented_by_example(name):
    thing = getattr(avfast, name, None) or getattr(avfast.nn, name)
    assert thing.__doc__ and len(thing.__doc__) > 30, f"{name}: no docstring"
    if thing is avfast.nn:
        return
    assert ">>>" in thing.__doc__ or name in WITHOUT_EXAMPLE, f"{name}: its docstring has no example"


@pytest.mark.parametrize("name", sorted(avfast.__all__))
def test_public_names_are_not_private_things(name):
    assert not name.startswith("_") and getattr(avfast, name) is not None


def test_public_names_are_sorted():
    assert avfast.__all__ == sorted(avfast.__all__) and avfast.nn.__all__ == sorted(avfast.nn.__all__)
