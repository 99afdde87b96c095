"""InfoNCE of each query against one positive key and a queue of negatives: the loss of MoCo."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..reference import queue as reference
from . import _check, _layout, _registry


class QueueLoss(NamedTuple):
    """``loss`` (reduced as asked) and, per row and without gradient, what it is made of.

    ``positive`` is the positive's logit and ``negative`` the log of the summed exponentials of all negatives' logits,
    so ``loss = softplus(negative - positive)``; both have the shape of an unreduced loss, and are 0 where a row is left
    out.

    >>> parts = queue_info_nce(torch.eye(2), torch.eye(2), -torch.eye(2), temperature=1.0, return_parts=True)
    >>> parts.positive.tolist()
    [1.0, 1.0]
    """

    loss: Tensor
    positive: Tensor
    negative: Tensor


def queue_info_nce(
    q: Tensor,
    k: Tensor,
    queue: Tensor,
    *,
    temperature: float = 0.2,
    normalize: bool = True,
    reduction: str = "mean",
    return_parts: bool = False,
) -> Tensor | QueueLoss:
    r"""Contrastive loss of each query against its own key and K negatives, and the gradient in the same pass.

    .. math:: \ell_i = -\log \frac{\exp(q_i \cdot k_i / \tau)}
              {\exp(q_i \cdot k_i / \tau) + \sum_j \exp(q_i \cdot n_j / \tau)}

    Nothing of size N x K is ever stored. Sources: He et al. 2020, MoCo, section 3.1; the global loss of DenseCL
    (Wang et al. 2021, section 3.3).

    Args:
        q: queries ``[N, D]``, float32, float64, float16 or bfloat16; sums are kept in float32 (float64 for float64).
        k: positive keys ``[N, D]``, like ``q``.
        queue: negatives ``[K, D]``, any float dtype and layout (the transpose of a ``[D, K]`` buffer costs nothing),
            used as they are: give rows of unit length. With bfloat16 queries it is read as bfloat16. On the CPU any
            length is exact; a GPU needs lengths below ``1 + 80 temperature``.
        temperature: positive number.
        normalize: scale rows of ``q`` and ``k`` to unit length first; forward and backward are part of the kernel.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (``[N]``).
        return_parts: give a :class:`QueueLoss` instead of the loss alone.

    The gradient flows to ``q``, and to ``k`` and ``queue`` where they require it. A second backward pass works; a
    second derivative is computed with plain PyTorch.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device, option or temperature.

    >>> q = torch.eye(3)
    >>> round(queue_info_nce(q, q, -q, temperature=1.0).item(), 4)  # log(1 + (e^-1 + 2) / e)
    0.6265
    """
    name = "queue_info_nce"
    _check.floating(name, "q", q)
    if q.dim() != 2:
        _check.fail(name, "q", "shape [N, D]", tuple(q.shape))
    _check.like(name, "k", k, q, "q")
    check_queue(name, queue, q, q.shape[1])
    _check.number(name, "temperature", temperature, above=0.0)
    _check.one_of(name, "reduction", reduction, ("mean", "sum", "none"))
    loss, positive, lse = apply(q.unsqueeze(2), k.unsqueeze(2), queue, None, float(temperature), normalize)
    loss = loss.squeeze(1)
    reduced = {"mean": loss.mean, "sum": loss.sum, "none": lambda: loss}[reduction]()
    return parts(reduced, positive.squeeze(1), lse.squeeze(1)) if return_parts else reduced


def check_queue(name: str, queue: Tensor, q: Tensor, width: int) -> None:
    _check.floating(name, "queue", queue)
    if queue.dim() != 2 or queue.shape[1] != width:
        turned = queue.dim() == 2 and queue.shape[0] == width
        hint = " (give a [D, K] buffer as its transpose, which costs nothing)" if turned else ""
        _check.fail(name, "queue", f"shape [K, {width}]{hint}", tuple(queue.shape))
    if queue.device != q.device:
        _check.fail(name, "queue", f"a tensor on {q.device}", queue.device)


def parts(loss: Tensor, positive: Tensor, lse: Tensor) -> QueueLoss:
    """The negatives' share of a log-sum-exp: log(e^lse - e^positive)."""
    gap = positive - lse
    negative = torch.where(lse == 0, 0.0, lse + torch.log(-torch.expm1(gap)))
    return QueueLoss(loss, positive, negative)


def apply(
    q: Tensor, k: Tensor, queue: Tensor, match: Tensor | None, temperature: float, normalize: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss per row, positive logit and log-sum-exp [B, S] of checked arguments; only the loss has a gradient."""
    if _check.differentiated(q, k, queue):
        return _QueueNce.apply(q, k, queue, match, temperature, normalize)
    return _forward(q, k, queue, match, temperature, normalize, False)[:3]


class _QueueNce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, queue: Tensor, match: Tensor | None, temperature: float, normalize: bool):
        loss, positive, lse, dq = _forward(q, k, queue, match, temperature, normalize, q.requires_grad)
        # Keys may be pushed into the queue before the backward pass: it is saved, and so watched by autograd, only for
        # a gradient of its own. The gradient of q is known already.
        ctx.save_for_backward(q, k, queue if queue.requires_grad else None, match, positive, lse, dq)
        if not torch.compiler.is_compiling():
            ctx.queue, ctx.version = queue, queue._version
        ctx.options = temperature, normalize
        ctx.mark_non_differentiable(positive, lse)
        return loss, positive, lse

    @staticmethod
    def backward(ctx, grad: Tensor, _positive, _lse):
        q, k, queue, match, positive, lse, dq = ctx.saved_tensors
        temperature, normalize = ctx.options
        needs_q, needs_k, needs_queue = ctx.needs_input_grad[:3]
        # create_graph=True: the differentiable expression. (The compiler traces with gradients on, but never wants it.)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            if ctx.queue._version != ctx.version:
                raise RuntimeError("avfast.queue_info_nce: queue was changed before a second derivative was taken")
            # Nodes of their own: where k was computed from q, a gradient with respect to q would take in that path too.
            q, k, queue = (x.view_as(x) for x in (q, k, ctx.queue))
            loss, _, _ = reference.queue_nce(q, k, queue, match, temperature, normalize)
            wanted = [x for x, needed in ((q, needs_q), (k, needs_k), (queue, needs_queue)) if needed]
            found = iter(torch.autograd.grad(loss, wanted, grad, create_graph=True))
            return (*(next(found) if needed else None for needed in (needs_q, needs_k, needs_queue)), None, None, None)
        grad_q = (dq * grad.unsqueeze(1)).to(q.dtype) if needs_q else None
        grad_k = None
        if needs_k:  # through the positive alone, whose share of the softmax is exp(positive - lse)
            weights = grad * torch.expm1(positive - lse)
            grad_k = reference.queue_nce_backward_keys(weights, q, k, match, temperature, normalize)
        grad_queue = _backward_queue(grad, q, queue, lse, match, temperature, normalize) if needs_queue else None
        return grad_q, grad_k, grad_queue, None, None, None


def _fake_forward(q, k, queue, match, temperature, normalize, need_grad):
    wide = _layout.accumulation_dtype(q)
    rows = (q.shape[0], q.shape[2])
    loss, positive, lse = (q.new_empty(rows, dtype=wide) for _ in range(3))
    return loss, positive, lse, q.new_empty(q.shape if need_grad else (0,), dtype=wide)


_forward = _registry.define(
    "queue_nce_fwd(Tensor q, Tensor k, Tensor queue, Tensor? match, float temperature, bool normalize, bool need_grad)"
    " -> (Tensor loss, Tensor positive, Tensor lse, Tensor dq)",
    op="queue_info_nce",
    reference=reference.queue_nce_forward,
    fake=_fake_forward,
    triton="avfast.kernels.contrastive.queue_nce_triton:queue_nce_fwd_triton",
)
_backward_queue = _registry.define(
    "queue_nce_bwd_queue(Tensor grad, Tensor q, Tensor queue, Tensor lse, Tensor? match, float temperature,"
    " bool normalize) -> Tensor",
    op="queue_info_nce",
    reference=reference.queue_nce_backward_queue,
    fake=lambda grad, q, queue, lse, match, temperature, normalize: queue.new_empty(queue.shape),
    triton="avfast.kernels.contrastive.queue_nce_triton:queue_nce_bwd_queue_triton",
)
