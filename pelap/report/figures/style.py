"""How every figure looks: one colour and marker per model, quiet axes, PNG and themeable SVG."""

import io
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure, SubFigure

from pelap.core.paths import REAL_ROW
from pelap.report.tables import PRUNED, plans_of, split_row

Dashes: TypeAlias = str | tuple[int, tuple[float, ...]]

INK, MUTED, GRID, PAPER = "#24292e", "#6a737e", "#d8dee5", "#fefefd"
"""Written by no other element, so that `to_svg` can hand them to the page's colour scheme."""
REMOVED, INSIDE, KEPT = "#d55e00", "#f0b48f", "#8fa3b5"
"""Operators that the plan removes, and the others."""

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
_DASHES: tuple[Dashes, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
"""Lines of the first plan, the second, ...; with more plans than these they come again."""
_SHADE = 0.25  # how much of white the first of several plans has, and how much of black the last


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
    return {model: _look(base[family], family, plan, plans) for model, (family, plan) in names.items()}


def _look(base: tuple[str, str], family: str, plan: str | None, plans: Sequence[str]) -> Look:
    place = plans.index(plan) if plan in plans else 0
    depth = 2 * place / (len(plans) - 1) - 1 if plan in plans and len(plans) > 1 else 0.0
    colour = _shade(base[0], depth * _SHADE)
    return Look(colour, base[1], family == PRUNED, _DASHES[place % len(_DASHES)])


def _shade(colour: str, depth: float) -> str:
    """Mixed with this share of black, or of white where it is negative."""
    ground = "#ffffff" if depth < 0 else "#000000"
    mixed = zip(to_rgb(colour), to_rgb(ground), strict=True)
    red, green, blue = ((1 - abs(depth)) * own + abs(depth) * other for own, other in mixed)
    return to_hex((red, green, blue))


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


def titles(axis: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Title above the left edge, axis labels with units."""
    axis.set_title(title, loc="left", fontsize=10.5, color=INK, fontweight="bold")
    axis.set_xlabel(x, fontsize=9.5, color=INK)
    axis.set_ylabel(y, fontsize=9.5, color=INK)


def legend(owner: Axes | Figure | SubFigure, **where: Any) -> None:
    """Frameless legend in the ink colour."""
    owner.legend(**({"frameon": False, "fontsize": 9, "labelcolor": INK} | where))


def nothing(axis: Axes, text: str) -> None:
    """Say that there is nothing to draw."""
    axis.set_axis_off()
    axis.text(0.5, 0.5, text, color=MUTED, ha="center", va="center", transform=axis.transAxes)


def log_scale(axis: Axes, values: Iterable[float], which: str = "y", least: float = 1.0) -> None:
    """Logarithmic axis with plain numbers, if positive values span this ratio at least."""
    positive = [value for value in values if value > 0]
    if not positive or max(positive) < least * min(positive):
        return
    getattr(axis, f"set_{which}scale")("log")
    side = axis.yaxis if which == "y" else axis.xaxis
    side.set_major_formatter(plain_number)
    side.set_minor_formatter(lambda value, _: "")
    low, high = sorted(side.get_view_interval())
    if low > 0 and high / low < 30:  # too few decades for the major ticks alone
        side.set_minor_formatter(lambda value, _: plain_number(value) if _leads_with(value, "25") else "")


def plain_number(value: float, _: float | None = None) -> str:
    """Shortest readable number: 0.001, 0.5, 20, 1e-07."""
    return f"{value:.3g}"


def _leads_with(value: float, digits: str) -> bool:
    return f"{value:.0e}"[0] in digits


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
