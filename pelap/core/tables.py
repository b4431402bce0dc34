"""What a protocol says of the table beside it, so that a shorter one, or another, is not taken for it."""

import csv
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pelap.core import files
from pelap.core.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

TABLE = "table"  # key of a protocol
TIMES = ("latency", "_ms", "replacement_share")  # parts of names of columns that every run has otherwise


def describe_table(path: Path) -> dict[str, Any]:
    """The number of rows of a CSV file, and hexadecimal SHA-256: of columns of times, and of all others.

    So two runs of the same say the same but for `latency_ms_sha256`. Ends of lines do not count.
    """
    files.demand_file(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            heads, *rows = csv.reader(file)
    except (ValueError, csv.Error) as error:
        reason = files.one_line(error)
        raise DataError(f"{path}: not a readable CSV table ({reason}); make it again") from None
    times = {place for place, head in enumerate(heads) if any(word in head for word in TIMES)}
    lasting, timed = hashlib.sha256(), hashlib.sha256()
    for row in (heads, *rows):
        lasting.update(repr([cell for place, cell in enumerate(row) if place not in times]).encode())
        timed.update(repr([cell for place, cell in enumerate(row) if place in times]).encode())
    return {"rows": len(rows), "sha256": lasting.hexdigest(), "latency_ms_sha256": timed.hexdigest()}


def write_table(path: Path, table: "pd.DataFrame", protocol: Path, about: Mapping[str, Any]) -> None:
    """Write a CSV file, and what is known of how it was made, with `describe_table`, as JSON."""
    files.write_csv(path, table)
    files.write_json(protocol, {**about, TABLE: describe_table(path)})


def read_table(path: Path, protocol: Path, columns: Iterable[str] = ()) -> "pd.DataFrame":
    """`pelap.core.files.read_csv` of the table that a protocol was written for.

    A protocol that says nothing of a table, as of version 0.1, or none at all, is of any.

    Raises:
        DataError: It is another one, or not readable.
    """
    table = files.read_csv(path, columns)
    said = files.read_mapping(protocol).get(TABLE) if protocol.exists() else None
    if said is not None and said != (now := describe_table(path)):
        rows = said.get("rows") if isinstance(said, dict) else said
        more = f": {now['rows']} rows, not {rows}" if rows != now["rows"] else ", some values are others"
        raise DataError(
            f"{path}: is not the table that {protocol} was written for{more}; score again, or, if you "
            f'changed it on purpose, take "{TABLE}" out of that file'
        )
    return table
