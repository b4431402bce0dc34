"""Faults by chance: `python tests/faults --seed 1 --count 100 --only kill`; exit status 1 where one shows."""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1] / "helpers")]

from disturbances import full_disk, kill, pair  # noqa: E402 (found in the folders above)
from hostile import hostile  # noqa: E402
from inputs import artefacts, parameters  # noqa: E402
from world import World  # noqa: E402

KINDS = {f.__name__: f for f in (kill, pair, full_disk, parameters, artefacts, hostile)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=20, help="trials of each kind")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=[*KINDS])
    parser.add_argument("--jobs", nargs="+", help="of these alone [all]")
    parser.add_argument("--first", type=int, default=0, help="number of the first trial, to see one again")
    args = parser.parse_args()
    found = 0
    with tempfile.TemporaryDirectory(prefix="pelap-faults-") as root:
        world = World.make(Path(root) / "world", args.jobs)
        for kind in args.only:
            begun, seen = time.monotonic(), 0
            for number in range(args.first, args.first + args.count):
                place = Path(root) / "trial"
                problems = KINDS[kind](world, random.Random(f"{args.seed} {kind} {number}"), place / "place")
                shutil.rmtree(place)
                for problem in problems:
                    print(f"{kind} {args.seed} {number}: {problem}", flush=True)
                seen += bool(problems)
            found += seen
            said = {"kind": kind, "seed": args.seed, "trials": args.count, "with_faults": seen}
            print(json.dumps(said | {"seconds": round(time.monotonic() - begun)}), flush=True)
    return found > 0


if __name__ == "__main__":
    raise SystemExit(main())
