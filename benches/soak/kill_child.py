"""A process that imports avfast once and forks a run of the command line for every line on its input.

Started by `kill`. A line is JSON: ``argv`` for the command line, ``log`` for its output, and when to end it with
SIGKILL: ``cpu`` (after so many seconds of processor time) or ``call`` (instead of the call with that number among those
that flush, rename, link or remove a file). The answer is a line too: ``status`` as of a shell, negative for a signal,
and of a run that ended by itself its ``cpu`` seconds and ``calls``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

CALLS = ("fsync", "replace", "rename", "link", "unlink", "remove")
"""Functions of `os` that a run changes its folder with."""


def main() -> None:
    _import()
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), flush=True)


def _import() -> None:
    """What a run imports; nothing is computed, so that there are no threads to lose in a fork."""
    import accelerate  # noqa: F401
    import av  # noqa: F401
    import jsonargparse  # noqa: F401
    import safetensors.torch  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    import transformers.models.resnet.modeling_resnet  # noqa: F401

    import avfast.cli
    import avfast.engine.finetune
    import avfast.engine.pretrain
    import avfast.engine.scene.pipeline  # noqa: F401


def _run(order: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        facts = Path(folder) / "facts.json"
        child = os.fork()
        if child == 0:
            try:
                code = _child(order, facts)
            except BaseException:
                import traceback

                traceback.print_exc()
                code = 70
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        known = json.loads(facts.read_text()) if facts.is_file() else {}
    return {"status": status, **known}


def _child(order: dict[str, Any], facts: Path) -> int:
    import torch

    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    torch.set_num_threads(1)
    _without_pictures()
    calls = _count_calls(order.get("call"))
    if "cpu" in order:
        threading.Thread(target=_kill_after, args=(order["cpu"],), daemon=True).start()
    from avfast.cli import main as command_line

    began = time.process_time()
    code = command_line(order["argv"])
    facts.write_text(json.dumps({"cpu": time.process_time() - began, "calls": calls[0]}))
    return code


def _without_pictures() -> None:
    """Drawing takes longer than these trainings, and no state follows from it."""
    from avfast.engine import figures, figures_images, figures_maps

    for module in (figures, figures_images, figures_maps):
        if hasattr(module, "matplotlib_figure"):
            module.matplotlib_figure = lambda: None


def _count_calls(fatal: int | None) -> list[int]:
    """Count calls of `CALLS` in this process; SIGKILL instead of the one with the number `fatal`, from 1 on."""
    count, own = [0], os.getpid()

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if os.getpid() == own:  # workers are none of it
                count[0] += 1
                if count[0] == fatal:
                    os.kill(own, signal.SIGKILL)
            return function(*arguments, **options)

        return call

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    return count


def _kill_after(seconds: float) -> None:
    began = time.process_time()
    while time.process_time() - began < seconds:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
