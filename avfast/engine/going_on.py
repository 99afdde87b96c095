"""What to do with a run: go on with it, take its networks home, look at it again."""

from __future__ import annotations

import json
from pathlib import Path

from avfast.engine.record import RunSummary


def going_on(run: RunSummary, folder: str) -> list[str]:
    """A line for each thing that can be done next.

    Args:
        folder: what the lines call the run's folder; in a report, which may be moved with it, that is ``RUN``.
    """
    lines = [f"`{folder}` is the folder of this report"] if folder == "RUN" else []
    last = run.out / "checkpoints" / "last.pt"
    if run.stopped != "finished" and last.is_file() and run.command:
        lines.append(f"go on where it stopped: `{resuming(run.command)}`")
    ready, plain = exported(run.out / "export")
    if ready:
        names = ", ".join(f"`{folder}/export/{name}`" for name in ready)
        lines.append(f"trained networks for `transformers.AutoModel.from_pretrained(FOLDER)`: {names}")
    if plain:
        names = ", ".join(f"`{folder}/export/{name}/model.safetensors`" for name in plain)
        lines.append(f"weights for `safetensors.torch.load_file(FILE)`, layers in the config.json beside each: {names}")
    if ready or plain:
        lines.append(f"what they take as input: `{folder}/export/avfast.json`")
    lines.append(f"write this report and its pictures again: `avfast report {folder}`")
    return lines


def resuming(command: str) -> str:
    """The command that continues what `command` began.

    >>> resuming("avfast pretrain --data d --force")
    'avfast pretrain --data d --resume auto'
    >>> resuming("avfast pretrain --data d --resume auto lr=1")
    'avfast pretrain --data d --resume auto lr=1'
    """
    kept = command.replace(" --force", "")
    return kept if " --resume" in kept else f"{kept} --resume auto"


def exported(folder: Path) -> tuple[list[str], list[str]]:
    """Names of exported modules: those that transformers reads, and those that are plain weights."""
    ready, plain = [], []
    for config in sorted(folder.glob("*/config.json")):
        try:
            facts = json.loads(config.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        known = isinstance(facts, dict) and "model_type" in facts
        (ready if known else plain).append(config.parent.name)
    return ready, plain
