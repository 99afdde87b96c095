"""The bench of what Fusion Tuning and ABRi do: a run in small, its record and its tables."""

from __future__ import annotations

import json

import pytest
from engine_fixtures import real_clips

for library in ("PIL", "av", "sklearn", "accelerate", "jsonargparse", "transformers", "safetensors"):
    pytest.importorskip(library, reason=f"{library} is not installed")

from avfast.benches import fusion_quality as quality  # noqa: E402

WORDS = ("method.size=32", "method.frames=1", "method.duration=1", "data.batch_size=16")


def test_a_run_in_small(tmp_path, monkeypatch, no_pictures, capsys):
    monkeypatch.setattr(quality, "SOURCE", ("run.steps=2", "optim.schedule=constant"))
    monkeypatch.setattr(quality, "VARIANTS", ("random", "naive", "abri_channel"))
    out = tmp_path / "q.json"
    arguments = ["--data", str(real_clips()), "--seeds", "3", "--sparsity", "0.6", "--json", str(out), *WORDS]
    assert quality.main([*arguments, "run.steps=2"]) == 0
    results = json.loads(out.read_text())
    dead = {row["name"]: row["dead"] for row in results["rows"] if row["part"] == "cross-modal"}
    assert dead["random"][0] == 0 == dead["abri_channel"][0] and dead["naive"][0] == 1  # 2 x 0.6 took every gain to 0
    joint = [row["name"] for row in results["rows"] if row["part"] == "joint"]
    assert joint == [f"{mode}, {start}" for start in quality.STARTS for mode in quality.JOINT]
    text = capsys.readouterr().out
    assert "| naive | " in text and "100% |" in text and "| confidence mask, ABRi | " in text


def test_tables_show_mean_lowest_and_highest():
    def row(part, name, value, dead=None):
        return {"part": part, "name": name, "dead": dead, "scores": {s: {"value": value} for s in quality.SCORES}}

    rows = [row("cross-modal", v, x, (x, 0.0)) for v in quality.VARIANTS for x in (0.25, 0.75)]
    rows += [row("joint", f"{m}, {s}", x) for s in quality.STARTS for m in quality.JOINT for x in (0.5, 1.0)]
    text = quality.table({"rows": rows})
    assert "| naive | 0.500 (0.250 to 0.750) | 50% | 0% |" in text
    assert "| mean mask, plain | 0.750 (0.500 to 1.000) | " in text
