"""prune: scores to a plan, the plan to a smaller denoiser, and the time that it really saves."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from pelap.config import Params, PruneParams, ScoreParams
from pelap.config.upgrade import renamed, renamed_steps
from pelap.core import files
from pelap.core.device import protocol_beside
from pelap.core.errors import ConfigError, DataError, ModelError, PlanError, finite
from pelap.core.listing import listing
from pelap.core.progress import progress
from pelap.diffusion.denoiser import Denoiser
from pelap.diffusion.model_denoiser import model_denoiser
from pelap.pipelines.model_io import load_model, save_model
from pelap.pipelines.pipeline_denoiser import pipeline_denoiser
from pelap.pipelines.pipeline_io import open_pipeline, pipeline_plan, save_pipeline
from pelap.profiling.cost import count_params
from pelap.pruning.pruner import ModuleCost, Prepared, Pruner
from pelap.pruning.rounds import Method, TimeBudgetPlanner
from pelap.pruning.selection import check_scores, plan_of, single_operator_plans
from pelap.stages.shared import Context
from pelap.surgery.operators import is_inside
from pelap.surgery.plan import Plan, fingerprint
from pelap.surgery.pruned_reader import load_plan

WHOLE = "(whole denoiser)"
"""Row of the listing that holds the totals."""
CHANGES = "changes.csv"
RESULT = "result.json"
"""Names in a pruned pipeline's folder."""
NO_COST = ModuleCost(0, 0, 0.0)
SHORT = 0.05
"""Share of the time that a plan may fall short by before that is said."""
MAY_DIFFER = ("weights", "prompts", "num_prompts", "prompts_digest", "classes_digest")
"""What scores may be of and still say something of a model: it was tuned, or is asked for other things."""
PLAN_NAME = re.compile(r"[\w-][\w.-]*", re.ASCII)


class Pruned(NamedTuple):
    """What pruning gave."""

    network: nn.Module
    plan: Plan
    changes: pd.DataFrame
    """Before and after, operator by operator; see `_changes`."""
    result: dict[str, Any]
    """What was promised and what was measured."""


def run(context: Context, plan_file: Path | None = None) -> None:
    """Cut the scored variant's UNet.

    Args:
        context: Parameters, paths and device.
        plan_file: Apply this plan instead of making one from the scores.
    """
    paths = context.paths
    with files.exclusive(paths.prune):
        params, seed = _scored_with(paths.score_protocol)
        dense = load_model(paths.train(params.variant).model, context.device)
        denoiser = model_denoiser(dense, params.sampler, seed, params.num_seeds)
        _demand_scored_like(paths.score_protocol, denoiser)
        scores = _read_scores(paths.scores)
        check_scores(scores, denoiser.network)
        pruner = Pruner(denoiser, scores, params, seed)
        plans = _plans(pruner, context.params.prune, plan_file)
        pruned = _timed(pruner, {name: _prune(pruner, name, plan) for name, plan in plans.items()})
        with files.atomic_dir(paths.prune) as partial:
            for name, each in pruned.items():
                files.write_json(partial / paths.plans.name / f"{name}.json", each.plan.to_json())
                model = dense.with_unet(each.network, f"pruned-{name}", dense.info.ema_decay)
                save_model(model, partial / paths.pruned_models.name / name, each.plan)
            tables = [each.changes.assign(plan=name) for name, each in pruned.items()]
            changes = pd.concat(tables)[["plan", *tables[0].columns.drop("plan")]]
            files.write_csv(partial / paths.changes.name, changes)
            results = {name: each.result for name, each in pruned.items()}
            files.write_json(partial / paths.prune_result.name, results)
    for name, each in pruned.items():
        print(f"plan {name}:")
        _show(each)


def prune_pipeline(
    params: Params,
    folder: Path,
    scores_file: Path,
    out: Path,
    device: torch.device,
    prompts: Path | None = None,
    plan_file: Path | None = None,
) -> None:
    """Write a pipeline folder whose denoiser is cut, with the plan and the listing at its top.

    Args:
        params: The section `prune` is read; `seed` and `score` where the scores have no protocol beside them.
        folder: The pipeline.
        scores_file: Its scores, from `score_pipeline`.
        out: A new folder.
        device: Where to compute.
        prompts: One prompt a line, for text-to-image.
        plan_file: Apply this plan instead of making one from the scores.

    Raises:
        ConfigError: `out` holds something, or several amounts are given.
        PlanError: The scores or the plan are another model's, the target is out of reach, or what the plan
            leaves makes latents that are not finite.
        ModelError: The pipeline cannot be used, or is pruned already.
    """
    if pipeline_plan(folder) is not None:
        raise ModelError(
            f"{folder}: is pruned already; prune the dense pipeline with one plan that has all operators"
        )
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"--out {out}: is not empty; name a new folder, so that nothing is mixed or lost")
    if plan_file is None and len(params.prune.plans) + params.prune.single_operator_plans > 1:
        names = ", ".join(params.prune.plans)
        raise ConfigError(
            f"prune: asks for several plans ({names}; single_operator_plans: "
            f"{params.prune.single_operator_plans}); ask for one for each --out folder"
        )
    with files.exclusive(out):
        scores, protocol = _read_scores(scores_file), protocol_beside(scores_file)
        score, seed = _scored_with(protocol) if protocol.exists() else (params.score, params.seed)
        pipeline = open_pipeline(folder, score.sampler.steps, device, prompts)
        denoiser = pipeline_denoiser(pipeline, folder.name, seed, score.num_seeds)
        if protocol.exists():
            _demand_scored_like(protocol, denoiser)
        else:
            print(f"warning: no {protocol} says what the scores were made with; taken for parameters of now")
        check_scores(scores, denoiser.network)
        pruner = Pruner(denoiser, scores, score, seed)
        ((name, plan),) = _plans(pruner, params.prune, plan_file).items()
        pruned = _timed(pruner, {name: _prune(pruner, name, plan)})[name]
        pipeline.denoiser = pruned.network

        def write_more(partial: Path) -> None:
            files.write_csv(partial / CHANGES, pruned.changes)
            files.write_json(partial / RESULT, pruned.result)

        save_pipeline(pipeline.pipe, out, pruned.plan, write_more)
    _show(pruned)
    print(f"pruned pipeline in {out}")


def _scored_with(protocol_file: Path) -> tuple[ScoreParams, int]:
    """The parameters and the seed of a scoring: fits and times are to be the same."""
    protocol = renamed("score", files.read_mapping(protocol_file, ("seed",)))
    absent = [key for key in ScoreParams.model_fields if key not in protocol]
    if absent:
        raise DataError(f"{protocol_file}: lacks the keys {', '.join(absent)}; make it again")
    return ScoreParams(**{key: protocol[key] for key in ScoreParams.model_fields}), protocol["seed"]


def _read_scores(file: Path) -> pd.DataFrame:
    scores = files.read_csv(file)
    if "replacement" in scores:
        scores["replacement"] = scores["replacement"].map(renamed_steps, na_action="ignore")
    return scores


def _demand_scored_like(protocol_file: Path, denoiser: Denoiser) -> None:
    """Refuse scores of another sampling than the denoiser has now; say where prompts or weights differ."""
    scored = files.read_mapping(protocol_file)
    now = {"network": fingerprint(denoiser.network), **denoiser.protocol, "weights": denoiser.weights}
    differing = [
        name for name, value in now.items() if name in scored and _meant(scored[name]) != _meant(value)
    ]
    others = [name for name in differing if name not in MAY_DIFFER]
    if others:
        raise PlanError(
            f"{protocol_file}: the scores were made with another {', '.join(others)} than {denoiser.name} "
            "has now; score it again"
        )
    if differing:
        print(
            f"warning: the scores were made with other {', '.join(differing)} than {denoiser.name} has now; "
            "score it again, unless that is what you want"
        )


def _meant(value: Any) -> Any:
    """As JSON, without the notes that diffusers makes on where settings came from."""
    value = json.loads(json.dumps(value))
    if isinstance(value, dict):
        return {name: inner for name, inner in value.items() if not name.startswith("_")}
    return value


def _plans(pruner: Pruner, params: PruneParams, plan_file: Path | None) -> dict[str, Plan]:
    """Plans by name: what the parameters ask for, or the file's, which is called like it."""
    if plan_file is not None:
        if not PLAN_NAME.fullmatch(plan_file.stem):
            raise ConfigError(
                f"--plan {plan_file}: a plan is called like its file; use letters, digits, dots, - and _"
            )
        return {plan_file.stem: plan_of(pruner.scores, load_plan(plan_file))}
    planner = TimeBudgetPlanner(pruner.scores, pruner.saved, pruner.rescore, params.max_measurements)
    plans = {}
    with progress(f"prune {pruner.denoiser.name}", len(params.plans)) as report:
        for done, (name, wanted) in enumerate(params.plans.items(), start=1):
            method = Method(wanted.method.criterion, wanted.method.selection, wanted.method.iterative_step)
            plans[name] = planner.plan(method, params.target, wanted.amount)
            report(done, name)
    plans = {name: plan_of(pruner.scores, plan) for name, plan in plans.items()}
    return plans | {
        f"only-{name}": plan
        for name, plan in single_operator_plans(pruner.scores, params.single_operator_plans).items()
    }


def _prune(pruner: Pruner, name: str, plan: Plan) -> Pruned:
    prepared = pruner.prepare(plan)
    network = pruner.cut(prepared)
    joint = _joint_score(pruner, name, prepared)
    # A person may have chosen other replacements than those that were scored.
    saved = count_params(pruner.denoiser.network) - count_params(network)
    plan = dataclasses.replace(prepared.plan, num_params=saved)
    changes = _changes(pruner, network, plan)
    sizes = {"params_before": count_params(pruner.denoiser.network), "params_after": count_params(network)}
    return Pruned(network, plan, changes, _judged(pruner, prepared, joint) | sizes)


def _joint_score(pruner: Pruner, name: str, prepared: Prepared) -> float:
    """The score of a plan; one that breaks the network is refused, by the operators that do it alone."""
    names = {removal.operator for removal in prepared.plan.operators}
    scores = pruner.scores[pruner.scores["operator"].isin(names)]
    alone = scores.loc[~np.isfinite(scores["score"]), "operator"].to_list()
    return finite(
        pruner.joint_score(prepared),
        f"plan {name}: without its {len(names)} operators latents are not finite (black pictures)",
        f"leave out {', '.join(alone)}" if alone else "remove fewer of them",
        PlanError,
    )


def _judged(pruner: Pruner, prepared: Prepared, joint: float) -> dict[str, Any]:
    """Promises of a plan: its joint score, and what that would be, were its operators independent.

    None where the score of an operator is not finite.
    """
    names = [removal.operator for removal in prepared.plan.operators]
    single = pruner.scores.set_index("operator")["score"].loc[names]
    values = {
        "joint_score": joint,
        "sum_of_scores": float(single.sum()),
        "norm_of_scores": float(np.linalg.norm(single)),
    }
    finite = {name: value if np.isfinite(value) else None for name, value in values.items()}
    return {"num_operators": len(names), "promised_time_reduction": prepared.plan.time_reduction, **finite}


def _changes(pruner: Pruner, network: nn.Module, plan: Plan) -> pd.DataFrame:
    """Every scored operator before and after: action, parameters, MACs and milliseconds of one pass."""
    actions = {name: _action(name, plan) for name in pruner.scores["operator"]}
    there = [name for name, action in actions.items() if not action.startswith("gone")]
    sides = {"before": pruner.dense_costs, "after": pruner.module_costs(network, there)}
    rows = [
        {"operator": name or WHOLE, "action": action}
        | {
            f"{quantity}_{side}": costs.get(name, NO_COST)[position]
            for position, quantity in enumerate(ModuleCost._fields)
            for side, costs in sides.items()
        }
        for name, action in ({"": f"{len(plan.operators)} replaced"} | actions).items()
    ]
    return pd.DataFrame(rows)


def _action(name: str, plan: Plan) -> str:
    """``kept``, the replacement, or ``gone with`` the operator around it."""
    for removal in plan.operators:
        if removal.operator == name and removal.replacement is not None:
            return removal.replacement.name
        if is_inside(name, removal.operator):
            return f"gone with {removal.operator}"
    return "kept"


def _timed(pruner: Pruner, pruned: Mapping[str, Pruned]) -> dict[str, Pruned]:
    """The same with measured times: of the untouched network and of all plans, in turns."""
    dense, *times = pruner.times([pruner.denoiser.network, *(each.network for each in pruned.values())])
    return {
        name: each._replace(
            result=each.result
            | {
                "measured_time_reduction": 1 - time.least_ms / dense.least_ms,
                "latency_ms_before": dense.median_ms,
                "latency_ms_after": time.median_ms,
                "latency_batch_size": pruner.params.latency_batch_size,
            }
        )
        for (name, each), time in zip(pruned.items(), times, strict=True)
    }


def _show(pruned: Pruned) -> None:
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
    if result["measured_time_reduction"] < asked - SHORT:
        print(
            f"warning: asked for {asked:.1%}; another selection, or more prune.max_measurements, may "
            "come nearer"
        )
