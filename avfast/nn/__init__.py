"""Modules over the ops, and functions over whole models. Argument names are those of the functions."""

from .abri import convert_abri, fold_abri, reset_batchnorm
from .adaptive_batch_norm import AdaptiveBatchNorm1d, AdaptiveBatchNorm2d, AdaptiveBatchNorm3d
from .bn_report import BatchNormReport
from .bn_scan import ScanPlan, scan_batchnorm
from .contrastive import DenseContrastive, InfoNCE, NTXent, QueueInfoNCE, SigmoidContrastive, SupCon
from .correlation_block import CorrelationBlock
from .correspondence import geometric_match, random_match
from .cross_modal import CrossModalInit, cross_modal_init
from .feature_queue import FeatureQueue
from .fusion_head import FusionHead
from .group_shuffle_bn import GroupShuffleBN
from .masked_fusion import MaskedFusion
from .momentum import momentum_update
from .sound_localiser import SoundLocaliser, select_frames
from .spec_augment import spec_augment
from .sync_batch_norm import SyncBatchNorm, synchronise_batch_norms
from .watch import ChannelWatch, watch_channels

__all__ = [
    "AdaptiveBatchNorm1d",
    "AdaptiveBatchNorm2d",
    "AdaptiveBatchNorm3d",
    "BatchNormReport",
    "ChannelWatch",
    "CorrelationBlock",
    "CrossModalInit",
    "DenseContrastive",
    "FeatureQueue",
    "FusionHead",
    "GroupShuffleBN",
    "InfoNCE",
    "MaskedFusion",
    "NTXent",
    "QueueInfoNCE",
    "ScanPlan",
    "SigmoidContrastive",
    "SoundLocaliser",
    "SupCon",
    "SyncBatchNorm",
    "convert_abri",
    "cross_modal_init",
    "fold_abri",
    "geometric_match",
    "momentum_update",
    "random_match",
    "reset_batchnorm",
    "scan_batchnorm",
    "select_frames",
    "spec_augment",
    "synchronise_batch_norms",
    "watch_channels",
]
