"""Real shapes, named once and used by benches and tests alike.

Widths and maps are those of torchvision-style ResNets at 224x224; the audio row is a 1024x128 log-mel
spectrogram (about ten seconds) through a ResNet-18, as in audio-visual pre-training.
"""

from __future__ import annotations

Shape = tuple[int, int, int, int]


def _resnet_widths(blocks: tuple[int, int, int, int]) -> tuple[int, ...]:
    """Channels of every batch norm of a bottleneck ResNet in forward order, shortcut after its block."""
    widths = [64]
    for stage, count in enumerate(blocks):
        inner = 64 * 2**stage
        for block in range(count):
            widths += [inner, inner, 4 * inner]
            if block == 0:
                widths.append(4 * inner)
    return tuple(widths)


#: Batch norms of whole networks, for the scan.
BATCH_NORM_WIDTHS: dict[str, tuple[int, ...]] = {
    "resnet50": _resnet_widths((3, 4, 6, 3)),  # 53 layers, 26 560 channels
    "resnet152": _resnet_widths((3, 8, 36, 3)),  # 155 layers, 75 712 channels
}

#: Activations [N, C, H, W] whose channels are watched.
ACTIVATIONS: dict[str, Shape] = {
    "resnet50.layer1": (16, 256, 56, 56),
    "resnet50.layer3": (16, 1024, 14, 14),
    "audio.stem": (4, 64, 512, 64),
}

#: Inputs of batch norms in training, ResNet-18 stages at batch 16.
BATCH_NORM_INPUTS: dict[str, Shape] = {
    "resnet18.layer1": (16, 64, 56, 56),
    "resnet18.layer2": (16, 128, 28, 28),
    "resnet18.layer3": (16, 256, 14, 14),
    "resnet18.layer4": (16, 512, 7, 7),
}

#: Small and awkward relatives of the above: primes, ones, nothing. For tests, not for timing.
AWKWARD: dict[str, Shape] = {
    "one": (1, 1, 1, 1),
    "one_pixel": (4, 17, 1, 1),
    "primes": (3, 13, 7, 11),
    "narrow": (2, 1, 31, 5),
    "empty_batch": (0, 5, 3, 3),
}
