"""The ops in the style of ``torch.nn.functional``: the same objects as at ``avfast``.

>>> import avfast
>>> channel_stats is avfast.channel_stats
True
"""

from __future__ import annotations

from .ops.blended_batch_norm import blended_batch_norm
from .ops.channel_affine import channel_affine
from .ops.channel_stats import channel_stats
from .ops.correlate import correlate
from .ops.crop_exemplars import crop_exemplars
from .ops.dense_contrastive import dense_contrastive
from .ops.dense_match import dense_match
from .ops.info_nce import info_nce
from .ops.mask_patches import mask_patches
from .ops.mask_ratio import mask_ratio
from .ops.masked_concat_linear import masked_concat_linear
from .ops.masked_fusion import masked_fusion
from .ops.nt_xent import nt_xent
from .ops.queue_info_nce import queue_info_nce
from .ops.recolour import recolour
from .ops.rotated_box import rotated_box_bce, rotated_box_mask
from .ops.sample_exemplars import sample_exemplars
from .ops.sigmoid_contrastive import sigmoid_contrastive
from .ops.sup_con import sup_con
from .ops.upsample_cross_entropy import upsample_cross_entropy
from .ops.yuv_to_rgb import yuv_to_rgb

__all__ = [
    "blended_batch_norm",
    "channel_affine",
    "channel_stats",
    "correlate",
    "crop_exemplars",
    "dense_contrastive",
    "dense_match",
    "info_nce",
    "mask_patches",
    "mask_ratio",
    "masked_concat_linear",
    "masked_fusion",
    "nt_xent",
    "queue_info_nce",
    "recolour",
    "rotated_box_bce",
    "rotated_box_mask",
    "sample_exemplars",
    "sigmoid_contrastive",
    "sup_con",
    "upsample_cross_entropy",
    "yuv_to_rgb",
]
