"""The long checks there are, by name. One file each, with one function and what it needs to be called.

A file offers

* ``check(size, seed, say) -> list[Row]``: does its work ``size`` times (steps, kills, files: see ``UNIT``), everything
  random drawn from ``seed``, and returns `rows.Row`. ``say(line)`` reports progress. What does not hold is a failure
  in a row, not an exception; a library that is absent makes a row with ``missing``.
* ``UNIT``: what is counted. ``SMALL``: the size the tests use, a matter of seconds. ``LONG``: the size of `make soak`,
  about ``MINUTES`` minutes on one core.

A file that is started as a child of a check, or shared by several, is no check and is not named here.
"""

from __future__ import annotations

import importlib
from types import ModuleType

#: name -> module. Kept in the order in which they run and reports show them.
CHECKS: dict[str, str] = {
    "steps": "steps",
    "kill": "kill",
    "faults": "faults",
    "fuzz_media": "fuzz_media",
    "processes": "processes",
    "folder": "folder",
    "fuzz_ops": "fuzz_ops",
    "sanitizers": "sanitizers",
    "threads": "threads",
}


def load(name: str) -> ModuleType:
    """The module of one check; an unknown name is answered with the known ones."""
    if name not in CHECKS:
        from avfast.errors import ConfigError

        raise ConfigError(f"avfast.benches.soak: expected one of {', '.join(CHECKS)}, got {name!r}")
    return importlib.import_module(f".{CHECKS[name]}", __package__)
