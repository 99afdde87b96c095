"""Media files and pictures to tensors: sources, samplers, datasets, front-ends, the demo set and the media scan.

Nothing here needs PyAV until a file is opened.
"""

from __future__ import annotations

from avfast.data.colours import Colours
from avfast.data.correlation_views import CorrelationBatch, CorrelationViews
from avfast.data.dataset import ClipDataset, build_loader
from avfast.data.image_folder import ImageDataset
from avfast.data.media import Clip, MediaError, MediaInfo, probe, read_clip
from avfast.data.sampler import EpochSampler
from avfast.data.sources import IMAGE_EXTENSIONS, ClipRecord, ClipSource
from avfast.data.views import TwoViews

__all__ = [
    "Clip",
    "ClipDataset",
    "ClipRecord",
    "ClipSource",
    "Colours",
    "CorrelationBatch",
    "CorrelationViews",
    "EpochSampler",
    "IMAGE_EXTENSIONS",
    "ImageDataset",
    "MediaError",
    "MediaInfo",
    "TwoViews",
    "build_loader",
    "probe",
    "read_clip",
]
