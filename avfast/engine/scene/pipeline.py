"""``avfast pretrain --recipe sound2scene``: image encoder, localiser, generator, audio encoder; pictures from sounds.

A stage is ``avfast pretrain`` of a recipe in a folder of its own, so each can be continued and has its report; what
this module adds is their order, what one hands to the next, and one report of all.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from avfast.data.commands import progress_bar
from avfast.data.outputs import require_folder
from avfast.engine.build import build_method
from avfast.engine.checkpoint import clear_temporary, clear_temporary_below, load_checkpoint, write_atomic
from avfast.engine.config import TrainConfig, parse_config
from avfast.engine.demo_data import MADE, made_folder, make_data
from avfast.engine.export import export_modules
from avfast.engine.generations import Generations
from avfast.engine.pretrain import Request, pretrain
from avfast.engine.processes import is_main, main_first
from avfast.engine.report_scores import headline
from avfast.engine.resume import finished, newest_of
from avfast.engine.scene.frames import extract_frames
from avfast.engine.scene.targets import scene_targets
from avfast.engine.signals import interruptible
from avfast.engine.sources import DataBundle, open_data
from avfast.engine.stages import begin_stages
from avfast.errors import ConfigError
from avfast.generator import fold_spectral_norm
from avfast.methods import get_method
from avfast.methods.base import ImageInputs, Method
from avfast.methods.sound2scene import require_opponent

RECIPE, IMAGE_RECIPE = "sound2scene", "densecl"
STAGES = ("image", "localiser", "generator", "audio")
RESTS_ON = {"image": (), "localiser": ("image",), "generator": ("image",), "audio": ("image", "localiser")}
"""Stages that a stage learns from: where one of them goes on, it begins anew."""
SHARES = {"image": 0.25, "localiser": 0.1, "generator": 0.45, "audio": 0.2}
"""Of the budget; what a stage leaves goes to those after it."""


@dataclass
class Scene:
    """A run of all stages: the request, the configuration the stages share, and the clips."""

    request: Request
    config: TrainConfig
    data: str
    bundle: DataBundle
    say: Callable[[str], None]

    @property
    def out(self) -> Path:
        return self.request.out

    @property
    def frames(self) -> Path:
        return self.out / "frames"

    @property
    def targets(self) -> Path:
        return self.out / "targets.safetensors"

    @property
    def given(self) -> str:
        """The trained image encoder that the user gave, or "": then the first stage trains one."""
        c = self.config.method
        return c.visual_weights or (c.visual if Path(c.visual).is_dir() else "")

    def stage_config(self, name: str) -> TrainConfig:
        return parse_config(RECIPE, self.words(name), preset=self.request.preset, file=self.request.config_file)

    def words(self, name: str) -> list[str]:
        """The overrides of a stage: its own defaults, the user's for all stages and for this one, and what earlier
        stages hand over; later words win."""
        common, own = self.request.words_of(name, STAGES)
        if name == "image":
            c = self.config
            return [f"method.encoder={c.method.visual}", f"method.size={c.method.visual_size}", "run.control=false",
                    f"run.seed={c.run.seed}", *own]  # fmt: skip
        preset = get_method(RECIPE).presets.get(self.request.preset or "", {})
        defaults = get_method(RECIPE).stages[name]
        words = [f"{key}={json.dumps(value)}" for key, value in defaults.items() if key not in preset]
        words = [word.replace('"', "") for word in words]
        own_encoder = self.out / "image" / "export" / "encoder"
        handed = [f"method.visual={own_encoder}"] if own_encoder.is_dir() and not self.given else []
        if name == "audio" and self.targets.is_file():
            handed.append(f"method.targets={self.targets}")
        return [*words, *common, *own, f"method.stage={name}", *handed]


def train_scene(request: Request, *, say: Callable[[str], None] = print) -> Path | None:
    """Run the stages that are not finished and write one report; its path, or None after a dry run and in all but the
    main process.

    Args:
        request: as of ``avfast pretrain``. ``out`` gets a folder per stage. A word ``generator:KEY=VALUE`` (or
            ``image:``, ``localiser:``, ``audio:``) is for that stage alone; words without a mark are for all but the
            image stage, whose recipe is another one.
        say: receives lines for the person at the terminal.

    Raises:
        Interrupted: a signal came; the same command with ``--resume auto`` goes on where it was.
        AvfastError: anything the user can change.
    """
    with interruptible(f"between the stages: what is done is in '{request.out}'; continue with --resume auto"):
        return _train_scene(request, say)


def _train_scene(request: Request, say: Callable[[str], None]) -> Path | None:
    if request.resume not in (None, "auto"):
        raise ConfigError(f"--resume: {RECIPE} continues its own stages with --resume auto, got '{request.resume}'")
    config = _config(request)
    began = time.monotonic()
    if request.data in MADE and request.dry_run:
        return _dry(request, config, say)
    say = say if is_main() else lambda line: None
    with main_first(request.device):
        scene = open_scene(request, say)
        if request.dry_run:
            return _dry(request, config, say)
        if is_main():
            clear_temporary(scene.out, scene.frames)
            clear_temporary_below(scene.out / "figures", scene.out / "export")
        write_frames(scene)
    from avfast.engine.scene.report import scene_facts, write_scene_report

    if is_main():
        begin_stages(scene.out, RECIPE, **scene_facts(scene))
    spent, left, moved = 0.0, 1.0, set()
    for name in STAGES:
        if name == "image" and scene.given:
            say(f"stage image: left out, '{scene.given}' is a trained encoder")
        elif name == "generator" and config.method.generator_weights:
            say(f"stage generator: left out, '{config.method.generator_weights}' is a trained generator")
            if is_main():
                _export_given(scene)
        else:
            if name == "audio":
                with main_first(request.device):
                    write_targets(scene)
            started = time.monotonic()
            budget = None if request.budget is None else max(1.0, (request.budget - spent) * SHARES[name] / left)
            anew = any(earlier in moved for earlier in RESTS_ON[name])
            moved |= {name} if run_stage(scene, name, budget, anew=anew) else set()
            spent += time.monotonic() - started
        left -= SHARES[name]
    if not is_main():
        return None
    _collect(scene)
    return write_scene_report(scene, seconds=time.monotonic() - began)


def open_scene(request: Request, say: Callable[[str], None]) -> Scene:
    """The configuration checked for all stages, and the clips, made here where ``request.data`` names a made set."""
    config = _config(request)
    inputs = get_method(RECIPE)(config.method).inputs
    data = request.data
    if data in MADE:
        data = str(make_data(*made_folder(data, request.out, inputs), say))
    return Scene(request, config, data, open_data(data, inputs, on_error=config.data.on_error), say)


def _config(request: Request) -> TrainConfig:
    """What the stages share; a mistake in the last stage is found before the first one trains."""
    require_folder(request.out, "--out")
    common, _ = request.words_of(STAGES[0], STAGES)
    config = parse_config(RECIPE, common, preset=request.preset, file=request.config_file)
    for name in STAGES:
        _, own = request.words_of(name, STAGES)
        parse_config(IMAGE_RECIPE, own) if name == "image" else parse_config(RECIPE, [*common, *own])
    get_method(RECIPE)(config.method)  # values that no network can have
    require_opponent(config.method)
    return config


def _dry(request: Request, config: TrainConfig, say: Callable[[str], None]) -> None:
    say(f"{RECIPE}: stages {', '.join(STAGES)} in '{request.out}', in this order")
    for name in STAGES:
        share = "" if request.budget is None else f", {SHARES[name]:.0%} of the budget"
        recipe = IMAGE_RECIPE if name == "image" else f"{RECIPE}, method.stage={name}"
        say(f"  {name}: recipe {recipe}{share}")
    c = config.method
    say(f"  {c.frames} frames of every clip at {c.visual_size} pixels; generator {c.generator}; {c.frame_rule} frame")
    say("dry run: nothing was written")


def write_frames(scene: Scene) -> None:
    c = scene.config.method
    size = ImageInputs(c.visual_size).source_size  # a little larger, so that crops have something to cut
    with progress_bar("writing frames") as progress:
        extract_frames(
            scene.bundle, scene.frames, frames=c.frames, size=size, duration=c.duration, progress=progress
        )  # fmt: skip
    scene.say(f"frames in '{scene.frames}'")


def run_stage(scene: Scene, name: str, budget: float | None = None, *, anew: bool = False) -> bool:
    """One stage, unless an earlier call finished it; whether it trained. `anew`: what an earlier call left counts for
    nothing."""
    request = scene.request
    recipe = IMAGE_RECIPE if name == "image" else RECIPE
    data = str(scene.frames) if name in ("image", "generator") else scene.data
    own = dataclasses.replace(
        request, recipe=recipe, data=data, out=scene.out / name, budget=budget, words=scene.words(name),
        preset=None if name == "image" else request.preset,
        config_file=None if name == "image" else request.config_file,
    )  # fmt: skip
    if anew and (own.out / "checkpoints").is_dir():
        scene.say(f"stage {name} begins anew: what it learns from has gone on")
        own = dataclasses.replace(own, resume=None, force=True)
    elif request.resume == "auto" and finished(own, scene.say):
        scene.say(f"stage {name}: finished before, in '{own.out}'")
        return False
    else:
        scene.say(f"stage {name}")
    summary = pretrain(own, say=scene.say)
    for line in headline(summary.scores) if summary else ():
        scene.say(line)
    return True


def _export_given(scene: Scene) -> None:
    """What the generator stage would have left, of the weights that were given."""
    method = stage_method(scene, "audio", untrained=True)
    generator = method.given_generator().eval()
    scene.say(str(method.account))
    modules = {"generator": fold_spectral_norm(generator), "visual_encoder": method.image_encoder().backbone}
    export_modules(scene.out / "generator" / "export", modules, {"recipe": RECIPE})


def stage_method(scene: Scene, name: str, *, control: bool = False, untrained: bool = False) -> Method:
    """The method of a finished stage in eval mode: its selected weights, those of its control, or its initial ones."""
    method = build_method(scene.stage_config(name))
    folder = scene.out / name / "control" if control else scene.out / name
    if not untrained:
        generations = Generations(folder / "checkpoints")
        # The control has no selection: pairs that are wrong in training are right in validation.
        selected = not control and generations.step_of("best") is not None
        path = generations.path("best") if selected else newest_of(folder).path
        method.load_state_dict(load_checkpoint(path)["model"])
    return method.eval()


def write_targets(scene: Scene) -> None:
    method = stage_method(scene, "audio", untrained=True)
    inputs = dataclasses.replace(method.inputs, frames=scene.config.method.frames)
    localiser = stage_method(scene, "localiser").localiser
    device = torch.device("cuda" if scene.request.device != "cpu" and torch.cuda.is_available() else "cpu")
    scene_targets(
        scene.targets, scene.bundle, inputs, method.image_encoder(), localiser, device=device, tell=scene.say
    )  # fmt: skip


def _collect(scene: Scene) -> None:
    """``export/``: everything that turns a sound into a picture, in one folder."""
    out = scene.out / "export"
    facts: dict[str, Any] = {}
    for stage, names in (("audio", ("audio_encoder", "audio_head")), ("generator", ("generator", "visual_encoder"))):
        source = scene.out / stage / "export"
        for name in names:
            shutil.copytree(source / name, out / name, dirs_exist_ok=True)
        facts = facts or json.loads((source / "avfast.json").read_text())
    facts["modules"] = ["audio_encoder", "audio_head", "generator", "visual_encoder"]
    facts["visual_size"] = scene.config.method.visual_size
    facts["classes"] = list(scene.bundle.source.classes)
    text = json.dumps(facts, indent=2) + "\n"
    write_atomic(out / "avfast.json", lambda path: path.write_text(text))
