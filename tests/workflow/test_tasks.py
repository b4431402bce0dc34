"""The tasks over seeds: from the files of their cells to tables, a page and a figure."""

import contextlib
import io as io_
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from tiny import ROOT

from pelap.cli import main
from pelap.config.load import read_yaml
from pelap.core import files
from pelap.core.errors import DataError
from pelap.core.paths import RunPaths
from pelap.report.figures.style import looks, to_png
from pelap.report.tables import DASH, MINUS
from workflow.studies.tasks import FILES
from workflow.studies.tasks.cell import VALUE_COLUMNS, TaskCell
from workflow.studies.tasks.figures import tasks_figure
from workflow.studies.tasks.page import against
from workflow.studies.tasks.summarise import ALIKE_CLASSIFIER, ALIKE_PROTOCOL, summarise

SUMMARY_COLUMNS = ["task", "dataset", "model", "metric", "mean", "std", "n"]
SEEDS = (0, 1, 10)
DENSE = {0: 100.0, 1: 110.0, 10: 90.0}
LOST = {
    # Against the dense model, by seed.
    "pruned-20": (20.0, 30.0, 40.0),
    "pruned-35": (60.0, 90.0, 90.0),
    "distilled-20": (1.0, 2.0, -3.0),
    "distilled-35": (6.0, 8.0, 10.0),
    "dense-finetuned": (-5.0, -5.5, -4.5),
}
SAVED = {"20": (0.2, 0.22, 0.21), "35": (0.36, 0.35, 0.37)}
STUDENTS = {"distilled-20": "pruned", "distilled-35": "pruned", "dense-finetuned": "dense"}
TASKS = {
    "text": ("photos", "fd_classifier", "pictures"),
    "audio": ("sounds", "fd_classifier", "sounds"),
    "image": ("photos", "fd_effnet_lite0", "pictures"),
}


def write_cell(root: Path, task: str, seed: int) -> RunPaths:
    dataset, metric, noun = TASKS[task]
    run, place = RunPaths(root / task / dataset / f"seed{seed}"), SEEDS.index(seed)
    metrics: dict[str, dict[str, float | None]] = {
        model: {metric: DENSE[seed] + lost[place], f"{metric}_se": 1.5, "image_ms": 8.0, "psnr": None}
        for model, lost in {"dense": (0.0, 0.0, 0.0), **LOST}.items()
    }
    metrics["dense"]["image_ms"] = metrics["dense-finetuned"]["image_ms"] = 10.0
    metrics["real"] = {metric: 7.0, f"{metric}_se": 0.1}
    if noun == "sounds":
        metrics["real"][f"{metric}_vocoded"] = 9.0
    if task == "text":
        for model, values in metrics.items():
            values["prompt_agreement"] = 0.9 - (0.2 + 0.01 * place) * model.startswith("pruned")
            values["prompt_agreement_se"] = 0.01
    files.write_json(run.metrics, metrics)
    differences = [
        (model, "dense", metric, lost[place], 0.75 + place) for model, lost in LOST.items()
    ]  # fmt: skip
    columns = ["model", "against", "metric", "difference", "se"]
    files.write_csv(run.differences, pd.DataFrame(differences, columns=columns))
    files.write_json(run.prune_result, {plan: result(plan, place) for plan in SAVED})
    protocol = {"scored_variant": "dense", "students": STUDENTS, "num_images": 64}
    files.write_json(run.evaluate_protocol, protocol | {"medium": noun})
    return run


def result(plan: str, place: int) -> dict[str, Any]:
    return {
        "measured_time_reduction": SAVED[plan][place],
        "num_operators": int(plan) // 5 + place,
        "params_before": 1000,
        "params_after": 1000 - 10 * int(plan),
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks and three seeds, summarised; not to be changed."""
    root = tmp_path_factory.mktemp("tasks")
    for task in TASKS:
        for seed in SEEDS:
            write_cell(root, task, seed)
    with contextlib.redirect_stdout(io_.StringIO()) as said:
        summarise(root)
    (root / "said.txt").write_text(said.getvalue())
    return root


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what is about tables alone: drawing takes most of the time."""
    monkeypatch.setattr("workflow.studies.tasks.summarise.tasks_figure", lambda *_: Figure())


def mean_of(table: pd.DataFrame, task: str, model: str, metric: str) -> tuple[float, float, int]:
    rows = table[(table["task"] == task) & (table["model"] == model) & (table["metric"] == metric)]
    assert len(rows) == 1, (task, model, metric)
    return tuple(rows[["mean", "std", "n"]].iloc[0])


def row_of(page: str, task: str, model: str) -> dict[str, str]:
    """A row of a task's table by its headings."""
    lines = section(page, task).split("\n\n")[1].splitlines()
    headings, rows = lines[0], [line for line in lines if line.startswith(f"| {model} |")]
    assert len(rows) == 1
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in (headings, rows[0]))
    return dict(zip(*cells, strict=True))


def section(page: str, task: str) -> str:
    return page.split(f"## {task}:")[1].split("\n## ")[0]


def test_everything_is_written_and_said(done: Path) -> None:
    assert all((done / name).stat().st_size for name in FILES)
    assert (done / "said.txt").read_text() == f"9 cells of 3 tasks summarised in {done / 'tasks.md'}\n"


def test_summary_equals_the_sums_by_hand(done: Path) -> None:
    table = files.read_csv(done / "tasks.csv", SUMMARY_COLUMNS)
    assert list(table.columns) == SUMMARY_COLUMNS
    distances = np.array([DENSE[seed] + lost for seed, lost in zip(SEEDS, LOST["distilled-35"], strict=True)])
    found = mean_of(table, "image", "distilled-35", "fd_effnet_lite0")
    assert found == pytest.approx((distances.mean(), distances.std(ddof=1), 3))
    tuned = np.array([DENSE[seed] + lost for seed, lost in zip(SEEDS, LOST["dense-finetuned"], strict=True)])
    for other, values in (("dense", np.array(list(DENSE.values()))), ("dense-finetuned", tuned)):
        paired = distances / values - 1  # not the ratio of the means
        found = mean_of(table, "image", "distilled-35", f"change_to_{other}")
        assert found == pytest.approx((paired.mean(), paired.std(ddof=1), 3))
    for model in ("pruned-20", "distilled-20"):
        assert mean_of(table, "audio", model, "time_saved") == pytest.approx((0.21, 0.01, 3))
        assert mean_of(table, "audio", model, "operators_removed") == pytest.approx((5.0, 1.0, 3))
        assert mean_of(table, "audio", model, "params_removed") == pytest.approx((0.2, 0.0, 3))
        assert mean_of(table, "audio", model, "image_time_saved") == pytest.approx((0.2, 0.0, 3))


def test_cells_have_errors_and_what_pruning_saved_of_what_was_pruned(done: Path) -> None:
    summary = files.read_csv(done / "tasks.csv")
    cells = files.read_csv(done / "cells.csv", VALUE_COLUMNS)
    assert not [name for name in summary["metric"] if name.endswith(("_se", "_std"))]
    assert set(cells.loc[cells["metric"] == "difference_to_dense_se", "value"]) == {0.75, 1.75, 2.75}
    assert "prompt_agreement_se" in set(cells["metric"])
    assert cells["value"].notna().all()
    assert not cells.duplicated(VALUE_COLUMNS[:-1]).any()
    of_plans = cells[cells["metric"].isin(["time_saved", "operators_removed", "params_removed"])]
    assert set(of_plans["model"]) == {"pruned-20", "pruned-35", "distilled-20", "distilled-35"}
    changes = cells[cells["metric"].str.startswith("change_to_")]
    assert "real" not in set(changes["model"])
    assert not (changes["metric"] == "change_to_" + changes["model"]).any()


def test_page_has_every_row_and_column(done: Path) -> None:
    page = (done / "tasks.md").read_text(encoding="utf-8")
    for task, (dataset, metric, noun) in TASKS.items():
        assert f"## {task}: {dataset}, seeds 0, 1, 10\n" in page
        rows = re.findall(r"^\| ([a-z-]+(?:-\d+)?) \|", section(page, task), re.M)
        assert rows == ["model", "dense", *LOST, "real"]
        row = row_of(page, task, "distilled-20")
        assert f"time of a {noun.removesuffix('s')} saved (%)" in row
        assert row["UNet time saved (%)"] == "21.0 ± 1.0"
        assert row["operators removed"] == "5.0 ± 1.0"
        assert row[f"{metric} ↓"] == "100.00 ± 12.53"
        assert ("prompt agreement (%) ↑" in row) == (task == "text")
    assert row_of(page, "text", "pruned-35")["prompt agreement (%) ↑"] == "69.0 ± 1.0"
    assert row_of(page, "image", "dense")["UNet time saved (%)"] == DASH
    assert row_of(page, "image", "dense")["change to dense-finetuned (%)"].startswith("+5.3")


def test_page_says_whether_distillation_made_up_for_pruning(done: Path) -> None:
    page = (done / "tasks.md").read_text(encoding="utf-8")
    lines = [line for line in section(page, "audio").splitlines() if line.startswith("- ")]
    assert lines == [
        "- distilled-20, 21.0 % less UNet time, by fd_classifier: not told apart from dense "
        "(\N{MINUS SIGN}0.2 ± 2.8 %); "
        "worse than dense-finetuned (+5.1 ± 2.9 %).",
        "- distilled-35, 36.0 % less UNet time, by fd_classifier: worse than dense (+8.1 ± 2.7 %); "
        "worse than dense-finetuned (+13.8 ± 2.8 %).",
        "- real after Griffin-Lim, as made sounds are measured: fd_classifier 9.00 ± 0.00.",
    ]
    assert "by prompt agreement: not told apart from dense (0.0 ± 0.0 points)" in section(page, "text")


def test_published_figures_are_said_to_be_of_others(done: Path) -> None:
    page = (done / "tasks.md").read_text(encoding="utf-8")
    own = page.split("## LD-Pruner's own figures\n")[1]
    assert "other models, other data and other metrics" in own
    for figure in ("-34.9 % time", "FID -5.2 %", "-19.2 % time, 90 operators", "FAD 2.0 (0.5 better)"):
        assert figure in own.replace(MINUS, "-")
    assert "| unconditional image | unknown | unknown | unknown |" in own
    for name in ("FID", "FAD"):  # of ours nothing is called that
        assert name not in page.split("## LD-Pruner's own figures\n")[0]


@pytest.mark.parametrize(
    ("mean", "std", "says"),
    [
        (1.0, 2.0, "not told apart from"),
        (2.0, 1.0, "worse than"),
        (-2.0, 1.0, "better than"),
        (1.0, 1.0, "not told apart from"),
        (math.nan, 1.0, "no verdict against"),
        (math.nan, math.nan, "no verdict against"),
        (5.0, math.nan, "one seed, no verdict against"),
    ],
)
def test_verdict_is_by_one_standard_deviation(mean: float, std: float, says: str) -> None:
    assert against(mean, std) == says


def test_less_agreement_is_worse(tmp_path: Path, undrawn: None) -> None:
    for seed in SEEDS:
        run = write_cell(tmp_path, "text", seed)
        metrics = files.read_metrics(run.metrics)
        metrics["distilled-20"]["prompt_agreement"] = 0.7 + 0.01 * (seed == 10)
        metrics["distilled-35"]["prompt_agreement"] = 0.95 + 0.01 * (seed == 10)
        files.write_json(run.metrics, metrics)
    summarise(tmp_path)
    page = (tmp_path / "tasks.md").read_text(encoding="utf-8")
    agreement = re.findall(r"(distilled-\d+), .* by prompt agreement: (.*?) dense", page)
    assert agreement == [("distilled-20", "worse than"), ("distilled-35", "better than")]


def test_one_seed_has_no_verdict_but_its_standard_error(tmp_path: Path, undrawn: None) -> None:
    write_cell(tmp_path, "audio", 1)
    summarise(tmp_path)
    page = (tmp_path / "tasks.md").read_text(encoding="utf-8")
    assert "one seed, no verdict against dense (+1.8 %; difference +2.00, standard error 1.75)" in page
    assert "## audio: sounds, seed 1\n" in page
    assert "nan" not in page


def test_cells_that_lack_something_are_named_and_left_out(
    tmp_path: Path, undrawn: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for task in ("text", "audio", "image"):
        for seed in SEEDS[: 2 if task == "image" else 3]:
            write_cell(tmp_path, task, seed)
    RunPaths(tmp_path / "text/photos/seed1").differences.unlink()
    lacking = RunPaths(tmp_path / "audio/sounds/seed0").metrics
    metrics = files.read_metrics(lacking)
    del metrics["distilled-35"]["fd_classifier"]
    files.write_json(lacking, metrics)
    broken = RunPaths(tmp_path / "audio/sounds/seed1").prune_result
    files.write_json(broken, {"20": {"num_operators": 3}, "35": result("35", 0)})
    (tmp_path / "logs" / "old").mkdir(parents=True)
    summarise(tmp_path)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "not finished: text/photos/seed1"
    assert said[1].startswith("left out audio/sounds/seed0: ")
    assert said[1].endswith("lacks fd_classifier of distilled-35; evaluate again")
    assert said[2] == (
        f"left out audio/sounds/seed1: {broken}: 20: lacks measured_time_reduction, params_before, "
        "params_after; prune again"
    )
    assert said[3:] == [
        "missing: image/photos/seed10",
        f"5 cells of 3 tasks summarised in {tmp_path / 'tasks.md'}",
    ]
    counts = files.read_csv(tmp_path / "tasks.csv").groupby("task")["n"].max()
    assert counts.to_dict() == {"audio": 1, "image": 2, "text": 2}


def test_none_finished_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cell(tmp_path, "audio", 0).metrics.unlink()
    assert main(["tasks", "--root", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.err == (
        f"pelap: error: {tmp_path}: no finished TASK/DATASET/seedN here; run `snakemake --cores 4 all_tasks` "
        "first\n"
    )
    assert said.out == "not finished: audio/sounds/seed0\n"


@pytest.mark.parametrize("key", [*ALIKE_PROTOCOL, *(f"classifier.{key}" for key in ALIKE_CLASSIFIER)])
def test_every_key_of_the_protocol_is_compared(tmp_path: Path, undrawn: None, key: str) -> None:
    for seed, value in ((0, 64), (1, 32)):
        file = write_cell(tmp_path, "text", seed).evaluate_protocol
        outer, _, inner = key.partition(".")
        changed: Any = {outer: {inner: value, "sha256": f"{seed}"}} if inner else {key: value}
        if key == "medium":
            changed = {key: "pictures" if seed else None}
        files.write_json(file, files.read_mapping(file) | changed)
    with pytest.raises(DataError, match=rf"seed1.*another {key} than in .*seed0.*evaluate both alike"):
        summarise(tmp_path)


@pytest.mark.parametrize("key", ["students", "plan_names", "rows_per_latent"])
def test_seeds_made_otherwise_are_refused(tmp_path: Path, undrawn: None, key: str) -> None:
    write_cell(tmp_path, "text", 0)
    run = write_cell(tmp_path, "text", 1)
    protocol = files.read_mapping(run.evaluate_protocol)
    if key == "students":
        protocol["students"]["distilled-20"] = "scratch"
    elif key == "plan_names":
        plans = files.read_mapping(run.prune_result)
        files.write_json(run.prune_result, {"20": plans["20"]})
    else:
        protocol[key] = 2
    files.write_json(run.evaluate_protocol, protocol)
    with pytest.raises(DataError, match=f"another {key} than in"):
        summarise(tmp_path)


def test_a_classifier_of_each_seed_is_pooled_and_explained(tmp_path: Path, undrawn: None) -> None:
    for seed in SEEDS:
        file = write_cell(tmp_path, "text", seed).evaluate_protocol
        judge = {"steps": 5, "width": 4, "sha256": str(seed)}
        files.write_json(file, files.read_mapping(file) | {"classifier": judge, "rows_per_latent": 2})
        write_cell(tmp_path, "image", seed)
    summarise(tmp_path)
    page = (tmp_path / "tasks.md").read_text(encoding="utf-8")
    for part in ("of fd_classifier mixes feature spaces", "are those of 2 rows a latent"):
        assert part in section(page, "text")
        assert part not in section(page, "image")
    assert "Griffin-Lim" not in page  # no sounds here


def test_page_says_what_it_holds(tmp_path: Path, undrawn: None) -> None:
    for seed in SEEDS:
        run = write_cell(tmp_path, "audio", seed)
        for file in (run.metrics, run.differences, run.evaluate_protocol):
            file.write_text(file.read_text().replace("dense-finetuned", "on-and-on"))
    metrics = files.read_metrics(run.metrics)
    del metrics["real"]
    metrics["dense"]["fd_classifier"] = 0.0
    files.write_json(run.metrics, metrics)
    summarise(tmp_path)
    page = (tmp_path / "tasks.md").read_text(encoding="utf-8")
    assert "`on-and-on` is the dense model trained on" in page
    assert "dense-finetuned" not in page.split("## LD-Pruner")[0]
    assert "denoising and decoding, for sounds without Griffin-Lim" in page
    assert '"not told apart" is no proof that the two are alike' in page
    assert row_of(page, "audio", "real")["fd_classifier ↓"] == "7.00 ± 0.00 (n = 2)"
    assert row_of(page, "audio", "distilled-20")["change to dense (%)"].endswith("(n = 2)")
    assert "(n" not in row_of(page, "audio", "distilled-20")["UNet time saved (%)"]
    assert "inf" not in page.split("## LD-Pruner")[0].replace("information", "")


@pytest.mark.parametrize(("lost", "bent"), [(60.0, False), (400.0, True)])
def test_what_was_distilled_is_told_apart_beside_a_large_loss(lost: float, bent: bool) -> None:
    cells = [task_cell("image", seed) for seed in SEEDS]
    changes = {
        "pruned-20": lost / 2,
        "pruned-35": lost,
        "distilled-20": 4.0,
        "distilled-35": 9.0,
        "dense-finetuned": -3.0,
    }
    rows = [
        ("image", "photos", model, "change_to_dense", value / 100, 0.01, 3)
        for model, value in changes.items()
    ]
    rows += [
        ("image", "photos", f"{name}-{plan}", "time_saved", int(plan) / 100, 0.01, 3)
        for name in ("pruned", "distilled")
        for plan in SAVED
    ]
    figure = tasks_figure(pd.DataFrame(rows, columns=SUMMARY_COLUMNS), cells)
    (axis,) = figure.axes
    assert axis.get_yscale() == ("symlog" if bent else "linear")
    assert ("plan 35: +400 %" in {text.get_text() for text in axis.texts}) == bent
    assert ("logarithmic" in axis.get_ylabel()) == bent
    heights = axis.transAxes.inverted().transform(axis.transData.transform([[0, 4.0], [0, 9.0]]))[:, 1]
    assert heights[1] - heights[0] > 0.05


def test_figure_has_a_panel_a_task_and_a_line_a_family(done: Path) -> None:
    cells = [task_cell(task, seed) for task in sorted(TASKS) for seed in SEEDS]
    figure = tasks_figure(files.read_csv(done / "tasks.csv"), cells)
    assert [axis.get_title(loc="left") for axis in figure.axes] == [
        f"{task}: mean ± std of 3 seeds" for task in ("audio", "image", "text")
    ]
    look = looks(["dense", "pruned", "distilled", "dense-finetuned"])
    for axis in figure.axes:
        lines = {str(bars.get_label()): bars.lines[0] for bars in axis.containers}  # type: ignore[attr-defined]
        assert list(lines) == ["dense", "pruned", "distilled", "dense-finetuned"]
        assert {name: line.get_color() for name, line in lines.items()} == {
            name: look[name].colour for name in lines
        }
        assert list(lines["pruned"].get_xdata()) == pytest.approx([21.0, 36.0])
        assert list(lines["dense"].get_xydata()[0]) == [0.0, 0.0]
        assert lines["dense-finetuned"].get_xdata()[0] == 0.0
        assert lines["dense-finetuned"].get_ydata()[0] == pytest.approx(-5.0, abs=0.01)
        assert {text.get_text() for text in axis.texts} == {"plan 20", "plan 35"}
    to_png(figure)


def task_cell(task: str, seed: int) -> TaskCell:
    dataset, metric, noun = TASKS[task]
    plans = {plan: result(plan, 0) for plan in SAVED}
    metrics: Any = {model: {metric: 1.0} for model in ("dense", *LOST, "real")}
    return TaskCell(
        dataset, seed, metric, "dense", metrics, plans, task, noun.removesuffix("s"), STUDENTS, pd.DataFrame()
    )


def test_a_fourth_task_is_data() -> None:
    """No module knows a task by its name."""
    names = read_yaml(ROOT / "workflow" / "config.yaml")["tasks"]
    for file in (ROOT / "workflow" / "studies" / "tasks").glob("*.py"):
        code = file.read_text(encoding="utf-8")
        assert not [name for name in names if f'"{name}"' in code]
    rules = "".join(file.read_text() for file in (ROOT / "workflow" / "rules").glob("*.smk"))
    assert not [name for name in names if f"tasks/{name}" in rules or f'"{name}"' in rules]


def test_time_saved_is_by_the_evaluation_where_that_timed_the_model(tmp_path: Path, undrawn: None) -> None:
    run = write_cell(tmp_path, "image", 0)
    metrics = files.read_metrics(run.metrics)
    for model, least in (("dense", 10.0), ("pruned-20", 7.0)):
        metrics[model]["latency_least_ms"] = least
    files.write_json(run.metrics, metrics)
    summarise(tmp_path)
    table = pd.read_csv(tmp_path / "tasks.csv")
    assert mean_of(table, "image", "pruned-20", "time_saved")[0] == pytest.approx(0.3)
    assert mean_of(table, "image", "pruned-35", "time_saved")[0] == pytest.approx(SAVED["35"][0])
