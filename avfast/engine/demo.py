"""``avfast demo``: the whole of avfast on one page, in about two minutes on two cores."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from avfast.engine.checkpoint import write_atomic
from avfast.engine.pretrain import Request, pretrain
from avfast.engine.report import RunSummary, Section
from avfast.errors import AvfastError, DataError
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
        recipe=RECIPE, data=str(clips), out=out / "run", budget=budget, device=device, force=True,
        words=[f"run.seed={seed}"],
    )  # fmt: skip

    def sections(summary: RunSummary, method: Method) -> list[Section]:
        _say("4. batch-norm scan of the encoders just trained")
        bn = _bn_scan(method, summary.out)
        _say("5. kernels on this machine")
        return [
            Section("Media scan", scan),
            Section("Batch-norm scan", bn),
            Section("Kernels", _kernels(summary.out)),
        ]

    summary = pretrain(request, extra=sections)
    if summary is not None:
        _say(f"done in {time.monotonic() - began:.0f} s; written:")
        for path in [out / "media-scan.json", out / "demo-clips" / "manifest.json", *summary.files]:
            print(f"  {path}")
    return 0


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
        raise DataError(
            f"the demo clips just made do not read back: {report.summary}; details in '{json_path}'"
        )
    return f"{report.summary} (`{json_path.name}`)"


def _bn_scan(method: Method, out: Path) -> str:
    from avfast.nn import scan_batchnorm

    report = scan_batchnorm(method)
    data = report.to_dict()
    write_atomic(out / "bn-scan.json", lambda path: path.write_text(json.dumps(data, indent=1)))
    parts = [_bn_table(data)]
    try:
        report.plot(out / "figures" / "bn-scan.png")
        parts.append("![batch-norm scan](figures/bn-scan.png)")
    except AvfastError as error:
        parts.append(str(error))
    print(parts[0].splitlines()[0])
    return "\n\n".join(parts)


def _bn_table(data: dict[str, Any]) -> str:
    layers = data["layers"]
    channels = sum(layer["channels"] for layer in layers)
    abnormal = sum(layer["abnormal"] for layer in layers)
    lines = [
        f"{abnormal} of {channels} channels in {len(layers)} layers are abnormal "
        f"(|gamma| and |beta| at most {data['threshold']:g}). A network this young has few or none.",
        "",
        "| layer | channels | abnormal |",
        "|---|---|---|",
    ]
    lines += [f"| {layer['name']} | {layer['channels']} | {layer['abnormal']} |" for layer in layers]
    return "\n".join(lines)


def _kernels(out: Path) -> str:
    from avfast.benches.quick import kernel_table

    rows = kernel_table(KERNEL_TABLE_SECONDS)
    write_atomic(out / "kernels.json", lambda path: path.write_text(json.dumps(rows, indent=1)))
    if not rows:
        return "No kernel could be timed on this machine."
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(
        [
            "Op speed on this machine in this run; it is not training speed, which is under Training.",
            "",
            *lines,
        ]
    )


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
