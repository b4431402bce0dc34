"""The command line: paths here, numbers in params.yaml."""

import argparse
import importlib
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from pelap import __version__
from pelap.core.errors import ConfigError, PelapError, is_out_of_memory

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
DEFAULTS = {
    "run": Path("results/default"),
    "params": Path("params.yaml"),
    "data": Path("data"),
    "device": "auto",
}
UNUSED_BY_RUN = {
    "download": ("device",),
    "score": ("data",),
    "prune": ("data",),
    "report": ("data", "device"),
}
UNUSED_BY_PIPELINE = {"score": ("run", "data"), "prune": ("run", "data")}
UNUSED_BY_FOLDERS = ("run", "params", "data")
"""Options with a default that a command takes, for it takes them from all stages, and makes no use of."""
RESUMING = ("train", "score", "distill", "paper")
PIPELINE_OPTIONS = {
    "score": {"out": "FILE", "prompts": "FILE"},
    "prune": {"scores": "FILE", "out": "DIR", "prompts": "FILE"},
    "distill": {"teacher": "DIR", "out": "DIR"},
    "evaluate": {"out": "FILE", "prompts": "FILE"},
}
"""What stages that take a diffusers pipeline need with it; prompts only for text-to-image."""
FOLDER_OPTIONS = ("samples", "reference", "extractor", "inception_weights", "paired")
"""What `evaluate` takes to compare two folders of pictures."""
OPTION_HELP = {
    "prompts": "one prompt a line, for text-to-image",
    "scores": "its table of scores",
    "teacher": "the dense pipeline",
}
EXIT_ERROR = 2
EXIT_UNFINISHED = 3
"""Of `paper`, which ended by the clock: the same command goes on."""
EXIT_INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; tests freeze its options."""
    parser = argparse.ArgumentParser(
        prog="pelap",
        description="Masked latent diffusion models: explained, scored, pruned and distilled.",
        epilog="The stages, in order: " + ", ".join(STAGES) + ". `dvc repro` runs them all.",
    )
    parser.add_argument("--version", action="version", version=f"pelap {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for stage, help_text in STAGES.items():
        _add_stage(commands.add_parser(stage, help=help_text, description=_sentence(help_text)), stage)
    _add_sample(commands)
    _add_cut(commands)
    inputs = commands.add_parser("inputs", help="note the state of what the parameters name")
    inputs.add_argument("--params", type=Path, default=Path("params.yaml"), metavar="FILE")
    inputs.add_argument("--data", type=Path, default=Path("data"), metavar="DIR")
    show = commands.add_parser("show", help="print the table of a finished run and where its report is")
    show.add_argument("--run", type=Path, default=Path("results/default"), metavar="DIR", help="run folder")
    compare = commands.add_parser("compare", help="summarise a sweep over seeds and data sets")
    compare.add_argument("--sweep", type=Path, default=Path("results/sweep"), metavar="DIR")
    study = commands.add_parser("study", help="summarise the collapse study over seeds and data sets")
    study.add_argument("--root", type=Path, default=Path("results/collapse_study"), metavar="DIR")
    choosing = commands.add_parser("choosing", help="summarise the study of ways to choose operators")
    choosing.add_argument("--root", type=Path, default=Path("results/choosing"), metavar="DIR")
    tasks = commands.add_parser("tasks", help="summarise the tasks over their seeds")
    tasks.add_argument("--root", type=Path, default=Path("results/tasks"), metavar="DIR")
    for summary in (compare, study, choosing, tasks):
        cell = "TASK/DATASET/seedN" if summary is tasks else "DATASET/seedN"
        summary.add_argument("--cells", nargs="+", metavar=cell, help="these alone [all finished ones]")
    _add_paper(commands)
    return parser


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _add_stage(parser: argparse.ArgumentParser, stage: str) -> None:
    parser.set_defaults(stage=stage)
    parser.add_argument(
        "--run", type=Path, default=DEFAULTS["run"], metavar="DIR", help="run folder [%(default)s]"
    )
    parser.add_argument(
        "--params", type=Path, default=DEFAULTS["params"], metavar="FILE", help="parameters [%(default)s]"
    )
    parser.add_argument(
        "--data", type=Path, default=DEFAULTS["data"], metavar="DIR", help="packed data sets [%(default)s]"
    )
    _add_device(parser)
    if stage in PIPELINE_OPTIONS:
        _add_pipeline(parser, stage)
    if stage == "evaluate":
        _add_folders(parser)
    if stage == "score":
        parser.add_argument(
            "--save-latents",
            type=Path,
            metavar="FILE",
            help="safetensors file for the noise and the untouched model's latents",
        )
    if stage == "prune":
        parser.add_argument(
            "--plan", type=Path, metavar="FILE", help="apply this plan [one made from the scores]"
        )
    if stage == "train":
        parser.add_argument("--variant", metavar="NAME", help="just this one [every variant in turn]")


def _add_pipeline(parser: argparse.ArgumentParser, stage: str) -> None:
    group = parser.add_argument_group("a diffusers pipeline, instead of a run")
    several = "+" if stage == "evaluate" else None
    group.add_argument("--pipeline", type=Path, metavar="DIR", nargs=several, help="its folder")
    for option, metavar in PIPELINE_OPTIONS[stage].items():
        group.add_argument(
            f"--{option}", type=Path, metavar=metavar, help=OPTION_HELP.get(option, "what to write")
        )


def _add_folders(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("any two folders of pictures (and --out), instead of a run")
    group.add_argument("--samples", type=Path, metavar="DIR", help="PNG or JPEG files, also in folders below")
    group.add_argument("--reference", type=Path, metavar="DIR", help="what they are compared with")
    group.add_argument(
        "--extractor",
        nargs="+",
        metavar="NAME",
        help="effnet-lite0 (the default), inception-2015 (adds FID), or package.module:attribute",
    )
    group.add_argument(
        "--inception-weights",
        metavar="FILE",
        help="of inception-2015; `download` fetches them [$PELAP_INCEPTION_WEIGHTS]",
    )
    group.add_argument(
        "--paired",
        action="store_true",
        default=None,
        help="PSNR and SSIM of equally named pictures too",
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default=DEFAULTS["device"], choices=("auto", "cpu", "cuda", "mps"), help="[%(default)s]"
    )


def _add_sample(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    sample = commands.add_parser("sample", help="make pictures with any model or pipeline folder")
    sample.add_argument("--model", type=Path, required=True, metavar="DIR", help="its folder")
    sample.add_argument("--num", type=_positive, default=64, metavar="N", help="pictures [%(default)s]")
    sample.add_argument("--seed", type=_natural, default=0, metavar="S", help="[%(default)s]")
    sample.add_argument("--steps", type=_positive, default=50, metavar="N", help="steps [%(default)s]")
    sample.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the PNG files")
    sample.add_argument("--prompts", type=Path, metavar="FILE", help=OPTION_HELP["prompts"])
    _add_device(sample)


def _add_cut(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    cut = commands.add_parser("cut", help="cut the latent channels that a mask closed out of a model folder")
    cut.add_argument("--model", type=Path, required=True, metavar="DIR", help="model folder")
    cut.add_argument(
        "--data", type=Path, default=Path("data"), metavar="DIR", help="packed data sets [%(default)s]"
    )
    cut.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the smaller model")
    _add_device(cut)


def _add_paper(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    paper = commands.add_parser(
        "paper",
        help="run the paper's experiments over seeds, in pieces",
        description="Run every part of a study with every seed. What is finished is not run again.",
        epilog=f"Exit status: 0 all is finished, {EXIT_UNFINISHED} run the same command again.",
    )
    paper.add_argument(
        "--study", type=Path, default=Path("workflow/paper.yaml"), metavar="FILE", help="[%(default)s]"
    )
    paper.add_argument(
        "--root", type=Path, default=Path("results/paper"), metavar="DIR", help="results [%(default)s]"
    )
    paper.add_argument(
        "--data", type=Path, default=Path("data"), metavar="DIR", help="packed data sets [%(default)s]"
    )
    paper.add_argument("--dataset", metavar="NAME", help="instead of the study's")
    paper.add_argument(
        "--minutes",
        type=_minutes,
        metavar="M",
        help="end by itself in this time; 0: only tables and archive of what there is [no end]",
    )
    _add_device(paper)


def _minutes(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is no number of minutes")
    return value


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0, 2 for an error the user can mend, 130 when interrupted.

    `paper` has 3 too, when there is more to do.
    """
    started = time.monotonic()
    args = build_parser().parse_args(argv)
    try:
        if args.command == "paper":
            return _run_paper(args, started)
        _run(args)
    except PelapError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        where = "goes on from the last checkpoint" if args.command in RESUMING else "starts again"
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


def _run(args: argparse.Namespace) -> None:
    # Imported on use: torch and diffusers take seconds, `pelap --help` must not.
    if getattr(args, "pipeline", None):
        _run_on_pipeline(args)
    elif getattr(args, "samples", None):
        _run_on_folders(args)
    elif args.command in STAGES:
        _run_stage(args)
    elif args.command == "sample":
        from pelap.commands.sample import sample

        sample(args.model, args.num, args.seed, args.steps, args.out, args.device, args.prompts)
    elif args.command == "cut":
        from pelap.commands.remove_channels import cut

        cut(args.model, args.data, args.out, args.device)
    elif args.command == "show":
        from pelap.core.paths import RunPaths
        from pelap.stages.report import show

        show(RunPaths(args.run))
    elif args.command == "inputs":
        from pelap.datasets.inputs import inputs

        inputs(args.params, args.data)
    elif args.command == "study":
        from pelap.commands.studies import study

        study("collapse.summarise").study(args.root, args.cells)
    elif args.command == "choosing":
        from pelap.commands.studies import study

        study("choosing.summarise").choosing(args.root, args.cells)
    elif args.command == "tasks":
        from pelap.commands.studies import study

        study("tasks.summarise").tasks(args.root, args.cells)
    else:
        from pelap.commands.studies import study

        study("seeds.summarise").compare(args.sweep, args.cells)


def _run_paper(args: argparse.Namespace, started: float) -> int:
    from pelap.commands.paper import paper

    finished = paper(args.study, args.root, args.data, args.device, args.minutes, args.dataset, started)
    return 0 if finished else EXIT_UNFINISHED


def _run_on_folders(args: argparse.Namespace) -> None:
    missing = [f"--{option}" for option in ("reference", "out") if getattr(args, option) is None]
    if missing:
        raise ConfigError(f"--samples: also needs {' and '.join(missing)}")
    if args.prompts is not None:
        raise ConfigError("--prompts: goes with --pipeline DIR; leave it out")
    _check_out(args.out)
    _say_unused("for folders", args, UNUSED_BY_FOLDERS)
    from pelap.commands.evaluate_folders import DEFAULT_EXTRACTORS, evaluate_folders
    from pelap.core.device import choose_device

    evaluate_folders(
        args.samples,
        args.reference,
        args.extractor or DEFAULT_EXTRACTORS,
        args.out,
        choose_device(args.device),
        args.inception_weights,
        bool(args.paired),
    )


def _check_out(out: Path) -> None:
    """Refuse a place for a file that cannot be written."""
    from pelap.core.files import check_writable

    check_writable(out.parent)
    if out.is_dir():
        raise ConfigError(f"--out {out}: is a folder; name a file")


def _given(args: argparse.Namespace, options: Iterable[str]) -> list[str]:
    """Which of these options are on the command line, as they are written there."""
    return [f"--{name.replace('_', '-')}" for name in options if getattr(args, name, None) is not None]


def _say_unused(
    what: str, args: argparse.Namespace, options: Sequence[str], keys: Sequence[str] = ()
) -> None:
    """Say what was given on the command line or in the parameters and changes nothing."""
    given = [f"--{name}" for name in options if getattr(args, name) != DEFAULTS[name]]
    if given or keys:
        print(f"not used {what}: {', '.join([*given, *keys])}")


def _run_on_pipeline(args: argparse.Namespace) -> None:
    from pelap.config.load import load_pipeline_params
    from pelap.config.unused import unused_by_pipeline

    mixed = _given(args, FOLDER_OPTIONS)
    if mixed:
        raise ConfigError(
            f"{mixed[0]}: compares folders of pictures, --pipeline makes its own; give one of them"
        )
    needed = [option for option in PIPELINE_OPTIONS[args.command] if option != "prompts"]
    missing = [f"--{option}" for option in needed if getattr(args, option) is None]
    if missing:
        raise ConfigError(f"--pipeline: {args.command} also needs {' and '.join(missing)}")
    params = load_pipeline_params(args.params, args.command)
    from pelap.core.device import choose_device, protocol_beside
    from pelap.core.files import check_writable

    if getattr(args, "save_latents", None) is not None:
        check_writable(args.save_latents.parent)
    if args.command in ("score", "evaluate"):
        _check_out(args.out)
    check_writable(args.out.parent)
    device = choose_device(args.device)
    scored = args.command == "prune" and protocol_beside(args.scores).exists()
    unused = unused_by_pipeline(args.command, params, scored, getattr(args, "plan", None) is not None)
    _say_unused("for a pipeline", args, UNUSED_BY_PIPELINE.get(args.command, ("run",)), unused)
    if args.command == "score":
        from pelap.stages.score import score_pipeline

        score_pipeline(params, args.pipeline, args.out, device, args.prompts, args.save_latents)
    elif args.command == "prune":
        from pelap.stages.prune import prune_pipeline

        prune_pipeline(params, args.pipeline, args.scores, args.out, device, args.prompts, args.plan)
    elif args.command == "distill":
        from pelap.commands.distill_pipeline import distill_pipeline

        distill_pipeline(params, args.pipeline, args.teacher, args.data, args.out, device)
    else:
        from pelap.commands.evaluate_pipelines import evaluate_pipelines

        evaluate_pipelines(params, args.pipeline, args.data, args.out, device, args.prompts)


def _run_stage(args: argparse.Namespace) -> None:
    from pelap.config.load import load_params
    from pelap.config.unused import unused_by_run

    only_with = {"--samples": FOLDER_OPTIONS, "--pipeline": PIPELINE_OPTIONS.get(args.stage, ())}
    for needed, options in only_with.items():
        stray = _given(args, options)
        if stray:
            raise ConfigError(f"{stray[0]}: goes with {needed} DIR; add that, or leave this out")
    params = load_params(args.params, args.stage)
    from pelap.core.device import choose_device
    from pelap.core.files import check_writable
    from pelap.core.paths import RunPaths
    from pelap.stages.shared import Context

    check_writable(args.run)
    context = Context(params, RunPaths(args.run), args.data, choose_device(args.device))
    plan, variant = getattr(args, "plan", None), getattr(args, "variant", None)
    unused = unused_by_run(args.stage, params, plan is not None, variant)
    _say_unused(f"by {args.stage}", args, UNUSED_BY_RUN.get(args.stage, ()), unused)
    stage = importlib.import_module(f"pelap.stages.{args.stage}")
    if args.stage == "train":
        stage.run(context, args.variant)
    elif args.stage == "score":
        stage.run(context, args.save_latents)
    elif args.stage == "prune":
        stage.run(context, args.plan)
    else:
        stage.run(context)
