"""Two modalities joined where either may be absent, with learnt weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops import _check
from ..ops.masked_fusion import masked_fusion

MODES = ("sum", "gated", "film", "concat")
WEIGHTS = (None, "scalar", "channel")


class MaskedFusion(nn.Module):
    r"""Features of two modalities to one, through :func:`~avfast.masked_fusion`; what is masked is not read.

    * ``"sum"``: :math:`w_a a + w_v v`.
    * ``"gated"``: :math:`z\,a + (1 - z)\,v` with :math:`z = \sigma(W [m_a a, m_v v] + b)`, one gate per channel: the
      gated multimodal unit (Arevalo et al. 2017, section 3.1) after its two tanh layers, which are the caller's. A
      modality that is alone has the whole weight.
    * ``"film"``: :math:`\gamma a + \beta` with :math:`(\gamma, \beta) = W v + b` (Perez et al. 2018, section 2). W is
      zero and b is (1, 0) at first, so that training starts from a.
    * ``"concat"``: :math:`[w_a a, w_v v]`.

    Args:
        dim: D of ``a``; also of ``v`` for sum and gated.
        dim_v: of ``v``, for film and concat; ``dim`` if left out.
        mode: as above.
        weights: learnt factors of sum and concat, 1 at first: None for none, ``"scalar"`` for one per modality,
            ``"channel"`` for one per channel.
        renormalize: see :func:`~avfast.masked_fusion`.

    Raises:
        ValueError: unknown mode or weights, or sizes that the mode cannot join.

    >>> a, v = torch.ones(2, 4), 2 * torch.ones(2, 4)
    >>> join = MaskedFusion(4, weights="channel")
    >>> join(a, v, mask_v=torch.tensor([True, False]))[:, 0].tolist()
    [3.0, 2.0]
    """

    def __init__(
        self,
        dim: int,
        dim_v: int | None = None,
        mode: str = "sum",
        *,
        weights: str | None = None,
        renormalize: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name, dim_v = "MaskedFusion", dim if dim_v is None else dim_v
        _check.one_of(name, "mode", mode, MODES)
        _check.one_of(name, "weights", weights, WEIGHTS)
        for argument, size in (("dim", dim), ("dim_v", dim_v)):
            if size < 1:
                _check.fail(name, argument, "a positive number", size)
        if mode in ("sum", "gated") and dim_v != dim:
            _check.fail(name, "dim_v", f"dim, {dim}, for mode '{mode}'", dim_v)
        if weights is not None and mode not in ("sum", "concat"):
            _check.fail(name, "weights", f"None for mode '{mode}', whose weights are computed", weights)
        self.dim, self.dim_v, self.mode, self.renormalize = dim, dim_v, mode, renormalize
        made = {"device": device, "dtype": dtype}
        for modality, size in (("a", dim), ("v", dim_v)):
            shape = {"scalar": (), "channel": (size,)}.get(weights)
            weight = None if shape is None else nn.Parameter(torch.ones(shape, **made))
            self.register_parameter(f"weight_{modality}", weight)
        if mode == "gated":
            self.gate = nn.Linear(dim + dim_v, dim, **made)
        elif mode == "film":
            self.modulation = nn.Linear(dim_v, 2 * dim, **made)
            with torch.no_grad():
                self.modulation.weight.zero_()
                self.modulation.bias.copy_(torch.arange(2 * dim) < dim)

    @property
    def channels(self) -> int:
        """Channels of the result."""
        return self.dim + self.dim_v if self.mode == "concat" else self.dim

    def forward(self, a: Tensor, v: Tensor, *, mask_a: Tensor | None = None, mask_v: Tensor | None = None) -> Tensor:
        """``a`` ``[B, *, dim]`` and ``v`` ``[B, *, dim_v]`` to ``[B, *, channels]``.

        Masks are bool, True where present, of samples, tokens or elements; for film, that of v not of elements.
        """
        weight_a, weight_v = self.weight_a, self.weight_v
        if self.mode == "gated":
            both = masked_fusion(a, v, mask_a=mask_a, mask_v=mask_v, mode="concat")
            weight_a = self.gate(both)
        elif self.mode == "film":
            if mask_v is not None and mask_v.dim() == v.dim():
                _check.fail("MaskedFusion", "mask_v", "a mask of samples or tokens, for mode 'film'", "one of elements")
            v = self.modulation(zero_absent(v, mask_v)).to(a.dtype)  # autocast multiplies in less
        return masked_fusion(
            a, v, mask_a=mask_a, mask_v=mask_v, mode=self.mode, weight_a=weight_a, weight_v=weight_v,
            renormalize=self.renormalize,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"dim={self.dim}, dim_v={self.dim_v}, mode='{self.mode}', renormalize={self.renormalize}"


def zero_absent(x: Tensor, mask: Tensor | None) -> Tensor:
    """0 where a mask of samples or tokens says absent: a NaN there would reach the weights of a layer that reads it."""
    return x if mask is None else torch.where(mask.view(*mask.shape, *[1] * (x.dim() - mask.dim())), x, 0)
