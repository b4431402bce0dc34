"""A protocol knows its table: a shorter one or another is refused, wherever scores are read."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from synthetic_run import VARIANTS, build_run
from tiny import expect_error

import pelap
from pelap.core import files
from pelap.core.paths import RunPaths
from pelap.core.tables import describe_table, read_table, write_table
from pelap.report.data import read_run

SCORES = pd.DataFrame({"operator": ["a", "b, c", "d"], "score": [0.1, 1 / 3, 2.0], "latency_ms": [1.0, 2, 3]})
Change = Callable[[str], str]
OTHERS: dict[str, tuple[Change, str]] = {
    "cut at a line": (lambda text: text[: text.rindex("d,")], "2 rows, not 3"),
    "a row twice": (lambda text: text + text.splitlines()[-1] + "\n", "4 rows, not 3"),
    "another score": (lambda text: text.replace("0.1,", "0.2,"), "values are others"),
    "another time": (lambda text: text.replace("3.0", "3.1"), "values are others"),
    "another name": (lambda text: text.replace("d,", "e,"), "values are others"),
    "another order": (
        lambda text: "\n".join(text.split("\n")[i] for i in (0, 2, 1, 3, 4)),
        "values are others",
    ),
    "a column less": (lambda text: SCORES[["operator"]].to_csv(index=False), "values are others"),
}


def written(folder: Path) -> tuple[Path, Path]:
    table, protocol = folder / "scores.csv", folder / "protocol.json"
    write_table(table, SCORES, protocol, {"seed": 0})
    return table, protocol


@pytest.mark.parametrize("name", OTHERS)
def test_another_table_is_refused(name: str, tmp_path: Path) -> None:
    (table, protocol), (change, said) = written(tmp_path), OTHERS[name]
    pd.testing.assert_frame_equal(read_table(table, protocol, ["score"]), SCORES)
    table.write_text(change(table.read_text()))
    expect_error(lambda: read_table(table, protocol), str(table), said, str(protocol), "score again")
    files.write_json(protocol, {"seed": 0})  # as version 0.1 wrote it, or who changed the table took it out
    read_table(table, protocol)
    protocol.unlink()
    read_table(table, protocol)


def test_two_runs_of_the_same_differ_in_times_alone(tmp_path: Path) -> None:
    table, protocol = written(tmp_path)
    said = describe_table(table)
    table.write_bytes(table.read_bytes().replace(b"\n", b"\r\n"))
    assert describe_table(table) == said
    read_table(table, protocol)
    table.write_bytes(table.read_bytes().replace(b"3.0", b"3.5"))
    now = describe_table(table)
    assert {name for name in said if now[name] != said[name]} == {"latency_ms_sha256"}


@pytest.mark.parametrize("damage", ["x", {"rows": "x"}, 3, []])
def test_a_damaged_note_is_another_table(damage: object, tmp_path: Path) -> None:
    table, protocol = written(tmp_path)
    files.write_json(protocol, {"table": damage})
    expect_error(lambda: read_table(table, protocol), str(protocol))


def _shorten(run: RunPaths) -> None:
    about = files.read_json(run.score_protocol) | {"table": describe_table(run.scores)}
    files.write_json(run.score_protocol, about)
    lines = run.scores.read_text().splitlines(keepends=True)
    run.scores.write_text("".join(lines[:-1]))


def test_the_report_and_the_library_look_too(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", VARIANTS)
    _shorten(run)
    expect_error(lambda: read_run("photos", 0, VARIANTS, run), str(run.scores), "score again")
    beside = run.scores.with_name("mine.csv")
    run.scores.rename(beside)
    run.score_protocol.rename(beside.with_name("mine.protocol.json"))
    expect_error(lambda: pelap.make_plan(beside, num_operators=1), str(beside), "score again")
