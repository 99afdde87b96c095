"""Run folders for the tests of reports: small ones written by hand, and the check that a real one rebuilds itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from avfast.cli import main
from avfast.engine import figures
from avfast.engine.drawing import Album
from avfast.engine.journal import Journal
from avfast.engine.record import Section, write_json, write_results, write_start
from avfast.evaluate import Score

HONESTY = "demo data: made up by a test"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def rebuilds_itself(run: Path, copy: Path, monkeypatch) -> None:
    """A copy of a run whose reports and pictures are deleted gets all of them back, byte for byte, without reading any
    data, networks or checkpoints."""
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("demo-clips", "frames"))
    before = files_of(copy)
    made = [name for name in before if name.endswith((".png", "report.md")) and not name.startswith("tensorboard")]
    assert "report.md" in made and len(made) > 2
    for name in made:
        (copy / name).unlink()

    def forbidden(*arguments, **options):
        raise AssertionError("a report must not need this")

    monkeypatch.setattr("avfast.data.ClipSource.open", forbidden)
    monkeypatch.setattr("torch.load", forbidden)
    monkeypatch.setattr("torch.nn.Module.__call__", forbidden)
    assert main(["report", str(copy)]) == 0
    after = files_of(copy)
    assert after.keys() == before.keys()
    assert [name for name in before if after[name] != before[name]] == []


def train_row(step: int, loss: float, **values) -> dict:
    collapse = {"audio": {"std": 0.8, "effective_rank": 9.0, "mean_cosine": 0.1}}
    return {
        "step": step, "epoch": step / 5, "lr": 1e-3, "loss": loss, "grad_norm": 1.0, "samples_per_s": 50.0,
        "data_s": 0.01, "compute_s": 0.2, "collapse": collapse, "broken": 0, "rss_mib": 400 + step, **values,
    }  # fmt: skip


def small_run(
    folder: Path, *, results: bool = True, start: bool = True, pictures: bool = True, loss: float = 3.0
) -> Path:
    """A run of 20 steps with a control and two pictures, as the engine leaves it; without results it was killed."""
    folder.mkdir(parents=True)
    for place, kind in ((folder, "main"), (folder / "control", "control")):
        place.mkdir(exist_ok=True)
        journal = Journal(place / "metrics.jsonl")
        for step in (5, 10, 15, 20):
            journal.write("train", **train_row(step, loss - 0.1 * step * (kind == "main")))
        journal.write("val", step=20, loss=loss - 1.5, **{"R@1 audio->video instance-level": 0.5})
    write_json(folder / "config.json", {"recipe": "av-align", "optim.lr": 0.002, "run.steps": 20, "run.control": True})
    if start:
        write_start(folder, {
            "recipe": "av-align", "honesty": HONESTY, "noun": "clips", "shuffled": "wrong pairs", "curves": "Curves",
            "supervised": False, "plan": ["recipe  av-align"], "bounds": {"chance": 3.4}, "steps": 20, "device": "cpu",
            "command": "avfast pretrain --recipe av-align --data d --out o", "how": ["machine: a test"],
        })  # fmt: skip
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.pt").write_bytes(b"never read")
    for name, facts in (("audio", {"model_type": "resnet"}), ("head", {"class": "torch.nn.Linear"})):
        (folder / "export" / name).mkdir(parents=True)
        write_json(folder / "export" / name / "config.json", facts)
    if not results:
        return folder
    if pictures:
        draw(folder)
    score = Score(0.5, chance=0.1, chance_range=(0.0, 0.2), interval=(0.4, 0.6), n=16, protocol="by hand")
    arms = {"trained": {"R@1 audio->video class-level": score}, "untrained": {"R@1 audio->video class-level": score}}
    write_results(folder, {
        "step": 20, "steps": 20, "best_step": 20, "stopped": "finished", "scores": arms, "control_steps": 20,
        "seconds": {"training": 12.0}, "class_only": None, "errors": {"a.mp4: torn": 2}, "notes": ["a note"],
        "sections": [Section("Own section", "![gone](figures/gone.png)\n\nwith words")], "how": ["ended: then"],
    })  # fmt: skip
    return folder


def draw(folder: Path) -> None:
    g = torch.Generator().manual_seed(0)
    album = Album(folder)
    z, labels = torch.randn(6, 4, generator=g), torch.tensor([0, 0, 1, 1, 2, 2])
    album.add(
        "Similarity of test clips", "figures/similarity.png", figures.similarity(z, z.flip(0), labels, list("abc"))
    )
    frames = torch.randint(0, 256, (3, 2, 3, 8, 8), dtype=torch.uint8, generator=g)
    sheet = figures.contact_sheet(frames, torch.rand(3, 8, 9, generator=g), labels[:3], list("abc"), duration=1.0)
    album.add("Contact sheet", "figures/contact_sheet.png", sheet)
