"""A whole training step of a ResNet-18 with blended batch norm everywhere: what the op's speed is worth.

Convolutions take most of a step, so this ratio is much smaller than the op's own and is shown beside it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import compiled
from .candidate import COMPILED, CONTEXT, LEAN, OURS, PUBLISHED, Candidate, Case
from .memory import Saved, saved_for_backward

BATCH, SIDE, CLASSES = 8, 112, 31


class BasicBlock(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def resnet18() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    channels_in = 64
    for channels, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [BasicBlock(channels_in, channels, stride), BasicBlock(channels, channels, 1)]
        channels_in = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, CLASSES))


class TwoLayers(nn.Module):
    """The published layer: the old batch norm, a fresh one, and a mix of both per channel."""

    def __init__(self, old: nn.BatchNorm2d) -> None:
        super().__init__()
        self.old, self.new = old, nn.BatchNorm2d(old.num_features)
        self.alpha = nn.Parameter(torch.full((1, old.num_features, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * self.old(x) + (1 - self.alpha) * self.new(x)


class Blend(TwoLayers):
    """The same function as one batch norm, in plain PyTorch."""

    def forward(self, x: Tensor) -> Tensor:
        alpha, mean, variance = (
            self.alpha.flatten(),
            torch.zeros_like(self.old.running_mean),
            torch.zeros_like(self.old.running_var),
        )
        weight = torch.lerp(self.new.weight, self.old.weight, alpha)
        bias = torch.lerp(self.new.bias, self.old.bias, alpha)
        y = F.batch_norm(x, mean, variance, weight, bias, True, 1.0, self.old.eps)
        with torch.no_grad():
            for layer in (self.old, self.new):
                layer.running_mean.lerp_(mean, layer.momentum)
                layer.running_var.lerp_(variance, layer.momentum)
        return y


def with_layer(model: nn.Module, layer: type[TwoLayers]) -> nn.Module:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d) and not isinstance(module, TwoLayers):
                setattr(module, name, layer(child))
    return model


def with_avfast(model: nn.Module) -> nn.Module:
    import avfast

    return avfast.nn.convert_abri(model, which="all")


class TrainStep:
    """Forward, loss, backward, SGD. Returns the loss and the gradients at both ends of the network."""

    def __init__(self, model: nn.Module, batch: tuple[Tensor, Tensor], compile_it: bool = False) -> None:
        self._images, self._labels = batch
        model = model.to(self._images.device, self._images.dtype).train()
        self._held = (*model.parameters(), *model.buffers())
        self._ends = (model[0].weight, model[-1].weight)
        self._optimiser = torch.optim.SGD(model.parameters(), lr=1e-4)
        self._model = torch.compile(model, dynamic=False) if compile_it else model

    def saved(self) -> Saved:
        return saved_for_backward(lambda: self._model(self._images), parameters=self._held, inputs=(self._images,))

    def __call__(self) -> dict[str, Tensor]:
        self._optimiser.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self._model(self._images), self._labels)
        loss.backward()
        self._optimiser.step()
        first, last = self._ends
        return {"loss": loss.detach(), "d_first": first.grad, "d_last": last.grad}


def batch(device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(BATCH, 3, SIDE, SIDE, generator=generator)
    return images.to(device), torch.randint(CLASSES, (BATCH,), generator=generator).to(device)


def oracle(inputs: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    images, labels = inputs
    return TrainStep(with_layer(resnet18(), TwoLayers), (images.double(), labels))()


def cases(device: str = "cpu") -> list[Case]:
    def entry(name: str, convert, role: str, **options) -> Candidate:
        compile_it = role == COMPILED
        return Candidate(name, lambda b: TrainStep(convert(resnet18()), b, compile_it), role, **options)

    inductor = {"missing": lambda: compiled.missing(device), "slow": True}
    return [
        Case(
            op="train_step",
            shape_name="resnet18",
            shape=(BATCH, 3, SIDE, SIDE),
            inputs=lambda: batch(device),
            oracle=oracle,
            candidates=(
                entry("eager two layers", lambda m: with_layer(m, TwoLayers), PUBLISHED),
                entry("blend", lambda m: with_layer(m, Blend), LEAN),
                entry("compile(eager two layers)", lambda m: with_layer(m, TwoLayers), COMPILED, **inductor),
                entry("compile(blend)", lambda m: with_layer(m, Blend), COMPILED, **inductor),
                entry("avfast", with_avfast, OURS),
                entry("plain batch norm, no blending", lambda m: m, CONTEXT),
            ),
            mode="train",
            device=device,
            # Seventeen ReLUs deep, rounding decides branches: equally good gradients differ by this much.
            least_allowance=2e-2,
        )
    ]


def test_train_step(case, candidate, measure):
    measure(case, candidate)
