"""Two and four processes train every recipe as one process does; in shares, in parts, with broken files, continued."""

from __future__ import annotations

import pytest
import torch
from engine_fixtures import real_scenes

for library in ("accelerate", "jsonargparse", "transformers", "kornia", "safetensors"):
    pytest.importorskip(library, reason=f"{library} is not installed")
if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
    pytest.skip("this torch was built without gloo", allow_module_level=True)

from avfast.benches.soak.process_cases import CASES, MEANS, Training, difference  # noqa: E402
from avfast.benches.soak.process_launch import start  # noqa: E402
from avfast.benches.soak.processes import FSDP, PARTS, TOLERANCE, compare, jobs_of, launch  # noqa: E402
from avfast.engine.build import build_method  # noqa: E402
from avfast.engine.checkpoint import load_checkpoint  # noqa: E402
from avfast.engine.config import parse_config  # noqa: E402
from avfast.engine.plan import _of_parts  # noqa: E402
from avfast.methods import recipe_names  # noqa: E402

STEPS, LIMIT = 5, 900
SHARED = ("densecl", "cim", "fusion-tuning, joint")
UNEVEN = ("av-align", "fusion-tuning, video")
BROKEN = {"broken": [1, 5, 6, 17, 30, 33]}
SHORT = {"extra": ["data.drop_last=false"], "samples": 22}  # two batches of 8 and 6 samples left
LOCAL = {"extra": ["method.share_queue=false"]}


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Every job in two processes, some in four, and the same work in one; all started together."""
    folder = tmp_path_factory.mktemp("processes")
    pair = jobs_of(CASES, STEPS) + jobs_of(SHARED, STEPS, title=" / FSDP", extra=FSDP)
    pair += jobs_of(MEANS, STEPS, title=" / parts", extra=PARTS, batch=2)
    pair += jobs_of(MEANS, STEPS, title=" / FSDP, parts", extra=FSDP + PARTS, batch=2)
    pair += jobs_of(UNEVEN, STEPS, title=" / broken", **BROKEN) + jobs_of(UNEVEN, STEPS, title=" / short", **SHORT)
    pair += jobs_of(["densecl"], STEPS, title=" / continued", extra=FSDP, pause=3)
    pair += jobs_of(["densecl"], STEPS, title=" / DDP, then FSDP", extra=["run.parallel=ddp"], then=FSDP, pause=3)
    pair += jobs_of(["densecl"], STEPS, title=" / local queues", **LOCAL)
    pair += jobs_of(["densecl"], STEPS, title=" / local queues, continued", pause=3, **LOCAL)
    pair += jobs_of(["sound2scene, generator"], STEPS, title=" / FSDP", extra=FSDP)  # the last: it is refused
    alone = jobs_of(CASES, STEPS, world=2)
    alone += jobs_of(UNEVEN, STEPS, world=2, title=" / broken", **BROKEN)
    alone += jobs_of(UNEVEN, STEPS, world=2, title=" / short", **SHORT)
    alone += jobs_of(["densecl"], STEPS, world=4, title=" / of four")
    launches = [
        launch(folder / "pair", pair, 2), launch(folder / "alone", alone, 1),
        launch(folder / "four", jobs_of(["densecl"], STEPS), 4, "accelerate"),
    ]  # fmt: skip
    pair, (alone,), four = (one.results(LIMIT) for one in launches)
    return pair, alone, four


def test_every_recipe_and_stage_is_compared():
    from avfast.methods import get_method

    assert {recipe for recipe, _ in CASES.values()} == set(recipe_names())
    for name in recipe_names():
        stages = get_method(name).stages or {}
        assert all(f"{name}, {stage}" in CASES for stage in stages)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_what_one_trains(seen, case):
    """Losses, gradients of the first and last step, and the whole state after five: momentum networks and queues
    too."""
    pair, alone, _ = seen
    assert compare(pair, alone, case, case) <= TOLERANCE
    assert len(alone[case]["losses"]) == STEPS and len(alone[case]["gradients"]) > 20


def test_four_processes_of_accelerate_launch(seen):
    _, alone, four = seen
    assert compare(four, alone, "densecl", "densecl / of four") <= TOLERANCE


def test_the_comparison_notices_what_differs(seen):
    """A gradient that was not averaged, or a queue with the keys of one process, is no rounding."""
    pair, alone, _ = seen
    own = [Training(*(one["densecl"][k] for k in ("losses", "gradients", "state"))) for one in pair]
    one = Training(*(alone["densecl"][k] for k in ("losses", "gradients", "state")))
    name = next(iter(one.gradients))
    off = own[0]._replace(gradients={**own[0].gradients, name: own[0].gradients[name] * 1.0001})
    assert difference([off, own[1]], one) > TOLERANCE
    assert compare(pair, alone, "densecl / local queues", "densecl") > TOLERANCE


@pytest.mark.parametrize("case", SHARED)
def test_shares_of_weights_train_what_whole_weights_train(seen, case):
    pair, alone, _ = seen
    assert compare(pair, alone, f"{case} / FSDP", case) <= TOLERANCE


def test_what_cannot_be_divided_is_refused_in_one_line(seen):
    pair, _, _ = seen
    for one in pair:
        last = one["sound2scene, generator / FSDP"]["error"].strip().splitlines()[-1]
        assert "run.parallel=fsdp: a parameter of one number cannot be divided (generator.attention.gamma)" in last


@pytest.mark.parametrize("way", ["parts", "FSDP, parts"])
@pytest.mark.parametrize("case", MEANS)
def test_a_step_in_parts_is_a_step_of_one_piece(seen, case, way):
    """Two processes, each two parts of two samples: one process with eight."""
    pair, alone, _ = seen
    assert compare(pair, alone, f"{case} / {way}", case) <= TOLERANCE


@pytest.mark.parametrize("how", ["broken", "short"])
@pytest.mark.parametrize("case", UNEVEN)
def test_uneven_batches_give_the_gradient_of_what_is_used(seen, case, how):
    """Files that one process cannot read, and the end of an epoch: as many samples from each process, and no more."""
    pair, alone, _ = seen
    assert compare(pair, alone, f"{case} / {how}", f"{case} / {how}") <= TOLERANCE
    assert not torch.equal(alone[f"{case} / {how}"]["losses"], alone[case]["losses"])


@pytest.mark.parametrize(("job", "whole"), [
    ("densecl / continued", "densecl / FSDP"), ("densecl / local queues, continued", "densecl / local queues"),
])  # fmt: skip
def test_a_continued_training_is_the_same_to_the_last_bit(seen, job, whole):
    pair, _, _ = seen
    for one in pair:
        assert len(one[job]["losses"]) == STEPS - 3
        assert torch.equal(one[job]["losses"], one[whole]["losses"][3:])
        for name, value in one[whole]["state"].items():
            assert torch.equal(one[job]["state"][name], value), name


def test_a_checkpoint_of_one_form_continues_in_the_other(seen):
    pair, alone, _ = seen
    found = [one["densecl / DDP, then FSDP"] for one in pair]
    state = alone["densecl"]["state"]
    several = [Training(one["losses"], {}, one["state"]) for one in found]
    assert difference(several, Training(alone["densecl"]["losses"][3:], {}, state)) <= TOLERANCE


def test_accelerate_launch_use_fsdp_writes_what_one_process_reads(tmp_path):
    words = ["method.encoder=resnet-tiny", "method.size=32", "method.queue=16", "method.dim=8", "method.group_size=4",
             "batch_size=4", "steps=3", "control=false", "log_every=1", "eval_every=2"]  # fmt: skip
    command = ["pretrain", "--recipe", "densecl", "--data", str(real_scenes()), "--out", str(tmp_path), "--device",
               "cpu", *words]  # fmt: skip
    process = start("accelerate fsdp", 2, "avfast", command)
    try:
        output, _ = process.communicate(timeout=LIMIT)
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode == 0, output[-3000:]
    state = load_checkpoint(tmp_path / "checkpoints" / "final.pt")
    method = build_method(parse_config("densecl", words))
    start_of = {name: value.clone() for name, value in method.state_dict().items()}
    method.load_state_dict(state["model"])
    assert not torch.equal(start_of["queue.rows"], method.queue.rows) and (tmp_path / "report.md").is_file()
    moments = state["optimizer"]["state"][0]
    first = next(p for p in method.parameters() if p.requires_grad)
    assert moments["exp_avg"].shape == first.shape and type(moments["exp_avg"]) is torch.Tensor


def test_the_plan_says_where_a_step_in_parts_is_not_one_of_one_piece():
    config = parse_config("av-align", ["optim.accumulate=4", "batch_size=8"])
    (parts, norms) = _of_parts(config, build_method(config), 2)
    assert parts == (
        "optim.accumulate=4: negatives and batch norms are of one batch of 16; a step of 64 is not what a batch of "
        "that size would be"
    )
    assert "run.sync_batchnorm=true" in norms
    assert _of_parts(parse_config("cim", ["optim.accumulate=4"]), build_method(parse_config("cim")), 2) == []
