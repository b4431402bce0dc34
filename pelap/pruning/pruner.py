"""From scores to plans, and from plans to networks, of one denoiser."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from pelap.config import PruneParams
from pelap.core import files
from pelap.core.device import full_precision
from pelap.core.errors import PlanError, finite
from pelap.core.terminal import progress
from pelap.profiling.cost import count_params
from pelap.profiling.latency import Latency, measure_latency
from pelap.pruning.rounds import TimeBudgetPlanner
from pelap.pruning.selection import check_scores, plan_of, single_operator_plans
from pelap.scoring.score import MEND, ORIGINAL, ORIGINALS, LatentStore
from pelap.scoring.scorer import Scorer
from pelap.scoring.statistic import change_of
from pelap.surgery.apply import apply_plan
from pelap.surgery.operators import MISFITS, is_inside, swapped_modules
from pelap.surgery.plan import Plan, complete_plan
from pelap.surgery.replacements import Replacement

WHOLE = "(whole denoiser)"  # row of a table of changes that holds the totals
MAY_DIFFER = ("weights", "prompts", "num_prompts", "prompts_digest", "classes_digest")
"""What scores may be of and still say something of a model: it was tuned, or is asked for other things."""


class Prepared(NamedTuple):
    """A plan with everything filled in, and the weights of what it puts in."""

    plan: Plan
    replacements: dict[str, Replacement]


class Pruned(NamedTuple):
    """What pruning gave."""

    network: nn.Module
    plan: Plan
    changes: pd.DataFrame
    """Every operator before and after: action, parameters, MACs and milliseconds of one pass."""
    result: dict[str, Any]  # what was promised and what was measured, as JSON


class Pruner(Scorer):
    """A denoiser with all that its scores and plans are made from and judged by, each made once.

    ``scores = pruner.score()``, then ``pruner.plans(scores.table, params)``, then ``pruner.apply(plan)``. The
    denoiser keeps its network.
    """

    def demand_own(self, scores: pd.DataFrame, protocol: Mapping[str, Any], where: str) -> None:
        """Refuse scores of another network or sampling than this one's; say where prompts or weights differ.

        Args:
            scores: The table.
            protocol: What is known of how it was made; empty: nothing.
            where: Names the protocol in messages.

        Raises:
            PlanError: They are another's.
        """
        name, now = self.denoiser.name, self.made_with
        differing = [part for part in now if part in protocol and _plain(protocol[part]) != _plain(now[part])]
        others = [part for part in differing if part not in MAY_DIFFER]
        if others:
            raise PlanError(
                f"{where}: the scores were made with another {', '.join(others)} than {name} has now; score "
                "it again"
            )
        if differing:
            print(
                f"warning: the scores were made with other {', '.join(differing)} than {name} has now; score "
                "it again, unless that is what you want"
            )
        check_scores(scores, self.denoiser.network)

    def plans(self, scores: pd.DataFrame, params: PruneParams) -> dict[str, Plan]:
        """Plans by name, all that the section `prune` asks for.

        Raises:
            PlanError: A target is out of reach.
        """
        score_rest = partial(self.score_rest, list(scores["operator"]))
        planner = TimeBudgetPlanner(scores, self.saved, score_rest, params.max_measurements)
        plans = {}
        with progress(f"prune {self.denoiser.name}", len(params.plans)) as report:
            for done, (name, wanted) in enumerate(params.plans.items(), start=1):
                plan = planner.plan(wanted.method, params.target, wanted.amount)
                plans[name] = plan_of(scores, plan)
                report(done, name)
        single_plans = single_operator_plans(scores, params.single_operator_plans)
        return plans | {f"only-{name}": plan for name, plan in single_plans.items()}

    def apply(self, plan: Plan, scores: pd.DataFrame | None = None) -> Pruned:
        """The network without a plan's operators; see `apply_all`."""
        return self.apply_all({"of one network": plan}, scores)["of one network"]

    def apply_all(self, plans: Mapping[str, Plan], scores: pd.DataFrame | None = None) -> dict[str, Pruned]:
        """Networks without the operators of plans, by name; they are timed in turns, with the untouched one.

        Args:
            plans: Their entries may be bare names.
            scores: Of this denoiser: then results tell what single scores promised, and the tables of changes
                have the rows of this table.

        Raises:
            PlanError: A plan names what cannot be replaced here, its removals do not go together, or what it
                leaves makes latents that are not finite.
        """
        known = [operator.name for operator in self.operators] if scores is None else list(scores["operator"])
        by_name = pd.Series(dtype=float) if scores is None else scores.set_index("operator")["score"]
        dense = self.denoiser.network
        costs = self.module_costs(dense, known)
        pruned = {}
        for name, plan in plans.items():
            prepared = self.prepare(plan)
            network = self.cut(prepared)
            promises = self._promises(name, prepared, by_name)
            # A person may have chosen other replacements than those that were scored.
            saved = count_params(dense) - count_params(network)
            plan = dataclasses.replace(prepared.plan, num_params=saved)
            sizes = {"params_before": count_params(dense), "params_after": count_params(network)}
            pruned[name] = Pruned(network, plan, self._changes(costs, network, plan), promises | sizes)
        before, *after = self.times([dense, *(each.network for each in pruned.values())])
        for each, time in zip(pruned.values(), after, strict=True):
            each.result.update(
                measured_time_reduction=1 - time.least_ms / before.least_ms,
                latency_ms_before=before.median_ms,
                latency_ms_after=time.median_ms,
                latency_batch_size=self.params.latency_batch_size,
            )
        return pruned

    def prepare(self, plan: Plan) -> Prepared:
        """Fill in a plan for this network, see `complete_plan`, and fit its replacements."""
        operators = self.find([each.operator for each in plan.operators])
        found = {operator.name: operator for operator in operators}
        plan = complete_plan(plan, self.denoiser.network, operators)
        wanted = [
            dataclasses.replace(found[entry.operator], replacement=entry.replacement)
            for entry in plan.operators
            if entry.replacement is not None
        ]
        return Prepared(plan, self.fit(wanted))

    def cut(self, prepared: Prepared) -> nn.Module:
        """The network without the operators of a plan, in evaluation mode.

        Raises:
            PlanError: Removals that are possible one by one do not go together.
        """
        network = apply_plan(self.denoiser.network, prepared.plan, prepared.replacements).eval()
        try:
            self.denoiser.forward(2, network)()
        except MISFITS as error:
            raise PlanError(
                f"plan: the network does not run with these replacements ({files.one_line(error)}); drop "
                "entries, one by one, to find which"
            ) from None
        return network

    def times(self, networks: Sequence[nn.Module]) -> list[Latency]:
        """Of one pass of each; they are timed in turns, so that a busy machine slows all alike."""
        size, repeats = self.params.latency_batch_size, self.params.latency_repeats
        passes = {place: self.denoiser.forward(size, network) for place, network in enumerate(networks)}
        found = measure_latency(passes, self.denoiser.device, repeats)
        return [found[place] for place in passes]

    def saved(self, plan: Plan) -> float:
        """Share of the network's time that a plan saves, by the clock: of the least times."""
        dense, pruned = self.times([self.denoiser.network, self.cut(self.prepare(plan))])
        return 1 - pruned.least_ms / dense.least_ms

    @cached_property
    def original(self) -> torch.Tensor:
        """Latents of the untouched network (N, ...) on the CPU, which scores compare with."""
        with full_precision():
            return finite(self.latents().cpu(), ORIGINALS, MEND)

    def joint_score(self, prepared: Prepared) -> float:
        """The score of a plan: as that of an operator, with all of its operators replaced at once.

        Infinite where latents without them are not finite.
        """
        original = self.original
        with swapped_modules(self.denoiser.network, prepared.replacements), full_precision():
            return change_of(original, self.latents().cpu()).score(self.params.formula)

    def score_rest(self, names: Sequence[str], plan: Plan) -> pd.DataFrame:
        """Scores of what a plan leaves of the named operators, for one more to be removed.

        Returns:
            The columns of a table of scores; `score` is how much the joint score rises with the operator, it
            may be negative. Shares are of the untouched network's time. No row where nothing is left.

        Raises:
            PlanError: Without the plan's operators there is nothing finite to compare with.
        """
        prepared = self.prepare(plan)
        joint = self.joint_score(prepared)
        if not math.isfinite(joint):
            raise PlanError(
                f"prune: latents without {len(plan.operators)} operators are not finite, so that the rest "
                "cannot be scored; ask for less, or leave out iterative_step"
            )
        gone = [entry.operator for entry in plan.operators]
        left = [name for name in names if not any(name == each or is_inside(name, each) for each in gone)]
        if not left:
            return pd.DataFrame()
        operators = self.find(left)
        replacements = self.fit(operators)
        kept = 1 - self.saved(plan)
        store = LatentStore()
        store.put(ORIGINAL, 0, self.original)
        with swapped_modules(self.denoiser.network, prepared.replacements):
            table = self.score_these(operators, replacements, store, f" without {len(gone)}").table
        shares = {name: kept * table[name] for name in ("latency_share", "replacement_share")}
        return table.assign(score=table["score"] - joint, **shares)

    def _promises(self, name: str, prepared: Prepared, scores: "pd.Series[float]") -> dict[str, Any]:
        """A plan's joint score, and what that would be, were its operators independent; None if not finite.

        One that breaks the network is refused, by the operators that do it alone.
        """
        single = scores.reindex([entry.operator for entry in prepared.plan.operators])
        alone = single.index[np.isinf(single)]
        joint = finite(
            self.joint_score(prepared),
            f"plan {name}: without its {len(single)} operators latents are not finite (black pictures)",
            f"leave out {', '.join(alone)}" if len(alone) else "remove fewer of them",
            PlanError,
        )
        values = {
            "joint_score": joint,
            "sum_of_scores": float(single.sum(skipna=False)),
            "norm_of_scores": float(np.linalg.norm(single)),
        }
        finite_ones = {name: value if math.isfinite(value) else None for name, value in values.items()}
        promised = prepared.plan.time_reduction
        return {"num_operators": len(single), "promised_time_reduction": promised, **finite_ones}

    def _changes(self, before: pd.DataFrame, network: nn.Module, plan: Plan) -> pd.DataFrame:
        # `before` are the costs of the untouched network, the whole first.
        actions = {name: _action(name, plan) for name in before.index[1:]}
        there = [name for name, action in actions.items() if not action.startswith("gone")]
        after = self.module_costs(network, there).reindex(before.index, fill_value=0)
        sides = {
            f"{quantity}_{side}": costs[quantity].to_numpy()
            for quantity in before
            for side, costs in (("before", before), ("after", after))
        }
        labels = {WHOLE: f"{len(plan.operators)} replaced"} | actions
        return pd.DataFrame({"operator": list(labels), "action": list(labels.values())} | sides)


def _action(name: str, plan: Plan) -> str:
    """``kept``, the replacement, or ``gone with`` the operator around it."""
    for entry in plan.operators:
        if entry.operator == name and entry.replacement is not None:
            return entry.replacement.name
        if is_inside(name, entry.operator):
            return f"gone with {entry.operator}"
    return "kept"


def _plain(value: Any) -> Any:
    """As JSON, without the notes that diffusers makes on where settings came from."""
    value = json.loads(json.dumps(value))
    if isinstance(value, dict):
        return {name: inner for name, inner in value.items() if not name.startswith("_")}
    return value
