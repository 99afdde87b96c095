"""Loader processes leave signals to the process that they read for.

Ctrl-C in a terminal, and a scheduler that ends a job, reach every process of a run. A worker that died of it would take
the training down before its state is saved.
"""

from __future__ import annotations

import os
import signal
import threading


def shield_worker(worker: int) -> None:
    """``worker_init_fn`` of a loader: Ctrl-C is ignored, and SIGTERM unless it comes from the parent, which ends its
    workers so. A worker whose parent is gone ends by itself, as ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):
        return
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for, args=(parent,), daemon=True, name="signals").start()


def _wait_for(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
