"""A stage on a run, on a diffusers pipeline or on folders: what is refused and said before work begins.

Imported on use: torch and diffusers take seconds, `pelap --help` must not, nor what is wrong in parameters.
Without collections: they make half a million objects that stay, and looking through them again and again is
a quarter of those seconds.
"""

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

from pelap.core.errors import ConfigError
from pelap.core.garbage import no_garbage_collection


def run_stage(args: argparse.Namespace) -> None:
    """`pelap STAGE`."""
    from pelap.config.load import STAGE_KEYS, load_params, parse_overrides
    from pelap.config.rules import unused_by_run

    params = load_params(args.params, args.command, parse_overrides(args.overrides))
    with no_garbage_collection():
        from pelap.core.device import choose_device
        from pelap.core.files import check_writable
        from pelap.core.paths import RunPaths
        from pelap.stages.shared import Context

        stage = importlib.import_module(f"pelap.stages.{args.command}")
    check_writable(args.run)
    context = Context(params, RunPaths(args.run), args.data, choose_device(args.device))
    own = {name: getattr(args, name) for name in ("variant", "save_latents", "plan") if hasattr(args, name)}
    unused = unused_by_run(args.command, params, own.get("plan") is not None, own.get("variant"))
    _say_unused(f"by {args.command}", args, unused, STAGE_KEYS[args.command])
    stage.run(context, *own.values())


def run_pipeline(args: argparse.Namespace) -> None:
    """`pelap pipeline STAGE DIR`."""
    from pelap.config.load import PIPELINE_KEYS, USUAL, load_pipeline_params, parse_overrides
    from pelap.config.rules import unused_by_pipeline

    file = USUAL if args.params is None and USUAL.exists() else args.params
    params = load_pipeline_params(file, args.command, parse_overrides(args.overrides))
    if file is None:
        print(f"no {USUAL} here: all has its default, but for --set")
    with no_garbage_collection():
        from pelap.commands import pipelines
        from pelap.core.device import choose_device, protocol_beside
        from pelap.core.files import check_writable

    if getattr(args, "save_latents", None) is not None:
        check_writable(args.save_latents.parent)
    check_out(args.out, is_file=args.command in ("score", "evaluate"))
    device = choose_device(args.device)
    scored = args.command == "prune" and protocol_beside(args.scores).exists()
    unused = unused_by_pipeline(args.command, params, scored, getattr(args, "plan", None) is not None)
    _say_unused("for a pipeline", args, unused, PIPELINE_KEYS[args.command])
    given = (params, args.pipeline)
    if args.command == "score":
        pipelines.score_pipeline(*given, args.out, device, args.prompts, args.save_latents)
    elif args.command == "prune":
        pipelines.prune_pipeline(*given, args.scores, args.out, device, args.prompts, args.plan)
    elif args.command == "distill":
        pipelines.distill_pipeline(*given, args.teacher, args.data, args.out, device)
    else:
        pipelines.evaluate_pipelines(*given, args.data, args.out, device, args.prompts)


def compare_folders(args: argparse.Namespace) -> None:
    """`pelap evaluate --samples DIR`."""
    check_out(args.out, is_file=True)
    _say_unused("for folders", args)
    with no_garbage_collection():
        from pelap.commands.evaluate_folders import evaluate_folders
        from pelap.core.device import choose_device

    device, weights = choose_device(args.device), args.inception_weights
    evaluate_folders(args.samples, args.reference, args.extractor, args.out, device, weights, args.paired)


def check_out(out: Path, is_file: bool) -> None:
    """Refuse a place that cannot be written."""
    from pelap.core.files import check_writable

    check_writable(out.parent)
    if is_file and out.is_dir():
        raise ConfigError(f"--out {out}: is a folder; name a file")


def _say_unused(
    what: str, args: argparse.Namespace, unused: Sequence[str] = (), read: Sequence[str] = ()
) -> None:
    """Say what was given on the command line or in the parameters (of which `read` counts) for nothing."""
    values = {**vars(args), "set": args.overrides}
    given = [f"--{name}" for name, usual in args.idle.items() if values[name] != usual]
    keys = [word.partition("=")[0] for word in args.overrides] if read else []
    stray = [f"--set {key}" for key in keys if key.partition(".")[0] not in read]
    if given or unused or stray:
        print(f"not used {what}: {', '.join([*given, *unused, *stray])}")
