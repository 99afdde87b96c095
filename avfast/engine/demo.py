"""``avfast demo``: the whole of avfast on one page, in about two minutes on two cores."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path

import torch

from avfast.data.outputs import require_folder
from avfast.engine.build import build_method
from avfast.engine.checkpoint import write_atomic
from avfast.engine.closing import closing_lines
from avfast.engine.conclude import Outcome
from avfast.engine.config import parse_config
from avfast.engine.dead_channels import batch_norms
from avfast.engine.plan import probe_step
from avfast.engine.pretrain import Request, pretrain
from avfast.engine.record import Section
from avfast.engine.report import REPORT
from avfast.engine.signals import Interrupted
from avfast.engine.tables import align_tables
from avfast.errors import ConfigError, DataError
from avfast.methods import Method

RECIPE = "av-align"
KERNEL_TABLE_SECONDS = 10.0
SCAN_FILE = "media-scan.json"
OP_SPEED = (
    "Op speed, not training speed: single calls in this run on this machine; a training does much else besides, and "
    "its clips/s are under Training. Peak memory: eager to avfast. Error: distance of avfast's answer from a float64 "
    "one over the norm of that. Freed memory stays in the process here, as in the training, which spares eager most "
    "of its page faults; `avfast bench` measures with the allocator as it comes."
)


def demo(out: Path, *, budget: float | None = None, device: str = "auto", seed: int = 0) -> int:
    """Make clips, scan them, train and evaluate, scan the trained encoder, time the kernels, write one
    report.

    Args:
        out: folder to write; clips that are there already are kept, an earlier run is replaced.
        budget: seconds for training and its control together.

    Returns:
        0; the report is ``out/report.md``.
    """
    began = time.monotonic()
    require_folder(out, "--out")
    if (out / "checkpoints" / "last.pt").is_file() and not (out / SCAN_FILE).is_file():
        raise ConfigError(f"'{out}' already holds a run that is no demo; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    clips = _make_clips(out / "demo-clips", seed)
    _say("2. media scan")
    scan = _scan(clips, out / SCAN_FILE)
    _say(f"3. training ({RECIPE})")
    request = Request(
        recipe=RECIPE, data=str(clips), out=out, budget=budget, device=device, force=True,
        words=[f"run.seed={seed}"],
    )  # fmt: skip

    threads = torch.get_num_threads()
    chosen = _faster_threads(request)

    def sections(outcome: Outcome, method: Method) -> list[Section]:
        outcome.note(f"trained with {chosen} of {threads} threads")
        torch.set_num_threads(threads)
        _say("4. batch-norm scan of the encoders just trained")
        bn = _bn_scan(method, outcome)
        _say("5. kernels on this machine")
        return [
            Section("Media scan", scan),
            Section("Batch-norm scan", bn),
            Section("Kernels", _kernels(outcome.out)),
        ]

    try:
        summary = pretrain(request, extra=sections)
    except Interrupted as error:
        command = f"avfast pretrain --recipe {RECIPE} --data '{clips}' --out '{out}' run.seed={seed} --resume auto"
        raise Interrupted(f"{error}: {command}", error.code) from None
    finally:
        torch.set_num_threads(threads)
    if summary is not None:
        _say(f"done in {time.monotonic() - began:.0f} s")
        for line in closing_lines(summary, summary.out / REPORT):
            print(line)
    return 0


def _faster_threads(request: Request) -> int:
    """Set the number of CPU threads to all, or to one unless that is much slower right now.

    A network this small gains little from a second thread and, when the machine gets other work, waits long
    for it.
    """
    config = parse_config(request.recipe, request.words)
    method = build_method(config)
    everything = torch.get_num_threads()
    times = {}
    for count in {everything, 1}:
        torch.set_num_threads(count)
        times[count], _ = probe_step(config, method, torch.device("cpu"))
    best = 1 if times[1] < 1.5 * times[everything] else everything
    torch.set_num_threads(best)
    return best


def _say(text: str) -> None:
    print(f"\n{text}" if text[:1].isdigit() else text, flush=True)


def _make_clips(folder: Path, seed: int) -> Path:
    from avfast.data.commands import progress_bar
    from avfast.data.demo import honesty_line, make_demo_clips

    with progress_bar("making clips") as progress:
        manifest = make_demo_clips(folder, seed=seed, progress=progress)
    print(honesty_line(manifest))  # the first line that stays, before any number
    _say("1. clips")
    print(f"{len(manifest['clips'])} mp4 clips in '{folder}'; sources and licences in manifest.json")
    return folder


def _scan(folder: Path, json_path: Path) -> str:
    from avfast.data.scan import scan_media

    report = scan_media(folder, workers=2)
    write_atomic(json_path, lambda path: path.write_text(json.dumps(report.to_dict(), indent=1)))
    print(report.summary)
    if report.unusable:
        raise DataError(f"the demo clips just made do not read back: {report.summary}; details in '{json_path}'")
    return f"{report.summary} (`{json_path.name}`)"


def _bn_scan(method: Method, outcome: Outcome) -> str:
    from avfast.nn import scan_batchnorm

    report = scan_batchnorm(method)
    text = json.dumps(report.to_dict(), indent=1)
    write_atomic(outcome.out / "bn-scan.json", lambda path: path.write_text(text))
    planted = _planted(method)
    print(report.summary())
    print(planted)
    parts = [f"{report.summary()}. A network this young has few or none.", planted, f"```\n{report}\n```"]
    outcome.album.add("", "figures/bn-scan.png", batch_norms(report))
    parts.append("![batch-norm scan](figures/bn-scan.png)")
    return "\n\n".join(parts)


def _planted(method: Method) -> str:
    """Kill a known tenth of the channels in a copy, scan it, and say whether exactly those are found."""
    from avfast.nn import scan_batchnorm

    twin = copy.deepcopy(method)
    generator = torch.Generator().manual_seed(0)
    planted = {}
    for name, layer in twin.named_modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm) and layer.affine:
            dead = torch.rand(layer.num_features, generator=generator) < 0.1
            with torch.no_grad():
                layer.weight[dead], layer.bias[dead] = 0.0, 0.0
            planted[name] = dead
    found = {layer.name: layer.abnormal for layer in scan_batchnorm(twin).layers}
    before = {layer.name: layer.abnormal for layer in scan_batchnorm(method).layers}
    count = sum(int(dead.sum()) for dead in planted.values())
    missed = sum(int((dead & ~found[name]).sum()) for name, dead in planted.items())
    false = sum(int((found[name] & ~dead & ~before[name]).sum()) for name, dead in planted.items())
    return f"Check on a copy with {count} channels killed on purpose: {count - missed} found, {false} false alarms."


def _kernels(out: Path) -> str:
    try:
        from avfast.benches.quick import kernel_table, markdown
    except ImportError as error:
        return f"Not timed: the benchmarks are not installed beside avfast ({error})."
    rows = kernel_table(KERNEL_TABLE_SECONDS)
    write_atomic(out / "kernels.json", lambda path: path.write_text(json.dumps(rows, indent=1)))
    text = align_tables(markdown(rows))
    print(f"{OP_SPEED}\n\n{text}")
    return f"{OP_SPEED}\n\n{text}"
