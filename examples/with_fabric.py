"""Correlational image modelling in a loop of Lightning Fabric, on pictures that are made here.

python examples/with_fabric.py [STEPS]
"""

from __future__ import annotations

import sys

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from avfast.engine.inputs import build_pipeline
from avfast.methods import get_method


class Pictures(Dataset):
    """Blots of colour, uint8 ``[3, S, S]``, each with a seed for what is cut out of it."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return 128

    def __getitem__(self, i: int) -> dict[str, Tensor | int]:
        coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(i))
        smooth = torch.nn.functional.interpolate(coarse, (self.size, self.size), mode="bicubic")[0]
        return {"image": (255 * smooth).clamp(0, 255).to(torch.uint8), "seed": i, "label": 0, "index": i}


def main(steps: int = 20) -> list[float]:
    """Train and return the losses of this process."""
    fabric = Fabric(accelerator="auto", devices=1, strategy="auto")
    fabric.launch()
    fabric.seed_everything(0, verbose=False)
    recipe = get_method("cim")
    method = recipe(recipe.Config(decoder_dim=32))
    method.prepare_training(steps)
    pieces = build_pipeline(method.inputs).to(fabric.device)  # contexts, exemplars and where they were
    optimizer = torch.optim.AdamW(method.param_groups(weight_decay=0.05), lr=1e-3)
    model, optimizer = fabric.setup(method, optimizer)
    loader = fabric.setup_dataloaders(
        DataLoader(Pictures(method.inputs.source_size), batch_size=8, shuffle=True, drop_last=True)
    )
    losses: list[float] = []
    while len(losses) < steps:
        for batch in loader:
            output = model(pieces(batch))
            fabric.backward(output.loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(output.loss.item())
            method.after_optimizer_step(len(losses))  # the module itself, not its wrapper
            if len(losses) % 5 == 0:
                fabric.print(f"step {len(losses)}: loss {losses[-1]:.3f}, overlap {output.metrics['map_iou']:.2f}")
            if len(losses) == steps:
                break
    return losses


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
