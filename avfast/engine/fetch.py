"""Batches out of a loader, and in words what ended them: a killed process, a read that hangs, a broken file."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch.utils.data
from torch.utils.data import DataLoader

from avfast.data.keyed import KeyedDataset
from avfast.errors import AvfastError, DataError, RunFault

CAUSES = {
    "SIGKILL": "most often because memory ran out, which the kernel's log says; fewer data.workers, a smaller "
    "data.batch_size or data.cache=none need less",
    "SIGBUS": "most often because shared memory (/dev/shm) ran out; enlarge it, or use data.workers=0",
}
CRASH = "its decoder crashed; take the file out if it happens again"


class DataLost(Exception):
    """No further batch comes, and no step is under way. ``reason`` is the error for the user."""

    def __init__(self, reason: AvfastError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def fetched(loader: DataLoader) -> Iterator[dict[str, Any]]:
    """The batches of one pass over a loader.

    Raises:
        DataLost: a loader process died, reading hangs, or a file is broken where that is an error. It comes from here
            and never in the middle of a step, where torch would raise it too.
    """
    with _DEATHS.use(loader.num_workers > 0) as waiting:
        batches = None
        while True:
            patience = _Patience(loader)
            try:
                with patience, waiting():  # torch may raise anywhere in the second, and a thread is to start whole
                    batches = iter(loader) if batches is None else batches
                    batch = next(batches)
            except StopIteration:
                return
            except Exception as error:
                if (reason := _hang(loader) if patience.ended else explain(error, loader)) is None:
                    raise
                close_loader(loader)  # before torch hears of deaths, which it would raise in the midst of what follows
                raise DataLost(reason) from error
            yield batch


def explain(error: Exception, loader: DataLoader) -> AvfastError | None:
    """An error of a loader for the person at the terminal; None for one that is a mistake in the program."""
    text = str(error)
    if isinstance(error, AvfastError):
        # From a loader process, the whole traceback comes as one string.
        kind = RunFault if isinstance(error, RunFault) else DataError
        return kind(text.rsplit(f"{type(error).__name__}: ", 1)[-1].strip())
    if isinstance(error, RuntimeError) and "DataLoader worker (pid" in text:
        return _death(text, loader)
    if isinstance(error, RuntimeError) and "DataLoader timed out" in text:
        return _hang(loader)
    if isinstance(error, (OSError, EOFError)) and _dies(loader):
        return _death("", loader)  # it was handing a batch over, and torch has not heard of it yet
    if isinstance(error, OSError) or (isinstance(error, RuntimeError) and "Too many open files" in text):
        return RunFault(f"the loader failed: {text.splitlines()[0]}")
    return None


def _dies(loader: DataLoader, within: float = 1.0) -> bool:
    """Whether a loader process has ended, or does within so many seconds: its connection breaks before it is gone."""
    workers, until = getattr(loader._iterator, "_workers", []), time.monotonic() + within
    while workers and all(worker.is_alive() for worker in workers):
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return bool(workers)


def _hang(loader: DataLoader) -> RunFault:
    files = [path for worker in range(loader.num_workers) if (path := _reading(loader, worker))]
    where = f"; its processes are reading {', '.join(files)}" if files else ""
    return RunFault(f"the loader hangs: no batch within {loader.timeout:g} s{where}")


class _Patience:
    """Ends the processes of a loader that are waited for longer than its time limit. Torch keeps that limit only until
    a batch is announced: the file handles of its tensors it then asks of the process that made it, without any limit,
    and one that hangs in a later file never answers. ``ended`` tells whether that was so."""

    SLACK = 2.0  # the limit of torch comes first

    def __init__(self, loader: DataLoader) -> None:
        self.loader, self.ended, self._timer = loader, False, None

    def __enter__(self) -> None:
        if self.loader.num_workers and self.loader.timeout:
            self._timer = threading.Timer(self.loader.timeout + self.SLACK, self._end)
            self._timer.daemon = True
            self._timer.start()

    def __exit__(self, *error: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _end(self) -> None:
        self.ended = True
        for worker in getattr(self.loader._iterator, "_workers", []):
            worker.kill()


def _death(text: str, loader: DataLoader) -> RunFault:
    workers = list(enumerate(getattr(loader._iterator, "_workers", [])))
    dead = [(number, w) for number, w in workers if w.exitcode] or [(n, w) for n, w in workers if not w.is_alive()]
    pid = re.search(r"\d+", text)
    who, how, why, where = f"loader process {pid[0] if pid else '?'}", "died", "", ""
    if dead:
        number, worker = dead[0]
        who, code = f"loader process {worker.pid}", worker.exitcode or 0
        name = signal.Signals(-code).name if code < 0 else ""
        how = f"was killed by {name}" if name else f"ended with status {code}"
        path = _reading(loader, number)
        where = f" while it read {path}" if path else ""
        why = ", " + CAUSES.get(name, CRASH if path else "it crashed") if name else ""
    return RunFault(f"{who} {how}{where}{why}")


def _reading(loader: DataLoader, worker: int) -> str | None:
    """The file that a loader process is at."""
    dataset = getattr(loader.dataset, "dataset", loader.dataset)  # a control wraps the data set
    if not isinstance(dataset, KeyedDataset) or dataset.beacon is None or worker >= len(dataset.beacon):
        return None
    index = int(dataset.beacon[worker])
    return None if index < 0 else str(dataset.source.records[index].path)


class _Deaths:
    """Torch raises the death of a loader process from a signal handler, wherever the main thread is at that moment;
    between a forward pass and the end of the optimiser's step that would leave half a step behind. While this is in
    use, it raises only in ``with waiting():``, which stands for waiting for a batch, and what was missed is raised
    there. One for the process, as there is one handler."""

    def __init__(self) -> None:
        self.users, self.torchs = 0, None
        self._waiting = self._missed = self._inside = False

    def _handle(self, number: int, frame: Any) -> None:
        if not self._waiting:
            self._missed = True
        elif callable(self.torchs) and not self._inside:  # it calls the handler that it found, which may be this one
            self._inside = True
            try:
                self.torchs(number, frame)
            finally:
                self._inside = False

    @contextmanager
    def use(self, processes: bool) -> Iterator[Callable[[], AbstractContextManager]]:
        if not processes or threading.current_thread() is not threading.main_thread():
            yield nullcontext  # only the main thread may set handlers, and only there torch does
            return
        self.users += 1
        try:
            yield self._wait
        finally:
            self.users -= 1
            if not self.users and signal.getsignal(signal.SIGCHLD) == self._handle:
                signal.signal(signal.SIGCHLD, self.torchs if self.torchs is not None else signal.SIG_DFL)

    @contextmanager
    def _wait(self) -> Iterator[None]:
        self._waiting = True
        try:
            if self._missed:
                self._missed = False
                self._handle(signal.SIGCHLD, None)
            yield
        finally:
            self._waiting = False
            # The first iterator of a process puts torch's handler in place, once for its whole life.
            if signal.getsignal(signal.SIGCHLD) != self._handle:
                self.torchs = signal.signal(signal.SIGCHLD, self._handle)


_DEATHS = _Deaths()


def close_loader(loader: DataLoader) -> None:
    """End the processes of a loader now. Left to torch, those of a loader that failed are waited for, 5 s each."""
    iterator, loader._iterator = loader._iterator, None
    shut_down = getattr(iterator, "_shutdown_workers", None)
    if shut_down is None:
        return
    utilities = torch.utils.data._utils
    patience = utilities.MP_STATUS_CHECK_INTERVAL
    utilities.MP_STATUS_CHECK_INTERVAL = 0.2
    try:
        shut_down()
        for worker in iterator._workers:
            if worker.is_alive():  # it does not listen, as in a decoder that never ends
                worker.kill()
                worker.join()
    finally:
        utilities.MP_STATUS_CHECK_INTERVAL = patience
