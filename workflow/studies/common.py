"""What every study is made of: finished cells, one long table of their figures, statistics over seeds.

A cell is a run folder ``DATASET/seedN`` below a study's root, of tasks and parts ``NAME/DATASET/seedN``. A
long table has a value a row: dataset, seed, model, metric, value, and what else tells its rows apart.
"""

import argparse
import importlib
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from pelap.commands.ending import end_of
from pelap.config.yaml import read_yaml
from pelap.core import files
from pelap.core.digests import demand_unchanged
from pelap.core.errors import DataError
from pelap.core.names import is_made_name
from pelap.core.paths import REAL_ROW, RunPaths
from pelap.report.figures.style import MUTED, legend, literal, panels, to_png
from pelap.report.tables import MINUS, PRUNED, is_distance

SEED = re.compile(r"seed(\d+)")
CELLS, NAMED_CELLS = "DATASET/seedN", "TASK/DATASET/seedN"  # where the cells are below a study's root
LONG = ["dataset", "seed", "model", "metric", "value"]
_OWN = ("dataset", "seed")  # parameters in which the cells of a grid differ


def command_line(package: str) -> None:
    """``python -m workflow.studies.NAME --root DIR --cells ...``: summarise a study."""
    study = importlib.import_module(package)
    parser = argparse.ArgumentParser(prog=f"python -m {package}", description=study.__doc__)
    parser.add_argument("--root", type=Path, default=Path(study.ROOT), metavar="DIR", help="[%(default)s]")
    parser.add_argument("--cells", nargs="+", metavar="CELL", help="these alone [all finished ones]")
    args = parser.parse_args()

    def run() -> int:
        importlib.import_module(f"{package}.summarise").summarise(args.root, args.cells)
        return 0

    parser.exit(end_of(run, resumes=False))


def place_of(run: RunPaths) -> tuple[str, int]:
    """Data set and seed of a cell."""
    return run.root.parent.name, int(run.root.name.removeprefix("seed"))


def finished_cells(
    root: Path, needs: Iterable[str], target: str, asked: Sequence[str] | None = None, where: str = CELLS
) -> list[RunPaths]:
    """The cells that a summary is of, by data set and seed: those asked for, or all that are finished.

    Of all, those that are not finished are named on the terminal, and so are those that were made of other
    code or files.

    Args:
        root: Of the grid.
        needs: Files that a finished cell has, by their names in `RunPaths`.
        target: Of Snakemake, which makes the cells.
        asked: Paths of cells from `root`.
        where: What such a path looks like.

    Raises:
        DataError: There is none, one that was asked for is not finished, or cells of one data set were made
            with different parameters.
    """
    for name in asked or ():
        if Path(name).is_absolute() or not _is_cell(Path(name), where):
            raise DataError(f"--cells: {name} is no {where} below {root}; correct it")
    there = filter(Path.is_dir, root.glob("*/" * where.count("/") + "seed*"))
    folders = {root / name for name in asked} if asked else set(there)
    runs = [RunPaths(folder) for folder in folders if _is_cell(folder.relative_to(root), where)]
    runs.sort(key=lambda run: (run.root.parent, place_of(run)))
    done = [run for run in runs if all(getattr(run, name).is_file() for name in needs)]
    unfinished = ", ".join(str(run.root.relative_to(root)) for run in runs if run not in done)
    if asked and unfinished:
        raise DataError(f"--cells: not finished in {root}: {unfinished}; make or leave out these")
    if unfinished:
        print(f"not finished: {unfinished}")
    if not done:
        raise DataError(f"{root}: no finished {where} here; run `snakemake --cores 4 {target}` first")
    for run in done:
        for stage in ("collapse", "score", "prune", "distill", "evaluate"):
            demand_unchanged(run.stage(stage))
        _demand_own_seed(run)
    others = _differences(root, done, _parameters)
    if others:
        raise DataError(
            f"{root}: made with other parameters: {others}; name the cells that belong together with "
            "--cells, or make them anew"
        )
    others = _differences(root, done, _keys)
    if others:
        print(f"made of other code or files, and taken together: {others}")
    return done


def _demand_own_seed(run: RunPaths) -> None:
    """Refuse a cell whose folder is named after another seed than it was measured with: a copy, say."""
    protocol = run.evaluate_protocol
    seed = files.read_mapping(protocol).get("seed") if protocol.is_file() else None
    if seed not in (None, place_of(run)[1]):
        raise DataError(f"{protocol}: is of seed {seed}; make this cell again, or call its folder seed{seed}")


def _is_cell(path: Path, where: str) -> bool:
    as_deep = len(path.parts) == where.count("/") + 1 and all(map(is_made_name, path.parts))
    return as_deep and SEED.fullmatch(path.name) is not None


def _differences(
    root: Path, runs: Iterable[RunPaths], stated: Callable[[RunPaths], Mapping[str, Mapping[str, Any]]]
) -> str:
    """What each cell states otherwise than the first of its data set that says something of the stage."""
    first: dict[tuple[Path, str], tuple[str, Mapping[str, Any]]] = {}
    others: dict[str, set[str]] = {}
    for run in runs:
        name = str(run.root.relative_to(root))
        for stage, ours in stated(run).items():
            base, theirs = first.setdefault((run.root.parent, stage), (name, ours))
            keys = {key for key in {*ours, *theirs}.difference(_OWN) if ours.get(key) != theirs.get(key)}
            if keys:
                others.setdefault(f"{name} than {base}", set()).update(keys)
    return ", ".join(f"{pair} ({', '.join(sorted(keys))})" for pair, keys in others.items())


def _parameters(run: RunPaths) -> dict[str, Mapping[str, Any]]:
    """What the stages of a cell were run with, by the stage's file; nothing where nobody wrote it down."""
    sources = [*sorted(run.stage_params.glob("*.yaml")), *filter(Path.is_file, [run.params])]
    parsed = {file.stem: _parsed(file) for file in sources}
    found = {stage: given for stage, given in parsed.items() if isinstance(given, Mapping)}
    trained = [stage for stage in found if stage.startswith("train-")]
    if trained and "variants" not in found.get("evaluate", {}):  # which knows better what is left over
        found["all"] = {"trained variants": trained}
    return found


def _keys(run: RunPaths) -> dict[str, Mapping[str, Any]]:
    """Digests of what the stages of a cell were made of, where Snakemake wrote them down."""
    return {file.stem: files.read_mapping(file) for file in sorted(run.stage_params.glob("*.key"))}


def _parsed(file: Path) -> Any:
    """JSON, as sweeps write it, is read many times faster as such."""
    try:
        return files.read_json(file)
    except DataError:
        return read_yaml(file)


def demand_alike(stated: Mapping[RunPaths, Mapping[str, Any]]) -> None:
    """Refuse cells whose numbers do not compare: each has to state what the first of them does."""
    (first, expected), *others = stated.items()
    for run, own in others:
        names = [key for key, value in own.items() if value != expected[key]]
        if names:
            raise DataError(
                f"{run.evaluate_protocol}: another {' and '.join(names)} than in "
                f"{first.evaluate_protocol}; evaluate both alike"
            )


@dataclass(frozen=True)
class PrunedCell:
    """What a cell's evaluation says of a dense model, and of what pruning made of it."""

    dataset: str
    seed: int
    metric: str  # the first Frechet distance, by which models are compared
    dense: str  # the variant that was pruned
    metrics: Mapping[str, Mapping[str, float | None]]
    plans: Mapping[str, Mapping[str, Any]]  # what each plan gave, as in `prune/result.json`

    def value(self, model: str | None, metric: str) -> float:
        """A metric of a model, NaN where there is none."""
        found = None if model is None else self.metrics.get(model, {}).get(metric)
        return np.nan if found is None else found


def pruned_cell(
    run: RunPaths, students: Iterable[str], keys: Iterable[str], null: Iterable[str] = ()
) -> dict[str, Any]:
    """The fields of `PrunedCell`, where every model and all these `students` have its distance.

    Raises:
        DataError: One line: what is missing where; of a plan one of `keys`, or of `null`, where null will do.
    """
    dense = files.read_mapping(run.evaluate_protocol, ["scored_variant"])["scored_variant"]
    metrics = files.read_metrics(run.metrics)
    if not isinstance(dense, str):
        raise DataError(f"{run.evaluate_protocol}: names no scored variant; evaluate again with models: all")
    metric = next((name for name in metrics.get(dense, {}) if is_distance(name)), None)
    if metric is None:
        raise DataError(f"{run.metrics}: no Frechet distance of {dense}; evaluate again with models: all")
    plans = files.read_mappings(run.prune_result, (*keys, *null), "prune again")
    for plan, result in plans.items():
        absent = [key for key in keys if result[key] is None]
        if absent:
            raise DataError(f"{run.prune_result}: {plan}: lacks {', '.join(absent)}; prune again")
    wanted = [dense, *(f"{PRUNED}-{plan}" for plan in plans), *students]
    absent = [name for name in wanted if metrics.get(name, {}).get(metric) is None]
    if absent:
        raise DataError(f"{run.metrics}: lacks {metric} of {', '.join(absent)}; evaluate again")
    dataset, seed = place_of(run)
    return dict(dataset=dataset, seed=seed, metric=metric, dense=dense, metrics=metrics, plans=plans)


def long_table(run: RunPaths, values: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Values by model and metric of one cell as a table with the columns `LONG`."""
    rows = [
        (*place_of(run), model, metric, value)
        for model, own in values.items()
        for metric, value in own.items()
    ]
    return pd.DataFrame(rows, columns=LONG).astype({"value": float})


def of_dataset(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of one data set."""
    return table[table["dataset"] == name]


def real_distance(cells: pd.DataFrame, metric: str) -> dict[str, float]:
    """Distance of real pictures by data set, mean over seeds of a long table."""
    rows = cells[(cells["model"] == REAL_ROW) & (cells["metric"] == metric)]
    return {str(name): float(own["value"].mean()) for name, own in rows.groupby("dataset")}


def over_seeds(table: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Mean, standard deviation (of a sample) and number of seeds of a long table.

    Returns:
        Columns `keys` (which tell rows apart, beside the seed), mean, std (NaN of a single seed), n: a row a
        group, in order of appearance. Missing and infinite values are not counted.
    """
    groups = table[np.isfinite(table["value"])].groupby(list(keys), sort=False)["value"]
    rows = [(*names, own.mean(), own.std(), len(own)) for names, own in groups]
    return pd.DataFrame(rows, columns=[*keys, "mean", "std", "n"])


def wide_over_seeds(
    table: pd.DataFrame, keys: Sequence[str], columns: Sequence[str], counted: str
) -> pd.DataFrame:
    """The same of several columns: `keys`, n of `counted`, ``<column>_mean`` and ``<column>_std`` of each."""
    moments = [(name, end) for name in columns for end in ("mean", "std")]
    rows = [
        [*names, own[counted].count(), *(getattr(own[name], end)() for name, end in moments)]
        for names, own in table.groupby(list(keys), sort=False)
    ]
    return pd.DataFrame(rows, columns=[*keys, "n", *map("_".join, moments)])


def say_incomplete(table: pd.DataFrame, keys: Sequence[str]) -> None:
    """Name what some seeds of a place have a value of and others have not; it counts where it is there.

    Args:
        table: Long.
        keys: Columns that tell its rows apart beside seed and metric: those of the place, then the model's.
    """
    there = table[np.isfinite(table["value"])]
    seeds = {place: set(own["seed"]) for place, own in table.groupby(list(keys[:-1]))}
    lacking: dict[str, list[str]] = {}
    for (*names, metric), own in there.groupby([*keys, "metric"], sort=False):
        missing = sorted(seeds[tuple(names[:-1])] - set(own["seed"]))
        if missing:
            where = f"{' '.join(map(str, names))}: nothing at seed {', '.join(map(str, missing))}"
            lacking.setdefault(where, []).append(str(metric))
    for where, metrics in lacking.items():
        print(f"{where} of {', '.join(metrics)}")


def panel_grid(
    rows: Iterable[Any], columns: Iterable[Any], size: tuple[float, float], sharey: bool = False
) -> tuple[Figure, list[tuple[Axes, Any, Any]]]:
    """A figure with a panel for each row and column: its axis, and what it is of."""
    rows, columns = list(rows), list(columns)
    figure, axes = panels(len(columns), size, rows=len(rows), sharey=sharey)
    places = itertools.product(rows, columns)
    return figure, [(axis, row, column) for axis, (row, column) in zip(axes, places, strict=True)]


def legend_below(figure: Figure, handles: Sequence[Any], ncols: int, **look: Any) -> None:
    """One legend of all panels."""
    legend(figure, handles=handles, loc="outside lower center", ncols=ncols, **look)


def mark(label: str, **look: Any) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], label=literal(label), **({"linestyle": "none", "color": MUTED} | look))


def around_zero(axis: Axes, which: str, linear: float, room: float, ticks: Sequence[float]) -> None:
    """An axis with plain numbers that is logarithmic beyond `linear` to either side of 0.

    Args:
        axis: Where to draw.
        which: ``x`` or ``y``.
        linear: Where the logarithmic parts begin.
        room: Of each half of the linear part, in decades.
        ticks: Above 0, rising; they are mirrored.
    """
    getattr(axis, f"set_{which}scale")("symlog", linthresh=linear, linscale=room)
    side = axis.xaxis if which == "x" else axis.yaxis
    side.set_major_locator(FixedLocator([*(-tick for tick in reversed(ticks)), 0.0, *ticks]))
    side.set_minor_locator(NullLocator())
    side.set_major_formatter(lambda value, _: f"{value:g}".replace("-", MINUS))


def seed_dots(
    axis: Axes, place: float, values: Sequence[float], mean: float, std: Any, gap: float = 0.3, **look: Any
) -> None:
    """A row of a dot plot: the seeds, and just below them mean and standard deviation.

    Args:
        axis: Its vertical axis runs down, a row a unit.
        place: Of the row.
        values: Of the seeds.
        mean: None is drawn of NaN.
        std: Length of the bars, or one of each; none are drawn of what is not finite.
        gap: Between the seeds and the mean.
        look: Of the mean: color, marker, markerfacecolor, and what else `errorbar` takes.
    """
    look = {"markersize": 7, "markeredgewidth": 1.5, "capsize": 3, "elinewidth": 1.5} | look
    axis.plot(values, [place - gap * 2 / 3] * len(values), "o", color=look["color"], alpha=0.6,
              markersize=0.6 * look["markersize"], markeredgewidth=0)  # fmt: skip
    if np.isfinite(mean):
        axis.errorbar(mean, place + gap / 3, xerr=std if np.isfinite(std).all() else None, **look)


def rows_down(axis: Axes, labels: Sequence[str]) -> None:
    """A vertical axis of named rows, the first at the top."""
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")


def write_figure(file: Path, figure: Figure) -> None:
    """A PNG under its final name, whole."""
    with files.atomic_path(file) as partial:
        partial.write_bytes(to_png(figure))
