"""What was asked of avfast, against what a record shows: `goals_table` puts the two beside each other.

A goal names a case by op, shape, layout and dtype, and by mode where there are several, and reads one number from its
record on the most threads measured, or on as many as it says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .candidate import COMPILED, LEAN, OURS, PEER, PUBLISHED

Measure = Callable[[dict], tuple[float, str] | None]  # record -> number and whom it is against; None: not measured


@dataclass(frozen=True)
class Goal:
    """At least (or ``most``: at most) ``bound``, shown as ``text`` formats it."""

    case: str  # op/shape/layout/dtype, or op/shape/layout/dtype/mode
    what: str
    measure: Measure
    bound: float
    text: str = "{:.2f}x"
    most: bool = False
    threads: int = 0  # 0: the most that were measured

    def record_in(self, records: Sequence[dict]) -> dict | None:
        """The newest of this case on the right number of threads."""
        mine = [r for r in records if r["key"].startswith(self.case + "/") and self.threads in (0, r["threads"])]
        return max(reversed(mine), key=lambda record: record["threads"], default=None)

    def met(self, value: float) -> bool:
        return value <= self.bound if self.most else value >= self.bound


def _timed(record: dict, *roles: str) -> Iterator[dict]:
    return (c for c in record["candidates"] if c["status"] == "ok" and c["role"] in roles)


def _ours(record: dict) -> dict | None:
    return next(_timed(record, OURS), None)


def faster_than(*roles: str, only: str = "") -> Measure:
    """How many times faster than the quickest candidate in these roles whose name contains ``only``."""

    def measure(record: dict) -> tuple[float, str] | None:
        ours = _ours(record)
        rivals = [c for c in _timed(record, *roles) if only in c["name"]]
        if ours is None or not rivals:
            return None
        rival = min(rivals, key=lambda c: c["median_s"])
        return rival["median_s"] / ours["median_s"], rival["name"]

    return measure


def share_of_peak(record: dict) -> tuple[float, str] | None:
    share = (_ours(record) or {}).get("ceiling_share")
    return None if share is None else (100 * share, "measured in the same run")


def _peak(candidate: dict) -> int:
    """Tensors that were allocated, or pages that became resident, whichever is more: kernels allocate without torch."""
    return max(candidate.get("peak_resident_bytes") or 0, candidate.get("peak_bytes") or 0)


def peak_mib(record: dict) -> tuple[float, str] | None:
    ours = _ours(record)
    return None if ours is None or "peak_bytes" not in ours else (_peak(ours) / 2**20, "outputs included")


def saves_memory(returned: int) -> Measure:
    """Peak of the published form over ours, both beyond the ``returned`` bytes of gradients that everybody makes."""

    def measure(record: dict) -> tuple[float, str] | None:
        ours, published = _ours(record), next(_timed(record, PUBLISHED), None)
        if ours is None or published is None or "peak_bytes" not in ours:
            return None
        return (_peak(published) - returned) / max(_peak(ours) - returned, 1), "beyond the gradients"

    return measure


def held_share(record: dict) -> tuple[float, str] | None:
    """What the published form holds for backward over what ours holds."""
    ours, published = _ours(record), next(_timed(record, PUBLISHED), None)
    if ours is None or published is None or not ours.get("saved_bytes"):
        return None
    return published["saved_bytes"] / ours["saved_bytes"], published["name"]


def cost(name: str) -> Measure:
    """Our time over that of the candidate whose name begins so."""

    def measure(record: dict) -> tuple[float, str] | None:
        timed = (c for c in record["candidates"] if c["status"] == "ok" and c["name"].startswith(name))
        ours, other = _ours(record), next(timed, None)
        return None if ours is None or other is None else (ours["median_s"] / other["median_s"], other["name"])

    return measure


def refused(name: str) -> Measure:
    """1 if we ran and the candidate called ``name`` could not, else 0."""

    def measure(record: dict) -> tuple[float, str] | None:
        peer = next((c for c in record["candidates"] if c["name"] == name), None)
        if peer is None or _ours(record) is None or peer.get("reason", "").startswith("not installed"):
            return None
        return float(peer["status"] != "ok"), (peer.get("reason") or "it ran").split(": ")[0]

    return measure


EAGER, COMPILE, LEANEST = faster_than(PUBLISHED), faster_than(COMPILED), faster_than(COMPILED, only="lean")
COMPILE_PUBLISHED, SDPA = faster_than(COMPILED, only="eager"), faster_than(PEER, COMPILED, only="SDPA")
SCAN = "batch_norm_scan/resnet50/contiguous/float32"
STATS = "channel_stats/resnet50.layer1/{}/float32"
BLEND = "blended_batch_norm/resnet18.layer2/contiguous/float32"
QUEUE = "queue_info_nce/dense/contiguous/{}"
CLIP = "info_nce/clip/contiguous/float32"
SOUND2SCENE = "info_nce/l2-{}/contiguous/float32"
PAIRS = "nt_xent/pairs-{}/contiguous/float32"
STEP = "densecl_step/resnet50/contiguous/float32"
FUSION = "masked_fusion/tokens/contiguous/float32/forward+backward"
CONCAT = "masked_concat_linear/{}/contiguous/float32/forward+backward"
PATCHES = "mask_patches/{}/contiguous/float32/{}"
FUSION_STEP = "fusion_step/resnet18/contiguous/float32/train"
CORRELATE = "correlate/recipe/contiguous/float32/{}"
BOXES = "rotated_box_bce/recipe/contiguous/float32"
CLASSES = "upsample_cross_entropy/{}/contiguous/float32"
EXEMPLARS = "exemplars/recipe/contiguous/uint8"
CIM = "cim_step/vit-small/contiguous/float32"
METRIC_LEARNING = "pytorch-metric-learning"

GOALS = (
    Goal(SCAN, "over eager", EAGER, 100),
    Goal(SCAN, "over torch.compile", COMPILE, 25),
    Goal(STATS.format("contiguous"), "over eager", EAGER, 40),
    Goal(STATS.format("contiguous"), "over torch.compile", COMPILE, 2.3),
    Goal(STATS.format("channels_last"), "over eager", EAGER, 25),
    Goal(STATS.format("channels_last"), "over torch.compile", COMPILE, 1.5),
    Goal(BLEND, "over two layers", EAGER, 4),
    Goal(BLEND, "over the blend", faster_than(LEAN), 1.5),
    Goal(BLEND, "less held for backward", held_share, 3),
    Goal(QUEUE.format("float32"), "over eager", EAGER, 6),
    Goal(QUEUE.format("float32"), "over torch.compile", COMPILE, 2.4),
    Goal(QUEUE.format("float32"), "over torch chunked by hand", faster_than(LEAN, only="chunked"), 2.4),
    Goal(QUEUE.format("float32"), "share of FMA peak", share_of_peak, 88, "{:.0f} %"),
    Goal(QUEUE.format("float32"), "peak extra memory", peak_mib, 4e6 / 2**20, "{:.2f} MiB", most=True),
    Goal(QUEUE.format("bfloat16"), "over autocast eager", EAGER, 12),
    Goal(QUEUE.format("bfloat16"), "over the leanest compiled form", LEANEST, 2),
    Goal(QUEUE.format("bfloat16"), "share of FMA peak", share_of_peak, 88, "{:.0f} %"),
    Goal(QUEUE.format("bfloat16"), "peak extra memory", peak_mib, 4e6 / 2**20, "{:.2f} MiB", most=True),
    Goal(CLIP, "over eager", EAGER, 4),
    Goal(CLIP, "over torch.compile", COMPILE, 2),
    Goal(CLIP, "over linear_cross_entropy", faster_than(PEER), 2),
    Goal(CLIP, "share of FMA peak", share_of_peak, 85, "{:.1f} %"),
    Goal(CLIP, "less memory than eager", saves_memory(2 * 8192 * 512 * 4), 50),
    Goal(SOUND2SCENE.format(256), "over cdist and two cross-entropies", EAGER, 2),
    Goal(SOUND2SCENE.format("256-frozen"), "over cdist and two cross-entropies, images frozen", EAGER, 2),
    Goal(SOUND2SCENE.format(64), "over cdist and two cross-entropies", EAGER, 1),
    Goal(PAIRS.format(64), "over " + METRIC_LEARNING, faster_than(PEER), 1),
    Goal(PAIRS.format(256), "over " + METRIC_LEARNING, faster_than(PEER), 1),
    *(
        Goal(PAIRS.format(n), f"runs where {METRIC_LEARNING} cannot", refused(METRIC_LEARNING), 1, "{:.0f}")
        for n in (1024, 4096, 16384)
    ),
    Goal(STEP, "cost of a MoCo-v2 step", cost("MoCo-v2"), 1.01, "{:.3f}x", most=True),
    Goal(STEP, "cost of a step with eager losses", cost("DenseCL, eager"), 0.9, "{:.3f}x", most=True),
    Goal(CORRELATE.format("forward"), "over eager", EAGER, 4.5),
    Goal(CORRELATE.format("forward"), "over torch.compile", COMPILE, 4.5),
    Goal(CORRELATE.format("forward"), "over the best form of SDPA, one thread", SDPA, 4, threads=1),
    Goal(CORRELATE.format("forward"), "over the best form of SDPA, two threads", SDPA, 6, threads=2),
    Goal(CORRELATE.format("forward+backward"), "over eager", EAGER, 5),
    Goal(CORRELATE.format("forward+backward"), "over torch.compile", COMPILE, 4),
    Goal(CORRELATE.format("forward+backward"), "over the best form of SDPA", SDPA, 5),
    Goal(BOXES, "over eager", EAGER, 8),
    Goal(BOXES, "over torch.compile of eager", COMPILE_PUBLISHED, 25),
    Goal(BOXES, "over the leanest compiled form", LEANEST, 25),
    Goal(BOXES, "less memory than eager", saves_memory(96 * 2 * 10**2 * 4), 100),
    Goal(CLASSES.format("two"), "over eager", EAGER, 8),
    Goal(CLASSES.format("two"), "over torch.compile of eager", COMPILE_PUBLISHED, 25),
    Goal(CLASSES.format("two"), "over the leanest compiled form", LEANEST, 25),
    Goal(CLASSES.format("two"), "less memory than eager", saves_memory(64 * 2 * 10**2 * 4), 100),
    Goal(CLASSES.format("cityscapes"), "over eager", EAGER, 10),
    Goal(CLASSES.format("cityscapes"), "over torch.compile of eager", COMPILE_PUBLISHED, 12),
    Goal(CLASSES.format("cityscapes"), "over the leanest compiled form", LEANEST, 12),
    Goal(CLASSES.format("cityscapes"), "less memory than eager", saves_memory(2 * 19 * 64**2 * 4), 100),
    Goal(EXEMPLARS, "over the published path, with PIL", EAGER, 10),
    Goal(CIM, "over the published step", EAGER, 1.5),
    Goal(CIM, "less memory than the published step", saves_memory(0), 2),
    Goal(FUSION, "over eager", EAGER, 4),
    Goal(FUSION, "over torch.compile", COMPILE, 1.5),
    Goal(FUSION, "less memory than eager", saves_memory(0), 3),
    Goal(CONCAT.format("tokens"), "over eager, half of the rows with one modality", EAGER, 2),
    Goal(CONCAT.format("tokens"), "over torch.compile, half of the rows with one modality", COMPILE, 1.5),
    Goal(CONCAT.format("single"), "over eager, all rows with one modality", EAGER, 2),
    Goal(CONCAT.format("single"), "over torch.compile, all rows with one modality", COMPILE, 1.5),
    *(
        Goal(PATCHES.format(shape, mode), what, measure, bound)
        for shape in ("spectrogram", "frames")
        for mode in ("forward", "in-place")
        for what, measure, bound in (
            ("over slice assignments", EAGER, 10),
            ("over the best vectorised form", faster_than(LEAN, COMPILED), 1.5),
        )
    ),
    Goal(FUSION_STEP, "over the published step", EAGER, 1),
    Goal(FUSION_STEP, "over the leanest step in plain torch", faster_than(LEAN, COMPILED), 1),
)


def rows(records: Sequence[dict]) -> list[tuple[Goal, float | None, str]]:
    """Every goal whose case was measured, with the number and whom it is against."""
    found = []
    for goal in GOALS:
        record = goal.record_in(records)
        if record is not None:
            value, against = goal.measure(record) or (None, "not measured")
            found.append((goal, value, against))
    return found


def goals_table(records: Sequence[dict]) -> str:
    """Markdown: asked against measured; empty if no goal's case was measured."""
    found = rows(records)
    if not found:
        return ""
    lines = ["| case | what | asked | measured | |", "| --- | --- | --- | --- | --- |"]
    for goal, value, against in found:
        asked = ("at most " if goal.most else "at least ") + goal.text.format(goal.bound)
        measured = f"{against}" if value is None else f"{goal.text.format(value)} ({against})"
        verdict = "" if value is None else "met" if goal.met(value) else "**missed**"
        lines.append(f"| {goal.case} | {goal.what} | {asked} | {measured} | {verdict} |")
    return "\n".join(lines) + "\n"
