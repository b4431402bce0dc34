"""Tables of models: how every metric is called and written, in Markdown, in the terminal and on the page."""

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from pelap.core.terminal import visible

DASH, MINUS, PLUS_MINUS = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{PLUS-MINUS SIGN}"
SURE = 1.96  # standard errors to either side of a 95 % interval
PRUNED = "pruned"  # family of the rows ``pruned-PLAN``: networks before they are trained further
CACHED = "cached"  # family of the rows ``cached-N``: the scored variant, its sampling steps sharing features
CHANGE = "latency_change"  # derived column: time of the UNet relative to the dense one's, minus one
VOCODED = "_vocoded"  # tail of a distance of real sounds that went through Griffin-Lim, as made ones do
# Tables of the page and their headings; a user's own metrics are in the first.
GROUPS = {
    "metrics": "Samples against real pictures",
    "pictures": "Picture by picture: reconstructions, and samples beside the dense model's",
    "costs": "Costs",
}


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
    error: str = ""  # the metric that stands behind this one after a plus-minus sign
    error_scale: float = 1.0
    group: str = "metrics"  # the table of the page that it stands in, one of `GROUPS`
    brief: bool = True  # whether it has a place in the short table for the README
    short: str = ""  # heading in the terminal, where lines have 80 characters; empty: not shown there
    short_scale: float | None = None

    @property
    def heading(self) -> str:
        """Name, unit and which way is better."""
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.title}{unit} {self.better}".strip()

    def cell(self, value: float, error: float = math.nan) -> str:
        """The number and what it is sure to, or a dash where there is none."""
        text = number(value * self.scale, self.decimals, self.signed)
        if math.isnan(value) or math.isnan(error):
            return text
        return f"{text} {PLUS_MINUS} {number(error * self.scale * self.error_scale, self.decimals)}"

    def of(self, row: "pd.Series[float]") -> str:
        """The cell of a row of the metrics frame."""
        return self.cell(row[self.key], row.get(self.error, math.nan))

    def short_of(self, row: "pd.Series[float]") -> str:
        """The cell as the terminal shows it: short, and ASCII, as some terminals have no more."""
        if self.short_scale is not None:
            text = number(row[self.key] * self.short_scale, 2, self.signed)
        else:
            text = self.of(row) if is_distance(self.key) else self.cell(row[self.key])
        return text.replace(DASH, "-").replace(MINUS, "-").replace(f" {PLUS_MINUS} ", "+-")


LOWER, HIGHER = "↓", "↑"
# Families of metrics that every extractor has, in the table's order.
_DISTANCES = ("fd", "shift", "kid", "precision", "recall", "density", "coverage")
_OF_EXTRACTOR = re.compile(rf"(fid|{'|'.join(_DISTANCES)})(?:_(\w+))?")
_FAMILIES = {
    "fd": Column("fd", "Fréchet distance", "", LOWER, short="Frechet\ndistance"),
    "fid": Column("fid", "FID", "", LOWER, short="FID"),
    "shift": Column("shift", "shift", "", LOWER, brief=False),
    "kid": Column("kid", "KID", "", LOWER, decimals=4, short="KID"),
    "precision": Column("precision", "precision", "", HIGHER, decimals=3),
    "recall": Column("recall", "recall", "", HIGHER, decimals=3, short="recall"),
    "density": Column("density", "density", "", HIGHER, decimals=3, brief=False),
    "coverage": Column("coverage", "coverage", "", HIGHER, decimals=3, brief=False),
}
_COLUMNS = (
    Column("prompt_agreement", "prompt agreement", "%", HIGHER, decimals=1, scale=100,
           error="prompt_agreement_se", short="prompt\nagrees\n%"),
    Column("recovered", "recovered", "%", HIGHER, decimals=0, scale=100, error="recovered_se",
           short="reco-\nvered\n%"),
    Column("recovered_as_long", "recovered as long", "%", HIGHER, decimals=0,
           scale=100, error="recovered_as_long_se", brief=False),
    Column("psnr", "PSNR", "dB, reconstructions", HIGHER, short="PSNR\ndB", group="pictures"),
    Column("ssim", "SSIM", "reconstructions", HIGHER, decimals=3, brief=False, short="SSIM",
           group="pictures"),
    Column("psnr_to_dense", "PSNR to dense", "dB", HIGHER, group="pictures"),
    Column("ssim_to_dense", "SSIM to dense", "", HIGHER, decimals=3, brief=False, group="pictures"),
    Column("lpips_to_dense", "LPIPS to dense", "", LOWER, decimals=3, brief=False, group="pictures"),
    Column("latency_ms", "UNet time", "ms", LOWER, error="latency_iqr_ms", error_scale=0.5, group="costs",
           short="UNet\nms"),
    Column(CHANGE, "time change", "%", LOWER, decimals=1, scale=100, signed=True, group="costs",
           short="time\n%"),
    Column("image_ms", "time per image", "ms", LOWER, error="image_iqr_ms", error_scale=0.5, group="costs",
           short="image\nms"),
    Column("params", "parameters", "", LOWER, decimals=0, group="costs", short="params\nM",
           short_scale=1e-6),
    Column("macs", "MACs", "million, one latent", LOWER, decimals=1, scale=1e-6, group="costs",
           short="MACs\nM"),
    Column("peak_memory_mib", "peak memory", "MiB", LOWER, decimals=1, group="costs", brief=False,
           short="peak\nMiB"),
    Column("disk_mib", "weights on disk", "MiB", LOWER, group="costs", brief=False),
    Column("latency_least_ms", "latency_least_ms", decimals=4, group="costs"),
)  # fmt: skip
_KNOWN = {each.key: each for each in _COLUMNS}
# What stays in the terminal when not everything has room, most important first.
_IMPORTANCE = ("fd", "fid", "prompt_agreement", "latency_ms", CHANGE, "image_ms", "recovered", "params",
               "kid", "recall", "psnr", "macs", "ssim", "peak_memory_mib")  # fmt: skip
# Characters of a line, of a name in it before it takes a second line, and between columns.
_TERMINAL, _NAME_WIDTH, _BETWEEN = 80, 18, 2


class Heading(NamedTuple):
    """Of a column of the page."""

    title: str
    unit: str = ""
    span: int = 1  # number of columns below it


class Sheet(NamedTuple):
    """A table of the page."""

    id: str
    first: str  # heading of the names on the left
    headings: Sequence[Heading]  # of the other columns
    rows: Sequence[tuple[str, Sequence[str]]]  # name and cells


def number(value: float, decimals: int, signed: bool = False) -> str:
    """Thousands separated by commas, a real minus sign, a dash for a missing value."""
    if math.isnan(value):
        return DASH
    text = f"{value:{'+' if signed else ''},.{decimals}f}"
    if not text.strip("+-0.,"):
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def percent(share: float, signed: bool = True) -> str:
    """A share or a relative change: `+3.1 %`."""
    return DASH if math.isnan(share) else f"{number(100 * share, 1, signed)} %"


def listed(items: Iterable[str]) -> str:
    """`a, b and c`."""
    *most, last = ["", *items]
    return f"{', '.join(most[1:])} and {last}" if most[1:] else last


def plans_of(models: Iterable[str]) -> list[str]:
    """The plans that the rows of pruned networks name, in their order."""
    return [model.removeprefix(f"{PRUNED}-") for model in models if model.startswith(f"{PRUNED}-")]


def split_row(model: str, plans: Sequence[str]) -> tuple[str, str | None]:
    """Family and plan of a row: `distilled-25` is of the family `distilled`, `baseline` is its own.

    Of `cached-2` it is `cached` and the interval.
    """
    if re.fullmatch(rf"{CACHED}-\d+", model):
        return CACHED, model.removeprefix(f"{CACHED}-")
    plan = max((plan for plan in plans if model.endswith(f"-{plan}")), key=len, default=None)
    return (model, None) if plan is None else (model.removesuffix(f"-{plan}"), plan)


def metrics_frame(
    metrics: Mapping[str, Mapping[str, float | None]], scored: str | None = None
) -> pd.DataFrame:
    """One row per model in the order given, one column per metric, NaN where there is no value.

    Args:
        metrics: Values by model and metric.
        scored: The variant whose UNet was pruned; adds the column `latency_change` against it.
    """
    names = dict.fromkeys(metric for row in metrics.values() for metric in row)
    frame = pd.DataFrame(
        {name: [metrics[model].get(name) for model in metrics] for name in names},
        index=pd.Index(list(metrics), name="model"),
        dtype=float,
    )
    if scored is not None and scored in metrics and "latency_ms" in frame:
        frame[CHANGE] = frame["latency_ms"] / (metrics[scored].get("latency_ms") or math.nan) - 1
    return frame[_sorted(frame.columns)].dropna(axis="columns", how="all")


def _sorted(keys: Iterable[str]) -> list[str]:
    """By extractor in the order given, then the known columns in order, then all others."""
    keys, known = list(keys), list(_KNOWN)
    extractors = list(dict.fromkeys(parts[1] for key in keys if (parts := _parts(key))))

    def rank(key: str) -> tuple[int, int, bool]:
        if parts := _parts(key):
            family = "fd" if parts[0] == "fid" else parts[0]
            return extractors.index(parts[1]), _DISTANCES.index(family), key.endswith(("_se", "_std"))
        return len(extractors), known.index(key) if key in known else len(known), False

    return sorted(keys, key=rank)


def _parts(key: str) -> tuple[str, str] | None:
    """Family and extractor of a metric, or of an error, that has one; that of `fid` has no name."""
    if key.endswith(VOCODED):
        return None
    found = _OF_EXTRACTOR.fullmatch(key.removesuffix("_se").removesuffix("_std"))
    if found is None or (found[1] == "fd" and not found[2]) or (found[1] == "fid" and found[2]):
        return None
    return found[1], found[2] or ""


def column(key: str) -> Column:
    """How a metric is shown; unknown ones keep their own name."""
    if key in _KNOWN:
        return _KNOWN[key]
    if key.endswith(VOCODED):
        distance = column(key.removesuffix(VOCODED))
        title = f"{distance.title} after Griffin-Lim"
        return replace(distance, key=key, title=title, brief=False, short="", error="")
    parts = _parts(key)
    if parts is None:
        return Column(key, key, decimals=4)
    family, extractor = parts
    ends = {"fd": "_se", "fid": "_se", "kid": "_std"}
    error = f"{key}{ends[family]}" if family in ends else ""
    return replace(_FAMILIES[family], key=key, unit=extractor or "Inception", error=error)


def columns(frame: pd.DataFrame) -> list[Column]:
    """How each column of a metrics frame is shown; errors stand behind what they are the errors of."""
    shown = [column(key) for key in frame.columns]
    behind = {each.error for each in shown}
    return [each for each in shown if each.key not in behind]


def quality_column(frame: pd.DataFrame) -> Column | None:
    """The distance between made and real pictures that the figures show, if any was measured."""
    return next((column(key) for key in frame.columns if is_distance(key)), None)


def is_distance(key: str) -> bool:
    """Whether a metric is a Frechet distance."""
    parts = _parts(key)
    return parts is not None and parts[0] in ("fd", "fid") and not key.endswith("_se")


def markdown(headings: Sequence[str], rows: Iterable[Iterable[object]], left: Collection[int] = (0,)) -> str:
    """A table in Markdown; the columns at the places `left` stand left, the others right."""
    aligned = [":--" if place in left else "--:" for place in range(len(headings))]
    lines = ((str(cell).replace("|", r"\|") for cell in line) for line in [headings, aligned, *rows])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def markdown_table(frame: pd.DataFrame) -> str:
    """The table of models for a README."""
    shown = [each for each in columns(frame) if each.brief]
    rows = ([model, *(each.of(row) for each in shown)] for model, row in frame.iterrows())
    return markdown(["model", *(each.heading for each in shown)], rows)


def rich_table(frame: pd.DataFrame, network: str = "UNet", item: str = "image") -> Table:
    """A `metrics_frame` for a terminal of 80 columns, as far as it goes.

    The denoiser is called `network`, and what a model makes `item`.
    """
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("model", overflow="fold", min_width=8)
    shown = _fitting(frame, {"UNet": network, "image": item})
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True, vertical="bottom")
    for place, model in enumerate(frame.index):
        table.add_row(Text(visible(str(model))), *(cells[place] for cells in shown.values()))
    return table


def _fitting(frame: pd.DataFrame, names: Mapping[str, str]) -> dict[str, list[str]]:
    """Cells by heading of the columns that have room, the least important left out first.

    In headings, `names` stand for what they are the names of.
    """
    cells: dict[str, list[str]] = {}
    importance: dict[str, int] = {}
    for each in columns(frame):
        heading = each.short
        for usual, name in names.items():
            heading = heading.replace(usual, name)
        if heading and heading not in cells:  # of two extractors the first
            cells[heading] = [each.short_of(row) for _, row in frame.iterrows()]
            importance[heading] = _IMPORTANCE.index((_parts(each.key) or [each.key])[0])
    width = {name: max(map(len, [*name.split("\n"), *texts])) for name, texts in cells.items()}
    room = _TERMINAL - min(max(map(len, map(str, frame.index)), default=0), _NAME_WIDTH) - _BETWEEN
    while sum(width.values()) + _BETWEEN * len(width) > room:
        width.pop(max(width, key=lambda name: importance[name]))
    return {name: texts for name, texts in cells.items() if name in width}
