import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic_run import build_run

from pelap.core import files
from pelap.core.errors import DataError
from pelap.report.figures import style
from workflow.studies.common import over_seeds
from workflow.studies.seeds import figures
from workflow.studies.seeds.summarise import compared, summarise


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
    summary = compared(cells)
    assert list(summary.columns) == [
        "dataset", "model", "metric", "mean", "std", "n", "diff_to_baseline", "diff_std", "diff_n",
        "diff_low", "diff_high", "p_value", "p_holm", "verdict",
    ]  # fmt: skip
    p = 2 * stats.t.sf((8 / 3) / math.sqrt(13 / 9), df=2)
    half = stats.t.ppf(0.975, 2) * math.sqrt(13) / 3
    expected = [5, math.sqrt(13), 3, 8 / 3, math.sqrt(13 / 3), 3, 8 / 3 - half, 8 / 3 + half, p, p]
    assert row_of(summary, "pelap")["mean":"p_holm"].tolist() == pytest.approx(expected)
    assert row_of(summary, "baseline")["diff_to_baseline"] == 0
    assert math.isnan(row_of(summary, "baseline")["p_value"])


def test_only_pairs_are_compared() -> None:
    values = {"baseline": [1.0, 2.0, None, 3.0], "pelap": [5.0, None, 100.0, 9.0]}
    row = row_of(compared(cells_of(values)), "pelap")
    found = row[["n", "diff_n", "diff_to_baseline", "diff_std"]].tolist()
    assert found == pytest.approx([3, 2, 5, math.sqrt(2)])


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
    assert math.isnan(row_of(compared(cells_of(values)), "pelap")["p_value"])


def test_missing_values_do_not_count() -> None:
    cells = cells_of({"baseline": [1.0, 3.0, math.nan]})
    assert row_of(compared(cells), "baseline")["n"] == 2
    assert compared(cells.assign(value=math.nan)).empty


def test_a_run_given_twice_is_refused() -> None:
    cells = cells_of({"baseline": [1.0, 2.0]})
    with pytest.raises(DataError, match="two values for dataset photos, model baseline, metric psnr, seed 0"):
        compared(pd.concat([cells, cells]))


def test_sweep_figure_has_a_panel_per_data_set_and_metric() -> None:
    values: dict[str, list[float | None]] = {
        "baseline": [1.0, 2.0], "pelap": [3.0, 5.0], "a-name-that-is-too-long": [4.0],
    }  # fmt: skip
    metrics, datasets = ("params", "latency_ms", "fd_effnet_lite0"), ("photos", "cifar10")
    cells = pd.concat([cells_of(values, name).assign(dataset=data) for name in metrics for data in datasets])
    figure = figures.sweep_figure(compared(cells), cells)
    labels = [axis.get_xlabel() for axis in figure.axes]
    assert labels == ["Fréchet distance (effnet_lite0) ↓", "UNet time (ms) ↓"] * 2
    dots = [line for line in figure.axes[1].lines if line.get_alpha()]
    assert [list(np.asarray(line.get_xdata())) for line in dots] == list(values.values())
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["baseline", "pelap", "a-name-that-is-to…"]
    assert figure.axes[0].get_ylim()[0] > figure.axes[0].get_ylim()[1]


@pytest.mark.parametrize("rows", [1, 0])
def test_sweep_figure_of_little(rows: int) -> None:
    cells = cells_of({"baseline": [1.0]}, "my_metric").head(rows)
    style.to_png(figures.sweep_figure(compared(cells), cells))


def test_control_is_compared_seed_by_seed() -> None:
    cells = cells_of({"baseline": [1.0, 2.0], "dense-finetuned": [0.5, 1.0], "distilled-25": [3.0, 2.5]})
    summary = compared(cells, "dense-finetuned")
    row = row_of(summary, "distilled-25")
    p = stats.ttest_rel([3.0, 2.5], [0.5, 1.0]).pvalue
    expected = [1.25, 2.0, math.sqrt(0.5), p]
    names = ["diff_to_dense-finetuned", "diff_to_dense-finetuned_std", "p_value_to_dense-finetuned"]
    assert row[["diff_to_baseline", *names]].tolist() == pytest.approx(expected)
    assert "diff_to_absent" not in compared(cells, "absent")


def test_budgets_are_summarised_by_their_steps() -> None:
    keys = ["dataset", "seed", "model", "steps"]
    rows = [
        ("photos", 0, "dense", 20, 4.0, 90.0), ("photos", 1, "dense", 20, 6.0, 92.0),
        ("photos", 0, "dense", 10, 2.0, 99.0), ("photos", 1, "dense", 10, 2.0, math.nan),
        ("svhn", 0, "dense", 20, 1.0, 10.0),
    ]  # fmt: skip
    cells = pd.DataFrame(rows, columns=[*keys, "image_ms", "fd_x"]).melt(keys, var_name="metric")
    summary = over_seeds(cells, ["dataset", "model", "steps", "metric"])
    by = summary.set_index(["dataset", "steps", "metric"])[["mean", "std", "n"]]
    assert tuple(by.loc[("photos", 20, "image_ms")]) == (5.0, math.sqrt(2), 2)
    assert tuple(by.loc[("photos", 20, "fd_x")]) == (91.0, math.sqrt(2), 2)
    assert by.loc[("photos", 10, "fd_x"), "n"] == 1
    values = [
        ("dense", 0, "psnr", 1),
        ("dense", 0, "fd_x", 500),
        ("real", 0, "fd_x", 86),
        ("real", 1, "fd_x", 90),
    ]
    known = pd.DataFrame(values, columns=["model", "seed", "metric", "value"]).assign(dataset="photos")
    figure = figures.budget_figure(summary, {"photos": "dense", "svhn": "dense"}, known)
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["photos: mean ± std of 1 to 2 seeds", "svhn: 1 seed"]
    assert [axis.get_title(loc="right") for axis in figure.axes] == ["real pictures: 88.00 (dashed)", ""]
    across, up = (bar.get_segments()[0] for bar in figure.axes[0].collections[-2:])  # type: ignore[attr-defined]
    assert across[:, 0] == pytest.approx([5 - math.sqrt(2), 5 + math.sqrt(2)])
    assert up[:, 1] == pytest.approx([91 - math.sqrt(2), 91 + math.sqrt(2)])
    bare = figures.budget_figure(summary.query("metric == 'fd_x'"), {}, known)
    assert [text.get_text() for text in bare.axes[0].texts] == ["times were not measured"]


def test_compare_reads_budgets_and_the_control(tmp_path: Path) -> None:
    first, second = (build_run(tmp_path / "photos" / f"seed{seed}") for seed in (0, 1))
    files.write_csv(second.budget, files.read_csv(second.budget).assign(image_ms=2.0))
    summarise(tmp_path)
    summary, budget = files.read_csv(tmp_path / "summary.csv"), tmp_path / "budget.csv"
    distilled = summary.query("model == 'distilled-25' and metric == 'fd_effnet_lite0'").iloc[0]
    assert distilled["diff_to_dense-finetuned"] == pytest.approx(93.2222 - 88.9)
    table = files.read_csv(budget).query("model == 'invariant' and steps == 20 and metric == 'image_ms'")
    assert table[["mean", "n"]].to_numpy()[0] == pytest.approx([(12.9 + 2) / 2, 2])
    assert (tmp_path / "budget.png").read_bytes().startswith(b"\x89PNG")
    for file in (first.budget, second.budget, budget):
        file.unlink()
    summarise(tmp_path)
    assert not budget.exists()
