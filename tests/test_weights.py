"""Weights from files: folders, safetensors, pickles without code, and everything else refused."""

from __future__ import annotations

import os

import pytest
import torch

from avfast.errors import ConfigError
from avfast.weights import read_weights

safetensors = pytest.importorskip("safetensors.torch")
STATE = {"conv.weight": torch.arange(4.0), "bn.bias": torch.ones(2)}


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_every_kind_of_file(tmp_path):
    safetensors.save_file(STATE, tmp_path / "model.safetensors")
    torch.save(STATE, tmp_path / "plain.pt")
    torch.save({"state_dict": {f"module.{k}": v for k, v in STATE.items()}, "epoch": 3}, tmp_path / "wrapped.pth")
    for path in (tmp_path, tmp_path / "model.safetensors", tmp_path / "plain.pt", tmp_path / "wrapped.pth"):
        found = read_weights(path)
        assert found.keys() == STATE.keys() and all(torch.equal(found[k], v) for k, v in STATE.items())


def test_code_is_refused_and_not_run(tmp_path):
    torch.save({"a": Payload(tmp_path / "ran")}, tmp_path / "bad.pt")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_weights(tmp_path / "bad.pt")
    assert not (tmp_path / "ran").exists()


def test_what_is_no_weights(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        read_weights(tmp_path / "none.pt")
    with pytest.raises(ConfigError, match="a folder needs model.safetensors"):
        read_weights(tmp_path)
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (tmp_path / "torn.pt").write_bytes(b"PK\x03\x04")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, message in (
        ("torn.safetensors", "cannot be read"),
        ("torn.pt", "cannot be read"),
        ("list.pt", "expected tensors"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_weights(tmp_path / name)
