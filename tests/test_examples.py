"""The examples train their recipe in loops that are not avfast's."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from engine_fixtures import real_scenes

pytest.importorskip("transformers", reason="transformers is not installed")
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
if not EXAMPLES.is_dir():
    pytest.skip("the examples are not part of an installed package", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("one_thread")


def example(name: str):
    spec = importlib.util.spec_from_file_location(f"avfast_example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_loop_of_torch_alone_learns(capsys):
    losses = example("plain_torch").main(24)
    assert len(losses) == 24 and sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert "step 20: loss" in capsys.readouterr().out


def test_a_loop_of_accelerate_moves_queue_and_momentum(monkeypatch):
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    pytest.importorskip("kornia", reason="kornia is not installed")
    module = example("with_accelerate")
    kept = []
    make = module.make_loader
    monkeypatch.setattr(module, "make_loader", lambda folder, method, a: kept.append(method) or make(folder, method, a))
    losses = module.main(str(real_scenes()), 3)
    (method,) = kept
    assert len(losses) == 6, "two batches to a step"
    assert method.step == 3 and method.queue.count == 32
    pairs = zip(method.network.parameters(), method.momentum_network.parameters(), strict=True)
    assert any(not torch.equal(fast, slow) for fast, slow in pairs)


def test_a_loop_of_fabric_learns():
    pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: pip install 'avfast[fabric]'")
    pytest.importorskip("kornia", reason="kornia is not installed")
    losses = example("with_fabric").main(12)
    assert len(losses) == 12 and sum(losses[-3:]) < sum(losses[:3])


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_stay_short(path):
    assert len(path.read_text().splitlines()) <= 75
