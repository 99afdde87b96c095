"""``avfast bn-scan``: scan a checkpoint file, or a model made by a function."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError, MissingDependency
from .bn_report import BatchNormReport
from .bn_scan import ScanPlan, scan_batchnorm

_PARTS = ("weight", "bias", "running_mean", "running_var")


def load_state(path: Path) -> dict[str, Tensor]:
    """All tensors of a .pt, .pth, .bin or .safetensors file by dotted name. Weights only: no code of the file runs.

    Raises:
        CheckpointError: missing or damaged file, or one that holds more than tensors and plain values.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(f"avfast.bn-scan: checkpoint: expected a file, got {str(path)!r}, which {what}")
    if path.suffix == ".safetensors":
        try:
            from safetensors import SafetensorError
            from safetensors.torch import load_file
        except ImportError as error:
            raise MissingDependency("safetensors", extra="train", purpose="reading .safetensors files") from error
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"avfast.bn-scan: {path}: not a readable safetensors file: {error}") from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises pickle, zip, runtime and end-of-file errors alike
        cause = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no details'}"
        raise CheckpointError(
            f"avfast.bn-scan: {path}: cannot be read with weights only ({cause}); "
            "save model.state_dict() instead of the model"
        ) from error
    return dict(_tensors(loaded))


def _tensors(value: object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors of nested mappings, as in {"state_dict": {...}}."""
    if isinstance(value, Tensor):
        yield prefix, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, f"{prefix}.{key}" if prefix else str(key))


def layers_of(state: Mapping[str, Tensor]) -> tuple[list[tuple[str, nn.Module]], list[str]]:
    """The batch-norm layers of a state dict, and what each of them lacks, in words.

    A batch norm is known by its running statistics: gamma and beta alone could as well be a layer norm.
    """
    layers, lacks = [], []
    names = dict.fromkeys(key.rpartition(".")[0] for key in state if key.endswith(("running_mean", "running_var")))
    for name in names:
        parts = {part: state.get(f"{name}.{part}" if name else part) for part in _PARTS}
        sizes = {part: t.numel() for part, t in parts.items() if t is not None}
        if len(set(sizes.values())) != 1 or any(t is not None and not t.is_floating_point() for t in parts.values()):
            lacks.append(f"{name}: skipped, its tensors do not fit together: {sizes}")
            continue
        missing = [part for part, t in parts.items() if t is None]
        if missing:
            lacks.append(f"{name}: has no {', '.join(missing)}; scanned as if {_assumed(missing)}")
        layer = nn.BatchNorm1d(next(iter(sizes.values())), device="meta")
        for part, tensor in parts.items():
            home = layer._parameters if part in layer._parameters else layer._buffers
            home[part] = None if tensor is None else tensor.detach().reshape(-1).contiguous()
        layers.append((name or "(root)", layer))
    return layers, lacks


def _assumed(missing: list[str]) -> str:
    value = {
        "weight": "gamma were 1",
        "bias": "beta were 0",
        "running_mean": "the mean were 0",
        "running_var": "the variance were 1",
    }
    return " and ".join(value[part] for part in missing)


def load_model(target: str) -> nn.Module:
    """Call ``module:callable`` and return the model it makes.

    Raises:
        ConfigError: it cannot be imported or called, or makes something else.
    """
    module_name, _, attribute = target.partition(":")
    sys.path.insert(0, "")
    try:
        model = importlib.import_module(module_name)
        for part in attribute.split("."):
            model = getattr(model, part)
        model = model if isinstance(model, nn.Module) else model()
    except Exception as error:  # whatever the user's function raises
        raise ConfigError(f"avfast.bn-scan: {target}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove("")
    if not isinstance(model, nn.Module):
        raise ConfigError(f"avfast.bn-scan: {target}: expected a torch.nn.Module, got {type(model).__name__}")
    return model


def _show(report: BatchNormReport) -> None:
    """The table with lines and colours on a terminal wide enough for it; elsewhere plain text, where no name is cut."""
    try:
        from rich.console import Console

        console, table = Console(), report.table()
        needed = console.measure(table, options=console.options.update(max_width=10_000)).maximum
        if console.is_terminal and needed <= console.width:
            console.print(table)
            return
    except ImportError:
        pass
    print(report)


def bn_scan_command(
    target: str, *, threshold: float = 1e-10, plot: str | Path | None = None, json_path: str | Path | None = None
) -> int:
    """Scan, print the table, write what was asked. Returns 0, or 1 if the target has no batch-norm layer."""
    path = Path(target)
    lacks: list[str] = []
    if ":" in target and not path.exists():
        model = load_model(target)
        try:
            report = scan_batchnorm(model, threshold=threshold)
        except ValueError as error:
            print(f"{target}: {error}", file=sys.stderr)
            return 1
    else:
        state = load_state(path)
        layers, lacks = layers_of(state)
        if not layers:
            norms = sum(key.endswith(".weight") and state[key].dim() == 1 for key in state)
            print(
                f"{path}: {len(state)} tensors, none of them running statistics: no batch norm to scan", file=sys.stderr
            )
            if norms:
                print(
                    f"  {norms} layers have a 1-d weight, as layer and group norms do; those are not batch norms",
                    file=sys.stderr,
                )
            for line in lacks:
                print(f"  {line}", file=sys.stderr)
            return 1
        plan = ScanPlan(layers)
        report = scan_batchnorm(nn.Module(), threshold=threshold, plan=plan)
    _show(report)
    for line in lacks:
        print(f"note: {line}")
    if json_path:
        Path(json_path).write_text(json.dumps({"target": target, "lacks": lacks, **report.to_dict()}, indent=1) + "\n")
        print(f"wrote {json_path}")
    if plot:
        try:
            print(f"wrote {report.plot(plot)}")
        except ValueError as error:  # matplotlib does not know the suffix
            raise ConfigError(f"avfast.bn-scan: --plot: {error}") from error
    return 0
