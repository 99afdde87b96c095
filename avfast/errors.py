"""Errors a user can act on.

Ops raise ``ValueError`` and ``TypeError`` like any tensor function. Everything around them (data, configuration,
checkpoints, backends) raises a child of :class:`AvfastError`; the command line prints its message and exits with
status 2, without a traceback.
"""

from __future__ import annotations

from avfast.printable import printable


class AvfastError(Exception):
    """Base of all errors that describe something the user can change."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its type where it says nothing.

    >>> first_line(ValueError("two\\nlines")), first_line(KeyError())
    ('two', 'KeyError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class BackendError(AvfastError, RuntimeError):
    """A backend was asked for by name and cannot run; the message is the reason."""


class ConfigError(AvfastError, ValueError):
    """A recipe, option or value is unknown or out of range."""


class DataError(AvfastError, ValueError):
    """A file, folder or manifest cannot be used; the message names it."""


class CheckpointError(AvfastError, RuntimeError):
    """A checkpoint is missing, damaged or belongs to another configuration."""


class MissingDependency(AvfastError, ImportError):
    """An optional library is not installed or does not import.

    >>> str(MissingDependency("av", extra="train", purpose="reading media files"))
    "reading media files needs the package 'av': pip install 'avfast[train]'"
    """

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package '{package}': pip install 'avfast[{extra}]'")
        self.package = package
        self.extra = extra


class RunFault(AvfastError):
    """Something around a run failed (the disk, the data folder, a process) and what was trained is kept: once that is
    repaired, the same command with ``--resume auto`` goes on. ``code`` is the exit status of the command line."""

    code = 3


class UnreadableFile(DataError):
    """A file that cannot give what was asked of it: ``path``, ``cause`` (one word) and ``detail`` (a clause)."""

    def __init__(self, path: object, cause: str, detail: str) -> None:
        super().__init__(printable(f"{path}: {detail}"))
        self.path, self.cause, self.detail = str(path), cause, detail

    def __reduce__(self) -> tuple:
        return type(self), (self.path, self.cause, self.detail)
