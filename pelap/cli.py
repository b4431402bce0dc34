"""The command line: paths here, numbers in params.yaml. What is refused and said before work begins."""

import argparse
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pelap import __version__
from pelap.commands.ending import end_of
from pelap.commands.modes import compare_folders, run_pipeline, run_stage
from pelap.core.errors import ConfigError

EXIT_UNFINISHED = 3  # of `paper`, which ended by the clock: the same command goes on
INF = float("inf")
RESUMING = ("train", "score", "distill", "paper")


def _number(
    least: float, kind: Callable[[str], float], what: str, most: float = 1e7
) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {'whole ' * (kind is int)}number") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value} is {'too large' if most < value < INF else what}")
        return value

    return parse


def _path(metavar: str, help_text: str, default: str | None = None) -> dict[str, Any]:
    shown = f"{help_text} [%(default)s]" if default else help_text
    return {"type": Path, "metavar": metavar, "help": shown, "default": Path(default) if default else None}


POSITIVE, SEED = _number(1, int, "not positive"), _number(0, int, "negative", 2**63 - 1)
# Every option by its name; what stands behind a colon tells those of the same flag apart.
OPTIONS: dict[str, dict[str, Any]] = {
    "run": _path("DIR", "run folder", "results/default"),
    "params": _path("FILE", "parameters", "params.yaml"),
    "params:pipeline": _path("FILE", "parameters [params.yaml, or the defaults where there is none]"),
    "set": {
        "dest": "overrides",
        "nargs": "+",
        "action": "extend",
        "default": [],
        "metavar": "KEY=VALUE",
        "help": "parameters that stand above the file's, as train.epochs=3",
    },
    "data": _path("DIR", "packed data sets", "data"),
    "device": {"choices": ("auto", "cpu", "cuda", "mps"), "default": "auto", "help": "[%(default)s]"},
    "variant": {"metavar": "NAME", "help": "just this one [every variant in turn]"},
    "save-latents": _path("FILE", "safetensors file for the noise and the untouched model's latents"),
    "plan": _path("FILE", "apply this plan [one made from the scores]"),
    "pipeline": _path("DIR", "its folder"),
    "pipeline:several": _path("DIR", "its folder") | {"nargs": "+"},
    "scores": _path("FILE", "its table of scores"),
    "teacher": _path("DIR", "the dense pipeline"),
    "prompts": _path("FILE", "one prompt a line, for text-to-image"),
    "out:file": _path("FILE", "what to write"),
    "out:folder": _path("DIR", "new folder for what is made"),
    "samples": _path("DIR", "PNG or JPEG files, also in folders below"),
    "reference": _path("DIR", "what they are compared with"),
    "extractor": {
        "nargs": "+",
        "default": ["effnet-lite0"],
        "metavar": "NAME",
        "help": "effnet-lite0 (the default), inception-2015 (adds FID), or package.module:attribute",
    },
    "inception-weights": {
        "metavar": "FILE",
        "help": "of inception-2015; `download` fetches them [$PELAP_INCEPTION_WEIGHTS]",
    },
    "paired": {"action": "store_true", "help": "PSNR and SSIM of equally named pictures too"},
    "model": _path("DIR", "its folder"),
    "num": {"type": POSITIVE, "default": 64, "metavar": "N", "help": "pictures [%(default)s]"},
    "seed": {"type": SEED, "default": 0, "metavar": "S", "help": "[%(default)s]"},
    "steps": {"type": POSITIVE, "default": 50, "metavar": "N", "help": "steps [%(default)s]"},
    "sweep": _path("DIR", "its results", "results/sweep") | {"dest": "root"},
    "root:collapse": _path("DIR", "its results", "results/collapse_study"),
    "root:choosing": _path("DIR", "its results", "results/choosing"),
    "root:tasks": _path("DIR", "its results", "results/tasks"),
    "root:paper": _path("DIR", "results", "results/paper"),
    "cells": {"nargs": "+", "metavar": "DATASET/seedN", "help": "these alone [all finished ones]"},
    "cells:tasks": {"nargs": "+", "metavar": "TASK/DATASET/seedN", "help": "these alone [all finished ones]"},
    "study": _path("FILE", "what to run", "workflow/paper.yaml"),
    "dataset": {"metavar": "NAME", "help": "instead of the study's"},
    "file": {"type": Path, "metavar": "FILE", "help": "a preset, or any parameter file"},
    "upgrade": {"action": "store_true", "help": "leave it as it is, but for names of version 0.1"},
    "minutes": {
        "type": _number(0, float, "no number of minutes"),
        "metavar": "M",
        "help": "end by itself in this time; 0: only tables and archive of what there is [no end]",
    },
}
POSITIONAL = ("file", "pipeline")
MARKS: dict[str, dict[str, Any]] = {"!": {"required": True}, "?": {"help": argparse.SUPPRESS}}


# --- what commands do but those of stages; imported on use, as in `modes`


def _model(args: argparse.Namespace) -> None:
    from pelap.commands import models

    if args.command == "sample":
        models.sample(args.model, args.num, args.seed, args.steps, args.out, args.device, args.prompts)
    else:
        models.remove_channels(args.model, args.data, args.out, args.device)


def _parameters(args: argparse.Namespace) -> None:
    if args.command == "inputs":
        from pelap.datasets.sources import inputs

        inputs(args.params, args.data, args.overrides)
    else:
        from pelap.commands.params import params

        params(args.file, args.overrides, args.upgrade, args.out)


def _show(args: argparse.Namespace) -> None:
    from pelap.core.paths import RunPaths
    from pelap.stages.report import show

    show(RunPaths(args.run))


def _study(args: argparse.Namespace) -> int:
    if args.command != "paper":
        from pelap.commands.studies import summarise

        summarise(args.command, args.root, args.cells)
        return 0
    from pelap.commands.paper import paper

    finished = paper(args.study, args.root, args.data, args.device, args.minutes, args.dataset, args.started)
    return 0 if finished else EXIT_UNFINISHED


# --- which commands there are: a line of help, and names in `OPTIONS`, of which `!` are needed, and `?` are
# taken, since the stage's other modes have them, and of no use

STAGES = {
    "download": ("fetch or make the data set and pack it into one file", "data device?"),
    "train": ("train the variants: autoencoder, mask and UNet jointly", "data device variant"),
    "collapse": ("measure what each variant's mask did to its latents", "data device"),
    "score": ("LD-Pruner's score of every operator of one variant's UNet", "data? device save-latents"),
    "prune": ("choose operators by score and cut them out", "data? device plan"),
    "distill": ("fine-tune the pruned UNet with the dense one as teacher", "data device"),
    "evaluate": ("quality and cost of every model", "data device"),
    "report": ("one HTML page with tables, figures and pictures", "data? device?"),
}
PIPELINE = {
    "score": ("score every operator of its denoiser", "pipeline out:file! prompts save-latents data?"),
    "prune": ("cut the least important operators out", "pipeline scores! out:folder! prompts plan data?"),
    "distill": ("train what is left, the dense one as teacher", "pipeline teacher! out:folder! data"),
    "evaluate": ("quality and cost of several, side by side", "pipeline:several out:file! prompts data"),
}
FOLDERS = "evaluate --samples"
MODELS = {
    "sample": (
        "make pictures with any model or pipeline folder",
        "model! num seed steps out:folder! prompts device",
    ),
    "remove-channels": ("cut the latent channels that a mask closed", "model! data out:folder! device"),
    FOLDERS: (
        "compare two folders of pictures",
        "samples! reference! out:file! extractor inception-weights paired device run? params? set? data?",
    ),
}
STUDIES = {
    "show": ("print the table of a finished run and where its report is", "run"),
    "params": ("print a parameter file with all that it leaves out", "file set upgrade out:file"),
    "inputs": ("note the state of what the parameters name", "params set data"),
    "compare": ("summarise a sweep over seeds and data sets", "sweep cells"),
    "study": ("summarise the collapse study over seeds and data sets", "root:collapse cells"),
    "choosing": ("summarise the study of ways to choose operators", "root:choosing cells"),
    "tasks": ("summarise the tasks over their seeds", "root:tasks cells:tasks"),
    "paper": (
        "run the paper's experiments over seeds, in pieces",
        "study root:paper data dataset minutes device",
    ),
}
CALLS = {
    **dict.fromkeys(STAGES, run_stage),
    **dict.fromkeys(MODELS, _model),
    FOLDERS: compare_folders,
    "show": _show,
    **dict.fromkeys(("params", "inputs"), _parameters),
    **dict.fromkeys(("compare", "study", "choosing", "tasks", "paper"), _study),
}
ALIASES = {"remove-channels": ["cut"]}
NOTES = {
    **{stage: f"With --pipeline DIR it is `pelap pipeline {stage} DIR`." for stage in PIPELINE},
    "evaluate": "With --pipeline DIR ... it is `pelap pipeline evaluate DIR ...`. With --samples DIR it "
    "compares any two folders of pictures: `pelap evaluate --samples --help`.",
    "paper": f"Exit status: 0 all is finished, {EXIT_UNFINISHED} run the same command again.",
    "params": "For `dvc repro` with a preset: pelap params presets/study.yaml --out params.yaml",
}


class _Parser(argparse.ArgumentParser):
    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        sys.stdout.flush()  # the help; to a full disk it fails here rather than when Python ends
        super().exit(status, message)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; tests freeze its options."""
    parser = _Parser(
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
    own = {name: (text, f"run params set {options}") for name, (text, options) in STAGES.items()}
    for name, (text, options) in (MODELS | STUDIES | own).items():
        each = commands.add_parser(
            name, description=_sentence(text), aliases=ALIASES.get(name, []), epilog=NOTES.get(name)
        )
        _add(each, options, CALLS[name])
    pipeline = commands.add_parser("pipeline", description="A diffusers pipeline of your own, as a folder.")
    stages = pipeline.add_subparsers(dest="command", metavar="STAGE", required=True)
    for name, (text, options) in PIPELINE.items():
        each = stages.add_parser(name, help=text, description=_sentence(text))
        _add(each, f"run? {options} params:pipeline set device", run_pipeline)
    return parser


def _overview() -> str:
    """All commands in groups."""
    groups = {
        "a diffusers pipeline of your own (in Python: import pelap)": {
            f"pipeline {stage}": command for stage, command in PIPELINE.items()
        },
        "any model, or any pictures": MODELS,
        "the stages of a run, in order (`dvc repro` runs them all)": STAGES,
        "runs and studies": STUDIES,
    }
    lines = []
    for title, commands in groups.items():
        lines += [f"{title}:", *(f"  {name:<19}{text}" for name, (text, _) in commands.items()), ""]
    return "\n".join(lines)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _add(parser: argparse.ArgumentParser, options: str, call: Callable[..., object]) -> None:
    idle = {each: OPTIONS[each]["default"] for each in re.findall(r"(\S+)\?", options)}
    parser.set_defaults(call=call, prog=parser.prog, idle=idle)
    for name, mark in re.findall(r"([^\s!?]+)(\S?)", options):
        flag = name.partition(":")[0]
        option = OPTIONS[name] | MARKS.get(mark, {})
        parser.add_argument(flag if flag in POSITIONAL else f"--{flag}", **option)


def _demand_command(words: Sequence[str]) -> None:
    """Refuse a command that there is not; argparse would list all, spellings of our own among them."""
    known = {"pipeline", *CALLS, *(name for names in ALIASES.values() for name in names)}
    named = next((word for word in words if not word.startswith("-")), None)
    if named is not None and named not in known:
        raise ConfigError(f"{named}: no such command; see pelap --help")


def _respelled(words: Sequence[str]) -> list[str]:
    """`pelap STAGE --pipeline DIR` as `pelap pipeline STAGE DIR`, and `evaluate` of folders as what it is."""
    if not words or words[0] not in PIPELINE:
        return [*words]
    stage, *rest = words
    modes = _Parser(prog=f"pelap {stage}", add_help=False, allow_abbrev=False)
    modes.add_argument("--pipeline", nargs="*")
    if stage == "evaluate":
        modes.add_argument("--samples", nargs="*")
    given, others = modes.parse_known_args(rest)
    if getattr(given, "samples", None) is None:
        return [*words] if given.pipeline is None else ["pipeline", stage, *given.pipeline, *others]
    if given.pipeline is not None:
        raise ConfigError(
            "--samples: compares folders of pictures, --pipeline makes its own; give one of them"
        )
    return [FOLDERS, *(["--samples", *given.samples] if given.samples else []), *others]


def _about_stray(args: argparse.Namespace, word: str) -> str:
    """What to say of an option that a command does not take: it may belong to another mode of the stage."""
    flag, stage = word.partition("=")[0], args.command.split()[0]
    modes = {"--pipeline DIR": PIPELINE.get(stage)}
    modes["--samples DIR"] = MODELS[FOLDERS] if stage == "evaluate" else None
    for mode, command in modes.items():
        names = re.findall(r"[^\s:!?]+", command[1]) if command else []
        if flag.removeprefix("--") in names:
            return f"{flag}: goes with {mode}; add that, or leave this out"
    return f"{word}: unknown; see {args.prog} --help"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is as `end_of` says, and 3 of a `paper` that has more to do."""
    words = sys.argv[1:] if argv is None else argv
    return end_of(lambda: _run(words), any(word in RESUMING for word in words[:2]))


def _run(words: Sequence[str]) -> int:
    started = time.monotonic()
    _demand_command(words)
    args, stray = build_parser().parse_known_args(_respelled(words), argparse.Namespace(started=started))
    if stray:
        raise ConfigError(_about_stray(args, stray[0]))
    return args.call(args) or 0
