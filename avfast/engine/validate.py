"""The look at the validation split that selects the best checkpoint. The test split is not touched here."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils.data import DataLoader

from avfast.engine.inputs import InputPipeline
from avfast.engine.sources import readable
from avfast.engine.state import restore_rng_state, rng_state
from avfast.evaluate import cross_modal_retrieval
from avfast.methods import Method
from avfast.methods.base import LabelledInputs

RECALL = "R@1 audio->video instance-level"


class Validator:
    """Mean validation loss and, for two modalities, instance-level audio-to-video R@1; of a method that classifies,
    accuracies instead.

    Calling it changes neither weights, statistics nor random state.
    """

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader

    @torch.no_grad()
    def __call__(
        self,
        method: Method,
        pipeline: InputPipeline,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        *,
        stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any] | None:
        """``autocast`` opens the precision of the method's step; inputs are made outside of it, as in training. None
        where ``stop``, asked before every batch, said so."""
        before, was_training = rng_state(), method.training
        method.eval()
        try:
            return self._row(method, pipeline, autocast, stop)
        finally:
            method.train(was_training)
            restore_rng_state(before)

    def _row(
        self,
        method: Method,
        pipeline: InputPipeline,
        autocast: Callable[[], AbstractContextManager],
        stop: Callable[[], bool],
    ) -> dict[str, Any] | None:
        total, count = 0.0, 0
        parts: dict[str, list[torch.Tensor]] = {}
        supervised, accuracies = isinstance(method.inputs, LabelledInputs), {}
        for batch in readable(self.loader):
            if stop():
                return None
            size = len(batch["index"])
            inputs = pipeline(batch)
            with autocast():
                output = method.validation_step(inputs)
            total, count = total + output.loss.item() * size, count + size
            if supervised:
                for name, value in output.metrics.items():
                    accuracies[name] = accuracies.get(name, 0.0) + value.item() * size
                continue
            for name, z in output.embeddings.items():
                parts.setdefault(name, []).append(z.float().cpu())
        row = {"loss": total / count} | {name: value / count for name, value in accuracies.items()}
        if {"audio", "video"} <= parts.keys():
            audio, video = torch.cat(parts["audio"]), torch.cat(parts["video"])
            score = cross_modal_retrieval(audio, video)[0].recall[1]
            row |= {RECALL: score.value, f"{RECALL} chance": score.chance}
        return row
