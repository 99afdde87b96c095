"""The command line: ``avfast`` and ``python -m avfast``.

Every command imports what it needs when it runs, so that `env`, `check`, `bench` and `recipes` work with
torch and NumPy alone. Anything the user can change is one message on stderr and exit status 2; a fault
of the disk, the data folder or a process is one message and status 3.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from avfast.errors import AvfastError, ConfigError
from avfast.printable import printable

if TYPE_CHECKING:
    from avfast.engine.pretrain import Request


class _Parser(argparse.ArgumentParser):
    """An argument parser that reports mistakes like every other mistake, with a suggestion for misspelt
    words."""

    def error(self, message: str) -> None:
        raise ConfigError(f"{self.prog}: {message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 1 for findings, 2 for a mistake of the user, 3 for a fault around
    it after which ``--resume auto`` goes on, 128+n for signals."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        parser, commands = _parser()
        if words and not words[0].startswith("-") and words[0] not in commands:
            near = difflib.get_close_matches(words[0], commands, n=1, cutoff=0.4)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise ConfigError(f"avfast: unknown command '{words[0]}': {hint}commands: {', '.join(commands)}")
        arguments, rest = parser.parse_known_args(words)
        run: Callable[[argparse.Namespace], int] | None = getattr(arguments, "run", None)
        if run is None:
            parser.print_help()
            return 0
        if unknown := [w for w in rest if w.startswith("-") or not hasattr(arguments, "overrides")]:
            options = [o for o in commands[arguments.command]._option_string_actions if o.startswith("--")]
            near = difflib.get_close_matches(unknown[0].split("=")[0], options, n=1, cutoff=0.5)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise ConfigError(f"avfast {arguments.command}: unknown argument '{unknown[0]}'{hint}")
        if rest:  # overrides that stood between options
            arguments.overrides = [*arguments.overrides, *rest]
        return run(arguments)
    except AvfastError as error:
        if said := _words_of(error):
            print("error:", printable(said, keep="\n"), file=sys.stderr)
        return getattr(error, "code", 2)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) went away; nothing is wrong with the run.
        sys.stderr.close()
        return 0
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if error.filename is None and not full:
            raise  # not about a file: the traceback is the message
        where = "" if error.filename is None else f": '{error.filename}'"
        print(f"error: {printable(f'{error.strerror or error}{where}')}", file=sys.stderr)
        return 3 if full else 2


def _words_of(error: AvfastError) -> str | None:
    """The message, or nothing where another of several processes prints it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return str(error)
    from avfast.engine.processes import words_to_print

    return words_to_print(error)


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = _Parser(
        prog="avfast", description="Fused ops and recipes for audio-visual and self-supervised pre-training"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    add("env", _env, "report what was built, what was found and what is missing on this machine")

    check = add("check", _check, "run every op against its reference here; print error, tolerance and backend")
    check.add_argument("--backend", help="check this backend; by default the one each op would choose")
    check.add_argument("--device", default="cpu", choices=("cpu", "cuda"))

    bench = add("bench", _bench, "time the ops against eager PyTorch and torch.compile")
    bench.add_argument("names", nargs="*", help="benchmarks to run; all without names")
    bench.add_argument("--json", type=Path, dest="json_path", metavar="FILE", help="write the numbers here")
    bench.add_argument("--quick", action="store_true", help="fewer shapes and repetitions")

    recipes = add("recipes", _recipes, "list the systems that can be trained: paper, one line, what each needs")
    recipes.add_argument("name", nargs="?", help="show the keys of this one")

    demo = add("demo", _demo, "make clips, scan, train, evaluate, and write one report; about two minutes")
    demo.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="folder to write (default: demo)")
    demo.add_argument(
        "--budget", default="120s", metavar="TIME", help="limit for training and its control (default: 120s)"
    )
    demo.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    demo.add_argument("--seed", type=int, default=0)

    data = add(
        "demo-data", _demo_data, "write clips (or scenes with masks) made of free photographs, sounds and digits"
    )
    data.add_argument("dir", type=Path, metavar="DIR")
    data.add_argument("--kind", choices=("clips", "labelled", "cutaways", "scenes"), default="clips")
    data.add_argument("--clips", type=int, help="how many clips; 160, of labelled ones 320")
    data.add_argument("--images", type=int, help="how many scenes; 1200")
    data.add_argument("--seed", type=int, default=0)
    data.add_argument("--faults", action="store_true", help="also write broken files of each kind")
    data.add_argument("--photos", type=Path, metavar="DIR", help="take pictures from here")
    data.add_argument("--sounds", type=Path, metavar="DIR", help="take recordings from here")

    scan = add("media-scan", _media_scan, "find files that cannot be trained on; status 1 if there are any")
    scan.add_argument("dir", metavar="DIR|SHARDS")
    scan.add_argument("--json", type=Path, dest="json_path", metavar="FILE", help="write the report here")
    scan.add_argument("--workers", type=int, default=2)
    scan.add_argument("--min-duration", type=float, default=1.0, metavar="SECONDS")

    shards = add("shards", _shards, "pack a folder, a list or a published set into tar shards, as webdataset has them")
    shards.add_argument("data", metavar="DIR|CSV|JSON")
    shards.add_argument("out", type=Path, metavar="OUT")
    shards.add_argument("--size", default="1GB", help="of a shard (default: 1GB)")
    shards.add_argument("--kind", choices=("clips", "images"), default="clips", help="what to look for in a folder")
    shards.add_argument("--seed", type=int, default=0, help="of the order inside the shards")

    bn_scan = add("bn-scan", _bn_scan, "find dead batch-norm channels in a checkpoint or a module")
    bn_scan.add_argument("target", metavar="CHECKPOINT|MODULE:CALLABLE")
    bn_scan.add_argument(
        "--threshold", type=float, default=1e-10, help="|gamma| and |beta| at or below (default 1e-10)"
    )
    bn_scan.add_argument("--plot", type=Path, metavar="PNG")
    bn_scan.add_argument("--json", type=Path, dest="json_path", metavar="FILE")

    train = add("pretrain", _pretrain, "train a recipe on a folder of clips or of images")
    _training_arguments(train)
    tune = add("finetune", _finetune, "run the stages of a recipe: each modality alone, then both; one report")
    _training_arguments(tune)

    again = add(
        "report", _report, "write the report of a run and its pictures again, from its folder alone; or compare several"
    )
    again.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="folder of a run, also one that is still going or was killed"
    )
    again.add_argument(
        "--out", type=Path, metavar="DIR|FILE.md", help="where to write (default: into the run's folder)"
    )

    draw = add(
        "generate", _generate, "draw pictures from sounds with a finished run of sound2scene; status 1 if some failed"
    )
    draw.add_argument(
        "--audio", type=Path, nargs="+", required=True, metavar="FILE",
        help="wav, mp3, ogg, flac, mp4, or a folder of them; any length and rate",
    )  # fmt: skip
    draw.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="folder of the run")
    draw.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to write: pictures, sheet and list"
    )
    draw.add_argument("--count", type=int, default=8, metavar="N", help="pictures of each sound (default: 8)")
    draw.add_argument("--seed", type=int, default=0, help="of the noise, which all sounds share")
    draw.add_argument("--gain", type=float, default=1.0, metavar="G", help="make the sounds louder or quieter")
    draw.add_argument("--mix", action="store_true", help="add all sounds to one scene")
    draw.add_argument("--with-image", type=Path, metavar="PICTURE", help="condition on this picture too")
    draw.add_argument("--share", type=float, metavar="T", help="share of the picture, 0 to 1 (default: 0.5)")
    draw.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    return parser, commands.choices


def _training_arguments(train: argparse.ArgumentParser) -> None:
    train.add_argument(
        "--recipe", required=True, metavar="NAME", help="a name from `avfast recipes`, which says what it needs"
    )
    train.add_argument(
        "--data", required=True, metavar="DIR|CSV|JSON|SHARDS|demo|labelled",
        help="clips or images, whichever the recipe needs (shards: 'DIR/{000..099}.tar'), 'demo' to make some, or "
        "'labelled': noisy clips of classes",
    )  # fmt: skip
    train.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: runs/NAME)")
    train.add_argument("--preset", metavar="NAME", help="named settings of the recipe, for instance the paper's")
    train.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML or JSON with sections data, optim, run, method"
    )
    train.add_argument("--budget", metavar="TIME", help="stop training (and its control) after, e.g. 60s or 10m")
    train.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    train.add_argument("--resume", metavar="auto|PATH", help="continue from the last checkpoint of --out, or from PATH")
    train.add_argument("--force", action="store_true", help="continue with a changed configuration, or overwrite a run")
    train.add_argument("--device", default="auto", metavar="auto|cpu|cuda")
    train.add_argument("--workers", type=int, metavar="N", help="loader processes; same as data.workers=N")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="for instance optim.lr=1e-3 run.steps=500")


def _env(arguments: argparse.Namespace) -> int:
    from avfast import env

    return env.main()


def _check(arguments: argparse.Namespace) -> int:
    import torch

    from avfast.testing import check_command

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("avfast check: --device cuda: this torch sees no CUDA device")
    return check_command(arguments.backend, arguments.device)


def _bench(arguments: argparse.Namespace) -> int:
    from avfast.benches.quick import bench_command
    from avfast.data.outputs import prepare_file

    prepare_file(arguments.json_path, "--json")
    try:
        return bench_command(arguments.names, json_path=arguments.json_path, quick=arguments.quick)
    except ValueError as error:
        raise ConfigError(f"avfast bench: {error}") from error


def _recipes(arguments: argparse.Namespace) -> int:
    from avfast.methods import PLANNED, get_method, recipe_names

    if arguments.name:
        from avfast.engine.config import describe_options

        print("\n".join(describe_options(arguments.name)))
        return 0
    names = recipe_names()
    for name in names:
        card = get_method(name).card
        print(f"{name}\n  {card.summary}\n  paper: {card.title}; {card.authors}; {card.venue}, arXiv {card.arxiv}")
        print(f"  needs: {card.needs}")
        if presets := get_method(name).presets:
            print(f"  presets: {', '.join(presets)}")
    if missing := [name for name in PLANNED if name not in names]:
        print(f"\nplanned, not in this version: {', '.join(missing)}")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from avfast.engine.demo import demo
    from avfast.engine.signals import parse_budget

    return demo(arguments.out, budget=parse_budget(arguments.budget), device=arguments.device, seed=arguments.seed)


def _demo_data(arguments: argparse.Namespace) -> int:
    from avfast.data.commands import demo_data_command

    return demo_data_command(
        arguments.dir, kind=arguments.kind, clips=arguments.clips, images=arguments.images, seed=arguments.seed,
        faults=arguments.faults, photos=arguments.photos, sounds=arguments.sounds,
    )  # fmt: skip


def _media_scan(arguments: argparse.Namespace) -> int:
    from avfast.data.commands import media_scan_command

    if arguments.workers < 0:
        raise ConfigError(f"avfast media-scan: --workers: expected 0 or more, got {arguments.workers}")
    if not 0 <= arguments.min_duration < float("inf"):
        raise ConfigError(f"avfast media-scan: --min-duration: expected seconds, got {arguments.min_duration}")
    return media_scan_command(
        arguments.dir,
        json_path=arguments.json_path,
        workers=arguments.workers,
        min_duration=arguments.min_duration,
    )


def _shards(arguments: argparse.Namespace) -> int:
    from avfast.data.commands import shards_command

    return shards_command(arguments.data, arguments.out, size=arguments.size, kind=arguments.kind, seed=arguments.seed)


def _bn_scan(arguments: argparse.Namespace) -> int:
    from avfast.data.outputs import prepare_file
    from avfast.nn.bn_scan_command import bn_scan_command

    if not 0 <= arguments.threshold < float("inf"):
        raise ConfigError(f"avfast bn-scan: --threshold: expected a number from 0 on, got {arguments.threshold}")
    prepare_file(arguments.json_path, "--json")
    prepare_file(arguments.plot, "--plot")
    return bn_scan_command(
        arguments.target, threshold=arguments.threshold, plot=arguments.plot, json_path=arguments.json_path
    )


def _request(arguments: argparse.Namespace) -> Request:
    from avfast.engine.pretrain import Request
    from avfast.engine.signals import parse_budget

    words = list(arguments.overrides)
    if arguments.workers is not None:
        words.append(f"data.workers={arguments.workers}")
    out = arguments.out
    if out is None and arguments.resume not in (None, "auto"):
        out = Path(arguments.resume).parent.parent  # RUN/checkpoints/last.pt
    return Request(
        recipe=arguments.recipe,
        data=arguments.data,
        out=out or Path("runs") / arguments.recipe,
        budget=parse_budget(arguments.budget),
        dry_run=arguments.dry_run,
        resume=arguments.resume,
        force=arguments.force,
        device=arguments.device,
        words=words,
        preset=arguments.preset,
        config_file=arguments.config,
    )


def _finetune(arguments: argparse.Namespace) -> int:
    from avfast.engine.finetune import finetune

    finetune(_request(arguments))
    return 0


def _pretrain(arguments: argparse.Namespace) -> int:
    from avfast.engine.pipelines import pipeline_of
    from avfast.engine.pretrain import pretrain

    request = _request(arguments)
    if (pipeline := pipeline_of(request)) is not None:
        pipeline(request)
        return 0
    summary = pretrain(request)
    if summary is not None:
        from avfast.engine.closing import closing_lines

        print("\n".join(closing_lines(summary, summary.out / "report.md")))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from avfast.engine.rebuild import report_command

    return report_command(arguments.runs, arguments.out)


def _generate(arguments: argparse.Namespace) -> int:
    from avfast.engine.scene.generate import generate
    from avfast.engine.scene.generate_options import GenerateOptions

    options = GenerateOptions(
        count=arguments.count, seed=arguments.seed, gain=arguments.gain, mix=arguments.mix,
        picture=arguments.with_image, share=arguments.share,
    )  # fmt: skip
    return generate(arguments.audio, arguments.checkpoint, arguments.out, options, device=arguments.device)
