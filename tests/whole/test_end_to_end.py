"""The three commands of daily use on a run that is small in every number and whole in every stage."""

import json
import os
import shutil
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pandas as pd
import pytest
from diffusers import UNet2DModel
from ruamel.yaml import YAML
from tiny import ROOT, tiny_raw

from pelap.config.yaml import read_yaml
from pelap.core import files
from pelap.core.paths import RunPaths, packed_dataset
from pelap.masking.collapse import HEALTHY, MASK_COLLAPSE, PARTIAL_MASK, SCALE_COLLAPSE
from pelap.pipelines.pipeline_io import load_model

pytestmark = pytest.mark.slow

COPIED = (
    *("pelap", "workflow", "profiles", "presets", "Snakefile", "dvc.yaml", "Makefile"),
    *(".dvc", ".dvcignore", ".gitignore"),
)
PLAN = "3000"
STUDENTS = (f"distilled-{PLAN}", f"output-only-{PLAN}", f"scratch-{PLAN}", "dense-finetuned")
MODELS = ("baseline", "pelap", "invariant", f"pruned-{PLAN}", *STUDENTS)
METRICS = {
    *("fd_effnet_lite0", "fd_effnet_lite0_se", "kid_effnet_lite0", "kid_effnet_lite0_std"),
    *("precision_effnet_lite0", "recall_effnet_lite0", "density_effnet_lite0", "coverage_effnet_lite0"),
    *("psnr", "ssim", "latency_ms", "image_ms", "params", "macs", "peak_memory_mib", "disk_mib"),
}


def command(folder: Path, *argv: str) -> str:
    """Run a command of the virtual environment as a user would; its output."""
    who = {f"GIT_{role}_{what}": "t@t" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "2"} | who
    result = subprocess.run(
        argv, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert result.returncode == 0, f"{' '.join(argv)}\n{result.stdout[-4000:]}"
    return result.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with small parameters on which `dvc repro` has run, its results committed."""
    folder = tmp_path_factory.mktemp("project")
    ignored = shutil.ignore_patterns("__pycache__", "cache", "tmp")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)
    with (folder / "params.yaml").open("w") as file:
        YAML().dump(tiny_raw(), file)
    command(folder, "git", "init", "-q")
    command(folder, "git", "add", "-A")
    command(folder, "git", "commit", "-qm", "start")
    command(folder, "dvc", "repro")
    command(folder, "git", "add", "-A")
    command(folder, "git", "commit", "-qm", "results")
    return folder


def test_every_file_that_others_rely_on_is_there(project: Path) -> None:
    run = RunPaths(project / "results" / "default")
    metrics = files.read_json(run.metrics)
    assert list(metrics) == [*MODELS, "real"]
    for model in MODELS:
        assert set(metrics[model]) >= METRICS
        assert metrics[model]["fd_effnet_lite0"] > 0
    scores = files.read_csv(run.scores)
    columns = {"operator", "kind", "replacement", "avg_dist", "std_dist", "score", "params", "macs"}
    assert set(scores.columns) >= columns | {"latency_ms", "latency_share", "score_low", "score_high"}
    changes = files.read_csv(run.changes)
    assert set(changes["operator"][1:]) == set(scores["operator"])
    assert scores["score"].is_monotonic_increasing
    unet = load_model(run.train("invariant").model).unet
    assert set(scores["operator"]) <= {name for name, _ in unet.named_modules()}
    collapse = files.read_csv(run.collapse_table)
    assert list(collapse["variant"]) == ["baseline", "pelap", "invariant"]
    assert set(collapse["verdict"]) <= {HEALTHY, PARTIAL_MASK, MASK_COLLAPSE, SCALE_COLLAPSE}
    assert collapse["reason"].str.contains("channel").all()
    assert set(files.read_csv(run.masks_per_class)["variant"]) == {"pelap", "invariant"}
    for table in ("channels", "timesteps", "epochs"):
        assert set(files.read_csv(run.collapse_tables[table])["variant"]) == set(collapse["variant"]), table
    numbers = files.read_json(run.collapse_metrics)
    for row in collapse.to_dict("records"):
        assert numbers[row["variant"]]["unet_input_std"] == row["unet_input_std"]
        assert "verdict" not in numbers[row["variant"]]
    assert set(files.read_csv(run.train("pelap").history).columns) >= {"step", "noise", "recon", "mean_mask"}
    assert "<html" in run.report_page.read_text()


def test_fine_tuned_models_say_how_they_came_about(project: Path) -> None:
    run = RunPaths(project / "results" / "default")
    result = files.read_json(run.distill_result)
    assert tuple(result) == STUDENTS
    assert {row["plan"] for row in result.values()} == {PLAN, None}
    for table in (run.distill_history, run.distill_validation):
        assert tuple(files.read_csv(table)["student"].unique()) == STUDENTS
    budget = files.read_csv(run.budget)
    assert set(budget["model"]) == {"invariant", f"pruned-{PLAN}", *STUDENTS[:2], "dense-finetuned"}
    assert list(budget.loc[budget["model"] == "invariant", "steps"]) == [4, 2]
    pairs = files.read_csv(run.differences)[["model", "against"]].itertuples(index=False)
    assert {(f"distilled-{PLAN}", "invariant"), (f"distilled-{PLAN}", "dense-finetuned")} <= {
        tuple(p) for p in pairs
    }
    assert {"psnr_to_dense", "ssim_to_dense"} <= set(files.read_json(run.metrics)[f"pruned-{PLAN}"])


def test_the_plan_was_carried_out(project: Path) -> None:
    run = RunPaths(project / "results" / "default")
    plan, metrics = files.read_json(run.plan(PLAN)), files.read_json(run.metrics)
    removed = [entry["operator"] for entry in plan["operators"]]
    assert removed
    assert not [a for a in removed for b in removed if a.startswith(f"{b}.")]
    saved = metrics["invariant"]["params"] - metrics[f"pruned-{PLAN}"]["params"]
    assert saved == plan["num_params"] >= 3000
    assert {metrics[name]["params"] for name in STUDENTS[:3]} == {metrics[f"pruned-{PLAN}"]["params"]}
    assert metrics["dense-finetuned"]["params"] == metrics["invariant"]["params"]
    for folder in (run.pruned_model(PLAN), run.distilled_model(STUDENTS[0])):
        assert load_model(folder).info.name in MODELS
        with pytest.raises(OSError, match="diffusion_pytorch_model"):
            UNet2DModel.from_pretrained(folder / "unet")


def test_any_model_folder_makes_pictures(project: Path, tmp_path: Path) -> None:
    for model in ("train/pelap/model", f"distill/models/{STUDENTS[0]}"):
        folder = str(project / "results" / "default" / model)
        words = f"pelap sample --num 3 --seed 1 --steps 4 --out {tmp_path / model} --model {folder}"
        command(project, *words.split(" "))
        names = sorted(path.name for path in (tmp_path / model).iterdir())
        assert names == ["00000.png", "00001.png", "00002.png", "grid.png"]


def test_show_and_second_repro(project: Path) -> None:
    again = command(project, "dvc", "repro")
    assert "Running stage 'inputs'" in again  # which is quick, and always looked at
    assert again.count("Running stage") == 1
    shown = command(project, "pelap", "show")
    assert shown.rstrip().endswith("report/index.html")
    assert all(model in shown for model in MODELS)
    assert max(len(line) for line in shown.splitlines()) <= 80


def test_equal_inputs_give_equal_bytes(project: Path) -> None:
    """Of every stage whose files hold no times; the report's are given again what they were made of."""
    run = RunPaths(project / "results" / "default")
    made = [*run.report.iterdir(), packed_dataset(project / "data", "photos"), *run.collapse.iterdir()]
    made += [path for path in run.train("pelap").model.rglob("*") if path.is_file()]
    made += [run.train("pelap").validation, *run.train("pelap").model.parent.glob("*.png")]
    before = {path: path.read_bytes() for path in made}
    assert len(before) > 15
    command(
        project, "dvc", "repro", "--force", "--single-item", "report", "download", "train@pelap", "collapse"
    )
    assert [path for path in made if path.read_bytes() != before[path]] == []
    command(project, "git", "checkout", "-q", ".")
    command(project, "dvc", "checkout", "--quiet")


def test_ablation_has_a_row_and_a_line_for_every_lambda(project: Path) -> None:
    """Of two values one is the committed run's, so that only the other is trained."""
    output = command(project, "make", "-o", ".venv/.installed", "ablation", "LAMBDAS=0.001 0.05")
    assert output.count("Running stage 'train@pelap'") == 1
    assert "Running stage 'train@baseline'" not in output
    table = [[cell.strip() for cell in line.split("|")] for line in output.splitlines()]
    for variant in ("pelap", "invariant"):
        shown = ("mean_mask", "active_channels", "unet_input_std", "diffusion_loss", "floor_ratio")
        head = next(i for i, row in enumerate(table) if f"{variant}.mean_mask" in row)
        assert table[head][1:-1] == ["Experiment", *(f"{variant}.{name}" for name in shown)]
        rows = takewhile(lambda row: len(row) > 2, table[head + 2 :])  # the commit, experiments by lambda
        by_name = {row[1].rpartition("[")[2]: row[2:] for row in rows}
        # The commit may have other experiments too.
        ours = [name for name in by_name if name.startswith("lambda-")]
        assert ours == ["lambda-0.001]", "lambda-0.05]"]
        assert by_name["lambda-0.001]"] == table[head + 2][2:]
    page = (project / "dvc_plots" / "index.html").read_text()
    for drawn in ("lambda-0.001", "lambda-0.05", "pelap/validation.csv", "mean_mask", "unet_input_std"):
        assert drawn in page, drawn
    assert read_yaml(project / "params.yaml")["lambda"] == 0.001
    assert command(project, "git", "status", "--porcelain") == ""


def test_a_cell_of_the_sweep_is_the_canonical_run(project: Path) -> None:
    command(project, "snakemake", "--cores", "4", "all_seeds", "--config", "seeds=[0]", "datasets=[photos]")
    committed = command(project, "git", "show", "HEAD:results/default/evaluate/metrics.json")
    ours = files.read_json(project / "results" / "sweep" / "photos" / "seed0" / "evaluate" / "metrics.json")
    for model, metrics in json.loads(committed).items():
        for name, value in metrics.items():
            if name.startswith(("fd", "psnr", "ssim", "params", "macs")) and not name.endswith("_se"):
                # Errors, neighbours and shares of 24 pictures turn on a rounding of one of them.
                assert ours[model][name] == pytest.approx(value, rel=1e-4), (model, name)
    summary = pd.read_csv(project / "results" / "sweep" / "summary.csv")
    assert set(summary["n"]) == {1}
    assert set(summary["model"]) == {*MODELS, "real"}
