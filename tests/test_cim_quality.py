"""The bench of what CIM learns: a run in small, its record and its table."""

from __future__ import annotations

import json

import pytest
from engine_fixtures import real_scenes

for library in ("PIL", "av", "sklearn", "accelerate", "jsonargparse", "transformers", "safetensors"):
    pytest.importorskip(library, reason=f"{library} is not installed")

from avfast.benches import cim_quality as quality  # noqa: E402

WORDS = ("method.size=32", "method.context=32", "method.exemplar=16", "method.decoder_dim=16", "data.batch_size=8")


def test_a_run_in_small(tmp_path, monkeypatch, no_pictures, capsys):
    out, readme = tmp_path / "q.json", tmp_path / "README.md"
    monkeypatch.setattr(quality, "RESULTS", tmp_path / "results")
    readme.write_text("before\n<!-- cim:begin -->\n<!-- cim:end -->\nafter\n")
    arguments = ["--data", str(real_scenes()), "--seeds", "3", "--json", str(out), *WORDS, "method.decoder_heads=2"]
    arguments += ["--out", str(tmp_path / "runs"), "run.steps=2"]
    assert quality.main([*arguments, "--record", "--readme", str(readme)]) == 0
    results = json.loads(out.read_text())
    (recorded,) = (tmp_path / "results").iterdir()
    assert recorded.name.startswith("cim_quality_") and json.loads(recorded.read_text()) == results
    assert sorted(row["model"] for row in results["rows"]) == sorted(quality.MODELS)
    assert results["settings"]["run.steps"] == 2 and all(row["steps"] == 2 for row in results["rows"])
    values = {row["model"]: row["scores"]["map accuracy"]["value"] for row in results["rows"]}
    assert all(0 < value < 1 for value in values.values())
    shown = f"| {values['trained']:.3f} ({values['trained']:.3f}) |"
    assert shown in capsys.readouterr().out and shown in readme.read_text() and readme.read_text().endswith("after\n")

    # What is scored is not trained again; with other settings there is another run to be had in this folder.
    monkeypatch.setattr("avfast.engine.pretrain.pretrain", lambda *_, **__: pytest.fail("trained again"))
    assert quality.main(arguments) == 0 and json.loads(out.read_text())["rows"] == results["rows"]
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        quality.main([*arguments[:-1], "run.steps=3"])


def test_a_readme_without_a_place_is_refused_before_the_training(tmp_path, capsys):
    readme = tmp_path / "README.md"
    for text in (None, "no markers"):
        if text:
            readme.write_text(text)
        with pytest.raises(SystemExit):
            quality.main(["--readme", str(readme)])
        assert "--readme: " in capsys.readouterr().err


def test_the_table_shows_mean_every_seed_and_chance():
    def row(model, seed, value):
        return {"model": model, "seed": seed, "scores": {"map IoU": {"value": value, "chance": 0.25}}}

    text = quality.table({"rows": [row("trained", 0, 0.5), row("trained", 1, 0.75), row("untrained", 0, 0.125)]})
    assert "| trained | 0.625 (0.500, 0.750) | –" in text and "| untrained | 0.125 (0.125) |" in text
    assert "| chance | 0.250 (0.250, 0.250) |" in text and "shuffled" not in text
