"""``avfast`` in a process that fails in its own way after some steps, if it is the one that shall.

    python -m torch.distributed.run ... -m avfast.benches.soak.process_faults_child KIND RANK FOLDER avfast's words

When it fails it writes the time into ``FOLDER/failed_at``.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from avfast.cli import main
from avfast.engine.loop import Trainer
from avfast.errors import DataError

STEPS = 3
"""Done before it fails."""


def fail(kind: str) -> None:
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "hangs":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "raises":
        raise RuntimeError("a bug that one process meets")
    elif kind == "memory":
        raise MemoryError("cannot allocate 7 GiB")
    elif kind == "data":
        raise DataError("/data/clips: the folder is gone")


if __name__ == "__main__":
    kind, rank, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    step = Trainer._train_step

    def sometimes(self, batch):
        if self.step == STEPS and os.environ["RANK"] == rank:
            (folder / "failed_at").write_text(repr(time.time()))
            fail(kind)
        return step(self, batch)

    Trainer._train_step = sometimes
    sys.exit(main(sys.argv[4:]))
