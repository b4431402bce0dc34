"""prune: scores to a plan, the plan to a smaller denoiser, and the time that it really saves."""

from pathlib import Path

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from pelap.config import PruneParams, ScoreParams
from pelap.config.load import explain
from pelap.config.model import Seed
from pelap.config.upgrade import renamed, renamed_scores
from pelap.core import files
from pelap.core.digests import demand_unchanged, result_dir
from pelap.core.errors import ConfigError, DataError
from pelap.core.names import is_made_name
from pelap.core.tables import read_table
from pelap.core.terminal import listing
from pelap.diffusion.reverse import model_denoiser
from pelap.pipelines.pipeline_io import load_model, save_model
from pelap.pruning.pruner import Pruned, Pruner
from pelap.pruning.selection import plan_of
from pelap.stages.shared import Context
from pelap.surgery.plan import Plan, load_plan

SHORT = 0.05  # share of the time that a plan may fall short by before that is said


def run(context: Context, plan_file: Path | None = None) -> None:
    """Cut the scored variant's UNet.

    Args:
        context: Parameters, paths and device.
        plan_file: Apply this plan instead of making one from the scores.
    """
    paths = context.paths
    with files.exclusive(paths.prune):
        params, seed = scored_with(paths.score_protocol)
        dense = load_model(paths.train(params.variant).model, context.device)
        pruner = Pruner(model_denoiser(dense, params.sampler, seed, params.num_seeds), params, seed)
        scores = renamed_scores(read_table(paths.scores, paths.score_protocol))
        pruner.demand_own(scores, files.read_mapping(paths.score_protocol), str(paths.score_protocol))
        demand_unchanged(paths.score)
        pruned = pruner.apply_all(plans(pruner, scores, context.params.prune, plan_file), scores)
        with result_dir(paths.prune) as partial:
            for name, each in pruned.items():
                files.write_json(partial / paths.plans.name / f"{name}.json", each.plan.to_json())
                model = dense.with_unet(each.network, f"pruned-{name}", dense.info.ema_decay)
                save_model(model, partial / paths.pruned_models.name / name, each.plan)
            changes = pd.concat({name: each.changes for name, each in pruned.items()}, names=["plan", None])
            files.write_csv(partial / paths.changes.name, changes.reset_index("plan"))
            results = {name: each.result for name, each in pruned.items()}
            files.write_json(partial / paths.prune_result.name, results)
    for name, each in pruned.items():
        print(f"plan {name}:")
        show(each)


def scored_with(protocol_file: Path) -> tuple[ScoreParams, int]:
    """The parameters and the seed of a scoring: fits and times are to be the same."""
    protocol = renamed("score", files.read_mapping(protocol_file, ("seed",)))
    absent = [key for key in ScoreParams.model_fields if key not in protocol]
    if absent:
        raise DataError(f"{protocol_file}: lacks the keys {', '.join(absent)}; make it again")
    try:
        params = ScoreParams(**{name: protocol[name] for name in ScoreParams.model_fields})
        return params, TypeAdapter(Seed).validate_python(protocol["seed"])
    except ValidationError as error:
        raise DataError(f"{protocol_file}: {explain(error)}; score again") from None


def plans(
    pruner: Pruner, scores: pd.DataFrame, params: PruneParams, plan_file: Path | None
) -> dict[str, Plan]:
    """Plans by name: what the parameters ask for, or the file's, which is called like it."""
    if plan_file is None:
        return pruner.plans(scores, params)
    if not is_made_name(plan_file.stem):
        raise ConfigError(
            f"--plan {plan_file}: a plan is called like its file; use letters and digits, with dots, - and _ "
            "between them"
        )
    return {plan_file.stem: plan_of(scores, load_plan(plan_file))}


def show(pruned: Pruned) -> None:
    """The listing of what was changed, and the totals."""
    result = pruned.result
    print(*listing(pruned.changes), sep="\n")
    print(
        f"{len(pruned.plan.operators)} operators replaced; denoiser parameters "
        f"{result['params_before']:,} -> {result['params_after']:,};\ntime saved "
        f"{pruned.plan.time_reduction:.1%} by the scores, {result['measured_time_reduction']:.1%} measured "
        f"at batch {result['latency_batch_size']}"
    )
    asked = pruned.plan.target.get("time_reduction", 0.0)
    if asked and result["measured_time_reduction"] < asked - SHORT:
        print(
            f"warning: asked for {asked:.1%}; another selection, or more prune.max_measurements, may "
            "come nearer"
        )
