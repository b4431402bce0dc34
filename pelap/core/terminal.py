"""What the terminal shows: progress, which reads well in a log file too, and the listing of a pruning.

And what it does not: lines in which libraries warn of the very thing that is refused, and characters that
would steer it, in names and prompts that came from others.
"""

import logging
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from pelap.core.errors import LONGEST, brief

if TYPE_CHECKING:
    import pandas as pd
    from rich.progress import Progress

SECONDS_TO_FIRST_LINE, SECONDS_BETWEEN_LINES = 1.0, 15.0
_SHOWN = ContextVar("shown", default=True)
_LOCK = Lock()
# Control characters but tab and newline, halves of characters, and what turns the direction of what follows.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# Heading in the terminal, and factor, of what is listed before and after.
QUANTITIES = {"params": ("params (K)", 1e-3), "macs": ("MACs (M)", 1e-6), "latency_ms": ("ms", 1.0)}
_NAME, _ACTION = 29, 19  # widths that leave room for the numbers in a terminal of 80 columns


class _Waiting:
    """Standard error, on which everything waits until it is let through or forgotten; no line is too long."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.text: list[str] | None = []

    def write(self, text: str) -> int:
        if self.text is None:
            self.stream.write(_brief_lines(text))
        else:
            self.text.append(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class _Visible:
    """Standard output, on which characters that a terminal would obey are spelled out."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        if stream.isatty():
            self.rich_proxied_file = stream  # rich writes there: its colours are to be obeyed

    def write(self, text: str) -> int:
        self.stream.write(visible(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def visible(text: str) -> str:
    """The text with escape codes, other control characters and what turns its direction spelled out."""
    return _STEERING.sub(lambda found: ascii(found[0])[1:-1], text)


def _brief_lines(text: str) -> str:
    """With the middle of long lines left out: a library quotes what it was given. Bars are as they are."""
    if len(text) <= LONGEST or "\x1b" in text:
        return text
    lines = text.splitlines(keepends=True)
    return "".join(
        line if len(line) <= LONGEST else brief(line) + "\n" * line.endswith("\n") for line in lines
    )


@contextmanager
def output_is_visible() -> Iterator[None]:
    """What is printed in the block goes through `visible`."""
    stream = sys.stdout
    if stream is not None:  # else closed by the caller
        sys.stdout = _Visible(stream)
    try:
        yield
    finally:
        sys.stdout = stream


@contextmanager
def libraries_wait() -> Iterator[None]:
    """What is written to standard error in the block waits until work begins, or the block ends.

    An error is one line: whoever says one calls `let_through` with ``forget`` first.
    """
    stream = sys.stderr
    if stream is None:
        yield
        return
    sys.stderr = waiting = _Waiting(stream)
    _hand_over(stream, waiting)
    try:
        yield
    finally:
        let_through()
        _hand_over(waiting, stream)
        sys.stderr = stream


def _hand_over(one: Any, other: Any) -> None:
    """Handlers of libraries that were imported before, which hold a stream, are given another."""
    for logger in [*logging.root.manager.loggerDict.values()]:
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler) and handler.stream is one:
                handler.setStream(other)


def let_through(forget: bool = False) -> None:
    """What has waited is written, or forgotten, and what follows waits no more."""
    waiting = sys.stderr
    if isinstance(waiting, _Waiting) and waiting.text is not None:
        text, waiting.text = waiting.text, None
        if not forget:
            waiting.write(visible("".join(text).replace("\r", "\n")))


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
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(stderr=True),
    )


@contextmanager
def _bar(label: str, total: int, done: int) -> Iterator[Report]:
    let_through()
    bars = _display()
    with _LOCK:
        bars.start()  # a display that is there goes on
        task = bars.add_task(visible(label), total=total, completed=done, note="")

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
        let_through()
        now = time.monotonic()
        if done < total and now < next_at:
            return
        next_at = now + SECONDS_BETWEEN_LINES
        left = (total - done) * (now - started) / max(done - before, 1)
        parts = [f"{visible(label)}: {done}/{total}", f"{duration(left)} left" * (left > 0), note]
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
