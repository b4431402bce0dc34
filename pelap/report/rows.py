"""Names of rows: a variant, `pruned-<plan>`, `<student>-<plan>`, and students that have no plan."""

from collections.abc import Iterable, Sequence

PRUNED = "pruned"
"""Family of the pruned networks before they are trained further."""


def plans_of(models: Iterable[str]) -> list[str]:
    """The plans that the rows of pruned networks name, in their order."""
    return [model.removeprefix(f"{PRUNED}-") for model in models if model.startswith(f"{PRUNED}-")]


def split_row(model: str, plans: Sequence[str]) -> tuple[str, str | None]:
    """Family and plan of a row: `distilled-25` is of the family `distilled`, `baseline` is its own."""
    ends = [plan for plan in plans if model.endswith(f"-{plan}")]
    plan = max(ends, key=len, default=None)
    return (model, None) if plan is None else (model.removesuffix(f"-{plan}"), plan)
