import base64
import dataclasses
import itertools
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
from matplotlib.text import Text
from rich.console import Console
from synthetic_run import (
    DENSE,
    METRICS,
    PLANS,
    PROMPTS,
    PROTOCOL,
    SCORE_PROTOCOL,
    SOUNDS,
    VARIANTS,
    build_run,
    turn_to_sounds,
)

from pelap.core import files
from pelap.core.errors import BusyError, DataError, PelapError
from pelap.core.paths import RunPaths
from pelap.report import (
    collapse,
    distillation,
    modality,
    operators,
    protocol,
    tables,
    words,
)
from pelap.report import (
    page as html,
)
from pelap.report import rows as row_names
from pelap.report.figures import (
    budget as figures_budget,
)
from pelap.report.figures import (
    collapse as figures_collapse,
)
from pelap.report.figures import (
    depth as figures_depth,
)
from pelap.report.figures import (
    overview as figures,
)
from pelap.report.figures import (
    pruning as figures_pruning,
)
from pelap.report.figures import (
    style,
)
from pelap.report.figures import (
    training as figures_training,
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
    assert len(re.findall(r"<h2", text)) == 10
    assert len(re.findall(r"<svg", text)) == 10
    for model in METRICS:
        assert page.texts.count(model) >= 2, model
    for text in (
        "0123abcd" * 8,
        "sampler.steps",
        "astronaut",
        *files.read_csv(made.scores)["operator"].head(40),
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


@pytest.mark.parametrize(
    ("group", "width", "height"), [("metrics", 7, 13), ("pictures", 4, 12), ("costs", 7, 12)]
)
def test_numbers_are_those_of_the_metrics(made: RunPaths, group: str, width: int, height: int) -> None:
    every = tables.columns(tables.metrics_frame(METRICS, "invariant"))
    shown = [column for column in every if column.group == group]
    rows = list(metric_rows(made.report_page.read_text(encoding="utf-8"), group))
    assert len(rows) == height
    for model, cells in rows:
        assert len(cells) == len(shown) == width
        for column, cell in zip(shown, cells, strict=True):
            value = METRICS[model].get(column.key)
            if column.key == tables.CHANGE and METRICS[model].get("latency_ms"):
                value = METRICS[model]["latency_ms"] / METRICS["invariant"]["latency_ms"] - 1  # type: ignore[operator]
            number, _, error = cell.partition(f" {tables.PLUS_MINUS} ")
            if value is None:
                assert cell == tables.DASH
                continue
            tiny = 0.51 * 10**-column.decimals
            assert as_number(number) == pytest.approx(value * column.scale, abs=tiny)
            assert bool(error) == bool(column.error)
            if error:
                half = 0.5 if column.group == "costs" else 1.0
                assert as_number(error) == pytest.approx(half * METRICS[model][column.error], abs=tiny)  # type: ignore[operator]


def test_protocol_stands_below_the_table(made: RunPaths) -> None:
    line = (
        "2,000 pictures of each model against 4,000 train pictures · extractor effnet-lite0 (0123abcd0123) · "
        "DDIM, 20 steps · EMA 0.99 · seed 0 · data set photos (fedcba98fedc) · torch 2.9.0 · Python 3.11.9 · "
        "cpu · revision 0a1b2c3"
    )
    assert protocol.line(PROTOCOL) == line
    shown = Page(made.report_page.read_text(encoding="utf-8")).texts
    below = made.report_table.read_text(encoding="utf-8").split("\n\n", 1)[1]
    assert {line, *PROTOCOL["notes"]} <= set(shown)
    assert below == f"{line}\n\n{PROTOCOL['notes'][0]}\n"
    assert protocol.line({"sampler": None, "extractors": [3], "device": "cpu"}) == "cpu"
    assert protocol.line({"ema_decay": {"a": 0.9, "b": 0.99}}) == "EMA 0.9, 0.99"
    assert protocol.markdown({}) == ""


@pytest.fixture(scope="module")
def heard(made: RunPaths, tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """The same run, as if its models made sounds of prompts."""
    root = tmp_path_factory.mktemp("heard") / "run"
    shutil.copytree(made.root, root, ignore=shutil.ignore_patterns("report", ".*"))
    turn_to_sounds(RunPaths(root))
    report.run(context(RunPaths(root)))
    return RunPaths(root)


def test_sounds_play_beside_their_spectrograms_the_real_ones_first(heard: RunPaths) -> None:
    text = heard.report_page.read_text(encoding="utf-8")
    order = ["real", *(name for name in METRICS if name != "real")]
    players = re.findall(r"<audio ([^>]*)></audio>", text)
    assert len(players) == len(order)
    for name, player in zip(order, players, strict=True):
        assert 'controls preload="none"' in player
        content = re.search(r'src="data:audio/wav;base64,([^"]*)"', player)
        assert content is not None
        assert base64.b64decode(content[1]) == heard.samples_sound(name).read_bytes()
        assert f'aria-label="Samples: {name}"' in player
    shown = [
        base64.b64decode(value.split(",")[1])
        for tag, key, value in Page(text).attributes
        if (tag, key) == ("img", "src")
    ]
    assert shown[: len(order)] == [heard.samples(name).read_bytes() for name in order]
    for value in re.findall(r'(?:src|href)="([^"]*)"', text):
        assert value.startswith(("#", "data:")), value[:80]


def test_page_of_sounds_does_not_speak_of_pictures(heard: RunPaths, made: RunPaths) -> None:
    texts = Page(heard.report_page.read_text(encoding="utf-8")).texts
    wrong = [text for text in texts if re.search(r"picture|time per image", text, re.I)]
    assert [text for text in wrong if not any(prompt in text for prompt in PROMPTS)] == []
    assert any("Sounds made by each model, not selected." in text for text in texts)
    table = heard.report_table.read_text(encoding="utf-8")
    assert "picture" not in table
    assert "| time per sound (ms) ↓ |" in table
    old = Page(made.report_page.read_text(encoding="utf-8")).texts
    assert any("Pictures made by each model, not selected." in text for text in old)
    assert not any("sound" in text or "prompt" in text.lower() for text in old)


def test_page_says_how_sounds_were_judged(heard: RunPaths) -> None:
    text = heard.report_page.read_text(encoding="utf-8")
    page = "\n".join(Page(text).texts)
    for part in (
        "2,000 sounds of each model against 4,000 train sounds",
        "sounds of 16,000 samples a second by Griffin-Lim, measured as heard",
        "classifier: 93.8 % of 512 test sounds right",
        "2 prompts, guidance scale 3",
        "2 rows of the UNet's batch a latent",
        "fd_classifier: features of a small network that learnt from the train sounds",
        "Prompt agreement: the share of made sounds that the classifier takes for the class",
        f"row by row, guidance scale 3: {'; '.join(PROMPTS)}. After 2 the first comes again.",
    ):
        assert part in page, part
        assert part.startswith(("Prompt", "row")) or part in heard.report_table.read_text(encoding="utf-8")
    assert (
        "taken for their own class. Taken over the 1,500 of 2,000 made sounds whose prompt names one" in page
    )
    notes = text.split('<h2 id="quality">')[0]
    assert notes.count("fd_classifier:") == 1  # the protocol's own note, and no other
    rows = dict(metric_rows(text))
    assert "90.0 ± 1.2" in rows["baseline"]
    assert rows["real"][0] == "22.88 ± 0.25"
    assert rows["real"][-1] == "31.50"  # after Griffin-Lim, beside no model's distance
    assert rows["dense-finetuned"][-1] == tables.DASH
    frame = tables.metrics_frame(files.read_metrics(heard.metrics), "invariant")
    assert [key for key in frame if tables.is_distance(key)] == ["fd_classifier"]


def test_pictures_of_prompts_have_prompts_but_no_players(paths: RunPaths) -> None:
    entries = {key: value for key, value in SOUNDS.items() if key not in ("medium", "sound")}
    files.write_json(paths.evaluate_protocol, PROTOCOL | entries)
    report.run(context(paths))
    page = Page(paths.report_page.read_text(encoding="utf-8"))
    assert "prompts" in page.ids
    assert "audio" not in {tag for tag, _, _ in page.attributes}


def test_terminal_shows_prompt_agreement(heard: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    report.show(heard)
    said = capsys.readouterr().out
    assert "prompt" in said
    assert "88.0" in said
    assert max(map(len, said.splitlines()[:-1])) <= 80


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        (b"no sound", "not a readable WAV file"),
        (b"", "not a readable WAV file"),
        ("cut", "ends early"),
    ],
)
def test_damaged_sound_is_one_line(
    heard: RunPaths, tmp_path: Path, content: bytes | str | None, says: str
) -> None:
    shutil.copytree(heard.root, tmp_path / "run", ignore=shutil.ignore_patterns("report", ".*"))
    run = RunPaths(tmp_path / "run")
    file = run.samples_sound("dense-finetuned")
    if content is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-800] if isinstance(content, str) else content)
    with pytest.raises(DataError, match=says) as caught:
        report.run(context(run))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_our_own_words_change_with_the_medium() -> None:
    sounds = modality.modality_names(SOUNDS)
    assert sounds.put("Pictures of a picture-maker; Picture by picture") == (
        "Sounds of a picture-maker; Sound by sound"
    )
    assert sounds.put("time per image, image_ms, images") == "time per sound, image_ms, images"
    assert sounds.put("| picture | picture |\n| pictures | 1 |") == "| picture | sound |\n| pictures | 1 |"
    assert sounds.put("my.picture picture.old; a picture.") == "my.picture picture.old; a sound."
    for protocol_ in ({}, {"medium": None}, {"medium": "pictures"}):
        assert modality.modality_names(protocol_).put("Pictures per image") == "Pictures per image"


def test_a_variant_called_picture_keeps_its_name(heard: RunPaths, tmp_path: Path) -> None:
    shutil.copytree(heard.root, tmp_path / "run", ignore=shutil.ignore_patterns("report", ".*"))
    run = RunPaths(tmp_path / "run")
    files.write_json(run.evaluate_protocol, PROTOCOL | SOUNDS | {"scored_variant": "picture"})
    texts = (run.metrics, run.budget, run.differences, run.collapse_table)
    for file in texts:
        file.write_text(file.read_text().replace("invariant", "picture"))
    for file in [*run.samples("invariant").parent.glob("invariant.*")]:
        file.rename(file.with_stem("picture"))
    data = report.load(context(run, ("baseline", "pelap")).params, run)
    said = " ".join(words.headline(data))
    assert "for the dense picture." in said
    assert "Given as much time a sound, the dense picture with fewer steps" in said
    figure = Figure()
    axis = figure.subplots()
    axis.set_title("picture")
    axis.set_xlabel("time per image, of a picture (ms)")
    data.modality_names.label(figure)
    assert (axis.get_title(), axis.get_xlabel()) == ("picture", "time per sound, of a sound (ms)")


@pytest.mark.parametrize(
    ("rows", "told"), [({}, 0), ({"rows_per_latent": 1}, 0), ({"rows_per_latent": 2}, 3)]
)
def test_costs_under_guidance_are_said_to_be_of_two_rows(
    paths: RunPaths, rows: dict[str, int], told: int
) -> None:
    files.write_json(paths.evaluate_protocol, PROTOCOL | rows)
    page = html.render(report.load(context(paths).params, paths))
    assert page.count("are those of 2 rows a latent.") == told
    assert page.count("2 rows of the UNet&#39;s batch a latent") == bool(told)
    pipelines = {"sd": {"scheduler": "DDIM", "steps": 20, **rows}}
    assert ("DDIM, 20 steps, 2 rows a latent" in protocol.line({"pipelines": pipelines})) == bool(told)


def test_missing_is_a_dash_everywhere(made: RunPaths) -> None:
    markdown = made.report_table.read_text(encoding="utf-8")
    page = "\n".join(Page(made.report_page.read_text(encoding="utf-8")).texts)
    for text in (markdown, page, words_of(made)):
        assert not re.search(r"\b(nan|none|inf)\b", text, re.IGNORECASE)
    real = "| real | 22.88 ± 0.25 | 0.0254 ± 0.0031 | 0.612 | 0.401 |"
    assert markdown.splitlines()[14] == f"{real}{f' {tables.DASH} |' * 8}"
    assert markdown.splitlines()[1] == f"| :-- |{' --: |' * 12}"
    assert "| 812,345 |" in markdown
    assert f"| {tables.MINUS}24.0 |" in markdown


def words_of(paths: RunPaths) -> str:
    return "\n".join(words.headline(report.load(context(paths).params, paths)))


def test_headline_says_what_the_numbers_say(paths: RunPaths) -> None:
    text = words_of(paths)
    assert text.startswith(
        "Plan 25: 27 of 122 scored operators replaced, 24 inside them gone along; 24.0 % less time, measured "
        "(25.0 % less time promised); 812,345 parameters (34.2 % fewer). Plan 35: 34 of 122 scored operators "
    )
    assert (
        "91.73 for the dense invariant. Plan 25: 131.55 pruned (43.4 % worse), 93.22 distilled (1.6 % "
        in text
    )
    assert "Plan 35: 172.24 pruned (87.8 % worse), 99.81 distilled" in text
    assert "Not pruned, trained on: 88.90 dense-finetuned (3.1 % better)." in text
    assert (
        "difference: distilled-25 is no worse than it; output-only-25, scratch-25, distilled-35, "
        "output-only-35 and scratch-35 are worse than it; dense-finetuned is better than it."
    ) in text
    assert "best first: invariant (91.73), baseline (96.42) and pelap (214.99)" in text
    assert "0.003 in baseline" in text
    assert "Verdict on the latents: mask collapse in baseline; partial mask in pelap and invariant." in text
    assert "that the dense one did not have" not in text


def test_headline_compares_at_equal_time(paths: RunPaths) -> None:
    budget = pd.DataFrame(
        [("invariant", 20, 10.0, 90.0), ("invariant", 5, 2.0, 130.0), ("distilled-25", 20, 8.0, 95.0),
         ("distilled-35", 20, 1.0, 300.0), ("output-only-25", 20, 10.5, 80.0), ("scratch-25", 20, 8.0, 99.0)],
        columns=["model", "steps", "image_ms", "fd_effnet_lite0"],
    ).assign(image_iqr_ms=0.1)  # fmt: skip
    files.write_csv(paths.budget, budget)
    says = "with fewer steps has about 100.00 where distilled-25 has 95.00 (straight lines"
    assert says in words_of(paths)  # the others are faster or slower than any number of steps, or fresh
    files.write_csv(paths.budget, budget.drop(index=1))
    assert "fewer steps" not in words_of(paths)


def test_headline_says_what_the_dense_one_did_not_have(paths: RunPaths) -> None:
    students = files.read_mapping(paths.distill_result)
    students.pop("dense-finetuned")
    files.write_json(paths.distill_result, students)
    assert "trained on for 240 steps that the dense one did not have" in words_of(paths)


def test_collapse_shows_verdict_reason_and_numbers(made: RunPaths) -> None:
    text = made.report_page.read_text(encoding="utf-8")
    verdicts = {
        name: [re.sub(r"<.*?>", "", cell) for cell in cells] for name, cells in metric_rows(text, "verdicts")
    }
    assert verdicts["baseline"] == ["mask collapse", "0 of 4 channels are open"]
    assert verdicts["invariant"] == ["partial mask", "2 of 4 channels are open"]
    table, numbers = files.read_csv(made.collapse_table), dict(metric_rows(text, "collapses"))
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
    files.write_json(paths.metrics, metrics)
    files.write_csv(paths.latencies, files.read_csv(paths.latencies).head(0))
    files.write_csv(paths.budget, files.read_csv(paths.budget).assign(image_ms=np.nan, image_iqr_ms=np.nan))
    report.run(context(paths))
    text = paths.report_page.read_text(encoding="utf-8")
    assert dict(metric_rows(text))["invariant"] == ["91.73"]
    assert dict(metric_rows(text, "pictures"))["invariant"] == ["25.46", "0.839"]
    for absent in ("Quality and time", 'id="costs"', 'id="latencies"', "at equal time"):
        assert absent not in text
    assert "Times were not measured." in text
    shown = Page(text).texts
    assert {"91.73", "real against other real pictures: 22.88"} <= set(shown)


def test_quality_alone_stands_in_the_tables_order() -> None:
    frame = tables.metrics_frame(
        {"pelap": {"fid": 9.0, "fid_se": 0.5}, "baseline": {"fid": 4.0}, "real": {"fid": 1.0}}
    )
    _, (axis,) = style.panels(1, (5, 4))
    figures.quality_alone(axis, frame, ["pelap", "baseline", "real"])
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


def equal_time(budget: pd.DataFrame, floor: float = math.nan) -> tuple[Figure, Axes]:
    points = figures_budget.measured(budget, "fd_x")
    figure, (axis,) = style.panels(1, (8, 5))
    look, column = style.looks(dict.fromkeys(points["model"])), tables.column("fd_x")
    figures_budget.draw(axis, points, look, "invariant", column)
    figures_budget.key(figure, points, look, "invariant")
    figures_budget.finish(axis, points, "invariant", floor, column)
    return figure, axis


def test_dense_is_a_line_over_numbers_of_steps() -> None:
    figure, axis = equal_time(
        budget_rows(pruned_25=(7.0, 150.0), distilled_25=(7.0, 93.0), dense_finetuned=(10.0, 89.0))
    )
    curve = axis.lines[0]
    assert list(curve.get_xdata()) == [2.5, 5.0, 10.0]  # type: ignore[arg-type]
    assert curve.get_linestyle() == "-"
    texts = [text.get_text() for text in axis.texts]
    assert sorted(texts) == sorted(["20", "10", "5", "25", "25", "dense-finetuned"])
    assert legend_of(figure) == [
        "invariant; numbers: steps",
        "pruned",
        "distilled",
        "dense-finetuned",
        "other labels: plan",
    ]
    faces = {
        line.get_color(): line.get_markerfacecolor() for line in axis.lines if line.get_marker() != "None"
    }
    assert [colour for colour, face in faces.items() if face == style.PAPER] == [
        style.looks(["pruned-25"])["pruned-25"].colour
    ]


def cached_and_longer() -> pd.DataFrame:
    """A budget where `dense-finetuned` has numbers of steps too, and features are shared in two intervals."""
    budget = budget_rows(cached_3=(5.5, 96.0), cached_2=(6.5, 91.0), pruned_25=(7.0, 150.0))
    longer = budget.head(3).assign(model="dense-finetuned", fd_x=[88.0, 118.0, 93.0])
    return pd.concat([budget, longer], ignore_index=True)


def test_shared_features_and_students_with_fewer_steps_are_lines() -> None:
    figure, axis = equal_time(cached_and_longer())
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


def test_family_of_shared_features_is_not_a_plan() -> None:
    assert row_names.split_row("cached-2", ["25", "2"]) == ("cached", "2")
    assert row_names.split_row("cached-2-25", ["25"]) == ("cached-2", "25")
    assert row_names.split_row("cached", []) == ("cached", None)


def test_equal_time_is_also_that_of_what_was_trained_as_long(made: RunPaths) -> None:
    data = report.load(context(made).params, made)
    assert "dense-finetuned" not in words.equal_time(data)
    more = pd.DataFrame(
        [
            ("dense-finetuned", 20, 12.0, 88.9),
            ("dense-finetuned", 10, 6.0, 94.9),
            ("cached-2", 20, 9.75, 92.5),
        ],
        columns=["model", "steps", "image_ms", "fd_effnet_lite0"],
    )
    budget = pd.concat([data.budget, more], ignore_index=True)
    assert set(dataclasses.replace(data, budget=budget).points["model"]) == {
        *data.points["model"],
        "dense-finetuned",
    }
    protocol = {**data.protocol, "deepcache_intervals": [2]}
    data = dataclasses.replace(data, budget=budget, protocol=protocol)
    text = words.equal_time(data)
    assert text.startswith("Given as much time a picture, the dense invariant with fewer steps has about ")
    # Half way from 6.6 to 12.9 ms, 95.9 to 91.73; of `dense-finetuned` at 9.7 ms of 6 to 12.
    assert "93.82 where cached-2 has 92.50" in text
    of_longer = text.split("; ")[1]
    assert of_longer.startswith("dense-finetuned, which was trained on unpruned, with fewer steps has about ")
    assert "91.20 where distilled-25 has 93.22" in of_longer
    assert "cached" not in of_longer
    page = html.render(data)
    assert "share deep features" in page
    assert "share deep features" not in html.render(report.load(context(made).params, made))


def test_bars_are_intervals_and_quartiles() -> None:
    _, axis = equal_time(budget_rows().head(1))
    across, up = (bar.get_segments()[0] for bar in axis.collections)  # type: ignore[attr-defined]
    assert across[:, 0] == pytest.approx([9.9, 10.1])
    assert up[:, 1] == pytest.approx([90 - 1.96, 90 + 1.96])


def test_points_without_a_time_or_a_distance_are_left_out() -> None:
    budget = budget_rows(pruned_25=(math.nan, 150.0), distilled_25=(7.0, math.nan))
    assert set(figures_budget.measured(budget, "fd_x")["model"]) == {"invariant"}
    style.to_svg(equal_time(budget.drop(columns="fd_x_se"))[0], "bare")


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
    near["quite_a_long_name"] = (10.0, 120.0)  # in a corner
    figure, axis = equal_time(budget_rows(pruned_25=(7.1, 94.0), **near))
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axis.texts]  # without the line to the point
    assert len(boxes) == 11
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    marks = axis.transData.transform(
        budget_rows(pruned_25=(7.1, 94.0), **near)[["image_ms", "fd_x"]].to_numpy()
    )
    assert not any(box.contains(*mark) for box in boxes for mark in marks)
    frame = axis.get_window_extent()
    assert all(frame.contains(*corner) for box in boxes for corner in box.corners())


def test_overview_shows_what_was_scored_and_made_of_it(made: RunPaths) -> None:
    data = report.load(context(made).params, made)
    assert set(data.points["model"]) == {
        "invariant", *(f"{name}-{plan}" for name in ("pruned", "distilled", "output-only") for plan in PLANS)
    }  # fmt: skip
    other = data.budget.assign(model="baseline")
    more = dataclasses.replace(data, budget=pd.concat([data.budget, other]))
    assert set(more.points["model"]) == set(data.points["model"])


def test_headline_admits_a_loss(paths: RunPaths) -> None:
    files.write_json(paths.prune_result, {"25": {"measured_time_reduction": -0.031}})
    better = {**METRICS, "distilled-25": {"fd_effnet_lite0": 45.86725}}
    files.write_json(paths.metrics, better)
    text = words_of(paths)
    assert "; 3.1 % more time, measured." in text
    assert "45.87 distilled (50.0 % better)" in text
    assert words.time_change(0.0) == "no less time"


def test_names_are_escaped(tmp_path: Path) -> None:
    variants = (*VARIANTS, "<i>own")
    paths = build_run(tmp_path / "run", variants)
    masks = files.read_csv(paths.masks_per_class).replace(
        "cat", "<script>$a$ & \N{CJK UNIFIED IDEOGRAPH-732B}"
    )
    files.write_csv(paths.masks_per_class, masks)
    files.write_json(paths.evaluate_protocol, PROTOCOL | {"note": "<b>bold</b>", "scored_variant": "<i>own"})
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
    assert max(map(len, table)) <= 80
    said = " ".join(" ".join(table).split())
    assert f"extractor effnet-lite0 ({PROTOCOL['extractors']['effnet-lite0']['sha256'][:12]})" in said
    assert PROTOCOL["notes"][0] in said
    lines = {line.split()[0]: line.split()[1:] for line in table if line.strip()}
    assert lines["invariant"] == ["91.73+-1.02", "0.1019", "-", "31.40", "0.0", "12.90", "1.23"]
    assert lines["distilled-25"] == ["93.22+-1.04", "0.1036", "96", "23.87", "-24.0", "9.70", "0.81"]


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
    assert "214.99+-2.39 " in text
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert "output-only-25" in text  # in one line, and so are the numbers
    assert {"FID", "KID", "UNet", "image", "params", "recall"} & set(text.split()) == {
        "FID", "UNet", "image", "params",
    }  # fmt: skip


def test_rich_table_shows_costs_where_there_is_room() -> None:
    rows = {name: {"fd_x": 3.0, **DENSE} for name in ("stable", "stable-pruned")}
    console = Console(width=80, record=True, file=StringIO())
    console.print(tables.rich_table(tables.metrics_frame(rows, "stable"), network="denoiser"))
    text = console.export_text()
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
    column = tables.quality_column(frame)
    assert column is not None
    assert (column.key, column.title, column.unit) == ("fid", "FID", "Inception")
    own = tables.column("fd_own_net")
    assert (own.title, own.unit, own.error) == ("Fréchet distance", "own_net", "fd_own_net_se")
    shown = [each.heading for each in tables.columns(frame)]
    assert shown == [
        "FID (Inception) ↓", "KID (Inception) ↓", "recall (Inception) ↑", "Fréchet distance (own_net) ↓",
        "KID (own_net) ↓", "recall (own_net) ↑", "PSNR (dB, reconstructions) ↑",
    ]  # fmt: skip
    assert [key for key in row if tables.is_distance(key)] == ["fid", "fd_own_net"]
    console = Console(width=80, record=True, file=StringIO())
    console.print(tables.rich_table(frame))
    text = console.export_text()
    assert "2.0000" in text  # the KID of the first one alone
    assert "4.0000" not in text


REQUIRED = (
    "evaluate/metrics.json", "evaluate/protocol.json", "train/pelap/history.csv",
    "train/baseline/validation.csv", "collapse/collapse.csv", "collapse/masks_per_class.csv",
    "collapse/epochs.csv", "collapse/timesteps.csv",
    "score/scores.csv", "score/protocol.json", "prune/changes.csv", "prune/result.json",
    "distill/history.csv", "distill/validation.csv", "distill/result.json", "evaluate/budget.csv",
    "evaluate/latencies.csv", "evaluate/differences.csv", "evaluate/samples/distilled-25.png",
    "evaluate/reconstructions/real.png",
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
            "lacks the columns plan, params_after, ",
        ),
        ("prune/result.json", '{"25": 3}', "25: lacks a mapping"),
        ("distill/result.json", '{"own": {"start": "dense"}}', "own: lacks plan, steps, kept_step, select, "),
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
    with files.exclusive(paths.report), pytest.raises(BusyError):
        report.run(context(paths))


def test_run_with_little_measured(paths: RunPaths) -> None:
    """A run without costs, masks or scores still has a page, without warnings."""
    files.write_json(paths.metrics, {"baseline": {"psnr": 20.0}, "pruned-25": {}, "real": {}})
    files.write_json(paths.evaluate_protocol, {"device": None, "nested": {"a": [1, 2], "b": False}})
    files.write_json(paths.prune_result, {})
    files.write_json(paths.distill_result, {})
    tables_read = (
        *paths.collapse_tables.values(), paths.scores, paths.changes, paths.distill_history,
        paths.distill_validation, paths.latencies, paths.budget, paths.differences,
    )  # fmt: skip
    for path in tables_read:
        if path == paths.collapse_channels:  # the report does not read it
            continue
        files.write_csv(path, files.read_csv(path).head(0))
    history = files.read_csv(paths.train("baseline").history).assign(noise=np.nan, recon=0.0)
    files.write_csv(paths.train("baseline").history, history)
    report.run(context(paths, ("baseline",)))
    text = paths.report_page.read_text(encoding="utf-8")
    assert dict(metric_rows(text, "pictures")) == {"baseline": ["20.00"]}
    assert all(
        f'id="{name}"' not in text
        for name in ("metrics", "costs", "plans", "changes", "students", "controls")
    )
    assert 'id="certainty"' not in text
    assert {"1, 2", "no", "quality was not measured", "no operator was scored"} <= set(Page(text).texts)


def test_overview_is_as_high_as_its_samples_need(made: RunPaths) -> None:
    data = report.load(context(made).params, made)
    strip = figures.image_strip(data.samples["real"])
    sizes = [
        figures.overview(data, dict.fromkeys(list(data.samples)[:count], strip)).get_size_inches()
        for count in (3, 13)
    ]
    assert [size[0] for size in sizes] == [16, 16]
    assert sizes[0][1] == 7 < sizes[1][1] < 10
    header = made.report_figure.read_bytes()[16:24]
    assert int.from_bytes(header[:4]) == 1600


def test_strip_is_the_first_row(made: RunPaths) -> None:
    assert figures.image_strip(made.samples("pelap").read_bytes()).shape == (34, 274, 3)


def test_colours_stay_with_the_model() -> None:
    alone, among = style.looks(["pelap", "mine"]), style.looks(["baseline", "pelap", "mine", "real"])
    assert alone["pelap"] == among["pelap"]
    assert alone["mine"] == among["mine"]
    assert len({look.colour for look in among.values()}) == 4


def test_rows_of_a_family_share_a_marker_and_differ_by_plan() -> None:
    look = style.looks(METRICS)
    assert look["pruned-25"].hollow
    assert not look["distilled-25"].hollow
    for family in ("pruned", "distilled", "scratch"):
        one, other = look[f"{family}-25"], look[f"{family}-35"]
        assert one.marker == other.marker
        assert one.colour != other.colour
        assert one.dashes != other.dashes
    assert len({each.colour for each in look.values()}) == len(METRICS)
    families = (
        "baseline",
        "pelap",
        "invariant",
        "pruned-25",
        "distilled-25",
        "output-only-25",
        "scratch-25",
        "dense-finetuned",
    )
    assert len({look[name].marker for name in families}) == len(families)
    alone = style.looks(["pruned-25", "distilled-25"])
    assert alone["distilled-25"].colour == "#cc79a7"  # of one plan, the colour itself


def test_rows_are_split_by_their_plan() -> None:
    plans = row_names.plans_of(["baseline", "pruned-my-5", "pruned-5", "real"])
    assert plans == ["my-5", "5"]
    assert row_names.split_row("distilled-my-5", plans) == ("distilled", "my-5")
    assert row_names.split_row("distilled-25", plans) == ("distilled-25", None)
    assert row_names.split_row("output-only-5", plans) == ("output-only", "5")


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
    rows, changes = list(metric_rows(text, "changes")), files.read_csv(made.changes).query("plan == '25'")
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
    files.write_json(paths.score_protocol, SCORE_PROTOCOL | protocol)
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
    files.write_csv(paths.scores, files.read_csv(paths.scores).assign(stopped_early=False))
    assert "of 2 seeds; early stop was on, and stopped none." in certainty_of(paths)
    off = certainty_of(paths, early_stop=None, num_seeds=1)
    assert "from noise of 1 seed; every operator had all of them (no early stop)." in off


def test_words_count_intervals_that_overlap_the_first_kept(paths: RunPaths) -> None:
    scores = scored({"a": 1.0, "b": 3.0, "c": 4.0, "c.in": 2.0, "d": 5.0, "e": 0.5}, num_latents=32)
    scores.loc[:, "score_low"], scores.loc[:, "score_high"] = scores["score"] - 0.6, scores["score"] + 0.6
    scores.loc[5, "stopped_early"] = True  # known too roughly to be the first one kept
    changes = files.read_csv(paths.changes).iloc[:5].copy()
    changes["operator"], changes["action"] = ["all", "a", "b", "c", "d"], ["3 replaced", *"xyz", "kept"]
    files.write_csv(paths.scores, scores)
    files.write_csv(paths.changes, changes)
    sentence = "1 of the 3 replaced has a 95 % interval overlapping that of d, the least missed of those kept"
    assert f"{sentence}: there the choice is a matter of chance." in certainty_of(paths)
    files.write_csv(paths.scores, scores.assign(score_high=scores["score"] + 0.3, score_low=scores["score"]))
    assert "No 95 % interval of the 3 replaced overlaps that of d," in certainty_of(paths)
    files.write_csv(paths.scores, scores.assign(score_high=9.0))
    assert "3 of the 3 replaced have 95 % intervals overlapping that of d," in certainty_of(paths)
    files.write_csv(
        paths.scores, scores.replace({"score": {5.0: 0.1}, "score_low": {4.4: 0.1}, "score_high": {5.6: 0.2}})
    )
    assert "No 95 % interval of the 3 replaced overlaps that of d," in certainty_of(paths)  # a plan by hand
    files.write_csv(paths.scores, scores.head(4))
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
    files.write_csv(paths.scores, scored({**names, "conv_act": np.inf}))
    text = words.depth(report.load(context(paths).params, paths))
    assert text == (
        "in the order in which the UNet runs them. Median score: 2 on the way down, 0.25 in the middle and "
        "infinite at the output."
    )
    files.write_csv(paths.scores, scored({**names, "mine": 1.0}))
    assert words.depth(report.load(context(paths).params, paths)) == "in the order of their names."


# distillation


def test_page_holds_students_against_their_controls(made: RunPaths) -> None:
    text = made.report_page.read_text(encoding="utf-8")
    controls = dict(metric_rows(text, "controls"))
    assert controls["distilled-25"] == [
        "no worse than invariant (+1.49 ± 1.10)", "worse than dense-finetuned (+4.32 ± 1.10)", "96 %",
    ]  # fmt: skip
    assert controls["dense-finetuned"] == [
        f"better than invariant ({tables.MINUS}2.83 ± 1.10)",
        tables.DASH,
        tables.DASH,
    ]
    assert controls["scratch-35"][2] == tables.DASH
    students = dict(metric_rows(text, "students"))
    assert students["output-only-35"] == ["the pruned weights", "1", "1", "0", "240", "240", "the last"]
    assert students["dense-finetuned"][0] == "the dense network"


def test_words_of_a_difference() -> None:
    said = [distillation.verdict(value, 1.0) for value in (-2.1, -2.0, 0.0, 2.0, 2.1)]
    assert said == ["better than", *["no worse than"] * 3, "worse than"]


def test_recovered_is_stated_or_the_reason_is(paths: RunPaths) -> None:
    metrics = {name: {k: v for k, v in row.items() if k != "recovered"} for name, row in METRICS.items()}
    files.write_json(paths.metrics, metrics)
    table = files.read_csv(paths.differences)
    pruned = (table["model"] == "pruned-25") & (table["against"] == "invariant")
    files.write_csv(paths.differences, table.assign(se=table["se"].mask(pruned, table["difference"] / 1.9)))
    cells = dict(distillation.compared(report.load(context(paths).params, paths)))
    reason = "not stated: the gap that pruning left is within two standard errors"
    assert [cells[f"distilled-{plan}"][2] for plan in PLANS] == [reason, tables.DASH]
    assert cells["scratch-25"][2] == tables.DASH


def test_page_lists_every_plan(made: RunPaths) -> None:
    plans = dict(metric_rows(made.report_page.read_text(encoding="utf-8"), "plans"))
    assert plans == {
        "25": ["27", "25.0 %", "24.0 %", "31.40", "→ 23.87", "1,234,567", "→ 812,345"],
        "35": ["34", "35.0 %", "35.7 %", "31.40", "→ 20.20", "1,234,567", "→ 612,345"],
    }


def test_page_lists_times_by_batch_size_and_mode(paths: RunPaths) -> None:
    table = files.read_csv(paths.latencies)
    gone = (table["model"] == "pruned-25") & (table["mode"] == "compiled") & (table["batch_size"] == 1)
    files.write_csv(paths.latencies, table[~gone])
    headings, cells = distillation.latencies(files.read_csv(paths.latencies))
    assert headings == ["eager, 64 latents", "eager, 1 latent", "compiled, 64 latents", "compiled, 1 latent"]
    assert dict(cells)["pruned-25"] == ["23.87 ± 0.20", "1.19 ± 0.20", "19.10 ± 0.20", tables.DASH]
    assert dict(metric_rows(html.render(report.load(context(paths).params, paths)), "latencies")) == dict(
        cells
    )


def test_distillation_has_a_panel_a_term_and_a_line_a_student(made: RunPaths) -> None:
    data = report.load(context(made).params, made)
    task, output, feature = figures_training.distillation_curves(data.distill, data.models).axes
    drawn = [
        {
            line.get_label()
            for line in axis.lines
            if np.isfinite(np.asarray(line.get_ydata(), dtype=float)).any()
        }
        for axis in (task, output, feature)
    ]
    assert drawn[0] == set(data.students)
    assert drawn[0] - drawn[1] == {"dense-finetuned"}
    assert drawn[1] - drawn[2] == {"output-only-25", "output-only-35"}
    assert feature.get_yscale() == "log"


def test_validation_shows_intervals_and_the_step_kept() -> None:
    table = pd.DataFrame(
        {"student": ["a", "a", "b"], "step": [0, 50, 0], "task": [3.0, 2.0, 4.0], "fd_x": [9.0, 8.0, np.nan],
         "fd_x_se": [0.5, np.nan, np.nan]}
    )  # fmt: skip
    students = {"a": {"kept_step": 0}, "b": {"kept_step": 0}}
    task, distance = figures_training.distillation_quality(table, students, ["a", "b"]).axes
    rings = [line for line in task.lines if line.get_markerfacecolor() == "none"]
    assert [(list(r.get_xdata()), list(r.get_ydata())) for r in rings] == [([0], [3.0]), ([0], [4.0])]  # type: ignore[arg-type]
    first = distance.collections[0].get_segments()[0]  # type: ignore[attr-defined]
    assert first[:, 1] == pytest.approx([9 - 0.98, 9 + 0.98])
    assert (
        len(figures_training.distillation_quality(table[["student", "step", "task"]], {}, ["a", "b"]).axes)
        == 1
    )


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
    assert dict(html.flat(nested)) == {"a.b": "1", "a.c.d": tables.DASH, "e": "yes", "f": "x, 2"}


def test_metrics_file_is_json_that_others_read(made: RunPaths) -> None:
    assert json.loads(made.metrics.read_text()) == METRICS
