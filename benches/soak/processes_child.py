"""One process of `processes`: trains cases beside the others that its launcher started, and saves what it saw.

    python -m torch.distributed.run ... -m avfast.benches.soak.processes_child FOLDER JOBS.json

A job is ``{"name", "case", "steps", "extra", "batch", "in_turn", "broken", "samples", "pause",
"then"}``; see `process_cases.train`.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch

from . import process_cases


def main(folder: Path, jobs: list[dict]) -> int:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rank = int(os.environ.get("RANK", "0"))
    kind = "several" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "alone"
    name = f"rank{rank}.pt" if kind == "several" else "alone.pt"
    seen: dict[str, object] = {}
    for number, job in enumerate(jobs):
        job = dict(job)
        title, began = job.pop("name"), time.monotonic()
        job |= {key: tuple(job.get(key, ())) for key in ("extra", "broken", "then")}
        try:
            found = process_cases.train(folder=folder / f"{kind} {number}", **job)._asdict()
            seen[title] = found | {"seconds": time.monotonic() - began}
        except Exception:
            # The processes are out of step from here on: what follows would only time out.
            seen[title] = {"error": traceback.format_exc()}
            break
    torch.save(seen, folder / name)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())))
