"""The cells of a grid: run folders ``DATASET/seedN`` below one root, of tasks ``TASK/DATASET/seedN``."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pelap.config.load import read_yaml
from pelap.core import files
from pelap.core.errors import DataError
from pelap.core.paths import RunPaths

SEED = re.compile(r"seed(\d+)")
PATTERN = "*/seed*"
TASK_PATTERN = "*/*/seed*"
OWN = ("dataset", "seed")
"""Parameters in which the cells of a grid differ."""


def place_of(run: RunPaths) -> tuple[str, int]:
    """Data set and seed of a cell."""
    return run.root.parent.name, int(run.root.name.removeprefix("seed"))


def finished_cells(
    root: Path,
    needed: Callable[[RunPaths], Iterable[Path]],
    target: str,
    asked: Sequence[str] | None = None,
    pattern: str = PATTERN,
) -> list[RunPaths]:
    """The cells that a summary is of, by data set and seed: those asked for, or all that are finished.

    Of all, those that are not finished are named on the terminal, and so are those that were made of other
    code or files.

    Args:
        root: Of the grid.
        needed: Files that a finished cell has.
        target: Of Snakemake, which makes the cells.
        asked: Paths of cells from `root`.
        pattern: Where cells are without being asked for.

    Raises:
        DataError: There is none, one that was asked for is not finished, or cells of one data set were made
            with different parameters.
    """
    where = pattern.replace("*/*", "TASK/*").replace("seed*", "seedN").replace("*", "DATASET")
    for name in asked or ():
        if Path(name).is_absolute() or not _is_cell(Path(name), pattern):
            raise DataError(f"--cells: {name} is no {where} below {root}; correct it")
    folders = {root / name for name in asked} if asked else set(filter(Path.is_dir, root.glob(pattern)))
    runs = [RunPaths(folder) for folder in folders if _is_cell(folder.relative_to(root), pattern)]
    runs.sort(key=lambda run: (run.root.parent, place_of(run)))
    done = [run for run in runs if all(file.is_file() for file in needed(run))]
    unfinished = [str(run.root.relative_to(root)) for run in runs if run not in done]
    if asked and unfinished:
        raise DataError(f"--cells: not finished in {root}: {', '.join(unfinished)}; make or leave out these")
    if unfinished:
        print(f"not finished: {', '.join(unfinished)}")
    if not done:
        raise DataError(f"{root}: no finished {where} here; run `snakemake --cores 4 {target}` first")
    _demand_same_parameters(root, done)
    return done


def _is_cell(path: Path, pattern: str) -> bool:
    return len(path.parts) == len(Path(pattern).parts) and SEED.fullmatch(path.name) is not None


def _demand_same_parameters(root: Path, runs: Sequence[RunPaths]) -> None:
    """Refuse to average what was made differently; each data set may have parameters of its own."""
    others = _differences(root, runs, _parameters)
    if others:
        raise DataError(
            f"{root}: made with other parameters: {others}; name the cells that belong together with "
            "--cells, or make them anew"
        )
    others = _differences(root, runs, _keys)
    if others:
        print(f"made of other code or files, and taken together: {others}")


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
            keys = {key for key in {*ours, *theirs}.difference(OWN) if ours.get(key) != theirs.get(key)}
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
