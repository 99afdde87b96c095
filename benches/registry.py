"""The benches there are, by name. One file each; a file offers ``cases(device)`` or ``measure(threads)``."""

from __future__ import annotations

import importlib
from types import ModuleType

#: name -> module. Kept in the order in which reports show them.
BENCHES = {
    "batch_norm_scan": "bench_batch_norm_scan",
    "channel_stats": "bench_channel_stats",
    "blended_batch_norm": "bench_blended_batch_norm",
    "overhead": "bench_overhead",
    "train_step": "bench_train_step",
    "queue_info_nce": "bench_queue_nce",
    "info_nce": "bench_info_nce",
    "nt_xent": "bench_nt_xent",
    "sigmoid_contrastive": "bench_sigmoid",
    "dense_match": "bench_dense_match",
    "densecl_step": "bench_densecl_step",
    "exemplars": "bench_exemplars",
    "correlate": "bench_correlate",
    "rotated_box_bce": "bench_rotated_box_bce",
    "upsample_cross_entropy": "bench_upsample_ce",
    "cim_step": "bench_cim_step",
    "mask_patches": "bench_mask_patches",
    "masked_fusion": "bench_masked_fusion",
    "masked_concat_linear": "bench_concat_linear",
    "fusion_step": "bench_fusion_step",
}

#: Benches that belong together, for a record of one family.
FAMILIES = {
    "batch_norm": tuple(BENCHES)[:5],
    "contrastive": tuple(BENCHES)[5:11],
    "correlation": tuple(BENCHES)[11:16],
    "fusion": tuple(BENCHES)[16:],
}


def load(name: str) -> ModuleType:
    """The module of one bench; an unknown name is answered with the known ones."""
    if name not in BENCHES:
        from avfast.errors import ConfigError

        raise ConfigError(f"avfast.benches: expected one of {', '.join(BENCHES)}, got {name!r}")
    return importlib.import_module(f".{BENCHES[name]}", __package__)
