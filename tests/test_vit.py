"""Vision transformers against a plain one, at their own size and at others."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from avfast.encoders import build_encoder
from avfast.errors import ConfigError
from avfast.nn.positions import resize_positions, sin_cos_positions
from avfast.vit import VIT_PRESETS

transformers = pytest.importorskip("transformers", reason="transformers is not installed")


def mini(seed: int = 0):
    torch.manual_seed(seed)
    return build_encoder("vit-mini8", in_channels=3).eval()


@pytest.mark.parametrize(
    ("preset", "count"), [("vit-tiny", 5_524_416), ("vit-small", 21_665_664), ("vit-base", 85_798_656)]
)
def test_presets_have_the_published_size(preset, count):
    """DeiT's 5,717,416, 22,050,664 and 86,567,656 parameters less their 1000-way classifiers."""
    with torch.device("meta"):
        config = transformers.ViTConfig(**VIT_PRESETS[preset])
        model = transformers.ViTModel(config, add_pooling_layer=False)
    assert sum(p.numel() for p in model.parameters()) == count


def test_positions_by_hand():
    table = sin_cos_positions(12, 3, 5).double().view(3, 5, 4, 3)
    for y, x, i in ((0, 0, 0), (2, 4, 1), (1, 3, 2)):
        omega = 10000 ** (-i / 3)
        waves = [math.sin(x * omega), math.cos(x * omega), math.sin(y * omega), math.cos(y * omega)]
        assert table[y, x, :, i].tolist() == pytest.approx(waves, abs=1e-6)
    with pytest.raises(ValueError, match="dim: expected a positive multiple of 4, got 6"):
        sin_cos_positions(6, 2, 2)


@pytest.mark.parametrize("side", [1, 4, 6, 10, 14, 17])
def test_positions_of_other_sizes_follow_the_rule_of_a_tenth(side):
    table = sin_cos_positions(16, 14, 14)
    found = resize_positions(table, side, side)
    assert found.shape == (side * side, 16)
    if side == 14:
        assert found is table
        return
    # By coordinates: output i reads the table at (i + 0.5) * 14 / (side + 0.1) - 0.5.
    centre = (torch.arange(side) + 0.5) * 14 / (side + 0.1)
    point = centre * 2 / 14 - 1
    grid = torch.stack(torch.meshgrid(point, point, indexing="ij")[::-1], dim=-1)[None]
    picture = table.view(1, 14, 14, 16).permute(0, 3, 1, 2)
    expected = F.grid_sample(picture, grid, mode="bicubic", padding_mode="border", align_corners=False)
    torch.testing.assert_close(found, expected[0].flatten(1).mT, atol=1e-5, rtol=1e-4)


def test_initial_weights():
    encoder = mini()
    embeddings = encoder.backbone.embeddings
    patches = embeddings.patch_embeddings.projection
    reach = math.sqrt(6 / (3 * 64 + 192))
    assert 0.99 * reach < patches.weight.abs().max() <= reach and patches.bias.abs().max() == 0
    assert 0 < embeddings.cls_token.abs().max() < 1e-5
    assert embeddings.position_embeddings[0, 0].abs().max() == 0
    assert torch.equal(embeddings.position_embeddings[0, 1:], sin_cos_positions(192, 8, 8))
    assert not embeddings.position_embeddings.requires_grad and patches.weight.requires_grad
    for module in encoder.backbone.layers.modules():
        if isinstance(module, nn.Linear):
            reach = math.sqrt(6 / (module.in_features + module.out_features))
            assert 0.98 * reach < module.weight.abs().max() <= reach and module.bias.abs().max() == 0
    encoder.freeze_patches()
    assert not patches.weight.requires_grad and not patches.bias.requires_grad


def test_tokens_by_hand_at_another_size():
    """Pre-norm blocks written out, on a picture that is not square."""
    encoder = mini()
    x = torch.randn(2, 3, 24, 40)
    net = encoder.backbone
    patches = net.embeddings.patch_embeddings.projection(x).flatten(2).mT
    table = net.embeddings.position_embeddings[0]
    h = torch.cat([net.embeddings.cls_token.expand(2, -1, -1), patches + resize_positions(table[1:], 3, 5)], dim=1)
    with torch.no_grad():
        for layer in net.layers:
            norms = [m for m in layer.modules() if isinstance(m, nn.LayerNorm)]
            q, k, v, out, up, down = [m for m in layer.modules() if isinstance(m, nn.Linear)]
            assert len(norms) == 2 and norms[0].eps == 1e-6 and q.bias is not None
            y = norms[0](h)
            q, k, v = (m(y).unflatten(2, (3, 64)).movedim(1, 2) for m in (q, k, v))
            mixed = (q @ k.mT / 8).softmax(dim=-1) @ v
            h = h + out(mixed.movedim(1, 2).flatten(2))
            h = h + down(F.gelu(up(norms[1](h))))
        expected = net.layernorm(h)
        found = encoder.tokens(x)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(encoder(x).flatten(2).mT, found[:, 1:])
    assert encoder(x).shape == (2, 192, 3, 5) and encoder.class_tokens == 1


def test_saved_it_is_a_plain_vit_and_read_back_the_same(tmp_path):
    encoder = mini()
    encoder.backbone.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "vit"
    plain = transformers.AutoModel.from_pretrained(tmp_path, local_files_only=True, add_pooling_layer=False).eval()
    assert type(plain).__name__ == "ViTModel"
    again = build_encoder(str(tmp_path), in_channels=3).eval()
    x, small = torch.randn(2, 3, 64, 64), torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        torch.testing.assert_close(plain(x).last_hidden_state, encoder.tokens(x))
        assert torch.equal(again.tokens(small), encoder.tokens(small)) and again.pretrained
    with pytest.raises(ConfigError, match="reads 3 input channels, 1 are needed"):
        build_encoder(str(tmp_path), in_channels=1)


def test_residual_networks_give_tokens_too():
    encoder = build_encoder("resnet-tiny", in_channels=3).eval()
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(encoder.tokens(x), encoder(x).flatten(2).mT) and encoder.class_tokens == 0


def test_too_small_a_picture_is_refused():
    with pytest.raises(ConfigError, match="pictures of at least 8 pixels"):
        mini()(torch.zeros(1, 3, 4, 8))
