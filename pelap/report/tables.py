"""The table of models: as a data frame, in Markdown, in the terminal and as cells for the page."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
CHANGE = "latency_change"
"""Derived column: time of the UNet relative to the dense one that was pruned, minus one."""


@dataclass(frozen=True)
class Column:
    """How a metric is called and written."""

    key: str
    title: str
    unit: str = ""
    better: str = ""
    decimals: int = 2
    scale: float = 1.0
    signed: bool = False
    short: str = ""
    """Heading in the terminal, where lines have 80 characters; empty: not shown there."""
    short_scale: float | None = None

    @property
    def heading(self) -> str:
        """Name, unit and which way is better."""
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.title}{unit} {self.better}".strip()

    def cell(self, value: float) -> str:
        """The number, or a dash where there is none."""
        return number(value * self.scale, self.decimals, self.signed)

    def short_cell(self, value: float) -> str:
        """The number as the terminal shows it: short, and ASCII, as some terminals have no more."""
        if self.short_scale is None:
            text = self.cell(value)
        else:
            text = number(value * self.short_scale, 2, self.signed)
        return text.replace(DASH, "-").replace(MINUS, "-")


_LOWER, _HIGHER = "↓", "↑"
_COLUMNS = (
    Column("fid", "FID", "Inception", _LOWER, short="FID"),
    Column("psnr", "PSNR", "dB", _HIGHER, short="PSNR\ndB"),
    Column("ssim", "SSIM", "", _HIGHER, decimals=3, short="SSIM"),
    Column("latency_ms", "UNet time", "ms", _LOWER, short="UNet\nms"),
    Column("latency_iqr_ms", "interquartile range", "ms"),
    Column(CHANGE, "time change", "%", _LOWER, decimals=1, scale=100, signed=True, short="time\n%"),
    Column("params", "parameters", "", _LOWER, decimals=0, short="params\nM", short_scale=1e-6),
    Column("macs", "MACs", "billion", _LOWER, decimals=2, scale=1e-9, short="MACs\nG"),
    Column("peak_memory_mib", "peak memory", "MiB", _LOWER, decimals=1, short="peak\nMiB"),
)


def number(value: float, decimals: int, signed: bool = False) -> str:
    """Thousands separated by commas, a real minus sign, a dash for a missing value."""
    if math.isnan(value):
        return DASH
    text = f"{value:{'+' if signed else ''},.{decimals}f}"
    if not text.strip("+-0.,"):
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def metrics_frame(
    metrics: Mapping[str, Mapping[str, float | None]], scored: str | None = None
) -> pd.DataFrame:
    """One row per model in the order given, one column per metric, NaN where there is no value.

    Args:
        metrics: Values by model and metric.
        scored: The variant whose UNet was pruned; adds the column `latency_change` against it.
    """
    columns = dict.fromkeys(metric for row in metrics.values() for metric in row)
    frame = pd.DataFrame(
        {name: [metrics[model].get(name) for model in metrics] for name in columns},
        index=pd.Index(list(metrics), name="model"),
        dtype=float,
    )
    if scored is not None and scored in metrics and "latency_ms" in frame:
        frame[CHANGE] = frame["latency_ms"] / (metrics[scored].get("latency_ms") or math.nan) - 1
    names = sorted([*columns, CHANGE] if CHANGE in frame else columns, key=_rank)
    return frame[names].dropna(axis="columns", how="all")


def _rank(key: str) -> int:
    """Frechet distances first, then the known columns in order, then a user's own."""
    known = [column.key for column in _COLUMNS]
    if key.startswith("fd_"):
        return -1
    return known.index(key) if key in known else len(known)


def column(key: str) -> Column:
    """How a metric is shown; unknown ones keep their own name."""
    for known in _COLUMNS:
        if known.key == key:
            return known
    if key.startswith("fd_"):
        return Column(key, "Fréchet distance", key[3:], _LOWER, short="Frechet\ndistance")
    return Column(key, key, decimals=4)


def columns(frame: pd.DataFrame) -> list[Column]:
    """How each column of a metrics frame is shown."""
    return [column(key) for key in frame.columns]


def quality_column(frame: pd.DataFrame) -> Column | None:
    """The distance between made and real pictures that the figures show, if any was measured."""
    keys = [key for key in frame.columns if key.startswith("fd_") or key == "fid"]
    return column(keys[0]) if keys else None


def markdown_table(frame: pd.DataFrame) -> str:
    """The table for a README: names left, numbers right."""
    shown = columns(frame)
    lines = [["model", *(each.heading for each in shown)], [":--", *("--:" for _ in shown)]]
    for model, row in zip(frame.index, frame.to_numpy(), strict=True):
        cells = [each.cell(value) for each, value in zip(shown, row, strict=True)]
        lines.append([str(model).replace("|", "\\|"), *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def rich_table(frame: pd.DataFrame, title: str = "", network: str = "UNet") -> Table:
    """The table for a terminal of 80 columns; `network` is what the denoiser is called in it."""
    table = Table(
        title=Text(title) if title else None,
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        title_justify="left",
    )
    table.add_column("model", overflow="fold", min_width=8)
    shown = [each for each in columns(frame) if each.short]
    for each in shown:
        heading = each.short.replace("UNet", network)
        table.add_column(heading, justify="right", no_wrap=True, vertical="bottom")
    for model, row in frame.iterrows():
        cells = [each.short_cell(row[each.key]) for each in shown]
        table.add_row(Text(str(model)), *cells)
    return table
