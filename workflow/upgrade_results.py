"""Results of version 0.1 under the names of today: ``python -m workflow.upgrade_results results``.

Columns, keys and names of rows are written anew; no number is touched. What is named already is left alone.
"""

import argparse
import csv
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pelap.config.upgrade import KEYS, ROWS, VALUES, renamed_steps

COLUMNS = KEYS["info"]  # of tables: they have what a model folder says of itself
PROTOCOLS = KEYS["score"] | KEYS["evaluate"]
"""Keys of protocols; `start` is that of a score, and stays that of a student."""
IN_PROTOCOLS = {old: new for key in KEYS["score"].values() for old, new in VALUES[key].items()}


def upgrade(path: Path) -> None:
    """Write a file anew where a name in it is another today."""
    before = path.read_text(encoding="utf-8")
    after = {".csv": _table, ".json": _json, ".md": _markdown}[path.suffix](before)
    if after != before:
        path.write_text(after, encoding="utf-8")
        print(path)


def _table(text: str) -> str:
    head, *rows = csv.reader(io.StringIO(text))
    new = [[COLUMNS.get(name, name) for name in head], *([_cell(value) for value in row] for row in rows)]
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(new)
    return out.getvalue() if new != [head, *rows] else text


def _cell(value: str) -> str:
    return ROWS.get(value) or renamed_steps(value)


def _json(text: str) -> str:
    value = json.loads(text)
    new = _renamed(value)
    return json.dumps(new, indent=2) + "\n" * text.endswith("\n") if new != value else text


def _renamed(value: Any) -> Any:
    if isinstance(value, Mapping):
        of_student = "student" in value
        return {
            ROWS.get(name) or (name if of_student else PROTOCOLS.get(name, name)): _renamed(inner)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [_renamed(inner) for inner in value]
    return IN_PROTOCOLS.get(value) or _cell(value) if isinstance(value, str) else value


def _markdown(text: str) -> str:
    return re.sub(r"\blonger\b(?= \|| of|`)", ROWS["longer"], text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="folder of results")
    for file in sorted(parser.parse_args().root.rglob("*")):
        if file.suffix in (".csv", ".json", ".md"):
            upgrade(file)
