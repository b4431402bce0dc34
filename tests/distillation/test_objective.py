"""What students are taught."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from distillation import ALL, count_calls, same, shaken, state_of, weights
from tiny import LIGHT, tiny_model
from torch import nn

from pelap.config import LossWeights
from pelap.core.device import autocast
from pelap.core.errors import TrainingError
from pelap.distillation.batches import NoisyBatch
from pelap.distillation.objective import TERMS, Objective, block_outputs, matched_blocks, relative_distance
from pelap.surgery.apply import apply_plan
from pelap.surgery.plan import plan_from_json


def a_batch(open_channels: torch.Tensor | None = None) -> NoisyBatch:
    stream = torch.Generator().manual_seed(0)
    x, e = (torch.randn(4, 4, 4, 4, generator=stream) for _ in range(2))
    return NoisyBatch(x, torch.tensor([0, 5, 500, 999]), e, open_channels)


def open_of(*values: float) -> torch.Tensor:
    return torch.tensor(values)[None, :, None, None]


@torch.no_grad()
def test_a_student_equal_to_its_teacher_has_nothing_to_learn_from_it() -> None:
    teacher = tiny_model().unet
    losses = Objective(teacher, teacher, ALL)(tiny_model().unet, a_batch())
    assert float(losses["output"]) == float(losses["feature"]) == 0
    torch.testing.assert_close(losses["loss"], losses["task"])


@pytest.mark.parametrize(("open_channels", "there"), [(None, [0, 1, 2, 3]), (open_of(1, 0, 1, 0), [0, 2])])
@torch.no_grad()
def test_terms_are_the_definition(open_channels: torch.Tensor | None, there: list[int]) -> None:
    batch, student, teacher = a_batch(open_channels), tiny_model(seed=1).unet, shaken(tiny_model().unet)
    names = matched_blocks(student, teacher)
    with block_outputs(student, names) as s, block_outputs(teacher, names) as t:
        predicted, wanted = batch.predict(student)[:, there], batch.predict(teacher)[:, there]
    features = torch.stack([(s[name] - t[name]).square().mean() / t[name].square().mean() for name in names])
    losses = Objective(student, teacher, weights(2.0, 10.0, 100.0))(student, batch)
    expected = {
        "task": (predicted - batch.target[:, there]).square().mean(),
        "output": (predicted - wanted).square().mean() / wanted.square().mean(),
        "feature": features.mean(),
    }
    expected["loss"] = 2 * expected["task"] + 10 * expected["output"] + 100 * expected["feature"]
    torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize("open_channels", [None, open_of(1, 0, 0, 1)])
def test_a_relative_distance_has_no_unit(open_channels: torch.Tensor | None) -> None:
    student, teacher = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    distance = relative_distance(student, teacher, open_channels)
    for scale in (2.0, 1e-3, 1e3):
        scaled = relative_distance(scale * student, scale * teacher, open_channels)
        torch.testing.assert_close(scaled, distance)
    torch.testing.assert_close(relative_distance(0 * student, teacher, open_channels), torch.tensor(1.0))
    assert relative_distance(teacher, teacher, open_channels) == 0
    assert relative_distance(student, 0 * teacher, open_channels).isfinite()
    if open_channels is not None:
        elsewhere = teacher + 7 * (1 - open_channels)
        torch.testing.assert_close(relative_distance(student, elsewhere, open_channels), distance)


class Stack(nn.Module):
    """Two blocks, of which the second gives values of another size."""

    def __init__(self, sizes: tuple[float, ...], wrong: float) -> None:
        super().__init__()
        self.down_blocks = nn.ModuleList([nn.Conv2d(1, 1, 1, bias=False) for _ in sizes])
        for block, size in zip(self.down_blocks, sizes, strict=True):
            nn.init.constant_(block.weight, size * wrong)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> Any:
        made = [block(x) for block in self.down_blocks]
        return type("Output", (), {"sample": made[0]})


@torch.no_grad()
def test_no_block_dominates() -> None:
    x = torch.ones(2, 1, 2, 2)
    batch = NoisyBatch(x, torch.zeros(2), x)
    for sizes in ((1.0, 1.0), (1.0, 1000.0), (1e-3, 1e3)):
        losses = Objective(Stack(sizes, 1.0), Stack(sizes, 1.0), ALL)(Stack(sizes, 1.5), batch)
        assert float(losses["feature"]) == pytest.approx(0.25)


def test_what_has_no_weight_is_not_learnt_from() -> None:
    teacher, batch = shaken(tiny_model().unet), a_batch()

    def gradient(how: LossWeights) -> torch.Tensor:
        student = tiny_model(seed=1).unet
        Objective(student, teacher, how)(student, batch)["loss"].backward()
        return torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])

    alone = {name: gradient(weights(**{name: 1.0})) for name in ("task", "output", "feature")}
    together = gradient(weights(1.0, 2.0, 0.0))
    torch.testing.assert_close(together, alone["task"] + 2 * alone["output"])
    assert len(alone["feature"]) < len(together)  # behind the last block nothing is asked
    assert float((alone["task"] - alone["output"]).abs().max()) > 1e-4


@pytest.mark.parametrize(("options", "num"), [({}, 5), (LIGHT, 4)], ids=["unet2d", "light"])
def test_matched_blocks_cover_the_network(options: dict[str, Any], num: int) -> None:
    unet = tiny_model(**options).unet
    names = matched_blocks(unet, unet)
    assert len(names) == num
    with block_outputs(unet, names) as found:
        unet(torch.randn(1, 4, 4, 4), 3)
    assert set(found) == set(names)


def test_features_alone_need_a_block() -> None:
    unet = tiny_model().unet
    bare = apply_plan(unet, plan_from_json({"operators": matched_blocks(unet, unet)}, "test"))
    with pytest.raises(TrainingError, match="feature_weight alone counts"):
        Objective(bare, unet, weights(feature=1.0))
    Objective(bare, unet, weights(task=1.0, feature=1.0))


@torch.no_grad()
def test_a_prediction_that_comes_with_the_batch_is_taken() -> None:
    teacher, student, batch = tiny_model().unet, tiny_model(seed=1).unet, a_batch()
    told = replace(batch, teacher_prediction=batch.predict(student))
    objective = Objective(student, teacher, weights(output=1.0))
    assert float(objective(student, objective.complete(told))["output"]) == 0
    assert float(objective(student, objective.complete(batch))["output"]) > 0
    # Of the features it says nothing: the teacher itself is run.
    assert float(Objective(student, teacher, ALL)(student, told)["output"]) > 0


# --- what a term is of the whole --------------------------------------------------------------------


def of_kind(shares: dict[str, float], kind: str) -> dict[str, float]:
    return {name.split("_")[0]: value for name, value in shares.items() if name.endswith(f"_{kind}_share")}


def test_shares_are_those_worked_out_by_hand() -> None:
    # Blocks a x, b x of 1.5 and 3, the teacher's 1 and 2; a x is the prediction, and should be x / 2.
    x = torch.ones(2, 1, 2, 2)
    batch, sizes = NoisyBatch(x, torch.zeros(2), x / 2), (1.0, 2.0)
    objective = Objective(Stack(sizes, 1.0), Stack(sizes, 1.0), weights(2.0, 1.0, 4.0))
    shares = objective.shares(Stack(sizes, 1.5), batch, "fp32")
    # task (a - 1/2)^2, output (a - 1)^2, feature ((a - 1)^2 + (b - 2)^2 / 4) / 2
    values = {"task": 2 * 1.0, "output": 0.25, "feature": 4 * 0.25}
    norms = {"task": 2 * 2.0, "output": 1.0, "feature": 4 * math.hypot(0.5, 0.25)}
    for kind, parts in (("loss", values), ("gradient", norms)):
        expected = {name: part / sum(parts.values()) for name, part in parts.items()}
        assert of_kind(shares, kind) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_shares_are_of_the_gradients_that_training_has(precision: str) -> None:
    teacher, batch, factors = shaken(tiny_model().unet), a_batch(), (0.5, 2.0, 3.0)
    losses, norms = {}, {}
    for term, factor in zip(TERMS, factors, strict=True):
        student = tiny_model(seed=1).unet
        with autocast(batch.latents.device, precision):
            losses[term] = Objective(student, teacher, weights(**{term: factor}))(student, batch)["loss"]
        losses[term].backward()
        norms[term] = float(nn.utils.clip_grad_norm_(student.parameters(), math.inf))
    student, computed = tiny_model(seed=1).unet, set()
    student.register_forward_hook(lambda module, args, output: computed.add(output.sample.dtype))
    shares = Objective(student, teacher, weights(*factors)).shares(student, batch, precision)
    assert computed == {torch.float32 if precision == "fp32" else torch.bfloat16}
    for kind, parts in (("loss", {name: loss.item() for name, loss in losses.items()}), ("gradient", norms)):
        expected = {name: part / sum(parts.values()) for name, part in parts.items()}
        assert of_kind(shares, kind) == pytest.approx(expected, rel=1e-5 if precision == "fp32" else 1e-2)


def test_a_share_goes_with_its_weight_and_all_are_one() -> None:
    teacher, student, batch = shaken(tiny_model().unet), tiny_model(seed=1).unet, a_batch()

    def shares(*factors: float) -> dict[str, float]:
        return Objective(student, teacher, weights(*factors)).shares(student, batch, "fp32")

    plain, heavy = shares(1.0, 2.0, 1.0), shares(1.0, 10.0, 1.0)
    without, alone = shares(1.0, 0.0, 3.0), shares(0.0, 0.0, 3.0)
    for kind in ("loss", "gradient"):
        a, b = of_kind(plain, kind), of_kind(heavy, kind)
        assert sum(a.values()) == pytest.approx(1)
        assert sum(b.values()) == pytest.approx(1)
        assert b["output"] / b["task"] == pytest.approx(5 * a["output"] / a["task"], rel=1e-4)
        assert b["feature"] / b["task"] == pytest.approx(a["feature"] / a["task"], rel=1e-4)
        assert set(of_kind(without, kind)) == {"task", "feature"}
        assert of_kind(alone, kind) == {"feature": 1.0}


def test_of_one_term_the_share_costs_nothing() -> None:
    teacher, student = tiny_model().unet, tiny_model(seed=1).unet
    calls = [count_calls(network) for network in (teacher, student)]
    shares = Objective(student, teacher, weights(output=2.0)).shares(student, a_batch(), "fp32")
    assert shares == {"output_loss_share": 1.0, "output_gradient_share": 1.0}
    assert calls == [[], []]


def test_what_is_nothing_has_no_share() -> None:
    teacher = tiny_model().unet
    how = weights(output=1.0, feature=1.0)
    assert Objective(teacher, teacher, how).shares(tiny_model().unet, a_batch(), "fp32") == {}
    # Without a block to compare a term is there and pulls at nothing.
    x = torch.ones(2, 1, 2, 2)
    bare, stack = Stack((1.0,), 1.5), Stack((1.0,), 1.0)
    bare.down_blocks[0] = nn.Sequential(bare.down_blocks[0])
    shares = Objective(bare, stack, ALL).shares(bare, NoisyBatch(x, torch.zeros(2), 0 * x), "fp32")
    assert of_kind(shares, "gradient") == pytest.approx({"task": 0.75, "output": 0.25, "feature": 0.0})
    assert of_kind(shares, "loss") == pytest.approx({"task": 0.9, "output": 0.1, "feature": 0.0})


@pytest.mark.parametrize("frozen", [False, True])
def test_looking_at_shares_leaves_the_network_as_it_was(frozen: bool) -> None:
    teacher, student, batch = shaken(tiny_model().unet), tiny_model(seed=1).unet, a_batch()
    objective = Objective(student, teacher, ALL)
    expected = objective.shares(student, batch, "fp32")
    objective(student, batch)["loss"].backward()
    for number, parameter in enumerate(student.parameters()):
        parameter.requires_grad_(not (frozen and number % 2))
    before, own = state_of(student), list(student.parameters())
    gradients = [None if p.grad is None else (p.grad, p.grad.clone()) for p in own]
    wanted, chance = [p.requires_grad for p in own], torch.get_rng_state()
    with torch.no_grad():  # as at a validation
        assert objective.shares(student, batch, "fp32") == pytest.approx(expected)
    assert same(state_of(student), before)
    assert all(a is b for a, b in zip(student.parameters(), own, strict=True))
    assert [p.requires_grad for p in own] == wanted
    for parameter, kept in zip(own, gradients, strict=True):
        assert parameter.grad is (kept and kept[0])
        assert kept is None or torch.equal(kept[0], kept[1])
    assert all(p.grad is None for p in teacher.parameters())
    assert torch.equal(torch.get_rng_state(), chance)
