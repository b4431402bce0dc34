"""From scores to a plan: which operators to remove. A plan is data that a person can read and edit."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from pelap import io
from pelap.errors import PlanError
from pelap.pruning.operators import Operator, is_inside, scale_shift
from pelap.pruning.replace import Replacement, is_replacement, replacement_from_json

FORMAT = 2
TARGETS = ("time_reduction", "num_params", "num_operators")
NAMES = ("operator", "kind", "replacement")
NUMBERS = ("score", "params", "latency_share")
"""Columns of a table of scores that a plan is made from; `latency_share` only for a time target."""
OPTIONAL: dict[str, Any] = {"replacement_params": 0, "replacement_share": 0.0, "stopped_early": False}
"""Further columns, and what they are taken for where they are missing."""


@dataclass(frozen=True)
class Removal:
    """One operator to take out, and what takes its place."""

    operator: str
    kind: str = ""
    replacement: Replacement | None = None
    """None: what `find_operators` offers for it."""

    def to_json(self) -> dict[str, Any]:
        """As an entry of a plan."""
        entry = {"operator": self.operator, "kind": self.kind}
        return entry | (self.replacement.to_json() if self.replacement else {})


@dataclass(frozen=True)
class Plan:
    """Operators to remove, all at once; an operator inside a removed one is not listed."""

    operators: tuple[Removal, ...]
    target: dict[str, float] = field(default_factory=dict)
    """What was asked for, as one entry."""
    time_reduction: float = 0.0
    """Share of the UNet's time that the removed operators took when they were scored, less that of the
    replacements."""
    num_params: int = 0
    """Parameters removed, less those of the replacements."""
    network: str = ""
    """`fingerprint` of the network that it is for; empty: any."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "format": FORMAT,
            "network": self.network,
            "target": self.target,
            "time_reduction": self.time_reduction,
            "num_params": self.num_params,
            "operators": [removal.to_json() for removal in self.operators],
        }


def fingerprint(unet: nn.Module) -> str:
    """Class of a network and a digest of the names and shapes of its parameters, not of their values."""
    shapes = {name: list(parameter.shape) for name, parameter in unet.named_parameters()}
    return f"{type(unet).__name__}-{io.digest(shapes)}"


def demand_network(plan: Plan, unet: nn.Module) -> None:
    """Raise a `PlanError` if the plan was made for a network of another class or other shapes."""
    if plan.network not in ("", fingerprint(unet)):
        raise PlanError(
            f"plan: was made for the network {plan.network}, this one is {fingerprint(unet)}; give the model "
            'that it was made for, or drop its "network" to try it all the same'
        )


def plan_from_json(value: Any, source: str) -> Plan:
    """Read a plan; only ``operators`` is needed, and its entries may be bare names.

    Raises:
        PlanError: It is not a plan.
    """
    entries = value.get("operators") if isinstance(value, Mapping) else None
    if not isinstance(entries, list):
        raise PlanError(f'{source}: not a pruning plan; expected an object with a list "operators"')
    removals = tuple(_removal(entry, source) for entry in entries)
    try:
        return Plan(
            removals,
            dict(value.get("target", {})),
            float(value.get("time_reduction", 0.0)),
            int(value.get("num_params", 0)),
            str(value.get("network", "")),
        )
    except (OverflowError, TypeError, ValueError) as error:
        raise PlanError(f"{source}: target, time_reduction or num_params: {error}; drop that key") from None


def _removal(entry: Any, source: str) -> Removal:
    fields = {"operator": entry} if isinstance(entry, str) else entry
    if not isinstance(fields, Mapping) or "operator" not in fields:
        raise PlanError(f'{source}: operators: {entry!r} has no name; give {{"operator": NAME}}')
    texts = [fields["operator"], fields.get("kind", ""), fields.get("replacement", "")]
    if not all(isinstance(text, str) for text in texts):
        raise PlanError(f"{source}: operators: {entry!r}: names must be texts")
    where = f"{source}: operators: {fields['operator']!r}"
    replacement = replacement_from_json(fields, where) if "replacement" in fields else None
    return Removal(texts[0], texts[1], replacement)


def complete_plan(plan: Plan, unet: nn.Module, operators: Sequence[Operator]) -> Plan:
    """The plan with kinds, replacements and their numbers filled in, for this network.

    Raises:
        PlanError: It is another network's, or names something that cannot be replaced here.
    """
    demand_network(plan, unet)
    offered = {operator.name: operator for operator in operators}
    removals = []
    for removal in plan.operators:
        if removal.operator not in offered:
            raise PlanError(
                f"plan: {type(unet).__name__} has no operator {removal.operator!r} that can be replaced; the "
                "plan belongs to another model, or correct this entry (scores.csv lists all names)"
            )
        operator = offered[removal.operator]
        replacement = _completed(removal.replacement, operator, unet.get_submodule(operator.name))
        removals.append(Removal(operator.name, operator.kind, replacement))
    return dataclasses.replace(plan, operators=tuple(removals), network=fingerprint(unet))


def _completed(wanted: Replacement | None, operator: Operator, module: nn.Module) -> Replacement:
    possible = {operator.replacement.name: operator.replacement}
    if operator.input_shape == operator.output_shape:
        for name in ("identity", "residual"):
            possible[name] = dataclasses.replace(operator.replacement, name=name)
        if operator.kind == "normalisation":
            possible["scale_shift"] = scale_shift(module, operator.input_shape)
    for one, other in (("projection", "regroup"), ("regroup", "projection")):
        if one in operator.replacement.steps:
            swapped = operator.replacement.name.replace(one, other)
            possible[swapped] = dataclasses.replace(operator.replacement, name=swapped)
    if wanted is None:
        return operator.replacement
    if wanted.name not in possible and max(wanted.in_channels, wanted.factor) > 1:
        return wanted  # somebody who gives the numbers knows what fits
    if wanted.name not in possible:
        raise PlanError(
            f"plan: {operator.name}: cannot be replaced by {wanted.name}; use {' or '.join(possible)}"
        )
    return possible[wanted.name]


def make_plan(scores: pd.DataFrame, target: str, amount: float) -> Plan:
    """Take operators in order of score until the target is reached (LD-Pruner's one-shot choice).

    Args:
        scores: With the columns `NAMES` and `NUMBERS`, in any order.
        target: ``time_reduction`` (share of the UNet's time, 0..1), ``num_params`` or
            ``num_operators``.
        amount: How much of it.

    Operators whose scoring stopped early are not taken: all that is known of them is that others matter less.

    Raises:
        PlanError: The table is not one of scores, or the target is unknown or out of reach.
    """
    if target not in TARGETS or not amount > 0:
        raise PlanError(f"prune.{target}: {amount:g}: give a positive amount of {', '.join(TARGETS)}")
    scores = _checked(scores, demand_latency=target == "time_reduction")
    num_stopped = int(scores["stopped_early"].sum())
    scores = scores[~scores["stopped_early"] & np.isfinite(scores["score"])]
    weights = _weights(scores, target)
    chosen: list[str] = []
    furthest = 0.0
    for name in scores.sort_values(["score", "operator"])["operator"]:
        if any(is_inside(name, other) for other in chosen):
            continue
        chosen = [other for other in chosen if not is_inside(other, name)] + [name]
        reached = sum(weights[other] for other in chosen)
        if reached >= amount:
            return _plan(scores, chosen, {target: amount})
        # A block takes the place of its parts, so the number of operators may fall again.
        furthest = max(furthest, reached)
    mend = "ask for less"
    if num_stopped:
        mend += f", or score the {num_stopped} that stopped early to the end (score.early_stop: null)"
    raise PlanError(
        f"prune.{target}: {amount:g} is out of reach, the {len(weights)} operators give at most "
        f"{furthest:.4g}; {mend}"
    )


def plan_of(scores: pd.DataFrame, plan: Plan) -> Plan:
    """A plan that somebody else chose, with the totals from the scores.

    Raises:
        PlanError: It names something that was not scored, or an operator twice.
    """
    scores = _checked(scores, demand_latency=False)
    names = [removal.operator for removal in plan.operators]
    unknown = [name for name in names if name not in set(scores["operator"])]
    if unknown:
        raise PlanError(
            f"plan: {unknown[0]!r} is not among the scored operators; take names from this model's scores"
        )
    check_disjoint(names)
    rows = scores.set_index("operator").loc[names]
    saved = int((rows["params"] - rows["replacement_params"]).sum())
    time_reduction = float((rows["latency_share"] - rows["replacement_share"]).sum())
    return dataclasses.replace(plan, time_reduction=time_reduction, num_params=saved)


def check_scores(scores: pd.DataFrame, unet: nn.Module) -> None:
    """Refuse a table of scores that is another network's.

    Raises:
        PlanError: It is no table of scores, or an operator does not exist here, or has another number of
            parameters.
    """
    scores, modules = _checked(scores, demand_latency=False), dict(unet.named_modules())
    for name, params in zip(scores["operator"], scores["params"], strict=True):
        there = sum(p.numel() for p in modules[name].parameters()) if name in modules else None
        if there != params:
            what = "is not there" if there is None else f"has {there} parameters"
            raise PlanError(
                f"scores: operator {name!r} {what} in this {type(unet).__name__}; they are another model's, "
                "score this one with `pelap score`"
            )


def check_disjoint(names: Sequence[str]) -> None:
    """Raise a `PlanError` where an operator is listed twice, or inside another one."""
    for position, name in enumerate(names):
        for other in (*names[:position], *names[position + 1 :]):
            if name == other or is_inside(name, other):
                how = "twice" if name == other else f"inside {other!r}, which goes as a whole"
                raise PlanError(f"plan: {name!r} is listed {how}; drop one of the entries")


def _checked(scores: pd.DataFrame, demand_latency: bool) -> pd.DataFrame:
    """The table with numbers that are numbers; a share of time that is not there counts as 0."""
    if not demand_latency and "latency_share" not in scores:
        scores = scores.assign(latency_share=0.0)
    for column in (*NAMES, *NUMBERS):
        if column not in scores:
            raise PlanError(f"scores: no column {column}; make the table again with `pelap score`")
    # Spreadsheets leave empty rows and blanks.
    scores = scores.dropna(how="all", subset=[*NAMES])
    scores = scores.assign(**{name: scores[name].str.strip() for name in NAMES}) if len(scores) else scores
    scores = scores.assign(**{name: scores.get(name, value) for name, value in OPTIONAL.items()})
    columns = [*NUMBERS, "replacement_params", "replacement_share"]
    if scores.empty:
        raise PlanError("scores: no row; make the table again with `pelap score`")
    numbers = scores[columns].apply(pd.to_numeric, errors="coerce")
    # A score may be infinite: without that operator nothing finite comes out.
    bad = scores["operator"].isna() | scores["operator"].duplicated() | numbers["score"].isna()
    bad |= ~np.isfinite(numbers.drop(columns="score")).all(axis=1)
    bad |= ~scores["stopped_early"].isin([True, False])
    bad |= ~scores["replacement"].map(is_replacement)
    if bad.any():
        where = f"row {int(bad.to_numpy().argmax()) + 1}"
        raise PlanError(
            f"scores: {where}: every operator needs a name of its own, a replacement, finite "
            f"{', '.join(columns)}, and a stopped_early that is True or False; make the table again with "
            "`pelap score`"
        )
    stopped = scores["stopped_early"].astype(bool)
    return scores.assign(**{column: numbers[column] for column in columns}, stopped_early=stopped)


def _weights(scores: pd.DataFrame, target: str) -> dict[str, float]:
    """What each operator contributes to the target."""
    column = {
        "time_reduction": scores["latency_share"] - scores["replacement_share"],
        "num_params": scores["params"] - scores["replacement_params"],
        "num_operators": pd.Series(1, index=scores.index),
    }[target]
    return dict(zip(scores["operator"], column.astype(float), strict=True))


def _plan(scores: pd.DataFrame, chosen: list[str], target: dict[str, float]) -> Plan:
    rows = scores.set_index("operator").loc[chosen]
    removals = tuple(
        Removal(str(name), str(row["kind"]), Replacement(str(row["replacement"])))
        for name, row in rows.iterrows()
    )
    return plan_of(scores, Plan(removals, target))
