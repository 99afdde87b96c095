"""Audio-visual alignment in a loop of torch alone, on clips of your own: here, tones and squares of their colour.

python examples/plain_torch.py [STEPS]
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from avfast.methods import get_method


class Clips(Dataset):
    """Clip i is a picture of one colour and the spectrogram of one tone; both follow from i."""

    def __len__(self) -> int:
        return 256

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(i)
        kind = i % 16
        frames = 0.3 * torch.randn(1, 3, 32, 32, generator=draw)  # [T, 3, H, W], normalised
        frames[:, kind % 3, :, 2 * kind : 2 * kind + 2] += 2
        spectrogram = 0.3 * torch.randn(1, 64, 32, generator=draw)  # [1, mel bands, time]
        spectrogram[:, 4 * kind : 4 * kind + 4] += 2
        return {"frames": frames, "spectrogram": spectrogram}


def main(steps: int = 60) -> list[float]:
    """Train and return the losses."""
    torch.manual_seed(0)
    recipe = get_method("av-align")
    method = recipe(recipe.Config(frames=1, size=32, dim=32))
    method.prepare_training(steps)
    optimizer = torch.optim.AdamW(method.param_groups(weight_decay=1e-4), lr=2e-3)
    loader = DataLoader(Clips(), batch_size=32, shuffle=True, drop_last=True)
    losses: list[float] = []
    while len(losses) < steps:
        for batch in loader:
            output = method(batch)
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
            losses.append(output.loss.item())
            method.after_optimizer_step(len(losses))
            if len(losses) % 10 == 0:
                print(f"step {len(losses)}: loss {losses[-1]:.3f}, {output.metrics['batch_r1']:.0%} found")
            if len(losses) == steps:
                break
    return losses


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
