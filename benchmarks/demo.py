"""How long `make demo` takes: a guess from two seconds of its training, or what each stage took and computed.

    python benchmarks/demo.py              # the guess
    python benchmarks/demo.py --measure    # times of every stage: results/bench/demo.json, which it goes by
    python benchmarks/demo.py --count      # operations of every stage, into the same file

A guess is the time measured there, scaled by how fast the variant `pelap` trains here and did there. It is of
params.yaml as committed, with nothing done before.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import ROOT
from torch.utils.flop_counter import FlopCounterMode
from training import Setting, take

from pelap.cli import main as pelap
from pelap.config import Params
from pelap.config.load import load_params, parse_overrides
from pelap.core import files
from pelap.core.device import choose_device, describe, keep_freed_memory
from pelap.core.terminal import duration, hidden

KEPT = ROOT / "results" / "bench" / "demo.json"


def images_per_s(params: Params, seconds: float = 2.0) -> float:
    """Of joint training, the first two steps, which warm up, left out."""
    device = choose_device("auto")
    if device.type == "cpu":
        keep_freed_memory()  # as `pelap train` does
    with tempfile.TemporaryDirectory() as folder, hidden():
        setting = Setting(params, 1024, params.download.image_size, device)
        precision = params.train.precision
        steps = setting.training(Path(folder) / "state", setting.numbers(precision=precision))
        take(steps, 2)
        started, num = time.monotonic(), 0
        while time.monotonic() - started < seconds:
            take(steps, 1)
            num += 1
        return num * params.train.batch_size / (time.monotonic() - started)


def stages(params: Params) -> dict[str, list[str]]:
    """What `dvc repro` runs, by a name."""
    each = {f"train {name}": ["train", "--variant", name] for name in params.variants}
    later = ("collapse", "score", "prune", "distill", "evaluate", "report")
    return {"download": ["download"], **each, **{stage: [stage] for stage in later}}


def measure(params: Params, overrides: list[str]) -> dict[str, Any]:
    """Seconds of every stage, start included, and what guesses go by."""
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in stages(params).items():
            started = time.monotonic()
            command = [sys.executable, "-m", "pelap", *_options(arguments, Path(folder), overrides)]
            subprocess.run(
                command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            rows[name] = {"seconds": round(time.monotonic() - started, 1)}
            print(f"{name:<16} {rows[name]['seconds']:6.1f} s", flush=True)
    return {
        "device": describe(choose_device("auto")),
        "precision": params.train.precision,
        "images_per_s": round(images_per_s(params), 1),
        "stages": rows,
    }


def count(params: Params, overrides: list[str]) -> dict[str, int]:
    """Billions of operations of every stage's products and convolutions; takes three times as long."""
    counted = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in stages(params).items():
            with FlopCounterMode(display=False) as counter, _silence():
                if pelap(_options(arguments, Path(folder), overrides)):
                    sys.exit(f"demo: {name} failed while its operations were counted")
            counted[name] = round(counter.get_total_flops() / 1e9)
    return counted


def _options(arguments: list[str], folder: Path, overrides: list[str]) -> list[str]:
    run = [] if arguments[0] == "download" else ["--run", str(folder / "run")]
    return [*arguments, *run, "--data", str(folder / "data"), *(["--set", *overrides] if overrides else [])]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", action="store_true", help="time every stage")
    parser.add_argument("--count", action="store_true", help="count the operations of every stage")
    parser.add_argument("--set", nargs="+", default=[], dest="overrides", metavar="KEY=VALUE")
    args = parser.parse_args(arguments)
    os.chdir(ROOT)
    params = load_params(ROOT / "params.yaml", overrides=parse_overrides(args.overrides))
    if args.measure:
        files.write_json(KEPT, measure(params, args.overrides))
    if args.count:
        kept = files.read_json(KEPT)
        for name, gflop in count(params, args.overrides).items():
            kept["stages"][name]["gflop"] = gflop
        files.write_json(KEPT, kept)
    if args.measure or args.count:
        return
    known = files.read_json(KEPT)
    there = sum(row["seconds"] for row in known["stages"].values())
    factor = known["images_per_s"] / images_per_s(params)
    print(f"the eight stages take about {duration(there * factor)} here, with nothing done before")


if __name__ == "__main__":
    main()
