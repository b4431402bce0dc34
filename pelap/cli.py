"""The command line: paths here, numbers in params.yaml."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pelap import __version__
from pelap.commands.modes import DEFAULTS, FOLDERS, OWN, PIPELINE, run_pipeline, run_stage
from pelap.core.errors import PelapError, is_out_of_memory

EXIT_ERROR = 2
EXIT_UNFINISHED = 3  # of `paper`, which ended by the clock: the same command goes on
EXIT_INTERRUPTED = 130
RESUMING = ("train", "score", "distill", "paper")


def _number(least: float, kind: Callable[[str], float], what: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{value} is {what}")
        return value

    return parse


def _path(metavar: str, help_text: str, default: Path | None = None) -> dict[str, Any]:
    shown = f"{help_text} [%(default)s]" if default else help_text
    return {"type": Path, "metavar": metavar, "help": shown, "default": default}


POSITIVE, NATURAL = _number(1, int, "not positive"), _number(0, int, "negative")
DEVICES = ("auto", "cpu", "cuda", "mps")
OPTIONS: dict[str, dict[str, Any]] = {
    "run": _path("DIR", "run folder", DEFAULTS["run"]),
    "params": _path("FILE", "parameters", DEFAULTS["params"]),
    "set": {
        "dest": "overrides",
        "nargs": "+",
        "action": "extend",
        "default": [],
        "metavar": "KEY=VALUE",
        "help": "parameters that stand above the file's, as train.epochs=3",
    },
    "data": _path("DIR", "packed data sets", DEFAULTS["data"]),
    "device": {"choices": DEVICES, "default": DEFAULTS["device"], "help": "[%(default)s]"},
    "variant": {"metavar": "NAME", "help": "just this one [every variant in turn]"},
    "save-latents": _path("FILE", "safetensors file for the noise and the untouched model's latents"),
    "plan": _path("FILE", "apply this plan [one made from the scores]"),
    "pipeline": _path("DIR", "its folder"),
    "scores": _path("FILE", "its table of scores"),
    "teacher": _path("DIR", "the dense pipeline"),
    "prompts": _path("FILE", "one prompt a line, for text-to-image"),
    "out:file": _path("FILE", "what to write"),
    "out:folder": _path("DIR", "new folder for what is made"),
    "samples": _path("DIR", "PNG or JPEG files, also in folders below"),
    "reference": _path("DIR", "what they are compared with"),
    "extractor": {
        "nargs": "+",
        "metavar": "NAME",
        "help": "effnet-lite0 (the default), inception-2015 (adds FID), or package.module:attribute",
    },
    "inception-weights": {
        "metavar": "FILE",
        "help": "of inception-2015; `download` fetches them [$PELAP_INCEPTION_WEIGHTS]",
    },
    "paired": {
        "action": "store_true",
        "default": None,
        "help": "PSNR and SSIM of equally named pictures too",
    },
    "model": _path("DIR", "its folder"),
    "num": {"type": POSITIVE, "default": 64, "metavar": "N", "help": "pictures [%(default)s]"},
    "seed": {"type": NATURAL, "default": 0, "metavar": "S", "help": "[%(default)s]"},
    "steps": {"type": POSITIVE, "default": 50, "metavar": "N", "help": "steps [%(default)s]"},
    "sweep": _path("DIR", "its results", Path("results/sweep")),
    "root:collapse": _path("DIR", "its results", Path("results/collapse_study")),
    "root:choosing": _path("DIR", "its results", Path("results/choosing")),
    "root:tasks": _path("DIR", "its results", Path("results/tasks")),
    "root:paper": _path("DIR", "results", Path("results/paper")),
    "cells": {"nargs": "+", "metavar": "DATASET/seedN", "help": "these alone [all finished ones]"},
    "cells:tasks": {"nargs": "+", "metavar": "TASK/DATASET/seedN", "help": "these alone [all finished ones]"},
    "study": _path("FILE", "what to run", Path("workflow/paper.yaml")),
    "dataset": {"metavar": "NAME", "help": "instead of the study's"},
    "file": {"type": Path, "metavar": "FILE", "help": "a preset, or any parameter file"},
    "upgrade": {"action": "store_true", "help": "leave it as it is, but for names of version 0.1"},
    "minutes": {
        "type": _number(0, float, "no number of minutes"),
        "metavar": "M",
        "help": "end by itself in this time; 0: only tables and archive of what there is [no end]",
    },
}
"""Every option by its name; what stands behind a colon tells those of the same flag apart."""
POSITIONAL = ("file",)

STAGES = {
    "download": "fetch or make the data set and pack it into one file",
    "train": "train the variants: autoencoder, mask and UNet jointly",
    "collapse": "measure what each variant's mask did to its latents",
    "score": "LD-Pruner's score of every operator of one variant's UNet",
    "prune": "choose operators by score and cut them out",
    "distill": "fine-tune the pruned UNet with the dense one as teacher",
    "evaluate": "quality and cost of every model",
    "report": "one HTML page with tables, figures and pictures",
}


class Command(NamedTuple):
    """What `pelap NAME` is."""

    help: str
    options: str  # names in `OPTIONS`; `!`: needed
    call: Callable[[argparse.Namespace], int | None]


def _sample(args: argparse.Namespace) -> None:
    from pelap.commands.sample import sample

    sample(args.model, args.num, args.seed, args.steps, args.out, args.device, args.prompts)


def _remove_channels(args: argparse.Namespace) -> None:
    from pelap.commands.remove_channels import remove_channels

    remove_channels(args.model, args.data, args.out, args.device)


def _inputs(args: argparse.Namespace) -> None:
    from pelap.datasets.inputs import inputs

    inputs(args.params, args.data, args.overrides)


def _params(args: argparse.Namespace) -> None:
    from pelap.commands.params import params

    params(args.file, args.overrides, args.upgrade, args.out)


def _show(args: argparse.Namespace) -> None:
    from pelap.core.paths import RunPaths
    from pelap.stages.report import show

    show(RunPaths(args.run))


def _summary(args: argparse.Namespace) -> None:
    from pelap.commands.studies import summarise

    summarise(args.command, args.sweep if args.command == "compare" else args.root, args.cells)


def _paper(args: argparse.Namespace) -> int:
    from pelap.commands.paper import paper

    finished = paper(args.study, args.root, args.data, args.device, args.minutes, args.dataset, args.started)
    return 0 if finished else EXIT_UNFINISHED


MODELS = {
    "sample": Command(
        "make pictures with any model or pipeline folder",
        "model! num seed steps out:folder! prompts device",
        _sample,
    ),
    "remove-channels": Command(
        "cut the latent channels that a mask closed", "model! data out:folder! device", _remove_channels
    ),
}
STUDIES = {
    "show": Command("print the table of a finished run and where its report is", "run", _show),
    "params": Command(
        "print a parameter file with all that it leaves out", "file set upgrade out:file", _params
    ),
    "inputs": Command("note the state of what the parameters name", "params set data", _inputs),
    "compare": Command("summarise a sweep over seeds and data sets", "sweep cells", _summary),
    "study": Command(
        "summarise the collapse study over seeds and data sets", "root:collapse cells", _summary
    ),
    "choosing": Command("summarise the study of ways to choose operators", "root:choosing cells", _summary),
    "tasks": Command("summarise the tasks over their seeds", "root:tasks cells:tasks", _summary),
    "paper": Command(
        "run the paper's experiments over seeds, in pieces",
        "study root:paper data dataset minutes device",
        _paper,
    ),
}
ALIASES = {"remove-channels": ["cut"]}
EPILOGS = {
    "paper": f"Exit status: 0 all is finished, {EXIT_UNFINISHED} run the same command again.",
    "params": "For `dvc repro` with a preset: pelap params presets/study.yaml --out params.yaml",
}


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; tests freeze its options."""
    parser = argparse.ArgumentParser(
        prog="pelap",
        usage="pelap COMMAND ...        (pelap COMMAND --help tells its options)",
        description="Score, prune and distil diffusion models: your own, and those of two papers.",
        epilog=_overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pelap {__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, help=argparse.SUPPRESS, prog="pelap"
    )
    for name, command in (MODELS | STUDIES).items():
        about, note = _sentence(command.help), EPILOGS.get(name)
        each = commands.add_parser(name, aliases=ALIASES.get(name, []), description=about, epilog=note)
        each.set_defaults(call=command.call)
        _add(each, command.options)
    for stage, help_text in STAGES.items():
        _add_stage(commands.add_parser(stage, description=_sentence(help_text)), stage)
    pipeline = commands.add_parser("pipeline", description="A diffusers pipeline of your own, as a folder.")
    stages = pipeline.add_subparsers(dest="stage", metavar="STAGE", required=True)
    for stage, (help_text, options) in PIPELINE.items():
        each = stages.add_parser(stage, help=help_text, description=_sentence(help_text))
        each.set_defaults(call=run_pipeline)
        each.add_argument("pipeline", **OPTIONS["pipeline"], nargs="+" if stage == "evaluate" else None)
        _add(each, f"{options} params set device")
    return parser


def _overview() -> str:
    """All commands in groups."""
    groups = {
        "a diffusers pipeline of your own (in Python: import pelap)": {
            f"pipeline {stage}": help_text for stage, (help_text, _) in PIPELINE.items()
        },
        "any model, or any pictures": {name: command.help for name, command in MODELS.items()}
        | {"evaluate --samples": "compare two folders of pictures"},
        "the stages of a run, in order (`dvc repro` runs them all)": STAGES,
        "runs and studies": {name: command.help for name, command in STUDIES.items()},
    }
    lines = []
    for title, commands in groups.items():
        lines += [f"{title}:", *(f"  {name:<19}{text}" for name, text in commands.items()), ""]
    return "\n".join(lines)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _add(parser: "argparse._ActionsContainer", options: str, demand: bool = True) -> None:
    for option in options.split():
        name = option.removesuffix("!")
        needed: dict[str, Any] = {"required": True} if demand and name != option else {}
        flag = name if name in POSITIONAL else f"--{name.partition(':')[0]}"
        parser.add_argument(flag, **OPTIONS[name], **needed)


def _add_stage(parser: argparse.ArgumentParser, stage: str) -> None:
    own = f"run params set data device {OWN.get(stage, '')}".split()
    parser.set_defaults(stage=stage, call=run_stage)
    _add(parser, " ".join(own))
    if stage in PIPELINE:
        group = parser.add_argument_group(f"a diffusers pipeline, as `pelap pipeline {stage}`")
        group.add_argument("--pipeline", **OPTIONS["pipeline"], nargs="+" if stage == "evaluate" else None)
        _add(group, " ".join(each for each in PIPELINE[stage][1].split() if each not in own), demand=False)
    if stage == "evaluate":
        group = parser.add_argument_group("any two folders of pictures (and --out), instead of a run")
        _add(group, FOLDERS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0, 2 for an error the user can mend, 130 when interrupted.

    `paper` has 3 too, when there is more to do.
    """
    started = time.monotonic()
    args = build_parser().parse_args(argv, argparse.Namespace(started=started))
    try:
        return args.call(args) or 0
    except PelapError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        resumes = getattr(args, "stage", args.command) in RESUMING
        where = "goes on from the last checkpoint" if resumes else "starts again"
        print(f"pelap: interrupted; the same command {where}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return _fail(
            "out of memory; lower batch_size (and parallel_variants, latency_batch_sizes) of this stage's "
            "parameters"
        )
    except BrokenPipeError:
        # Whoever read the output has enough of it (`pelap prune ... | head`); nothing is left to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror}; check the path and the space left, then run again")
    return 0


def _fail(message: str) -> int:
    print(f"pelap: error: {' '.join(message.split())}", file=sys.stderr)
    return EXIT_ERROR
