import base64
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from report_page import Page, context, load, page_of, without_report
from synthetic_run import METRICS, PROMPTS, PROTOCOL, SOUNDS, VARIANTS, build_run
from tiny import ROOT

from pelap.cli import main
from pelap.core import files
from pelap.core.errors import BusyError, DataError
from pelap.core.paths import RunPaths
from pelap.report import protocol, sheets, tables
from pelap.report.figures import overview
from pelap.report.page import render
from pelap.stages import report

PNG, WAV = "data:image/png;base64,", "data:audio/wav;base64,"


def as_number(cell: str) -> float:
    return float(cell.replace(",", "").replace(tables.MINUS, "-"))


def test_page_needs_no_other_file(made: RunPaths) -> None:
    page = page_of(made)
    used = [value for _, name, value in page.attributes if name in ("src", "href", "xlink:href", "srcset")]
    assert used
    for value in used:
        assert value.startswith(("#", PNG)), value[:80]
    assert {value[1:] for value in used if value.startswith("#")} <= set(page.ids)
    assert not re.findall(r"url\((?!#)|@import|<script|<link", page.source)
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\"'\s<]*", page.source)) <= namespaces
    assert str(made.root) not in page.source
    assert sum(bool(re.fullmatch(r"p[0-9a-f]{10}", name)) for name in page.ids) > 6
    assert len(set(page.ids)) == len(page.ids)  # two figures with one identifier would clip each other


def test_page_has_all_models_sections_and_pictures(made: RunPaths) -> None:
    page = page_of(made)
    assert list(page.table("metrics")) == list(METRICS)
    for section in re.findall(r'href="#(\w+)"', page.source.split("</nav>")[0]):
        assert f'<h2 id="{section}">' in page.source
    assert [len(re.findall(tag, page.source)) for tag in ("<h2", "<svg")] == [10, 10]
    assert all(page.texts.count(model) >= 2 for model in METRICS)
    operators = files.read_csv(made.scores)["operator"].head(40)
    assert {"0123abcd" * 8, "sampler.steps", "astronaut", *operators} <= set(page.texts)
    shown = [base64.b64decode(value.removeprefix(PNG)) for value in page.sources("img")]
    samples = [made.samples(model).read_bytes() for model in METRICS]
    assert shown == samples + [made.reconstructions(name).read_bytes() for name in ("real", *VARIANTS)]
    assert ("img", "width", "548") in page.attributes  # 274 pixels, magnified by a whole number


@pytest.mark.parametrize(
    ("group", "width", "height"), [("metrics", 7, 13), ("pictures", 4, 12), ("costs", 7, 12)]
)
def test_numbers_are_those_of_the_metrics(made: RunPaths, group: str, width: int, height: int) -> None:
    every = tables.columns(tables.metrics_frame(METRICS, "invariant"))
    shown = [column for column in every if column.group == group]
    rows = page_of(made).table(group)
    assert len(rows) == height
    for model, cells in rows.items():
        values: dict[str, Any] = dict(METRICS[model])
        if values.get("latency_ms"):
            values[tables.CHANGE] = values["latency_ms"] / METRICS["invariant"]["latency_ms"] - 1  # type: ignore[operator]
        assert len(cells) == len(shown) == width
        for column, cell in zip(shown, cells, strict=True):
            number, _, error = cell.partition(f" {tables.PLUS_MINUS} ")
            if values.get(column.key) is None:
                assert cell == tables.DASH
                continue
            tiny = 0.51 * 10**-column.decimals
            assert as_number(number) == pytest.approx(values[column.key] * column.scale, abs=tiny)
            assert bool(error) == bool(column.error)
            if error:
                half = 0.5 if column.group == "costs" else 1.0
                stated = half * column.scale * values[column.error]
                assert as_number(error) == pytest.approx(stated, abs=tiny)


def test_protocol_stands_below_the_table(made: RunPaths) -> None:
    line = (
        "2,000 pictures of each model against 4,000 train pictures · extractor effnet-lite0 (0123abcd0123) · "
        "DDIM, 20 steps · EMA 0.99 · seed 0 · data set photos (fedcba98fedc) · torch 2.9.0 · Python 3.11.9 · "
        "cpu · revision 0a1b2c3"
    )
    assert protocol.line(PROTOCOL) == line
    below = made.report_table.read_text(encoding="utf-8").split("\n\n", 1)[1]
    assert {line, *PROTOCOL["notes"]} <= set(page_of(made).texts)
    assert below == f"{line}\n\n{PROTOCOL['notes'][0]}\n"
    assert protocol.line({"sampler": None, "extractors": [3], "device": "cpu"}) == "cpu"
    assert protocol.line({"ema_decay": {"a": 0.9, "b": 0.99}}) == "EMA 0.9, 0.99"
    assert protocol.markdown({}) == ""


@pytest.mark.usefixtures("without_svg")
def test_protocol_may_hold_anything(paths: RunPaths) -> None:
    entries = {"a": {"b": 1, "c": {"d": None}}, "e": True, "f": ["x", 2]}
    assert dict(protocol.flat(entries)) == {"a.b": 1, "a.c.d": None, "e": True, "f": ["x", 2]}
    files.write_json(paths.evaluate_protocol, entries)
    page = render(load(paths)).split('<h2 id="protocol">')[1]
    assert dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", page)) == {
        "a.b": "1", "a.c.d": tables.DASH, "e": "yes", "f": "x, 2"
    }  # fmt: skip


# What models make: pictures or sounds


@pytest.mark.slow
def test_sounds_play_beside_their_spectrograms_the_real_ones_first(heard: RunPaths) -> None:
    page, order = page_of(heard), ["real", *(name for name in METRICS if name != "real")]
    sounds = [base64.b64decode(value.removeprefix(WAV)) for value in page.sources("audio")]
    assert sounds == [heard.samples_sound(name).read_bytes() for name in order]
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("audio", "aria-label")]
    assert labels == [f"Samples: {name}" for name in order]
    assert page.source.count('<audio controls preload="none"') == len(order)
    shown = [base64.b64decode(value.removeprefix(PNG)) for value in page.sources("img")]
    assert shown[: len(order)] == [heard.samples(name).read_bytes() for name in order]
    for value in re.findall(r'(?:src|href)="([^"]*)"', page.source):
        assert value.startswith(("#", PNG, WAV)), value[:80]


def test_page_of_sounds_does_not_speak_of_pictures(heard: RunPaths, made: RunPaths) -> None:
    texts, old = page_of(heard).texts, page_of(made).texts
    wrong = [text for text in texts if re.search(r"picture|time per image", text, re.I)]
    assert [text for text in wrong if not any(prompt in text for prompt in PROMPTS)] == []
    assert any("Sounds made by each model, not selected." in text for text in texts)
    table = heard.report_table.read_text(encoding="utf-8")
    assert "picture" not in table
    assert "| time per sound (ms) ↓ |" in table
    assert any("Pictures made by each model, not selected." in text for text in old)
    assert not any("sound" in text or "prompt" in text.lower() for text in old)


def test_page_says_how_sounds_were_judged(heard: RunPaths) -> None:
    page, table = page_of(heard), heard.report_table.read_text(encoding="utf-8")
    text = "\n".join(page.texts)
    for part in (
        "2,000 sounds of each model against 4,000 train sounds",
        "sounds of 16,000 samples a second by Griffin-Lim, measured as heard",
        "classifier: 93.8 % of 512 test sounds right",
        "2 prompts, guidance scale 3",
        "2 rows of the UNet's batch a latent",
        "fd_classifier: features of a small network that learnt from the train sounds",
    ):
        assert part in text, part
        assert part in table, part
    for part in (
        "Prompt agreement: the share of made sounds that the classifier takes for the class",
        f"row by row, guidance scale 3: {'; '.join(PROMPTS)}. After 2 the first comes again.",
        "taken for their own class. Taken over the 1,500 of 2,000 made sounds whose prompt names one",
    ):
        assert part in text, part
    notes = page.source.split('<h2 id="quality">')[0]
    assert notes.count("fd_classifier:") == 1  # the protocol's own note, and no other
    rows = page.table("metrics")
    assert "90.0 ± 1.2" in rows["baseline"]
    assert rows["real"][0] == "22.88 ± 0.25"
    assert rows["real"][-1] == "31.50"  # after Griffin-Lim, beside no model's distance
    assert rows["dense-finetuned"][-1] == tables.DASH
    frame = tables.metrics_frame(files.read_metrics(heard.metrics), "invariant")
    assert [key for key in frame if tables.is_distance(key)] == ["fd_classifier"]


@pytest.mark.usefixtures("without_svg")
def test_pictures_of_prompts_have_prompts_but_no_players(paths: RunPaths) -> None:
    entries = {key: value for key, value in SOUNDS.items() if key not in ("medium", "sound")}
    files.write_json(paths.evaluate_protocol, PROTOCOL | entries)
    page = Page(render(load(paths)))
    assert "prompts" in page.ids
    assert not page.sources("audio")


def test_only_our_own_words_change_with_the_medium() -> None:
    sounds = protocol.modality_names(SOUNDS)
    for text, says in {
        "Pictures of a picture-maker; Picture by picture": "Sounds of a picture-maker; Sound by sound",
        "time per image, image_ms, images": "time per sound, image_ms, images",
        "| picture | picture |\n| pictures | 1 |": "| picture | sound |\n| pictures | 1 |",
        "my.picture picture.old; a picture.": "my.picture picture.old; a sound.",
    }.items():
        assert sounds.put(text) == says
    for entries in ({}, {"medium": None}, {"medium": "pictures"}):
        assert protocol.modality_names(entries).put("Pictures per image") == "Pictures per image"
    figure, (axis,) = overview.panels(1, (3, 3))
    axis.set_title("picture")
    axis.set_xlabel("time per image, of a picture (ms)")
    sounds.label(figure)
    assert (axis.get_title(), axis.get_xlabel()) == ("picture", "time per sound, of a sound (ms)")


@pytest.mark.usefixtures("without_svg")
def test_a_variant_called_picture_keeps_its_name(heard: RunPaths, tmp_path: Path) -> None:
    run = without_report(heard, tmp_path / "run")
    files.write_json(run.evaluate_protocol, PROTOCOL | SOUNDS | {"scored_variant": "picture"})
    for file in (run.metrics, run.budget, run.differences, *run.collapse_tables.values()):
        if file.is_file():
            file.write_text(file.read_text().replace("invariant", "picture"))
    for file in [*run.evaluate.rglob("invariant.*")]:
        file.rename(file.with_stem("picture"))
    run.train("invariant").root.rename(run.train("picture").root)
    page = Page(render(load(run, ("baseline", "pelap", "picture"))))
    assert "picture" in page.table("findings")
    assert {"against picture", "picture, as fast"} <= set(page.texts)


@pytest.mark.usefixtures("without_svg")
@pytest.mark.parametrize(
    ("rows", "told"), [({}, 0), ({"rows_per_latent": 1}, 0), ({"rows_per_latent": 2}, 3)]
)
def test_costs_under_guidance_are_said_to_be_of_two_rows(
    paths: RunPaths, rows: dict[str, int], told: int
) -> None:
    files.write_json(paths.evaluate_protocol, PROTOCOL | rows)
    page = render(load(paths))
    assert page.count("are those of 2 rows a latent.") == told
    assert page.count("2 rows of the UNet&#39;s batch a latent") == bool(told)
    pipelines = {"sd": {"scheduler": "DDIM", "steps": 20, **rows}}
    assert ("DDIM, 20 steps, 2 rows a latent" in protocol.line({"pipelines": pipelines})) == bool(told)


# Tables of the page


def test_missing_is_a_dash_everywhere(made: RunPaths) -> None:
    markdown = made.report_table.read_text(encoding="utf-8")
    for text in (markdown, "\n".join(page_of(made).texts)):
        assert not re.search(r"\b(nan|none|inf)\b", text, re.IGNORECASE)
    real = "| real | 22.88 ± 0.25 | 0.0254 ± 0.0031 | 0.612 | 0.401 |"
    assert markdown.splitlines()[14] == f"{real}{f' {tables.DASH} |' * 8}"
    assert markdown.splitlines()[1] == f"| :-- |{' --: |' * 12}"
    assert "| 812,345 |" in markdown
    assert f"| {tables.MINUS}24.0 |" in markdown


def test_collapse_shows_verdict_reason_and_numbers(made: RunPaths) -> None:
    page, table = page_of(made), files.read_csv(made.collapse_table)
    verdicts, numbers = page.table("verdicts"), page.table("collapses")
    assert verdicts["baseline"] == ["mask collapse", "0 of 4 channels are open", "96.42 ± 1.07"]
    assert verdicts["invariant"] == ["partial mask", "2 of 4 channels are open", "91.73 ± 1.02"]
    assert list(numbers) == list(VARIANTS)
    assert [cells[1] for cells in numbers.values()] == ["0 of 4", "1 of 4", "2 of 4"]
    for place, term in enumerate(sheets.TERMS):
        assert f"<dt>{term.name}</dt><dd>" in page.source
        if term.key != "active_channels":
            for cells, value in zip(numbers.values(), table[term.key], strict=True):
                assert as_number(cells[place]) == pytest.approx(value, abs=0.51 * 10**-term.decimals)
    few = pd.DataFrame({"variant": ["closed"], "active_channels": [0], "floor_ratio": [np.nan]})
    assert [term.key for term in sheets.terms(few)] == ["active_channels", "floor_ratio"]
    assert sheets.collapse(few).rows == [("closed", ["0", tables.DASH])]


def test_page_lists_plans_students_and_changes(made: RunPaths) -> None:
    page = page_of(made)
    plans = {
        plan: " | ".join(cells).replace(tables.MINUS, "-") for plan, cells in page.table("plans").items()
    }
    assert plans == {
        "25": "27 of 122 | 24 | 25.0 % | 24.0 % | 31.40 | → 23.87 | 1,234,567 | → 812,345 | -34.2 %",
        "35": "34 of 122 | 30 | 35.0 % | 35.7 % | 31.40 | → 20.20 | 1,234,567 | → 612,345 | -50.4 %",
    }
    students = page.table("students")
    weights = ["1 (60 %)", "1 (40 %)", "0"]
    assert students["output-only-35"] == ["the pruned weights", *weights, "240", "240", "the last"]
    assert students["distilled-25"][1:4] == ["1 (60 %)", "1 (20 %)", "1 (20 %)"]
    assert students["dense-finetuned"][:4] == ["the dense network", "1 (100 %)", "0", "0"]
    assert "share of the gradient's norm" in page.source
    rows = {name: " | ".join(cells) for name, cells in page.table("changes").items()}
    whole, *names = rows
    assert whole == "(whole denoiser)"
    assert rows[whole] == "27 replaced | 1,234,567 | → 812,345 | 4,321.1 | → 1,000.0 | 31.40 | → 23.87"
    changes = files.read_csv(made.changes).query("plan == '25'")
    replaced = changes[(changes["action"] != "kept") & ~changes["action"].str.startswith("gone")][1:]
    assert names == list(replaced["operator"])
    actions = [rows[name].split(" | ")[0] for name in names]
    assert actions == list(replaced["action"])
    assert set(actions) == {"identity", "residual", "projection"}
    assert rows[names[0]].endswith(" | 2,000 | → 8 | 12.3 | → 0.0 | 0.46 | → 0.01")
    assert "one pass over a batch of 64 latents. Here" in page.source


@pytest.mark.usefixtures("without_svg")
def test_page_lists_times_by_batch_size_and_mode(paths: RunPaths) -> None:
    table = files.read_csv(paths.latencies)
    gone = (table["model"] == "pruned-25") & (table["mode"] == "compiled") & (table["batch_size"] == 1)
    files.write_csv(paths.latencies, table[~gone])
    page = Page(render(load(paths)))
    headings = ["eager, 64 latents", "eager, 1 latent", "compiled, 64 latents", "compiled, 1 latent"]
    assert [text for text in page.texts if text in headings] == headings
    cells = ["23.87 ± 0.20", "1.19 ± 0.20", "19.10 ± 0.20", tables.DASH]
    assert page.table("latencies")["pruned-25"] == cells


# Runs with little in them, and damaged ones


@pytest.mark.usefixtures("without_svg")
def test_page_of_a_distillation_that_measured_no_gradients(paths: RunPaths) -> None:
    table = files.read_csv(paths.distill_validation)
    files.write_csv(paths.distill_validation, table[[name for name in table if "gradient" not in name]])
    page = Page(render(load(paths)))
    assert page.table("students")["output-only-35"][1:4] == ["1", "1", "0"]
    assert "share of the gradient's norm" not in page.source


@pytest.mark.slow
def test_page_of_a_run_without_times(paths: RunPaths) -> None:
    """`evaluate.latency_repeats: null` leaves quality alone."""
    kept = ("fd_effnet_lite0", "psnr", "ssim")
    metrics = {model: {key: row[key] for key in kept if key in row} for model, row in METRICS.items()}
    files.write_json(paths.metrics, metrics)
    files.write_csv(paths.latencies, files.read_csv(paths.latencies).head(0))
    files.write_csv(paths.budget, files.read_csv(paths.budget).assign(image_ms=np.nan, image_iqr_ms=np.nan))
    report.run(context(paths))
    page = page_of(paths)
    assert page.table("metrics")["invariant"] == ["91.73"]
    assert page.table("pictures")["invariant"] == ["25.46", "0.839"]
    assert page.table("findings")["dense-finetuned"] == [
        "88.90", f"{tables.MINUS}3.1 %", f"not told apart ({tables.MINUS}2.83\xa0±\xa01.10)", tables.DASH
    ]  # fmt: skip
    for absent in ("Quality and time", 'id="costs"', 'id="latencies"', "at equal time", "as fast"):
        assert absent not in page.source
    assert "Times were not measured." in page.source
    assert {"91.73", "real against other real pictures: 22.88"} <= set(page.texts)


def test_run_with_little_measured(paths: RunPaths) -> None:
    """A run without costs, masks or scores still has a page, without warnings."""
    files.write_json(paths.metrics, {"baseline": {"psnr": 20.0}, "pruned-25": {}, "real": {}})
    files.write_json(paths.evaluate_protocol, {"device": None, "nested": {"a": [1, 2], "b": False}})
    files.write_json(paths.prune_result, {})
    files.write_json(paths.distill_result, {})
    read = set(paths.collapse_tables.values()) - {paths.collapse_channels}
    read |= {paths.scores, paths.changes, paths.distill_history, paths.distill_validation}
    for path in read | {paths.latencies, paths.budget, paths.differences}:
        files.write_csv(path, files.read_csv(path).head(0))
    history = files.read_csv(paths.train("baseline").history).assign(noise=np.nan, recon=0.0)
    files.write_csv(paths.train("baseline").history, history)
    report.run(context(paths, ("baseline",)))
    page = page_of(paths)
    assert page.table("pictures") == {"baseline": ["20.00"]}
    assert not {"metrics", "costs", "plans", "changes", "students", "findings", "scoring"} & set(page.ids)
    assert {"1, 2", "no", "quality was not measured", "no operator was scored"} <= set(page.texts)


def test_names_are_escaped(tmp_path: Path) -> None:
    name = "<script>$a$ & \N{CJK UNIFIED IDEOGRAPH-732B}"
    paths = build_run(tmp_path / "run", VARIANTS)
    files.write_csv(paths.masks_per_class, files.read_csv(paths.masks_per_class).replace("cat", name))
    files.write_json(paths.evaluate_protocol, PROTOCOL | {"note": "<b>bold</b>"})
    page = Page(render(load(paths, VARIANTS)))
    for raw in ("<script>", "<b>bold"):
        assert raw not in page.source
    assert "&lt;b&gt;bold" in page.source
    assert name in page.texts


@pytest.mark.slow
def test_prompts_and_classes_of_strangers_steer_neither_page_nor_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tags, quotes, template marks, escape codes, NUL, new lines and what turns the direction of a text."""
    paths = build_run(tmp_path / "run")
    signs = ("<img src=x onerror=alert(1)>", "\x1b[31m", "\x00", "\u202e", "\x9b2J")
    hostile = f"a{''.join(signs)}&\"' {{{{7*7}}}} [/red] \u05d0\u05d1\nline"
    files.write_csv(paths.masks_per_class, files.read_csv(paths.masks_per_class).replace("cat", hostile))
    notes, prompts = [*PROTOCOL["notes"], hostile], {"number": 1, "guidance_scale": 3.0, "first": [hostile]}
    files.write_json(paths.evaluate_protocol, PROTOCOL | {"notes": notes, "prompts": prompts})
    arguments = ["report", "--run", paths.root, "--params", ROOT / "params.yaml", "--device", "cpu"]
    assert main([str(word) for word in arguments]) == 0
    page, printed = page_of(paths), capsys.readouterr()
    assert "&lt;img src=x" in page.source
    assert r"\x1b[31m\x00\u202e" in page.source
    assert "\u05d0\u05d1" in page.source
    assert "{{7*7}}" in page.source
    assert r"\x1b[31m\x00\u202e" in printed.out
    for text in (page.source, printed.out, printed.err):
        assert not [sign for sign in signs if sign in text and not (sign == signs[0] and text is printed.out)]


REQUIRED = (
    "evaluate/metrics.json", "evaluate/protocol.json", "train/pelap/history.csv",
    "train/baseline/validation.csv", "collapse/collapse.csv", "collapse/masks_per_class.csv",
    "collapse/epochs.csv", "collapse/timesteps.csv",
    "score/scores.csv", "score/protocol.json", "prune/changes.csv", "prune/result.json",
    "distill/history.csv", "distill/validation.csv", "distill/result.json", "evaluate/budget.csv",
    "evaluate/latencies.csv", "evaluate/differences.csv", "evaluate/samples/distilled-25.png",
    "evaluate/reconstructions/real.png", "evaluate/samples/dense-finetuned.wav",
)  # fmt: skip
WAV_FILE = "evaluate/samples/dense-finetuned.wav"
DAMAGED: list[tuple[str, str | int, str]] = [
    ("score/scores.csv", "operator,kind,parent,score,stopped_early\na,,,1,False\n",
     "lacks the columns score_low, score_high, num_latents, latency_share"),
    ("score/protocol.json", '{"num_latents": 8}', "lacks the keys num_seeds, formula, early_stop"),
    ("score/protocol.json", "[]", "expected a JSON mapping"),
    ("prune/changes.csv", "operator,action,params_before\na,kept,1\n", "lacks the columns plan, params_af"),
    ("collapse/masks_per_class.csv", "variant,class_name,channel,mean_mask\npelap,cat,0,near\n",
     "row 1, column mean_mask: 'near' is not a number"),
    ("collapse/epochs.csv", "variant,epoch,loss\npelap,1,inf\n", "row 1, column loss: is not finite"),
    ("collapse/epochs.csv", "variant,epoch\nsomebody,1\n", "row 1: the variant somebody is none"),
    ("distill/history.csv", "student,step,loss\nx,1,word\n", "row 1, column loss: 'word' is not a number"),
    ("evaluate/latencies.csv", "model,batch_size,mode,median_ms,iqr_ms\na,1,eager,2.0,1\nb,1,eager,x,1\n",
     "row 2, column median_ms: 'x' is not a number"),
    ("evaluate/budget.csv", "model,steps,image_ms,image_iqr_ms,fd\na,1,2,1,3.0\nb,1,2,1,x\n",
     "row 2, column fd: 'x' is not a number"),
    ("score/protocol.json", '{"num_latents": [], "num_seeds": 1, "formula": "", "early_stop": null,'
     ' "rank_correlation": null, "latency_batch_size": 1}', "num_latents: Input should be a valid integer"),
    ("evaluate/protocol.json", '{"deepcache_intervals": 3}', "deepcache_intervals: Input should be a valid"),
    ("evaluate/protocol.json", '{"pipelines": {"a": []}}', "pipelines.a: Input should be a valid dict"),
    ("evaluate/metrics.json", '{"pelap": {"psnr": NaN}}', "NaN is no number of JSON"),
    ("prune/result.json", '{"25": {"params_before": {}}}', "25.params_before: Input should be a valid num"),
    ("distill/result.json", '{"own": {"start": "dense", "plan": null, "steps": "x", "kept_step": 1,'
     ' "select": "", "task_weight": 1, "output_weight": 1, "feature_weight": 1}}',
     "own.steps: Input should be a valid integer"),
    ("prune/result.json", '{"25": 3}', "25: lacks a mapping"),
    ("distill/result.json", '{"own": {"start": "dense"}}', "own: lacks plan, steps, kept_step, select, "),
    ("evaluate/metrics.json", '{"pelap": {"psnr": "12"}}', "pelap: expected a mapping"),
    ("evaluate/samples/pelap.png", "no picture", "not a readable PNG picture"),
    ("evaluate/samples/pelap.png", 800, "not a readable PNG picture"),
    (WAV_FILE, "no sound", "not a readable WAV file"),
    (WAV_FILE, "", "not a readable WAV file"),
    (WAV_FILE, 800, "ends early"),
]  # fmt: skip


@pytest.fixture(scope="module")
def spare(heard: RunPaths, tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    return without_report(heard, tmp_path_factory.mktemp("spare") / "run")


@pytest.mark.parametrize(
    ("name", "content", "says"), [*((name, None, "no such file") for name in REQUIRED), *DAMAGED]
)
def test_missing_or_damaged_input_is_one_line(
    spare: RunPaths, name: str, content: str | int | None, says: str
) -> None:
    """`content` is what stands there, or how many bytes are lacking at the end."""
    file = spare.root / name
    whole = file.read_bytes()
    file.unlink()
    if content is not None:
        file.write_bytes(content.encode() if isinstance(content, str) else whole[:-content])
    try:
        with pytest.raises(DataError, match=says) as caught:
            report.run(context(spare))
    finally:
        file.write_bytes(whole)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not spare.report.exists()
    assert not list(spare.root.glob(".report.*.partial"))


@pytest.mark.slow
def test_failed_report_keeps_the_last_one(
    made: RunPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    shutil.copytree(made.root, tmp_path / "run")
    paths = RunPaths(tmp_path / "run")
    files.write_json(paths.metrics, METRICS | {"pelap": {"psnr": 1.0}})
    monkeypatch.setattr(overview, "overview", fail)  # the last of the three files
    with pytest.raises(OSError, match="disk full"):
        report.run(context(paths))
    for file in made.report.iterdir():
        assert (paths.report / file.name).read_bytes() == file.read_bytes()


def test_two_reports_at_once(paths: RunPaths) -> None:
    with files.exclusive(paths.report), pytest.raises(BusyError):
        report.run(context(paths))


@pytest.mark.slow
def test_same_run_same_files(made: RunPaths, paths: RunPaths) -> None:
    report.run(context(paths))
    for name in ("report_page", "report_figure", "report_table"):
        assert getattr(paths, name).read_bytes() == getattr(made, name).read_bytes(), name


# The terminal


def test_terminal_shows_table_and_path(
    made: RunPaths, heard: RunPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    report.show(heard)
    *table, last = capsys.readouterr().out.splitlines()
    assert last == str(heard.report_page)
    assert max(map(len, table)) <= 80
    assert {"prompt", "88.0", "sound"} <= set(" ".join(table).split())
    report.show(made)
    table = capsys.readouterr().out.splitlines()[:-1]
    assert max(map(len, table)) <= 80
    said = " ".join(" ".join(table).split())
    assert "extractor effnet-lite0 (0123abcd0123)" in said
    assert PROTOCOL["notes"][0] in said
    lines = {line.split()[0]: line.split()[1:] for line in table if line.strip()}
    assert lines["invariant"] == ["91.73+-1.02", "0.1019", "-", "31.40", "0.0", "12.90", "1.23"]
    assert lines["distilled-25"] == ["93.22+-1.04", "0.1036", "96", "23.87", "-24.0", "9.70", "0.81"]


def test_terminal_without_a_page(paths: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    report.show(paths)
    assert capsys.readouterr().out.splitlines()[-1] == "no page yet: run pelap report"
