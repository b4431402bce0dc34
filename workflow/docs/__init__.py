"""Tables and figures of README and docs, from results/: ``python -m workflow.docs`` writes the tables anew.

A table stands between ``<!-- table: NAME key=value ... -->`` and ``<!-- end -->``. A number of the text, or a
verdict, may be followed by ``<!-- FILE COLUMN key=value ... -->``: what that row of ``results/FILE.csv`` has
in COLUMN, of a mean with its deviation in the columns that begin so. With ``key=one,other`` it is what each
of these rows has. A plus in a value is a space. A test checks both.
"""

import itertools
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pelap.report.tables import MINUS
from pelap.report.verdicts import VERDICTS
from workflow.docs import choosing, studies
from workflow.docs.results import ROOT, row_of

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
TABLE = re.compile(r"(<!-- table: (\w+)((?: \S+=\S+)*) -->\n).*?(<!-- end -->)", re.DOTALL)
_NUMBER = r"\d[\d,]*(?:\.\d+)?"
_VERDICT = "|".join(sorted(VERDICTS, key=len, reverse=True))
MARKED = re.compile(
    rf"(?:([+{MINUS}]?{_NUMBER})(?: ± ({_NUMBER}))?( %)?|({_VERDICT}))"
    r"<!-- (\S+/\S+) (\S+)((?: \S+=\S+)*) -->"
)
TABLES = {each.__name__: each for each in (*choosing.TABLES, *studies.TABLES)}


def up_to_date(page: Path) -> str:
    """A page with its tables made anew."""
    return TABLE.sub(_table, page.read_text(encoding="utf-8"))


def wrong_marks(page: Path) -> Iterator[str]:
    """The marked numbers and verdicts of a page that are not those of their files, and marks behind none."""
    text_of_page = page.read_text(encoding="utf-8")
    read = {match.start(): match for match in MARKED.finditer(text_of_page)}
    marks = len(re.findall("<!-- (?!end )", TABLE.sub("", text_of_page)))
    if marks != len(read):
        yield f"{page.name}: {marks - len(read)} marks are behind nothing, or of a table without an end"
    for match in read.values():
        *_, file, column, keys = match.groups()
        for own in _each(_options(keys)):
            for shown, name, found in _otherwise(match, row_of(file, **own), column):
                where = " ".join(map("=".join, own.items()))
                yield f"{page.name}: {shown} is {found} in {file}.csv, {name} {where}"


def _otherwise(match: re.Match[str], row: Any, column: str) -> Iterator[tuple[str, str, str]]:
    """What a mark states of a row that is not so, of which column, and what is there."""
    number, spread, percent, verdict, *_ = match.groups()
    if verdict is not None:
        if verdict != row[column]:
            yield verdict, column, row[column]
        return
    names = [(f"{column}_mean", f"{column}_std"), (column, f"{column}_std"), ("mean", "std")]
    mean, std = next(pair for pair in names if {*pair} <= {*row.index}) if spread else (column, "")
    for shown, name in ((number, mean), (spread, std)):
        if shown is not None:
            value = float(row[name]) * (100 if percent else 1)
            if not _is_rounded(shown, value):
                yield shown, name, f"{value:.6g}"


def _is_rounded(text: str, value: float) -> bool:
    decimals = len(text.partition(".")[2])
    return math.isclose(
        float(text.replace(MINUS, "-").replace(",", "")), round(value, decimals), abs_tol=1e-9
    )


def _options(text: str) -> dict[str, str]:
    words = (word.split("=", 1) for word in text.split())
    return {name: value.replace("+", " ") for name, value in words}


def _each(keys: dict[str, str]) -> Iterator[dict[str, str]]:
    """The keys of every row that a mark is about."""
    for values in itertools.product(*(value.split(",") for value in keys.values())):
        yield dict(zip(keys, values, strict=True))


def _table(match: re.Match[str]) -> str:
    head, name, options, end = match.groups()
    return f"{head}{TABLES[name](**_options(options))}{end}"
