"""What Fusion Tuning and ABRi do: ``python -m avfast.benches.fusion_quality --data labelled --seeds 0,1,2 --json OUT``.

For every seed, two encoders learn their own modality with sparse batch norms, so that they have dead channels. Each
then starts an encoder of the other modality in every variant of cross-modal initialisation, and the encoders that
learned from the plain and from the ABRi start learn together: at once, after learning alone, and after that with masks
by the mean confidence or by that of each clip. All scores are of the test split.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from . import machine
from .run import save

SCHEMA = "fusion_quality/1"
VARIANTS = ("random", "naive", "reset_all", "reset_abnormal", "abri_scalar", "abri_channel")
JOINT = ("direct", "stage 1 only", "mean mask", "confidence mask")
STARTS = {"plain": "naive", "ABRi": "abri_channel"}
SCORES = ("accuracy joint", "accuracy audio", "accuracy video", "linear probe audio", "linear probe video")
SOURCE = ("run.steps=300", "optim.lr=5e-3", "optim.schedule=constant")
#: Confidences are means over a short training that starts at chance: few reach the recipe's threshold of 0.5.
MASKS = ("method.threshold=0.1", "method.eta=4")
ENCODERS = {"audio": "audio", "video": "visual"}
OTHER = {"audio": "visual", "visual": "audio"}


class Runs:
    """The trainings of one seed, each in a folder of its own."""

    def __init__(self, data: str, seed: int, words: Sequence[str], sparsity: float, folder: Path) -> None:
        self.data, self.seed, self.words, self.sparsity, self.folder = data, seed, list(words), sparsity, folder
        self.rows: list[dict] = []

    def train(self, name: str, *words: str) -> Path:
        """The folder of a training; one that ended there before is not repeated."""
        from avfast.engine.pretrain import Request, pretrain

        out = self.folder / name
        given = [*self.words, *words, f"run.seed={self.seed}", "run.control=false"]
        if not (out / "results.json").is_file():
            pretrain(Request("fusion-tuning", self.data, out, device="cpu", words=given), say=lambda line: None)
        return out

    def note(self, part: str, name: str, folder: Path, dead: tuple[float, float] | None = None) -> None:
        found = json.loads((folder / "results.json").read_text())["scores"]["trained"]
        scores = {key: found[key] for key in SCORES if key in found}
        self.rows.append({"part": part, "name": name, "seed": self.seed, "scores": scores, "dead": dead})

    def run(self, tell) -> None:
        from avfast.engine.finetune import hand_over

        began = time.monotonic()
        sources = {encoder: self._source(stage, encoder) for stage, encoder in ENCODERS.items()}
        alone: dict[tuple[str, str], Path] = {}
        for variant in VARIANTS:
            for stage, encoder in ENCODERS.items():
                if stage == "audio" and variant not in STARTS.values():
                    continue  # the table is of the visual encoder; of the other one the joint learning needs two
                start = self._start(encoder, variant, sources)
                out = alone[stage, variant] = self.train(f"{stage}-{variant}", f"method.stage={stage}", *start)
                if stage == "video":
                    self.note("cross-modal", variant, out, self._dead(encoder, variant, sources, out))
                hand_over(out, stage, self.data)
        for start, variant in STARTS.items():
            begin = [w for e in ENCODERS.values() for w in self._start(e, variant, sources)]
            carried = [w for stage, e in ENCODERS.items() for w in self._carried(alone[stage, variant], e, variant)]
            for mode, masks in zip(JOINT, ("none", "none", "mean", "conf"), strict=True):
                words = begin if mode == "direct" else carried
                masked = [] if masks == "none" else [f"method.masks={masks}", *MASKS]
                out = self.train(f"joint-{start}-{mode}".replace(" ", "-"), *masked, *words)
                self.note("joint", f"{mode}, {start}", out)
        tell(f"seed {self.seed}: {time.monotonic() - began:.0f} s")

    def _source(self, stage: str, encoder: str) -> Path:
        """The encoder after its last step: sparsity takes longer than the best validation loss."""
        from safetensors.torch import save_file

        from avfast.engine.checkpoint import load_checkpoint

        out = self.train(f"source-{stage}", *SOURCE, f"method.stage={stage}", f"method.sparsity={self.sparsity}")
        state, prefix = load_checkpoint(out / "checkpoints" / "last.pt")["model"], f"{encoder}.backbone."
        path = out / "source.safetensors"
        save_file({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}, path)
        return path

    def _start(self, encoder: str, variant: str, sources: dict[str, Path]) -> list[str]:
        if variant == "random":
            return []
        return [f"method.{encoder}_from={sources[OTHER[encoder]]}", f"method.{encoder}_init={variant}"]

    def _carried(self, folder: Path, encoder: str, variant: str) -> list[str]:
        unfolded = variant.startswith("abri")
        words = [f"method.{encoder}_weights={folder / 'export' / (f'{encoder}_unfolded' if unfolded else encoder)}",
                 f"method.{encoder}_confidence={folder / 'confidence.json'}"]  # fmt: skip
        return [*words, *([f"method.{encoder}_init={variant}"] if unfolded else [])]

    def _dead(self, encoder: str, variant: str, sources: dict[str, Path], trained: Path) -> tuple[float, float]:
        """Share of abnormal channels at the start and after training."""
        from avfast.encoders import build_encoder
        from avfast.nn import cross_modal_init, scan_batchnorm
        from avfast.weights import read_weights

        channels = {"audio": 1, "visual": 3}[encoder]
        start = build_encoder("resnet-tiny", in_channels=channels).backbone
        given = {} if variant == "random" else read_weights(sources[OTHER[encoder]])
        before = cross_modal_init(start, given, variant).after
        end = build_encoder(str(trained / "export" / encoder), in_channels=channels).backbone
        after = scan_batchnorm(end)
        return before.abnormal / before.channels, after.abnormal / after.channels


def one_seed(arguments: tuple) -> list[dict]:
    """All trainings of one seed, on one thread: the same numbers however many run beside it."""
    import torch

    torch.set_num_threads(1)
    runs = Runs(*arguments)
    runs.run(lambda line: print(line, flush=True))
    return runs.rows


def measure(
    data: str, seeds: Sequence[int], words: Sequence[str], sparsity: float, folder: Path, *, jobs: int = 1
) -> dict:
    """Train and score every seed, ``jobs`` of them at a time; plain JSON types."""
    from avfast.data.demo import make_labelled_clips
    from avfast.engine.config import parse_config

    if data == "labelled":
        data = str(folder / "labelled-clips")
        make_labelled_clips(data)
    work = [(data, seed, words, sparsity, folder / str(seed)) for seed in seeds]
    if jobs > 1:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            found = list(pool.map(one_seed, work))
    else:
        found = map(one_seed, work)
    rows = [row for rows in found for row in rows]
    settings = parse_config("fusion-tuning", list(words)).to_dict() | {
        "sparsity of the sources": sparsity,
        "source": SOURCE,
        "masks": MASKS,
    }
    return {"schema": SCHEMA, "machine": machine.facts(), "settings": settings, "rows": rows}


def table(results: dict) -> str:
    """Both tables: means over seeds, and the lowest and highest."""
    lines = ["| visual encoder starts from audio | accuracy video | dead at the start | dead after training |",
             "| --- | --- | --- | --- |"]  # fmt: skip
    for variant in VARIANTS:
        rows = [r for r in results["rows"] if r["part"] == "cross-modal" and r["name"] == variant]
        dead = [" ".join(f"{statistics.mean(r['dead'][i] for r in rows):.0%}".split()) for i in range(2)]
        lines.append(f"| {variant} | {_spread(rows, 'accuracy video')} | {dead[0]} | {dead[1]} |")
    lines += ["", "| joint learning | " + " | ".join(SCORES) + " |", "|" + " --- |" * (len(SCORES) + 1)]
    for start in STARTS:
        for mode in JOINT:
            rows = [r for r in results["rows"] if r["part"] == "joint" and r["name"] == f"{mode}, {start}"]
            lines.append(f"| {mode}, {start} | " + " | ".join(_spread(rows, name) for name in SCORES) + " |")
    return "\n".join(lines)


def _spread(rows: list[dict], name: str) -> str:
    values = [row["scores"][name]["value"] for row in rows]
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m avfast.benches.fusion_quality", description=__doc__.split("\n")[0])
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="settings of the recipe")
    parser.add_argument("--data", default="labelled", help="labelled, or a folder of labelled clips")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--sparsity", type=float, default=0.004, help="of the batch norms of the sources")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time, one thread each")
    parser.add_argument("--out", type=Path, help="keep the runs here, and use those that are there")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the results here")
    chosen = parser.parse_args(arguments)
    seeds = [int(seed) for seed in chosen.seeds.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        results = measure(
            chosen.data, seeds, chosen.words, chosen.sparsity, chosen.out or Path(scratch), jobs=chosen.jobs
        )
    if chosen.json:
        save(json.loads(json.dumps(results)), chosen.json)
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
