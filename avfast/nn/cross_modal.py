"""Weights trained on one modality into an encoder of another, every tensor accounted for."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch

import torch
from torch import Tensor, nn

from ..ops import _check
from .abri import convert_abri, fold_abri, reset_batchnorm
from .bn_report import BatchNormReport
from .bn_scan import scan_batchnorm
from .resnet_names import foreign, to_transformers

VARIANTS = ("random", "naive", "reset_all", "reset_abnormal", "abri_scalar", "abri_channel")
HEADS = ("fc.*", "classifier.*", "head.*")
"""Source tensors that belong to the source's own task."""


@dataclass(frozen=True)
class CrossModalInit:
    """What became of every tensor of the model and of the source.

    Attributes:
        variant: how batch norms were treated.
        copied: tensors of the model with the source's values.
        adapted: of these, the stem, whose input channels differ.
        fresh: tensors of the model that the source does not have (counters of batches).
        unused: tensors of the source that the model has no place for: heads of its task.
        before: abnormal channels of the loaded weights; None for ``"random"``.
        after: abnormal channels after the treatment.
    """

    variant: str
    copied: tuple[str, ...]
    adapted: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    before: BatchNormReport | None
    after: BatchNormReport

    def __str__(self) -> str:
        lines = [
            f"{self.variant}: {len(self.copied)} tensors copied, {len(self.adapted)} of them adapted"
            f"{_listed(self.adapted)}; {len(self.fresh)} new{_listed(self.fresh)}; "
            f"{len(self.unused)} of the source not used{_listed(self.unused)}"
        ]
        if self.before is not None:
            lines.append(f"before: {self.before.summary()}")
        return "\n".join([*lines, f"after:  {self.after.summary()}"])


def _listed(names: tuple[str, ...]) -> str:
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""


def cross_modal_init(
    model: nn.Module,
    source: Mapping[str, Tensor] | nn.Module,
    variant: str = "abri_channel",
    *,
    alpha: float = 0.5,
    threshold: float = 1e-10,
    heads: Iterable[str] = HEADS,
) -> CrossModalInit:
    r"""Initialise an encoder from one that was trained on another modality, in place.

    Names of torchvision's residual networks (and ``downsample.conv``/``downsample.bn`` of ABRi's release) find their
    place in those of `transformers`. A stem that reads another number of channels is adapted so that the response to
    equal channels stays what it was: summed to one, :math:`w' = \sum_c w_c`, or spread from one,
    :math:`w'_c = w / C`.

    ================== ==================================================================================
    variant            batch norms
    ================== ==================================================================================
    ``random``         the model stays as it is; nothing is loaded
    ``naive``          as loaded
    ``reset_all``      all: gamma 1, beta 0, running mean 0, variance 1
    ``reset_abnormal`` channels with abs(gamma) and abs(beta) at most ``threshold``: gamma 1, beta 0
    ``abri_scalar``    :func:`~avfast.nn.convert_abri` with one alpha per layer
    ``abri_channel``   the same with one per channel: the paper's method
    ================== ==================================================================================

    Source: Xia, Wei et al. 2023, "Revisiting Pre-training in Audio-Visual Learning", section 3, and its release.

    Args:
        model: the encoder to initialise; changed in place.
        source: a module, or its state dict.
        variant: as above.
        alpha: of ABRi at first.
        threshold: a channel is abnormal if |gamma| and |beta| are at most this.
        heads: patterns of source tensors that need no place in the model.

    Returns:
        The account; print it.

    Raises:
        ValueError: a tensor of the source has no place, one of the model gets no value, or a shape does not fit, with
            all of their names. The model is unchanged then.

    >>> sees = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> hears = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8))
    >>> found = cross_modal_init(hears, sees, "naive")
    >>> found.adapted, torch.equal(hears[0].weight, sees[0].weight.sum(1, keepdim=True))
    (('0.weight',), True)
    """
    name = "cross_modal_init"
    _check.one_of(name, "variant", variant, VARIANTS)
    _check.number(name, "alpha", alpha)
    if variant == "random":
        return CrossModalInit(
            variant, (), (), tuple(model.state_dict()), (), None, scan_batchnorm(model, threshold=threshold)
        )
    given = source.state_dict() if isinstance(source, nn.Module) else dict(source)
    own = model.state_dict()
    if foreign(given) and not foreign(own):
        given = {to_transformers(key) or key: value for key, value in given.items()}
    values, adapted = _matched(given, own)
    fresh = tuple(key for key in own if key not in values)
    unused = tuple(key for key in given if key not in own)
    wrong = [f"{key}: of the model, not in the source" for key in fresh if not key.endswith("num_batches_tracked")]
    wrong += [f"{key}: of the source, not in the model" for key in unused if not any(fnmatch(key, h) for h in heads)]
    wrong += [
        f"{key}: {tuple(own[key].shape)} in the model, {tuple(given[key].shape)} in the source"
        for key in values if values[key] is None
    ]  # fmt: skip
    if wrong:
        more = [f"and {len(wrong) - 12} more"] if len(wrong) > 12 else []
        _check.fail(name, "source", "a place for every tensor", "\n  ".join(["", *wrong[:12], *more]))
    model.load_state_dict({**own, **values})
    before = scan_batchnorm(model, threshold=threshold)
    if variant.startswith("reset"):
        reset_batchnorm(model, variant.removeprefix("reset_"), threshold=threshold)
    elif variant.startswith("abri"):
        convert_abri(model, alpha=alpha, alpha_shape=variant.removeprefix("abri_"))
    # Both halves of an ABRi layer act together: what counts is the batch norm they fold to.
    acts = fold_abri(copy.deepcopy(model)) if variant.startswith("abri") else model
    after = scan_batchnorm(acts, threshold=threshold)
    return CrossModalInit(variant, tuple(values), adapted, fresh, unused, before, after)


def _matched(
    given: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor | None], tuple[str, ...]]:
    """Values by the model's names, None where the shape does not fit, and the names of those that were adapted."""
    values: dict[str, Tensor | None] = {}
    adapted: list[str] = []
    for key, target in own.items():
        if key not in given:
            continue
        value = given[key]
        if value.shape != target.shape:
            # Only the first filters of a network read the input.
            value = None if adapted else adapt_stem(value, target)
            adapted += [] if value is None else [key]
        values[key] = value
    return values, tuple(adapted)


@torch.no_grad()
def adapt_stem(filters: Tensor, like: Tensor) -> Tensor | None:
    """Filters ``[O, C, ...]`` for inputs of one channel, or from one channel to several; None if that does not fit.

    >>> adapt_stem(torch.ones(4, 3, 7, 7), torch.empty(4, 1, 7, 7))[0, 0, 0, 0].item()
    3.0
    """
    if filters.dim() < 3 or filters.dim() != like.dim() or filters.shape[2:] != like.shape[2:]:
        return None
    if filters.shape[0] != like.shape[0]:
        return None
    if like.shape[1] == 1:
        return filters.sum(dim=1, keepdim=True)
    return (filters / like.shape[1]).expand_as(like).contiguous() if filters.shape[1] == 1 else None
