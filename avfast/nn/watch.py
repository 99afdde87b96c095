"""Which channels are dead on real data: activation statistics of a whole data set, collected with hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from ..ops import _check
from ..ops.channel_stats import channel_stats

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.ELU, nn.Hardswish, nn.Mish)


class ChannelWatch(dict):
    """Layer name to :class:`~avfast.ChannelStats` over everything seen.

    A module called several times per forward has one entry per call: ``relu``, ``relu#2``, ...
    """

    def dead(self, share: float = 0.95) -> dict[str, Tensor]:
        """Bool ``[C]`` per layer: channels that are all zero for at least this share of the samples.

        The paper says "most samples"; 0.95 is our reading of it.
        """
        _check.number("ChannelWatch.dead", "share", share, above=0.0)
        return {name: stats.dead_fraction >= share for name, stats in self.items()}


def _first_input(model: nn.Module, batch: object) -> object:
    if isinstance(batch, (list, tuple)):
        batch = batch[0]
    return model(**batch) if isinstance(batch, dict) else model(batch)


@torch.no_grad()
def watch_channels(
    model: nn.Module,
    loader: Iterable,
    *,
    layers: Sequence[str] | None = None,
    dead_threshold: float = 0.0,
    max_batches: int | None = None,
    forward: Callable[[nn.Module, object], object] = _first_input,
) -> ChannelWatch:
    """Run ``model`` over ``loader`` and collect :func:`avfast.channel_stats` of its activations.

    The model runs in evaluation mode without gradients; its training mode is put back afterwards.

    Args:
        loader: batches; a tensor, a tuple whose first item is the input, or a dict of keyword arguments.
        layers: names of modules to watch; left out, every activation module (ReLU and its kin).
        dead_threshold: see :func:`avfast.channel_stats`.
        max_batches: stop early.
        forward: how to run a batch of another form.

    Raises:
        ValueError: an unknown layer name, no activation module to watch, or an empty loader.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU())
    >>> _ = net[0].bias.data.copy_(torch.tensor([-9.0, 9.0])), net[0].weight.data.fill_(0.1)
    >>> watch_channels(net, [torch.rand(4, 1, 5, 5)]).dead()["1"].tolist()
    [True, False]
    """
    modules = dict(model.named_modules())
    if layers is None:
        layers = [name for name, module in modules.items() if isinstance(module, ACTIVATIONS)]
        if not layers:
            _check.fail("watch_channels", "model", "activation modules, or layers=[names]", "none in this model")
    for name in layers:
        if name not in modules:
            _check.fail("watch_channels", "layers", "names of modules", repr(name))

    found = ChannelWatch()
    calls: dict[str, int] = {}

    def hook(name: str) -> Callable:
        def observe(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and output.dim() >= 2:
                calls[name] = calls.get(name, 0) + 1
                key = name if calls[name] == 1 else f"{name}#{calls[name]}"
                stats = channel_stats(output, dead_threshold=dead_threshold)
                found[key] = found[key] + stats if key in found else stats

        return observe

    handles = [modules[name].register_forward_hook(hook(name)) for name in layers]
    training = model.training
    model.eval()
    try:
        for i, batch in enumerate(loader):
            if max_batches is not None and i >= max_batches:
                break
            calls.clear()
            forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    if not found:
        _check.fail("watch_channels", "loader", "at least one batch that reaches the layers", "none")
    return found
