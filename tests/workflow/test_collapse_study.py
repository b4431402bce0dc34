"""The collapse study: from the files of its cells to tables and a figure."""

import math
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from refusals import refusal
from tiny import ROOT

from pelap.config.load import resolved
from pelap.core import files
from pelap.core.paths import RunPaths
from pelap.report.figures.style import to_png
from workflow.studies.collapse import FILES, figures
from workflow.studies.collapse.summarise import CELL_COLUMNS, over_enough_seeds, summarise

CONTROLS = ("baseline", "pelap-1e-2", "invariant-topk-adaptive", "unit-variance")
METRICS = [
    "latent_channels", "mean_mask", "active_channels", "unet_input_std", "diffusion_loss", "gaussian_floor",
    "floor_ratio", "zero_latent_floor", "recon_mse", "masked_recon_mse", "fd_effnet_lite0", "psnr", "ssim",
]  # fmt: skip


def row_of(control: str, seed: int) -> dict[str, Any]:
    shut = control.startswith("pelap")
    return {
        "variant": control,
        "verdict": "mask collapse" if shut else "healthy" if seed else "partial mask",
        "reason": "as, said",
        "latent_channels": 8,
        "mean_mask": 0.002 + 0.001 * seed if shut else 1.0,
        "active_channels": 0 if shut else 8 - (seed == 0),
        "unet_input_std": 0.004 * (1 + seed) if shut else 1.0,
        "diffusion_loss": 0.026 + 0.001 * seed if shut else 0.3 + 0.01 * seed,
        "gaussian_floor": 1e-6 if shut else 0.4,
        "floor_ratio": math.nan if shut else 0.75,
        "zero_latent_floor": 0.0234,
        "recon_mse": 20.0 + seed,
        "masked_recon_mse": 400.0 if shut else 21.0,
    }


def write_cell(root: Path, dataset: str, seed: int, controls: tuple[str, ...] = CONTROLS) -> RunPaths:
    run = RunPaths(root / dataset / f"seed{seed}")
    files.write_csv(run.collapse_table, pd.DataFrame([row_of(control, seed) for control in controls]))
    quality: dict[str, Any] = {
        control: {"fd_effnet_lite0": 400.0 + seed, "psnr": 20.0, "ssim": 0.5} for control in controls
    }
    files.write_json(run.metrics, quality | {"real": {"fd_effnet_lite0": 50.0}})
    return run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for dataset in ("photos", "cifar10-jpeg"):
        for seed in (0, 1, 10):
            write_cell(tmp_path, dataset, seed)
    return tmp_path


@pytest.mark.usefixtures("undrawn")
def test_rows_stand_by_data_set_control_and_metric(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summarise(root)
    summary, cells = (files.read_csv(root / name) for name in ("summary.csv", "cells.csv"))
    assert list(summary.columns)[:6] == ["control", "dataset", "metric", "mean", "std", "n"]
    assert summary.query("control == 'baseline'")["diff_to_baseline"].eq(0).all()
    rows = list(summary[["dataset", "control", "metric"]].itertuples(index=False, name=None))
    nothing = ("pelap-1e-2", "floor_ratio")  # no seed has a value
    expected = [(d, c, m) for d in ("cifar10-jpeg", "photos") for c in CONTROLS for m in METRICS]
    assert rows == [row for row in expected if row[1:] != nothing]
    row = summary.query("control == 'pelap-1e-2' and metric == 'unet_input_std' and dataset == 'photos'")
    values = np.array([0.004, 0.008, 0.044])
    assert row[["mean", "std", "n"]].to_numpy()[0] == pytest.approx([values.mean(), values.std(ddof=1), 3])
    assert list(cells.columns) == CELL_COLUMNS
    assert list(cells["seed"].unique()) == [0, 1, 10]
    assert len(cells) == 2 * 3 * (len(CONTROLS) * len(METRICS) - 1) == cells["value"].count()
    lines = capsys.readouterr().out.splitlines()
    assert "photos pelap-1e-2: mask collapse 3" in lines
    assert "photos baseline: healthy 2, partial mask 1" in lines
    assert lines[-1] == f"6 cells summarised in {root / 'summary.csv'}"


@pytest.mark.usefixtures("undrawn")
def test_fewer_than_three_seeds_are_left_out_and_named(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cell(root, "photos", 10, CONTROLS[:3])
    write_cell(root, "svhn", 0)
    run = write_cell(root, "cifar10-jpeg", 1)
    broken = files.read_csv(run.collapse_table)
    broken.loc[0, "floor_ratio"] = math.inf
    files.write_csv(run.collapse_table, broken)
    summarise(root)
    assert set(files.read_csv(root / "summary.csv")["n"]) == {3}
    assert "svhn" in set(files.read_csv(root / "cells.csv")["dataset"])
    few = "cifar10-jpeg baseline (floor_ratio), photos unit-variance, svhn"
    assert f"left out, fewer than 3 seeds: {few}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("collapse/collapse.csv", "", "not a readable CSV table"),
        ("collapse/collapse.csv", "variant,verdict\na,b\n", "lacks the columns reason, mean_mask"),
        ("collapse/collapse.csv", {"mean_mask": "much"}, "column mean_mask: 'much' is not a number"),
        ("collapse/collapse.csv", {"variant": "baseline"}, "a variant has no name or two rows"),
        ("evaluate/metrics.json", "{", "not valid JSON"),
        ("evaluate/metrics.json", "{}", "lacks baseline, pelap-1e-2"),
        ("evaluate/metrics.json", '{"baseline": 3}', "expected a mapping of metrics"),
    ],
)
def test_damaged_files_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: str | dict[str, str], message: str
) -> None:
    path = write_cell(tmp_path, "photos", 0).root / file
    if isinstance(content, str):
        path.write_text(content)
    else:
        files.write_csv(path, files.read_csv(path).assign(**content))
    said = refusal(capsys, "study", "--root", tmp_path)
    assert said.startswith(f"{path}: ")
    assert message in said


def test_figure_has_a_row_of_panels_per_data_set(root: Path) -> None:
    summarise(root)
    assert (root / "summary.png").read_bytes().startswith(b"\x89PNG")
    cells, summary = files.read_csv(root / "cells.csv"), files.read_csv(root / "summary.csv")
    figure = figures.study_figure(cells, summary, {"photos": 50.0})
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(CONTROLS)
    for axis, panel in zip(figure.axes, 2 * figures.PANELS, strict=True):
        assert axis.get_xscale() == ("log" if panel.log else "linear")
    assert figure.axes[4].get_xlim()[0] == 0


@pytest.mark.parametrize("seeds", [1, 3])
def test_figure_of_values_that_a_logarithm_has_not(seeds: int) -> None:
    rows = [
        (control, "photos", seed, metric, number)
        for seed in range(seeds)
        for control, number in (("baseline", 0.0), ("own_$name", seed * 1e-3))
        for metric in figures.FIGURE_METRICS
    ]
    cells = pd.DataFrame(rows, columns=CELL_COLUMNS)
    summary, few = over_enough_seeds(cells)
    assert bool(len(summary)) == (seeds >= 3)
    assert bool(len(few)) == (seeds < 3)
    to_png(figures.study_figure(cells, summary, {}))


@pytest.mark.parametrize("name", ["collapse_study", "collapse_study_gpu"])
def test_presets_differ_in_size_alone(name: str) -> None:
    raw = resolved(ROOT / "presets" / f"{name}.yaml")
    assert list(raw["variants"]) == list(resolved(ROOT / "presets" / "collapse_study.yaml")["variants"])
    assert {fields["sparsity_key"] for fields in raw["variants"].values()} == {"seed"}
    assert raw["evaluate"]["models"] == "variants"
    assert raw["evaluate"]["latency_repeats"] is None


def test_git_keeps_the_tables_and_the_figure_alone() -> None:
    root = Path("results/collapse_study")
    kept = [root / name for name in FILES]
    others = [RunPaths(root / "photos" / "seed0").metrics, root / "logs" / "study.log"]
    command = ["git", "check-ignore", "--no-index", *map(str, kept + others)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stdout.split() == [str(path) for path in others]
