"""The bench of what choosing frames by ear does: a run in small, its record and its table."""

from __future__ import annotations

import json

import pytest

for library in ("PIL", "av", "sklearn", "kornia", "accelerate", "jsonargparse", "transformers", "safetensors"):
    pytest.importorskip(library, reason=f"{library} is not installed")

from avfast.benches import scene_quality as quality  # noqa: E402
from avfast.data.demo import make_cutaway_clips  # noqa: E402

WORDS = ("method.frames=5", "method.visual_size=32", "method.visual=resnet-tiny", "data.batch_size=8",
         "image:data.batch_size=8", "image:method.group_size=4", "image:run.steps=2", "localiser:run.steps=2",
         "audio:run.steps=2")  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run_in_small(tmp_path, no_pictures, capsys):
    make_cutaway_clips(tmp_path / "clips", clips=48)
    out = tmp_path / "q.json"
    command = ["--data", str(tmp_path / "clips"), "--seeds", "3", "--json", str(out), "--rules", "top1,middle,known"]
    assert quality.main([*command, *WORDS]) == 0
    results = json.loads(out.read_text())
    assert [row["rule"] for row in results["rows"]] == ["top1", "middle", "known"]
    right = {row["rule"]: row["scores"]["right frame"] for row in results["rows"]}
    assert right["known"]["value"] == 1.0 and 0 < right["top1"]["value"] < 1, "which frames are right is known"
    assert right["top1"]["chance"] == pytest.approx(0.4, abs=0.05)
    assert all(0 <= row["scores"]["R@1 class-level"]["value"] <= 1 for row in results["rows"])
    table = capsys.readouterr().out[-1000:]
    assert f"| top1 | {right['top1']['value']:.3f} (" in table and "| chance | 0.4" in table and "random" not in table


def test_rules_that_are_none(capsys):
    with pytest.raises(SystemExit):
        quality.main(["--rules", "best"])
    assert "--rules: expected some of top1, top10, middle, random, known" in capsys.readouterr().err
