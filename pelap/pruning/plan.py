"""From scores to a plan: which operators to remove. A plan is data that a person can read and edit."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from pelap.errors import PlanError
from pelap.pruning.operators import is_inside

FORMAT = 1
NAMES = ("operator", "kind", "replacement")
NUMBERS = ("score", "params", "latency_share")
"""Columns of a table of scores that a plan is made from; `latency_share` only for a time target."""


@dataclass(frozen=True)
class Removal:
    """One operator to take out, and what takes its place."""

    operator: str
    kind: str
    replacement: str


@dataclass(frozen=True)
class Plan:
    """Operators to remove, all at once; an operator inside a removed one is not listed."""

    operators: tuple[Removal, ...]
    target: dict[str, float] = field(default_factory=dict)
    """What was asked for, as one entry."""
    time_reduction: float = 0.0
    """Share of the UNet's time that the removed operators took when they were scored."""
    num_params: int = 0
    """Parameters removed."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "format": FORMAT,
            "target": self.target,
            "time_reduction": self.time_reduction,
            "num_params": self.num_params,
            "operators": [asdict(removal) for removal in self.operators],
        }


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
        )
    except (TypeError, ValueError) as error:
        raise PlanError(f"{source}: target, time_reduction or num_params: {error}; drop that key") from None


def _removal(entry: Any, source: str) -> Removal:
    fields = {"operator": entry} if isinstance(entry, str) else entry
    if not isinstance(fields, Mapping) or "operator" not in fields:
        raise PlanError(f'{source}: operators: {entry!r} has no name; give {{"operator": NAME}}')
    removal = Removal(fields["operator"], fields.get("kind", ""), fields.get("replacement", "identity"))
    if not all(isinstance(text, str) for text in vars(removal).values()):
        raise PlanError(f"{source}: operators: {entry!r}: every value must be a text")
    return removal


def make_plan(scores: pd.DataFrame, target: str, amount: float) -> Plan:
    """Take operators in order of score until the target is reached (LD-Pruner's one-shot choice).

    Args:
        scores: With the columns `NAMES` and `NUMBERS`, in any order.
        target: ``time_reduction`` (share of the UNet's time, 0..1), ``num_params`` or
            ``num_operators``.
        amount: How much of it.

    Raises:
        PlanError: The table is not one of scores, or the target is out of reach.
    """
    scores = _checked(scores, demand_latency=target == "time_reduction")
    weights = _weights(scores, target)
    chosen: list[str] = []
    for name in scores.sort_values(["score", "operator"])["operator"]:
        if any(is_inside(name, other) for other in chosen):
            continue
        chosen = [other for other in chosen if not is_inside(other, name)] + [name]
        if sum(weights[other] for other in chosen) >= amount:
            return _plan(scores, chosen, {target: amount})
    reached = sum(weights[name] for name in chosen)
    raise PlanError(
        f"prune.{target}: {amount:g} is out of reach, all {len(chosen)} outermost operators together "
        f"give {reached:.4g}; ask for less"
    )


def plan_of(scores: pd.DataFrame, names: Sequence[str]) -> Plan:
    """A plan that somebody else chose, with kinds and totals from the scores.

    Raises:
        PlanError: It is empty, names something that was not scored, or an operator twice.
    """
    scores = _checked(scores, demand_latency=False)
    if not names:
        raise PlanError("plan: lists no operator; add one, or keep the dense model")
    unknown = [name for name in names if name not in set(scores["operator"])]
    if unknown:
        raise PlanError(
            f"plan: {unknown[0]!r} is not among the scored operators; take names from this model's scores"
        )
    check_disjoint(names)
    return _plan(scores, list(names), {})


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
    numbers = scores[list(NUMBERS)].apply(pd.to_numeric, errors="coerce")
    bad = scores["operator"].isna() | scores["operator"].duplicated() | ~np.isfinite(numbers).all(axis=1)
    if bad.any() or scores.empty:
        where = f"row {int(bad.to_numpy().argmax()) + 1}" if bad.any() else "no row"
        raise PlanError(
            f"scores: {where}: every operator needs a name of its own and finite {', '.join(NUMBERS)}; "
            "make the table again with `pelap score`"
        )
    return scores.assign(**{column: numbers[column] for column in NUMBERS})


def _weights(scores: pd.DataFrame, target: str) -> dict[str, float]:
    """What each operator contributes to the target."""
    column = {
        "time_reduction": scores["latency_share"],
        "num_params": scores["params"],
        "num_operators": pd.Series(1, index=scores.index),
    }[target]
    return dict(zip(scores["operator"], column.astype(float), strict=True))


def _plan(scores: pd.DataFrame, chosen: list[str], target: dict[str, float]) -> Plan:
    rows = scores.set_index("operator").loc[chosen]
    removals = tuple(
        Removal(str(name), str(row["kind"]), str(row["replacement"])) for name, row in rows.iterrows()
    )
    return Plan(removals, target, float(rows["latency_share"].sum()), int(rows["params"].sum()))
