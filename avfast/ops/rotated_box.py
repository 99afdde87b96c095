"""Maps that say where a rotated box lies: their loss against the box itself, and the box drawn as a mask."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference import map_loss as reference
from . import _check, _layout, _registry
from ._double import own_nodes, wanted_gradients
from .sample_exemplars import Exemplars

Size = int | tuple[int, int]


def rotated_box_bce(
    logits: Tensor,
    boxes: Tensor,
    *,
    size: Size,
    source_size: float,
    align_corners: bool = True,
    shrink: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    r"""Binary cross-entropy of small maps, upsampled to ``size``, against the rotated boxes they should show.

    .. math:: \ell = \sum_{u, v} \log(1 + e^{z_{uv}}) - t_{uv} z_{uv}, \quad z = \mathrm{bilinear}(\mathrm{logits}),
              \quad t_{uv} = [L \le X_r < R] \, [T \le Y_r < B]

    with ``X_r = cos X + sin Y``, ``Y_r = -sin X + cos Y`` of the pixel's centre, which is at ``X = (u + 0.5) S / W -
    S / 2``, ``Y = (v + 0.5) S / H - S / 2`` of a source image of side ``S``. Upsampling, drawing the box, loss and
    gradient are one pass; nothing of ``size`` is stored in either direction, and results do not depend on threads.
    Source: Li et al. 2023, "Correlational Image Modeling for Self-Supervised Visual Pre-Training", section 3: the loss
    of the correlation maps, whose two-class softmax cross-entropy is this with the difference of the two logits.

    Args:
        logits: ``[M, 1, h, w]``, or ``[M, 2, h, w]`` whose logit is the second channel minus the first; float32,
            float64, float16 or bfloat16, any strides.
        boxes: ``[M, 5]`` float32 or float64: theta in degrees, counter-clockwise, then top, left, bottom, right of the
            upright box in the rotated image, in source pixels from the image's centre (:func:`sample_exemplars` draws
            them). Or, in their place, masks ``[M, H, W]``, uint8 or bool, 0 outside.
        size: ``(H, W)`` of the map the loss is taken on, or one side.
        source_size: side of the source image in pixels, in which boxes are given.
        align_corners: as in ``torch.nn.functional.interpolate``.
        shrink: source pixels by which every edge moves inwards.
        reduction: ``"mean"`` over all pixels of all maps, ``"sum"`` of them, or ``"none"``: ``[M]``, the mean of each.

    Returns:
        The loss in float32 (float64 for float64 logits), with a gradient for ``logits``; a second derivative is
        computed with plain PyTorch.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or option.

    >>> box = torch.tensor([[0.0, -112, -112, 112, 0]])  # the left half of a 224 pixel image
    >>> logits = torch.tensor([[[[9.0, -9.0]]]])
    >>> round(rotated_box_bce(logits, box, size=(2, 2), source_size=224).item(), 6)
    0.000123
    >>> round(rotated_box_bce(torch.zeros(1, 2, 4, 4), box, size=8, source_size=224).item(), 4)
    0.6931
    """
    name = "rotated_box_bce"
    _check.floating(name, "logits", logits)
    if logits.dim() != 4 or logits.shape[1] not in (1, 2) or 0 in logits.shape[2:]:
        _check.fail(name, "logits", "shape [M, 1 or 2, h, w] of at least one position", tuple(logits.shape))
    height, width = _size(name, size)
    _check.number(name, "source_size", source_size, above=0.0)
    _check.number(name, "shrink", shrink, at_least=0.0)
    _check.one_of(name, "reduction", reduction, ("mean", "sum", "none"))
    boxes, mask = _target(name, boxes, logits, height, width)
    options = height, width, float(source_size), bool(align_corners), float(shrink)
    if _check.differentiated(logits):
        sums = _BoxBce.apply(logits, boxes, mask, *options)
    else:
        sums, _ = _forward(logits.detach(), boxes, mask, *options, False)
    if reduction == "sum":
        return sums.sum()
    means = sums / (height * width)
    return means if reduction == "none" else means.mean()


def rotated_box_mask(boxes: Tensor, *, size: Size, source_size: float, shrink: float = 0.0) -> Tensor:
    """Draw the boxes that :func:`rotated_box_bce` compares with: uint8 ``[M, H, W]``, 1 inside.

    A pixel belongs to a box if its centre does, left and top edges included, right and bottom edges not; the arithmetic
    is float64. Source: as :func:`rotated_box_bce`.

    Args:
        boxes: ``[M, 5]`` float32 or float64: theta in degrees, then top, left, bottom, right of the upright box in
            the rotated image, in source pixels from the image's centre.
        size: ``(H, W)`` of the masks, or one side.
        source_size: side of the source image in pixels.
        shrink: source pixels by which every edge moves inwards.

    Raises:
        TypeError, ValueError: wrong dtype, shape or option.

    >>> box = torch.tensor([[0.0, -2, -2, 0, 2], [90.0, -2, -2, 0, 2]])
    >>> rotated_box_mask(box, size=4, source_size=4).tolist()[0]
    [[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    >>> rotated_box_mask(box, size=4, source_size=4).tolist()[1]
    [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]
    """
    name = "rotated_box_mask"
    _check_boxes(name, boxes)
    height, width = _size(name, size)
    _check.number(name, "source_size", source_size, above=0.0)
    _check.number(name, "shrink", shrink, at_least=0.0)
    return reference.box_mask(boxes.detach(), height, width, source_size, shrink).to(torch.uint8)


def _size(name: str, size: object) -> tuple[int, int]:
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(sides) != 2 or any(isinstance(n, bool) or not isinstance(n, (int, torch.SymInt)) for n in sides):
        _check.fail(name, "size", "an integer or two", size, TypeError)
    if sides[0] < 1 or sides[1] < 1:
        _check.fail(name, "size", "sides of at least one pixel", size)
    return sides


def _check_boxes(name: str, boxes: object) -> None:
    if isinstance(boxes, Exemplars):
        _check.fail(name, "boxes", "a tensor [M, 5], as exemplars.boxes.flatten(0, 1) is", "Exemplars", TypeError)
    _check.floating(name, "boxes", boxes)
    if boxes.dtype not in (torch.float32, torch.float64):
        _check.fail(name, "boxes", "float32 or float64", boxes.dtype, TypeError)
    if boxes.dim() != 2 or boxes.shape[1] != 5:
        _check.fail(name, "boxes", "shape [M, 5]", tuple(boxes.shape))


def _target(name: str, boxes: object, logits: Tensor, height: int, width: int) -> tuple[Tensor | None, Tensor | None]:
    """(boxes, mask), one of them None."""
    is_mask = isinstance(boxes, Tensor) and boxes.dtype in (torch.uint8, torch.bool)
    if not is_mask:
        _check_boxes(name, boxes)
    _check.strided(name, "boxes", boxes)
    expected = (logits.shape[0], height, width) if is_mask else (logits.shape[0], 5)
    if boxes.shape != expected:
        _check.fail(name, "boxes", f"shape {tuple(expected)}", tuple(boxes.shape))
    if boxes.device != logits.device:
        _check.fail(name, "boxes", f"a tensor on {logits.device}", boxes.device)
    return (None, boxes.view(torch.uint8)) if is_mask else (boxes.detach(), None)


class _BoxBce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, boxes, mask, *options):
        loss, grad = _forward(logits, boxes, mask, *options, True)
        ctx.save_for_backward(logits, boxes, mask, grad)
        ctx.options = options
        return loss

    @staticmethod
    def backward(ctx, grad: Tensor):
        logits, boxes, mask, slope = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            leaves = own_nodes(logits)
            loss = reference.box_bce(*leaves, boxes, mask, *ctx.options)
            (found,) = wanted_gradients(loss, leaves, grad, ctx.needs_input_grad)
        else:
            found = slope * grad[:, None, None, None]
            if logits.shape[1] == 2:
                found = torch.cat((-found, found), dim=1)
            found = found.to(logits.dtype)
        return (found, *(None for _ in range(7)))


def _fake(logits, boxes, mask, height, width, source_size, align_corners, shrink, need_grad):
    wide, (m, _, h, w) = _layout.accumulation_dtype(logits), logits.shape
    return logits.new_empty(m, dtype=wide), logits.new_empty((m, 1, h, w) if need_grad else (0,), dtype=wide)


_forward = _registry.define(
    "box_bce_fwd(Tensor logits, Tensor? boxes, Tensor? mask, int height, int width, float source_size,"
    " bool align_corners, float shrink, bool need_grad) -> (Tensor loss, Tensor grad)",
    op="rotated_box_bce",
    reference=reference.box_bce_forward,
    fake=_fake,
    triton="avfast.kernels.correlation.box_bce_triton:box_bce_fwd_triton",
)
