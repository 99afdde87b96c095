"""The end of a run: evaluation of the trained, untrained and shuffled-pair models, pictures and exports."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from avfast.engine import figures, figures_images, figures_maps
from avfast.engine.assess import Embedded, assess, calibrate_batchnorm
from avfast.engine.assess_images import assess_images
from avfast.engine.checkpoint import load_checkpoint, write_atomic
from avfast.engine.export import export_modules
from avfast.engine.image_inputs import ImagePipeline
from avfast.engine.inputs import IMAGENET_MEAN, IMAGENET_STD, InputPipeline, build_pipeline
from avfast.engine.loop import TrainResult
from avfast.engine.report import RunSummary
from avfast.engine.sources import DataBundle, readable
from avfast.methods import Method
from avfast.methods.base import CorrelationInputs, LabelledInputs

if TYPE_CHECKING:
    from avfast.engine.pretrain import Job


def conclude(
    job: Job, trained: TrainResult, control: TrainResult | None, plan_lines: list[str]
) -> tuple[RunSummary, Method]:
    """Score the models of a finished or stopped run on the test split, draw, export, and sum up.

    Returns:
        The summary and the trained method with the selected weights.
    """
    began = time.monotonic()
    config, out = job.config, job.request.out
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
    summary = RunSummary(
        out=out,
        recipe=config.recipe,
        honesty=_honesty(job.bundle),
        plan_lines=plan_lines,
        stopped=trained.stopped,
        step=trained.step,
        steps=trained.steps,
        best_step=best_step,
        scores=scores,
        control_steps=None if control is None else control.step,
        device=f"{job.accelerator.device}, {torch.get_num_threads()} CPU threads, precision {config.run.precision}",
        seconds=job.seconds,
        rows=trained.rows,
        class_only=_class_only(job, embedded),
        errors=unread | trained.errors,
        pictures=_pictures(job, trained, control, chosen, pipeline, embedded),
        noun=job.bundle.noun,
        shuffled=job.method.inputs.control,
    )
    if job.board is not None:
        job.board.pictures(summary.pictures, trained.step)
    if not summary.pictures:
        summary.notes.append("no pictures: matplotlib is not installed (pip install 'avfast[plots]')")
    _export(job, chosen, best_step)
    results = {name: {k: s.to_dict() for k, s in values.items()} for name, values in scores.items()}
    text = json.dumps({"step": trained.step, "best_step": best_step, "scores": results}, indent=1) + "\n"
    write_atomic(out / "results.json", lambda path: path.write_text(text))
    job.seconds["evaluation and pictures"] = time.monotonic() - began
    return summary, chosen


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


def _pictures(
    job: Job,
    trained: TrainResult,
    control: TrainResult | None,
    method: Method,
    pipeline: InputPipeline | ImagePipeline,
    test: Embedded | None,
) -> dict[str, Path]:
    out, names = job.request.out, job.bundle.source.classes
    images = isinstance(pipeline, ImagePipeline)
    curves = figures.curves(out / "curves.png", trained.rows, control.rows if control else [], job.bounds)
    placed = isinstance(pipeline.inputs, CorrelationInputs)
    made = {"Map curves" if placed else "Contrast curves" if images else "Curves": curves}
    if placed and job.loaders["test"] is not None:
        batch = pipeline(next(readable(job.loaders["test"])))
        method.eval()
        made["Correlation maps"] = figures_maps.correlation_maps(
            out / "figures" / "correlation_maps.png", batch["context"], batch["exemplars"], method.location_maps(batch)
        )
    if images and pipeline.inputs.views == 2 and job.loaders["test"] is not None:
        batch = pipeline(next(readable(job.loaders["test"])))
        method.eval()
        if (matches := method.correspondences(batch)) is not None:
            made["Correspondence"] = figures_images.correspondences(
                out / "figures" / "correspondence.png", batch["view_q"], batch["view_k"], matches
            )
    if images or test is None or pipeline.frontend is None or not pipeline.inputs.frames:
        return {title: path for title, path in made.items() if path is not None}
    frames, spectrograms = _raw(job.loaders["test"], pipeline)
    folder, labels, duration = out / "figures", test.labels, pipeline.inputs.duration
    z = test.embeddings
    if {"audio", "video"} <= z.keys():
        made["Similarity of test clips"] = figures.similarity(
            folder / "similarity.png", z["audio"], z["video"], labels, names
        )
        middle = frames[:, frames.shape[1] // 2]
        made["Retrieval"] = figures.retrieved(
            folder / "retrieval.png", z["audio"], z["video"], labels, middle, spectrograms, names,
            duration=duration,
        )  # fmt: skip
    made["Contact sheet"] = figures.contact_sheet(
        folder / "contact_sheet.png", frames, spectrograms, labels, names, duration=duration
    )
    return {title: path for title, path in made.items() if path is not None}


def _raw(loader: Any, pipeline: InputPipeline) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames ``[N, T, 3, H, W]`` and spectrograms ``[N, bins, time]`` of a split."""
    frames, spectrograms = [], []
    for batch in readable(loader):
        frames.append(batch["frames"])
        spectrograms.append(pipeline(batch)["spectrogram"][:, 0].cpu())
    drawn = torch.cat(spectrograms)
    return torch.cat(frames), drawn.mT if pipeline.inputs.frontend_options.get("layout") == "tf" else drawn


def _honesty(bundle: DataBundle) -> str:
    from avfast.data.demo import honesty_line

    return honesty_line(bundle.source.manifest)
