"""What the benchmarks share: rows of the table, clocks in turns, arguments, and what is written.

A row compares one figure of ours with a reference, both taken in one process on one machine. Runs that are
compared take turns, round by round and in an order that is reversed every second round, so that a machine
that slows down or is shared slows all of them alike.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pelap.core.device import choose_device, describe, synchronise
from pelap.core.errors import PelapError
from pelap.core.files import write_json
from pelap.core.terminal import progress

ROOT = Path(__file__).resolve().parent.parent  # of the checkout

LESS_IS_BETTER = ("s", "MiB", "rows")
MORE_IS_BETTER = ("images/s", "GFLOP/s")  # units of a row, by the way that its ratio is taken


@dataclass(frozen=True)
class Entry:
    """A row of the table of benchmarks."""

    name: str
    ours: float
    reference: float
    ratio: float  # above 1 where ours is better, whatever the unit
    unit: str
    device: str
    versions: dict[str, str]


def compare(
    name: str,
    ours: float,
    reference: float,
    unit: str,
    device: torch.device,
    packages: Sequence[str] = ("torch", "diffusers"),
) -> Entry:
    """A row, with the ratio by its unit and the versions of what it depends on."""
    if unit not in LESS_IS_BETTER + MORE_IS_BETTER:
        raise ValueError(f"{name}: unknown unit {unit!r}; add it to one of the two lists")
    ratio = ours / reference if unit in MORE_IS_BETTER else reference / ours
    versions = {package: version(package) for package in packages}
    return Entry(name, float(ours), float(reference), ratio, unit, describe(device), versions)


def check_entries(value: object, source: str) -> list[Entry]:
    """Rows as they stand in JSON, back to rows.

    Raises:
        ValueError: They are no list of objects with just the right keys, or a number is no good; says where.
    """
    if not isinstance(value, list):
        raise ValueError(f"{source}: no list of rows; run the benchmark again")
    return [_entry(row, f"{source}, row {index}") for index, row in enumerate(value)]


def _entry(row: object, where: str) -> Entry:
    keys = [field.name for field in fields(Entry)]
    if not isinstance(row, dict) or list(row) != keys:
        raise ValueError(f"{where}: the keys are not {', '.join(keys)}; run the benchmark again")
    for key in ("ours", "reference", "ratio"):
        number = row[key]
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f"{where}: {key} is {number!r}, no number; run the benchmark again")
        if not (math.isfinite(number) and number > 0):
            raise ValueError(f"{where}: {key} is {number!r}, not above 0; run the benchmark again")
    return Entry(**row)


def seconds(function: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Time of one call on an idle device, and what it gave."""
    synchronise(device)
    start = time.perf_counter()
    result = function()
    synchronise(device)
    return time.perf_counter() - start, result


def in_turns(
    runs: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device, title: str, warmup: int = 1
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of every counted round of each, and its last result; the first `warmup` rounds do not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    results: dict[str, Any] = {}
    with progress(title, (warmup + rounds) * len(runs)) as report:
        for round_ in range(warmup + rounds):
            for done, name in enumerate(turn(list(runs), round_), start=1):
                elapsed, results[name] = seconds(runs[name], device)
                if round_ >= warmup:
                    times[name].append(elapsed)
                report(round_ * len(runs) + done, name)
    return times, results


def turn(names: list[str], round_: int) -> list[str]:
    """The order of a round."""
    return names[::-1] if round_ % 2 else names


def product_rate(device: torch.device, dtype: torch.dtype, tf32: bool = False, repeats: int = 8) -> float:
    """FLOP/s of large products, the best of several: what the machine can be hoped to reach.

    Of a square matrix product, or of a convolution (128 channels to as many, 3x3) where that is faster: the
    libraries differ, and matrix products do not reach a CPU's peak everywhere.
    """
    side = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    images = torch.randn(64, 128, 32, 32, device=device, dtype=dtype)
    weight = torch.randn(128, 128, 3, 3, device=device, dtype=dtype)
    images, weight = (each.to(memory_format=torch.channels_last) for each in (images, weight))
    products: dict[Callable[[], Any], float] = {
        lambda: left @ right: 2.0 * side**3,
        lambda: torch.nn.functional.conv2d(images, weight, padding=1): 2.0 * images.numel() * 9 * 128,
    }
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    try:
        return max(
            flops / min(seconds(product, device)[0] for _ in range(repeats))
            for product, flops in products.items()
        )
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def argument_parser(doc: str | None, rounds: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="turns that count [%(default)s]")
    parser.add_argument("--device", type=_device, default="auto", help="auto, cpu or cuda [%(default)s]")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="where the rows go as well")
    return parser


def _device(name: str) -> torch.device:
    try:
        return choose_device(name)
    except PelapError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def finish(entries: Sequence[Entry], checks: Mapping[str, Any], out: Path | None) -> list[Entry]:
    """Print rows with what speaks for them, and write the rows."""
    rows = [asdict(entry) for entry in entries]
    check_entries(rows, "result")
    print(json.dumps({"entries": rows, "checks": checks}, indent=2))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, rows)
    return list(entries)
