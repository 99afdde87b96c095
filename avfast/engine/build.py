"""Accelerator, method, optimiser and schedule out of a configuration."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from avfast.engine.config import OptimConfig, TrainConfig
from avfast.engine.parallel import USE_FSDP
from avfast.engine.state import seed_everything
from avfast.errors import ConfigError, MissingDependency
from avfast.methods import Method, get_method

if TYPE_CHECKING:
    from avfast.engine.sources import DataBundle


def build_accelerator(device: str, precision: str) -> Any:
    """An `accelerate.Accelerator`: devices, processes and mixed precision are its work.

    Args:
        device: "auto", "cpu" or "cuda".
        precision: "no", "bf16" or "fp16".
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
    except (ImportError, RuntimeError, OSError) as error:
        raise MissingDependency("accelerate", extra="train", purpose="training") from error
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device: expected auto, cpu or cuda, got '{device}'")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: this torch sees no CUDA device; --device cpu works everywhere")
    if precision == "fp16" and (device == "cpu" or not torch.cuda.is_available()):
        raise ConfigError("run.precision=fp16 needs a CUDA device; bf16 works on the CPU")
    if not torch.distributed.is_initialized():
        AcceleratorState._reset_state(reset_partial_state=True)  # one process may run twice with other settings
    # Sharing weights among processes is the work of `engine.parallel`, on any device; accelerate wants a GPU for it.
    asked = os.environ.pop(USE_FSDP, None)
    try:
        return Accelerator(cpu=device == "cpu", mixed_precision=precision)
    finally:
        if asked is not None:
            os.environ[USE_FSDP] = asked


def build_method(config: TrainConfig) -> Method:
    """The method with its initial weights, a function of ``run.seed``."""
    seed_everything(config.run.seed)
    return get_method(config.recipe).build(config.method)


def with_classes(config: TrainConfig, bundle: DataBundle) -> TrainConfig:
    """The configuration with ``method.classes`` as in the data.

    Raises:
        ConfigError: data without a label for every sample, or of one class.
    """
    if not bundle.labelled:
        raise ConfigError(
            f"recipe '{config.recipe}' learns classes: all {bundle.noun} need a label, of two classes at least "
            "(folders named for their class, or a column 'label')"
        )
    method = dataclasses.replace(config.method, classes=len(bundle.source.classes))
    return dataclasses.replace(config, method=method)


def learning_rate(config: OptimConfig, batch: int) -> float:
    """Peak learning rate for `batch` samples per step, all processes together.

    >>> learning_rate(OptimConfig(lr=0.3, lr_batch=256), 64)
    0.075
    """
    return config.lr * batch / config.lr_batch if config.lr_batch else config.lr


def build_optimizer(method: Method, config: OptimConfig, batch: int) -> torch.optim.Optimizer:
    """The optimiser of a method for `batch` samples per step, all processes together."""
    groups = method.param_groups(config.weight_decay)
    if not groups:
        raise ConfigError("the method has no trainable parameter")
    lr = learning_rate(config, batch)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=config.momentum)
    optimizers = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
    return optimizers[config.name](groups, lr=lr, betas=(0.9, config.beta2))


def build_schedule(
    optimizer: torch.optim.Optimizer, config: OptimConfig, steps: int, steps_per_epoch: int = 1
) -> LambdaLR:
    """Linear warm-up, then a half cosine to zero at `steps`, or constant, or a tenth from 0.7 `steps` on.

    ``cosine-epoch`` moves once per epoch, with ``cos(pi * epoch / epochs)``, as the schedules of MoCo and DenseCL do.
    """
    warmup = config.warmup_epochs * steps_per_epoch or config.warmup_steps

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / (warmup + 1))
        if config.schedule == "constant":
            return warm
        if config.schedule == "step":
            return warm * (0.1 if step >= 0.7 * steps else 1.0)
        if config.schedule == "cosine-epoch":
            epochs = math.ceil(steps / steps_per_epoch)
            return warm * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step // steps_per_epoch / epochs)))
        after = max(0, step - warmup) / max(1, steps - warmup)
        return warm * 0.5 * (1.0 + math.cos(math.pi * min(1.0, after)))

    return LambdaLR(optimizer, factor)
