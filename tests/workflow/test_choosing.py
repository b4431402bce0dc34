"""The study of ways to choose operators: from the files of its cells to tables and figures."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from refusals import refusal
from tiny import ROOT

from pelap.config.load import resolved
from pelap.core import files
from pelap.core.errors import DataError
from pelap.core.paths import RunPaths
from pelap.report.verdicts import NO_VERDICT
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
            "params_after": 100 - 10 * len(operators),
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
    summarise(root)
    return root


def read(file: Path, query: str) -> pd.DataFrame:
    return files.read_csv(file).query(f"dataset == 'photos' and {query}")


def test_plans_hold_what_each_saves_and_costs(done: Path) -> None:
    assert len(files.read_csv(done / "plans.csv")) == 2 * len(SEEDS) * len(PLANS)
    (row,) = read(done / "plans.csv", "seed == 10 and plan == 'ld-pruner-35'").to_dict("records")
    assert (row["method"], row["target"], row["amount"]) == ("ld-pruner", "time_reduction", 35)
    assert (row["num_operators"], row["time_reduction"], row["params_after"]) == (3, 0.36, 70)
    assert (row["joint_score"], row["sum_of_scores"]) == (8, 7)
    assert (row["fd_pruned"], row["fd_tuned"]) == (440, 409.5)
    assert (row["lost_before"], row["lost_after"]) == (20, 1.5)
    assert (row["shift_lost_before"], row["spread_lost_before"]) == (5, 15)
    assert all(math.isnan(row[name]) for name in ("operator", "magnitude"))
    (row,) = read(done / "plans.csv", "seed == 1 and plan == 'only-c.conv'").to_dict("records")
    assert (row["operator"], row["score"], row["magnitude"]) == ("c.conv", 3, 2)
    assert all(pd.isna(row[name]) for name in ("method", "target", "amount"))
    assert "taylor" not in row


def test_methods_over_seeds(done: Path) -> None:
    (row,) = read(done / "methods.csv", "method == 'ld-pruner' and amount == 35").to_dict("records")
    assert (row["n"], row["lost_after_mean"], row["lost_after_std"]) == (3, 0.5, 1.0)
    # t = 0.5 / (1 / sqrt(3)) with two degrees of freedom, whose distribution has a closed form.
    t = 0.5 * math.sqrt(3)
    assert row["p_value"] == pytest.approx(1 - t / math.sqrt(2 + t**2))
    assert (row["vs_random"], row["vs_random_std"], row["vs_random_tuned"]) == (-70, 0, -11.5)
    assert math.isnan(row["vs_magnitude"])  # nobody is called so


@pytest.mark.parametrize(("margin", "word"), [(None, "better"), (30.0, "better, by less than the margin")])
def test_verdicts_on_other_methods(done: Path, margin: float | None, word: str) -> None:
    """Differences to them scatter between seeds here, by less than they are."""
    plans = files.read_csv(done / "plans.csv")
    plans["fd_tuned"] -= 0.5 * plans["seed"] * (plans["method"] == "ld-pruner")
    table = report.method_table(plans, margin and {"photos": margin}).query("dataset == 'photos'")
    told = table.query("amount == 35").set_index("method")["vs_random_tuned_verdict"]
    assert dict(told) == {"ld-pruner": word, "random": NO_VERDICT, "avg": NO_VERDICT}
    assert set(table["vs_magnitude_tuned_verdict"]) == {NO_VERDICT}  # nobody is called so


def test_what_others_are_compared_with_is_itself_compared_once(done: Path) -> None:
    plans = files.read_csv(done / "plans.csv").replace({"method": {"avg": "magnitude"}})
    rows = report.method_table(plans).query("dataset == 'photos' and amount == 35").set_index("method")
    assert (
        rows.loc["magnitude", "vs_random"]
        == -rows.loc["ld-pruner", "vs_magnitude"] + rows.loc["ld-pruner", "vs_random"]
    )
    assert rows.loc[["random", "magnitude"], "vs_magnitude"].isna().all()


def test_verdicts(done: Path) -> None:
    table = read(done / "methods.csv", "amount > 0")
    assert (table["margin"] == table["margin"].iloc[0]).all()
    assert {(row.method, row.amount): row.verdict for row in table.itertuples()} == {
        ("ld-pruner", 20): "better, by less than the margin",
        ("ld-pruner", 35): "equivalent",
        ("ld-pruner", 50): "worse",
        ("random", 35): "worse",
        ("avg", 35): "no verdict",
    }


@pytest.mark.usefixtures("undrawn")
def test_what_choosing_by_debiased_scores_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PLANS, "debiased-35", (("a", "d"), 0.35, None, 18.0, -0.5))
    for seed in SEEDS:
        scores = write_cell(tmp_path, "photos", seed).scores
        files.write_csv(scores, files.read_csv(scores).assign(score_debiased=[2.0, 1.0, 3.0, 4.0]))
    summarise(tmp_path)
    (row,) = files.read_csv(tmp_path / "debiased.csv").to_dict("records")
    assert (row["method"], row["amount"], row["n"]) == ("ld-pruner", 35, 3)
    assert row["rho_mean"] == pytest.approx(0.8)
    assert row["common_mean"] == pytest.approx(2 / 3)  # of a, b and d
    assert row["difference"] == pytest.approx(-0.5 - 0.5)
    assert row["verdict"] == NO_VERDICT  # the same in every seed: no spread to judge by


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
    files.write_json(run.evaluate_protocol, {"scored_variant": "dense", "num_images": 7})
    with pytest.raises(DataError, match="another num_images than in"):
        summarise(tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_findings_fit_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in SEEDS:
        write_cell(tmp_path, "photos", seed)
    summarise(tmp_path)
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines == [
        "photos, 35 against the control; equivalent: ld-pruner; worse: random; no",
        "  verdict: avg",
    ]
    assert last == f"3 cells summarised in {tmp_path}"


def test_the_margin_is_what_half_of_the_steps_cost(done: Path) -> None:
    rivals = files.read_csv(done / "rivals.csv").query("model == 'dense' and steps == 10")
    assert (
        files.read_csv(done / "methods.csv")["margin"].unique() == rivals["fd_less_full_mean"].unique() == [8]
    )


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


def test_names_of_the_shift() -> None:
    assert [plans.shift_of(name) for name in (METRIC, "fid")] == ["shift_effnet_lite0", "shift"]


def test_rank_correlation_of_what_does_not_vary() -> None:
    same, more = pd.Series([1.0, 1.0, 1.0]), pd.Series([1.0, 2.0, math.nan])
    assert math.isnan(report.spearman(same, pd.Series([1.0, 2.0, 3.0]))[0])
    assert report.spearman(more, more)[2] == 2


def test_rank_correlations_are_of_the_seeds_with_all_plans(done: Path) -> None:
    plans = files.read_csv(done / "plans.csv")
    few = plans[(plans["seed"] != 10) | plans["method"].isin(["ld-pruner", "random"])]
    means = []
    for table, num in ((plans, 3), (few, 2)):
        found = report.prediction_table(table).query("dataset == 'photos' and of == 'plans'")
        (row,) = found.query("predictor == 'sum_of_scores' and target == 'lost_before'").to_dict("records")
        assert (row["num_seeds"], row["n"]) == (num, 5 * num)
        means.append(row["rho"])
    assert means[0] == means[1]


def test_without_shift_control_times_and_students(tmp_path: Path) -> None:
    run = write_cell(tmp_path, "photos", 0)
    metrics = files.read_metrics(run.metrics)
    files.write_json(run.metrics, {name: {METRIC: own[METRIC]} for name, own in metrics.items()})
    files.write_json(run.distill_result, {})
    files.write_csv(run.budget, files.read_csv(run.budget).drop(columns="image_ms"))
    summarise(tmp_path)
    table = files.read_csv(tmp_path / "plans.csv")
    assert table[["shift_lost_before", "fd_tuned", "lost_after"]].isna().all(axis=None)
    assert files.read_csv(tmp_path / "methods.csv")["verdict"].eq("no verdict").all()


@pytest.mark.parametrize("few", [("only-d",), ("random-35", "own")])
def test_a_single_plan_of_a_single_seed(tmp_path: Path, few: tuple[str, ...]) -> None:
    run = write_cell(tmp_path, "photos", 0)
    results = files.read_mapping(run.prune_result)
    files.write_json(run.plans / "own.json", {"operators": ["a", "d"]})
    files.write_json(run.metrics, files.read_metrics(run.metrics) | {"pruned-own": figures_of(500.0)})
    files.write_json(run.prune_result, {name: results.get(name, results["only-d"]) for name in few})
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
        ("prune/result.json", '{"random-35": {}}', "lacks measured_time_reduction, params_after,"),
        ("prune/plans/random-35.json", "[]", "not a pruning plan"),
        ("distill/result.json", '{"x": {"start": "pruned", "plan": "y"}}', "x is of plan y, "),
        ("distill/result.json", '{"x": 3}', "x: lacks a mapping; distill again"),
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
    assert refusal(capsys, "choosing", "--root", tmp_path).startswith(f"{run.root / file}: ")
    assert message in refusal(capsys, "choosing", "--root", tmp_path)


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
