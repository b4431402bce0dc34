import math
from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from synthetic_run import DENSE, METRICS

from pelap.report import tables


def printed(metrics: Any, scored: str | None = None, **names: str) -> str:
    console = Console(width=80, record=True, file=StringIO())
    console.print(tables.rich_table(tables.metrics_frame(metrics, scored), **names))
    return console.export_text()


def test_rich_table_fits_a_terminal() -> None:
    metrics = {name: {**row, "fid": 123.456} for name, row in METRICS.items()}
    metrics["a-variant-with-a-long-name"] = metrics.pop("pelap")
    text = printed(metrics, "invariant")
    assert max(map(len, text.splitlines())) <= 80
    assert "214.99+-2.39 " in text
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert "output-only-25" in text  # in one line, and so are the numbers
    headings = {"FID", "KID", "UNet", "image", "params", "recall"}
    assert headings & set(text.split()) == {"FID", "UNet", "image", "params"}


def test_rich_table_shows_costs_where_there_is_room() -> None:
    rows = {name: {"fd_x": 3.0, **DENSE} for name in ("stable", "stable-pruned")}
    text = printed(rows, "stable", network="denoiser")
    assert all(word in text for word in ("denoiser", "MACs", "67.5", "peak", "61.2", "12.90"))


def test_columns_of_two_extractors_stay_apart() -> None:
    row = {
        "fid": 1.0, "fid_se": 0.1, "kid": 2.0, "kid_std": 0.2, "recall": 0.5, "fd_own_net": 3.0,
        "kid_own_net": 4.0, "recall_own_net": 0.25, "psnr": 20.0,
    }  # fmt: skip
    frame = tables.metrics_frame({"a": dict(reversed(list(row.items())))})
    assert list(frame.columns) == [
        "fd_own_net", "kid_own_net", "recall_own_net", "fid", "fid_se", "kid", "kid_std", "recall", "psnr",
    ]  # fmt: skip
    frame = tables.metrics_frame({"a": row})
    column, own = tables.quality_column(frame), tables.column("fd_own_net")
    assert column is not None
    assert (column.key, column.title, column.unit) == ("fid", "FID", "Inception")
    assert (own.title, own.unit, own.error) == ("Fréchet distance", "own_net", "fd_own_net_se")
    assert [each.heading for each in tables.columns(frame)] == [
        "FID (Inception) ↓", "KID (Inception) ↓", "recall (Inception) ↑", "Fréchet distance (own_net) ↓",
        "KID (own_net) ↓", "recall (own_net) ↑", "PSNR (dB, reconstructions) ↑",
    ]  # fmt: skip
    assert [key for key in row if tables.is_distance(key)] == ["fid", "fd_own_net"]
    text = printed({"a": row})
    assert "2.0000" in text  # the KID of the first one alone
    assert "4.0000" not in text


def test_unknown_metric_is_shown_last() -> None:
    metrics = {"mine|own": {"sharpness": 0.5, "fd_other": 3.0, "latency_ms": 2.0, "ssim": None}}
    frame = tables.metrics_frame(metrics, "absent")
    assert list(frame.columns) == ["fd_other", "latency_ms", "sharpness"]
    assert tables.markdown_table(frame).splitlines() == [
        "| model | Fréchet distance (other) ↓ | UNet time (ms) ↓ | sharpness |",
        "| :-- | --: | --: | --: |",
        r"| mine\|own | 3.00 | 2.00 | 0.5000 |",
    ]


@pytest.mark.parametrize(
    ("value", "decimals", "signed", "shown"),
    [
        (-1234567.891, 2, False, f"{tables.MINUS}1,234,567.89"),
        (0.04, 1, True, "0.0"),
        (-0.04, 1, False, "0.0"),
        (1.25, 1, True, "+1.2"),
        (math.nan, 1, False, tables.DASH),
    ],
)
def test_numbers(value: float, decimals: int, signed: bool, shown: str) -> None:
    assert tables.number(value, decimals, signed) == shown


@pytest.mark.parametrize(("items", "shown"), [("", ""), ("a", "a"), ("ab", "a and b"), ("abc", "a, b and c")])
def test_listed(items: str, shown: str) -> None:
    assert tables.listed(items) == shown


def test_rows_are_split_by_their_plan() -> None:
    plans = tables.plans_of(["baseline", "pruned-my-5", "pruned-5", "real"])
    assert plans == ["my-5", "5"]
    for row, given, parts in (
        ("distilled-my-5", plans, ("distilled", "my-5")),
        ("distilled-25", plans, ("distilled-25", None)),
        ("output-only-5", plans, ("output-only", "5")),
        ("cached-2", ["25", "2"], ("cached", "2")),
        ("cached-2-25", ["25"], ("cached-2", "25")),
        ("cached", [], ("cached", None)),
    ):
        assert tables.split_row(row, given) == parts
