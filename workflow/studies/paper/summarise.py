"""What the finished stages of `paper` say: tables, figures, protocol and one small archive."""

import io
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from pelap.commands.studies import Cell, Study, finished_stages, load_study, read_record
from pelap.core import files
from pelap.core.errors import ConfigError
from pelap.core.paths import RunPaths, scored_variant
from pelap.report.figures.style import to_png
from pelap.report.figures.training import epoch_curves
from workflow.studies.collapse.figures import DISTANCE, study_figure
from workflow.studies.collapse.summarise import CELL_COLUMNS, over_enough_seeds
from workflow.studies.common import real_distance
from workflow.studies.paper.figures import ablation_figure
from workflow.studies.paper.page import ALL_MODELS, SECONDS, VALUE_COLUMNS, Part, over_parts, page
from workflow.studies.seeds.figures import sweep_figure
from workflow.studies.seeds.summarise import compared

KEPT = (".csv", ".json", ".png", ".md", ".yaml")  # what the archive takes; reports are pages of megabytes
MODEL_FOLDERS = {"model", "models"}
MOST_CURVES = 6  # variants that a figure of curves has room for


@dataclass(frozen=True, eq=False)
class Run:
    """A cell, and which of its stages are done."""

    cell: Cell
    paths: RunPaths
    done: list[str]

    @property
    def part(self) -> tuple[str, str]:
        return self.cell.params.dataset, self.cell.part


def write_results(root: Path, study: Study) -> None:
    """Write all tables, figures and the archive from what is finished under the root, of any data set."""
    cells = [cell for each in _studies(root, study) for cell in each.cells]
    runs = [Run(cell, cell.paths(root), finished_stages(cell, root)) for cell in cells]
    rows = [(*run.part, run.cell.seed, *row) for run in runs for row in _values(run, root)]
    values = pd.DataFrame(rows, columns=VALUE_COLUMNS).astype({"value": float})
    parts = [_part(study, run) for run in runs if run.cell.seed == study.cells[0].seed]
    table = over_parts(values, parts)
    files.write_csv(root / "cells.csv", values)
    files.write_csv(root / "table.csv", table)
    files.write_json(root / "protocol.json", _protocol(root, study, parts, runs))
    figures = _write_figures(root / "figures", parts, runs, values)
    files.write_text(root / "table.md", page(table, parts, figures))
    _write_archive(root, runs)


def _studies(root: Path, study: Study) -> Iterator[Study]:
    """This study, and the same one on the other data sets that were run under this root."""
    yield study
    for folder in sorted(root.iterdir()):
        if folder.name != study.dataset and any(folder.glob("*/seed*/stages/*.json")):
            try:
                yield load_study(study.source, folder.name)
            except ConfigError:
                continue  # the presets have forgotten this data set


def _values(run: Run, root: Path) -> Iterator[tuple[str, str, Any]]:
    """Model, metric and value of all that was measured, and the seconds of each stage."""
    for stage in run.done:
        if stage == "train":
            for name in run.cell.params.variants:
                yield name, "predictor_params", _num_weights(run.paths.train(name).model / "mask")
        elif stage == "collapse":
            table = files.read_csv(run.paths.collapse_table, ["variant"]).set_index("variant")
            for variant, row in table.to_dict("index").items():
                yield from ((str(variant), str(k), v) for k, v in row.items() if not isinstance(v, str))
        elif stage == "score":
            protocol = files.read_mapping(run.paths.score_protocol)
            yield scored_variant(run.paths), "rank_correlation", protocol.get("rank_correlation")
        elif stage == "evaluate":
            for name, metrics in files.read_metrics(run.paths.metrics).items():
                yield from ((name, metric, value) for metric, value in metrics.items())
        yield ALL_MODELS, f"{SECONDS}{stage}", read_record(run.cell, root, stage).seconds


def _num_weights(folder: Path) -> int | None:
    """How many weights a part of a model has; None where there is no such part."""
    parts = list(folder.glob("*.safetensors"))
    tensors = [tensor for file in parts for tensor in files.load_tensors(file)[0].values()]
    return sum(tensor.numel() for tensor in tensors if tensor.is_floating_point()) if parts else None


def _part(study: Study, run: Run) -> Part:
    """A part and what its numbers were made with, read off its parameters."""
    params, stages = run.cell.params, run.cell.stages
    train, width = params.train, getattr(params.vae, "width", None)
    epoch = "all pictures in" if train.steps_per_epoch is None else f"{train.steps_per_epoch}"
    words = [study.budget, f"{train.epochs} epochs of {epoch} batches of {train.batch_size}"]
    words += [] if width is None else [f"autoencoder of width {width}"]
    words += [f"{params.distill.steps} steps of distillation"] if "distill" in stages else []
    words += [f"{params.evaluate.num_images} samples"] if "evaluate" in stages else []
    return Part(*run.part, ", ".join(words))


def _protocol(root: Path, study: Study, parts: Sequence[Part], runs: Sequence[Run]) -> dict[str, Any]:
    """What was run where, with what and for how long."""
    ran, per_seed = [], defaultdict[str, float](float)
    for run in runs:
        (dataset, part), seed = run.part, run.cell.seed
        for stage in run.done:
            record = read_record(run.cell, root, stage)
            place = {"dataset": dataset, "part": part, "seed": seed, "stage": stage}
            ran.append(place | {"seconds": record.seconds, "cut_off": record.cut_off, **record.environment})
            per_seed[f"{dataset} seed {seed}"] += record.seconds
    return {
        "budget": study.budget,
        "parts": [part._asdict() for part in parts],
        "finished": sum(len(run.done) for run in runs),
        "stages": sum(len(run.cell.stages) for run in runs),
        "seconds_by_seed": per_seed,
        "ran": ran,
    }


def _write_figures(
    folder: Path, parts: Sequence[Part], runs: Sequence[Run], values: pd.DataFrame
) -> dict[Part, list[str]]:
    """Draw what there are numbers for; the paths of each part's figures, relative to the page."""
    written: dict[Part, list[str]] = {}
    with files.atomic_dir(folder) as partial:
        for part in parts:
            rows = values[(values["dataset"] == part.dataset) & (values["part"] == part.name)]
            for kind, figure in _figures([run for run in runs if run.part == part[:2]], rows):
                name = f"{part.dataset}-{part.name}-{kind}.png"
                (partial / name).write_bytes(to_png(figure))
                written.setdefault(part, []).append(f"{folder.name}/{name}")
    return written


def _figures(runs: Sequence[Run], values: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """The figures of a part."""
    collapsed, evaluated = ([run for run in runs if stage in run.done] for stage in ("collapse", "evaluate"))
    cell, variants = runs[0].cell, list(runs[0].cell.params.variants)
    if collapsed and len(variants) <= MOST_CURVES:
        epochs = files.read_csv(collapsed[0].paths.collapse_epochs, ["variant", "epoch"])
        yield "epochs", epoch_curves(epochs, variants)
    weights = lambdas(cell)
    if collapsed and weights:
        yield "lambda", ablation_figure(values, weights)
    if evaluated and cell.params.evaluate.models == "all":
        seeds = [run.cell.seed for run in evaluated]
        rows = values[(values["model"] != ALL_MODELS) & values["seed"].isin(seeds)].drop(columns="part")
        yield "models", sweep_figure(compared(rows), rows)
    elif evaluated and collapsed:
        yield "controls", _controls(values, variants)


def lambdas(cell: Cell) -> dict[str, float]:
    """The penalty of each variant of an ablation: variants that differ in it alone. Else nothing."""
    variants = cell.params.variants
    others = {repr(each.model_dump(exclude={"sparsity_weight"})) for each in variants.values()}
    weights = {name: each.weight(cell.params.lambda_) for name, each in variants.items()}
    alone = len(variants) > 1 and len(others) == 1 and len(set(weights.values())) == len(weights)
    return weights if alone and min(weights.values()) > 0 else {}


def _controls(values: pd.DataFrame, variants: Sequence[str]) -> Figure:
    """The figure of the collapse study."""
    rows = values[values["model"].isin(variants)].rename(columns={"model": "control"})[CELL_COLUMNS]
    return study_figure(rows, over_enough_seeds(rows)[0], real_distance(values, DISTANCE))


def _write_archive(root: Path, runs: Sequence[Run]) -> None:
    """Pack the small files of what is finished, pictures of the first seed; same files, same archive."""
    own = [root / name for name in ("table.csv", "table.md", "cells.csv", "protocol.json")]
    packed = [*own, *sorted((root / "figures").glob("*.png"))]
    first = min(run.cell.seed for run in runs)
    for run in runs:  # pictures are most of the bytes
        packed += [file for file in _small_files(run) if file.suffix != ".png" or run.cell.seed == first]
    with (
        files.atomic_path(root / "paper.tar.xz") as partial,
        tarfile.open(partial, "w:xz", preset=1) as archive,
    ):
        for file in packed:
            content = file.read_bytes()
            entry = tarfile.TarInfo(str(Path("paper") / file.relative_to(root)))
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))


def _small_files(run: Run) -> Iterator[Path]:
    """Parameters, records and tables of the finished stages, without models and pages."""
    noted = [run.paths.params, *sorted(run.paths.stage_params.glob("*.yaml"))]
    noted += [run.paths.record(stage) for stage in run.done]
    yield from (file for file in noted if run.done and file.is_file())
    for stage in run.done:
        for file in sorted(run.paths.stage(stage).rglob("*")):
            inside = file.relative_to(run.paths.root).parts
            hidden = any(name.startswith(".") for name in inside)
            if file.is_file() and file.suffix in KEPT and not hidden and not MODEL_FOLDERS & {*inside}:
                yield file
