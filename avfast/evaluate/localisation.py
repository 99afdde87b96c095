r"""Where in a picture a sound comes from: heat maps against boxes.

The heat map of each clip is enlarged to the picture and a fixed share of its pixels, the hottest, is called sounding.
With g the share of annotators who agree that a pixel sounds, at most 1, and A the pixels called sounding,

.. math:: \mathrm{cIoU} = \frac{\sum_{A} g}{\sum g + |\{A : g = 0\}|}

(Senocak et al. 2018, "Learning to localize sound source in visual scenes", section 4). With one box per clip it is the
plain intersection over union. Reported are how many clips reach a cIoU of 0.5, and the area under that rate over
thresholds 0, 0.05, ..., 1. A fixed share, the median at one half, is the rule of Chen et al. 2021, "Localizing visual
sounds the hard way", and Mo and Morgado 2022, EZ-VSL, section 4.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from avfast.evaluate.scores import Score, bootstrap_interval
from avfast.ops import _check

THRESHOLDS = tuple(i / 20 for i in range(21))
CHUNK, DEALS = 64, 40


def box_masks(boxes: Tensor, size: int) -> Tensor:
    """Pixels whose centre lies in a box: bool ``[*, size, size]``.

    Args:
        boxes: float ``[*, 4]``, left, top, right, bottom as fractions of the picture's width and height.

    Raises:
        TypeError, ValueError: not floating ``[*, 4]``, or not ``0 <= left < right <= 1`` and the same for top, bottom.

    >>> box_masks(torch.tensor([0.5, 0.0, 1.0, 0.5]), 2).int().tolist()
    [[0, 1], [0, 0]]
    """
    name = "evaluate.box_masks"
    _check.floating(name, "boxes", boxes)
    if boxes.dim() < 1 or boxes.shape[-1] != 4:
        _check.fail(name, "boxes", "[*, 4] of left, top, right, bottom", list(boxes.shape))
    if size < 1:
        _check.fail(name, "size", "a positive number of pixels", size)
    left, top, right, bottom = boxes.double().unbind(-1)
    good = (left >= 0) & (left < right) & (right <= 1) & (top >= 0) & (top < bottom) & (bottom <= 1)
    if not bool(good.all()):
        expected = "0 <= left < right <= 1 and 0 <= top < bottom <= 1, fractions of the picture"
        _check.fail(name, "boxes", expected, boxes[~good][0].tolist())
    centre = (torch.arange(size, dtype=torch.float64, device=boxes.device) + 0.5) / size
    across = (centre >= left[..., None]) & (centre < right[..., None])
    down = (centre >= top[..., None]) & (centre < bottom[..., None])
    return down[..., :, None] & across[..., None, :]


def hottest(heat: Tensor, size: int, share: float = 0.5) -> Tensor:
    """The hottest ``share`` of the pixels of each map, after bilinear enlargement: bool ``[N, size, size]``.

    A map that is the same everywhere points nowhere. Where more pixels than the share are equally the hottest, they are
    called sounding all.

    Args:
        heat: float ``[N, h, w]``.
        size: side of the picture in pixels.
        share: in (0, 1); one half cuts at the median.

    >>> hottest(torch.tensor([[[0.0, 1.0], [2.0, 3.0]]]), 2, share=0.25).int().tolist()
    [[[0, 0], [0, 1]]]
    """
    name = "evaluate.hottest"
    _check.floating(name, "heat", heat)
    if heat.dim() != 3 or not heat.numel():
        _check.fail(name, "heat", "maps [N >= 1, h, w]", list(heat.shape))
    if not bool(heat.isfinite().all()):
        _check.fail(name, "heat", "finite values", "NaN or infinity")
    if not 0 < share < 1:
        _check.fail(name, "share", "a number in (0, 1)", share)
    if size < 1:
        _check.fail(name, "size", "a positive number of pixels", size)
    large = F.interpolate(heat.detach().double()[:, None], (size, size), mode="bilinear", align_corners=False).flatten(
        1
    )
    rank = max(1, min(round((1 - share) * size**2), size**2 - 1))
    level, top = large.kthvalue(rank, dim=1, keepdim=True).values, large.amax(dim=1, keepdim=True)
    found = torch.where(level < top, large > level, large == top)
    flat = heat.amax(dim=(1, 2)) == heat.amin(dim=(1, 2))  # asked of the map itself: enlargement rounds
    return (found & ~flat[:, None]).view(-1, size, size)


def consensus_iou(sounding: Tensor, boxes: Tensor, *, agree: int = 1) -> Tensor:
    """cIoU of each clip, float64 ``[N]`` in [0, 1].

    Args:
        sounding: bool ``[N, S, S]``, such as :func:`hottest` gives.
        boxes: float ``[N, 4]``, or ``[N, A, 4]`` of A annotators; see :func:`box_masks`.
        agree: annotators after whom a pixel counts in full; 2 of 3 in Flickr-SoundNet.

    Raises:
        ValueError: shapes that do not fit, or a box so small that no pixel's centre lies in any of a clip.

    >>> left_half = torch.tensor([[[True, False], [True, False]]])
    >>> consensus_iou(left_half, torch.tensor([[0.0, 0.0, 1.0, 1.0]])).item()
    0.5
    """
    if sounding.dim() != 3 or sounding.shape[1] != sounding.shape[2] or sounding.dtype != torch.bool:
        got = f"{sounding.dtype} {list(sounding.shape)}"
        _check.fail("evaluate.consensus_iou", "sounding", "bool [N, S, S]", got)
    return _overlap(sounding, _votes(boxes.to(sounding.device), *sounding.shape[:2], agree), agree)


def centre_prior(size: int) -> Tensor:
    """The heat map ``[size, size]`` of who looks at no picture: minus the distance from the middle.

    >>> centre_prior(2)[0, 0] == centre_prior(2)[1, 1]
    tensor(True)
    """
    place = torch.arange(size, dtype=torch.float64) + 0.5 - size / 2
    return -torch.hypot(place[:, None], place[None, :])


@torch.no_grad()
def localisation_scores(
    heat: Tensor,
    boxes: Tensor,
    *,
    size: int = 224,
    share: float = 0.5,
    threshold: float = 0.5,
    agree: int = 1,
    context: str = "",
) -> dict[str, Score]:
    """``cIoU@0.5``, ``AUC`` and ``mean cIoU`` of heat maps, and the same of the centre prior (``centre AUC`` ...).

    Things that sound are mostly in the middle of pictures, so a score means little until it is above that of the centre
    prior at the same share of pixels. Chance is what the model's own maps score when they are dealt to other clips: how
    far it gets without looking at the clip. Intervals resample clips.

    Args:
        heat: float ``[N, h, w]``, cosines or probabilities; only their order within a clip matters.
        boxes: float ``[N, 4]`` or ``[N, A, 4]``, left, top, right, bottom as fractions of the picture.
        size: side at which maps and boxes are compared.
        share: of the pixels that is called sounding.
        threshold: cIoU from which a clip counts as found.
        agree: see :func:`consensus_iou`.
        context: appended to the protocol.

    Raises:
        TypeError, ValueError: shapes, values or options that do not fit.

    >>> boxes = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]])
    >>> heat = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    >>> scores = localisation_scores(heat, boxes, size=8)
    >>> scores["cIoU@0.5"].value, scores["centre cIoU@0.5"].value
    (1.0, 0.0)
    """
    _check.number("evaluate.localisation_scores", "threshold", threshold, above=0.0)
    sounding = torch.cat([hottest(part, size, share) for part in heat.split(CHUNK)])

    votes = _votes(boxes.to(heat.device), len(heat), size, agree)

    def measured(sounding: Tensor) -> dict[str, np.ndarray]:
        return _measures(_overlap(sounding, votes, agree), threshold)

    found = measured(sounding)
    centre = hottest(centre_prior(size)[None], size, share).to(sounding.device)
    fixed = measured(centre.expand_as(sounding))
    dealt = [{name: part.mean() for name, part in measured(sounding[order]).items()} for order in _deals(len(heat))]
    annotators = boxes.shape[1] if boxes.dim() == 3 else 1
    protocol = (
        f"localisation/1 hottest {share:g} of {size} x {size} pixels from {heat.shape[1]} x {heat.shape[2]}, "
        f"annotators={annotators} agree={agree} n={len(heat)}"
    )
    scores = {}
    for name, part in found.items():
        beside = f"chance: maps dealt to other clips, centre prior {fixed[name].mean():.3f} {context}"
        scores[name] = _score(part, [guess[name] for guess in dealt], f"{protocol} {beside}".strip())
    for name, part in fixed.items():
        scores[f"centre {name}"] = _score(part, [], f"{protocol} of the centre prior {context}".strip())
    return scores


def _votes(boxes: Tensor, n: int, size: int, agree: int) -> Tensor:
    """How many annotators say that a pixel sounds, at most ``agree``: uint8 ``[N, size, size]``."""
    name, boxes = "evaluate.consensus_iou", boxes[:, None] if boxes.dim() == 2 else boxes
    if boxes.dim() != 3 or len(boxes) != n:
        _check.fail(name, "boxes", f"[{n}, 4] or [{n}, A, 4]", list(boxes.shape))
    if not 1 <= agree <= min(boxes.shape[1], 255):
        _check.fail(name, "agree", f"1 to {boxes.shape[1]}, the number of annotators", agree)
    votes = [box_masks(part, size).sum(dim=1).clamp(max=agree).to(torch.uint8) for part in boxes.split(CHUNK)]
    votes = torch.cat(votes)
    if not bool((votes.amax(dim=(1, 2)) > 0).all()):
        _check.fail(name, "boxes", f"boxes that hold a pixel's centre at {size} x {size}", "none in a clip")
    return votes


def _overlap(sounding: Tensor, votes: Tensor, agree: int) -> Tensor:
    found = []
    for part, truth in zip(sounding.split(CHUNK), votes.split(CHUNK), strict=True):
        # Counts of votes, exact in float32; divided by the agreement only at the end.
        hit, whole = _count(truth * part), _count(truth)
        found.append(hit / (whole + agree * _count(part & (truth == 0))))
    return torch.cat(found)


def _count(x: Tensor) -> Tensor:
    return x.float().sum(dim=(1, 2)).double()


def _score(values: np.ndarray, guesses: list[float], protocol: str) -> Score:
    chance = chance_range = None
    if guesses:
        low, high = np.percentile(guesses, [2.5, 97.5])
        chance, chance_range = float(np.mean(guesses)), (float(low), float(high))
    return Score(float(values.mean()), chance, chance_range, bootstrap_interval(values), len(values), protocol)


def _measures(values: Tensor, threshold: float) -> dict[str, np.ndarray]:
    """Per clip ``[N]``, so that each score is a mean."""
    values = values.cpu()
    thresholds = torch.tensor(THRESHOLDS, dtype=torch.float64)
    reached = (values[:, None] >= thresholds).double()  # [N, T]
    return {
        f"cIoU@{threshold:g}": (values >= threshold).double().numpy(),
        "AUC": torch.trapezoid(reached, thresholds, dim=1).numpy(),
        "mean cIoU": values.numpy(),
    }


def _deals(n: int) -> Iterator[Tensor]:
    """Orders in which no clip keeps its own map."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(DEALS if n > 1 else 0):
        cycle = torch.randperm(n, generator=generator)
        order = torch.empty_like(cycle)
        order[cycle] = cycle.roll(1)
        yield order
