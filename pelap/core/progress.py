"""Progress that reads well on a terminal and in a log file."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress

SECONDS_BETWEEN_LINES = 15.0
_SHOWN = ContextVar("shown", default=True)
_LOCK = Lock()


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
    """A bar with time left on standard error, or a line now and then where that is not a terminal."""
    if not _SHOWN.get():
        yield lambda done, note="": None
    elif sys.stderr.isatty():
        with _bar(label, total, done) as report:
            yield report
    else:
        yield _lines(label, total)


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


def _lines(label: str, total: int) -> Report:
    last = time.monotonic()

    def report(done: int, note: str = "") -> None:
        nonlocal last
        if done >= total or time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(f"{label}: {done}/{total} {note}".rstrip(), file=sys.stderr, flush=True)

    return report
