"""Vision transformers: `transformers`' ViTModel with fixed positions, for pictures of any size."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avfast.errors import ConfigError, MissingDependency, first_line
from avfast.nn.encoder import Encoder
from avfast.nn.positions import resize_positions, sin_cos_positions

VIT_PRESETS: dict[str, dict[str, Any]] = {
    name: {"hidden_size": 64 * heads, "num_attention_heads": heads, "intermediate_size": 256 * heads,
           "num_hidden_layers": depth, "image_size": size, "patch_size": patch}
    for name, heads, depth, size, patch in (
        ("vit-tiny", 3, 12, 224, 16), ("vit-small", 6, 12, 224, 16), ("vit-base", 12, 12, 224, 16),
        ("vit-tiny8", 3, 12, 64, 8), ("vit-mini8", 3, 4, 64, 8),
    )
}  # fmt: skip
"""Plain ViTs by name: Dosovitskiy et al. 2021, table 1, and Touvron et al. 2021, DeiT, table 1; tiny8 and mini8 are for
pictures of 64 pixels, mini8 with a third of the depth."""

PLAIN = {
    "hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


class Embeddings(nn.Module):
    """Patches, class token and positions under the names of ViTModel, whose own embeddings this replaces.

    The class token has position 0 of the table; the rest of the table, a square grid, is resized to the picture's
    (:func:`avfast.nn.positions.resize_positions`).
    """

    def __init__(self, embeddings: nn.Module, patch_size: int) -> None:
        super().__init__()
        self.cls_token = embeddings.cls_token
        self.position_embeddings = embeddings.position_embeddings
        self.patch_embeddings = embeddings.patch_embeddings
        self.patch_size = patch_size

    def forward(self, pixel_values: Tensor, *unused: Any, **also_unused: Any) -> Tensor:
        rows, columns = (side // self.patch_size for side in pixel_values.shape[-2:])
        patches = self.patch_embeddings.projection(pixel_values).flatten(2).mT  # [B, N, C]
        table = self.position_embeddings[0]
        patches = patches + resize_positions(table[1:], rows, columns)
        first = (self.cls_token[0] + table[:1]).expand(len(patches), -1, -1)
        return torch.cat([first.to(patches.dtype), patches], dim=1)


class VitEncoder(Encoder):
    """A ViTModel behind the interface of :class:`avfast.nn.encoder.Encoder`; ``backbone`` saves as a plain ViT.

    Args:
        backbone: ViTModel without a pooling layer; its embeddings are replaced.
    """

    class_tokens = 1

    def __init__(self, backbone: nn.Module, *, pretrained: bool = False) -> None:
        patch = backbone.config.patch_size
        backbone.embeddings = Embeddings(backbone.embeddings, patch)
        super().__init__(backbone, backbone.config.hidden_size, pretrained=pretrained)
        self.patch_size = patch

    def tokens(self, x: Tensor) -> Tensor:
        """Class token and patches after the last layer norm, ``[B, 1 + h * w, channels]``.

        Raises:
            ConfigError: the picture is smaller than a patch.
        """
        if min(x.shape[-2:]) < self.patch_size:
            raise ConfigError(f"encoder: expected pictures of at least {self.patch_size} pixels, got {list(x.shape)}")
        return self.backbone(x).last_hidden_state

    def forward(self, x: Tensor) -> Tensor:
        """Map of the patches, ``[B, channels, h, w]``."""
        grid = tuple(side // self.patch_size for side in x.shape[-2:])
        return self.tokens(x)[:, 1:].mT.unflatten(2, grid)

    @property
    def class_token(self) -> nn.Parameter:
        """``[1, 1, channels]``."""
        return self.backbone.embeddings.cls_token

    def freeze_patches(self) -> None:
        """Stop the training of the patch embedding (Chen et al. 2021, section 4.2)."""
        self.backbone.embeddings.patch_embeddings.requires_grad_(False)


def build_vit(preset: str, *, in_channels: int) -> VitEncoder:
    """A ViT with random weights and fixed sine-cosine positions.

    Linear layers and the patch embedding are uniform in Xavier's range with zero biases, the latter as a matrix from
    the pixels of a patch; the class token is normal with standard deviation 1e-6 (Chen et al. 2021, released code).
    """
    config_class, model_class = _transformers()
    config = config_class(num_channels=in_channels, **PLAIN, **VIT_PRESETS[preset])
    model = model_class(config, add_pooling_layer=False)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    embeddings = model.embeddings
    projection = embeddings.patch_embeddings.projection
    reach = math.sqrt(6 / (in_channels * config.patch_size**2 + config.hidden_size))
    nn.init.uniform_(projection.weight, -reach, reach)
    nn.init.zeros_(projection.bias)
    nn.init.normal_(embeddings.cls_token, std=1e-6)
    side = config.image_size // config.patch_size
    positions = sin_cos_positions(config.hidden_size, side, side)
    with torch.no_grad():
        embeddings.position_embeddings.zero_()[0, 1:].copy_(positions)
    embeddings.position_embeddings.requires_grad_(False)
    return VitEncoder(model)


def load_vit(folder: Path, *, in_channels: int) -> VitEncoder:
    """A ViT from a folder that ``save_pretrained`` or avfast's export wrote; its positions stay as they are.

    Raises:
        ConfigError: the folder cannot be read as a ViT of so many input channels.
    """
    _, model_class = _transformers()
    try:
        model = model_class.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, add_pooling_layer=False
        )
    except Exception as error:  # a torn file makes each library raise types of its own
        raise ConfigError(f"encoder folder '{folder}' cannot be read: {first_line(error)}") from error
    if model.config.num_channels != in_channels:
        have = model.config.num_channels
        raise ConfigError(f"encoder folder '{folder}' reads {have} input channels, {in_channels} are needed")
    return VitEncoder(model, pretrained=True)


def _transformers() -> tuple[type, type]:
    try:
        from transformers import ViTConfig, ViTModel
    except (ImportError, RuntimeError, OSError) as error:
        raise MissingDependency("transformers", extra="train", purpose="building a vision transformer") from error
    return ViTConfig, ViTModel
