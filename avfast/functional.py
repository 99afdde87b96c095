"""The ops in the style of ``torch.nn.functional``: the same objects as at ``avfast``.

>>> import avfast
>>> channel_stats is avfast.channel_stats
True
"""

from __future__ import annotations

from .ops.blended_batch_norm import blended_batch_norm
from .ops.channel_affine import channel_affine
from .ops.channel_stats import channel_stats
from .ops.dense_match import dense_match
from .ops.info_nce import info_nce
from .ops.queue_info_nce import queue_info_nce

__all__ = ["blended_batch_norm", "channel_affine", "channel_stats", "dense_match", "info_nce", "queue_info_nce"]
