"""The listing of a pruning: operator, action, parameters, MACs and milliseconds, before and after."""

from collections.abc import Iterator

import pandas as pd

# Heading in the terminal, and factor, of what is listed before and after.
QUANTITIES = {"params": ("params (K)", 1e-3), "macs": ("MACs (M)", 1e-6), "latency_ms": ("ms", 1.0)}
_NAME, _ACTION = 29, 19  # widths that leave room for the numbers in a terminal of 80 columns


def changed(changes: pd.DataFrame) -> pd.DataFrame:
    """The rows of the whole denoiser and of the operators that were replaced themselves."""
    action = changes["action"]
    return changes[(action != "kept") & ~action.str.startswith("gone")]


def listing(changes: pd.DataFrame) -> Iterator[str]:
    """What changed, in lines of at most 80 ASCII characters; the whole denoiser is first."""
    yield _line("operator", "action", [heading for heading, _ in QUANTITIES.values()])
    for _, row in changed(changes).iterrows():
        cells = [
            ">".join(_short(float(row[f"{quantity}_{side}"]) * factor) for side in ("before", "after"))
            for quantity, (_, factor) in QUANTITIES.items()
        ]
        yield from named(str(row["operator"]), _NAME, _line("", str(row["action"]), cells)[_NAME:])


def _short(number: float) -> str:
    """At most four digits."""
    return f"{number:.0f}" if number >= 1000 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def _line(name: str, action: str, cells: list[str]) -> str:
    first, second, third = cells
    return f"{name:<{_NAME}} {action:<{_ACTION}} {first:>10} {second:>9} {third:>9}".rstrip()


def named(name: str, width: int, rest: str) -> Iterator[str]:
    """A name in `width` columns and the rest of its line; a longer name, whole, on a line of its own."""
    if len(name) > width:
        yield name
        name = ""
    yield f"{name:<{width}}{rest}".rstrip()
