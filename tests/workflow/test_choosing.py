"""The study of ways to choose operators: from the files of its cells to tables and figures."""

import contextlib
import io as io_
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny import ROOT

from pelap.cli import main
from pelap.config.load import resolved
from pelap.core import files
from pelap.core.errors import DataError
from pelap.core.paths import RunPaths
from workflow.studies.choosing import FILES, figures, plans
from workflow.studies.choosing import tables as report
from workflow.studies.choosing.summarise import summarise

METRIC = "fd_effnet_lite0"
SEEDS = (0, 1, 10)
OPERATORS = ("a", "b", "c.conv", "d")
PLANS: dict[str, tuple[tuple[str, ...], float, float | None, float, float]] = {
    # operators, time, joint score, lost before, lost after
    "ld-pruner-20": (("a", "b"), 0.21, 2.0, 4.0, -5.0),
    "ld-pruner-35": (("a", "b", "d"), 0.36, 8.0, 20.0, 0.5),
    "ld-pruner-50": (("b", "c.conv", "d"), 0.52, 20.0, 60.0, 9.0),
    "random-35": (("c.conv", "d"), 0.34, 30.0, 90.0, 12.0),
    "avg-35": (("a", "c.conv"), 0.35, None, 25.0, 0.0),
    "only-c.conv": (("c.conv",), 0.05, 3.0, 6.0, 1.0),
    "only-d": (("d",), 0.02, 4.0, 7.0, 2.0),
}
DENSE, CONTROL = {0: 400.0, 1: 410.0, 10: 420.0}, {0: 390.0, 1: 404.0, 10: 408.0}
WOBBLE = {0: -1.0, 1: 0.0, 10: 1.0}


def figures_of(distance: float) -> dict[str, float]:
    return {METRIC: distance, "shift_effnet_lite0": distance / 4}


def write_cell(root: Path, dataset: str, seed: int) -> RunPaths:
    run = RunPaths(root / dataset / f"seed{seed}")
    scores = {name: [1.0, 2.0, 3.0, 4.0][place] for place, name in enumerate(OPERATORS)}
    table = pd.DataFrame(
        {"operator": OPERATORS, "score": scores.values(), "magnitude": [4.0, math.inf, 2, 1]}
    )
    files.write_csv(run.scores, table.assign(avg_dist=table["score"] / 2, std_dist=table["score"] / 2))
    metrics = {"dense": figures_of(DENSE[seed]), "dense-finetuned": figures_of(CONTROL[seed])}
    results, students = {}, {}
    for name, (operators, time, joint, before, after) in PLANS.items():
        target = {"num_operators": 1} if name.startswith("only") else {"time_reduction": 0.35}
        files.write_json(run.plans / f"{name}.json", {"target": target, "operators": list(operators)})
        own = np.array([scores[operator] for operator in operators])
        results[name] = {
            "measured_time_reduction": time,
            "joint_score": joint,
            "sum_of_scores": float(own.sum()),
            "norm_of_scores": float(np.linalg.norm(own)),
        }
        metrics[f"pruned-{name}"] = figures_of(DENSE[seed] + before)
        for student in ("distilled", "other"):
            if not name.startswith("avg"):
                tuned = figures_of(CONTROL[seed] + after + WOBBLE[seed] + 50 * (student == "other"))
                metrics[f"{student}-{name}"] = tuned
                students[f"{student}-{name}"] = {"start": "pruned", "plan": name}
    students["dense-finetuned"] = {"start": "dense", "plan": None}
    files.write_json(run.prune_result, results)
    files.write_json(run.distill_result, students)
    files.write_json(run.metrics, metrics | {"real": figures_of(20.0)})
    files.write_json(run.evaluate_protocol, {"scored_variant": "dense"})
    rows = [
        ("dense", 20, 10.0, DENSE[seed]), ("dense", 10, 6.0, DENSE[seed] + 8), ("cached-2", 20, 7.0, 415.0),
        ("dense-finetuned", 20, 10.0, CONTROL[seed]), ("dense-finetuned", 5, 3.0, CONTROL[seed] + 30),
        ("pruned-ld-pruner-35", 20, 8.0, 420.0),
    ]  # fmt: skip
    files.write_csv(run.budget, pd.DataFrame(rows, columns=["model", "steps", "image_ms", METRIC]))
    return run


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets and three seeds, summarised; not to be changed."""
    root = tmp_path_factory.mktemp("choosing")
    for dataset in ("photos", "cifar10-jpeg"):
        for seed in SEEDS:
            write_cell(root, dataset, seed)
    with contextlib.redirect_stdout(io_.StringIO()) as said:
        summarise(root)
    (root / "said.txt").write_text(said.getvalue())
    return root


def read(file: Path, **values: Any) -> pd.DataFrame:
    table = files.read_csv(file)
    for name, value in values.items():
        table = table[table[name] == value]
    return table


def test_plans_hold_what_each_saves_and_costs(done: Path) -> None:
    table = files.read_csv(done / "plans.csv")
    assert len(table) == 2 * len(SEEDS) * len(PLANS)
    (row,) = table.query("dataset == 'photos' and seed == 10 and plan == 'ld-pruner-35'").to_dict("records")
    assert (row["method"], row["target"], row["amount"]) == ("ld-pruner", "time_reduction", 35)
    assert math.isnan(row["operator"])
    assert row["num_operators"] == 3
    assert row["time_reduction"] == pytest.approx(0.36)
    assert (row["joint_score"], row["sum_of_scores"]) == (8, 7)
    assert (row["fd_pruned"], row["fd_tuned"]) == (440, 409.5)
    assert (row["lost_before"], row["lost_after"]) == (20, 1.5)
    assert (row["shift_lost_before"], row["spread_lost_before"]) == (5, 15)
    assert math.isnan(row["magnitude"])


def test_single_operators_have_their_criteria(done: Path) -> None:
    table = read(done / "plans.csv", plan="only-c.conv", seed=1, dataset="photos")
    (row,) = table.to_dict("records")
    assert row["operator"] == "c.conv"
    assert row["score"] == 3
    assert row["magnitude"] == 2
    assert "taylor" not in row
    assert all(pd.isna(row[name]) for name in ("method", "target", "amount"))


def test_methods_over_seeds(done: Path) -> None:
    (row,) = read(done / "methods.csv", dataset="photos", method="ld-pruner", amount=35).to_dict("records")
    assert row["n"] == 3
    assert (row["lost_after_mean"], row["lost_after_std"]) == (0.5, 1.0)
    assert row["fd_tuned_mean"] == pytest.approx(sum(CONTROL.values()) / 3 + 0.5)
    # t = 0.5 / (1 / sqrt(3)) with two degrees of freedom, whose distribution has a closed form.
    t = 0.5 * math.sqrt(3)
    assert row["p_value"] == pytest.approx(1 - t / math.sqrt(2 + t**2))
    assert (row["vs_random"], row["vs_random_std"]) == (-70, 0)
    assert row["vs_random_tuned"] == -11.5
    assert math.isnan(row["vs_magnitude"])  # nobody is called so


def test_verdicts(done: Path) -> None:
    table = read(done / "methods.csv", dataset="photos")
    verdicts = {(row.method, row.amount): row.verdict for row in table.itertuples()}
    assert verdicts["ld-pruner", 20] == "better"
    assert verdicts["ld-pruner", 35] == "not told apart"
    assert verdicts["ld-pruner", 50] == "worse"
    assert pd.isna(verdicts["avg", 35])  # nobody was trained
    assert ("only", 0) not in verdicts
    assert len(verdicts) == 5


def test_methods_are_compared_with_the_curve_at_their_own_time() -> None:
    rows = [
        ("m", 20, 0.2, 10.0),
        ("m", 50, 0.4, 30.0),
        ("x", 35, 0.3, 25.0),
        ("x", 10, 0.1, 2.0),
        ("y", 60, 0.5, 9.0),
    ]
    plans = pd.DataFrame(rows, columns=["method", "amount", "time_reduction", "lost_before"])
    plans = plans.assign(dataset="d", seed=0, lost_after=math.nan)
    beside = report._beside_curve(plans)
    # Between (0, 0), (0.2, 10) and (0.4, 30); beyond it nothing is known.
    expected = [0, 0, 25 - 20, 2 - 5, math.nan]
    assert beside["vs_curve"].tolist() == pytest.approx(expected, nan_ok=True)
    assert beside["vs_curve_tuned"].isna().all()


def test_cells_that_do_not_compare_are_refused(tmp_path: Path) -> None:
    for seed in SEEDS[:2]:
        run = write_cell(tmp_path, "photos", seed)
    protocol = files.read_mapping(run.evaluate_protocol) | {"num_images": 7}
    files.write_json(run.evaluate_protocol, protocol)
    with pytest.raises(DataError, match="another num_images than in"):
        summarise(tmp_path)


def test_additivity(done: Path) -> None:
    table = read(done / "additivity.csv", dataset="photos")
    # avg-35 has no finite joint score.
    assert table["amount"].tolist()[:3] == [20, 35, 50]
    assert table["n"].tolist() == [3, 6, 3, 12]
    assert table.iloc[0]["joint_over_sum_median"] == pytest.approx(2 / 3)
    assert table.iloc[0]["joint_over_norm_median"] == pytest.approx(2 / math.sqrt(5))
    assert math.isnan(table.iloc[0]["rho_sum"])  # three seeds of one plan
    assert table.iloc[1]["joint_over_sum_q1"] < table.iloc[1]["joint_over_sum_q3"]


def test_prediction(done: Path) -> None:
    table = read(done / "prediction.csv", dataset="photos")
    rows = {(row["of"], row["predictor"], row["target"]): row for row in table.to_dict("records")}
    joint = rows["plans", "joint_score", "lost_before"]
    assert (joint["rho"], joint["rho_std"], joint["n"], joint["num_seeds"]) == (1, 0, 12, 3)
    magnitude = rows["operators", "magnitude", "lost_before"]
    assert magnitude["rho"] == pytest.approx(-1)
    assert (magnitude["n"], magnitude["num_seeds"]) == (6, 3)
    assert ("operators", "avg_dist", "spread_lost_before") in rows
    assert ("operators", "score", "spread_lost_before") not in rows
    assert ("operators", "taylor", "lost_before") not in rows


def test_rivals_save_time_of_the_whole_picture(done: Path) -> None:
    table = read(done / "rivals.csv", dataset="photos")
    rows = {(row["model"], row["steps"]): row for row in table.to_dict("records")}
    assert list(rows) == [
        ("dense", 20),
        ("dense", 10),
        ("cached-2", 20),
        ("dense-finetuned", 20),
        ("dense-finetuned", 5),
    ]
    assert rows["dense", 10]["time_saved_mean"] == pytest.approx(0.4)
    assert rows["dense", 10]["fd_mean"] == 418
    assert (
        rows["dense-finetuned", 5]["fd_less_control_mean"]
        == rows["dense-finetuned", 5]["fd_less_full_mean"]
        == 30
    )
    assert rows["dense", 10]["fd_less_full_mean"] == 8
    assert rows["cached-2", 20]["fd_less_full_mean"] == 415 - sum(DENSE.values()) / 3
    assert rows["dense", 20]["n"] == 3


def test_findings_fit_the_terminal(done: Path) -> None:
    lines = (done / "said.txt").read_text().splitlines()
    assert "photos: least lost at 35: ld-pruner; no worse than the control up to ld-pruner" in lines
    assert max(len(line) for line in lines[:-1]) <= 80
    assert lines[-1] == f"6 cells summarised in {done}"


def test_a_method_that_fails_early_is_not_good_again_later() -> None:
    rows = [("m", 20.0, 1.1, 1.0), ("m", 10.0, 1.0, 1.0), ("m", 35.0, 0.0, 1.0), ("x", 10.0, 2.0, 1.0),
            ("x", 20.0, 0.0, 1.0), ("one", 35.0, 0.0, 1.0), ("gap", 10.0, -3.0, 1.0),
            ("gap", 20.0, math.nan, math.nan), ("gap", 35.0, 0.0, 1.0)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["method", "amount", "lost_after_mean", "lost_after_std"])
    assert report.thresholds(table) == {"m": 10, "x": None, "gap": 10}


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ("greedy-knapsack-35", ("greedy-knapsack", 35)),
        ("avg-12.5", ("avg", 12.5)),
        ("35", (plans.UNNAMED, 35)),
        ("own-plan", None),
        ("m-inf", None),
    ],
)
def test_names_of_plans(plan: str, expected: tuple[str, float] | None) -> None:
    assert plans.method_of(plan) == expected


@pytest.mark.parametrize(("metric", "shift"), [(METRIC, "shift_effnet_lite0"), ("fid", "shift")])
def test_names_of_the_shift(metric: str, shift: str) -> None:
    assert plans.shift_of(metric) == shift


def test_rank_correlation_of_what_does_not_vary() -> None:
    same, more = pd.Series([1.0, 1.0, 1.0]), pd.Series([1.0, 2.0, math.nan])
    assert math.isnan(report.spearman(same, pd.Series([1.0, 2.0, 3.0]))[0])
    assert report.spearman(more, more)[2] == 2


def test_without_shift_control_times_and_students(tmp_path: Path) -> None:
    for seed in SEEDS:
        run = write_cell(tmp_path, "photos", seed)
        metrics = files.read_metrics(run.metrics)
        for values in metrics.values():
            del values["shift_effnet_lite0"]
        files.write_json(run.metrics, metrics)
        files.write_json(run.distill_result, {})
        files.write_csv(run.budget, files.read_csv(run.budget).drop(columns="image_ms"))
    summarise(tmp_path)
    table = files.read_csv(tmp_path / "plans.csv")
    empty = ["shift_lost_before", "fd_tuned", "lost_after"]
    assert table[empty].isna().all(axis=None)
    assert files.read_csv(tmp_path / "methods.csv")["verdict"].isna().all()


@pytest.mark.parametrize("few", [("only-d",), ("random-35", "own")])
def test_a_single_plan_of_a_single_seed(tmp_path: Path, few: tuple[str, ...]) -> None:
    run = write_cell(tmp_path, "photos", 0)
    results = files.read_mapping(run.prune_result)
    metrics = files.read_metrics(run.metrics)
    files.write_json(run.plans / "own.json", {"operators": ["a", "d"]})
    files.write_json(run.metrics, metrics | {"pruned-own": figures_of(500.0)})
    kept = {name: results.get(name, results["only-d"]) for name in few}
    files.write_json(run.prune_result, kept)
    files.write_json(run.distill_result, {"dense-finetuned": {"start": "dense"}})
    summarise(tmp_path)
    assert len(files.read_csv(tmp_path / "plans.csv")) == len(few)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("evaluate/protocol.json", '{"scored_variant": null}', "names no scored variant"),
        ("evaluate/metrics.json", '{"dense": {"psnr": 3}}', "no Frechet distance of dense"),
        ("evaluate/metrics.json", '{"dense": {"fd_effnet_lite0": 3}}', "lacks fd_effnet_lite0 of pruned-ld"),
        ("evaluate/budget.csv", "model,steps\n", "lacks the columns fd_effnet_lite0"),
        ("prune/result.json", '{"random-35": {}}', "lacks measured_time_reduction, joint_score"),
        ("prune/plans/random-35.json", "[]", "not a pruning plan"),
        ("distill/result.json", '{"x": {"start": "pruned", "plan": "y"}}', "x is of plan y, which is not in"),
        ("distill/result.json", '{"x": 3}', "does not say how it started"),
        ("score/scores.csv", "score\n1\n", "lacks the columns operator"),
    ],
)
def test_damaged_files_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: str, message: str
) -> None:
    run = write_cell(tmp_path, "photos", 0)
    if file == "prune/result.json":
        files.write_json(run.distill_result, {})
    (run.root / file).write_text(content)
    assert main(["choosing", "--root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"pelap: error: {run.root / file}: ")
    assert message in error
    assert error.count("\n") == 1


def test_figures(done: Path) -> None:
    for name in FILES:
        assert (done / name).read_bytes().startswith(b"\x89PNG") == name.endswith(".png")
    drawn = files.read_csv(done / "plans.csv"), files.read_csv(done / "methods.csv")
    figure = figures.methods_figure(*drawn, METRIC)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["ld-pruner", "avg", "random"]  # by what they lost before


def test_every_method_of_the_preset_has_a_family() -> None:
    methods = resolved(ROOT / "presets" / "choosing.yaml")["prune"]["methods"]
    assert {figures.family_of(name) for name in methods} == set(figures.FAMILIES)
    assert figures.family_of("own") == figures.OTHERS
