"""One margin in all studies, and what is said where seeds do not suffice for a verdict."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_choosing import write_cell as choosing_cell
from test_tasks import SEEDS, rows_of, section
from test_tasks import write_cell as task_cell

from pelap.core import files
from pelap.core.errors import DataError
from pelap.core.paths import RunPaths
from pelap.report.tables import MINUS
from pelap.report.verdicts import LEVEL, NO_VERDICT, SAME
from workflow.studies.choosing.summarise import summarise as summarise_choosing
from workflow.studies.collapse.summarise import over_enough_seeds
from workflow.studies.margins import half_steps_cost, lost_by_steps, margins_of, seeds_needed
from workflow.studies.seeds.summarise import summarise as summarise_seeds
from workflow.studies.tasks.summarise import summarise as summarise_tasks

pytestmark = pytest.mark.usefixtures("undrawn")
METRIC = "fd_effnet_lite0"
DENSE = {0: 400.0, 1: 410.0, 2: 420.0}


def write_metrics(run: RunPaths, metrics: Any) -> None:
    """With NaN in it, as an older version or another program may have left it."""
    files.write_text(run.metrics, json.dumps(metrics))


def budget_of(dense: float, cost: float, other: float = 0.0) -> pd.DataFrame:
    rows = [("dense", 20, 10.0, dense), ("dense", 10, 6.0, dense + cost), ("dense", 5, 3.0, dense + 50.0),
            ("small", 20, 6.0, dense + other), ("small", 10, 3.0, dense + 99.0)]  # fmt: skip
    return pd.DataFrame(rows, columns=["model", "steps", "image_ms", METRIC])


def sweep_cell(root: Path, seed: int, cost: float | None = 8.0, small: float | None = 0.5) -> RunPaths:
    """A cell of a sweep whose small model is `small` and a wobble worse than its dense one."""
    run, dense = RunPaths(root / "photos" / f"seed{seed}"), DENSE[seed]
    lost = None if small is None else dense + small + (seed - 1) / 4
    write_metrics(run, {"dense": {METRIC: dense}, "small": {METRIC: lost}, "on": {METRIC: dense}})
    files.write_json(run.evaluate_protocol, {"scored_variant": "dense"})
    files.write_json(run.distill_result, {"on": {"start": "dense"}})
    if cost is not None:
        files.write_csv(run.budget, budget_of(dense, cost))
    return run


def swept(root: Path) -> "pd.Series[float]":
    summarise_seeds(root)
    return files.read_csv(root / "summary.csv").query("model == 'small' and metric == @METRIC").iloc[0]


def test_half_of_the_steps() -> None:
    assert lost_by_steps(budget_of(400.0, 8.0), "dense", METRIC).to_dict() == {20: 0.0, 10: 8.0, 5: 50.0}
    assert half_steps_cost(budget_of(400.0, 8.0), "dense", METRIC) == 8


@pytest.mark.parametrize(
    ("budget", "dense", "metric"),
    [
        (budget_of(400.0, 8.0).query("steps != 10"), "dense", METRIC),
        (budget_of(400.0, math.nan), "dense", METRIC),
        (budget_of(400.0, 8.0), None, METRIC),
        (budget_of(400.0, 8.0), "dense", "fid"),
        (budget_of(400.0, 8.0).head(0), "dense", METRIC),
    ],
)
def test_what_was_not_measured_is_no_cost(budget: pd.DataFrame, dense: str | None, metric: str) -> None:
    assert math.isnan(half_steps_cost(budget, dense, metric))


def test_a_margin_is_a_mean_over_seeds_above_zero(capsys: pytest.CaptureFixture[str]) -> None:
    costs = {"a": (3.0, 4.0, math.nan), "b": (math.nan, math.nan), "c": (-1.0, 0.5), "d": (0.0, 0.0)}
    rows = [((name,), seed, cost) for name, own in costs.items() for seed, cost in enumerate(own)]
    assert margins_of(rows) == {("a",): 3.5}
    reason = "what half of the sampling steps cost the dense model"
    assert capsys.readouterr().out.splitlines() == [
        f"a: nothing at seed 2 of {reason}",
        f"c: no margin, nothing is called equivalent: {reason} is -0.25",
        f"d: no margin, nothing is called equivalent: {reason} is 0",
    ]


def test_a_sweep_calls_equivalent_what_is_within_the_margin(tmp_path: Path) -> None:
    for seed, cost in zip(DENSE, (7.0, 8.0, 9.0), strict=True):
        sweep_cell(tmp_path, seed, cost)
    row = swept(tmp_path)
    assert (row["margin"], row["verdict_to_on"]) == (8, "equivalent")
    assert (row["diff_to_on"], row["diff_to_on_n"]) == (0.5, 3)
    budget = files.read_csv(tmp_path / "budget.csv").query("metric == 'lost_by_steps'").set_index("steps")
    assert set(budget["model"]) == {"dense"}
    assert tuple(budget.loc[10, ["mean", "std", "n"]]) == (8, 1, 3)


@pytest.mark.parametrize("cost", [None, -2.0, 0.0])
def test_a_sweep_without_a_margin_calls_nothing_equivalent(tmp_path: Path, cost: float | None) -> None:
    for seed in DENSE:
        sweep_cell(tmp_path, seed, cost)
    row = swept(tmp_path)
    assert row["verdict_to_on"] == SAME
    assert "margin" not in row


def test_a_sweep_names_the_seed_that_lacks_something(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in DENSE:
        sweep_cell(tmp_path, seed, None if seed == 1 else 8.0, None if seed == 1 else 0.5)
    row = swept(tmp_path)
    assert (row["n"], row["diff_to_on_n"], row["diff_to_on"]) == (2, 2, 0.5)
    *named, _ = capsys.readouterr().out.splitlines()
    assert named == [
        f"photos {METRIC}: nothing at seed 1 of what half of the sampling steps cost the dense model",
        f"photos small: nothing at seed 1 of {METRIC}",
    ]


def test_a_sweep_of_one_seed_has_no_verdict(tmp_path: Path) -> None:
    sweep_cell(tmp_path, 0)
    assert swept(tmp_path)["verdict_to_on"] == NO_VERDICT


def tasks_page(root: Path, cost: float | None, seeds: tuple[int, ...] = SEEDS) -> str:
    for seed in seeds:
        run = task_cell(root, "image", seed)
        dense = files.read_metrics(run.metrics)["dense"][METRIC]
        if cost is not None:
            files.write_csv(run.budget, budget_of(dense or 0.0, cost * (dense or 0.0)))
    summarise_tasks(root)
    return (root / "tasks.md").read_text(encoding="utf-8")


def test_a_task_states_its_margin(tmp_path: Path) -> None:
    page = tasks_page(tmp_path, 0.25)
    assert (
        "Margin of the changes: 25.0 ± 0.0 %, what half of the sampling steps cost the dense model, over 3"
        in (section(page, "image"))
    )
    rows = rows_of(page, "image")
    assert rows["distilled-20"]["change to dense (%) ↓"].endswith(", equivalent")


@pytest.mark.parametrize(
    ("cost", "why"),
    [
        (None, "nothing was sampled in half of the steps"),
        (-0.02, f"it would be {MINUS}2.0 ± 0.0 %, what half"),
    ],
)
def test_a_task_without_a_margin_says_so(tmp_path: Path, cost: float | None, why: str) -> None:
    page = tasks_page(tmp_path, cost)
    assert f"No margin, so no change can be called equivalent: {why}" in section(page, "image")
    assert "equivalent" not in str(rows_of(page, "image"))


def test_a_task_of_one_seed_says_that_it_has_no_verdicts(tmp_path: Path) -> None:
    page = tasks_page(tmp_path, 0.25, (1,))
    assert "One seed: no verdicts." in section(page, "image")
    assert "told apart" not in str(rows_of(page, "image"))


def test_a_task_says_no_verdict_of_what_one_seed_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in SEEDS:
        run = task_cell(tmp_path, "text", seed)
        if seed:
            metrics = files.read_metrics(run.metrics)
            metrics["distilled-35"]["prompt_agreement"] = None
            write_metrics(run, metrics)
    summarise_tasks(tmp_path)
    rows = rows_of((tmp_path / "tasks.md").read_text(encoding="utf-8"), "text")
    less = rows["distilled-35"]["agreement less that of dense (points) ↑"]
    assert less == f"0.0, {NO_VERDICT} (n = 1)"
    assert "text photos distilled-35: nothing at seed 1, 10 of prompt_agreement, " in capsys.readouterr().out


@pytest.mark.parametrize("model", ["distilled-ld-pruner-35", "dense-finetuned"])
def test_the_choosing_study_refuses_a_cell_that_lacks_something(tmp_path: Path, model: str) -> None:
    for seed in (0, 1):
        run = choosing_cell(tmp_path, "photos", seed)
    metrics = files.read_metrics(run.metrics)
    metrics[model][METRIC] = None
    write_metrics(run, metrics)
    with pytest.raises(DataError, match=f"metrics.json: lacks {METRIC} of {model}; evaluate again"):
        summarise_choosing(tmp_path)


@pytest.mark.parametrize(("cost", "margin"), [(-3.0, None), (math.nan, None), (3.0, 3.0)])
def test_the_choosing_study_may_have_no_margin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cost: float, margin: float | None
) -> None:
    for seed in (0, 1, 10):
        run = choosing_cell(tmp_path, "photos", seed)
        budget = files.read_csv(run.budget)
        half = (budget["model"] == "dense") & (budget["steps"] == 10)
        full = float(budget.query("model == 'dense' and steps == 20")[METRIC].iloc[0])
        files.write_csv(run.budget, budget.assign(**{METRIC: budget[METRIC].mask(half, full + cost)}))
    summarise_choosing(tmp_path)
    table = files.read_csv(tmp_path / "methods.csv")
    assert table["margin"].dropna().unique().tolist() == ([] if margin is None else [margin])
    assert (table["verdict"] == "equivalent").any() == (margin is not None)
    assert ("photos: no margin" in capsys.readouterr().out) == (cost < 0)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_controls_of_a_collapse_study_name_the_seed_that_lacks_something(
    capsys: pytest.CaptureFixture[str], value: float
) -> None:
    rows = [
        (control, "photos", seed, "recon_mse", value if seed == 3 and control == "pelap" else 9.0 + seed % 2)
        for control in ("baseline", "pelap")
        for seed in range(4)
    ]
    table, _ = over_enough_seeds(
        pd.DataFrame(rows, columns=["control", "dataset", "seed", "metric", "value"])
    )
    assert table.set_index("control")["diff_n"].to_dict() == {"baseline": 4, "pelap": 3}
    assert capsys.readouterr().out == "photos pelap: nothing at seed 3 of recon_mse\n"


@pytest.mark.parametrize(("mean", "std"), [(0.0, 2.0), (1.5, 2.0), (-2.0, 3.0)])
@pytest.mark.parametrize("family", [1, 10])
def test_as_many_seeds_as_are_needed(mean: float, std: float, family: int) -> None:
    num = seeds_needed(mean, std, 5.0, family)
    assert num is not None

    def share(size: int) -> float:
        drawn = np.random.default_rng(0).normal(mean, std, (4000, size))
        errors = drawn.std(axis=1, ddof=1) / math.sqrt(size)
        law = stats.t(size - 1)
        return float(np.mean(law.sf((5.0 - np.abs(drawn.mean(axis=1))) / errors) < LEVEL / family))

    assert share(num - 1) < 0.82
    assert share(num) > 0.78


def test_no_number_of_seeds_makes_what_is_beyond_the_margin_equivalent() -> None:
    assert seeds_needed(5.1, 0.5, 5.0) is None
    assert seeds_needed(0.0, 50.0, 5.0, most=20) is None


def test_a_sweep_names_the_seed_that_lacks_the_model_that_is_compared_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in DENSE:
        run = sweep_cell(tmp_path, seed)
    metrics = files.read_metrics(run.metrics)
    write_metrics(run, {name: own for name, own in metrics.items() if name != "on"})
    row = swept(tmp_path)
    assert (row["n"], row["diff_to_on_n"]) == (3, 2)
    assert f"photos on: nothing at seed 2 of {METRIC}\n" in capsys.readouterr().out


def test_the_choosing_study_has_no_verdict_by_one_seed(tmp_path: Path) -> None:
    choosing_cell(tmp_path, "photos", 0)
    summarise_choosing(tmp_path)
    table = files.read_csv(tmp_path / "methods.csv")
    assert set(table.filter(regex="verdict").to_numpy().ravel()) == {NO_VERDICT}


def test_controls_of_too_few_seeds_are_in_no_table() -> None:
    rows = [("pelap", "photos", seed, "recon_mse", 9.0 + seed) for seed in range(2)]
    cells = pd.DataFrame(rows, columns=["control", "dataset", "seed", "metric", "value"])
    table, few = over_enough_seeds(cells)
    assert (len(table), few["n"].tolist()) == (0, [2])
