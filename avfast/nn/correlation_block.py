"""One block of cross-attention from a context to its exemplars, as a decoder of correlation maps uses it."""

from __future__ import annotations

from torch import Tensor, nn

from ..ops import _check
from ..ops.correlate import correlate


class CorrelationBlock(nn.Module):
    r"""A context asks each of its exemplars; what it learns is added to it, and a small network follows.

    .. math:: h_{be} = x_b + \mathrm{proj}(\mathrm{correlate}(q(\mathrm{norm}(x_b)), kv(\mathrm{norm}(z_{be})))), \quad
              y_{be} = h_{be} + \mathrm{mlp}(\mathrm{norm}_2(h_{be}))

    One layer norm serves both sides. The context is normalised and projected once for all its exemplars, which share
    one pass over the attention; the value is that of one block run on one exemplar after another.

    Source: Li et al. 2023, "Correlational Image Modeling for Self-Supervised Visual Pre-Training", section 3.

    Args:
        dim: channels of both sides.
        heads: heads of the attention; ``dim`` is a multiple of it.
        mlp_ratio: width inside the small network over ``dim``.
        qkv_bias: give the projections of queries, keys and values a bias.

    Raises:
        ValueError: a size below 1, or ``dim`` is no multiple of ``heads``.

    >>> block = CorrelationBlock(8, heads=2)
    >>> block(torch.randn(3, 5, 8), torch.randn(3, 2, 4, 8)).shape  # 3 contexts of 5 tokens, 2 exemplars of 4 each
    torch.Size([3, 2, 5, 8])
    """

    def __init__(self, dim: int, heads: int, *, mlp_ratio: float = 4.0, qkv_bias: bool = True) -> None:
        super().__init__()
        if dim < 1 or heads < 1 or dim % heads:
            _check.fail("nn.CorrelationBlock", "dim", f"a multiple of the {heads} heads", dim)
        if not mlp_ratio * dim >= 1:
            _check.fail("nn.CorrelationBlock", "mlp_ratio", "a positive number", mlp_ratio)
        self.heads = heads
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.mlp_norm = nn.LayerNorm(dim, eps=1e-6)
        hidden = int(mlp_ratio * dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(
        self, context: Tensor, exemplars: Tensor, *, key_mask: Tensor | None = None, correlation: str | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Context ``[B, N, D]`` and exemplars ``[B, E, K, D]`` to ``[B, E, N, D]``.

        Args:
            context, exemplars: of one dtype, that of the weights unless autocast is on.
            key_mask: bool ``[B, E, K]``, True for tokens of exemplars that may be looked at.
            correlation: also return this map of the attention; see :func:`avfast.correlate`.

        Raises:
            TypeError, ValueError: wrong shape, dtype or option.
        """
        _check_tokens(context, exemplars, self.norm.normalized_shape[0])
        split = (self.heads, context.shape[-1] // self.heads)
        q = self.q(self.norm(context)).unflatten(-1, split)
        k, v = self.kv(self.norm(exemplars)).unflatten(-1, (2, *split)).unbind(-3)
        result = correlate(q, k, v, key_mask=key_mask, correlation=correlation)
        attended, heat = (result, None) if correlation is None else result
        x = context.unsqueeze(1) + self.proj(attended)
        x = x + self.mlp(self.mlp_norm(x))
        return x if heat is None else (x, heat)

    def extra_repr(self) -> str:
        return f"heads={self.heads}"


def _check_tokens(context: Tensor, exemplars: Tensor, dim: int) -> None:
    name = "nn.CorrelationBlock"
    if context.dim() != 3 or context.shape[2] != dim:
        _check.fail(name, "context", f"shape [B, N, {dim}]", tuple(context.shape))
    if exemplars.dim() != 4 or exemplars.shape[0] != context.shape[0] or exemplars.shape[3] != dim:
        _check.fail(name, "exemplars", f"shape ({context.shape[0]}, E, K, {dim})", tuple(exemplars.shape))
