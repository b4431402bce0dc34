"""Score a model's operators, choose some, and take them out of a copy."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pelap.api.models import (
    Model,
    demand_dense,
    denoiser_for,
    is_of,
    name_of,
    opened,
    prints_as_warnings,
    sampler_of,
    save,
    section,
    warn_of_unused,
    with_denoiser,
)
from pelap.api.results import PruningPlan, Scores, read_plan
from pelap.config import PruneParams, ScoreParams
from pelap.core.device import protocol_beside
from pelap.core.tables import read_table
from pelap.pruning.pruner import Pruner
from pelap.pruning.selection import make_plan as choose_operators
from pelap.pruning.selection import plan_of
from pelap.surgery.plan import Plan


def score(
    model: Model,
    *,
    prompts: Sequence[str] | None = None,
    num_latents: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    progress: bool = False,
    out: str | Path | None = None,
    **settings: Any,
) -> Scores:
    """Score every operator of a model's denoiser: how much latents change without it, and what it costs.

    Args:
        model: Its weights keep their values; those of 2-D convolutions are laid out channels-last in memory,
            which kernels are fastest with, and stay so.
        prompts: For text-to-image: latents of each seed go through them, from the first again after the last.
        num_latents: How many are compared; more make scores more certain.
        steps: Of the pipeline's own scheduler, or of DDIM.
        seed: Names all random numbers.
        progress: Show how far it is.
        out: CSV file for the table, its protocol beside it.
        settings: Further keys of the section `score`, e.g. ``batch_size``, ``num_seeds``, ``early_stop``.

    Raises:
        ConfigError: A setting is unknown or out of range, or prompts are missing or out of place.
        ModelError: The model cannot be used, or gives other latents the next time.
    """
    sampler = sampler_of(steps)
    params = section(ScoreParams, "score", settings, num_latents=num_latents, sampler=sampler)
    with prints_as_warnings(progress):
        scored = opened(model)
        warn_of_unused("score", params, settings, [scored])
        pruner = Pruner(denoiser_for(scored, prompts, params, seed), params, seed)
        found = pruner.score()
    scores = Scores(found.table, found.protocol, tuple(prompts or ()), pruner)
    if out is not None:
        scores.save(out)
    return scores


def make_plan(
    scores: Scores | pd.DataFrame | str | Path,
    *,
    time_reduction: float | None = None,
    num_params: int | None = None,
    num_operators: int | None = None,
    method: str = "knapsack",
    criterion: str = "score",
    iterative_step: float | None = None,
    max_measurements: int | None = None,
    progress: bool = False,
) -> PruningPlan:
    """Choose operators to remove, for one of the three targets.

    A time is measured by the clock where the scores know their model, as those of `score` do; of a table
    alone the sum of the operators' times is believed, and a plan mostly saves less than that.

    Args:
        scores: Of `score`, or a table, or its CSV file.
        time_reduction: Share of the denoiser's time to save, 0..1; 0.25 where no target is given.
        num_params: Parameters to remove.
        num_operators: Operators to remove.
        method: ``knapsack`` (the set of least importance that saves enough, the best at equal time in
            docs/choosing.md), ``lowest_first`` (LD-Pruner's) or ``per_ms``.
        criterion: ``score``, a formula of it, or a column of the table.
        iterative_step: Share of the time after whose removal the rest is scored again; None: never.
        max_measurements: Plans to time at most; None: 5.
        progress: Show how far it is.

    Raises:
        ConfigError: A setting is out of range.
        PlanError: The target is out of reach.
    """
    if not isinstance(scores, Scores):
        if not isinstance(scores, pd.DataFrame):
            scores = read_table(Path(scores), protocol_beside(Path(scores)))
        scores = Scores(scores, {})
    amounts = {"time_reduction": time_reduction, "num_params": num_params, "num_operators": num_operators}
    given: dict[str, Any] = {name: [value] for name, value in amounts.items() if value is not None}
    if given:
        given = dict.fromkeys(amounts) | given
    if max_measurements is not None:
        given["max_measurements"] = max_measurements
    way = {"criterion": criterion, "selection": method, "iterative_step": iterative_step}
    params = section(PruneParams, "make_plan", given, methods={"plan": way})
    (wanted,) = params.plans.values()
    with prints_as_warnings(progress):
        if scores.pruner is None:
            how = criterion, wanted.method.selection
            plan = choose_operators(scores.table, params.target, wanted.amount, *how)
            return PruningPlan(plan_of(scores.table, plan), scores)
        (plan,) = scores.pruner.plans(scores.table, params).values()
        return PruningPlan(plan, scores, scores.pruner.saved(plan))


def prune(
    model: Model,
    plan: PruningPlan | Plan | Mapping[str, Any] | Sequence[str] | str | Path,
    *,
    prompts: Sequence[str] | None = None,
    steps: int | None = None,
    seed: int | None = None,
    progress: bool = False,
    out: str | Path | None = None,
    **settings: Any,
) -> Any:
    """Take a plan's operators out of a copy of a model's denoiser.

    Replacements are fitted to what the denoiser is given while it samples; how it does is as in the scores
    that the plan was made from, unless said otherwise.

    Args:
        model: It is left as it is.
        plan: Of `make_plan`; or its file, such an object as that holds, or the names of operators.
        prompts: For text-to-image.
        steps: Of the pipeline's own scheduler, or of DDIM.
        seed: Names all random numbers.
        progress: Show how far it is.
        out: New folder to save it to.
        settings: Further keys of the section `score`.

    Returns:
        A pipeline (or model) of the same class, which shares all but the denoiser and the scheduler with
        `model`. Its `save_pretrained` works, and `load_pipeline` opens what that wrote.

    Raises:
        PlanError: The plan is another model's, or leaves latents that are not finite.
        ModelError: The model is pruned already, or cannot be used.
    """
    dense, made = opened(model), read_plan(plan)
    demand_dense(dense, "prune the dense one with one plan that has all operators")
    changed = bool(settings) or any(each is not None for each in (prompts, steps, seed))
    with prints_as_warnings(progress):
        pruner = None if made.scores is None or changed else made.scores.pruner
        if pruner is None or not is_of(pruner.denoiser, dense):
            how = {name: value for name, value in made.how.items() if name in ScoreParams.model_fields}
            sampler = {"sampler": sampler_of(steps)} if steps is not None else {}
            params = section(ScoreParams, "prune", how | settings | sampler)
            warn_of_unused("prune", params, settings, [dense])
            at = made.how.get("seed", 0) if seed is None else seed
            asked = prompts or made.how.get("prompts") or None
            pruner = Pruner(denoiser_for(dense, asked, params, at), params, at)
        pruned = pruner.apply(made.plan, None if made.scores is None else made.scores.table)
    small = with_denoiser(dense, pruned.network, f"pruned-{name_of(dense)}")
    if out is not None:
        save(small, out)
    return small
