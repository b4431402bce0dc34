"""Every benchmark, one after the other, and one table of them all.

    python benchmarks [--only NAME...] [--quick] [--device cpu] [--out results/bench]
    python benchmarks --gpu-check [--only NAME...] [--quick] [--out results/gpu-check]

Each runs in a process of its own, so that one that fails costs no other its rows; what failed is said in a
line, and the exit status is 1. Their rows go to bench.json and table.md, the output of each to the folder
`parts`, and what the machine should do to roofline.md. With --only, rows of the others are kept from `parts`.

--gpu-check is for a GPU that is lent for minutes: the tests marked gpu, training in every execution, scoring,
sampling, memory, kernels of a step by kind, and three epochs of `pelap paper`, in eight minutes at most. Each
part has a limit of its own. After each, check.md says how all ended so far, and one archive beside the folder
holds everything. It needs what docs/paper.md lists, and pytest; nothing is installed or downloaded.
"""

import argparse
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SECONDS_FOR_ONE = 530  # after which a benchmark has failed
SECONDS_FOR_CHECK = 460  # of all parts of a check; tables and the archive take the rest of eight minutes
LARGEST_LOG = 2**18  # bytes of its end that are kept in a check: the archive is carried home
HEAVY = (".safetensors", ".lock")  # stays where it is: weights and the data set
BENCHMARKS = {
    "training": [],
    "sampling": [],
    "scoring": ["--rounds", "1", "--every", "3"],
    "frechet": ["--images", "64", "--rounds", "1", "--counts", "1500", "500"],
    "memory": [],
}
"""What gives rows, with the sizes that a few minutes allow."""
QUICK = {
    "training": ["--rounds", "1", "--steps", "1", "--ablation-steps", "1", "--pictures", "1024"],
    "sampling": ["--rounds", "1", "--steps", "2", "--images", "16"],
    "scoring": ["--rounds", "1", "--steps", "2", "--every", "30", "--latents", "8", "--rows", "32"],
    "frechet": ["--rounds", "1", "--images", "4", "--counts", "64"],
    "memory": ["--pictures", "1024", "--steps", "1", "--images", "64", "--reference", "128"],
    "roofline": ["--rounds", "1", "--every", "40", "--images", "16", "--rows", "32"],
}
"""The least that shows whether all of it runs."""
NEEDS = {"frechet": "torch_fidelity"}
"""Packages that are no dependencies: a benchmark is left out where its own is missing."""
ROOFLINE, TESTS, PAPER = "roofline", "tests", "paper"


class Part(NamedTuple):
    """What a process runs, and how long it may take."""

    words: list[str]  # behind the interpreter
    seconds: float


class End(NamedTuple):
    """How a part ended."""

    problem: str | None  # in a line
    seconds: float
    last_line: str  # of what it printed


CHECK = {TESTS: 90, "training": 130, ROOFLINE: 60, "scoring": 60, "sampling": 40, "memory": 80, PAPER: 90}
"""Parts of a check with their limits in seconds, in their order: what says most comes first."""
CHECKED = {"training": ["--compiled", "--rounds", "3", "--steps", "50", "--ablation-steps", "0"]}
STUDY = """\
# Three epochs of the paper's own training, on as many pictures of its size that need no download.
dataset: photos
seeds: [0]
budget: three epochs, for the time alone
parts:
  pelap-a:
    preset: {preset}
    stages: [train]
    variants: [pelap]
    set:
      train.epochs: 3
      train.precision: auto
      train.steps_per_epoch: {steps}
      train.num_validation: {validated}
      download.image_size: 32
      download.photos.train_per_photo: {pictures}
      download.photos.test_per_photo: {validated}
"""


def benchmark(name: str, options: Sequence[str], args: argparse.Namespace, seconds: float) -> Part:
    """One that gives rows, or the roofline."""
    words = [str(HERE / f"{name}.py"), "--device", args.device, "--out", str(rows_file(args.out, name))]
    tables = ["--tables", str(args.out / "roofline.md")] if name == ROOFLINE else []
    return Part([*words, *tables, *options], seconds)


def rows_file(out: Path, name: str) -> Path:
    return out / "parts" / f"{name}.json"


def all_benchmarks(args: argparse.Namespace) -> dict[str, Part]:
    sizes = QUICK if args.quick else BENCHMARKS
    return {
        name: benchmark(name, sizes.get(name, []), args, SECONDS_FOR_ONE) for name in (*BENCHMARKS, ROOFLINE)
    }


def check(args: argparse.Namespace) -> dict[str, Part]:
    """The parts of --gpu-check; the folder gets the study that is one of them."""
    study, paper = args.out / "parts" / "paper.yaml", args.out / "parts" / "paper"
    sizes = {"pictures": 6250, "steps": "null", "validated": 1250}  # of each of eight photographs
    if args.quick:
        sizes = {"pictures": 64, "steps": 2, "validated": 16}
    shutil.rmtree(paper, ignore_errors=True)  # what is finished there would not be run again
    preset = os.path.relpath(ROOT / "presets" / "pelap-a.yaml", study.parent)
    study.write_text(STUDY.format(preset=preset, **sizes))
    tests = [*("-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"), "--rootdir", str(ROOT)]
    places = ["--study", str(study), "--root", str(paper), "--data", str(args.out / "parts")]
    others = {
        TESTS: [*tests, str(ROOT / "tests")],
        PAPER: ["-m", "pelap", "paper", *places, "--device", args.device],
    }
    return {
        name: Part(others[name], seconds)
        if name in others
        else benchmark(name, (QUICK if args.quick else CHECKED).get(name, []), args, seconds)
        for name, seconds in CHECK.items()
    }


def run(part: Part, log: Path) -> End:
    """Run a part to its end or its limit; the log stays."""
    paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    start, problem = time.monotonic(), None
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *part.words],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            problem = "failed" if process.wait(part.seconds) else None
        except subprocess.TimeoutExpired:
            problem = f"took more than {part.seconds:.0f} s"
        finally:  # with the processes that it started, also where this one is interrupted
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    lines = log.read_text(errors="replace").strip().splitlines()
    last = lines[-1] if lines else f"exit status {process.returncode}"
    return End(last if problem == "failed" else problem, time.monotonic() - start, last)


def table(names: Sequence[str], out: Path) -> str | None:
    """Rows of all benchmarks that have some to one table; what was wrong, or None."""
    rows = [str(rows_file(out, name)) for name in names if name in BENCHMARKS]
    there = [file for file in rows if Path(file).is_file()]
    if not there:
        return "no benchmark has rows"
    part = Part([str(HERE / "table.py"), "--out", str(out), *there], SECONDS_FOR_ONE)
    return run(part, out / "parts" / "table.log").problem


def sum_up(ends: Mapping[str, End], args: argparse.Namespace) -> None:
    """How every part of a check ended, with the rows so far, as check.md and in an archive."""
    lines = ["| part | seconds | end |", "|---|--:|---|"]
    for name, end in ends.items():
        said = end.last_line[:200] if name in (TESTS, PAPER) else "done"
        lines.append(f"| {name} | {end.seconds:.0f} | {end.problem or said} |")
        log = args.out / "parts" / f"{name}.log"
        if log.is_file():
            log.write_bytes(log.read_bytes()[-LARGEST_LOG:])
    if table(list(ends), args.out) is None:
        lines += ["", (args.out / "table.md").read_text().strip()]
    (args.out / "check.md").write_text("\n".join(lines) + "\n")
    packed = args.out.with_name(f".{args.out.name}.partial")
    with tarfile.open(packed, "w:xz") as archive:
        archive.add(args.out, args.out.name, filter=lambda info: None if info.name.endswith(HEAVY) else info)
    os.replace(packed, args.out.with_name(f"{args.out.name}.tar.xz"))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(dict.fromkeys([*BENCHMARKS, *CHECK]))
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--quick", action="store_true", help="tiny sizes: it shows what runs, not how fast")
    parser.add_argument("--gpu-check", action="store_true", help="what a GPU should show, in eight minutes")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda [%(default)s]")
    parser.add_argument("--out", type=Path, metavar="DIR", help="[results/bench; results/gpu-check]")
    args = parser.parse_args()
    args.out = args.out or ROOT / "results" / ("gpu-check" if args.gpu_check else "bench")
    (args.out / "parts").mkdir(parents=True, exist_ok=True)
    parts = (check if args.gpu_check else all_benchmarks)(args)
    if absent := [name for name in args.only or () if name not in parts]:
        parser.error(f"--only: {', '.join(absent)} is none of {', '.join(parts)}")
    ends: dict[str, End] = {}
    until = time.monotonic() + SECONDS_FOR_CHECK
    for name in args.only or parts:
        package = NEEDS.get(name)
        if package and importlib.util.find_spec(package) is None:
            print(f"{name}: left out, {package} is not installed", file=sys.stderr)
            continue
        # Rows of an earlier run must not pass for this one's.
        rows_file(args.out, name).unlink(missing_ok=True)
        part, left = parts[name], until - time.monotonic()
        if args.gpu_check:
            part = part._replace(seconds=min(part.seconds, left))
        log = args.out / "parts" / f"{name}.log"
        ends[name] = run(part, log) if part.seconds > 1 else End("no time was left", 0, "")
        problem = ends[name].problem
        words = f"failed: {problem}; see {log}" if problem else "done"
        print(f"{name}: {words} ({ends[name].seconds:.0f} s)", file=sys.stderr, flush=True)
        if args.gpu_check:
            sum_up(ends, args)
    failed = any(end.problem for end in ends.values())
    if args.gpu_check:
        print((args.out / "check.md").read_text(), flush=True)
        return int(failed)
    problem = table(list(BENCHMARKS), args.out)
    if problem:
        print(f"table: {problem}", file=sys.stderr)
    print((args.out / "table.md").read_text() if problem is None else "", flush=True)
    return int(failed or problem is not None)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # `run` ends what it started
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept", file=sys.stderr)
        raise SystemExit(130) from None
