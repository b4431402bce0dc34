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
from rich.console import Console
from scipy import stats
from synthetic_run import METRICS, PROTOCOL, VARIANTS, build_run

from pelap import io
from pelap.errors import BusyError, DataError, PelapError
from pelap.paths import RunPaths
from pelap.report import (
    collapse,
    figures,
    figures_collapse,
    figures_pruning,
    html,
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
    """Attributes, cells of the table of metrics, and all text."""

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
    assert len(re.findall(r"<svg", text)) == 8
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
    assert "took out 31 of 122 scored operators" in text
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
    "score/scores.csv", "prune/plan.json", "prune/result.json", "distill/history.csv",
    "evaluate/samples/distilled.png", "evaluate/reconstructions/real.png",
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
        ("score/scores.csv", "operator,score\na,1\n", "lacks the columns latency_share"),
        ("prune/plan.json", "{}", "lacks the keys operators"),
        ("prune/plan.json", "[]", "expected a JSON mapping"),
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
    io.write_json(paths.plan, {"operators": []})
    io.write_json(paths.prune_result, {})
    for path in (*paths.collapse_tables.values(), paths.scores, paths.distill_history):
        if path == paths.collapse_channels:  # the report does not read it
            continue
        io.write_csv(path, io.read_csv(path).head(0))
    history = io.read_csv(paths.train("baseline").history).assign(noise=np.nan, recon=0.0)
    io.write_csv(paths.train("baseline").history, history)
    report.run(context(paths, ("baseline",)))
    text = paths.report_page.read_text(encoding="utf-8")
    assert dict(metric_rows(text))["pruned"] == [tables.DASH]
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


@pytest.mark.parametrize("count", [0, 3, 52, 300])
def test_bars_name_the_extremes_and_the_removed(count: int) -> None:
    scores = pd.DataFrame({"operator": [f"op{i}" for i in range(count)], "score": np.arange(count) / 7})
    figure = figures_pruning.operator_bars(scores, {"op150", "op1"})
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    if count == 300:
        expected = [*range(40), 150, *range(290, 300)]
        assert [text.get_text() for text in figure.axes[0].texts] == ["… 110 more …", "… 139 more …"]
    else:
        expected = list(range(count))
    assert not count or names == [f"op{i}" for i in expected]
    assert len(figure.axes[0].patches) == len(expected)


def test_zero_scores_have_bars() -> None:
    scores = pd.DataFrame({"operator": ["a", "b"], "score": [0.0, 2.0], "latency_share": [-0.01, 0.5]})
    widths = [bar.get_width() for bar in figures_pruning.operator_bars(scores, set()).axes[0].patches]  # type: ignore[attr-defined]
    assert widths == [1.0, 2.0]
    style.to_svg(figures_pruning.score_latency(scores.assign(score=0.0), {"a"}), "zero")


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
