"""A step that is dropped leaves no trace: in every recipe, and in every process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

for library in ("accelerate", "jsonargparse", "kornia", "transformers"):
    pytest.importorskip(library, reason=f"{library} is not installed")

from avfast.benches.soak.process_cases import CASES, Made, config_of  # noqa: E402
from avfast.engine.build import build_accelerator, build_method  # noqa: E402
from avfast.engine.journal import read_rows  # noqa: E402
from avfast.engine.loop import Trainer  # noqa: E402
from avfast.engine.signals import Budget, StopRequest  # noqa: E402

BATCH, STEPS, BAD = 4, 3, 2

pytestmark = pytest.mark.usefixtures("one_thread")


class Poison(torch.nn.Module):
    """A pipeline whose batch of one step is NaN wherever it is a number."""

    def __init__(self, trainer, pipeline):
        super().__init__()
        self.trainer, self.pipeline = [trainer], pipeline

    def forward(self, batch):
        made = self.pipeline(batch)
        if not spoilt(self.trainer[0]):
            return made
        keep = {"boxes", "crop_q", "crop_k"}
        return {
            k: v * float("nan") if torch.is_tensor(v) and v.is_floating_point() and k not in keep else v
            for k, v in made.items()
        }


def train(case, folder, *, poisoned, broken=()):
    folder.mkdir(parents=True)
    config = config_of(case, folder, batch=BATCH, extra=("run.on_nonfinite=skip",))
    data = Made(build_method(config).inputs, broken=broken)
    trainer = Trainer(
        config, data, None, folder, build_accelerator("cpu", "no"), fingerprint="made", steps=STEPS
    )  # fmt: skip
    if case == "sound2scene, generator":  # it refuses a condition that is no number: here only the loss is none
        trainer.method.register_forward_hook(
            lambda module, args, out: out._replace(loss=out.loss * float("nan")) if spoilt(trainer) else out
        )
    else:
        trainer.pipeline = Poison(trainer, trainer.pipeline)
    trainer.poisoned = poisoned
    trainer.fit(StopRequest(), Budget(None))
    return trainer


def spoilt(trainer):
    return trainer.poisoned and trainer.step + 1 == BAD


def flat(state, prefix=""):
    """All tensors and plain values of a nested state."""
    if isinstance(state, dict):
        return {k: v for name, part in state.items() for k, v in flat(part, f"{prefix}.{name}").items()}
    return {prefix: state}


@pytest.mark.parametrize("case", CASES)
def test_in_every_recipe(case, tmp_path):
    poisoned = train(case, tmp_path / "poisoned", poisoned=True)
    order = list(map(int, poisoned.sampler.order(0)))
    lost = tuple(order[BATCH * (BAD - 1) : BATCH * BAD])
    without = train(case, tmp_path / "without", poisoned=False, broken=lost)
    a, b = (flat(t.method.state_dict()) for t in (poisoned, without))
    assert a.keys() == b.keys()
    for name, value in a.items():
        same = torch.equal(value, b[name]) if torch.is_tensor(value) else value == b[name]
        assert same, name
    faults = [row for row in read_rows(tmp_path / "poisoned" / "metrics.jsonl") if row["kind"] == "fault"]
    assert [(row["step"], row["cause"], row["loss"]) for row in faults] == [(BAD, "nonfinite", "nan")]
    assert faults[0]["id"] == [f"sample {i}" for i in lost]


CHILD = """
import sys, torch
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[2])))
from test_dropped_steps import *
torch.set_num_threads(1)
config = config_of("av-align", Path(sys.argv[1]), batch=BATCH, extra=("run.on_nonfinite=skip",))
accelerator = build_accelerator("cpu", "no")
trainer = Trainer(config, Made(build_method(config).inputs), None, Path(sys.argv[1]), accelerator, fingerprint="made",
                  steps=STEPS)
trainer.poisoned, trainer.pipeline = accelerator.process_index == 1, Poison(trainer, trainer.pipeline)
trainer.fit(StopRequest(), Budget(None))
torch.save(trainer.parallel.states()[0], f"{sys.argv[1]}/{accelerator.process_index}.pt")
"""


def test_all_processes_drop_a_step_that_is_bad_in_one(tmp_path):
    import subprocess

    (tmp_path / "child.py").write_text(CHILD)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         str(tmp_path / "child.py"), str(tmp_path), str(Path(__file__).parent)],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, value in one.items():
        if torch.is_tensor(value) and value.is_floating_point():
            assert value.isfinite().all(), name
            if "running" not in name:
                assert torch.equal(value, two[name]), name
    faults = [row for row in read_rows(tmp_path / "metrics.jsonl") if row["kind"] == "fault"]
    # Pairs are compared across processes: both losses are NaN, and the samples of both are named.
    assert [(row["step"], row["loss"], len(row["id"])) for row in faults] == 2 * [(BAD, "nan", BATCH)]
    assert len({name for row in faults for name in row["id"]}) == 2 * BATCH
