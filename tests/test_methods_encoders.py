"""Encoders: presets, folders in the format of transformers, and modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from avfast.encoders import PRESETS, Encoder, build_encoder
from avfast.errors import ConfigError

transformers = pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("channels", [1, 3])
def test_presets_give_maps(name, channels):
    encoder = build_encoder(name, in_channels=channels).eval()
    x = torch.randn(2, channels, 64, 64)
    with torch.no_grad():
        features = encoder(x)
        side = 4 if name == "resnet-small16" else 2
        assert features.shape == (2, encoder.channels, side, side)
        torch.testing.assert_close(encoder.pooled(x), features.mean(dim=(2, 3)))
    assert not encoder.pretrained


def test_resnet18_has_the_published_size():
    count = sum(p.numel() for p in build_encoder("resnet18", in_channels=3).parameters())
    assert count == 11_176_512  # 11,689,512 with the 1000-way classifier of the paper's network


def test_a_folder_round_trips_and_adapts_to_one_channel(tmp_path):
    torch.manual_seed(0)
    source = build_encoder("resnet-tiny", in_channels=3).eval()
    source.backbone.save_pretrained(tmp_path)
    loaded = build_encoder(str(tmp_path), in_channels=3).eval()
    grey = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        expected = source(grey.expand(-1, 3, -1, -1))
        torch.testing.assert_close(loaded(grey.expand(-1, 3, -1, -1)), expected)
        one = build_encoder(str(tmp_path), in_channels=1).eval()
        torch.testing.assert_close(one(grey), expected, rtol=1e-4, atol=1e-5)
    assert loaded.pretrained and one.backbone.config.num_channels == 1


def test_errors_name_the_cause(tmp_path):
    with pytest.raises(ConfigError, match="neither a preset"):
        build_encoder("resnet9000", in_channels=3)
    with pytest.raises(ConfigError, match="cannot be read"):
        build_encoder(str(tmp_path), in_channels=3)
    with pytest.raises(ConfigError, match="width of its output"):
        build_encoder(nn.Conv2d(3, 4, 1), in_channels=3)
    with pytest.raises(ValueError, match=r"expected an output \[B, 5"):
        Encoder(nn.Conv2d(3, 4, 1), channels=5)(torch.zeros(1, 3, 8, 8))


def test_the_published_audio_encoder_of_sound2scene_has_the_published_size():
    """ResNet-18 on one channel, 512 -> 2048 -> ReLU: 12,220,864 parameters, counted in the official code."""
    pytest.importorskip("jsonargparse", reason="jsonargparse is not installed")
    from avfast.engine.config import parse_config
    from avfast.methods.av_align import AvAlign

    config = parse_config("av-align", preset="sound2scene")
    method = AvAlign(config.method)
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == 12_220_864
    assert method.audio_head[0].out_features == method.visual.channels == 2048
    bounds = method.loss_bounds(config.data.batch_size)
    assert (round(bounds["floor"], 2), round(bounds["chance"], 2)) == (2.79, 4.16)
