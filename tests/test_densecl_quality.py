"""The bench of what DenseCL learns: a run in small, its record and its table."""

from __future__ import annotations

import json

import pytest
import torch
from engine_fixtures import real_scenes

for library in ("PIL", "av", "sklearn", "kornia", "accelerate", "jsonargparse", "transformers", "safetensors"):
    pytest.importorskip(library, reason=f"{library} is not installed")

from avfast.benches import densecl_quality as quality  # noqa: E402

WORDS = ("method.size=32", "method.queue=32", "method.dim=16", "data.batch_size=8", "method.group_size=4")


def test_a_run_in_small(tmp_path, no_pictures, capsys):
    out = tmp_path / "q.json"
    arguments = ["--data", str(real_scenes()), "--seeds", "3", "--steps", "2", "--json", str(out)]
    assert quality.main([*arguments, "--arms", "MoCo-v2,DenseCL,untrained,supervised", *WORDS]) == 0
    results = json.loads(out.read_text())
    assert [row["arm"] for row in results["rows"]] == ["MoCo-v2", "DenseCL", "untrained", "supervised"]
    assert [row["steps"] for row in results["rows"]] == [2, 2, 0, 2]
    assert results["settings"]["run.steps"] == 2 and results["settings"]["method.queue"] == 32
    values = [row["scores"]["mIoU"]["value"] for row in results["rows"]]
    assert len(set(values)) == 4 and all(0 < value < 1 for value in values), "four encoders, four scores"
    assert all("split=test fingerprint=" in row["scores"]["mIoU"]["protocol"] for row in results["rows"])
    table = capsys.readouterr().out[-2000:]
    assert f"| DenseCL | {values[1]:.3f} ({values[1]:.3f}) |" in table and "by geometry" not in table


def test_the_table_shows_mean_and_every_seed():
    def row(arm, seed, value):
        return {"arm": arm, "seed": seed, "scores": {"mIoU": {"value": value, "chance": 0.1}}}

    text = quality.table({"rows": [row("DenseCL", 0, 0.25), row("DenseCL", 1, 0.75), row("untrained", 0, 0.125)]})
    assert text.splitlines()[2:] == [
        "| untrained | 0.125 (0.125) | – | – | – |",
        "| DenseCL | 0.500 (0.250, 0.750) | – | – | – |",
        "| chance | 0.100 | – | – | – |",
    ]


@pytest.mark.parametrize("arms", ["supervised", "MoCo-v2,MoCo-v3", ""])
def test_arms_that_are_none(arms, capsys):
    with pytest.raises(SystemExit):
        quality.main(["--arms", arms])
    assert "--arms: expected some of untrained, MoCo-v2, DenseCL" in capsys.readouterr().err


def test_crops_move_picture_and_mask_together():
    """A picture whose grey is its class number: where no border is near, the crop of one is the crop of the other."""
    torch.manual_seed(0)
    masks = torch.zeros(6, 48, 48, dtype=torch.uint8)
    masks[:, 8:30, 5:26], masks[:, 20:44, 30:40] = 1, 2
    images, labels = quality._crops(masks[:, None].float().expand(-1, 3, -1, -1), masks, 32)
    assert images.shape == (6, 3, 32, 32) and labels.shape == (6, 32, 32) and labels.dtype == torch.int64
    agree = images[:, 0].round() == labels
    assert agree.float().mean() > 0.97 and set(labels.unique().tolist()) == {0, 1, 2}
    assert len({tuple(x.flatten().tolist()) for x in labels}) == 6, "every crop is another window"
