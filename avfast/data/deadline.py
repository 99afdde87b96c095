"""A time limit for reading one sample: a decoder that spins or a disk that does not answer must not stop a run.

Neither can be interrupted from outside, so reading is done in a thread of its own. One that does not come back in time
is left to itself and replaced; its file is not read again before it has ended. So a file costs one thread at most, and
a process with many threads that hang has lost its disk and says so.
"""

from __future__ import annotations

import os
import queue
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from avfast.errors import RunFault, UnreadableFile

MANY = 8
"""Files that may hang at once before it is no longer the files' fault."""


class TimeLimit:
    """Calls functions, each for at most ``seconds``; 0 calls them here, without a limit.

    It must be possible to interrupt Python meanwhile: code that computes in C without releasing the interpreter lock
    (decoders of PyAV and Pillow release it) is not limited.
    """

    def __init__(self, seconds: float) -> None:
        if not 0 <= seconds < threading.TIMEOUT_MAX:
            raise ValueError(f"avfast.data: timeout: expected seconds from 0 on, got {seconds}")
        self.seconds = float(seconds)
        self._forget()

    def _forget(self) -> None:
        self._owner, self._asked = os.getpid(), None
        self._hanging: dict[str, _Call] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"seconds": self.seconds}  # threads stay where they are

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.seconds = state["seconds"]
        self._forget()

    def run(self, path: object, function: Callable[..., Any], *arguments: Any) -> Any:
        """What ``function(*arguments)`` returns or raises.

        Raises:
            UnreadableFile: it did not end in time (cause ``timeout``), or an earlier call for ``path`` still runs.
            RunFault: so many files hang that the fault is not theirs.
        """
        if not self.seconds:
            return function(*arguments)
        if self._owner != os.getpid():
            self._forget()  # a fork has no threads
        name = str(path)
        self._hanging = {key: call for key, call in self._hanging.items() if not call.done.is_set()}
        if name in self._hanging:
            raise UnreadableFile(path, "timeout", "is still being read since an earlier try")
        if self._asked is None:
            self._asked = queue.SimpleQueue()
            threading.Thread(target=_serve, args=(self._asked,), name="avfast-read", daemon=True).start()
            weakref.finalize(self, self._asked.put, None)  # the thread ends with its owner
        call = _Call(function, arguments)
        self._asked.put(call)
        if not call.done.wait(self.seconds):
            self._asked.put(None)  # the thread ends if it ever comes back
            self._asked, self._hanging[name] = None, call
            if len(self._hanging) >= MANY:
                raise RunFault(
                    f"reading hangs: {len(self._hanging)} files did not answer within {self.seconds:g} s each, the "
                    f"last is {name}; is the disk or the network file system under '{Path(name).parent}' still there?"
                )
            raise UnreadableFile(path, "timeout", f"could not be read within {self.seconds:g} s (data.timeout)")
        if call.error is None:
            return call.value
        try:
            raise call.error
        finally:
            del call  # an error and the frame that raised it would keep each other


class _Call:
    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.function, self.arguments = function, arguments
        self.value: Any = None
        self.error: BaseException | None = None
        self.done = threading.Event()


def _serve(asked: queue.SimpleQueue) -> None:
    while (call := asked.get()) is not None:
        try:
            call.value = call.function(*call.arguments)
        except BaseException as error:  # noqa: BLE001 - it belongs to the caller
            call.error = error
        call.done.set()
        del call  # its sample must not live until the next one is read
