"""avfast: fused, exact ops and working recipes for audio-visual and self-supervised pre-training.

Ops are functions here and modules in :mod:`avfast.nn`, with the same argument names. The compiled library is loaded
once, if it was built; without it every op computes through its plain PyTorch reference, and ``avfast env`` says so.
"""

from __future__ import annotations

from . import backends as _backends
from .backends import explain, set_backend, use_backend
from .ops.blended_batch_norm import blended_batch_norm
from .ops.bn_scan import Scan as _Scan  # noqa: F401  (registers the op)
from .ops.channel_affine import channel_affine
from .ops.channel_stats import ChannelStats, channel_stats
from .ops.correlate import correlate
from .ops.crop_exemplars import crop_exemplars
from .ops.dense_contrastive import Correspondence, dense_contrastive
from .ops.dense_match import DenseMatch, dense_match
from .ops.info_nce import info_nce
from .ops.mask_patches import PatchMask, mask_patches
from .ops.mask_ratio import mask_ratio
from .ops.masked_concat_linear import masked_concat_linear
from .ops.masked_fusion import masked_fusion
from .ops.nt_xent import nt_xent
from .ops.queue_info_nce import QueueLoss, queue_info_nce
from .ops.recolour import recolour
from .ops.rotated_box import rotated_box_bce, rotated_box_mask
from .ops.sample_exemplars import Exemplars, sample_exemplars
from .ops.sigmoid_contrastive import sigmoid_contrastive
from .ops.sup_con import sup_con
from .ops.upsample_cross_entropy import upsample_cross_entropy
from .ops.yuv_to_rgb import yuv_to_rgb

__version__ = "0.1.0"

_backends.initialise()

from . import nn  # noqa: E402
from .nn import (  # noqa: E402
    BatchNormReport,
    FeatureQueue,
    GroupShuffleBN,
    ScanPlan,
    convert_abri,
    fold_abri,
    geometric_match,
    momentum_update,
    random_match,
    reset_batchnorm,
    scan_batchnorm,
    watch_channels,
)

__all__ = [
    "BatchNormReport",
    "ChannelStats",
    "Correspondence",
    "DenseMatch",
    "Exemplars",
    "FeatureQueue",
    "GroupShuffleBN",
    "PatchMask",
    "QueueLoss",
    "ScanPlan",
    "blended_batch_norm",
    "channel_affine",
    "channel_stats",
    "convert_abri",
    "correlate",
    "crop_exemplars",
    "dense_contrastive",
    "dense_match",
    "explain",
    "fold_abri",
    "geometric_match",
    "info_nce",
    "mask_patches",
    "mask_ratio",
    "masked_concat_linear",
    "masked_fusion",
    "momentum_update",
    "nn",
    "nt_xent",
    "queue_info_nce",
    "random_match",
    "recolour",
    "reset_batchnorm",
    "rotated_box_bce",
    "rotated_box_mask",
    "sample_exemplars",
    "scan_batchnorm",
    "set_backend",
    "sigmoid_contrastive",
    "sup_con",
    "upsample_cross_entropy",
    "use_backend",
    "watch_channels",
    "yuv_to_rgb",
]
