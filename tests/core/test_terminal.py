"""What a log file shows of progress, and a terminal of names."""

import sys

import pytest

from pelap.core import terminal
from pelap.core.terminal import duration, output_is_visible, progress, visible


def test_time_left_is_said_from_the_first_second_and_then_now_and_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 0.5, 2.0, 10.0, 20.0, 40.0])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    with progress("train", total=50, done=10) as report:  # goes on: 10 steps are not of this run
        for done, note in ((11, ""), (14, "loss 1"), (20, ""), (30, ""), (50, "")):
            report(done, note)
    assert capsys.readouterr().err.splitlines() == [
        "train: 14/50, 18 s left, loss 1",  # 4 steps in 2 s, 36 to go
        "train: 30/50, 20 s left",
        "train: 50/50",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (119.4, "119 s"),
        (120, "2 min"),
        (7170, "2 h 0 min"),
        (7100, "118 min"),
        (8100, "2 h 15 min"),
    ],
)
def test_durations_are_rounded_to_what_matters(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_would_steer_a_terminal_is_spelled_out(capsys: pytest.CaptureFixture[str]) -> None:
    steering = [*map(chr, (*range(9), *range(11, 32), 127, 0x9B, 0x202E, 0x2066, 0xDCFF))]
    usual = "\t\u00e9 \u05d0\u05d1 \U0001f468\u200d\U0001f469 \\x1b\n"
    assert visible(usual) == usual
    stream = sys.stdout
    with output_is_visible():
        print(*steering, usual, sep="", end="")
    assert sys.stdout is stream
    printed = capsys.readouterr().out
    assert printed == "".join(ascii(sign)[1:-1] for sign in steering) + usual


def test_bars_show_names_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Square brackets are no markup, which may be wrong."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    terminal._display.cache_clear()
    try:
        with progress("score [/red]\x1b[2J", 1) as report:
            report(1, "[/note]")
    finally:
        terminal._display.cache_clear()
    said = capsys.readouterr().err
    assert r"score [/red]\x1b[2J" in said
