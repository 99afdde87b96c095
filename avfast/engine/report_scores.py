"""The table of a report: trained, untrained and shuffled side by side, with chance, and what each number means."""

from __future__ import annotations

from avfast.engine.assess import score_table
from avfast.engine.record import RunSummary
from avfast.evaluate import Score

HEADLINE = (
    "accuracy joint", "accuracy audio", "accuracy video",
    "R@1 audio->video class-level", "R@1 audio->video instance-level", "map IoU", "mIoU", "kNN image",
)  # fmt: skip
LEGEND_CLIPS = (
    "Beside chance: where 95 % of guesses fall (classes, or clips, permuted); inside is no evidence.",
    "R@k: share of queries with a right answer among the k nearest (higher is better). Median rank of the first "
    "right answer: lower is better, 1 is best.",
)
NEGATIVES = "Clips of one class in one batch are negatives of each other: the loss need not reach its floor."
LEGEND_LABELLED = (
    "Accuracy of the joint model, and of what it says from one modality, the other masked at its head; of nothing: its "
    "bias. Chance guesses by the class frequencies of the training split.",
    "Shapley value: what a modality adds to the accuracy, averaged over who was there before; the two sum to the joint "
    "accuracy less that of nothing.",
    "kNN and linear probe: of each encoder inside the model.",
)
LEGEND_IMAGES = (
    "mIoU: mean over classes of intersection over union, a linear head on frozen maps; chance calls everything the "
    "commonest class.",
    "Pixel accuracy: of the same head, which weighs rare classes up; where one class fills most of every image it can "
    "be below chance while the mIoU is well above.",
    "kNN and linear probe: the class of the whole image from its pooled features.",
)


def headline(scores: dict[str, dict[str, Score]]) -> list[str]:
    """The one or two lines a person remembers."""
    lines = []
    for name in HEADLINE:
        trained = scores.get("trained", {}).get(name)
        if trained is None:
            continue
        if trained.value is None:
            lines.append(f"{name}: not available ({trained.reason})")
            continue
        parts = [f"chance {trained.chance_text()}"]
        for other in ("untrained", "shuffled"):
            score = scores.get(other, {}).get(name)
            parts.append(f"{other} {score.value:.3f}" if score and score.value is not None else f"{other} not run")
        lines.append(f"{name}: {trained.value:.3f} [{', '.join(parts)}; n={trained.n}]")
    return lines


def result_text(run: RunSummary) -> str:
    """Headline, table, legend and protocols."""
    images, labelled = run.noun == "images", run.labelled
    control_name = "Shuffled labels" if labelled else "Shuffled pairs"
    protocols: list[str] = []
    lines = [
        f"| metric | trained | chance | untrained | {control_name.lower()} | n | protocol |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in score_table(run.scores):
        trained: Score = row["trained"]
        mark = ""
        if trained.protocol:
            if trained.protocol not in protocols:
                protocols.append(trained.protocol)
            mark = f"[{protocols.index(trained.protocol) + 1}]"
        value = trained.text() if trained.value is not None else f"not available: {trained.reason}"
        others = [_other(row[name]) for name in ("untrained", "shuffled")]
        lines.append(
            f"| {row['metric']} | {value} | {trained.chance_text()} | {others[0]} | {others[1]} | {trained.n or ''} "
            f"| {mark} |"
        )
    if run.control_steps is None:
        control = f"{control_name}: not run (run.control=false)."
    else:
        wrong = f" with {run.shuffled}" if run.shuffled else ""
        pairs = "" if images or labelled else " on true pairs"
        control = (
            f"{control_name}: a second training of {run.control_steps} steps{wrong}, evaluated with its last "
            f"weights{pairs}."
        )
    legend = [
        f"In square brackets: 95 % bootstrap interval over test {run.noun}, resampled by class where labels exist.",
        *(LEGEND_LABELLED if labelled else LEGEND_IMAGES if images else LEGEND_CLIPS),
        f"Trained: the checkpoint of step {run.best_step}, selected on the validation split; the test split decided "
        "nothing."
        if run.best_step
        else "Trained: the last weights; nothing was selected.",
        "Untrained: the initial weights with batch-norm statistics from one pass over the training split.",
        control,
        "Probes read encoder features; an untrained network can score high on easy data: read across.",
        *([] if images or labelled else [NEGATIVES]),
    ]  # fmt: skip
    if run.class_only is not None:
        legend.insert(
            2,
            f"A model that always finds the class and guesses the clip within it would score {run.class_only:.3f} "
            "in R@1 at instance level; only what is above that comes from the single clip.",
        )
    notes = [f"{i + 1}. `{text}`" for i, text in enumerate(protocols)]
    heads = [f"**{line}**\n" for line in headline(run.scores)]
    return "\n".join([*heads, *lines, "", *(f"- {t}" for t in legend), "", "Protocols:", "", *notes])


def _other(score: Score | None) -> str:
    return "not run" if score is None else score.text()
