"""The paper at full scale, at a size for tests: order, resumption, the clock, tables and the archive."""

import itertools
import json
import math
import signal
import statistics
import tarfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from interruption import SAVE_EVERY
from ruamel.yaml import YAML
from tiny import LIGHT, ROOT, tiny_raw

import pelap.stages.collapse
import pelap.stages.evaluate
import pelap.stages.train
from pelap.cli import EXIT_UNFINISHED, main
from pelap.commands import paper as runner
from pelap.commands.paper import TimeIsUp, time_limit
from pelap.commands.studies import finished_stages, load_study, read_record
from pelap.config.load import load_params, select_keys
from pelap.core import files
from pelap.core.errors import TrainingError
from pelap.core.paths import RunPaths, packed_dataset
from pelap.evaluation.evaluator import Evaluator
from pelap.pipelines.pipeline_io import load_model
from pelap.report.figures.style import to_png
from pelap.stages.shared import Context
from pelap.training.trainer import Trainer
from workflow.studies.paper import page as report
from workflow.studies.paper.figures import ABLATION_PANELS, ablation_figure
from workflow.studies.paper.summarise import lambdas

QUICK: dict[str, Any] = {
    **LIGHT,
    "evaluate__latency_repeats": None,
    "evaluate__only_frechet": True,
    "evaluate__step_counts": [],
    "evaluate__num_images": 6,
    "evaluate__num_reference": 12,
    "download__image_size": 16,
    "train__epochs": 1,
    "train__steps_per_epoch": 4,
    "train__parallel_variants": 1,
    "train__preview": {"kind": "ddim", "steps": 2},
}
PARTS: dict[str, Any] = {
    "pelap-a": {
        "preset": "tiny.yaml",
        "stages": ["train", "collapse", "evaluate"],
        "variants": ["baseline", "pelap"],
        "set": {"evaluate.models": "variants", "train.log_every": 1},
    },
    "ablation": {"preset": "lambdas.yaml", "stages": ["train", "collapse"]},
}


def write_yaml(path: Path, value: Any) -> None:
    with path.open("w") as file:
        YAML().dump(value, file)


def write_study(folder: Path, **changes: Any) -> Path:
    """A study of two quick parts in an own folder, with the two presets that it names."""
    folder.mkdir(exist_ok=True)
    write_yaml(folder / "tiny.yaml", tiny_raw(**QUICK))
    two = {f"pelap-{name}": {"sparsity_key": "seed", "sparsity_weight": name / 100} for name in (1, 5)}
    write_yaml(folder / "lambdas.yaml", tiny_raw(**QUICK, variants=two, score__variant="pelap-1"))
    study = {"dataset": "photos", "seeds": [0, 1], "budget": "tiny", "parts": PARTS} | changes
    write_yaml(folder / "study.yaml", study)
    return folder / "study.yaml"


def run(study: Path, root: Path, *options: str, data: Path | None = None) -> int:
    place = str(data or root.parent / "data")
    argv = ["paper", "--study", str(study), "--root", str(root), "--data", place, "--device", "cpu"]
    return main([*argv, *options])


def cell_paths(root: Path, part: str, seed: int) -> RunPaths:
    return RunPaths(root / "photos" / part / f"seed{seed}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a study that ran to its end in one command."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(write_study(folder), folder / "root") == 0
    return folder / "root"


def watch(patch: pytest.MonkeyPatch) -> list[str]:
    """What is run from now on: part, seed and stage, of `train` with its variants."""
    calls: list[str] = []

    def watched(stage: str, original: Any) -> Any:
        def noted(context: Context) -> None:
            seed, part = context.paths.root.name, context.paths.root.parent.name
            variants = f" {','.join(context.params.variants)}" if stage == "train" else ""
            calls.append(f"{part} {seed} {stage}{variants}")
            original(context)

        return noted

    for stage in ("train", "collapse", "evaluate"):
        module = getattr(pelap.stages, stage)
        patch.setattr(module, "run", watched(stage, module.run))
    return calls


def quick_stages(patch: pytest.MonkeyPatch) -> list[str]:
    """As `watch`, with stages that do nothing."""
    for stage in ("train", "collapse", "evaluate"):
        patch.setattr(getattr(pelap.stages, stage), "run", lambda context: None)
    patch.setattr("workflow.studies.paper.summarise.write_results", lambda root, study: None)
    patch.setattr(runner.download, "run", lambda context: None)
    patch.setattr(runner.gc, "collect", lambda: 0)  # most of the time, where stages take none
    return watch(patch)


PELAP_A = PARTS["pelap-a"]
EVERY_STAGE = [
    call
    for seed in (0, 1)
    for call in (
        f"pelap-a seed{seed} train baseline,pelap",
        f"pelap-a seed{seed} collapse",
        f"pelap-a seed{seed} evaluate",
        f"ablation seed{seed} train pelap-1,pelap-5",
        f"ablation seed{seed} collapse",
    )
]


def test_other_pictures_are_another_study(tmp_path: Path) -> None:
    before = load_study(write_study(tmp_path)).cells[0]
    changes = {part: PARTS[part] | {"set": {"download.photos.min_crop": 50}} for part in PARTS}
    changes["pelap-a"]["set"] |= PELAP_A["set"]
    after = load_study(write_study(tmp_path, parts=changes)).cells[0]
    assert all(before.digest(stage) != after.digest(stage) for stage in before.stages)


def test_other_pictures_in_the_same_place_are_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, packed = quick_stages(monkeypatch), packed_dataset(tmp_path / "data", "photos")
    study, contents = write_study(tmp_path), iter([b"one", b"one", b"other"])
    packed.parent.mkdir()
    monkeypatch.setattr(runner.download, "is_packed", lambda params, data: False)
    monkeypatch.setattr(runner.download, "run", lambda context: packed.write_bytes(next(contents)))
    for expected in (EVERY_STAGE, [], EVERY_STAGE):
        calls.clear()
        assert run(study, tmp_path / "root") == 0
        assert calls == expected


def test_parts_take_turns_and_what_is_finished_is_not_run_again_but_named_where_its_code_was_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = quick_stages(monkeypatch)
    study, root = write_study(tmp_path), tmp_path / "root"
    for _ in range(2):
        assert run(study, root) == 0
        assert calls == EVERY_STAGE
    assert "other code" not in capsys.readouterr().out
    code = runner.stage_code
    monkeypatch.setattr(runner, "stage_code", lambda stage: code(stage) + "0" * (stage == "train"))
    assert run(study, root) == 0
    said = capsys.readouterr().out
    assert "pelap-a seed 0: train; ablation seed 0: train; pelap-a seed 1: train" in said
    assert calls == EVERY_STAGE


def test_changed_parameters_run_again_what_reads_them_and_what_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = quick_stages(monkeypatch)
    run(write_study(tmp_path), tmp_path / "root")
    stale = cell_paths(tmp_path / "root", "pelap-a", 0).train("baseline").model
    stale.mkdir(parents=True)
    for key, stages, is_kept in (("evaluate.batch_size", "evaluate", True), ("train.lr", "", False)):
        calls.clear()
        changed = PARTS | {"pelap-a": PELAP_A | {"set": PELAP_A["set"] | {key: 3}}}
        assert run(write_study(tmp_path, parts=changed), tmp_path / "root") == 0
        assert calls == [call for call in EVERY_STAGE if call.startswith("pelap-a") and stages in call]
        assert stale.is_dir() == is_kept


def test_a_killed_stage_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = quick_stages(monkeypatch)

    def killed(context: Context) -> None:
        raise SystemExit

    study = write_study(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(pelap.stages.collapse, "run", killed)
        run(study, tmp_path / "root")
    calls.clear()
    assert run(study, tmp_path / "root") == 0
    assert calls == EVERY_STAGE[1:]


def test_a_failure_ends_its_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick_stages(monkeypatch)

    def fail(context: Context) -> None:
        if context.params.seed == 0 and "pelap-1" in context.params.variants:
            raise TrainingError("the loss is not finite; lower lr")

    monkeypatch.setattr(pelap.stages.train, "run", fail)
    calls = watch(monkeypatch)
    assert run(write_study(tmp_path), tmp_path / "root") == 2
    assert calls == [call for call in EVERY_STAGE if call != "ablation seed0 collapse"]
    error = capsys.readouterr().err
    assert "failed: ablation seed 0: train: the loss is not finite; lower lr\n" in error
    assert error.splitlines()[-1] == (
        "pelap: error: ablation seed 0: train: the loss is not finite; lower lr; "
        "all that does not need it is done"
    )


@pytest.mark.slow
def test_time_is_up_in_the_middle_and_the_same_comes_out(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the second variant's training, then in an evaluation; the first variant is not trained again."""
    root, study, data = tmp_path / "root", write_study(tmp_path, seeds=[0]), whole.parent / "data"
    monkeypatch.setattr(SAVE_EVERY, -1.0)
    taken: list[str] = []
    step = Trainer._step

    def cut(self: Trainer, *args: Any) -> Any:
        taken.append(f"{self.label} {self.progress.step}")
        if taken.count("train pelap 3") == 1 and taken[-1] == "train pelap 3":
            raise TimeIsUp
        return step(self, *args)

    monkeypatch.setattr(Trainer, "_step", cut)
    assert run(study, root, data=data) == EXIT_UNFINISHED
    out, err = capsys.readouterr()
    assert "the time is up" in err
    assert "0 of 5 stages finished" in out
    assert "left: pelap-a seed 0 (train, collapse, evaluate), ablation seed 0 (train, collapse)\n" in out
    assert out.splitlines()[-1] == "run the same command again"
    assert (root / "paper.tar.xz").is_file()

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "images", lambda *args: (_ for _ in ()).throw(TimeIsUp))
        assert run(study, root, data=data) == EXIT_UNFINISHED
    assert taken.count("train baseline 0") == 1
    assert taken.count("train pelap 2") == 1
    assert taken.count("train pelap 3") == 2
    assert "2 of 5 stages finished" in capsys.readouterr().out

    assert run(study, root, data=data) == 0
    assert "5 of 5 stages finished" in capsys.readouterr().out
    assert numbers(root) == numbers(whole)
    record = files.read_json(cell_paths(root, "pelap-a", 0).record("evaluate"))
    assert (record["cut_off"], record["finished"]) == (1, True)


def numbers(root: Path) -> list[tuple[Any, ...]]:
    """All values of the first seed but times."""
    cells = files.read_csv(root / "cells.csv")
    cells = cells[cells["seed"] == 0]
    timed = cells["metric"].str.startswith("seconds_")
    kept = cells[~timed].fillna(-1.0)
    assert len(kept) > 50
    return list(kept.itertuples(index=False, name=None))


def test_a_stage_that_never_gets_done_in_time_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick_stages(monkeypatch)

    def endless(context: Context) -> None:
        raise TimeIsUp

    monkeypatch.setattr(pelap.stages.collapse, "run", endless)
    study = write_study(tmp_path)
    assert run(study, tmp_path / "root") == EXIT_UNFINISHED
    assert "starts anew each time" not in capsys.readouterr().err
    assert run(study, tmp_path / "root") == EXIT_UNFINISHED
    line = "pelap-a seed 0: collapse was cut off 2 times and starts anew each time; raise --minutes\n"
    assert line in capsys.readouterr().err


def test_the_clock_ends_the_work_and_is_then_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick_stages(monkeypatch)

    def slow(context: Context) -> None:
        time.sleep(60)

    monkeypatch.setattr(pelap.stages.train, "run", slow)
    handler = signal.getsignal(signal.SIGALRM)
    # The reserve for the tables is a share of so short a time, which starts with the command.
    assert run(write_study(tmp_path), tmp_path / "root", "--minutes", "0.03") == EXIT_UNFINISHED
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is handler


def test_a_swallowed_end_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "AGAIN_SECONDS", 0.05)
    swallowed = 0
    with pytest.raises(TimeIsUp), time_limit(0.001, time.monotonic()):
        try:
            time.sleep(60)
        except TimeIsUp:
            swallowed += 1
        time.sleep(60)
    assert swallowed == 1


def test_table_has_mean_deviation_and_number_of_the_runs(whole: Path) -> None:
    table = files.read_csv(whole / "table.csv")
    assert list(table.columns) == report.TABLE_COLUMNS
    assert set(table["dataset"]) == {"photos"}
    assert table["budget"].str.startswith("tiny, 1 epochs of 4 batches of 32, ").all()
    runs = [cell_paths(whole, "pelap-a", seed) for seed in (0, 1)]
    for model, metric, found in (
        ("pelap", "recon_mse", [files.read_json(run.collapse_metrics)["pelap"]["recon_mse"] for run in runs]),
        ("baseline", "fd_effnet_lite0", [of_baseline(run)["fd_effnet_lite0"] for run in runs]),
        (
            report.ALL_MODELS,
            "seconds_train",
            [files.read_json(run.record("train"))["seconds"] for run in runs],
        ),
    ):
        row = row_of(table, "pelap-a", model, metric)
        assert row["mean"] == pytest.approx(statistics.mean(found))
        assert row["sd"] == pytest.approx(statistics.stdev(found))
        assert row["n"] == 2
        assert min(found) > 0


def of_baseline(run: RunPaths) -> dict[str, Any]:
    return files.read_metrics(run.metrics)["baseline"]


def read_seconds(run: RunPaths) -> float:
    seconds: float = files.read_json(run.record("train"))["seconds"]
    return seconds


def row_of(table: pd.DataFrame, part: str, model: str, metric: str) -> Any:
    keys = (table["part"] == part) & (table["model"] == model) & (table["metric"] == metric)
    return table[keys].iloc[0]


def test_the_papers_figures_stand_beside_their_part_alone(whole: Path) -> None:
    table = files.read_csv(whole / "table.csv")
    beside = table.dropna(subset=["paper"])
    assert {(row.model, row.metric): str(row.paper) for row in beside.itertuples()} == {
        ("baseline", "diffusion_loss"): "0.0240",
        ("baseline", "recon_mse"): "24.67",
        ("pelap", "mean_mask"): "near 0",
        ("pelap", "diffusion_loss"): "0.0236",
        ("pelap", "recon_mse"): "22.59",
        ("pelap", "predictor_params"): "292",
    }
    assert set(beside["part"]) == {"pelap-a"}
    assert row_of(table, "pelap-a", "pelap", "predictor_params")["mean"] == 292  # 4 latent channels


def test_the_page_and_its_protocol_say_what_the_numbers_are(whole: Path) -> None:
    page = (whole / "table.md").read_text()
    assert "## ablation on photos\n\nBudget: tiny, 1 epochs of 4 batches of 32, " in page
    assert "## Beside the paper's own figures" in page
    protocol = files.read_json(whole / "protocol.json")
    assert (protocol["finished"], protocol["stages"]) == (10, 10)
    for row in protocol["ran"]:
        assert {"seconds", "device", "versions", "precision", "dataset", "seed"} <= set(row)
    train = [row["seconds"] for row in protocol["ran"] if row["seed"] == 1]
    assert protocol["seconds_by_seed"]["photos seed 1"] == pytest.approx(sum(train))
    precisions = {(row["stage"], row["precision"]) for row in protocol["ran"]}
    assert precisions == {("train", "fp32"), ("collapse", None), ("evaluate", "fp32")}


def test_a_run_holds_the_parameters_to_repeat_a_stage(whole: Path) -> None:
    run = cell_paths(whole, "pelap-a", 1)
    for stage in ("train", "collapse", "evaluate"):
        params = load_params(run.params, stage)
        assert (params.seed, list(params.variants)) == (1, ["baseline", "pelap"])
    assert load_params(run.params, "train").train.log_every == 1
    assert load_model(run.train("pelap").model).info.seed == 1


def test_archive_has_small_files_and_no_model(whole: Path) -> None:
    with tarfile.open(whole / "paper.tar.xz") as archive:
        names = archive.getnames()
        table = archive.extractfile("paper/table.csv")
        assert table is not None
        assert table.read() == (whole / "table.csv").read_bytes()
    assert {Path(name).suffix for name in names} == {".csv", ".json", ".png", ".md", ".yaml"}
    assert not [name for name in names if {"model", ".resume"} & set(Path(name).parts)]
    for wanted in ("collapse/collapse.csv", "evaluate/metrics.json", "stages/train.json", "params.yaml",
                   "train/baseline/history.csv"):  # fmt: skip
        assert f"paper/photos/pelap-a/seed1/{wanted}" in names
    pictures = [name for name in names if name.endswith("/evaluate/samples/pelap.png")]
    assert pictures == ["paper/photos/pelap-a/seed0/evaluate/samples/pelap.png"]
    assert "paper/figures/photos-ablation-lambda.png" in names
    assert "paper/figures/photos-pelap-a-controls.png" in names


def test_no_minutes_are_for_the_tables_of_what_is_finished(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = watch(monkeypatch)
    assert run(write_study(tmp_path), tmp_path / "root", "--minutes", "0") == EXIT_UNFINISHED
    assert "0 of 10 stages finished" in capsys.readouterr().out
    assert len(files.read_csv(tmp_path / "root" / "table.csv")) == 0
    # A seed more than there are runs of: what was there before still counts.
    more = write_study(tmp_path / "more", seeds=[0, 1, 2])
    assert run(more, whole, "--minutes", "0") == EXIT_UNFINISHED
    assert "10 of 15 stages finished" in capsys.readouterr().out
    assert set(files.read_csv(whole / "table.csv")["n"]) == {2}
    assert run(whole.parent / "study.yaml", whole, "--minutes", "0") == 0
    assert calls == []


def test_what_snakemake_ran_with_these_parameters_is_finished(tmp_path: Path) -> None:
    root, cell = tmp_path / "root", load_study(write_study(tmp_path)).cells[0]
    run = cell.paths(root)
    for job in ("train-baseline", "train-pelap", "collapse"):
        stage, _, variant = job.partition("-")
        files.write_json(run.stage_params / f"{job}.yaml", select_keys(cell.raw, stage, variant or None))
    benchmark = run.root / "benchmarks" / "train-pelap.tsv"
    files.write_text(benchmark, "s\th:m:s\n12.5\t0:00:12\n")
    assert finished_stages(cell, root) == ["train", "collapse"]
    assert read_record(cell, root, "train").seconds == 12.5
    other = select_keys(cell.raw, "train", "pelap") | {"seed": 9}
    files.write_json(run.stage_params / "train-pelap.yaml", other)
    assert finished_stages(cell, root) == []


def test_another_data_set_has_runs_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick_stages(monkeypatch)
    study = write_study(tmp_path)
    assert run(study, tmp_path / "root", "--dataset", "svhn") == 0
    records = [file.relative_to(tmp_path / "root").parts[0] for file in tmp_path.glob("root/*/*/*/stages/*")]
    assert set(records) == {"svhn"}


def part_a(**fields: Any) -> dict[str, Any]:
    """A study with one part, `a`, which is that of PeLAP-A with other fields."""
    return {"parts": {"a": PELAP_A | fields}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "seeds: "),
        ({"seeds": [1, 1]}, "seeds: one is given twice"),
        ({"seed": 1}, "seed: unknown key"),
        ({"dataset": "nope"}, "'nope' is unknown"),
        ({"parts": {"a": {"stages": ["train"]}}}, "parts.a.preset: missing"),
        (part_a(preset="no.yaml"), "parts.a.preset: no file"),
        (part_a(epochs=3), "parts.a.epochs: unknown key"),
        (part_a(variants=["best"]), "the preset has no best; use some of baseline"),
        (part_a(set={"train.epoch": 3}), "set.train.epoch: no stage"),
        (part_a(set={"score.formula": "avg"}), "set.score.formula: no stage"),
        (part_a(set={"train.epochs": 0}), "parts.a: train.epochs: "),
        (part_a(set={"seed": 3}), "set.seed: all parts share it"),
        (part_a(set={}), "evaluate needs score, prune, distill too"),
        (part_a(stages=["download"]), "parts.a.stages"),
        (part_a(stages=["collapse", "train"], set={}), "order train, collapse"),
        (part_a(stages=["train", "report"], set={}), "report needs collapse, score"),
        (
            {"parts": PARTS | part_a(set=PELAP_A["set"] | {"download.image_size": 32})["parts"]},
            "parts.a: its section download makes other pictures",
        ),
    ],
)
def test_a_bad_study_is_found_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    assert run(write_study(tmp_path, **changes), tmp_path / "root") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"pelap: error: {tmp_path / 'study.yaml'}: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "root").exists()


def test_a_data_set_that_cannot_be_had_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PELAP_DATA_DIR", raising=False)
    assert run(write_study(tmp_path), tmp_path / "root", "--dataset", "cifar10-jpeg") == 2
    error = capsys.readouterr().err
    assert error.startswith("pelap: error: ")
    assert "cifar10-jpeg" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("moments", "text"),
    [
        ((0.02361, 0.00012, 5), "0.02361 ± 0.00012 (5)"),
        ((22.59, math.nan, 1), "22.59 (1)"),
        ((820748.0, 0.0, 2), "820,748 ± 0 (2)"),
    ],
)
def test_cell_texts(moments: tuple[float, float, int], text: str) -> None:
    assert report.cell(*moments) == text


def test_ablation_is_told_by_variants_that_differ_in_the_penalty_alone(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path))
    assert lambdas(study.parts["ablation"]) == {"pelap-1": 0.01, "pelap-5": 0.05}
    assert lambdas(study.parts["pelap-a"]) == {}


@pytest.mark.parametrize("seeds", [1, 3])
def test_ablation_figure(seeds: int) -> None:
    metrics = [metric for _, _, metric in ABLATION_PANELS]
    entries = itertools.product(["photos"], ["ablation"], range(seeds), "ab", metrics)
    values = pd.DataFrame([(*entry, 0.1 + entry[2]) for entry in entries], columns=report.VALUE_COLUMNS)
    figure = ablation_figure(values, {"a": 0.001, "b": 0.1})
    assert [axis.get_xscale() for axis in figure.axes] == ["log"] * 4
    to_png(figure)


@pytest.mark.parametrize("name", ["paper", "paper-cpu"])
def test_the_studies_are_what_they_say(name: str) -> None:
    study = load_study(ROOT / "workflow" / f"{name}.yaml")
    assert list(study.parts) == ["pelap-a", "ablation", "controls", "pruning"]
    assert [cell.part for cell in study.cells[:4]] == list(study.parts)
    paper, ablation = study.parts["pelap-a"].params, study.parts["ablation"]
    assert list(paper.variants) == ["baseline", "pelap"]
    assert paper.lambda_ == 0.01
    assert list(lambdas(ablation).values()) == [0.001, 0.005, 0.01, 0.05, 0.1]
    assert study.parts["pruning"].stages[-3:] == ("distill", "evaluate", "report")
    if name == "paper":
        assert study.dataset == "cifar10"
        assert len({cell.seed for cell in study.cells}) == 5
        assert (paper.train.epochs, ablation.params.train.epochs) == (100, 30)
        assert study.parts["pruning"].params.evaluate.num_images >= 10_000


STUDENTS = {"distilled": {"start": "pruned", "task_weight": 1.0, "output_weight": 1.0, "feature_weight": 0.0}}


@pytest.mark.slow
def test_all_stages_of_a_part(tmp_path: Path) -> None:
    part = {
        "preset": "tiny.yaml",
        "stages": ["train", "collapse", "score", "prune", "distill", "evaluate", "report"],
        "variants": ["invariant"],
    }
    study, root = write_study(tmp_path, seeds=[0], parts={"pruning": part}), tmp_path / "root"
    write_yaml(tmp_path / "tiny.yaml", tiny_raw(**QUICK, prune__num_params=500, distill__students=STUDENTS))
    assert run(study, root) == 0
    done = RunPaths(root / "photos" / "pruning" / "seed0")
    assert done.report_page.is_file()
    with tarfile.open(root / "paper.tar.xz") as archive:
        names = archive.getnames()
    assert "paper/photos/pruning/seed0/distill/result.json" in names
    assert "paper/photos/pruning/seed0/report/overview.md" in names
    assert "paper/figures/photos-pruning-models.png" in names
    assert not [name for name in names if "models" in Path(name).parts]
    table = files.read_csv(root / "table.csv")
    metrics = json.loads(done.metrics.read_text())
    distance = row_of(table, "pruning", "distilled-500", "fd_effnet_lite0")["mean"]
    assert distance == metrics["distilled-500"]["fd_effnet_lite0"]
    assert row_of(table, "pruning", "invariant", "rank_correlation")["n"] == 1
