"""What students are taught."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from distillation import ALL, shaken, weights
from tiny import LIGHT, tiny_model
from torch import nn

from pelap.config import LossWeights
from pelap.core.errors import TrainingError
from pelap.distillation.batches import NoisyBatch
from pelap.distillation.objective import Objective, block_outputs, matched_blocks, relative_distance
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

    def __init__(self, sizes: tuple[float, float], wrong: float) -> None:
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
