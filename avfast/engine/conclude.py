"""The end of a run: evaluation of the trained, untrained and shuffled-pair models, pictures and exports."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from avfast.engine import figures, figures_images, figures_maps
from avfast.engine.assess import Embedded, assess, calibrate_batchnorm
from avfast.engine.assess_images import assess_images
from avfast.engine.checkpoint import load_checkpoint
from avfast.engine.drawing import Album
from avfast.engine.export import export_modules
from avfast.engine.image_inputs import ImagePipeline
from avfast.engine.inputs import IMAGENET_MEAN, IMAGENET_STD, InputPipeline, build_pipeline
from avfast.engine.loop import TrainResult
from avfast.engine.sources import readable
from avfast.methods import Method
from avfast.methods.base import CorrelationInputs, ImageInputs, LabelledInputs

if TYPE_CHECKING:
    from avfast.engine.pretrain import Job


@dataclass(frozen=True)
class Outcome:
    """What an evaluation leaves: ``results``, which become ``results.json``, and the pictures in the run's folder. More
    can be added: notes and sections of the report, and pictures."""

    out: Path
    results: dict[str, Any]
    album: Album

    def note(self, text: str) -> None:
        self.results["notes"].append(text)


def conclude(job: Job, trained: TrainResult, control: TrainResult | None) -> tuple[Outcome, Method]:
    """Score the models of a finished or stopped run on the test split, draw and export.

    Returns:
        What came out, and the trained method with the selected weights.
    """
    began = time.monotonic()
    out = job.request.out
    pipeline = build_pipeline(job.method.inputs).to(job.accelerator.device)
    chosen = trained.method
    best_step = trained.best_step if "best" in trained.checkpoints else 0
    if best_step:
        chosen.load_state_dict(load_checkpoint(trained.checkpoints["best"])["model"])
    untrained = calibrate_batchnorm(job.method.to(job.accelerator.device), pipeline, job.loaders["train"])
    context = f"split=test fingerprint={job.bundle.fingerprint[:12]}"
    models = {"trained": chosen, "untrained": untrained}
    if control is not None:
        models["shuffled"] = control.method
    scores, embedded, unread = {}, None, {}
    for name, method in models.items():
        if isinstance(pipeline, ImagePipeline):
            scores[name], unread = assess_images(
                method, pipeline, job.loaders, labelled=job.bundle.labelled,
                mask_classes=job.bundle.mask_classes, context=context,
            )  # fmt: skip
            continue
        scores[name], test = assess(method, pipeline, job.loaders, labelled=job.bundle.labelled, context=context)
        embedded = test if name == "trained" else embedded
    unread = unread if embedded is None else embedded.errors
    album = Album(out)
    pictures = _pictures(job, trained, control, chosen, pipeline, embedded, album)
    if job.board is not None:
        job.board.pictures(pictures, trained.step)
    _export(job, chosen, best_step)
    job.seconds["evaluation and pictures"] = time.monotonic() - began
    results = {
        "step": trained.step, "steps": trained.steps, "best_step": best_step, "stopped": trained.stopped,
        "scores": scores, "control_steps": None if control is None else control.step, "seconds": job.seconds,
        "class_only": _class_only(job, embedded), "errors": unread | trained.errors, "notes": [], "sections": [],
    }  # fmt: skip
    return Outcome(out, results, album), chosen


def _class_only(job: Job, test: Embedded | None) -> float | None:
    """Instance-level R@1 of a model that always finds the class and guesses the clip within it; None without labels."""
    if test is None or not job.bundle.labelled or isinstance(job.method.inputs, LabelledInputs):
        return None
    labels = test.labels
    return (1.0 / (labels[:, None] == labels).sum(dim=1).double()).mean().item()


def _export(job: Job, method: Method, step: int) -> None:
    inputs = dataclasses.asdict(method.inputs)
    facts = {
        "recipe": job.config.recipe, "step": step, "split_fingerprint": job.bundle.fingerprint,
        "inputs": inputs, "frame_mean": IMAGENET_MEAN, "frame_std": IMAGENET_STD,
        "config": job.config.to_dict(),
    }  # fmt: skip
    export_modules(job.request.out / "export", method.exports(), facts)


def curves_title(inputs: Any) -> str:
    """What the curves of a kind of input show, as the report's captions know them."""
    if isinstance(inputs, CorrelationInputs):
        return "Map curves"
    return "Contrast curves" if isinstance(inputs, ImageInputs) else "Curves"


def _pictures(
    job: Job,
    trained: TrainResult,
    control: TrainResult | None,
    method: Method,
    pipeline: InputPipeline | ImagePipeline,
    test: Embedded | None,
    album: Album,
) -> dict[str, Path]:
    out, names = job.request.out, job.bundle.source.classes
    images = isinstance(pipeline, ImagePipeline)
    curves = figures.curves(out / "curves.png", trained.rows, control.rows if control else [], job.bounds)
    made = {} if curves is None else {curves_title(pipeline.inputs): curves}
    if isinstance(pipeline.inputs, CorrelationInputs) and job.loaders["test"] is not None:
        batch = pipeline(next(readable(job.loaders["test"])))
        method.eval()
        maps = method.location_maps(batch)
        if maps is not None:
            drawing = figures_maps.correlation_maps(batch["context"], batch["exemplars"], maps)
            album.add("Correlation maps", "figures/correlation_maps.png", drawing)
    if images and pipeline.inputs.views == 2 and job.loaders["test"] is not None:
        batch = pipeline(next(readable(job.loaders["test"])))
        method.eval()
        if (matches := method.correspondences(batch)) is not None:
            drawing = figures_images.correspondences(batch["view_q"], batch["view_k"], matches)
            album.add("Correspondence", "figures/correspondence.png", drawing)
    if not images and test is not None and pipeline.frontend is not None and pipeline.inputs.frames:
        _clip_pictures(job, pipeline, test, names, album)
    return made | album.pictures


def _clip_pictures(job: Job, pipeline: InputPipeline, test: Embedded, names: list[str], album: Album) -> None:
    """Pictures of some test clips: only these are held in memory."""
    labels, duration, z = test.labels, pipeline.inputs.duration, test.embeddings
    both = {"audio", "video"} <= z.keys()
    picks, found = figures.neighbours(z["audio"], z["video"]) if both else ([], torch.zeros(0, 0, dtype=torch.int64))
    shown = figures.spread(len(labels), 8)
    frames, spectrograms = _raw(job.loaders["test"], pipeline, test.index, {*picks, *found.flatten().tolist(), *shown})
    if both:
        drawing = figures.similarity(z["audio"], z["video"], labels, names)
        album.add("Similarity of test clips", "figures/similarity.png", drawing)
        middle = {place: clip[len(clip) // 2] for place, clip in frames.items()}
        drawing = figures.retrieved(picks, found, labels, middle, spectrograms, names, duration=duration)
        album.add("Retrieval", "figures/retrieval.png", drawing)
    drawing = figures.contact_sheet(
        torch.stack([frames[n] for n in shown]), torch.stack([spectrograms[n] for n in shown]), labels[shown], names,
        duration=duration,
    )  # fmt: skip
    album.add("Contact sheet", "figures/contact_sheet.png", drawing)


def _raw(
    loader: Any, pipeline: InputPipeline, index: torch.Tensor, wanted: set[int]
) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
    """Frames ``[T, 3, H, W]`` and spectrograms ``[bins, time]`` of some clips of a split, by their places in
    `index`."""
    places = {int(index[place]): place for place in wanted}
    turned = pipeline.inputs.frontend_options.get("layout") == "tf"
    frames, spectrograms = {}, {}
    for batch in readable(loader):
        rows = [row for row, number in enumerate(batch["index"].tolist()) if number in places]
        if not rows:
            continue
        heard = pipeline(batch)["spectrogram"][:, 0].cpu()
        for row in rows:
            place = places[int(batch["index"][row])]
            # Copies: a view would hold its whole batch.
            frames[place] = batch["frames"][row].clone()
            spectrograms[place] = (heard[row].mT if turned else heard[row]).clone()
    return frames, spectrograms
