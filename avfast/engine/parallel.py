"""A method and its optimiser on all processes: whole on each of them (DDP), or a share on each (FSDP)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from avfast.engine.config import RunConfig
from avfast.errors import ConfigError
from avfast.methods import Method
from avfast.nn import GroupShuffleBN, synchronise_batch_norms

USE_FSDP = "ACCELERATE_USE_FSDP"
"""How ``accelerate launch --use_fsdp`` says so in the environment."""


def parallel_method(
    accelerator: Any, method: Method, run: RunConfig, make_optimizer: Callable[[Method], torch.optim.Optimizer]
) -> Replicated:
    """Put a method on the device, share it among the processes as ``run.parallel`` says, and make its optimiser.

    Raises:
        ConfigError: FSDP cannot hold this method, or not in this precision.
    """
    method.to(accelerator.device)
    several = accelerator.num_processes > 1
    if run.sync_batchnorm and several:
        synchronise_batch_norms(method)
    for module in method.modules():
        if isinstance(module, GroupShuffleBN):
            module.average = several
    sharded = run.parallel == "fsdp" or (run.parallel == "auto" and os.environ.get(USE_FSDP, "").lower() == "true")
    return (Sharded if sharded and several else Replicated)(accelerator, method, run, make_optimizer)


class Replicated:
    """The whole method on every process; gradients are averaged (``DistributedDataParallel``).

    Attributes:
        method: the module itself, whose state is what a checkpoint holds.
        model: what a step calls.
        optimizer: as accelerate gives it; ``bare`` is what it wraps.
    """

    def __init__(
        self,
        accelerator: Any,
        method: Method,
        run: RunConfig,
        make_optimizer: Callable[[Method], torch.optim.Optimizer],
    ) -> None:
        self.accelerator, self.method = accelerator, method
        self.bare = make_optimizer(method)
        self.model, self.optimizer = accelerator.prepare(method, self.bare)

    def without_sync(self) -> AbstractContextManager:
        """Within, gradients stay on their process: more of the same step follow."""
        return self.accelerator.no_sync(self.model)

    def states(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """State dicts of method and optimiser, whole. Every process must call it."""
        return self.method.state_dict(), self.optimizer.state_dict()

    def load_states(self, model: Mapping[str, Any], optimizer: Mapping[str, Any]) -> None:
        """Undo :meth:`states`, on as many processes as one likes, in this form or the other."""
        self.method.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)

    def trained(self, build: Callable[[], Method]) -> Method:
        """The method as one process can use it. Every process must call it; ``build`` makes an equal one."""
        return self.method


class Sharded(Replicated):
    """Every process keeps a share of each weight, its gradient and its moments (FSDP2), and has the whole weights only
    while a step runs.

    All weights come together at once, so the peak of a step is that of DDP without gradients and moments. Buffers,
    queues and running statistics are whole on every process, as with DDP.
    """

    def __init__(
        self,
        accelerator: Any,
        method: Method,
        run: RunConfig,
        make_optimizer: Callable[[Method], torch.optim.Optimizer],
    ) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        if run.precision == "fp16":
            raise ConfigError("run.parallel=fsdp: not with run.precision=fp16, whose scaler looks at whole gradients")
        if scalars := [name for name, p in method.named_parameters() if p.dim() == 0]:
            raise ConfigError(
                f"run.parallel=fsdp: a parameter of one number cannot be divided ({scalars[0]}); use run.parallel=ddp"
            )
        self.accelerator, self.method = accelerator, method
        self.model = accelerator.prepare_model(method, evaluation_mode=True)  # the precision, without DDP
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        fully_shard(method, mesh=mesh, reshard_after_forward=True)
        register_fsdp_forward_method(method, "validation_step")  # called beside forward, and not within it
        self.bare = make_optimizer(method)
        self.optimizer = accelerator.prepare_optimizer(self.bare)

    def without_sync(self) -> AbstractContextManager:
        return nullcontext()  # shares of gradients add up as well, and take less memory

    def states(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return whole(self.method.state_dict()), whole(self.optimizer.state_dict())

    def load_states(self, model: Mapping[str, Any], optimizer: Mapping[str, Any]) -> None:
        own = self.method.state_dict()
        self.method.load_state_dict({name: shared_like(value, own.get(name)) for name, value in model.items()})
        parameters = [p for group in self.bare.param_groups for p in group["params"]]
        state = {
            i: {name: shared_like(value, parameters[i]) for name, value in moments.items()}
            for i, moments in optimizer["state"].items()
        }
        self.optimizer.load_state_dict({**optimizer, "state": state})

    def trained(self, build: Callable[[], Method]) -> Method:
        state = whole(self.method.state_dict())
        method = build()
        method.load_state_dict(state)
        return method.to(self.accelerator.device)


def whole(value: Any) -> Any:
    """A state with every shared tensor brought together; in dicts, lists and tuples. A collective where there are
    any."""
    if isinstance(value, Tensor):
        return value.full_tensor() if hasattr(value, "full_tensor") else value
    if isinstance(value, dict):
        return {key: whole(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(whole(inner) for inner in value)
    return value


def shared_like(value: Any, like: Any) -> Any:
    """This process's share of a whole tensor, where ``like`` is shared and has its shape."""
    if not hasattr(like, "device_mesh") or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    # Every process has read the whole tensor: none has to send it.
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
