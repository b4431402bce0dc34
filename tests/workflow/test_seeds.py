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
from pelap.core.paths import RunPaths
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
    row = row_of(compared(cells_of(values)), "pelap")
    assert row["n"] == 3
    assert row["diff_to_baseline"] == 5.0
    assert row["diff_std"] == pytest.approx(math.sqrt(2))


def test_data_sets_and_metrics_stay_apart() -> None:
    one, two = (
        cells_of({"baseline": [1.0, 2.0], "pelap": [2.0, 5.0]}),
        cells_of({"baseline": [7.0, 9.0]}, "ssim"),
    )
    other = cells_of({"baseline": [0.0, 0.0], "pelap": [1.0, 4.0]}).assign(dataset="cifar10")
    summary = compared(pd.concat([one, two, other], ignore_index=True))
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
    cells = pd.concat(
        [
            cells_of(
                {"baseline": [1.0, 2.0], "pelap": [3.0, 5.0], "a-name-that-is-too-long": [4.0]}, metric
            ).assign(dataset=dataset)
            for metric in ("params", "latency_ms", "fd_effnet_lite0")
            for dataset in ("photos", "cifar10")
        ]
    )
    figure = figures.sweep_figure(compared(cells), cells)
    assert len(figure.axes) == 4
    labels = [axis.get_xlabel() for axis in figure.axes]
    assert labels == ["Fréchet distance (effnet_lite0) ↓", "UNet time (ms) ↓"] * 2
    dots = [line for line in figure.axes[1].lines if line.get_alpha()]
    assert [list(np.asarray(line.get_xdata())) for line in dots] == [[1.0, 2.0], [3.0, 5.0], [4.0]]
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["baseline", "pelap", "a-name-that-is-to…"]
    assert figure.axes[0].get_ylim()[0] > figure.axes[0].get_ylim()[1]
    assert style.to_png(figure).startswith(b"\x89PNG")


def test_control_is_compared_seed_by_seed() -> None:
    cells = cells_of({"baseline": [1.0, 2.0], "dense-finetuned": [0.5, 1.0], "distilled-25": [3.0, 2.5]})
    summary = compared(cells, "dense-finetuned")
    row = row_of(summary, "distilled-25")
    assert row["diff_to_dense-finetuned"] == 2.0
    assert row["diff_to_dense-finetuned_std"] == pytest.approx(math.sqrt(0.5))
    assert row["p_value_to_dense-finetuned"] == pytest.approx(stats.ttest_rel([3.0, 2.5], [0.5, 1.0]).pvalue)
    assert row["diff_to_baseline"] == 1.25
    assert "diff_to_absent" not in compared(cells, "absent")


def budget_cells(*rows: tuple[str, int, str, int, float, float]) -> pd.DataFrame:
    """Cells of a budget from data set, seed, model, steps, time and distance."""
    columns = ["dataset", "seed", "model", "steps", "image_ms", "fd_x"]
    return pd.DataFrame(rows, columns=columns).melt(columns[:4], var_name="metric")


def test_budgets_are_summarised_by_their_steps() -> None:
    cells = budget_cells(
        ("photos", 0, "dense", 20, 4.0, 90.0), ("photos", 1, "dense", 20, 6.0, 92.0),
        ("photos", 0, "dense", 10, 2.0, 99.0), ("photos", 1, "dense", 10, 2.0, math.nan),
        ("svhn", 0, "dense", 20, 1.0, 10.0),
    )  # fmt: skip
    summary = over_seeds(cells, ["dataset", "model", "steps", "metric"])
    assert list(summary.columns) == ["dataset", "model", "steps", "metric", "mean", "std", "n"]
    by = summary.set_index(["dataset", "steps", "metric"])
    assert tuple(by.loc[("photos", 20, "image_ms"), ["mean", "std", "n"]]) == (5.0, math.sqrt(2), 2)
    assert tuple(by.loc[("photos", 20, "fd_x"), ["mean", "std", "n"]]) == (91.0, math.sqrt(2), 2)
    assert by.loc[("photos", 10, "fd_x"), "n"] == 1
    real = pd.DataFrame(
        {"dataset": "photos", "model": "real", "metric": "fd_x", "value": [86.0, 90.0], "seed": [0, 1]}
    )
    dense = pd.DataFrame({"model": ["dense"], "dataset": "photos", "metric": "psnr", "value": 1.0, "seed": 0})
    figure = figures.budget_figure(summary, {"photos": "dense", "svhn": "dense"}, pd.concat([dense, real]))
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["photos: mean ± std of 1 to 2 seeds", "svhn: 1 seed"]
    assert [axis.get_title(loc="right") for axis in figure.axes] == ["real pictures: 88.00 (dashed)", ""]
    across, up = (bar.get_segments()[0] for bar in figure.axes[0].collections[-2:])  # type: ignore[attr-defined]
    assert across[:, 0] == pytest.approx([5 - math.sqrt(2), 5 + math.sqrt(2)])
    assert up[:, 1] == pytest.approx([91 - math.sqrt(2), 91 + math.sqrt(2)])
    bare = figures.budget_figure(summary.query("metric == 'fd_x'"), {}, dense)
    assert [text.get_text() for text in bare.axes[0].texts] == ["times were not measured"]


def test_compare_reads_budgets_and_the_control(tmp_path: Path) -> None:
    for seed in (0, 1):
        build_run(tmp_path / "photos" / f"seed{seed}")
    budget = RunPaths(tmp_path / "photos" / "seed1").budget
    files.write_csv(budget, files.read_csv(budget).assign(image_ms=2.0))
    summarise(tmp_path)
    summary = files.read_csv(tmp_path / "summary.csv")
    distilled = summary.query("model == 'distilled-25' and metric == 'fd_effnet_lite0'").iloc[0]
    assert distilled["diff_to_dense-finetuned"] == pytest.approx(93.2222 - 88.9)
    table = files.read_csv(tmp_path / "budget.csv")
    dense = table.query("model == 'invariant' and steps == 20 and metric == 'image_ms'").iloc[0]
    assert (dense["mean"], dense["n"]) == (pytest.approx((12.9 + 2) / 2), 2)
    assert (tmp_path / "budget.png").read_bytes().startswith(b"\x89PNG")
    budget.unlink()
    RunPaths(tmp_path / "photos" / "seed0").budget.unlink()
    (tmp_path / "budget.csv").unlink()
    summarise(tmp_path)
    assert not (tmp_path / "budget.csv").exists()


def test_sweep_figure_of_little() -> None:
    cells = cells_of({"baseline": [1.0]}, "my_metric")
    style.to_png(figures.sweep_figure(compared(cells), cells))
    style.to_png(figures.sweep_figure(compared(cells.head(0)), cells.head(0)))
