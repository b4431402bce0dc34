"""A stage on a run, on a diffusers pipeline or on folders: what is refused and said before work begins."""

import argparse
import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pelap.core.errors import ConfigError

DEFAULTS: dict[str, Any] = {
    "run": Path("results/default"),
    "params": Path("params.yaml"),
    "data": Path("data"),
    "device": "auto",
}
OWN = {"train": "variant", "score": "save-latents", "prune": "plan"}
"""What a stage takes beside `run`, `params`, `data` and `device`."""
PIPELINE = {
    "score": ("score every operator of its denoiser", "out:file! prompts save-latents"),
    "prune": ("cut the least important operators out", "scores! out:folder! prompts plan"),
    "distill": ("train what is left, the dense one as teacher", "teacher! out:folder! data"),
    "evaluate": ("quality and cost of several, side by side", "out:file! prompts data"),
}
"""Stages for a user's diffusers pipeline; `!`: needed."""
FOLDERS = "samples reference extractor inception-weights paired"
"""What `evaluate` takes to compare two folders of pictures."""

UNUSED_BY_RUN = {"download": "device", "score": "data", "prune": "data", "report": "data device"}
UNUSED_BY_PIPELINE = {"score": "run data", "prune": "run data", "distill": "run", "evaluate": "run"}
UNUSED_BY_FOLDERS = "run params data"
"""Options with a default that a stage takes, for it takes them in all modes, and makes no use of in this."""


def run_stage(args: argparse.Namespace) -> None:
    """`pelap STAGE`, on whatever its options name."""
    # Imported on use: torch and diffusers take seconds, `pelap --help` must not.
    if getattr(args, "pipeline", None):
        return run_pipeline(args)
    if getattr(args, "samples", None):
        return _run_folders(args)
    from pelap.config.load import STAGE_KEYS, load_params, parse_overrides
    from pelap.config.rules import unused_by_run

    only_with = {"--samples": FOLDERS, "--pipeline": PIPELINE.get(args.stage, ("", ""))[1]}
    own = (OWN.get(args.stage), "data")
    for needed, options in only_with.items():
        stray = _given(args, (option for option in options.split() if option not in own))
        if stray:
            raise ConfigError(f"{stray[0]}: goes with {needed} DIR; add that, or leave this out")
    overrides = parse_overrides(args.overrides)
    params = load_params(args.params, args.stage, overrides)
    from pelap.core.device import choose_device
    from pelap.core.files import check_writable
    from pelap.core.paths import RunPaths
    from pelap.stages.shared import Context

    check_writable(args.run)
    context = Context(params, RunPaths(args.run), args.data, choose_device(args.device))
    plan, variant = getattr(args, "plan", None), getattr(args, "variant", None)
    unused = unused_by_run(args.stage, params, plan is not None, variant)
    unused += _not_among(STAGE_KEYS[args.stage], overrides)
    _say_unused(f"by {args.stage}", args, UNUSED_BY_RUN.get(args.stage, ""), unused)
    more = [getattr(args, OWN[args.stage].replace("-", "_"))] if args.stage in OWN else []
    importlib.import_module(f"pelap.stages.{args.stage}").run(context, *more)


def _run_folders(args: argparse.Namespace) -> None:
    _demand(args, "--samples", ("reference", "out"))
    if args.prompts is not None:
        raise ConfigError("--prompts: goes with --pipeline DIR; leave it out")
    _check_out(args.out)
    _say_unused("for folders", args, UNUSED_BY_FOLDERS)
    from pelap.commands.evaluate_folders import DEFAULT_EXTRACTORS, evaluate_folders
    from pelap.core.device import choose_device

    extractors, device = args.extractor or DEFAULT_EXTRACTORS, choose_device(args.device)
    weights, paired = args.inception_weights, bool(args.paired)
    evaluate_folders(args.samples, args.reference, extractors, args.out, device, weights, paired)


def run_pipeline(args: argparse.Namespace) -> None:
    """`pelap pipeline STAGE DIR`."""
    from pelap.config.load import PIPELINE_KEYS, load_pipeline_params, parse_overrides
    from pelap.config.rules import unused_by_pipeline

    mixed = _given(args, FOLDERS.split())
    if mixed:
        raise ConfigError(
            f"{mixed[0]}: compares folders of pictures, --pipeline makes its own; give one of them"
        )
    needed = [each.partition(":")[0].rstrip("!") for each in PIPELINE[args.stage][1].split() if "!" in each]
    _demand(args, "--pipeline", needed, f"{args.stage} also needs")
    overrides = parse_overrides(args.overrides)
    params = load_pipeline_params(args.params, args.stage, overrides)
    from pelap.core.device import choose_device, protocol_beside
    from pelap.core.files import check_writable

    if getattr(args, "save_latents", None) is not None:
        check_writable(args.save_latents.parent)
    if args.stage in ("score", "evaluate"):
        _check_out(args.out)
    check_writable(args.out.parent)
    device = choose_device(args.device)
    scored = args.stage == "prune" and protocol_beside(args.scores).exists()
    unused = unused_by_pipeline(args.stage, params, scored, getattr(args, "plan", None) is not None)
    unused += _not_among(PIPELINE_KEYS[args.stage], overrides)
    _say_unused("for a pipeline", args, UNUSED_BY_PIPELINE[args.stage], unused)
    if args.stage == "score":
        from pelap.commands.pipelines import score_pipeline

        score_pipeline(params, args.pipeline, args.out, device, args.prompts, args.save_latents)
    elif args.stage == "prune":
        from pelap.commands.pipelines import prune_pipeline

        prune_pipeline(params, args.pipeline, args.scores, args.out, device, args.prompts, args.plan)
    elif args.stage == "distill":
        from pelap.commands.distill_pipeline import distill_pipeline

        distill_pipeline(params, args.pipeline, args.teacher, args.data, args.out, device)
    else:
        from pelap.commands.evaluate_pipelines import evaluate_pipelines

        evaluate_pipelines(params, args.pipeline, args.data, args.out, device, args.prompts)


def _demand(args: argparse.Namespace, mode: str, options: Iterable[str], words: str = "also needs") -> None:
    missing = [f"--{option}" for option in options if getattr(args, option) is None]
    if missing:
        raise ConfigError(f"{mode}: {words} {' and '.join(missing)}")


def _check_out(out: Path) -> None:
    """Refuse a place for a file that cannot be written."""
    from pelap.core.files import check_writable

    check_writable(out.parent)
    if out.is_dir():
        raise ConfigError(f"--out {out}: is a folder; name a file")


def _given(args: argparse.Namespace, options: Iterable[str]) -> list[str]:
    """Which of these options are on the command line, as they are written there."""
    flags = [option.partition(":")[0].rstrip("!") for option in options]
    return [f"--{flag}" for flag in flags if getattr(args, flag.replace("-", "_"), None) is not None]


def _not_among(keys: Sequence[str], overrides: Iterable[str]) -> list[str]:
    """What --set gives that the stage does not read."""
    return [f"--set {key}" for key in overrides if key.partition(".")[0] not in keys]


def _say_unused(what: str, args: argparse.Namespace, options: str, keys: Sequence[str] = ()) -> None:
    """Say what was given on the command line or in the parameters and changes nothing."""
    usual = {name: DEFAULTS[name] for name in options.split()}
    given = [f"--{name}" for name, value in usual.items() if getattr(args, name, value) != value]
    if given or keys:
        print(f"not used {what}: {', '.join([*given, *keys])}")
