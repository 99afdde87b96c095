"""What a frozen image encoder saw in every clip: features of its frames, and how well each goes with the sound."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ConfigError, MissingDependency

TENSORS = {"keys": (torch.int64, 1), "features": (torch.float32, 3), "scores": (torch.float32, 2)}


class SceneTargets:
    """Features and sound scores of the frames of every clip, found by the clip's key, never by its place in a data set.

    Args:
        keys: int64 ``[N]``, numbers that belong to the content of the clips.
        features: float32 ``[N, T, D]``, the frozen encoder's feature of each frame.
        scores: float32 ``[N, T]``, how well each frame goes with the sound; higher is better.
        facts: of the file: hash of the encoder and fingerprint of the frames.

    Raises:
        ConfigError: shapes that do not fit, no clip, or features that are not finite.

    >>> table = SceneTargets(torch.tensor([7, 9]), torch.eye(4).view(2, 2, 4), torch.zeros(2, 2))
    >>> table.of(torch.tensor([9, 7]), torch.tensor([0, 1])).argmax(dim=1).tolist()
    [2, 1]
    """

    def __init__(self, keys: Tensor, features: Tensor, scores: Tensor, facts: Mapping[str, str] | None = None) -> None:
        given = {"keys": keys, "features": features, "scores": scores}
        for name, (dtype, ndim) in TENSORS.items():
            if given[name].dtype != dtype or given[name].ndim != ndim:
                got = f"{given[name].dtype} of shape {list(given[name].shape)}"
                raise ConfigError(f"scene targets: {name}: expected {ndim} dimensions of {dtype}, got {got}")
        if not len(keys) or features.shape[:2] != (len(keys), scores.shape[1]) or scores.shape[0] != len(keys):
            shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in given.items())
            raise ConfigError(f"scene targets: expected keys [N], features [N, T, D], scores [N, T], got {shapes}")
        if not features.isfinite().all() or not scores.isfinite().all():
            raise ConfigError("scene targets: features and scores: expected finite numbers")
        self.keys, self.features, self.scores, self.facts = keys, features, scores, dict(facts or {})
        self._row = {key: row for row, key in enumerate(keys.tolist())}

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def dim(self) -> int:
        return self.features.shape[2]

    @property
    def frames(self) -> int:
        return self.features.shape[1]

    def rows(self, keys: Tensor) -> Tensor:
        """Places of clips int64 ``[B]`` in the table.

        Raises:
            ConfigError: a clip that is not in the table: it was made from other data.
        """
        unknown = sum(key not in self._row for key in keys.tolist())
        if unknown:
            raise ConfigError(
                f"scene targets: {unknown} of {len(keys)} clips are not among the {len(self)} of the table: it was "
                "made from other data"
            )
        return torch.tensor([self._row[key] for key in keys.tolist()], dtype=torch.int64)

    def of(self, keys: Tensor, frame: Tensor) -> Tensor:
        """Features ``[B, D]`` of one frame each, int64 ``[B]``, on the device of `keys`."""
        return self.features[self.rows(keys), frame.cpu()].to(keys.device)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file."""
        tensors = {"keys": self.keys, "features": self.features.contiguous(), "scores": self.scores.contiguous()}
        # As one entry: safetensors writes several in an order that changes, and equal tables are to be equal files.
        facts = {"facts": json.dumps(self.facts, sort_keys=True)}
        _safetensors("writing").save_file(tensors, path, metadata=facts)

    @classmethod
    def read(cls, path: str | Path) -> SceneTargets:
        """Read what :meth:`save` wrote.

        Raises:
            ConfigError: no such file, or a file of something else.
            MissingDependency: safetensors is not installed.
        """
        library = _safetensors("reading")
        try:
            from safetensors import safe_open

            tensors = library.load_file(path)
            with safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {}).get("facts", "{}"))
        except Exception as error:  # whatever a broken file makes its library raise
            raise ConfigError(f"scene targets '{path}' cannot be read: {str(error).strip().splitlines()[0]}") from error
        if tensors.keys() != TENSORS.keys():
            raise ConfigError(
                f"scene targets '{path}': expected {', '.join(TENSORS)}, got {', '.join(sorted(tensors))}"
            )
        return cls(**tensors, facts=facts)


def _safetensors(doing: str):  # noqa: ANN202 - a module that may be absent
    try:
        import safetensors.torch
    except (ImportError, RuntimeError, OSError) as error:
        raise MissingDependency("safetensors", extra="train", purpose=f"{doing} scene targets") from error
    return safetensors.torch
