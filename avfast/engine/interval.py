"""What happened between two lines of the log."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from avfast.methods import StepOutput


class Interval:
    """Means over the steps since the last line of the log; reads the device only when asked."""

    def __init__(self) -> None:
        self.outputs: list[StepOutput] = []
        self.embeddings: dict[str, torch.Tensor] = {}
        self.norms: list[torch.Tensor] = []
        self.samples, self.steps, self.data_s, self.compute_s = 0, 0, 0.0, 0.0

    def add(
        self,
        output: StepOutput | None,
        samples: int,
        data_s: float,
        compute_s: float,
        grad_norm: torch.Tensor | None = None,
    ) -> None:
        self.steps += 1
        if grad_norm is not None:
            self.norms.append(grad_norm.detach())
        self.data_s += data_s
        self.compute_s += compute_s
        if output is not None:
            self.outputs.append(StepOutput(output.loss.detach(), output.metrics, {}))
            self.embeddings = output.embeddings
            self.samples += samples

    def state(self) -> dict[str, Any]:
        """All of it as tensors on the CPU and plain values, for a checkpoint: a row of the log is the same, whether or
        not the run was interrupted before it. Empty where nothing was gathered."""
        if not self.steps:
            return {}
        names = self.outputs[0].metrics if self.outputs else ()
        return {
            "loss": _stacked(o.loss for o in self.outputs),
            "metrics": {name: _stacked(o.metrics[name] for o in self.outputs) for name in names},
            "norms": _stacked(self.norms),
            "embeddings": {name: z.detach().cpu().clone() for name, z in self.embeddings.items()},
            "samples": self.samples, "steps": self.steps, "data_s": self.data_s, "compute_s": self.compute_s,
        }  # fmt: skip

    @classmethod
    def of(cls, state: Mapping[str, Any], device: torch.device | str = "cpu") -> Interval:
        """Undo :meth:`state`."""
        made = cls()
        if not state:
            return made
        losses = state["loss"].to(device)
        metrics = {name: values.to(device) for name, values in state["metrics"].items()}
        for i, loss in enumerate(losses):
            made.outputs.append(StepOutput(loss, {name: values[i] for name, values in metrics.items()}, {}))
        made.norms = list(state["norms"].to(device))
        made.embeddings = {name: z.to(device) for name, z in state["embeddings"].items()}
        made.samples, made.steps = state["samples"], state["steps"]
        made.data_s, made.compute_s = state["data_s"], state["compute_s"]
        return made

    def summary(self) -> dict[str, Any]:
        """Of an interval with at least one output."""
        seconds = max(1e-9, self.data_s + self.compute_s)
        metrics = {
            name: torch.stack([o.metrics[name].float() for o in self.outputs]).mean().item()
            for name in self.outputs[0].metrics
        }
        norm = {"grad_norm": torch.stack([n.float() for n in self.norms]).mean().item()} if self.norms else {}
        return {
            "loss": torch.stack([o.loss.float() for o in self.outputs]).mean().item(),
            **metrics,
            **norm,
            "samples_per_s": self.samples / seconds,
            "data_s": self.data_s / self.steps,
            "compute_s": self.compute_s / self.steps,
        }


def _stacked(values: Iterable[torch.Tensor]) -> torch.Tensor:
    values = [value.detach().float() for value in values]
    return torch.stack(values).cpu() if values else torch.zeros(0)


def combined(outputs: list[tuple[StepOutput, float]]) -> StepOutput:
    """The parts of one step, each with its share of the samples, as the step they are together; embeddings are those of
    the last part."""
    if len(outputs) == 1:
        return outputs[0][0]
    last = outputs[-1][0]
    metrics = {name: sum(o.metrics[name] * share for o, share in outputs) for name in last.metrics}
    return StepOutput(sum(o.loss.detach() * share for o, share in outputs), metrics, last.embeddings)


def mean_over_processes(accelerator: Any, row: dict[str, float]) -> dict[str, float]:
    """A row of the log, which has the same names on every process."""
    if accelerator.num_processes == 1:
        return row
    values = torch.tensor(list(row.values()), dtype=torch.float64, device=accelerator.device)
    return dict(zip(row, accelerator.reduce(values, reduction="mean").tolist(), strict=True))


def timed(batches: Iterator[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], float]]:
    """Batches with the seconds they were waited for."""
    while True:
        began = time.perf_counter()
        try:
            batch = next(batches)
        except StopIteration:
            return
        yield batch, time.perf_counter() - began
