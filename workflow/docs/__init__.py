"""Tables and figures of README and docs, from results/: ``python -m workflow.docs`` writes them anew.

A table stands between ``<!-- table: NAME key=value ... -->`` and ``<!-- end -->``. A number of the text may
be followed by ``<!-- FILE COLUMN key=value ... -->``: what that row of ``results/FILE.csv`` has in COLUMN, of
a mean with its deviation in the columns that begin so. A verdict may be, too: it is not written anew but
found wrong, as its sentence is then, and with ``key=one,other`` it is that of several rows. A plus in a value
is a space. A test checks all.
"""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from pelap.report.tables import MINUS, PLUS_MINUS, number
from pelap.report.verdicts import VERDICTS
from workflow.docs import choosing, studies
from workflow.docs.results import ROOT, row_of

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
TABLE = re.compile(r"(<!-- table: (\w+)((?: \S+=\S+)*) -->\n).*?(<!-- end -->)", re.DOTALL)
_NUMBER = r"\d[\d,]*(?:\.\d+)?"
_VERDICT = "|".join(sorted(VERDICTS, key=len, reverse=True))
MARKED = re.compile(
    rf"(?:([+{MINUS}]?{_NUMBER})(?: ± ({_NUMBER}))?( %)?|({_VERDICT}))"
    r"(<!-- (\S+/\S+) (\S+)((?: \S+=\S+)*) -->)"
)
TABLES = {each.__name__: each for each in (*choosing.TABLES, *studies.TABLES)}


def up_to_date(page: Path) -> str:
    """A page with its tables and numbers made anew."""
    return MARKED.sub(_number, TABLE.sub(_table, page.read_text(encoding="utf-8")))


def wrong_marks(page: Path) -> Iterator[str]:
    """The marked verdicts of a page that are not those of their files, and marks that are behind nothing."""
    text = TABLE.sub("", page.read_text(encoding="utf-8"))
    read = list(MARKED.finditer(text))
    others = text.count("<!-- ") - len(read)
    if others:
        yield f"{page.name}: {others} marks are behind nothing, or of a table without an end"
    for match in read:
        *_, verdict, _, file, column, keys = match.groups()
        for own in _each(_options(keys)) if verdict else ():
            found = row_of(file, **own)[column]
            if found != verdict:
                where = " ".join(map("=".join, own.items()))
                yield f"{page.name}: {verdict} is {found} in {file}.csv, {column} {where}"


def _number(match: re.Match[str]) -> str:
    """A marked number as its row has it, written as it was."""
    mean, deviation, percent, verdict, mark, file, column, keys = match.groups()
    if verdict:
        return match[0]
    row, scale = row_of(file, **_options(keys)), 100 if percent else 1
    names = [(f"{column}_mean", f"{column}_std"), (column, f"{column}_std"), ("mean", "std")]
    pair = next(each for each in names if {*each} <= {*row.index}) if deviation else (column,)
    signs = mean[0] in f"+{MINUS}", False
    shown = (
        number(scale * float(row[name]), len(text.partition(".")[2]), signed)
        for name, text, signed in zip(pair, (mean, deviation), signs, strict=False)
    )
    return f" {PLUS_MINUS} ".join(shown) + (percent or "") + mark


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
