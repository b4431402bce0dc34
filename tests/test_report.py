import base64
import json
import math
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from scipy import stats
from synthetic_run import METRICS, PROTOCOL, SCORE_PROTOCOL, VARIANTS, build_run

from pelap import io
from pelap.errors import BusyError, DataError, PelapError
from pelap.paths import RunPaths
from pelap.report import (
    collapse,
    figures,
    figures_collapse,
    figures_depth,
    figures_pruning,
    html,
    operators,
    style,
    sweep,
    tables,
    words,
)
from pelap.stages import report


def context(paths: RunPaths, variants: tuple[str, ...] = VARIANTS) -> Any:
    params = SimpleNamespace(dataset="photos", seed=0, variants=dict.fromkeys(variants))
    return SimpleNamespace(params=params, paths=paths)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    paths = build_run(tmp_path_factory.mktemp("made") / "run")
    report.run(context(paths))
    return paths


@pytest.fixture
def paths(made: RunPaths, tmp_path: Path) -> RunPaths:
    """A copy of the inputs to damage."""
    shutil.copytree(made.root, tmp_path / "run", ignore=shutil.ignore_patterns("report", ".*"))
    return RunPaths(tmp_path / "run")


class Page(HTMLParser):
    """Attributes, identifiers and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.feed(text.split("<style>")[0] + text.split("</style>")[1])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())


def metric_rows(text: str, table_id: str = "metrics") -> Iterator[tuple[str, list[str]]]:
    table = text[text.index(f'<table id="{table_id}">') :].split("</table>")[0]
    for row in re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', table, re.DOTALL):
        name = re.sub(r"<.*?>", "", row[0]).strip()
        yield name, re.findall(r"<td>(.*?)</td>", row[1])


def as_number(cell: str) -> float:
    return float(cell.replace(",", "").replace(tables.MINUS, "-"))


def test_page_needs_no_other_file(made: RunPaths) -> None:
    text = made.report_page.read_text(encoding="utf-8")
    page = Page(text)
    sources = [value for _, name, value in page.attributes if name in ("src", "href", "xlink:href", "srcset")]
    assert sources
    for value in sources:
        assert value.startswith(("#", "data:image/png;base64,")), value[:80]
    targets = {value[1:] for value in sources if value.startswith("#")}
    assert targets <= set(page.ids)
    assert not re.findall(r"url\((?!#)|@import|<script|<link", text)
    namespaces = ("http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink")
    assert set(re.findall(r"https?://[^\"'\s<]*", text)) <= set(namespaces)
    assert str(made.root) not in text


def test_identifiers_are_unique(made: RunPaths) -> None:
    """Two figures with one identifier would clip each other."""
    ids = Page(made.report_page.read_text(encoding="utf-8")).ids
    assert sum(bool(re.fullmatch(r"p[0-9a-f]{10}", name)) for name in ids) > 6
    assert len(set(ids)) == len(ids)


def test_page_has_all_models_and_sections(made: RunPaths) -> None:
    text = made.report_page.read_text(encoding="utf-8")
    page = Page(text)
    assert [name for name, _ in metric_rows(text)] == list(METRICS)
    for section in re.findall(r'href="#(\w+)"', text.split("</nav>")[0]):
        assert f'<h2 id="{section}">' in text
    assert len(re.findall(r"<h2", text)) == 9
    assert len(re.findall(r"<svg", text)) == 9
    for model in METRICS:
        assert page.texts.count(model) >= 2, model
    for text in (
        "0123abcd" * 8,
        "sampler.steps",
        "astronaut",
        *io.read_csv(made.scores)["operator"].head(40),
    ):
        assert text in page.texts, text


def test_pictures_are_the_ones_of_the_run(made: RunPaths) -> None:
    page = Page(made.report_page.read_text(encoding="utf-8"))
    shown = [
        base64.b64decode(v.split(",")[1]) for tag, name, v in page.attributes if (tag, name) == ("img", "src")
    ]
    samples = [made.samples(model).read_bytes() for model in METRICS]
    assert shown == samples + [made.reconstructions(name).read_bytes() for name in ("real", *VARIANTS)]
    assert ("img", "width", "548") in page.attributes  # 274 pixels, magnified by a whole number


def test_numbers_are_those_of_the_metrics(made: RunPaths) -> None:
    shown = tables.columns(tables.metrics_frame(METRICS, "invariant"))
    for model, cells in metric_rows(made.report_page.read_text(encoding="utf-8")):
        assert len(cells) == len(shown) == 9
        for column, cell in zip(shown, cells, strict=True):
            value = METRICS[model].get(column.key)
            if column.key == tables.CHANGE and METRICS[model].get("latency_ms"):
                value = METRICS[model]["latency_ms"] / METRICS["invariant"]["latency_ms"] - 1  # type: ignore[operator]
            if value is None:
                assert cell == tables.DASH
            else:
                assert as_number(cell) == pytest.approx(value * column.scale, abs=0.51 * 10**-column.decimals)


def test_missing_is_a_dash_everywhere(made: RunPaths) -> None:
    markdown = made.report_table.read_text(encoding="utf-8")
    page = "\n".join(Page(made.report_page.read_text(encoding="utf-8")).texts)
    for text in (markdown, page, words_of(made)):
        assert not re.search(r"\b(nan|none|inf)\b", text, re.IGNORECASE)
    assert markdown.splitlines()[-1] == f"| real | 22.88 |{f' {tables.DASH} |' * 8}"
    assert markdown.splitlines()[1] == f"| :-- |{' --: |' * 9}"
    assert "| 812,345 |" in markdown
    assert f"| {tables.MINUS}24.0 |" in markdown


def words_of(paths: RunPaths) -> str:
    return "\n".join(words.headline(report.load(context(paths).params, paths)))


def test_headline_says_what_the_numbers_say(paths: RunPaths) -> None:
    text = words_of(paths)
    assert "Pruning replaced 27 of 122 scored operators, and 24 inside them went along." in text
    assert "24.0 % less time, measured (25.0 % less time was promised)" in text
    assert "812,345 parameters; the dense one had 1,234,567 (34.2 % fewer)" in text
    assert "131.55 right after pruning (43.4 % worse), 93.22 after distillation (1.6 % worse)" in text
    assert "best first: invariant (91.73), baseline (96.42) and pelap (214.99)" in text
    assert "0.003 in baseline" in text
    assert "Verdict on the latents: mask collapse in baseline; partial mask in pelap and invariant." in text
    assert "240 steps" in text


def test_collapse_shows_verdict_reason_and_numbers(made: RunPaths) -> None:
    text = made.report_page.read_text(encoding="utf-8")
    verdicts = {
        name: [re.sub(r"<.*?>", "", cell) for cell in cells] for name, cells in metric_rows(text, "verdicts")
    }
    assert verdicts["baseline"] == ["mask collapse", "0 of 4 channels are open"]
    assert verdicts["invariant"] == ["partial mask", "2 of 4 channels are open"]
    table, numbers = io.read_csv(made.collapse_table), dict(metric_rows(text, "collapses"))
    assert list(numbers) == list(VARIANTS)
    assert [cells[1] for cells in numbers.values()] == ["0 of 4", "1 of 4", "2 of 4"]
    for place, term in enumerate(collapse.TERMS):
        assert f"<dt>{term.name}</dt><dd>" in text
        if term.key != "active_channels":
            for cells, value in zip(numbers.values(), table[term.key], strict=True):
                assert as_number(cells[place]) == pytest.approx(value, abs=0.51 * 10**-term.decimals)


def test_collapse_without_a_number_has_a_dash() -> None:
    table = pd.DataFrame({"variant": ["closed"], "active_channels": [0], "floor_ratio": [np.nan]})
    found = collapse.numbers(table)
    assert [term.key for term in found["terms"]] == ["active_channels", "floor_ratio"]
    assert found["rows"] == [("closed", ["0", tables.DASH])]


def test_epoch_curves_show_the_table() -> None:
    epochs = pd.DataFrame(
        {"variant": ["a", "a", "b", "b"], "epoch": [1, 2, 1, 2], "mean_mask": [0.9, 0.5, 1, 1],
         "min_mask": [0.8, 0.1, 1, 1], "max_mask": [1, 0.7, 1, 1], "unet_input_std": [1, 0.01, 2, 2],
         "diffusion_loss": [0.5, 0.1, 0.6, 0.3], "gaussian_floor": [0.4, 0.0, 0.4, 0.4]}
    )  # fmt: skip
    masks, scale, losses = figures_collapse.epoch_curves(epochs, ["a", "b"]).axes
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
    figure = figures_collapse.timestep_curves(pd.DataFrame(rows, columns=columns), ["a", "closed"])
    losses, ratios = figure.axes
    assert list(losses.lines[0].get_xdata()) == [49.5, 149.5]
    assert list(ratios.lines[0].get_ydata()) == [2.0, 0.5]
    assert np.isnan(ratios.lines[1].get_ydata()).all()
    style.to_svg(figure, "timesteps")


def test_page_of_a_run_without_times(paths: RunPaths) -> None:
    """`evaluate.latency_repeats: null` leaves quality alone."""
    metrics = {
        model: {key: row[key] for key in ("fd_effnet_lite0", "psnr", "ssim") if key in row}
        for model, row in METRICS.items()
    }
    io.write_json(paths.metrics, metrics)
    report.run(context(paths))
    text = paths.report_page.read_text(encoding="utf-8")
    assert dict(metric_rows(text))["invariant"] == ["91.73", "25.46", "0.839"]
    assert "Times were not measured." in text
    assert "Quality and time" not in text
    shown = Page(text).texts
    assert {"91.73", "real against other real pictures: 22.88"} <= set(shown)
    header = paths.report_figure.read_bytes()[16:24]
    assert (int.from_bytes(header[:4]), int.from_bytes(header[4:])) == (1600, 700)


def test_quality_alone_stands_in_the_tables_order() -> None:
    frame = tables.metrics_frame({"pelap": {"fid": 9.0}, "baseline": {"fid": 4.0}, "real": {"fid": 1.0}})
    (axis,) = figures.quality_latency(frame, ["pelap", "baseline", "real"]).axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["pelap", "baseline"]
    assert [line.get_ydata()[0] for line in axis.lines] == [9.0, 4.0, 1.0]  # the last one is the floor


def test_headline_admits_a_loss(paths: RunPaths) -> None:
    io.write_json(paths.prune_result, {"measured_time_reduction": -0.031})
    better = {**METRICS, "distilled": {"fd_effnet_lite0": 45.86725}}
    io.write_json(paths.metrics, better)
    text = words_of(paths)
    assert "takes 3.1 % more time, measured." in text
    assert "45.87 after distillation (50.0 % better)" in text
    assert words.time_change(0.0) == "no less time"


def test_names_are_escaped(tmp_path: Path) -> None:
    variants = (*VARIANTS, "<i>own")
    paths = build_run(tmp_path / "run", variants)
    masks = io.read_csv(paths.masks_per_class).replace("cat", "<script>$a$ & \N{CJK UNIFIED IDEOGRAPH-732B}")
    io.write_csv(paths.masks_per_class, masks)
    io.write_json(paths.evaluate_protocol, PROTOCOL | {"note": "<b>bold</b>", "scored_variant": "<i>own"})
    report.run(context(paths, variants))
    text = paths.report_page.read_text(encoding="utf-8")
    for name in ("<i>own", "<script>", "<b>bold"):
        assert name not in text
    assert "&lt;i&gt;own" in text
    assert "&lt;b&gt;bold" in text
    assert "<script>$a$ & \N{CJK UNIFIED IDEOGRAPH-732B}" in Page(text).texts


def test_same_run_same_files(made: RunPaths, paths: RunPaths) -> None:
    report.run(context(paths))
    for name in ("report_page", "report_figure", "report_table"):
        assert getattr(paths, name).read_bytes() == getattr(made, name).read_bytes(), name


def test_terminal_shows_table_and_path(made: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    report.show(made)
    *table, last = capsys.readouterr().out.splitlines()
    assert last == str(made.report_page)
    lines = {line.split()[0]: line.split()[1:] for line in table if line.strip()}
    assert lines["invariant"] == ["91.73", "25.46", "0.839", "31.40", "0.0", "1.23", "4.32", "61.2"]
    assert lines["pruned"] == ["131.55", "-", "-", "23.87", "-24.0", "0.81", "4.32", "61.2"]


def test_terminal_without_a_page(paths: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    report.show(paths)
    assert capsys.readouterr().out.splitlines()[-1] == "no page yet: run pelap report"


def test_rich_table_fits_a_terminal() -> None:
    metrics = {name: {**row, "fid": 123.456} for name, row in METRICS.items()}
    metrics["a-variant-with-a-long-name"] = metrics.pop("pelap")
    console = Console(width=80, record=True, file=StringIO())
    console.print(tables.rich_table(tables.metrics_frame(metrics, "invariant")))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "214.99" in text
    assert "\N{HORIZONTAL ELLIPSIS}" not in text


REQUIRED = (
    "evaluate/metrics.json", "evaluate/protocol.json", "train/pelap/history.csv",
    "train/baseline/validation.csv", "collapse/collapse.csv", "collapse/masks_per_class.csv",
    "collapse/epochs.csv", "collapse/timesteps.csv",
    "score/scores.csv", "score/protocol.json", "prune/changes.csv", "prune/result.json",
    "distill/history.csv", "evaluate/samples/distilled.png", "evaluate/reconstructions/real.png",
)  # fmt: skip


@pytest.mark.parametrize("name", REQUIRED)
def test_missing_input_is_one_line(paths: RunPaths, name: str) -> None:
    (paths.root / name).unlink()
    with pytest.raises(PelapError) as caught:
        report.run(context(paths))
    assert str(paths.root / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not paths.report.exists()
    assert not list(paths.root.glob(".report.partial"))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "score/scores.csv",
            "operator,kind,parent,score,stopped_early\na,,,1,False\n",
            "lacks the columns score_low, score_high, num_latents, latency_share",
        ),
        ("score/protocol.json", '{"num_latents": 8}', "lacks the keys num_seeds, formula, early_stop"),
        ("score/protocol.json", "[]", "expected a JSON mapping"),
        (
            "prune/changes.csv",
            "operator,action,params_before\na,kept,1\n",
            "lacks the columns params_after, ",
        ),
        ("evaluate/metrics.json", '{"pelap": {"psnr": "12"}}', "pelap: expected a mapping"),
        ("evaluate/samples/pelap.png", "no picture", "not a readable PNG"),
    ],
)
def test_damaged_input_is_one_line(paths: RunPaths, name: str, content: str, says: str) -> None:
    (paths.root / name).write_text(content)
    with pytest.raises(DataError, match=says) as caught:
        report.run(context(paths))
    assert str(paths.root / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not paths.report.exists()


def test_truncated_picture_is_one_line(paths: RunPaths) -> None:
    whole = paths.samples("pelap").read_bytes()
    paths.samples("pelap").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a readable PNG"):
        report.run(context(paths))


def test_failed_report_keeps_the_last_one(made: RunPaths, tmp_path: Path) -> None:
    shutil.copytree(made.root, tmp_path / "run")
    paths = RunPaths(tmp_path / "run")
    paths.scores.unlink()
    with pytest.raises(DataError):
        report.run(context(paths))
    assert paths.report_page.read_bytes() == made.report_page.read_bytes()


def test_report_appears_whole_or_not_at_all(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(figures, "overview", fail)
    with pytest.raises(OSError, match="disk full"):
        report.run(context(paths))
    assert not paths.report.exists()


def test_two_reports_at_once(paths: RunPaths) -> None:
    with io.exclusive(paths.report), pytest.raises(BusyError):
        report.run(context(paths))


def test_run_with_little_measured(paths: RunPaths) -> None:
    """A run without costs, masks or scores still has a page, without warnings."""
    io.write_json(paths.metrics, {"baseline": {"psnr": 20.0}, "pruned": {}, "real": {}})
    io.write_json(paths.evaluate_protocol, {"device": None, "nested": {"a": [1, 2], "b": False}})
    io.write_json(paths.prune_result, {})
    tables_read = (*paths.collapse_tables.values(), paths.scores, paths.changes, paths.distill_history)
    for path in tables_read:
        if path == paths.collapse_channels:  # the report does not read it
            continue
        io.write_csv(path, io.read_csv(path).head(0))
    history = io.read_csv(paths.train("baseline").history).assign(noise=np.nan, recon=0.0)
    io.write_csv(paths.train("baseline").history, history)
    report.run(context(paths, ("baseline",)))
    text = paths.report_page.read_text(encoding="utf-8")
    assert dict(metric_rows(text))["pruned"] == [tables.DASH]
    assert "What changed" not in text
    assert 'id="certainty"' not in text
    assert {"1, 2", "no", "quality was not measured", "no operator was scored"} <= set(Page(text).texts)


def test_overview_has_the_size_of_a_hero(made: RunPaths) -> None:
    header = made.report_figure.read_bytes()[16:24]
    assert (int.from_bytes(header[:4]), int.from_bytes(header[4:])) == (1600, 700)


def test_strip_is_the_first_row(made: RunPaths) -> None:
    assert figures.image_strip(made.samples("pelap").read_bytes()).shape == (34, 274, 3)


def test_colours_stay_with_the_model() -> None:
    alone, among = style.looks(["pelap", "mine"]), style.looks(["baseline", "pelap", "mine", "real"])
    assert alone["pelap"] == among["pelap"]
    assert alone["mine"] == among["mine"]
    assert len({look.colour for look in among.values()}) == 4


def test_labels_move_apart() -> None:
    points = [(0.5, 0.4), (0.5, 0.4), (0.52, 0.41), (0.0, 0.4)]
    heights = style.spread(points, gap=0.1, reach=0.3)
    assert min(np.diff(sorted(heights[:3]))) == pytest.approx(0.1, abs=1e-3)
    assert heights[3] == 0.4


# operators


def scored(values: dict[str, float], **columns: Any) -> pd.DataFrame:
    """Scores by operator, each with an interval from half to twice."""
    score = pd.Series(list(values.values()), dtype=float)
    table = {"operator": pd.Series(list(values), dtype=str), "kind": "block", "parent": None, "score": score,
             "score_low": score / 2, "score_high": score * 2, "num_latents": 8, "stopped_early": False,
             "latency_share": 0.1}  # fmt: skip
    return pd.DataFrame(table | columns)


def legend_of(figure: Figure) -> list[str]:
    legends = [*figure.legends, *(axis.get_legend() for axis in figure.axes)]
    return [text.get_text() for legend in legends if legend is not None for text in legend.get_texts()]


def segments(axis: Axes) -> list[tuple[float, float]]:
    """Ends of the last drawn whiskers of bars."""
    lines = axis.collections[-1].get_segments()  # type: ignore[attr-defined]
    return [(line[0][0], line[1][0]) for line in lines if len(line)]  # no interval, no line


@pytest.mark.parametrize("count", [0, 3, 52, 300])
def test_bars_name_the_extremes_the_replaced_and_the_first_kept(count: int) -> None:
    scores = scored({f"op{i}": i / 7 for i in range(count)})
    figure = figures_pruning.operator_bars(scores, {f"op{i}": "identity" for i in (*range(50), 150)})
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    if count == 300:
        expected = [*range(51), 150, *range(290, 300)]
        texts = [text.get_text() for text in figure.axes[0].texts]
        assert [text for text in texts if "more" in text] == ["… 99 more …", "… 139 more …"]
    else:
        expected = list(range(count))
    assert not count or names == [f"op{i}" for i in expected]
    assert len(figure.axes[0].patches) == len(expected)


def test_bars_name_what_dots_would_take_the_room_of() -> None:
    scores = scored({f"op{i:03}": i + 1.0 for i in range(200)})
    replaced = dict.fromkeys([f"op{i:03}" for i in (*range(40), 43, 47)], "identity")
    names = [
        label.get_text()
        for label in figures_pruning.operator_bars(scores, replaced).axes[0].get_yticklabels()
    ]
    # 40 is the first one kept; 41 and 42 take no more room than dots, 44 to 46 do
    assert names[38:46] == [f"op{i:03}" for i in (38, 39, 40, 41, 42, 43, 47, 190)]


def test_bars_show_intervals_and_replacements() -> None:
    scores = scored({"a": 1.0, "a.inner": 3.0, "b": 2.0, "c": 4.0})
    scores.loc[3, ["score_low", "score_high"]] = np.nan
    figure = figures_pruning.operator_bars(scores, {"a": "avg_pool+projection", "b": "identity"})
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
    bars = figures_pruning.operator_bars(scores, {})
    assert [bool(bar.get_hatch()) for bar in bars.axes[0].patches] == [False, True]
    depth = figures_depth.score_depth(scores, {})
    assert [line.get_alpha() for line in depth.axes[0].lines] == [None, figures_pruning.FAINT]
    drawn = (bars, depth, figures_pruning.score_latency(scores, {}))
    assert all(figures_pruning.STOPPED in legend_of(figure) for figure in drawn)
    whole = scores.assign(stopped_early=False)
    for draw in (figures_pruning.operator_bars, figures_depth.score_depth, figures_pruning.score_latency):
        assert figures_pruning.STOPPED not in legend_of(draw(whole, {}))
    assert not any(bar.get_hatch() for bar in figures_pruning.operator_bars(whole, {}).axes[0].patches)


def test_infinite_scores_stand_at_the_edge_with_a_sign() -> None:
    scores = scored({"a": 1.0, "b": np.inf})
    (bars,) = figures_pruning.operator_bars(scores, {"b": "nearest"}).axes
    assert bars.patches[1].get_width() == bars.get_xlim()[1] > 2.0  # type: ignore[attr-defined]
    assert [text.get_text() for text in bars.texts] == ["∞ nearest"]
    assert segments(bars) == [(0.5, 2.0)]
    assert bars.get_xscale() == "log"
    for figure in (figures_pruning.score_latency(scores, {}), figures_depth.score_depth(scores, {})):
        heights = [float(y) for line in figure.axes[0].lines for y in np.asarray(line.get_ydata())]
        assert sorted(heights) == [1.0, 3.0]
        assert figure.axes[0].get_yscale() == "log"
        signs = [text for text in figure.axes[0].texts if text.get_text() == "∞"]
        assert [text.xy[1] for text in signs] == [3.0]  # type: ignore[attr-defined]


@pytest.mark.parametrize("values", [[np.inf, np.inf], [0.0, np.inf], [0.0, 0.0], [np.inf, 1e-30]])
def test_scores_without_a_scale_are_drawn(values: list[float]) -> None:
    scores = scored(dict(zip("ab", values, strict=True)))
    for draw in (figures_pruning.operator_bars, figures_depth.score_depth, figures_pruning.score_latency):
        style.to_svg(draw(scores, {"a": "identity"}), "odd")


def test_zero_scores_have_bars() -> None:
    scores = scored({"a": 0.0, "b": 2.0}, score_low=np.nan, score_high=np.nan, latency_share=[-0.01, 0.5])
    widths = [bar.get_width() for bar in figures_pruning.operator_bars(scores, {}).axes[0].patches]  # type: ignore[attr-defined]
    assert widths == [1.0, 2.0]
    style.to_svg(figures_pruning.score_latency(scores.assign(score=0.0), {"a": "identity"}), "zero")


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
    names = [
        name
        for name, _ in unet.named_modules()
        if re.search(r"(resnets|attentions|samplers)\.\d+$|conv_norm_out|conv_act", name)
    ]
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


def test_order_of_our_unet_and_of_strangers() -> None:
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
    (axis,) = (figure := figures_depth.score_depth(scores, {"mid_block.attentions.0": "residual"})).axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["attentions.0", "resnets.0"]
    assert [text.get_text() for text in axis.texts] == ["mid", "up 0"]
    points = axis.lines[:2]
    assert [float(np.asarray(line.get_ydata())[0]) for line in points] == [1.0, 4.0]
    assert [line.get_markerfacecolor() == style.PAPER for line in points] == [True, False]
    assert points[0].get_color() != points[1].get_color()
    (whiskers,) = axis.collections
    assert [[y for _, y in line] for line in whiskers.get_segments()] == [[0.5, 2.0], [2.0, 8.0]]  # type: ignore[attr-defined]
    assert legend_of(figure) == ["residual block", "attention", "hollow: replaced"]


def test_page_lists_what_changed(made: RunPaths) -> None:
    text = made.report_page.read_text(encoding="utf-8")
    rows, changes = list(metric_rows(text, "changes")), io.read_csv(made.changes)
    assert rows[0] == (
        "(whole denoiser)",
        ["27 replaced", "1,234,567", "→ 812,345", "4,321.1", "→ 1,000.0", "31.40", "→ 23.87"],
    )
    action = changes["action"]
    expected = changes[(action != "kept") & ~action.str.startswith("gone")][1:]
    assert [(name, cells[0]) for name, cells in rows[1:]] == list(
        zip(expected["operator"], expected["action"], strict=True)
    )
    assert {cells[0] for _, cells in rows[1:]} == {"identity", "residual", "projection"}
    assert rows[1][1][1:] == ["2,000", "→ 8", "12.3", "→ 0.0", "0.46", "→ 0.01"]
    assert "one pass over a batch of 64 latents. Here" in text


def test_no_word_for_what_is_not_done(made: RunPaths) -> None:
    """Operators are replaced; the page does not say that they are taken out."""
    texts = " ".join(Page(made.report_page.read_text(encoding="utf-8")).texts)
    assert not re.search(r"(taken|took|take) out|removed", texts.split("An operator is")[1])
    assert "gone with a replaced one" in texts


def certainty_of(paths: RunPaths, **protocol: Any) -> str:
    io.write_json(paths.score_protocol, SCORE_PROTOCOL | protocol)
    return words.certainty(report.load(context(paths).params, paths))


def test_words_say_how_sure_the_scores_are(paths: RunPaths) -> None:
    text = certainty_of(paths)
    assert text.startswith(
        "Scores are from 32 latents, from noise of 2 seeds; 3 of 122 operators were stopped early, after "
        "fewer of them. Spearman's rank correlation between the seeds is 0.988 (1: the same order): the "
        "order hardly depends on the noise. "
    )
    html_text = html.render(report.load(context(paths).params, paths))
    assert text in Page(html_text).texts
    assert "Spearman" not in certainty_of(paths, rank_correlation=None)
    assert "is 0.999 (1: the same order)" in certainty_of(paths, rank_correlation=0.99996)
    assert "is 1.000 (1: the same order)" in certainty_of(paths, rank_correlation=1.0)
    assert "0.850 (1: the same order): the order depends on the noise in places." in certainty_of(
        paths, rank_correlation=0.85
    )
    assert f"{tables.MINUS}0.200 (1: the same order): the order is largely that of the noise" in certainty_of(
        paths, rank_correlation=-0.2
    )


def test_words_say_whether_early_stop_was_used(paths: RunPaths) -> None:
    io.write_csv(paths.scores, io.read_csv(paths.scores).assign(stopped_early=False))
    assert "of 2 seeds; early stop was on, and stopped none." in certainty_of(paths)
    off = certainty_of(paths, early_stop=None, num_seeds=1)
    assert "from noise of 1 seed; every operator had all of them (no early stop)." in off


def test_words_count_intervals_that_overlap_the_first_kept(paths: RunPaths) -> None:
    scores = scored({"a": 1.0, "b": 3.0, "c": 4.0, "c.in": 2.0, "d": 5.0, "e": 0.5}, num_latents=32)
    scores.loc[:, "score_low"], scores.loc[:, "score_high"] = scores["score"] - 0.6, scores["score"] + 0.6
    scores.loc[5, "stopped_early"] = True  # known too roughly to be the first one kept
    changes = io.read_csv(paths.changes).iloc[:5].copy()
    changes["operator"], changes["action"] = ["all", "a", "b", "c", "d"], ["3 replaced", *"xyz", "kept"]
    io.write_csv(paths.scores, scores)
    io.write_csv(paths.changes, changes)
    sentence = "1 of the 3 replaced has a 95 % interval overlapping that of d, the least missed of those kept"
    assert f"{sentence}: there the choice is a matter of chance." in certainty_of(paths)
    io.write_csv(paths.scores, scores.assign(score_high=scores["score"] + 0.3, score_low=scores["score"]))
    assert "No 95 % interval of the 3 replaced overlaps that of d," in certainty_of(paths)
    io.write_csv(paths.scores, scores.assign(score_high=9.0))
    assert "3 of the 3 replaced have 95 % intervals overlapping that of d," in certainty_of(paths)
    io.write_csv(
        paths.scores, scores.replace({"score": {5.0: 0.1}, "score_low": {4.4: 0.1}, "score_high": {5.6: 0.2}})
    )
    assert "No 95 % interval of the 3 replaced overlaps that of d," in certainty_of(paths)  # a plan by hand
    io.write_csv(paths.scores, scores.head(4))
    assert "overlap" not in certainty_of(paths)  # everything that was scored went


@pytest.mark.parametrize(
    ("formula", "says"),
    [
        ("avg+std", "added up:"),
        ("avg", "how far the mean of the resulting latents moved:"),
        ("avg*std", "times"),
    ],
)
def test_words_say_which_formula(paths: RunPaths, formula: str, says: str) -> None:
    certainty_of(paths, formula=formula)
    assert says in html.render(report.load(context(paths).params, paths))


def test_words_compare_the_parts_of_the_network(paths: RunPaths) -> None:
    names = {"down_blocks.0.resnets.0": 1.0, "down_blocks.1.resnets.0": 3.0, "mid_block.resnets.0": 0.25}
    io.write_csv(paths.scores, scored({**names, "conv_act": np.inf}))
    text = words.depth(report.load(context(paths).params, paths))
    assert text == (
        "in the order in which the UNet runs them. Median score: 2 on the way down, 0.25 in the middle and "
        "infinite at the output."
    )
    io.write_csv(paths.scores, scored({**names, "mine": 1.0}))
    assert words.depth(report.load(context(paths).params, paths)) == "in the order of their names."


def test_heat_map_reads_from_the_top() -> None:
    rows = [(v, f"class{i}", c, i / 100) for v in "ab" for i in range(100) for c in range(2)]
    masks = pd.DataFrame(rows, columns=["variant", "class_name", "channel", "mean_mask"])
    axes = figures_collapse.mask_heatmap(masks).axes[:2]
    assert [axis.get_ylim() for axis in axes] == [(100, 0), (100, 0)]
    assert [label.get_text() for label in axes[0].get_yticklabels()][:2] == ["class0", "class5"]


def test_unknown_metric_is_shown_last() -> None:
    frame = tables.metrics_frame(
        {"mine": {"sharpness": 0.5, "fd_other": 3.0, "latency_ms": 2.0, "ssim": None}}, "absent"
    )
    assert list(frame.columns) == ["fd_other", "latency_ms", "sharpness"]
    assert tables.markdown_table(frame).splitlines()[0] == (
        "| model | Fréchet distance (other) ↓ | UNet time (ms) ↓ | sharpness |"
    )


def test_numbers() -> None:
    minus = tables.MINUS
    assert tables.number(-1234567.891, 2) == f"{minus}1,234,567.89"
    assert tables.number(0.04, 1, signed=True) == "0.0"
    assert tables.number(-0.04, 1) == "0.0"
    assert tables.number(1.25, 1, signed=True) == "+1.2"
    assert tables.number(math.nan, 1) == tables.DASH


def test_protocol_may_hold_anything() -> None:
    nested = {"a": {"b": 1, "c": {"d": None}}, "e": True, "f": ["x", 2]}
    assert html.merged({"a": {"x": 1, "y": 1}, "b": {"x": 1}, "c": 2}) == {"a": 1, "b": {"x": 1}, "c": 2}
    assert html.shortened("0123abcd" * 8) == "0123abcd0123…"
    assert dict(html.flat(nested)) == {"a.b": "1", "a.c.d": tables.DASH, "e": "yes", "f": "x, 2"}


# sweeps


def cells_of(values: dict[str, list[float | None]], metric: str = "psnr") -> pd.DataFrame:
    rows = [
        ("photos", seed, model, metric, value)
        for model, row in values.items()
        for seed, value in enumerate(row)
        if value is not None
    ]
    return pd.DataFrame(rows, columns=["dataset", "seed", "model", "metric", "value"])


def row_of(summary: pd.DataFrame, model: str) -> "pd.Series[Any]":
    return summary[summary["model"] == model].iloc[0]


def test_summary_equals_the_sums_by_hand() -> None:
    cells = cells_of({"baseline": [1.0, 2.0, 4.0], "pelap": [2.0, 4.0, 9.0]}).sample(frac=1, random_state=3)
    summary = sweep.summarise(cells)
    assert list(summary.columns) == [
        "dataset", "model", "metric", "mean", "std", "n", "diff_to_baseline", "diff_std", "p_value",
    ]  # fmt: skip
    row = row_of(summary, "pelap")
    assert row["mean"] == 5.0
    assert row["std"] == pytest.approx(math.sqrt(13))
    assert row["n"] == 3
    assert row["diff_to_baseline"] == pytest.approx(8 / 3)
    assert row["diff_std"] == pytest.approx(math.sqrt(13 / 3))
    t = (8 / 3) / math.sqrt(13 / 9)
    assert row["p_value"] == pytest.approx(2 * stats.t.sf(t, df=2))
    assert row_of(summary, "baseline")["diff_to_baseline"] == 0
    assert math.isnan(row_of(summary, "baseline")["p_value"])


def test_only_pairs_are_compared() -> None:
    values = {"baseline": [1.0, 2.0, None, 3.0], "pelap": [5.0, None, 100.0, 9.0]}
    row = row_of(sweep.summarise(cells_of(values)), "pelap")
    assert row["n"] == 3
    assert row["diff_to_baseline"] == 5.0
    assert row["diff_std"] == pytest.approx(math.sqrt(2))


def test_data_sets_and_metrics_stay_apart() -> None:
    one, two = (
        cells_of({"baseline": [1.0, 2.0], "pelap": [2.0, 5.0]}),
        cells_of({"baseline": [7.0, 9.0]}, "ssim"),
    )
    other = cells_of({"baseline": [0.0, 0.0], "pelap": [1.0, 4.0]}).assign(dataset="cifar10")
    summary = sweep.summarise(pd.concat([one, two, other], ignore_index=True))
    assert len(summary) == 5
    pelap = summary[summary["model"] == "pelap"].set_index("dataset")
    assert pelap["diff_to_baseline"].to_dict() == {"photos": 2.0, "cifar10": 2.5}


@pytest.mark.parametrize(
    "values",
    [
        {"pelap": [1.0, 2.0, 3.0]},
        {"baseline": [1.0], "pelap": [2.0]},
        {"baseline": [1.0, None], "pelap": [None, 2.0]},
        {"baseline": [0.1, 0.2, 0.7], "pelap": [0.2, 0.3, 0.8]},
        {"baseline": [5.0, 5.0], "pelap": [5.0, 5.0]},
    ],
)
def test_no_p_value_without_varying_pairs(values: dict[str, list[float | None]]) -> None:
    assert math.isnan(row_of(sweep.summarise(cells_of(values)), "pelap")["p_value"])


def test_missing_values_do_not_count() -> None:
    cells = cells_of({"baseline": [1.0, 3.0, math.nan]})
    assert row_of(sweep.summarise(cells), "baseline")["n"] == 2
    assert sweep.summarise(cells.assign(value=math.nan)).empty


def test_a_run_given_twice_is_refused() -> None:
    cells = cells_of({"baseline": [1.0, 2.0]})
    with pytest.raises(DataError, match="two values for dataset photos, model baseline, metric psnr, seed 0"):
        sweep.summarise(pd.concat([cells, cells]))


def test_sweep_figure_has_a_panel_per_data_set_and_metric() -> None:
    cells = pd.concat(
        [
            cells_of(
                {"baseline": [1.0, 2.0], "pelap": [3.0, 5.0], "a-name-that-is-too-long": [4.0]}, metric
            ).assign(dataset=dataset)
            for metric in ("params", "latency_ms", "fd_effnet_lite0")
            for dataset in ("photos", "cifar10")
        ]
    )
    figure = sweep.sweep_figure(sweep.summarise(cells), cells)
    assert len(figure.axes) == 4
    labels = [axis.get_ylabel() for axis in figure.axes]
    assert labels == ["Fréchet distance (effnet_lite0) ↓", "UNet time (ms) ↓"] * 2
    dots = [line for line in figure.axes[1].lines if line.get_alpha()]
    assert [list(np.asarray(line.get_ydata())) for line in dots] == [[1.0, 2.0], [3.0, 5.0], [4.0]]
    assert style.to_png(figure).startswith(b"\x89PNG")


def test_sweep_figure_of_little() -> None:
    cells = cells_of({"baseline": [1.0]}, "my_metric")
    style.to_png(sweep.sweep_figure(sweep.summarise(cells), cells))
    style.to_png(sweep.sweep_figure(sweep.summarise(cells.head(0)), cells.head(0)))


def test_metrics_file_is_json_that_others_read(made: RunPaths) -> None:
    assert json.loads(made.metrics.read_text()) == METRICS
