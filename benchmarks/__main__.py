"""Every benchmark, one after the other, and one table of them all.

    python benchmarks [--only NAME...] [--quick] [--device cpu] [--out results/bench]

Each runs in a process of its own, so that one that fails costs no other its rows; what failed is said in a
line, and the exit status is 1. Their rows go to bench.json and table.md, the output of each to the folder
`parts`, and what the machine should do to roofline.md. With --only, rows of the others are kept from `parts`.
"""

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SECONDS_FOR_ONE = 530  # after which a benchmark has failed
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
ROOFLINE = "roofline"


def run(name: str, options: list[str], log: Path) -> str | None:
    """Run a benchmark; what was wrong, in a line, or None."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    }
    command = [sys.executable, str(HERE / f"{name}.py"), *options]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            status = process.wait(SECONDS_FOR_ONE)
        except subprocess.TimeoutExpired:
            return f"took more than {SECONDS_FOR_ONE} s"
        finally:  # with the processes that it started, also where this one is interrupted
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if status == 0:
        return None
    lines = log.read_text().strip().splitlines()
    return lines[-1] if lines else f"exit status {status}"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*BENCHMARKS, ROOFLINE]
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names)
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: it shows what runs, not how fast")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda [%(default)s]")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "bench", metavar="DIR")
    args = parser.parse_args()
    parts = args.out / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    failed, sizes = False, QUICK if args.quick else BENCHMARKS
    for name in args.only:
        package = NEEDS.get(name)
        if package and importlib.util.find_spec(package) is None:
            print(f"{name}: left out, {package} is not installed", file=sys.stderr)
            continue
        options = ["--device", args.device, "--out", str(parts / f"{name}.json"), *sizes.get(name, [])]
        if name == ROOFLINE:
            options += ["--tables", str(args.out / "roofline.md")]
        (parts / f"{name}.json").unlink(
            missing_ok=True
        )  # rows of an earlier run must not pass for this one's
        start, log = time.monotonic(), parts / f"{name}.log"
        problem = run(name, options, log)
        failed = failed or problem is not None
        words = f"failed: {problem}; see {log}" if problem else "done"
        print(f"{name}: {words} ({time.monotonic() - start:.0f} s)", file=sys.stderr, flush=True)
    files = [str(path) for name in BENCHMARKS if (path := parts / f"{name}.json").is_file()]
    if files:
        problem = run("table", ["--out", str(args.out), *files], parts / "table.log")
        if problem:
            print(f"table: {problem}", file=sys.stderr)
        print((args.out / "table.md").read_text() if problem is None else "", flush=True)
    return int(failed or not files or problem is not None)


if __name__ == "__main__":
    raise SystemExit(main())
