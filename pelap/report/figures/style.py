"""How every figure looks: a colour and marker a model, quiet axes, labels that cover nothing, PNG and SVG."""

import io
import itertools
import math
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from pelap.core.paths import REAL_ROW
from pelap.report.tables import PRUNED, plans_of, split_row

Dashes: TypeAlias = str | tuple[int, tuple[float, ...]]
Points: TypeAlias = NDArray[np.float64]

# Written by no other element, so that `to_svg` can hand them to the page's colour scheme.
INK, MUTED, GRID, PAPER = "#24292e", "#6a737e", "#d8dee5", "#fefefd"
REMOVED, INSIDE, KEPT = "#d55e00", "#f0b48f", "#8fa3b5"  # operators that the plan removes, and the others

_THEME = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--rule)", PAPER: "var(--paper)"}
_LONGEST = 18  # characters of a name in a figure; the tables have all of them
_FIXED = {
    "baseline": ("#0072b2", "o"),
    "pelap": ("#e69f00", "s"),
    "invariant": ("#009e73", "D"),
    "dense": ("#44aa99", "o"),
    "pruned": ("#d55e00", "v"),
    "distilled": ("#cc79a7", "^"),
    "output-only": ("#56b4e9", "P"),
    "scratch": ("#999933", "X"),
    "dense-finetuned": ("#882255", "h"),
    "cached": ("#332288", ">"),
    REAL_ROW: ("#7f8790", "*"),
}
_SPARE = (("#aa4499", "<"), ("#117733", "8"), ("#6699cc", "p"), ("#ddaa33", "H"), ("#997700", "d"))
# Lines of the first plan, the second, ...; with more plans than these they come again.
_DASHES: tuple[Dashes, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_SHADE = 0.25  # how much of white the first of several plans has, and how much of black the last
_ANGLES = (90, 45, 0, -45, -90, 135, 180, -135)  # where a label may stand around its point, the best first
_DISTANCES = (10, 17, 26, 38)  # points from the middle of the marker to the nearest edge of the label
_LINE_FROM = 20  # from this distance on a thin line says which point is meant
_WIDTH, _HEIGHT = 0.62, 1.25  # size of a character in sizes of the font
_SAMPLES = 40  # points that stand for a line
_COVERED, _OUTSIDE = 50.0, 500.0
"""What covering a label or a marker (a line: a tenth), and leaving the axes, cost in points of distance."""
_CLEAR = 5  # points that a label is to be nearer to its own marker than to any other


@dataclass(frozen=True)
class Look:
    """Colour, marker and line of a model."""

    colour: str
    marker: str
    hollow: bool = False
    dashes: Dashes = "-"

    @property
    def face(self) -> str:
        """What the marker is filled with."""
        return PAPER if self.hollow else self.colour

    def marked(self, size: float) -> dict[str, Any]:
        """Colour and marker, as matplotlib calls them."""
        return {
            "color": self.colour, "marker": self.marker, "markersize": size, "markerfacecolor": self.face,
        }  # fmt: skip

    def error_bars(self, scale: float) -> dict[str, Any]:
        """A marker with error bars, as matplotlib calls them, at a factor of all sizes."""
        edge = {"markeredgecolor": self.colour if self.hollow else PAPER}
        return self.marked(8 * scale) | edge | {"elinewidth": 1.1 * scale, "zorder": 3}


def looks(models: Iterable[str]) -> dict[str, Look]:
    """One look per model, the same wherever the same models are shown (Okabe and Ito's palette).

    Rows of one family, such as a student of several plans, have one hue and one marker; the plan is in the
    shade and the dashes. Families with names of their own take the spare looks in the order given.
    """
    models = list(models)
    plans = plans_of(models)
    names = {model: split_row(model, plans) for model in models}
    own = list(dict.fromkeys(family for family, _ in names.values() if family not in _FIXED))
    base = {family: _SPARE[index % len(_SPARE)] for index, family in enumerate(own)} | _FIXED
    return {model: _look(*base[family], family, plan, plans) for model, (family, plan) in names.items()}


def _look(colour: str, marker: str, family: str, plan: str | None, plans: Sequence[str]) -> Look:
    place = plans.index(plan) if plan in plans else 0
    depth = 2 * place / (len(plans) - 1) - 1 if plan in plans and len(plans) > 1 else 0.0
    ground = float(depth < 0)  # mixed with white, or with black
    share = abs(depth) * _SHADE
    shade = to_hex(tuple((1 - share) * part + share * ground for part in to_rgb(colour)))  # type: ignore[arg-type]
    return Look(shade, marker, family == PRUNED, _DASHES[place % len(_DASHES)])


def panels(
    columns: int, size: tuple[float, float], rows: int = 1, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of `size` inches with quiet axes, row by row."""
    figure = Figure(figsize=size, layout="constrained", facecolor=PAPER)
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).flat)
    for axis in axes:
        quiet(axis)
    return figure, axes


def quiet(axis: Axes) -> None:
    """No box, light grid behind the data, muted ticks."""
    axis.set_facecolor(PAPER)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(GRID)
    axis.grid(color=GRID, linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(which="both", colors=MUTED, labelsize=9, length=0)


def titles(axis: Axes, title: str = "", x: str = "", y: str = "", scale: float = 1.0) -> None:
    """Title above the left edge, axis labels with units."""
    axis.set_title(title, loc="left", fontsize=10.5 * scale, color=INK, fontweight="bold")
    axis.set_xlabel(x, fontsize=9.5 * scale, color=INK)
    axis.set_ylabel(y, fontsize=9.5 * scale, color=INK)


def legend(owner: Axes | Figure | SubFigure, **where: Any) -> None:
    """Frameless legend in the ink colour."""
    owner.legend(**({"frameon": False, "fontsize": 9, "labelcolor": INK} | where))


def nothing(axis: Axes, text: str) -> None:
    """Say that there is nothing to draw."""
    axis.set_axis_off()
    axis.text(0.5, 0.5, text, color=MUTED, ha="center", va="center", transform=axis.transAxes)


def log_scale(
    axis: Axes, values: Iterable[float] | None = None, which: str = "y", least: float = 1.0
) -> None:
    """Logarithmic axis with plain numbers, if positive values (None: its lines') span this ratio at least."""
    if values is None:
        values = np.concatenate([[], *(np.asarray(line.get_ydata(), float) for line in axis.lines)])
    positive = [value for value in values if value > 0]
    if not positive or max(positive) < least * min(positive):
        return
    getattr(axis, f"set_{which}scale")("log")
    side = axis.yaxis if which == "y" else axis.xaxis
    side.set_major_formatter(plain_number)
    side.set_minor_formatter(lambda value, _: "")
    low, high = sorted(side.get_view_interval())
    if low > 0 and high / low < 30:  # too few decades for the major ticks alone
        side.set_minor_formatter(lambda value, _: plain_number(value) if f"{value:.0e}"[0] in "25" else "")


def plain_number(value: float, _: float | None = None) -> str:
    """Shortest readable number: 0.001, 0.5, 20, 1e-07."""
    return f"{value:.3g}"


def shortened(text: str) -> str:
    """A name, as far as a label has room for it."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def literal(text: object) -> str:
    """A stranger's text for a label: matplotlib takes dollar signs for mathematics."""
    return str(text).replace("$", r"\$")


def to_png(figure: Figure, dpi: int = 100) -> bytes:
    """PNG of a figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def to_svg(figure: Figure, name: str) -> str:
    """SVG element for inlining: transparent, in the page's font, following its colour scheme.

    Args:
        figure: What to draw.
        name: Unique on the page; keeps the identifiers of two figures apart, and the same run
            gives the same file.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has more fonts
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _adopt(buffer.getvalue())


def _adopt(text: str) -> str:
    """Turn a stand-alone SVG file into an element of the page."""
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<style.*?</style>", "", text, count=1, flags=re.DOTALL)
    used = set(re.findall(r"(?:href=\"|url\()#([^\")]+)", text))
    text = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", text)
    for colour, variable in _THEME.items():
        text = text.replace(colour, variable)
    text = re.sub(r"font-family: 'DejaVu Sans Mono'[^;\"]*", "font-family: ui-monospace, monospace", text)
    return re.sub(r"font-family: [^;\"]*sans-serif", "font-family: system-ui, sans-serif", text)


@dataclass(frozen=True)
class Label:
    """A text for the point (x, y) in data coordinates."""

    x: float
    y: float
    text: str


def place(axis: Axes, labels: Sequence[Label], lines: Sequence[Points], size: float) -> None:
    """Write every label into axes whose limits are set.

    Args:
        axis: Where to draw.
        labels: Texts and their points.
        lines: What is drawn besides the points: corners (n, 2) in data coordinates.
        size: Of the font.
    """
    figure = axis.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # the layout decides how many pixels the axes have
    pixel = 72 / figure.dpi
    marks = _points(axis, np.array([[label.x, label.y] for label in labels]).reshape(-1, 2)) * pixel
    drawn = [_sampled(_points(axis, line) * pixel) for line in lines]
    obstacles = np.concatenate([np.empty((0, 2)), *drawn])
    frame = np.array(axis.bbox.extents) * pixel
    taken: list[Points] = []
    for label, mark in zip(labels, marks, strict=True):
        extent = np.array([_WIDTH * len(label.text), _HEIGHT]) * size
        box = min(_boxes(mark, extent), key=lambda box: _cost(box, mark, taken, marks, obstacles, frame))
        taken.append(box)
        middle = (box[:2] + box[2:]) / 2 - mark
        far = _gap(box, mark) >= _LINE_FROM
        axis.annotate(
            literal(label.text), (label.x, label.y), xytext=tuple(middle), textcoords="offset points",
            ha="center", va="center", fontsize=size, color=INK, zorder=5, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": INK, "lw": 0.5, "shrinkB": 4} if far else None,
        )  # fmt: skip


def _points(axis: Axes, data: Points) -> Points:
    """Pixels of data coordinates; what has no place, such as 0 on a logarithmic axis, is left out."""
    pixels: Points = np.asarray(axis.transData.transform(data), dtype=float)
    finite: Points = pixels[np.isfinite(pixels).all(axis=1)]
    return finite


def _sampled(corners: Points) -> Points:
    """Points along a line."""
    share = np.linspace(0, 1, _SAMPLES)[:, None]
    parts = [start + share * (end - start) for start, end in itertools.pairwise(corners)]
    return np.concatenate(parts) if parts else corners


def _boxes(mark: Points, extent: Points) -> list[Points]:
    """Places for a label of this width and height: left, bottom, right, top."""
    boxes = []
    for distance, angle in itertools.product(_DISTANCES, _ANGLES):
        way = np.array([math.cos(math.radians(angle)), math.sin(math.radians(angle))])
        middle = mark + way * (distance + np.abs(way) * extent / 2)
        boxes.append(np.concatenate([middle - extent / 2, middle + extent / 2]))
    return boxes


def _gap(box: Points, mark: Points) -> float:
    """Distance of a box from a point."""
    return float(np.hypot(*np.maximum(0, np.maximum(box[:2] - mark, mark - box[2:]))))


def _cost(
    box: Points, mark: Points, taken: Sequence[Points], marks: Points, obstacles: Points, frame: Points
) -> float:
    labels = sum(bool((box[:2] < other[2:]).all() and (other[:2] < box[2:]).all()) for other in taken)
    markers = _inside(box + np.array([-5, -5, 5, 5]), marks)
    lines = _inside(box, obstacles)
    outside = float(np.maximum(0, np.concatenate([frame[:2] - box[:2], box[2:] - frame[2:]])).sum())
    others = [_gap(box, other) for other in marks if (other != mark).any()]
    doubt = max(0.0, _gap(box, mark) - min(others, default=math.inf) + _CLEAR)
    covered = _COVERED * (labels + markers) + _COVERED / 10 * lines
    return _gap(box, mark) + doubt + covered + (_OUTSIDE + outside if outside else 0)


def _inside(box: Points, points: Points) -> int:
    return int(((points > box[:2]) & (points < box[2:])).all(axis=1).sum())
