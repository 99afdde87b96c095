"""Published IC-GAN weights into avfast's generator, every tensor accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from avfast.errors import DataError
from avfast.generator import Generator
from avfast.nn.spectral_norm import SNConv2d, SNLinear
from avfast.ops import _check

__all__ = ["IcganAccount", "icgan_names", "load_icgan"]

PLACES = {
    "start": "linear", "shortcut": "conv_sc", "norm1": "bn1", "norm2": "bn2", "to_rgb": "output_layer.2",
    "norm": "output_layer.0", "query": "theta", "key": "phi", "value": "g", "out": "o",
}  # fmt: skip
"""Modules here and in BigGAN-PyTorch, where they differ."""

STATISTICS = {"running_mean": "stored_mean", "running_var": "stored_var"}

IGNORED = {
    "sv0": "largest singular value at the last training step, which follows from weight and u0",
    "accumulation_counter": "counter of batches of standing statistics, whose sums are divided by now",
    "num_batches_tracked": "counter of batches, which batch norms of fixed momentum do not read",
}
"""Why a tensor of that last name is of no use."""
NO_TABLE = "table of classes, which this generator does not have"

TABLE = "class_table"
COUNTER = "norm.num_batches_tracked"
"""Own tensors that no forward pass reads: both may keep their values, the counter does."""


@dataclass(frozen=True)
class IcganAccount:
    """What became of every tensor of a state dict and of the generator.

    Attributes:
        used: name in the state dict of every tensor of the generator that was loaded, by its name here.
        ignored: why a tensor of the state dict is of no use, by its name there.
        kept: tensors of the generator that the state dict lacks and nothing reads.
    """

    used: Mapping[str, str]
    ignored: Mapping[str, str]
    kept: tuple[str, ...]

    def __str__(self) -> str:
        reasons = dict.fromkeys(self.ignored.values())
        lines = [f"{len(self.used)} tensors loaded, {len(self.ignored)} not needed, {len(self.kept)} kept as they were"]
        lines += [f"{sum(r == reason for r in self.ignored.values())} not needed: {reason}" for reason in reasons]
        return "\n".join([*lines, *(f"kept: {name}" for name in self.kept)])


def icgan_names(generator: Generator) -> dict[str, str]:
    """Name in BigGAN-PyTorch's state dict of every tensor of a generator but its counter, by its name here.

    The layer on the feature is called ``shared_feat`` there, and ``shared`` is the table of classes; a state dict
    without ``shared_feat`` has the layer as ``shared``.

    >>> from avfast.generator import GeneratorConfig
    >>> names = icgan_names(Generator(GeneratorConfig(8, 4, (2, 1), condition=32, shared=8, attention=8)))
    >>> names["blocks.0.norm1.running_mean"], names["attention.query.u"], names["to_rgb.weight"]
    ('blocks.0.0.bn1.stored_mean', 'blocks.0.1.theta.u0', 'output_layer.2.weight')
    """
    normed = {name for name, module in generator.named_modules() if isinstance(module, (SNConv2d, SNLinear))}
    names = {}
    for own in generator.state_dict():
        module, _, tensor = own.rpartition(".")
        if own in (TABLE, COUNTER):
            continue
        if module == "norm":
            tensor = {"weight": "gain"}.get(tensor, tensor)
        if module in normed:
            tensor = {"u": "u0"}.get(tensor, tensor)
        path = [PLACES.get(part, part) for part in module.split(".")]
        if path[0] == "blocks":
            path.insert(2, "0")
        elif path[0] == "attention":
            path[:1] = ["blocks", str(generator.attended), "1"]
        elif path[0] == "shared":
            path[0] = "shared_feat"
        names[own] = ".".join([*path, STATISTICS.get(tensor, tensor)])
    return names if generator.config.class_table is None else {**names, TABLE: "shared.weight"}


def load_icgan(generator: Generator, state_dict: Mapping[str, Tensor]) -> IcganAccount:
    """Load a generator's state dict of BigGAN-PyTorch's and IC-GAN's layout, in place.

    avfast ships no such weights. Those of IC-GAN for 128 pixels fit ``build_generator("icgan-128")``; the file with the
    averaged weights is the one to sample from. Names may start with ``module.``. In eval the generator then answers as
    the published code does: spectral norms continue from the stored ``u0``, batch norms use the stored statistics.

    Args:
        generator: where to; on the meta device it takes the tensors over instead of copying into its own.
        state_dict: name to tensor.

    Returns:
        The account; print it.

    Raises:
        DataError: a tensor of the generator gets no value, one of the state dict has no place, a shape does not fit, or
            a value is not finite, with all of their names. The generator is unchanged then.

    >>> from avfast.generator import GeneratorConfig
    >>> generator = Generator(GeneratorConfig(8, 4, (2, 1), condition=32, shared=8, attention=8))
    >>> names = icgan_names(generator)
    >>> state = {name: generator.state_dict()[own].clone() for own, name in names.items()}
    >>> print(load_icgan(generator, {**state, "linear.sv0": torch.ones(1)}))
    43 tensors loaded, 1 not needed, 1 kept as they were
    1 not needed: largest singular value at the last training step, which follows from weight and u0
    kept: norm.num_batches_tracked
    """
    given = {name.removeprefix("module."): value for name, value in state_dict.items()}
    names = icgan_names(generator)
    if not any(name.startswith("shared_feat.") for name in given):
        names = {own: name.replace("shared_feat.", "shared.") for own, name in names.items() if own != TABLE}
    own_tensors = generator.state_dict()
    if names.get(TABLE) not in given:
        names.pop(TABLE, None)
    values, wrong = {}, []
    for own, name in names.items():
        value, target = given.get(name), own_tensors[own]
        if not isinstance(value, Tensor):
            wrong.append(f"{name}: of the generator ({own}), not in the state dict")
        # Vectors of spectral norm are rows there, and gamma may be a vector of one number.
        elif value.squeeze().shape != target.squeeze().shape:
            wrong.append(f"{name}: {tuple(target.shape)} in the generator, {tuple(value.shape)} in the state dict")
        elif not value.isfinite().all():
            wrong.append(f"{name}: NaN or infinity in the state dict")
        else:
            values[own] = value.detach().reshape(target.shape)
    ignored = {}
    for name in sorted(given.keys() - set(names.values())):
        reason = NO_TABLE if name == "shared.weight" else IGNORED.get(name.rpartition(".")[2])
        if reason is None:
            wrong.append(f"{name}: of the state dict, no place in the generator")
        else:
            ignored[name] = reason
    if wrong:
        more = [f"and {len(wrong) - 12} more"] if len(wrong) > 12 else []
        expected, got = "a place for every tensor", "\n  ".join(["", *sorted(wrong)[:12], *more])
        _check.fail("load_icgan", "state_dict", expected, got, DataError)
    kept = tuple(own for own in own_tensors if own not in values)
    _fill(generator, values, {own: own_tensors[own] for own in kept})
    return IcganAccount(names, ignored, kept)


def _fill(generator: Generator, values: dict[str, Tensor], kept: dict[str, Tensor]) -> None:
    if any(tensor.is_meta for tensor in generator.state_dict().values()):
        values = {own: value.clone() for own, value in values.items()}
        kept = {own: torch.zeros_like(tensor, device="cpu") for own, tensor in kept.items()}
        generator.load_state_dict({**kept, **values}, assign=True)
    else:
        generator.load_state_dict({**kept, **values})
