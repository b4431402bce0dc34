import itertools
import math
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from report_page import load
from synthetic_run import METRICS, PLANS, scored

from pelap.core.paths import RunPaths
from pelap.report import tables
from pelap.report.data import budget_points
from pelap.report.figures import operators, overview, style, training


def legend_of(figure: Figure) -> list[str]:
    legends = [*figure.legends, *(axis.get_legend() for axis in figure.axes)]
    return [text.get_text() for legend in legends if legend is not None for text in legend.get_texts()]


# Looks


def test_a_model_looks_the_same_everywhere_and_a_family_alike() -> None:
    alone, among = style.looks(["pelap", "mine"]), style.looks(["baseline", "pelap", "mine", "real"])
    assert [alone[name] for name in ("pelap", "mine")] == [among[name] for name in ("pelap", "mine")]
    assert len({look.colour for look in among.values()}) == 4
    look = style.looks(METRICS)
    assert [look[name].hollow for name in ("pruned-25", "distilled-25")] == [True, False]
    for family in ("pruned", "distilled", "scratch"):
        one, other = (look[f"{family}-{plan}"] for plan in PLANS)
        assert one.marker == other.marker
        assert (one.colour, one.dashes) != (other.colour, other.dashes)
    assert len({each.colour for each in look.values()}) == len(METRICS)
    families = [name for name in METRICS if not name.endswith("-35")]
    assert len({look[name].marker for name in families}) == len(families)
    of_one_plan = style.looks(["pruned-25", "distilled-25"])
    assert of_one_plan["distilled-25"].colour == "#cc79a7"  # itself


# Quality


def test_quality_alone_stands_in_the_tables_order() -> None:
    frame = tables.metrics_frame(
        {"pelap": {"fid": 9.0, "fid_se": 0.5}, "baseline": {"fid": 4.0}, "real": {"fid": 1.0}}
    )
    _, (axis,) = style.panels(1, (5, 4))
    overview.quality_alone(axis, frame, ["pelap", "baseline", "real"])
    assert [label.get_text() for label in axis.get_yticklabels()] == ["pelap", "baseline"]
    assert axis.get_ylim()[0] > axis.get_ylim()[1]  # the first one on top
    assert [line.get_xdata()[0] for line in axis.lines] == [9.0, 4.0, 1.0]  # type: ignore[index]
    (bar,) = axis.collections
    assert np.diff([x for x, _ in bar.get_segments()[0]]) == pytest.approx(2 * 1.96 * 0.5)  # type: ignore[attr-defined]


def budget_rows(**more: tuple[float, float]) -> pd.DataFrame:
    """A curve of the dense model at 20, 10 and 5 steps, and further models."""
    rows = [("invariant", 20, 10.0, 90.0), ("invariant", 5, 2.5, 120.0), ("invariant", 10, 5.0, 95.0)]
    rows += [(name.replace("_", "-"), 20, time, distance) for name, (time, distance) in more.items()]
    table = pd.DataFrame(rows, columns=["model", "steps", "image_ms", "fd_x"])
    return table.assign(image_iqr_ms=0.2, fd_x_se=1.0)


def equal_time(rows: pd.DataFrame, floor: float = math.nan) -> tuple[Figure, Axes]:
    points = budget_points(rows, "fd_x")
    figure, (axis,) = style.panels(1, (8, 5))
    look, column = style.looks(dict.fromkeys(points["model"])), tables.column("fd_x")
    overview.draw(axis, points, look, "invariant", column)
    overview.key(figure, points, look, "invariant")
    overview.finish(axis, points, "invariant", floor, column)
    return figure, axis


def test_dense_is_a_line_over_numbers_of_steps() -> None:
    more = {"pruned_25": (7.0, 150.0), "distilled_25": (7.0, 93.0), "dense_finetuned": (10.0, 89.0)}
    figure, axis = equal_time(budget_rows(**more))
    assert list(axis.lines[0].get_xdata()) == [2.5, 5.0, 10.0]  # type: ignore[arg-type]
    assert axis.lines[0].get_linestyle() == "-"
    texts = sorted(text.get_text() for text in axis.texts)
    assert texts == ["10", "20", "25", "25", "5", "dense-finetuned"]
    families = ["invariant; numbers: steps", "pruned", "distilled", "dense-finetuned"]
    assert legend_of(figure) == [*families, "other labels: plan"]
    marked = [line for line in axis.lines if line.get_marker() != "None"]
    hollow = {line.get_color() for line in marked if line.get_markerfacecolor() == style.PAPER}
    assert hollow == {style.looks(["pruned-25"])["pruned-25"].colour}


def test_shared_features_and_students_with_fewer_steps_are_lines() -> None:
    rows = budget_rows(cached_3=(5.5, 96.0), cached_2=(6.5, 91.0), pruned_25=(7.0, 150.0))
    finetuned = rows.head(3).assign(model="dense-finetuned", fd_x=[88.0, 118.0, 93.0])
    figure, axis = equal_time(pd.concat([rows, finetuned], ignore_index=True))
    look = style.looks(["invariant", "cached-3", "cached-2", "pruned-25", "dense-finetuned"])
    assert look["cached-2"] == look["cached-3"]
    curves = {line.get_color(): line for line in axis.lines if len(np.asarray(line.get_xdata())) > 1}
    assert list(curves) == [look[name].colour for name in ("invariant", "cached-2", "dense-finetuned")]
    assert {line.get_linestyle() for line in curves.values()} == {"-"}
    assert list(curves[look["cached-2"].colour].get_xdata()) == [5.5, 6.5]  # type: ignore[arg-type]
    widths = [line.get_linewidth() for line in curves.values()]
    assert widths[0] > widths[1] == widths[2]
    texts = sorted(text.get_text() for text in axis.texts)
    assert texts == sorted(["20", "10", "5"] * 2 + ["2", "3", "25"])
    assert legend_of(figure) == [
        "invariant; numbers: steps", "cached; numbers: interval", "pruned", "dense-finetuned; numbers: steps",
        "other labels: plan",
    ]  # fmt: skip
    unpruned, _ = equal_time(budget_rows(cached_2=(6.5, 91.0)))
    assert legend_of(unpruned) == ["invariant; numbers: steps", "cached; numbers: interval"]


def test_bars_are_intervals_and_quartiles() -> None:
    _, axis = equal_time(budget_rows().head(1))
    across, up = (bar.get_segments()[0] for bar in axis.collections)  # type: ignore[attr-defined]
    assert across[:, 0] == pytest.approx([9.9, 10.1])
    assert up[:, 1] == pytest.approx([90 - 1.96, 90 + 1.96])
    rows = budget_rows(pruned_25=(math.nan, 150.0), distilled_25=(7.0, math.nan))
    assert set(budget_points(rows, "fd_x")["model"]) == {"invariant"}  # no time, or no distance
    style.to_svg(equal_time(rows.drop(columns="fd_x_se"))[0], "bare")


@pytest.mark.parametrize(("floor", "drawn"), [(80.0, True), (20.0, False)])
def test_floor_is_a_line_unless_it_presses_the_points_together(floor: float, drawn: bool) -> None:
    _, axis = equal_time(budget_rows(), floor)
    lines = [line for line in axis.lines if list(np.asarray(line.get_ydata())) == [floor, floor]]
    assert bool(lines) == drawn
    assert axis.get_title(loc="right") == f"real pictures: {floor:.2f} ({'dashed' if drawn else 'below'})"
    low, high = axis.get_ylim()
    assert (low < floor) == drawn
    assert high - low < 3 * 30


def test_labels_cover_neither_each_other_nor_markers() -> None:
    near = {f"s{i}_25": (7.0 + 0.05 * i, 93.0 + 0.4 * i) for i in range(6)}
    near |= {"quite_a_long_name": (10.0, 120.0), "pruned_25": (7.1, 94.0)}  # the first in a corner
    rows = budget_rows(**near)
    figure, axis = equal_time(rows)
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axis.texts]  # without the line to the point
    assert len(boxes) == 11
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    marks = axis.transData.transform(rows[["image_ms", "fd_x"]].to_numpy())
    assert not any(box.contains(*mark) for box in boxes for mark in marks)
    frame = axis.get_window_extent()
    assert all(frame.contains(*corner) for box in boxes for corner in box.corners())


@pytest.mark.slow
def test_overview_is_as_high_as_its_samples_need(made: RunPaths) -> None:
    data = load(made)
    strip = overview.image_strip(data.samples["real"])
    assert strip.shape == (34, 274, 3)  # the first row
    few, many = (
        overview.overview(data, dict.fromkeys(list(data.samples)[:count], strip)).get_size_inches()
        for count in (3, 13)
    )
    assert few[0] == many[0] == 16
    assert few[1] == 7 < many[1] < 10
    assert int.from_bytes(made.report_figure.read_bytes()[16:20]) == 1600


# Losses


def test_epoch_curves_show_the_table() -> None:
    epochs = pd.DataFrame(
        {"variant": ["a", "a", "b", "b"], "epoch": [1, 2, 1, 2], "mean_mask": [0.9, 0.5, 1, 1],
         "min_mask": [0.8, 0.1, 1, 1], "max_mask": [1, 0.7, 1, 1], "unet_input_std": [1, 0.01, 2, 2],
         "diffusion_loss": [0.5, 0.1, 0.6, 0.3], "gaussian_floor": [0.4, 0.0, 0.4, 0.4]}
    )  # fmt: skip
    masks, scale, losses = training.epoch_curves(epochs, ["a", "b"]).axes
    assert [list(line.get_ydata()) for line in masks.lines] == [[0.9, 0.5], [1, 1]]
    low, high = masks.collections[0].get_paths()[0].get_extents().intervaly  # the band of a
    assert (low, high) == (0.1, 1)
    assert (scale.get_yscale(), losses.get_yscale()) == ("log", "log")
    assert [list(line.get_ydata()) for line in losses.lines[:2]] == [[0.5, 0.1], [0.4, 0.0]]
    assert len({line.get_color() for line in losses.lines}) == 2
    assert [line.get_linestyle() for line in losses.lines] == ["-", "--", "-", "--"]


def test_timestep_curves_need_a_floor_for_a_ratio() -> None:
    rows = [("a", 0, 99, 0.8, 0.4), ("a", 100, 199, 0.3, 0.6), ("closed", 0, 99, 0.1, 0.0)]
    columns = ["variant", "first_step", "last_step", "diffusion_loss", "gaussian_floor"]
    figure = training.timestep_curves(pd.DataFrame(rows, columns=columns), ["a", "closed"])
    losses, ratios = figure.axes
    assert list(losses.lines[0].get_xdata()) == [49.5, 149.5]
    assert list(ratios.lines[0].get_ydata()) == [2.0, 0.5]
    assert np.isnan(ratios.lines[1].get_ydata()).all()
    style.to_svg(figure, "timesteps")


def test_heat_map_reads_from_the_top() -> None:
    rows = [(v, f"class{i}", c, i / 100) for v in "ab" for i in range(100) for c in range(2)]
    masks = pd.DataFrame(rows, columns=["variant", "class_name", "channel", "mean_mask"])
    axes = training.mask_heatmap(masks).axes[:2]
    assert [axis.get_ylim() for axis in axes] == [(100, 0), (100, 0)]
    assert [label.get_text() for label in axes[0].get_yticklabels()][:2] == ["class0", "class5"]


def test_distillation_has_a_panel_a_term_and_a_line_a_student(made: RunPaths) -> None:
    data = load(made)
    axes = training.distillation_curves(data.distill, data.models).axes
    task, output, feature = (
        {line.get_label() for line in axis.lines if np.isfinite(np.asarray(line.get_ydata(), float)).any()}
        for axis in axes
    )
    assert task == set(data.students)
    assert task - output == {"dense-finetuned"}
    assert output - feature == {"output-only-25", "output-only-35"}
    assert axes[2].get_yscale() == "log"


def test_validation_shows_intervals_and_the_step_kept() -> None:
    table = pd.DataFrame(
        {"student": ["a", "a", "b"], "step": [0, 50, 0], "task": [3.0, 2.0, 4.0], "fd_x": [9.0, 8.0, np.nan],
         "fd_x_se": [0.5, np.nan, np.nan]}
    )  # fmt: skip
    students = {"a": {"kept_step": 0}, "b": {"kept_step": 0}}
    task, distance = training.distillation_quality(table, students, ["a", "b"]).axes
    rings = [line for line in task.lines if line.get_markerfacecolor() == "none"]
    assert [(list(r.get_xdata()), list(r.get_ydata())) for r in rings] == [([0], [3.0]), ([0], [4.0])]  # type: ignore[arg-type]
    first = distance.collections[0].get_segments()[0]  # type: ignore[attr-defined]
    assert first[:, 1] == pytest.approx([9 - 0.98, 9 + 0.98])
    bare = table[["student", "step", "task"]]
    assert len(training.distillation_quality(bare, {}, ["a", "b"]).axes) == 1


# Operators

EVERY = (operators.operator_bars, operators.score_depth, operators.score_latency)


def names_of(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def segments(axis: Axes) -> list[tuple[float, float]]:
    """Ends of the last drawn whiskers of bars."""
    lines = axis.collections[-1].get_segments()  # type: ignore[attr-defined]
    return [(line[0][0], line[1][0]) for line in lines if len(line)]  # no interval, no line


@pytest.mark.parametrize("count", [0, 3, 52, 300])
def test_bars_name_the_extremes_the_replaced_and_the_first_kept(count: int) -> None:
    scores = scored({f"op{i}": i / 7 for i in range(count)})
    figure = operators.operator_bars(scores, {f"op{i}": "identity" for i in (*range(50), 150)})
    expected = [*range(51), 150, *range(290, 300)] if count == 300 else list(range(count))
    more = [text.get_text() for text in figure.axes[0].texts if "more" in text.get_text()]
    assert more == (["… 99 more …", "… 139 more …"] if count == 300 else [])
    assert not count or names_of(figure) == [f"op{i}" for i in expected]
    assert len(figure.axes[0].patches) == len(expected)


def test_bars_name_what_dots_would_take_the_room_of() -> None:
    scores = scored({f"op{i}": i + 1.0 for i in range(200)})
    replaced = dict.fromkeys([f"op{i}" for i in (*range(40), 43, 47)], "identity")
    # 40 is the first one kept; 41 and 42 take no more room than dots, 44 to 46 do
    expected = [f"op{i}" for i in (38, 39, 40, 41, 42, 43, 47, 190)]
    assert names_of(operators.operator_bars(scores, replaced))[38:46] == expected


def test_bars_show_intervals_and_replacements() -> None:
    scores = scored({"a": 1.0, "a.inner": 3.0, "b": 2.0, "c": 4.0})
    scores.loc[3, ["score_low", "score_high"]] = np.nan
    figure = operators.operator_bars(scores, {"a": "avg_pool+projection", "b": "identity"})
    (axis,) = figure.axes
    assert segments(axis) == [(0.5, 2.0), (1.0, 4.0), (1.5, 6.0)]  # none for c
    assert [(text.get_text(), text.xy[0]) for text in axis.texts] == [  # type: ignore[attr-defined]
        ("avg_pool+projection", 2.0), ("identity", 4.0),
    ]  # fmt: skip
    colours = [bar.get_facecolor() for bar in axis.patches]
    assert len(set(colours)) == 3
    assert colours[0] == colours[1]
    assert legend_of(figure) == ["replaced", "gone with a replaced one", "kept"]


def test_figures_mark_what_stopped_early() -> None:
    scores = scored({"a": 1.0, "b": 2.0}, stopped_early=[False, True])
    bars, depth, scatter = (draw(scores, {}) for draw in EVERY)
    assert [bool(bar.get_hatch()) for bar in bars.axes[0].patches] == [False, True]
    assert [line.get_alpha() for line in depth.axes[0].lines] == [None, operators.FAINT]
    assert all(operators.STOPPED in legend_of(figure) for figure in (bars, depth, scatter))
    whole = [draw(scores.assign(stopped_early=False), {}) for draw in EVERY]
    assert not any(operators.STOPPED in legend_of(figure) for figure in whole)
    assert not any(bar.get_hatch() for bar in whole[0].axes[0].patches)


def test_infinite_scores_stand_at_the_edge_with_a_sign() -> None:
    scores = scored({"a": 1.0, "b": np.inf})
    (bars,) = operators.operator_bars(scores, {"b": "nearest"}).axes
    assert bars.patches[1].get_width() == bars.get_xlim()[1] > 2.0  # type: ignore[attr-defined]
    assert [text.get_text() for text in bars.texts] == ["∞ nearest"]
    assert segments(bars) == [(0.5, 2.0)]
    assert bars.get_xscale() == "log"
    for (axis,) in (draw(scores, {}).axes for draw in EVERY[1:]):
        heights = [float(y) for line in axis.lines for y in np.asarray(line.get_ydata())]
        assert sorted(heights) == [1.0, 3.0]
        assert axis.get_yscale() == "log"
        signs = [text for text in axis.texts if text.get_text() == "∞"]
        assert [text.xy[1] for text in signs] == [3.0]  # type: ignore[attr-defined]


@pytest.mark.parametrize("values", [[np.inf, np.inf], [0.0, np.inf], [0.0, 0.0], [np.inf, 1e-30]])
def test_scores_without_a_scale_are_drawn(values: list[float]) -> None:
    scores = scored(dict(zip("ab", values, strict=True)))
    for draw in EVERY:
        style.to_svg(draw(scores, {"a": "identity"}), "odd")
    zero = scored({"a": 0.0, "b": 2.0}, score_low=np.nan, score_high=np.nan, latency_share=[-0.01, 0.5])
    widths = [bar.get_width() for bar in operators.operator_bars(zero, {}).axes[0].patches]  # type: ignore[attr-defined]
    assert widths == [1.0, 2.0]


def test_operators_stand_in_the_order_of_execution() -> None:
    """A real network's calls are the reference: `named_modules` has the middle last."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=2, out_channels=2, layers_per_block=2, block_out_channels=(4, 8, 8),
        norm_num_groups=2, attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    ran: list[str] = []
    outer = re.compile(r"(resnets|attentions|samplers)\.\d+$|conv_norm_out|conv_act")
    names = [name for name, _ in unet.named_modules() if outer.search(name)]
    for name in names:
        unet.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    with torch.no_grad():
        unet(torch.zeros(1, 2, 8, 8), 0)
    assert len(ran) == len(set(names)) > 25
    shuffled = np.random.default_rng(0).permutation(names)
    rows = operators.outermost(scored({str(name): 1.0 for name in shuffled}))
    assert list(rows["operator"]) == ran
    sections = list(dict.fromkeys(rows["section"]))
    assert sections == ["down 0", "down 1", "down 2", "mid", "up 0", "up 1", "up 2", "out"]
    # Ours, and strangers: last, numbers counted.
    names = ["block_up", "mine.10", "block_mid", "mine.9", "block_in", "block_down"]
    rows = operators.outermost(scored(dict.fromkeys(names, 1.0)))
    assert list(rows["operator"]) == ["block_in", "block_down", "block_mid", "block_up", "mine.9", "mine.10"]
    assert list(rows["section"]) == ["in", "down", "mid", "up", "", ""]


def test_depth_shows_outermost_operators_by_kind() -> None:
    scores = scored(
        {"up_blocks.0.resnets.0": 4.0, "mid_block.attentions.0": 1.0, "mid_block.attentions.0.to_q": 2.0},
        kind=["residual_block", "attention", "linear"],
        parent=[None, None, "mid_block.attentions.0"],
    )
    (axis,) = (figure := operators.score_depth(scores, {"mid_block.attentions.0": "residual"})).axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["attentions.0", "resnets.0"]
    assert [text.get_text() for text in axis.texts] == ["mid", "up 0"]
    points = axis.lines[:2]
    assert [float(np.asarray(line.get_ydata())[0]) for line in points] == [1.0, 4.0]
    assert [line.get_markerfacecolor() == style.PAPER for line in points] == [True, False]
    assert points[0].get_color() != points[1].get_color()
    (whiskers,) = axis.collections
    assert [[y for _, y in line] for line in whiskers.get_segments()] == [[0.5, 2.0], [2.0, 8.0]]  # type: ignore[attr-defined]
    assert legend_of(figure) == ["residual block", "attention", "hollow: replaced"]
