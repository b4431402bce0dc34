"""What the terminal shows: progress, which reads well in a log file too, and the listing of a pruning."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import pandas as pd
    from rich.progress import Progress

SECONDS_TO_FIRST_LINE, SECONDS_BETWEEN_LINES = 1.0, 15.0
_SHOWN = ContextVar("shown", default=True)
_LOCK = Lock()
# Heading in the terminal, and factor, of what is listed before and after.
QUANTITIES = {"params": ("params (K)", 1e-3), "macs": ("MACs (M)", 1e-6), "latency_ms": ("ms", 1.0)}
_NAME, _ACTION = 29, 19  # widths that leave room for the numbers in a terminal of 80 columns


class Report(Protocol):
    """Tell how far the work is; ``note`` stands beside the bar."""

    def __call__(self, done: int, note: str = "") -> None: ...


@contextmanager
def hidden() -> Iterator[None]:
    """For the block, nobody is told of progress."""
    before = _SHOWN.set(False)
    try:
        yield
    finally:
        _SHOWN.reset(before)


@contextmanager
def progress(label: str, total: int, done: int = 0) -> Iterator[Report]:
    """A bar on standard error, or where that is no terminal a line now and then, with the time left."""
    if not _SHOWN.get():
        yield lambda done, note="": None
    elif sys.stderr.isatty():
        with _bar(label, total, done) as report:
            yield report
    else:
        yield _lines(label, total, done)


@cache
def _display() -> "Progress":
    """Bars of work that goes on side by side, in threads or in turns, share one display."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )


@contextmanager
def _bar(label: str, total: int, done: int) -> Iterator[Report]:
    bars = _display()
    with _LOCK:
        bars.start()  # a display that is there goes on
        task = bars.add_task(label, total=total, completed=done, note="")

    def report(done: int, note: str = "") -> None:
        bars.update(task, completed=done, note=note)

    try:
        yield report
    finally:
        with _LOCK:
            if len(bars.tasks) == 1:
                bars.stop()  # its line stays; those of what is over would pile up over what goes on
            bars.remove_task(task)


def _lines(label: str, total: int, before: int) -> Report:
    started = time.monotonic()
    next_at = started + SECONDS_TO_FIRST_LINE

    def report(done: int, note: str = "") -> None:
        nonlocal next_at
        now = time.monotonic()
        if done < total and now < next_at:
            return
        next_at = now + SECONDS_BETWEEN_LINES
        left = (total - done) * (now - started) / max(done - before, 1)
        parts = [f"{label}: {done}/{total}", f"{duration(left)} left" * (left > 0), note]
        print(*filter(None, parts), sep=", ", file=sys.stderr, flush=True)

    return report


def duration(seconds: float) -> str:
    """In whole seconds below two minutes, in minutes below two hours, else in hours and minutes."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


# --- the listing of a pruning: operator, action, parameters, MACs and milliseconds, before and after


def changed(changes: "pd.DataFrame") -> "pd.DataFrame":
    """The rows of the whole denoiser and of the operators that were replaced themselves."""
    action = changes["action"]
    return changes[(action != "kept") & ~action.str.startswith("gone")]


def listing(changes: "pd.DataFrame") -> Iterator[str]:
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
