"""The cells of a grid: run folders ``DATASET/seedN`` below one root."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from pelap.errors import DataError
from pelap.paths import RunPaths

SEED = re.compile(r"seed(\d+)")


def place_of(run: RunPaths) -> tuple[str, int]:
    """Data set and seed of a cell."""
    return run.root.parent.name, int(run.root.name.removeprefix("seed"))


def finished_cells(root: Path, needed: Callable[[RunPaths], Iterable[Path]], target: str) -> list[RunPaths]:
    """The finished cells by data set and seed; the others are named on the terminal.

    Args:
        root: Of the grid.
        needed: Files that a finished cell has.
        target: Of Snakemake, which makes the cells.

    Raises:
        DataError: There is none.
    """
    folders = [folder for folder in root.glob("*/seed*") if SEED.fullmatch(folder.name)]
    runs = sorted((RunPaths(folder) for folder in folders), key=place_of)
    done = [run for run in runs if all(file.is_file() for file in needed(run))]
    if not done:
        raise DataError(f"{root}: no finished DATASET/seedN here; run `snakemake --cores 4 {target}` first")
    unfinished = [str(run.root.relative_to(root)) for run in runs if run not in done]
    if unfinished:
        print(f"not finished: {', '.join(unfinished)}")
    return done
