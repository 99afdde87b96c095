"""How much of each stream to hide from a joint model, from how sure each alone was of a sample."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _check

RULES = ("symmetric", "released", "figure", "mean")


def mask_ratio(
    conf_a: Tensor,
    conf_v: Tensor,
    *,
    threshold: float = 0.5,
    eta: float | tuple[float, float] = 1.0,
    rho: float | tuple[float, float] = 0.5,
    rule: str = "symmetric",
) -> tuple[Tensor, Tensor]:
    r"""Ratios of audio and video to mask: the stream that is surer of a sample is hidden, the more the surer it is.

    .. math:: r_a = \rho_a \tanh(\eta_a (c_a - c_v)), \quad r_v = \rho_v \tanh(\eta_v (c_v - c_a)),

    where positive, else 0, and only where the rule allows:

    * ``"symmetric"``: the stream that stays must know the sample itself: audio is masked where ``c_v >= threshold``,
      video where ``c_a >= threshold``.
    * ``"released"``: audio where ``c_v >= threshold``, video only where ``c_v < threshold <= c_a``, as the authors'
      loader has it. Its ratio is never positive there: video is never masked.
    * ``"figure"``: both everywhere, as the paper's figure 4 draws it; ``threshold`` is not used.
    * ``"mean"``: the mean of the symmetric ratios for every sample. Give it the confidences of the whole data set.

    Source: Xia, Wei et al. 2023, "Revisiting Pre-training in Audio-Visual Learning", section 4 and released loader.

    Args:
        conf_a, conf_v: mean probabilities of the true class, floating, in [0, 1], of one shape and dtype.
        threshold: confidence from which on a stream counts as knowing a sample, in [0, 1].
        eta: slope, or one for audio and one for video, at least 0.
        rho: largest ratio, or one for each, in [0, 1].
        rule: one of the above.

    Returns:
        ``(ratio_a, ratio_v)`` like ``conf_a``, in [0, rho]; for :func:`mask_patches`. No gradient.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or option; NaN or a confidence outside [0, 1] (on the CPU).

    >>> sure, unsure = torch.tensor([0.9, 0.6]), torch.tensor([0.2, 0.55])
    >>> for ratio in mask_ratio(sure, unsure, eta=2.0):
    ...     print([round(r, 3) for r in ratio.tolist()])
    [0.0, 0.05]
    [0.0, 0.0]
    """
    name = "mask_ratio"
    _check.floating(name, "conf_a", conf_a)
    _check.like(name, "conf_v", conf_v, conf_a, "conf_a")
    _check.number(name, "threshold", threshold, at_least=0)
    if threshold > 1:
        _check.fail(name, "threshold", "a number in [0, 1]", threshold)
    slopes, largest = _pair(name, "eta", eta), _pair(name, "rho", rho)
    if max(largest) > 1:
        _check.fail(name, "rho", "numbers in [0, 1]", rho)
    _check.one_of(name, "rule", rule, RULES)
    for argument, c in (("conf_a", conf_a), ("conf_v", conf_v)):
        if _check.readable(c) and not bool(((c >= 0) & (c <= 1)).all()):
            _check.fail(name, argument, "confidences in [0, 1]", f"{c.min().item():g} to {c.max().item():g}")
    with torch.no_grad():
        ahead = conf_a - conf_v
        ratios = [cap * torch.tanh(slope * x) for cap, slope, x in zip(largest, slopes, (ahead, -ahead), strict=True)]
        allowed = _allowed(conf_a, conf_v, threshold, rule)
        found = [torch.where(may, ratio, 0.0).clamp_min(0) for may, ratio in zip(allowed, ratios, strict=True)]
        if rule == "mean" and conf_a.numel():
            found = [ratio.mean().expand_as(ratio).contiguous() for ratio in found]
    return found[0], found[1]


def _allowed(conf_a: Tensor, conf_v: Tensor, threshold: float, rule: str) -> tuple[Tensor, Tensor]:
    audio_knows, video_knows = conf_a >= threshold, conf_v >= threshold
    if rule == "figure":
        return torch.ones_like(audio_knows), torch.ones_like(video_knows)
    if rule == "released":
        return video_knows, ~video_knows & audio_knows
    return video_knows, audio_knows


def _pair(name: str, argument: str, value: object) -> tuple[float, float]:
    pair = value if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        _check.fail(name, argument, "a number, or one for audio and one for video", value)
    for x in pair:
        _check.number(name, argument, x, at_least=0)
    return pair[0], pair[1]
