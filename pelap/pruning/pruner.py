"""A denoiser on the bench: what its plans are made with and judged by."""

import dataclasses
import math
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import pandas as pd
import torch
from torch import nn

from pelap.config import ScoreParams
from pelap.core import files
from pelap.core.device import full_precision
from pelap.core.errors import PlanError, finite
from pelap.core.progress import progress
from pelap.diffusion.denoiser import Denoiser
from pelap.profiling.cost import count_macs, count_params
from pelap.profiling.latency import Latency, measure_latency, measure_module_latencies
from pelap.scoring.latents import LatentStore
from pelap.scoring.score import MEND, ORIGINAL, ORIGINALS, score_operators
from pelap.scoring.setup import costs, find, fit, scoring_of
from pelap.scoring.statistic import score
from pelap.surgery.apply import apply_plan
from pelap.surgery.operators import MISFITS, Operator, is_inside, swapped_modules
from pelap.surgery.plan import Plan, complete_plan
from pelap.surgery.replacements import Replacement


class Prepared(NamedTuple):
    """A plan with everything filled in, and the weights of what it puts in."""

    plan: Plan
    replacements: dict[str, Replacement]


class ModuleCost(NamedTuple):
    """Of a module with all its parts, in one pass."""

    params: int
    macs: int
    latency_ms: float


class Pruner:
    """A denoiser with its scores, and all that is computed once for its plans.

    Args:
        denoiser: The denoiser.
        scores: Its table of scores.
        params: How they were made.
        seed: And from which seed.
    """

    def __init__(self, denoiser: Denoiser, scores: pd.DataFrame, params: ScoreParams, seed: int) -> None:
        self.denoiser = denoiser
        self.scores = scores
        self.params = params
        self.seed = seed
        self._operators: dict[str, Operator] = {}
        self._stand_ins: dict[Operator, Replacement] = {}

    def prepare(self, plan: Plan) -> Prepared:
        """Fill in a plan for this network, and fit its replacements.

        Raises:
            PlanError: It names what cannot be replaced here.
        """
        names = [removal.operator for removal in plan.operators]
        self._find(names)
        operators = {name: self._operators[name] for name in names if name in self._operators}
        plan = complete_plan(plan, self.denoiser.network, list(operators.values()))
        wanted = [
            dataclasses.replace(operators[removal.operator], replacement=removal.replacement)
            for removal in plan.operators
            if removal.replacement is not None
        ]
        return Prepared(plan, self._fitted(wanted))

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

    def module_costs(self, network: nn.Module, names: Sequence[str]) -> dict[str, ModuleCost]:
        """Of a network's modules by their names; ``""`` is the whole."""
        forward = self.denoiser.forward(self.params.latency_batch_size, network)
        macs = count_macs(network, forward)
        repeats = self.params.latency_repeats
        times = measure_module_latencies(network, forward, names, self.denoiser.device, repeats)
        return {
            name: ModuleCost(count_params(network.get_submodule(name)), macs.get(name, 0), times[name])
            for name in ("", *names)
        }

    @cached_property
    def dense_costs(self) -> dict[str, ModuleCost]:
        """Of the untouched network's operators; measured once."""
        return self.module_costs(self.denoiser.network, list(self.scores["operator"]))

    @cached_property
    def original(self) -> torch.Tensor:
        """Latents of the untouched network (N, ...), which scores compare with."""
        return finite(self._latents(), ORIGINALS, MEND)

    def joint_score(self, prepared: Prepared) -> float:
        """The score of a plan: as that of an operator, with all of its operators replaced at once.

        Infinite where latents without them are not finite.
        """
        original = self.original
        with swapped_modules(self.denoiser.network, prepared.replacements):
            return score(self.params.formula, original, self._latents())

    def rescore(self, plan: Plan) -> pd.DataFrame:
        """Scores of what a plan leaves, for one more to be removed.

        Returns:
            The columns of a table of scores; `score` is how much the joint score rises with the operator, it
            may be negative. Shares are of the untouched network's time. No row where nothing is left.

        Raises:
            PlanError: Without the plan's operators there is nothing finite to compare with.
        """
        prepared, original = self.prepare(plan), self.original
        joint = self.joint_score(prepared)
        if not math.isfinite(joint):
            raise PlanError(
                f"prune: latents without {len(plan.operators)} operators are not finite, so that the rest "
                "cannot be scored; ask for less, or leave out iterative_step"
            )
        gone = [removal.operator for removal in plan.operators]
        left = [
            name
            for name in self.scores["operator"]
            if not any(name == other or is_inside(name, other) for other in gone)
        ]
        if not left:
            return self.scores.head(0)
        self._find(left)
        operators = [self._operators[name] for name in left if name in self._operators]
        replacements = self._fitted(operators)
        kept = 1 - self.saved(plan)
        start = self._noise()
        store = LatentStore()
        store.append(ORIGINAL, original)
        title = f"score {self.denoiser.name} without {len(gone)}"
        with (
            swapped_modules(self.denoiser.network, prepared.replacements),
            progress(title, len(operators) * len(start)) as report,
            full_precision(),
        ):
            scoring = scoring_of(self.params, self.seed)
            scores = score_operators(
                self.denoiser.network,
                self.denoiser.denoise,
                operators,
                replacements,
                start,
                scoring,
                store,
                report,
            )
            table = scores.table.merge(costs(self.denoiser, operators, replacements, self.params))
        shares = ["latency_share", "replacement_share"]
        return table.assign(score=table["score"] - joint, **{name: kept * table[name] for name in shares})

    def _noise(self) -> torch.Tensor:
        return self.denoiser.noise(self.params.num_latents, self.params.num_seeds, self.seed)

    @torch.no_grad()
    def _latents(self) -> torch.Tensor:
        start, rows = self._noise(), self.params.batch_size
        with full_precision():
            parts = [
                self.denoiser.denoise(start[items], items.tolist())
                for items in torch.arange(len(start)).split(rows)
            ]
        return torch.cat(parts).cpu()

    def _find(self, names: Sequence[str]) -> None:
        missing = [name for name in names if name not in self._operators]
        if missing:
            found = find(self.denoiser, self.params, missing)
            self._operators |= {operator.name: operator for operator in found}

    def _fitted(self, operators: Sequence[Operator]) -> dict[str, Replacement]:
        missing = [operator for operator in operators if operator not in self._stand_ins]
        if missing:
            fits = fit(self.denoiser, missing, self.params, self.seed)
            self._stand_ins |= {operator: fits[operator.name] for operator in missing}
        return {operator.name: self._stand_ins[operator] for operator in operators}
