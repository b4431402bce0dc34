"""From scores to a plan, and plans that people wrote."""

import dataclasses
import math
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tiny_networks import CASES, Case
from torch import nn

from pelap.core import files
from pelap.core.errors import PlanError
from pelap.profiling.cost import count_params
from pelap.pruning.selection import check_scores, make_plan, plan_of
from pelap.surgery.apply import apply_plan, removed_operators
from pelap.surgery.fit import fit_replacements
from pelap.surgery.operators import Operator
from pelap.surgery.plan import Plan, PlanEntry, complete_plan, fingerprint, plan_from_json
from pelap.surgery.replacements import Replacement, ReplacementSpec

SCORES = pd.DataFrame(
    [
        ("a.norm", 0.1, 10, 0.02),
        ("b", 0.2, 500, 0.10),
        ("a", 0.3, 100, 0.30),
        ("a.conv", 0.4, 90, 0.20),
        ("c", 0.5, 300, 0.15),
    ],
    columns=["operator", "score", "params", "latency_share"],
).assign(kind="block", replacement="identity")


def chosen(scores: pd.DataFrame, target: str, amount: float) -> list[str]:
    return [removal.operator for removal in make_plan(scores, target, amount).operators]


def bare(*names: str) -> Plan:
    return plan_from_json({"operators": list(names)}, "test")


def one_line(caught: pytest.ExceptionInfo[PlanError]) -> bool:
    return "\n" not in str(caught.value)


# Choosing


def test_plan_takes_the_lowest_scores_until_the_target_and_lists_no_nested_operator() -> None:
    assert chosen(SCORES, "time_reduction", 0.1) == ["a.norm", "b"]
    assert chosen(SCORES, "time_reduction", 0.25) == ["b", "a"]  # a.norm lies in a, its time counts once
    assert chosen(SCORES, "time_reduction", 0.41) == ["b", "a", "c"]  # a.conv lies in a
    assert chosen(SCORES, "num_params", 510) == ["a.norm", "b"]
    assert chosen(SCORES, "num_operators", 1) == ["a.norm"]
    plan = make_plan(SCORES.sample(frac=1, random_state=0), "time_reduction", 0.25)
    assert plan.time_reduction == pytest.approx(0.40)
    assert plan.num_params == 600
    assert plan.target == {"time_reduction": 0.25}
    assert plan.operators[0] == PlanEntry("b", "block", ReplacementSpec("identity"))


def test_equal_scores_are_taken_by_name() -> None:
    scores = SCORES.assign(score=0.5, operator=["e", "d", "c", "b", "a"])
    assert chosen(scores, "num_operators", 2) == ["a", "b"]


def test_what_replacements_cost_is_not_saved() -> None:
    scores = SCORES.assign(replacement_params=[0, 450, 20, 0, 0], replacement_share=[0, 0.06, 0.05, 0, 0])
    plan = make_plan(scores, "num_params", 130)
    assert [removal.operator for removal in plan.operators] == ["b", "a"]  # 50 + 80
    assert (plan.num_params, plan.time_reduction) == (130, pytest.approx(0.04 + 0.25))
    assert plan_of(scores, bare("b", "c")).num_params == 350
    with pytest.raises(PlanError, match="at most 430"):
        make_plan(scores, "num_params", 431)


def test_parameters_can_be_the_target_without_times() -> None:
    assert chosen(SCORES.drop(columns="latency_share"), "num_params", 510) == ["a.norm", "b"]


def changed(**values: object) -> pd.DataFrame:
    """The scores with the first row's values replaced."""
    table = SCORES.assign(replacement_params=0, stopped_early=False).astype(object)
    for column, value in values.items():
        table.loc[0, column] = value
    return table


BAD: dict[str, tuple[pd.DataFrame, str]] = {
    "score_nan": (changed(score=math.nan), "row 1"),
    "score_text": (changed(score="abc"), "row 1"),
    "params_nan": (changed(params=math.nan), "row 1"),
    "params_infinite": (changed(params=math.inf), "row 1"),
    "share_text": (changed(latency_share="x"), "row 1"),
    "replacement_params_text": (changed(replacement_params="few"), "row 1"),
    "replacement_params_nan": (changed(replacement_params=math.nan), "row 1"),
    "stopped_early_nan": (changed(stopped_early=math.nan), "row 1"),
    "stopped_early_text": (changed(stopped_early="no"), "row 1"),
    "name_twice": (changed(operator="b"), "row 2"),
    "no_name": (changed(operator=None), "row 1"),
    "empty": (SCORES.iloc[:0], "no row"),
    "no_scores": (SCORES.drop(columns="score"), "no column score"),
    "no_shares": (SCORES.drop(columns="latency_share"), "no column latency_share"),
    "no_replacements": (SCORES.drop(columns="replacement"), "no column replacement"),
}


@pytest.mark.parametrize(("scores", "message"), BAD.values(), ids=BAD)
def test_table_that_is_none_of_scores(scores: pd.DataFrame, message: str) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        make_plan(scores, "time_reduction", 0.1)
    assert one_line(caught)
    if message != "no column latency_share":
        with pytest.raises(PlanError, match=message):
            plan_of(scores, bare("c"))


def test_columns_of_objects_are_as_good() -> None:
    assert chosen(changed(stopped_early=True), "num_operators", 1) == ["b"]
    assert chosen(changed(score="0.35", params="10"), "num_operators", 2) == ["b", "a"]


# Chosen by somebody else


def test_plan_of_somebody_else_gets_its_totals_from_the_scores() -> None:
    plan = plan_of(SCORES, dataclasses.replace(bare("b", "c"), num_params=7, time_reduction=0.9))
    assert (plan.num_params, plan.time_reduction) == (800, pytest.approx(0.25))
    assert [removal.operator for removal in plan.operators] == ["b", "c"]
    assert plan_of(SCORES, bare()) == bare()
    without_times = plan_of(SCORES.drop(columns="latency_share"), bare("b"))
    assert (without_times.num_params, without_times.time_reduction) == (500, 0)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["conv_in"], "'conv_in' is not among the scored operators"),
        (["b", "b"], "'b' is listed twice"),
        (["a.norm", "a"], "'a.norm' is listed inside 'a'"),
        (["a", "a.norm"], "'a.norm' is listed inside 'a'"),
    ],
)
def test_plan_that_does_not_fit_the_scores(names: list[str], message: str) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        plan_of(SCORES, bare(*names))
    assert one_line(caught)


# As a file


def test_every_field_of_a_replacement_survives_json(tmp_path: Path) -> None:
    removals = (
        PlanEntry("a", "block", ReplacementSpec("avg_pool+projection", 4, 6, 2)),
        PlanEntry("b", "normalisation", ReplacementSpec("affine", 8, channels_last=True)),
        PlanEntry("c", "transformer", ReplacementSpec("residual", num_outputs=1)),
        PlanEntry("d"),
    )
    plan = Plan(removals, {"num_params": 7.0}, 0.25, 12, "Net-0123")
    files.write_json(tmp_path / "plan.json", plan.to_json())
    assert plan_from_json(files.read_json(tmp_path / "plan.json"), "file") == plan


def test_scores_survive_their_file(tmp_path: Path) -> None:
    table = SCORES.assign(replacement_params=1, stopped_early=[True, False, False, False, False], parent=None)
    table.loc[3, "score"] = math.inf
    files.write_csv(tmp_path / "scores.csv", table)
    read = files.read_csv(tmp_path / "scores.csv")
    assert chosen(read, "num_operators", 3) == ["b", "a", "c"]
    assert make_plan(read, "num_params", 700) == make_plan(table, "num_params", 700)


def test_entries_may_be_bare_names_or_hold_what_is_known() -> None:
    plan = plan_from_json(
        {"operators": ["a", {"operator": "b"}, {"operator": "c", "replacement": "identity"}]}, "file"
    )
    assert plan.operators == (PlanEntry("a"), PlanEntry("b"), PlanEntry("c", "", ReplacementSpec()))


@pytest.mark.parametrize(
    "value",
    [
        [],
        "a",
        None,
        {},
        {"operators": "a"},
        {"operators": [3]},
        {"operators": [None]},
        {"operators": [{"name": "a"}]},
        {"operators": [{"operator": 3}]},
        {"operators": [{"operator": "a", "kind": 3}]},
        {"operators": [{"operator": "a", "replacement": ["x"]}]},
        {"operators": [{"operator": "a", "replacement": "magic"}]},
        {"operators": [{"operator": "a", "replacement": "nearest", "factor": "2"}]},
        {"operators": [], "target": [1]},
        {"operators": [], "time_reduction": None},
        {"operators": [], "num_params": "many"},
        {"operators": [], "num_params": math.inf},
        {"operators": [], "num_params": math.nan},
    ],
    ids=repr,
)
def test_not_a_plan(value: object) -> None:
    with pytest.raises(PlanError, match=r"^file: ") as caught:
        plan_from_json(value, "file")
    assert one_line(caught)


# For a network


@cache
def found(name: str) -> tuple[Case, list[Operator]]:
    case = CASES[name]()
    return case, case.find()


def completed(case: Case, operators: list[Operator], *entries: Any) -> Plan:
    return complete_plan(plan_from_json({"operators": list(entries)}, "test"), case.network, operators)


@pytest.mark.parametrize("name", ["unet2d", "conditional", "light"])
def test_bare_names_are_completed_with_what_is_offered(name: str) -> None:
    case, operators = found(name)
    outermost = [operator for operator in operators if operator.parent is None]
    plan = completed(case, operators, *(operator.name for operator in outermost))
    assert plan.operators == tuple(PlanEntry(o.name, o.kind, o.replacement) for o in outermost)
    assert plan.network == fingerprint(case.network)
    by_scores = Plan(
        tuple(PlanEntry(o.name, o.kind, ReplacementSpec(o.replacement.name)) for o in outermost),
        {"num_params": 1},
    )
    whole = complete_plan(by_scores, case.network, operators)
    assert whole.operators == plan.operators
    assert whole.target == {"num_params": 1}
    assert complete_plan(whole, case.network, operators) == whole
    assert plan_from_json(whole.to_json(), "file") == whole


NORM, SEQUENCE, CONV = "block_mid.norm1", "mid_block.attentions.0.group_norm", "block_down.conv1"


@pytest.mark.parametrize(
    ("name", "entry", "expected"),
    [
        ("light", {"operator": NORM, "replacement": "affine"}, ReplacementSpec("affine", 16)),
        ("unet2d", {"operator": SEQUENCE, "replacement": "affine"}, ReplacementSpec("affine", 16)),
        (
            "dit",
            {"operator": "norm_out", "replacement": "affine"},
            ReplacementSpec("affine", 16, channels_last=True),
        ),
        ("light", {"operator": CONV, "replacement": "channel_pool"}, ReplacementSpec("channel_pool", 8, 16)),
        (
            "light",
            {"operator": "block_mid", "replacement": "projection", "in_channels": 16, "out_channels": 16},
            ReplacementSpec("projection", 16, 16),
        ),
        (
            "conditional",
            {"operator": "mid_block.attentions.0", "replacement": "identity"},
            ReplacementSpec("identity", num_outputs=1),
        ),
    ],
    ids=["norm", "sequence_norm", "norm_without_weights", "channel_pool", "own_numbers", "tuple"],
)
def test_replacement_may_be_another_one(name: str, entry: dict[str, Any], expected: ReplacementSpec) -> None:
    """Its numbers are filled in; the network runs, fitted or not."""
    case, operators = found(name)
    plan = completed(case, operators, entry)
    (removal,) = plan.operators
    assert removal.replacement == expected
    assert removal.kind == next(o.kind for o in operators if o.name == removal.operator)
    with_it = [dataclasses.replace(o, replacement=expected) for o in operators if o.name == removal.operator]
    pruned = apply_plan(case.network, plan, fit_replacements(case.network, with_it, case.forward(16)))
    assert removed_operators(pruned) == [removal.operator]
    with torch.no_grad():
        made = case.forward(2, pruned)()
        assert made.isfinite().all()
        assert not torch.allclose(made, case.forward(2)(), atol=1e-3)
        assert case.forward(2, apply_plan(case.network, plan))().shape == made.shape


@pytest.mark.parametrize("replacement", ["projection", "channel_pool"])
def test_numbers_are_this_networks_where_a_plan_was_made_for_another(replacement: str) -> None:
    case, operators = found("light")
    entry = {"operator": CONV, "replacement": replacement, "in_channels": 320, "out_channels": 640}
    (removal,) = completed(case, operators, entry).operators
    assert removal.replacement == ReplacementSpec(replacement, 8, 16)
    (removal,) = completed(
        case, operators, {"operator": NORM, "replacement": "identity", "num_outputs": 2}
    ).operators
    assert removal.replacement == ReplacementSpec("identity")


@pytest.mark.parametrize(("target", "amount"), [("speed", 1), ("num_params", 0), ("num_params", -1)])
def test_targets_that_are_none(target: str, amount: float) -> None:
    with pytest.raises(PlanError, match="give a positive amount of time_reduction"):
        make_plan(SCORES, target, amount)


def test_tables_as_spreadsheets_leave_them() -> None:
    empty = pd.DataFrame([[None] * len(SCORES.columns)], columns=SCORES.columns)
    padded = SCORES.assign(operator=SCORES["operator"] + " ").astype(object)
    scores = pd.concat([padded, empty], ignore_index=True)
    assert chosen(scores, "num_operators", 2) == chosen(SCORES, "num_operators", 2)
    with pytest.raises(PlanError, match="row 1"):
        make_plan(changed(replacement="banana"), "num_operators", 1)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("conv_in", "UNet2DModel has no operator 'conv_in' that can be replaced"),
        ("", "UNet2DModel has no operator '' that can be replaced"),
        (
            {"operator": "mid_block.resnets.0", "replacement": "projection"},
            "cannot be replaced by projection; use residual or identity",
        ),
    ],
)
def test_entry_that_does_not_fit_the_network(entry: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        completed(*found("unet2d"), entry)
    assert one_line(caught)


def test_plan_for_another_network_is_refused_unless_its_network_is_dropped() -> None:
    case, operators = found("unet2d")
    name = "mid_block.resnets.0"
    plan = completed(case, operators, name)
    other, others = found("conditional")
    refusal = r'was made for the network UNet2DModel-.*drop its "network"'
    with pytest.raises(PlanError, match=refusal):
        complete_plan(plan, other.network, others)
    with pytest.raises(PlanError, match=refusal):
        apply_plan(other.network, plan)
    free = plan_from_json({key: v for key, v in plan.to_json().items() if key != "network"}, "file")
    taken = complete_plan(free, other.network, others)
    assert taken.network == fingerprint(other.network) != plan.network
    assert removed_operators(apply_plan(other.network, taken)) == [name]


def test_fingerprint_is_of_class_and_shapes_not_of_values() -> None:
    case, _ = found("light")
    network = case.network
    fresh = CASES["light"]().network
    with torch.no_grad():
        next(fresh.parameters()).add_(1)
    assert fingerprint(fresh) == fingerprint(network)
    assert fingerprint(fresh.half()) == fingerprint(network)
    layer, turned = nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False)
    assert fingerprint(nn.ModuleDict({"a": layer})) != fingerprint(nn.ModuleDict({"b": layer}))
    assert fingerprint(nn.ModuleDict({"a": layer})) != fingerprint(nn.ModuleDict({"a": turned}))
    assert fingerprint(nn.Sequential(layer)) != fingerprint(nn.ModuleList([layer]))


def table_of(case: Case, operators: list[Operator]) -> pd.DataFrame:
    """As `pelap score` writes it, but for what it measures."""
    replacements: dict[str, Replacement] = fit_replacements(case.network, operators, lambda: None, "random")
    return pd.DataFrame(
        {
            "operator": [operator.name for operator in operators],
            "kind": [operator.kind for operator in operators],
            "replacement": [operator.replacement.name for operator in operators],
            "score": [float(i) for i in range(len(operators))],
            "params": [count_params(case.network.get_submodule(o.name)) for o in operators],
            "replacement_params": [count_params(replacements[o.name]) for o in operators],
        }
    )


@pytest.mark.parametrize("name", CASES)
def test_promised_parameters_are_saved_exactly(name: str) -> None:
    case, operators = found(name)
    table = table_of(case, operators)
    check_scores(table, case.network)
    plan = complete_plan(make_plan(table, "num_operators", 4), case.network, operators)
    pruned = apply_plan(case.network, plan)
    assert count_params(case.network) - count_params(pruned) == plan.num_params


def test_scores_of_another_network_are_refused() -> None:
    case, operators = found("light")
    table = table_of(case, operators)
    for other, message in (
        (found("unet2d")[0].network, "'block_in' is not there in this UNet2DModel"),
        (nn.ModuleDict({"block_in": nn.Linear(2, 3)}), "'block_in' has 9 parameters in this ModuleDict"),
    ):
        with pytest.raises(PlanError, match=message) as caught:
            check_scores(table, other)
        assert one_line(caught)
