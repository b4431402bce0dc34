"""What the finished stages of `paper` say: tables, figures, protocol and one small archive."""

import io as streams
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from pelap.commands.paper_records import finished_stages, read_record
from pelap.commands.paper_study import Cell, Study, load_study
from pelap.core import files
from pelap.core.errors import ConfigError
from pelap.core.paths import PaperPaths, RunPaths
from pelap.report.figures.style import to_png
from pelap.report.figures.training import epoch_curves
from workflow.studies.collapse import tables as controls
from workflow.studies.paper.tables import (
    ALL_MODELS,
    SECONDS,
    VALUE_COLUMNS,
    Part,
    ablation_figure,
    markdown,
    summarise,
)
from workflow.studies.seeds.tables import summarise as summarise_sweep
from workflow.studies.seeds.tables import sweep_figure

KEPT = (".csv", ".json", ".png", ".md", ".yaml")
"""Files that the archive takes; reports are pages of megabytes."""
MODEL_FOLDERS = ("model", "models")
MOST_CURVES = 6
"""Variants that a figure of curves has room for."""


def write_results(paths: PaperPaths, study: Study) -> None:
    """Write all tables, figures and the archive from what is finished under the root, of any data set."""
    cells = [cell for each in _studies(paths, study) for cell in each.cells]
    runs = {cell: _run(paths, cell) for cell in cells}
    done = {cell: finished_stages(cell, run) for cell, run in runs.items()}
    rows = [row for cell in cells for row in _values(cell, runs[cell], done[cell])]
    values = pd.DataFrame(rows, columns=VALUE_COLUMNS)
    parts = [_part(study, cell) for cell in cells if cell.seed == study.cells[0].seed]
    table = summarise(values, {(part.dataset, part.name): part.budget for part in parts})
    files.write_csv(paths.cells, values)
    files.write_csv(paths.table, table)
    files.write_json(paths.protocol, _protocol(study, parts, runs, done))
    figures = _write_figures(paths, parts, cells, runs, done, values)
    files.write_text(paths.page, markdown(table, parts, figures))
    _write_archive(paths, runs, done)


def _run(paths: PaperPaths, cell: Cell) -> RunPaths:
    return paths.cell(cell.dataset, cell.part, cell.seed)


def _studies(paths: PaperPaths, study: Study) -> Iterator[Study]:
    """This study, and the same one on the other data sets that were run under this root."""
    yield study
    for folder in sorted(paths.root.iterdir()):
        if folder.name != study.dataset and any(folder.glob("*/seed*/stages/*.json")):
            try:
                yield load_study(Path(study.source), folder.name)
            except ConfigError:
                continue  # the presets have forgotten this data set


def _values(cell: Cell, run: RunPaths, done: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Rows of `VALUE_COLUMNS`."""
    for stage in done:
        for model, metric, value in _values_of(stage, cell, run):
            yield cell.dataset, cell.part, cell.seed, model, metric, float("nan") if value is None else value
        seconds = read_record(cell, run, stage).seconds
        yield cell.dataset, cell.part, cell.seed, ALL_MODELS, f"{SECONDS}{stage}", seconds


def _values_of(stage: str, cell: Cell, run: RunPaths) -> Iterator[tuple[str, str, Any]]:
    """Model, metric and value of what a stage measured."""
    if stage == "train":
        for name in cell.params.variants:
            yield name, "predictor_params", _num_weights(run.train(name).model / "mask")
    elif stage == "collapse":
        for row in files.read_csv(run.collapse_table, ["variant"]).to_dict(orient="records"):
            name = str(row.pop("variant"))
            yield from ((name, str(key), value) for key, value in row.items() if not isinstance(value, str))
    elif stage == "score":
        protocol = files.read_mapping(run.score_protocol, ["variant"])
        yield protocol["variant"], "rank_correlation", protocol.get("rank_correlation")
    elif stage == "evaluate":
        for name, metrics in files.read_metrics(run.metrics).items():
            yield from ((name, metric, value) for metric, value in metrics.items())


def _num_weights(folder: Path) -> int | None:
    """How many weights a part of a model has; None where there is no such part."""
    parts = list(folder.glob("*.safetensors"))
    tensors = [tensor for file in parts for tensor in files.load_tensors(file)[0].values()]
    return sum(tensor.numel() for tensor in tensors if tensor.is_floating_point()) if parts else None


def _part(study: Study, cell: Cell) -> Part:
    """A part and what its numbers were made with, read off its parameters."""
    params, words = cell.params, [study.budget]
    train = params.train
    epoch = "all pictures in" if train.steps_per_epoch is None else f"{train.steps_per_epoch}"
    words.append(f"{train.epochs} epochs of {epoch} batches of {train.batch_size}")
    width = getattr(params.vae, "width", None)
    if width is not None:
        words.append(f"autoencoder of width {width}")
    if "distill" in cell.stages:
        words.append(f"{params.distill.steps} steps of distillation")
    if "evaluate" in cell.stages:
        words.append(f"{params.evaluate.num_images} samples")
    return Part(cell.dataset, cell.part, ", ".join(words))


def _protocol(
    study: Study, parts: Sequence[Part], runs: dict[Cell, RunPaths], done: dict[Cell, list[str]]
) -> dict[str, Any]:
    """What was run where, with what and for how long."""
    ran, per_seed = [], dict[str, float]()
    for cell, run in runs.items():
        for stage in done[cell]:
            record = read_record(cell, run, stage)
            place = {"dataset": cell.dataset, "part": cell.part, "seed": cell.seed, "stage": stage}
            ran.append(place | {"seconds": record.seconds, "cut_off": record.cut_off, **record.environment})
            key = f"{cell.dataset} seed {cell.seed}"
            per_seed[key] = per_seed.get(key, 0.0) + record.seconds
    return {
        "budget": study.budget,
        "parts": [part._asdict() for part in parts],
        "finished": sum(map(len, done.values())),
        "stages": sum(len(cell.stages) for cell in runs),
        "seconds_by_seed": per_seed,
        "ran": ran,
    }


def _write_figures(
    paths: PaperPaths,
    parts: Sequence[Part],
    cells: Sequence[Cell],
    runs: dict[Cell, RunPaths],
    done: dict[Cell, list[str]],
    values: pd.DataFrame,
) -> dict[Part, list[str]]:
    """Draw what there are numbers for; the paths of each part's figures, relative to the root."""
    written: dict[Part, list[str]] = {}
    with files.atomic_dir(paths.figures) as folder:
        for part in parts:
            own = [cell for cell in cells if (cell.dataset, cell.part) == (part.dataset, part.name)]
            rows = values[(values["dataset"] == part.dataset) & (values["part"] == part.name)]
            for kind, figure in _figures(own, runs, done, rows):
                file = paths.figures / f"{part.dataset}-{part.name}-{kind}.png"
                (folder / file.name).write_bytes(to_png(figure))
                written.setdefault(part, []).append(str(file.relative_to(paths.root)))
    return written


def _figures(
    cells: Sequence[Cell], runs: dict[Cell, RunPaths], done: dict[Cell, list[str]], values: pd.DataFrame
) -> Iterator[tuple[str, Figure]]:
    """The figures of a part."""
    collapsed = [cell for cell in cells if "collapse" in done[cell]]
    evaluated = [cell for cell in cells if "evaluate" in done[cell]]
    if collapsed and len(cells[0].params.variants) <= MOST_CURVES:
        epochs = files.read_csv(runs[collapsed[0]].collapse_epochs, ["variant", "epoch"])
        yield "epochs", epoch_curves(epochs, list(cells[0].params.variants))
    weights = lambdas(cells[0])
    if collapsed and weights:
        yield "lambda", ablation_figure(values, weights)
    if evaluated and cells[0].params.evaluate.models == "all":
        rows = values[values["model"] != ALL_MODELS].drop(columns="part")
        rows = rows[rows["seed"].isin([cell.seed for cell in evaluated])]
        yield "models", sweep_figure(summarise_sweep(rows), rows)
    elif evaluated and collapsed:
        yield "controls", _controls(values, cells[0])


def lambdas(cell: Cell) -> dict[str, float]:
    """The penalty of each variant of an ablation: variants that differ in it alone. Else nothing."""
    variants = cell.params.variants
    others = {repr(each.model_dump(exclude={"sparsity_weight"})) for each in variants.values()}
    weights = {name: each.weight(cell.params.lambda_) for name, each in variants.items()}
    alone = len(variants) > 1 and len(others) == 1 and len(set(weights.values())) == len(weights)
    return weights if alone and min(weights.values()) > 0 else {}


def _controls(values: pd.DataFrame, cell: Cell) -> Figure:
    """The figure of the collapse study."""
    rows = values[values["model"].isin(list(cell.params.variants))]
    rows = rows.rename(columns={"model": "control"})[controls.CELL_COLUMNS]
    floors = values[(values["model"] == "real") & (values["metric"] == controls.DISTANCE)]
    real = {str(name): float(own["value"].mean()) for name, own in floors.groupby("dataset")}
    return controls.study_figure(rows, controls.summarise(rows)[0], real)


def _write_archive(paths: PaperPaths, runs: dict[Cell, RunPaths], done: dict[Cell, list[str]]) -> None:
    """Pack the small files of what is finished, pictures of the first seed; same files, same archive."""
    own = [paths.table, paths.page, paths.cells, paths.protocol, *sorted(paths.figures.glob("*.png"))]
    first = min(cell.seed for cell in runs)
    packed = own + [
        file
        for cell, run in runs.items()
        for file in _small_files(run, done[cell])
        if file.suffix != ".png" or cell.seed == first  # pictures are most of the bytes
    ]
    with files.atomic_path(paths.archive) as partial, tarfile.open(partial, "w:xz", preset=1) as archive:
        for file in packed:
            content = file.read_bytes()
            entry = tarfile.TarInfo(str(Path("paper") / file.relative_to(paths.root)))
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, streams.BytesIO(content))


def _small_files(run: RunPaths, done: Iterable[str]) -> Iterator[Path]:
    """Parameters, records and tables of the finished stages, without models and pages."""
    for stage in done:
        yield run.record(stage)
        for file in sorted(run.stage(stage).rglob("*")):
            inside = file.relative_to(run.root).parts
            hidden = any(name.startswith(".") for name in inside)
            if file.is_file() and file.suffix in KEPT and not hidden and not set(inside) & {*MODEL_FOLDERS}:
                yield file
    if done:
        yield run.params
