"""Starting several processes as users do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def launcher(kind: str, processes: int) -> list[str]:
    """The words before ``-m MODULE``. ``accelerate`` and ``accelerate fsdp`` take a machine without a GPU too; their
    --multi_gpu means several processes."""
    if kind == "torchrun":
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    common = ["--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no",
              "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip
    how = ["--use_fsdp"] if kind == "accelerate fsdp" else ["--multi_gpu"]
    return [sys.executable, "-m", "accelerate.commands.launch", *how, *common]


def start(kind: str, processes: int, module: str, words: list[str]) -> subprocess.Popen:
    """``python -m module words`` in so many processes; both streams can be read from the one that is returned."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "COLUMNS": "200"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [*launcher(kind, processes), "-m", module, *words]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
