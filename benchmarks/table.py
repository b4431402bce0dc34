"""Rows of several benchmarks to one list in JSON and one table in Markdown.

python benchmarks/table.py --out DIR FILE.json...
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from harness import Entry, check_entries

from pelap.core.files import atomic_path, write_json


def markdown(entries: Sequence[Entry]) -> str:
    """The table, with where it was measured below it."""
    lines = ["| what | ours | reference | unit | ratio |", "|---|---|---|---|---|"]
    for entry in entries:
        numbers = f"{_number(entry.ours)} | {_number(entry.reference)} | {entry.unit} | {entry.ratio:.2f}"
        lines.append(f"| {entry.name} | {numbers} |")
    devices = sorted({entry.device for entry in entries})
    versions = sorted({f"{name} {number}" for entry in entries for name, number in entry.versions.items()})
    lines += ["", f"A ratio above 1 means ours is better. {'; '.join(devices)}; {', '.join(versions)}."]
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def main(arguments: Sequence[str] | None = None) -> list[Entry]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    args = parser.parse_args(arguments)
    entries = [
        entry for file in args.files for entry in check_entries(json.loads(file.read_text()), str(file))
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "bench.json", [asdict(entry) for entry in entries])
    with atomic_path(args.out / "table.md") as partial:
        partial.write_text(markdown(entries))
    print(markdown(entries))
    return entries


if __name__ == "__main__":
    main()
