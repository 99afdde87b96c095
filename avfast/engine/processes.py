"""Several processes of one run: who goes first, and how they end together when one of them is lost.

Steps wait for each other in collectives, which know a time limit (``run.timeout``). What the main process does alone,
such as decoding, evaluating or writing a large checkpoint, may take any time: the others wait for that at the store of
their launcher, where they also hear of a failure.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from typing import Any

import torch
import torch.distributed as dist

from avfast.engine.signals import StopRequest
from avfast.errors import AvfastError

ROLL_CALL = 5.0
"""Seconds in which a process that still runs says so after a collective failed."""
BEAT = 0.5
"""Seconds between two signs of life."""
LAST_WAIT = 20.0
"""Seconds to wait for the others after a signal came."""
BROKEN = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "Timed out waiting", "NCCL",
          "Broken pipe", "Socket Timeout")  # fmt: skip
"""What collectives say that lost a process."""
_barriers = count()


class LostProcess(AvfastError):
    """Another process of this run failed, was killed or hangs. ``said`` is what it said itself, if anything."""

    code = 3

    def __init__(self, message: str, said: str = "") -> None:
        super().__init__(message)
        self.said = said


def rank_and_world() -> tuple[int, int]:
    """Number of this process and of all, as launchers tell them; (0, 1) without one."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rank_and_world()[0] == 0


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Within, collectives wait so long for a process that does not come. Every process must enter; the time it takes
    them to come here does not count."""
    if rank_and_world()[1] == 1 or not dist.is_initialized():
        yield
        return
    wait_for_all()
    _set_timeout(timedelta(seconds=seconds))
    with _heart():
        yield
    _set_timeout(dist.default_pg_timeout)


@contextmanager
def _heart() -> Iterator[None]:
    """Within, a thread counts on at the store: a process that waits for one which has noticed a loss, but whose own
    connections are whole, is not the one that was lost."""
    store, rank, end = _client(), rank_and_world()[0], threading.Event()

    def beat() -> None:
        with suppress(RuntimeError):  # the store went with the launcher
            while not end.wait(BEAT):
                store.add(f"beat/{rank}", 1)

    thread = threading.Thread(target=beat, name="avfast-heart", daemon=True)
    if store is not None:
        thread.start()
    try:
        yield
    finally:
        end.set()
        if store is not None:
            thread.join()


def _set_timeout(time: timedelta) -> None:
    dist.distributed_c10d._set_pg_timeout(time, dist.group.WORLD)


def wait_for_all(stop: StopRequest | None = None) -> None:
    """Return when every process has come here, however long that takes.

    Raises:
        LostProcess: one of them failed meanwhile, or did not come soon after a signal.
    """
    _, world = rank_and_world()
    if world == 1 or not dist.is_initialized():
        return
    store = _store()
    if store is None:
        dist.barrier()
        return
    key, pause, until = f"barrier/{next(_barriers)}", 0.005, None
    store.add(key, 1)
    while store.add(key, 0) < world:
        _raise_if_failed(store)
        if until is None and stop is not None and stop.signal_name is not None:
            until = time.monotonic() + LAST_WAIT
        if until is not None and time.monotonic() > until:
            raise LostProcess(f"{stop.signal_name}, and not all of {world} processes came to save their state")
        time.sleep(pause)
        pause = min(0.2, 1.5 * pause)


def anywhere(accelerator: Any, flag: bool) -> bool:
    """Whether `flag` is set in one process or more; all take part."""
    if accelerator.num_processes == 1:
        return flag
    votes = torch.tensor(float(flag), device=accelerator.device)
    return accelerator.reduce(votes, reduction="sum").item() > 0


@contextmanager
def main_first(device: str = "cpu") -> Iterator[None]:
    """The main process goes through the block first, the others after it, finding what it made."""
    if rank_and_world()[1] == 1:
        yield
        return
    from accelerate import PartialState

    PartialState(cpu=device == "cpu")  # joins the processes, unless that has been done
    if not is_main():
        wait_for_all()
    yield
    if is_main():
        wait_for_all()


@contextmanager
def together(where: Callable[[], str] = lambda: "") -> Iterator[None]:
    """What fails within is told to the other processes; a collective that failed with another process says which.

    Args:
        where: what was being done, for the message.

    Raises:
        LostProcess: in place of the error of a collective.
    """
    try:
        yield
    except (LostProcess, KeyboardInterrupt):
        raise
    except Exception as error:
        store = _store() if rank_and_world()[1] > 1 else None
        if store is None:
            raise
        if _is_broken(error) or _is_broken(error.__cause__):
            raise _lost(store, str(error).splitlines()[0], where()) from error
        text = str(error) if isinstance(error, AvfastError) else f"{type(error).__name__}: {str(error).strip()}"
        _tell(store, text)
        raise


def words_to_print(error: AvfastError) -> str | None:
    """What this process has to say of an error; None where another one says it."""
    rank, world = rank_and_world()
    text = getattr(error, "said", "") or str(error)
    store = _store() if world > 1 else None
    if store is None:
        return str(error) if rank == 0 else f"process {rank}: {error}"
    try:
        return _first_to_say(store, error, text)
    except RuntimeError:  # the store went with the launcher
        return str(error)


def _first_to_say(store: Any, error: AvfastError, text: str) -> str | None:
    rank, world = rank_and_world()
    lost = isinstance(error, LostProcess)
    key = "said/lost" if lost and not error.said else f"said/{hashlib.sha256(text.encode()).hexdigest()}"
    until = time.monotonic() + 2
    while rank and store.add(key, 0) == 0 and time.monotonic() < until:
        time.sleep(0.02)  # the first process says what all say
    if store.add(key, 1) > 1:
        return None
    return str(error) if rank == 0 or lost else f"process {rank} of {world}: {error}"


def _is_broken(error: BaseException | None) -> bool:
    return isinstance(error, (RuntimeError, OSError)) and any(mark in str(error) for mark in BROKEN)


def _tell(store: Any, text: str) -> None:
    rank, _ = rank_and_world()
    try:
        store.set(f"failed/{rank}", json.dumps(text))
    except RuntimeError:
        return  # the store went with its host; there is nobody to tell


def _raise_if_failed(store: Any) -> None:
    _, world = rank_and_world()
    for rank in range(world):
        if store.check([f"failed/{rank}"]):
            text = json.loads(store.get(f"failed/{rank}"))
            raise LostProcess(f"process {rank} of {world} stopped: {text}", said=text)


def _lost(store: Any, cause: str, where: str) -> LostProcess:
    """Who is missing: every process whose collective fails calls this, and waits a moment for the others."""
    own, world = rank_and_world()
    where = f" {where}" if where else ""
    missing = list(range(world))
    try:
        store.set(f"alive/{own}", "1")
        beats = [store.add(f"beat/{rank}", 0) for rank in range(world)]
        until = time.monotonic() + ROLL_CALL
        while missing and time.monotonic() < until:
            _raise_if_failed(store)
            missing = [rank for rank in missing if not store.check([f"alive/{rank}"])]
            time.sleep(0.05)
        # One that hangs lives too: it is to blame where no other is.
        missing = [rank for rank in missing if store.add(f"beat/{rank}", 0) == beats[rank]] or missing
    except LostProcess as lost:
        return lost
    except RuntimeError:
        return LostProcess(f"lost the other processes{where} ({cause})")
    cause = cause.split("] ")[-1].split(". ")[0]
    if not missing:
        return LostProcess(f"the connection between the {world} processes broke{where} ({cause})")
    names = ", ".join(map(str, missing))
    process = f"process {names} does" if len(missing) == 1 else f"processes {names} do"
    return LostProcess(f"{process} not answer, of {world}: killed, out of memory or hanging{where} ({cause})")


@functools.cache
def _store() -> Any:
    """The client of the main thread."""
    return _client()


def _client() -> Any:
    """A client of the launcher's key-value store, for keys of this run and attempt; None where there is none."""
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if address is None or port is None or not dist.is_available():
        return None
    if not dist.is_initialized() and os.environ.get("TORCHELASTIC_USE_AGENT_STORE", "").lower() != "true":
        return None  # the first process opens it later
    attempt = os.environ.get("TORCHELASTIC_RUN_ID", ""), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        store = dist.TCPStore(address, int(port), is_master=False, timeout=timedelta(seconds=10))
    except (RuntimeError, ValueError):
        return None
    return dist.PrefixStore("/".join(("avfast", *attempt)), store)
