"""From scores to a plan: which operators to remove. A plan is data that a person can read and edit."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd

from pelap.errors import PlanError
from pelap.pruning.operators import is_inside

FORMAT = 1
SCORE_COLUMNS = ("operator", "kind", "replacement", "score", "params", "latency_share")


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
    removals = []
    for entry in entries:
        fields = {"operator": entry} if isinstance(entry, str) else entry
        if not isinstance(fields, Mapping) or not isinstance(fields.get("operator"), str):
            raise PlanError(f'{source}: operators: {entry!r} has no name; give {{"operator": NAME}}')
        removals.append(
            Removal(fields["operator"], fields.get("kind", ""), fields.get("replacement", "identity"))
        )
    return Plan(
        tuple(removals),
        dict(value.get("target", {})),
        float(value.get("time_reduction", 0.0)),
        int(value.get("num_params", 0)),
    )


def make_plan(scores: pd.DataFrame, target: str, amount: float) -> Plan:
    """Take operators in order of score until the target is reached (LD-Pruner's one-shot choice).

    Args:
        scores: With `SCORE_COLUMNS`; any order.
        target: ``time_reduction`` (share of the UNet's time, 0..1), ``num_params`` or
            ``num_operators``.
        amount: How much of it.

    Raises:
        PlanError: A column is missing, or the target is out of reach.
    """
    lacking = [column for column in SCORE_COLUMNS if column not in scores]
    if lacking:
        raise PlanError(f"scores: no column {lacking[0]}; make the table again with `pelap score`")
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
