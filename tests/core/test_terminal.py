"""What a log file shows of progress."""

import pytest

from pelap.core import terminal
from pelap.core.terminal import duration, progress


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
