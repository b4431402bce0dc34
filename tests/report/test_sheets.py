"""The headline, the table of findings and the line on the scores."""

import dataclasses
from typing import Any

import pandas as pd
import pytest
from report_page import Page, load, page_of
from synthetic_run import METRICS, SCORE_PROTOCOL, scored

from pelap.core import files
from pelap.core.paths import RunPaths
from pelap.report import sheets, tables
from pelap.report.data import RunData
from pelap.report.page import render

PLUS_MINUS = "\xa0±\xa0"


def ascii_rows(run: RunData) -> dict[str, list[str]]:
    """The table of findings."""
    sheet = sheets.findings(run)
    assert sheet is not None
    return {
        name: [cell.replace(tables.MINUS, "-").replace(PLUS_MINUS, "+-") for cell in cells]
        for name, cells in sheet.rows
    }


def said(paths: RunPaths) -> list[str]:
    return [text.replace(tables.MINUS, "-") for text in sheets.headline(load(paths))]


def test_headline_says_what_the_numbers_say(paths: RunPaths) -> None:
    assert said(paths) == [
        "Plan 25: 27 operators replaced, UNet time -24.0 %, parameters -34.2 %. Against invariant: "
        "distilled-25 not told apart; output-only-25 and scratch-25 worse. Against dense-finetuned: "
        "distilled-25, output-only-25 and scratch-25 worse.",
        "Plan 35: 34 operators replaced, UNet time -35.7 %, parameters -50.4 %. Against invariant: "
        "distilled-35, output-only-35 and scratch-35 worse. Against dense-finetuned: distilled-35, "
        "output-only-35 and scratch-35 worse.",
        "Latents: mask collapse in baseline; partial mask in pelap and invariant.",
        "This is one run with one seed (0): small differences can be chance; a sweep over seeds shows the "
        "spread.",
    ]


def test_headline_admits_a_loss_and_what_the_dense_one_did_not_have(paths: RunPaths) -> None:
    files.write_json(paths.prune_result, {"25": {"measured_time_reduction": -0.031}, "35": {}})
    files.write_csv(paths.differences, files.read_csv(paths.differences).assign(difference=-6.0))
    students = files.read_mapping(paths.distill_result)
    students.pop("dense-finetuned")
    files.write_json(paths.distill_result, students)
    for path in (paths.distill_history, paths.distill_validation):
        files.write_csv(path, files.read_csv(path).query("student != 'dense-finetuned'"))
    first, second, *_, last = said(paths)
    assert first == (
        "Plan 25: 27 operators replaced, UNet time +3.1 %. Against invariant: distilled-25, output-only-25 "
        "and scratch-25 better."
    )
    assert second.startswith("Plan 35: 34 operators replaced. Against invariant: ")
    assert "trained on for 240 steps that the dense one did not have" in last


def test_findings_set_models_against_each_other(made: RunPaths) -> None:
    rows, dash = ascii_rows(load(made)), tables.DASH
    assert list(rows) == [name for name in METRICS if name not in ("baseline", "pelap")]
    assert rows["invariant"] == ["0.0 %", "0.0 %", "91.73 ± 1.02", "0.0 %", *[dash] * 3]
    assert rows["pruned-25"][:4] == ["-24.0 %", "-34.2 %", "131.55 ± 1.46", "+43.4 %"]
    assert rows["distilled-25"][4:] == ["not told apart (+1.49+-1.10)", "93.85", "worse (+4.32+-1.10)"]
    assert rows["dense-finetuned"][3:] == ["-3.1 %", "not told apart (-2.83+-1.10)", dash, dash]
    assert rows["real"] == [dash, dash, "22.88 ± 0.25", "-75.1 %", *[dash] * 3]


def test_equal_time_is_interpolated_between_numbers_of_steps(paths: RunPaths) -> None:
    budget = pd.DataFrame(
        [("invariant", 20, 10.0, 90.0), ("invariant", 5, 2.0, 130.0), ("distilled-25", 20, 8.0, 95.0),
         ("distilled-35", 20, 1.0, 300.0), ("output-only-25", 20, 10.5, 80.0), ("scratch-25", 20, 8.0, 99.0)],
        columns=["model", "steps", "image_ms", "fd_effnet_lite0"],
    ).assign(image_iqr_ms=0.1)  # fmt: skip
    files.write_csv(paths.budget, budget)
    rows = ascii_rows(load(paths))
    # The others are faster or slower than any number of steps, or fresh.
    assert {name: cells[5] for name, cells in rows.items() if cells[5] != tables.DASH} == {
        "distilled-25": "100.00"
    }
    files.write_csv(paths.budget, budget.drop(index=1))
    sheet = sheets.findings(load(paths))
    assert sheet is not None
    assert "as fast" not in str(sheet.headings)


@pytest.mark.usefixtures("without_svg")
def test_equal_time_is_also_that_of_what_was_trained_as_long(made: RunPaths) -> None:
    data, columns = load(made), ["model", "steps", "image_ms", "fd_effnet_lite0"]
    more = [("dense-finetuned", 20, 12.0, 88.9), ("dense-finetuned", 10, 6.0, 94.9)]
    more += [(name, 20, 9.75, 92.5) for name in ("cached-2", "baseline")]
    budget = pd.concat([data.budget, pd.DataFrame(more, columns=columns)], ignore_index=True)
    protocol = {**data.protocol, "deepcache_intervals": [2]}
    data = dataclasses.replace(data, budget=budget, protocol=protocol)
    made_of = {f"{name}-{plan}" for name in ("pruned", "distilled", "output-only") for plan in data.plans}
    assert set(data.points["model"]) == {"invariant", "dense-finetuned", "cached-2", *made_of}
    rows = ascii_rows(data)
    # Half way from 6.6 to 12.9 ms, 95.9 to 91.73; of `dense-finetuned` at 9.7 ms of 6 to 12.
    assert rows["cached-2"][2:] == ["92.50", "+0.8 %", tables.DASH, "93.82", tables.DASH, tables.DASH]
    assert rows["distilled-25"][7] == "91.20"
    assert "share deep features" in render(data)
    assert "share deep features" not in page_of(made).source


# How sure the scores are


def scoring(paths: RunPaths, **protocol: Any) -> str:
    files.write_json(paths.score_protocol, SCORE_PROTOCOL | protocol)
    return sheets.scoring(load(paths)).replace(tables.MINUS, "-")


@pytest.mark.usefixtures("without_svg")
def test_scores_say_what_they_are_from(paths: RunPaths) -> None:
    text = scoring(paths)
    assert text.startswith(
        "32 latents an operator · noise of 2 seeds · stopped early: 3 of 122 operators · "
        "rank correlation between the seeds 0.988 (Spearman; 1: the same order) · 95 % interval overlapping "
    )
    page = Page(render(load(paths)))
    assert text in page.texts
    assert "avg+std" in page.texts
    assert "Spearman" not in scoring(paths, rank_correlation=None)
    for value, shown in ((0.99996, "0.999"), (1.0, "1.000"), (-0.2, "-0.200")):
        assert f"between the seeds {shown} (" in scoring(paths, rank_correlation=value)
    files.write_csv(paths.scores, files.read_csv(paths.scores).assign(stopped_early=False))
    assert "stopped early: 0 of 122 operators" in scoring(paths)
    assert "noise of 1 seed · no early stop" in scoring(paths, early_stop=None, num_seeds=1)


def test_intervals_that_overlap_the_first_kept_are_counted(paths: RunPaths) -> None:
    scores = scored({"a": 1.0, "b": 3.0, "c": 4.0, "c.in": 2.0, "d": 5.0, "e": 0.5}, num_latents=32)
    scores.loc[:, "score_low"], scores.loc[:, "score_high"] = scores["score"] - 0.6, scores["score"] + 0.6
    scores.loc[5, "stopped_early"] = True  # known too roughly to be the first one kept
    changes = files.read_csv(paths.changes).iloc[:5].copy()
    changes["operator"], changes["action"] = ["all", "a", "b", "c", "d"], ["3 replaced", *"xyz", "kept"]
    files.write_csv(paths.changes, changes)
    by_hand = scores.replace({"score": {5.0: 0.1}, "score_low": {4.4: 0.1}, "score_high": {5.6: 0.2}})
    for table, count in (
        (scores, 1),
        (scores.assign(score_high=scores["score"] + 0.3, score_low=scores["score"]), 0),
        (scores.assign(score_high=9.0), 3),
        (by_hand, 0),
    ):
        files.write_csv(paths.scores, table)
        says = f"overlapping that of d, the least missed of those kept: {count} of the 3 replaced"
        assert says in scoring(paths)
    files.write_csv(paths.scores, scores.head(4))
    assert "overlap" not in scoring(paths)  # everything that was scored went


@pytest.mark.parametrize(("last", "says"), [("conv_act", "down 2, mid 0.25 and out ∞"), ("mine", None)])
def test_parts_of_the_network_are_compared(paths: RunPaths, last: str, says: str | None) -> None:
    values = {"down_blocks.0.resnets.0": 1.0, "down_blocks.1.resnets.0": 3.0, "mid_block.resnets.0": 0.25}
    files.write_csv(paths.scores, scored({**values, last: float("inf")}))
    ends = f"median score of the outermost: {says or 'down 2 and mid 0.25'}"
    assert scoring(paths).endswith(ends)
