"""``avfast demo``: the whole of avfast on one page, in about two minutes on two cores."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

from avfast.engine.build import build_method
from avfast.engine.checkpoint import write_atomic
from avfast.engine.config import parse_config
from avfast.engine.plan import probe_step
from avfast.engine.pretrain import Request, pretrain
from avfast.engine.report import RunSummary, Section
from avfast.errors import DataError, MissingDependency
from avfast.methods import Method

RECIPE = "av-align"
KERNEL_TABLE_SECONDS = 10.0


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
    out.mkdir(parents=True, exist_ok=True)
    _say("1. clips")
    clips = _make_clips(out / "demo-clips", seed)
    _say("2. media scan")
    scan = _scan(clips, out / "media-scan.json")
    _say(f"3. training ({RECIPE})")
    request = Request(
        recipe=RECIPE, data=str(clips), out=out, budget=budget, device=device, force=True,
        words=[f"run.seed={seed}"],
    )  # fmt: skip

    threads = torch.get_num_threads()
    chosen = _faster_threads(request)

    def sections(summary: RunSummary, method: Method) -> list[Section]:
        summary.notes.append(f"trained with {chosen} of {threads} threads")
        torch.set_num_threads(threads)
        _say("4. batch-norm scan of the encoders just trained")
        bn = _bn_scan(method, summary.out)
        _say("5. kernels on this machine")
        return [
            Section("Media scan", scan),
            Section("Batch-norm scan", bn),
            Section("Kernels", _kernels(summary.out)),
        ]

    try:
        summary = pretrain(request, extra=sections)
    finally:
        torch.set_num_threads(threads)
    if summary is not None:
        _say(f"done in {time.monotonic() - began:.0f} s; written:")
        for path in summary.files:
            print(f"  {path}")
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
    from avfast.data.demo import honesty_line, make_demo_clips

    manifest = make_demo_clips(folder, seed=seed)
    print(honesty_line(manifest))
    print(f"{len(manifest['clips'])} clips in '{folder}'")
    return folder


def _scan(folder: Path, json_path: Path) -> str:
    from avfast.data.scan import scan_media

    report = scan_media(folder, workers=2)
    write_atomic(json_path, lambda path: path.write_text(json.dumps(report.to_dict(), indent=1)))
    print(report.summary)
    if report.unusable:
        raise DataError(f"the demo clips just made do not read back: {report.summary}; details in '{json_path}'")
    return f"{report.summary} (`{json_path.name}`)"


def _bn_scan(method: Method, out: Path) -> str:
    from avfast.nn import scan_batchnorm

    report = scan_batchnorm(method)
    text = json.dumps(report.to_dict(), indent=1)
    write_atomic(out / "bn-scan.json", lambda path: path.write_text(text))
    print(report.summary())
    parts = [f"{report.summary()}. A network this young has few or none.", f"```\n{report}\n```"]
    try:
        report.plot(out / "figures" / "bn-scan.png")
        parts.append("![batch-norm scan](figures/bn-scan.png)")
    except MissingDependency as error:
        parts.append(str(error))
    return "\n\n".join(parts)


def _kernels(out: Path) -> str:
    try:
        from avfast.benches.quick import kernel_table, markdown
    except ImportError as error:
        return f"Not timed: the benchmarks are not installed beside avfast ({error})."
    rows = kernel_table(KERNEL_TABLE_SECONDS)
    write_atomic(out / "kernels.json", lambda path: path.write_text(json.dumps(rows, indent=1)))
    text = markdown(rows)
    print(text)
    return f"Op speed on this machine, in this run; training speed is under Training.\n\n{text}"
