"""Progress that reads well on a terminal and in a log file."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

SECONDS_BETWEEN_LINES = 15.0


class Report(Protocol):
    """Tell how far the work is; ``note`` stands beside the bar."""

    def __call__(self, done: int, note: str = "") -> None: ...


@contextmanager
def progress(label: str, total: int, done: int = 0) -> Iterator[Report]:
    """A bar with time left on standard error, or a line now and then where that is not a terminal."""
    if sys.stderr.isatty():
        with _bar(label, total, done) as report:
            yield report
    else:
        yield _lines(label, total)


@contextmanager
def _bar(label: str, total: int, done: int) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total, completed=done, note="")

        def report(done: int, note: str = "") -> None:
            bar.update(task, completed=done, note=note)

        yield report


def _lines(label: str, total: int) -> Report:
    last = time.monotonic()

    def report(done: int, note: str = "") -> None:
        nonlocal last
        if done >= total or time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(f"{label}: {done}/{total} {note}".rstrip(), file=sys.stderr, flush=True)

    return report
