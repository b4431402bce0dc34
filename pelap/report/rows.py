"""Names of rows: a variant, `pruned-<plan>`, `<student>-<plan>`, a student without a plan, `cached-<n>`."""

import re
from collections.abc import Iterable, Sequence

PRUNED = "pruned"
"""Family of the pruned networks before they are trained further."""
CACHED = "cached"
"""Family of the scored variant whose sampling steps share deep features; the interval is as a plan."""


def plans_of(models: Iterable[str]) -> list[str]:
    """The plans that the rows of pruned networks name, in their order."""
    return [model.removeprefix(f"{PRUNED}-") for model in models if model.startswith(f"{PRUNED}-")]


def split_row(model: str, plans: Sequence[str]) -> tuple[str, str | None]:
    """Family and plan of a row: `distilled-25` is of the family `distilled`, `baseline` is its own.

    Of `cached-2` it is `cached` and the interval.
    """
    if re.fullmatch(rf"{CACHED}-\d+", model):
        return CACHED, model.removeprefix(f"{CACHED}-")
    ends = [plan for plan in plans if model.endswith(f"-{plan}")]
    plan = max(ends, key=len, default=None)
    return (model, None) if plan is None else (model.removesuffix(f"-{plan}"), plan)
