"""Losses under the names, constructors and calls of other libraries, over the ops of this package.

One module per library: ``from avfast.compat.lightly import NTXentLoss``. Each says what it computes otherwise. An
option that is not supported raises; none is ignored.
"""

from . import lightly, mmselfsup, open_clip, pytorch_metric_learning

__all__ = ["lightly", "mmselfsup", "open_clip", "pytorch_metric_learning"]
