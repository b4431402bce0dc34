"""The tasks over seeds: from the files of their cells to tables, a page and a figure."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from refusals import refusal
from tiny import ROOT

from pelap.config.yaml import read_yaml
from pelap.core import files
from pelap.core.errors import DataError
from pelap.core.paths import RunPaths
from pelap.report.figures.style import looks
from pelap.report.tables import DASH, MINUS
from pelap.report.verdicts import SAME
from workflow.studies.tasks import FILES
from workflow.studies.tasks.cell import TaskCell
from workflow.studies.tasks.figures import tasks_figure
from workflow.studies.tasks.summarise import ALIKE_CLASSIFIER, ALIKE_PROTOCOL, summarise

MOMENTS = ["mean", "std", "n"]
pytestmark = pytest.mark.usefixtures("undrawn")
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
    rows = [(model, "dense", metric, lost[place], 0.75 + place) for model, lost in LOST.items()]
    columns = ["model", "against", "metric", "difference", "se"]
    files.write_csv(run.differences, pd.DataFrame(rows, columns=columns))
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
    summarise(root)
    return root


def summarised(root: Path) -> str:
    """The page."""
    summarise(root)
    return (root / "tasks.md").read_text(encoding="utf-8")


def mean_of(table: pd.DataFrame, task: str, model: str, metric: str) -> list[float]:
    (row,) = table.query("task == @task and model == @model and metric == @metric")[MOMENTS].to_numpy()
    return list(row)


def section(page: str, task: str) -> str:
    return page.split(f"## {task}:")[1].split("\n## ")[0]


def rows_of(page: str, task: str) -> dict[str, dict[str, str]]:
    """The cells of a task's table by model and heading."""
    lines = [line for line in section(page, task).splitlines() if line.startswith("|")]
    headings, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {row[0]: dict(zip(headings, row, strict=True)) for row in rows}


def test_summary_equals_the_sums_by_hand(done: Path) -> None:
    assert all((done / name).stat().st_size for name in FILES)
    table = files.read_csv(done / "tasks.csv", ["task", "dataset", "model", "metric", *MOMENTS])
    dense, lost, control = (
        np.array(list(values)) for values in (DENSE.values(), LOST["distilled-35"], LOST["dense-finetuned"])
    )
    for other, values in (("dense", dense), ("dense-finetuned", dense + control)):
        paired = (dense + lost) / values - 1  # not the ratio of the means
        found = mean_of(table, "image", "distilled-35", f"change_to_{other}")
        assert found == pytest.approx([paired.mean(), paired.std(ddof=1), 3])
    for model in ("pruned-20", "distilled-20"):
        for metric, mean, std in (
            ("time_saved", 0.21, 0.01), ("operators_removed", 5, 1), ("params_removed", 0.2, 0),
            ("image_time_saved", 0.2, 0),
        ):  # fmt: skip
            assert mean_of(table, "audio", model, metric) == pytest.approx([mean, std, 3])


def test_page_has_every_row_and_column(done: Path) -> None:
    page = (done / "tasks.md").read_text(encoding="utf-8")
    for task, (dataset, metric, noun) in TASKS.items():
        assert f"## {task}: {dataset}, seeds 0, 1, 10\n" in page
        rows = rows_of(page, task)
        assert list(rows) == ["dense", *LOST, "real"]
        row = rows["distilled-20"]
        assert row["trained on from"] == "pruned"
        assert row["UNet time saved (%)"] == "21.0 ± 1.0"
        assert row[f"time of a {noun.removesuffix('s')} saved (%)"] == "20.0 ± 0.0"
        assert row["operators removed"] == "5.0 ± 1.0"
        assert row[f"{metric} ↓"] == "100.00 ± 12.53"
        assert ("prompt agreement (%) ↑" in row) == (task == "text")
        assert (f"{metric} after Griffin-Lim ↓" in row) == (task == "audio")
        assert rows["dense"]["UNet time saved (%)"] == DASH
        assert rows["dense"]["change to dense-finetuned (%) ↓"].startswith("+5.3")
    assert rows_of(page, "audio")["real"]["fd_classifier after Griffin-Lim ↓"] == "9.00 ± 0.00"
    assert rows_of(page, "text")["pruned-35"]["prompt agreement (%) ↑"] == "69.0 ± 1.0"


def test_verdicts_know_which_way_is_better(tmp_path: Path) -> None:
    """Of the distance less is better, of agreement more."""
    agreements = {"distilled-20": 0.7, "distilled-35": 0.95, "dense-finetuned": 0.9}
    for seed in SEEDS:
        run = write_cell(tmp_path, "text", seed)
        metrics = files.read_metrics(run.metrics)
        for model, value in agreements.items():
            metrics[model]["prompt_agreement"] = value + 0.001 * (seed == 10)
        files.write_json(run.metrics, metrics)
    rows = rows_of(summarised(tmp_path), "text")
    names = ("change to dense (%) ↓", "agreement less that of dense (points) ↑")
    found = {name: [rows[name][each].partition(", ")[2] for each in names] for name in agreements}
    assert found["distilled-20"] == [SAME, "worse"]
    assert found["distilled-35"][1] == "better"
    assert found["dense-finetuned"][1] == SAME
    assert rows["distilled-20"][names[0]] == f"{MINUS}0.2 ± 2.8, {SAME}"


def test_one_seed_has_no_verdict_but_its_standard_error(tmp_path: Path) -> None:
    write_cell(tmp_path, "audio", 1)
    page = summarised(tmp_path)
    row = rows_of(page, "audio")["distilled-20"]
    assert row["change to dense (%) ↓"] == "+1.8"
    assert row["difference to dense (± standard error) ↓"] == "+2.00 ± 1.75"
    assert "## audio: sounds, seed 1\n" in page
    assert "nan" not in page


def test_published_figures_are_said_to_be_of_others(done: Path) -> None:
    page = (done / "tasks.md").read_text(encoding="utf-8")
    own = page.split("## LD-Pruner's own figures\n")[1]
    assert "other models, other data and other metrics" in own
    for figure in ("-34.9 % time", "FID -5.2 %", "-19.2 % time, 90 operators", "FAD 2.0 (0.5 better)"):
        assert figure in own.replace(MINUS, "-")
    assert "| unconditional image | unknown | unknown | unknown |" in own
    for name in ("FID", "FAD"):  # of ours nothing is called that
        assert name not in page.split("## LD-Pruner's own figures\n")[0]


def test_cells_that_lack_something_are_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    why = "lacks fd_classifier of distilled-35; evaluate again"
    lacks = "lacks measured_time_reduction, params_before, params_after; prune again"
    assert capsys.readouterr().out.splitlines() == [
        "not finished: text/photos/seed1",
        f"left out audio/sounds/seed0: {lacking}: {why}",
        f"left out audio/sounds/seed1: {broken}: 20: {lacks}",
        "missing: image/photos/seed10",
        f"5 cells of 3 tasks summarised in {tmp_path / 'tasks.md'}",
    ]
    counts = files.read_csv(tmp_path / "tasks.csv").groupby("task")["n"].max()
    assert counts.to_dict() == {"audio": 1, "image": 2, "text": 2}


def test_none_finished_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cell(tmp_path, "audio", 0).metrics.unlink()
    assert refusal(capsys, "tasks", "--root", tmp_path) == (
        f"{tmp_path}: no finished TASK/DATASET/seedN here; run `snakemake --cores 4 all_tasks` first\n"
    )


@pytest.mark.parametrize("key", [*ALIKE_PROTOCOL, *(f"classifier.{key}" for key in ALIKE_CLASSIFIER)])
def test_every_key_of_the_protocol_is_compared(tmp_path: Path, key: str) -> None:
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
def test_seeds_made_otherwise_are_refused(tmp_path: Path, key: str) -> None:
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


def test_page_says_how_many_rows_a_latent_has(tmp_path: Path) -> None:
    file = write_cell(tmp_path, "text", 0).evaluate_protocol
    files.write_json(file, files.read_mapping(file) | {"rows_per_latent": 2})
    write_cell(tmp_path, "image", 0)
    page = summarised(tmp_path)
    assert "are those of 2 rows a latent" in section(page, "text")
    assert "rows a latent" not in section(page, "image")


def test_seeds_may_lack_a_figure_and_names_are_the_users(tmp_path: Path) -> None:
    for seed in SEEDS:
        run = write_cell(tmp_path, "audio", seed)
        for file in (run.metrics, run.differences, run.evaluate_protocol):
            file.write_text(file.read_text().replace("dense-finetuned", "on-and-on"))
    metrics = files.read_metrics(run.metrics)
    del metrics["real"]
    metrics["dense"]["fd_classifier"] = 0.0
    files.write_json(run.metrics, metrics)
    page = summarised(tmp_path)
    rows = rows_of(page, "audio")
    assert rows["on-and-on"]["trained on from"] == "dense"
    assert "dense-finetuned" not in page
    assert rows["real"]["fd_classifier ↓"] == "7.00 ± 0.00 (n = 2)"
    assert rows["distilled-20"]["change to dense (%) ↓"].endswith(f", {SAME} (n = 2)")
    assert "(n" not in rows["distilled-20"]["UNet time saved (%)"]
    assert "inf" not in page


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
    rows = [(model, "change_to_dense", value / 100) for model, value in changes.items()]
    rows += [
        (f"{name}-{plan}", "time_saved", int(plan) / 100)
        for name in ("pruned", "distilled")
        for plan in SAVED
    ]
    table = pd.DataFrame(rows, columns=["model", "metric", "mean"])
    figure = tasks_figure(table.assign(task="image", dataset="photos", std=0.01, n=3), cells)
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


def test_time_saved_is_by_the_evaluation_where_that_timed_the_model(tmp_path: Path) -> None:
    run = write_cell(tmp_path, "image", 0)
    metrics = files.read_metrics(run.metrics)
    for model, least in (("dense", 10.0), ("pruned-20", 7.0)):
        metrics[model]["latency_least_ms"] = least
    files.write_json(run.metrics, metrics)
    summarise(tmp_path)
    table = files.read_csv(tmp_path / "tasks.csv")
    saved = [mean_of(table, "image", f"pruned-{plan}", "time_saved")[0] for plan in SAVED]
    assert saved == pytest.approx([0.3, SAVED["35"][0]])
