"""The golden run: every stage and the pipeline commands at a tiny size, and all numbers that they leave.

``python tests/golden/run.py`` compares with what is kept; ``--write`` keeps what there is now. A change that
is meant to change no result shows equal numbers on one machine before and after.
"""

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from ruamel.yaml import YAML

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from tiny import tiny_raw
from tiny_pipelines import tiny_dit

from pelap.cli import main

KEPT = Path(__file__).with_name("numbers.json")
TIMED = (
    "images_per_s",
    "latency",
    "_ms",
    "time_reduction",
    "latency_share",
    "replacement_share",
    "seconds",
    "macs_per",
    "memory",
    "disk",
    "cells",
    "steps_per",
)
"""Parts of the names of values that another run has otherwise."""
ABOUT = (
    "versions",
    "torch",
    "device",
    "processor",
    "revision",
    "package",
    "weights",
    "python",
    "platform",
    "num_threads",
    "table.sha256",
)
"""Of the machine and the code."""
CHANCE = ("_se", "_std", "recall", "precision", "density", "coverage", "kid")
"""What hangs on a rounding where pictures are few."""
METHODS = {
    "ld-pruner": {"criterion": "score", "selection": "lowest_first"},
    "taylor": {"criterion": "taylor", "selection": "lowest_first"},
}


def run(folder: Path) -> dict[str, Any]:
    """Run all commands in a folder; every number by file, row and column."""
    os.chdir(folder)
    torch.set_num_threads(1)  # as numbers.json was made, whatever the machine has
    params = tiny_raw(
        score__criteria=["random", "magnitude", "taylor", "output_error", "block_similarity"],
        prune__methods=METHODS,
        prune__single_operator_plans=1,
    )
    write(params, "params.yaml")
    for stage in ("download", "train", "collapse", "score", "prune", "distill", "evaluate", "report"):
        call(stage)
    call("cut", "--model", "results/default/train/invariant/model", "--out", "smaller")
    tiny_dit().save_pretrained("pipeline")
    methods = {"methods": {"ld-pruner": METHODS["ld-pruner"]}, "single_operator_plans": 0}
    write(tiny_raw(prune={**params["prune"], "num_params": 100, **methods}), "pipeline.yaml")
    pipeline = ("--params", "pipeline.yaml", "--pipeline")
    call("score", *pipeline, "pipeline", "--out", "scores.csv")
    call("prune", *pipeline, "pipeline", "--scores", "scores.csv", "--out", "small")
    return dict(table for table in tables(folder))


def write(params: Mapping[str, Any], name: str) -> None:
    with Path(name).open("w") as file:
        YAML().dump(dict(params), file)


def call(*argv: str) -> None:
    status = main(argv)
    if status:
        raise SystemExit(f"pelap {' '.join(argv)}: exit status {status}")


def tables(folder: Path) -> Iterator[tuple[str, dict[str, list[Any]]]]:
    """What the run decides: of every file its columns, or its keys, with all their values."""
    for path in sorted(folder.rglob("*.csv")):
        table = pd.read_csv(path)
        columns = {column: [plain(value) for value in table[column]] for column in table if decided(column)}
        yield str(path.relative_to(folder)), columns
    for path in sorted(folder.rglob("*.json")):
        if path.name == "digests.json":
            continue  # of weights, whose last digits are each processor's own
        if not {"model", "models", "pipeline", "unet", "vae", "scheduler", "transformer"} & set(path.parts):
            values = leaves("", json.loads(path.read_text()))
            kept = {name: [plain(value)] for name, value in values if decided(name)}
            yield str(path.relative_to(folder)), kept


def leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(f"{name}.{key}", inner)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from leaves(f"{name}.{place}", inner)
    else:
        yield name.removeprefix("."), value


def plain(value: Any) -> Any:
    """To nine digits; None for no number."""
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value


def decided(name: str) -> bool:
    """Whether values under a name are the same in every run on one machine."""
    return not any(word in name.casefold() for word in (*TIMED, *ABOUT))


def differences(now: Mapping[str, Any], kept: Mapping[str, Any], tolerance: float) -> list[str]:
    """What differs, a line each."""
    found = []
    for file in {**kept, **now}:
        mine, theirs = now.get(file, {}), kept.get(file, {})
        for column in {**theirs, **mine}:
            values, before = mine.get(column, []), theirs.get(column, [])
            loose = tolerance if not any(word in column for word in CHANCE) else 1e4 * tolerance
            if len(values) != len(before) or not all(map(partial(same, tolerance=loose), values, before)):
                found.append(f"{file}: {column}: {before} was kept, now {values}")
    return found


def same(now: Any, kept: Any, tolerance: float) -> bool:
    if isinstance(now, int | float) and isinstance(kept, int | float):
        return math.isclose(now, kept, rel_tol=tolerance, abs_tol=tolerance)
    return bool(now == kept)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep what there is now")
    parser.add_argument("--kept", type=Path, default=KEPT, metavar="FILE", help="[%(default)s]")
    parser.add_argument(
        "--tolerance", type=float, default=1e-6, help="relative; another machine needs 0.01 [%(default)s]"
    )
    args = parser.parse_args()
    kept = args.kept.resolve()
    with tempfile.TemporaryDirectory() as folder:
        found = json.loads(json.dumps(run(Path(folder))))
    if args.write:
        lines = [f"{json.dumps(file)}: {json.dumps(columns)}" for file, columns in found.items()]
        kept.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        raise SystemExit
    lines = differences(found, json.loads(kept.read_text()), args.tolerance)
    print(*lines, f"{len(lines)} of {sum(map(len, found.values()))} columns differ", sep="\n")
    raise SystemExit(bool(lines))
