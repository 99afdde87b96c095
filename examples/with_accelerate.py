"""DenseCL in a loop of accelerate, on a folder of pictures: one process or many, accumulated steps, a momentum network.

accelerate launch examples/with_accelerate.py FOLDER [STEPS]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from avfast.data import EpochSampler, build_loader
from avfast.engine.config import DataConfig
from avfast.engine.inputs import build_pipeline
from avfast.engine.sources import build_dataset, open_data
from avfast.methods import get_method


def make_loader(folder: Path, method: torch.nn.Module, accelerator: Accelerator) -> DataLoader:
    """avfast's own reading of pictures; any loader does whose batches hold what `method.inputs` asks for."""
    pictures = open_data(folder, method.inputs).splits["train"]
    dataset = build_dataset(pictures, method.inputs, DataConfig(), seed=0, train=True, cache=True)
    rank, processes = accelerator.process_index, accelerator.num_processes
    return build_loader(dataset, EpochSampler(len(dataset), seed=0, batch_size=8, rank=rank, world_size=processes))


def main(folder: str, steps: int = 40) -> list[float]:
    """Train and return the losses of this process."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), gradient_accumulation_steps=2)
    recipe = get_method("densecl")
    method = recipe(recipe.Config(size=32, dim=32, queue=32, group_size=4))
    method.prepare_training(steps)
    views = build_pipeline(method.inputs).to(accelerator.device)  # two random views of each picture
    loader = make_loader(Path(folder), method, accelerator)
    optimizer = torch.optim.SGD(method.param_groups(weight_decay=1e-4), lr=0.05, momentum=0.9)
    model, optimizer = accelerator.prepare(method, optimizer)
    losses: list[float] = []
    step = 0
    while step < steps:
        for batch in loader:
            with accelerator.accumulate(model):
                output = model(views(batch))
                accelerator.backward(output.loss)
                optimizer.step()  # does nothing until the second of two batches
                optimizer.zero_grad()
            losses.append(output.loss.item())
            if accelerator.sync_gradients:
                step += 1
                method.after_optimizer_step(step)  # the module itself, not its wrapper
                if step % 10 == 0:
                    accelerator.print(f"step {step}: loss {losses[-1]:.3f}, queue {output.metrics['queue_fill']:.0%}")
                if step == steps:
                    break
    return losses


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
