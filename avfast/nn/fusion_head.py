"""Classifiers of two modalities of which either may be absent."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops import _check
from ..ops.masked_concat_linear import masked_concat_linear
from ..ops.masked_fusion import masked_fusion
from .masked_fusion import MODES, MaskedFusion, zero_absent


class FusionHead(nn.Module):
    r"""Logits of two modalities; what is masked is not read and has no say.

    * ``"concat"``: :math:`W [m_a a, m_v v] + b` without building the concatenation. Holds ``weight`` and ``bias`` of
      ``nn.Linear(dim_a + dim_v, classes)``, so that its state dict fits.
    * ``"sum"``: :math:`m_a (W_a a + b_a) + m_v (W_v v + b_v)`.
    * ``"gated"``: :math:`W (z \tanh(W_a a) + (1 - z) \tanh(W_v v)) + b`, the gated multimodal unit (Arevalo et al.
      2017, section 3.1).
    * ``"film"``: :math:`W (\gamma a + \beta) + b` with :math:`(\gamma, \beta)` from v (Perez et al. 2018, section 2).

    The four heads are those that Peng et al. 2022 ("Balanced multimodal learning via on-the-fly gradient modulation",
    section 4.1) compare. The logits of one modality inside the joint model are ``head.alone(a, v, "a")``.

    Args:
        dim_a, dim_v: channels of the modalities; equal for film.
        classes: C.
        mode: as above.
        hidden: width of the gated unit; ``dim_a`` if left out.

    Raises:
        ValueError: unknown mode or sizes below 1.

    >>> head = FusionHead(512, 512, classes=31)
    >>> a, v = torch.randn(4, 512), torch.randn(4, 512)
    >>> head(a, v, mask_v=torch.tensor([True, True, False, True])).shape
    torch.Size([4, 31])
    >>> torch.allclose(head(a, v), nn.functional.linear(torch.cat([a, v], 1), head.weight, head.bias), atol=1e-5)
    True
    """

    def __init__(
        self,
        dim_a: int,
        dim_v: int,
        classes: int,
        mode: str = "concat",
        *,
        hidden: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name, hidden = "FusionHead", dim_a if hidden is None else hidden
        _check.one_of(name, "mode", mode, MODES)
        for argument, size in (("dim_a", dim_a), ("dim_v", dim_v), ("classes", classes), ("hidden", hidden)):
            if size < 1:
                _check.fail(name, argument, "a positive number", size)
        self.dim_a, self.dim_v, self.classes, self.mode = dim_a, dim_v, classes, mode
        made = {"device": device, "dtype": dtype}
        if mode == "concat":
            linear = nn.Linear(dim_a + dim_v, classes, **made)
            self.weight, self.bias = linear.weight, linear.bias
        elif mode == "sum":
            self.out_a, self.out_v = nn.Linear(dim_a, classes, **made), nn.Linear(dim_v, classes, **made)
        elif mode == "gated":
            self.project_a, self.project_v = nn.Linear(dim_a, hidden, **made), nn.Linear(dim_v, hidden, **made)
            self.join, self.out = MaskedFusion(hidden, mode="gated", **made), nn.Linear(hidden, classes, **made)
        else:
            self.join, self.out = MaskedFusion(dim_a, dim_v, "film", **made), nn.Linear(dim_a, classes, **made)

    def forward(self, a: Tensor, v: Tensor, *, mask_a: Tensor | None = None, mask_v: Tensor | None = None) -> Tensor:
        """``a`` ``[B, *, dim_a]`` and ``v`` ``[B, *, dim_v]`` to logits ``[B, *, classes]``. Masks are bool, True where
        present, of samples ``[B]`` or tokens."""
        for name, x, mask in (("mask_a", a, mask_a), ("mask_v", v, mask_v)):
            if mask is not None and mask.dim() >= x.dim():
                _check.fail("FusionHead", name, "a mask of samples or tokens", f"shape {tuple(mask.shape)}")
        masks = {"mask_a": mask_a, "mask_v": mask_v}
        if self.mode == "concat":
            return masked_concat_linear(a, v, self.weight, self.bias, **masks)
        if self.mode == "sum":
            parts = self.out_a(zero_absent(a, mask_a)), self.out_v(zero_absent(v, mask_v))
            return masked_fusion(*parts, renormalize=False, **masks)
        if self.mode == "gated":
            a, v = (self.project_a(zero_absent(a, mask_a)).tanh(), self.project_v(zero_absent(v, mask_v)).tanh())
        return self.out(self.join(a, v, **masks))

    def alone(self, a: Tensor, v: Tensor, which: str) -> Tensor:
        """Logits of one modality (``"a"`` or ``"v"``) in this head, the other masked; of neither for ``""``."""
        _check.one_of("FusionHead.alone", "which", which, ("a", "v", ""))
        absent = torch.zeros(a.shape[:1], dtype=torch.bool, device=a.device)
        return self(a, v, mask_a=None if which == "a" else absent, mask_v=None if which == "v" else absent)

    def extra_repr(self) -> str:
        return f"dim_a={self.dim_a}, dim_v={self.dim_v}, classes={self.classes}, mode='{self.mode}'"
