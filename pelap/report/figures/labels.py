"""Labels beside points, put where they cover neither each other nor what is drawn."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from pelap.report.figures.style import INK, literal

_ANGLES = (90, 45, 0, -45, -90, 135, 180, -135)
"""Where a label may stand around its point, the best places first."""
_DISTANCES = (10, 17, 26, 38)  # points from the middle of the marker to the nearest edge of the label
_LINE_FROM = 20  # from this distance on a thin line says which point is meant
_WIDTH, _HEIGHT = 0.62, 1.25  # size of a character in sizes of the font
_SAMPLES = 40  # points that stand for a line
_COVERED, _OUTSIDE = 50.0, 500.0
"""What covering a label or a marker (a line: a tenth), and leaving the axes, cost in points of distance."""
_CLEAR = 5  # points that a label is to be nearer to its own marker than to any other

Points = NDArray[np.float64]


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
    obstacles = np.concatenate(drawn) if drawn else np.empty((0, 2))
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
    if not len(data):
        return np.empty((0, 2))
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
