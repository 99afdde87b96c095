"""What the frozen image encoder and the localiser say about every frame of every clip, kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch

from avfast.engine.checkpoint import write_atomic
from avfast.engine.config import DataConfig
from avfast.engine.inputs import InputPipeline
from avfast.engine.sources import SPLITS, DataBundle, build_dataset, evaluation_loader, readable
from avfast.errors import DataError
from avfast.methods.base import Inputs
from avfast.nn.encoder import Encoder
from avfast.nn.scene_targets import SceneTargets
from avfast.nn.sound_localiser import SoundLocaliser


@torch.no_grad()
def scene_targets(
    path: Path,
    bundle: DataBundle,
    inputs: Inputs,
    visual: Encoder,
    localiser: SoundLocaliser,
    *,
    device: torch.device,
    tell: Callable[[str], None] = print,
) -> SceneTargets:
    """The table of all splits at `path`, made now unless it is there with the same encoder, localiser and frames.

    Args:
        inputs: as of the audio stage, with the number of frames to look at.
        visual: the frozen image encoder; its pooled features are the targets.
        localiser: scores each frame against the clip's sound.

    Raises:
        DataError: no clip of a split could be read.
    """
    facts = {
        "encoder": weights_hash(visual), "localiser": weights_hash(localiser), "source": bundle.fingerprint,
        "inputs": repr(inputs),
    }  # fmt: skip
    if path.is_file() and (kept := SceneTargets.read(path)).facts == facts:
        tell(f"features of the frames: {len(kept)} clips, from '{path}'")
        return kept
    visual, localiser = visual.to(device).eval(), localiser.to(device).eval()
    pipeline = InputPipeline(inputs).to(device)
    keys, features, scores = [], [], []
    for name in SPLITS:
        if (part := bundle.splits[name]) is None:
            continue
        dataset = build_dataset(part, inputs, DataConfig(), seed=0, train=False, cache=False)
        for batch in readable(evaluation_loader(dataset, 16)):
            ready = pipeline(batch)
            frames = ready["frames"]  # [B, T, 3, H, W]
            features.append(visual.pooled(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).float().cpu())
            scores.append(localiser.frame_scores(frames, ready["spectrogram"]).float().cpu())
            keys.append(ready["key"].cpu())
    if not keys:
        raise DataError("no clip could be read for the features of its frames")
    key, order = torch.cat(keys).unique(return_inverse=True)  # copies of a clip, in one split or two, are one row
    first = torch.full_like(key, len(order)).scatter_reduce(0, order, torch.arange(len(order)), "amin")
    table = SceneTargets(key, torch.cat(features)[first], torch.cat(scores)[first], facts)
    write_atomic(path, table.save)
    tell(f"features of the frames: {len(table)} clips x {table.frames} frames x {table.dim} in '{path}'")
    return table


def weights_hash(module: torch.nn.Module) -> str:
    """SHA-256 of a module's tensors, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
