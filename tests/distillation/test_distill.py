"""What students are taught, on what, which of their steps is kept, and all students of a run together."""

import copy
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from interruption import SAVE_EVERY, cut_training, record_steps
from pelap.distillation.shared_batches import SharedBatches
from tiny import LIGHT, set_logits, tiny_dataset, tiny_model, tiny_params
from torch import nn

from pelap.config import DistillParams, LossWeights, VariantParams
from pelap.core import files
from pelap.core.errors import (
    DataError,
    ModelError,
    PelapError,
    PlanError,
    TrainingError,
)
from pelap.core.paths import RunPaths, reference_cache
from pelap.data.dataset import ImageDataset, Split, save_dataset
from pelap.diffusion.sampler import ImageGenerator, sample_from
from pelap.distillation import distill as distillation
from pelap.distillation.distill import (
    DISTANCE,
    Batches,
    Distilled,
    FeatureTap,
    NoisyBatch,
    Objective,
    Quality,
    distill,
    held_out_losses,
    matched_blocks,
    relative_distance,
)
from pelap.distillation.model_batches import ModelBatches
from pelap.models.cut import CutLightUNet
from pelap.models.latent_diffusion import LatentDiffusion
from pelap.pipelines.model_io import load_model, model_plan, save_model
from pelap.report.figures.training import distillation_curves
from pelap.stages import distill as stage
from pelap.stages.shared import Context
from pelap.surgery.apply import apply_plan, removed_operators
from pelap.surgery.operators import find_operators
from pelap.surgery.plan import Plan, complete_plan, plan_from_json
from pelap.training.trainer import Losses, Trainer

CPU = torch.device("cpu")
MASKED = VariantParams(sparsity_key="lambda", normalise="before_mask", decoder_input="masked")
TOPK = VariantParams(gate="topk", k=2, adaptive=False, sparsity_key="seed", decoder_input="masked")

Weights = dict[str, torch.Tensor]


def weights(task: float = 0.0, output: float = 0.0, feature: float = 0.0) -> LossWeights:
    return LossWeights(task_weight=task, output_weight=output, feature_weight=feature)


ALL = weights(1.0, 1.0, 1.0)


def state_of(network: nn.Module) -> Weights:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def shaken(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network with every parameter moved, as if it had been trained."""
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=stream) + 0.01)
    return network


def a_batch(open_channels: torch.Tensor | None = None) -> NoisyBatch:
    stream = torch.Generator().manual_seed(0)
    x, e = (torch.randn(4, 4, 4, 4, generator=stream) for _ in range(2))
    return NoisyBatch(x, torch.tensor([0, 5, 500, 999]), e, open_channels)


# --- the loss ---------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_student_equal_to_its_teacher_has_nothing_to_learn_from_it() -> None:
    teacher = tiny_model().unet
    losses = Objective(teacher, teacher, ALL)(tiny_model().unet, a_batch())
    assert float(losses["output"]) == float(losses["feature"]) == 0
    torch.testing.assert_close(losses["loss"], losses["task"])


@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_terms_are_the_definition(masked: bool) -> None:
    open_channels = torch.tensor([1.0, 0.0, 1.0, 0.0])[None, :, None, None] if masked else None
    there = [0, 2] if masked else [0, 1, 2, 3]
    batch, student, teacher = a_batch(open_channels), tiny_model(seed=1).unet, shaken(tiny_model().unet)
    names = matched_blocks(student, teacher)
    with FeatureTap(student, names) as s, FeatureTap(teacher, names) as t:
        predicted, teacher_prediction = batch.predict(student)[:, there], batch.predict(teacher)[:, there]
    features = [
        (s.features[name] - t.features[name]).square().mean() / t.features[name].square().mean()
        for name in names
    ]
    losses = Objective(student, teacher, weights(2.0, 10.0, 100.0))(student, batch)
    task = (predicted - batch.target[:, there]).square().mean()
    output = (predicted - teacher_prediction).square().mean() / teacher_prediction.square().mean()
    torch.testing.assert_close(losses["task"], task)
    torch.testing.assert_close(losses["output"], output)
    torch.testing.assert_close(losses["feature"], torch.stack(features).mean())
    torch.testing.assert_close(losses["loss"], 2 * task + 10 * output + 100 * losses["feature"])


@pytest.mark.parametrize("open_channels", [None, torch.tensor([1.0, 0.0, 0.0, 1.0])[None, :, None, None]])
def test_a_relative_distance_has_no_unit(open_channels: torch.Tensor | None) -> None:
    student, teacher = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    distance = relative_distance(student, teacher, open_channels)
    for scale in (2.0, 1e-3, 1e3):
        torch.testing.assert_close(
            relative_distance(scale * student, scale * teacher, open_channels), distance
        )
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


@pytest.mark.parametrize("unet", ["unet2d", "light"])
def test_matched_blocks_cover_the_network(unet: str) -> None:
    model = tiny_model(**({} if unet == "unet2d" else LIGHT))
    names = matched_blocks(model.unet, model.unet)
    assert len(names) == (5 if unet == "unet2d" else 4)
    with FeatureTap(model.unet, names) as tap:
        model.unet(torch.randn(1, 4, 4, 4), 3)
    assert set(tap.features) == set(names)


def test_features_alone_need_a_block() -> None:
    model = tiny_model()
    plan = plan_from_json({"operators": matched_blocks(model.unet, model.unet)}, "test")
    bare = apply_plan(model.unet, plan)
    with pytest.raises(TrainingError, match="feature_weight") as caught:
        Objective(bare, model.unet, weights(feature=1.0))
    assert "\n" not in str(caught.value)
    Objective(bare, model.unet, weights(task=1.0, feature=1.0))


# --- training ---------------------------------------------------------------------------------------


def batches_for(teacher: LatentDiffusion, params: DistillParams, **options: Any) -> ModelBatches:
    return ModelBatches(teacher, tiny_dataset(), params, 0, CPU, **options)


def train(
    student: nn.Module,
    teacher: LatentDiffusion,
    checkpoint: Path,
    how: LossWeights = ALL,
    measure: Quality | None = None,
    **overrides: Any,
) -> Distilled:
    named = {f"distill__{name}": value for name, value in overrides.items()}
    params = tiny_params(**named).distill
    batches = batches_for(teacher, params)
    return distill(student, teacher.unet, batches, params, how, CPU, checkpoint, measure)


def test_distillation_moves_the_student_alone(tmp_path: Path) -> None:
    teacher, student = tiny_model(), tiny_model(seed=1)
    before, vae_before = state_of(teacher), state_of(student.vae)
    start = student.unet.conv_in.weight.clone()
    trained = train(student.unet, teacher, tmp_path)
    assert same(state_of(teacher), before)
    assert same(state_of(student.vae), vae_before)
    assert not torch.equal(trained.network.conv_in.weight, start)
    assert not trained.network.training
    assert list(trained.progress.history[0]) == [
        *("step", "loss", "task", "output", "feature", "lr", "images_per_s")
    ]


def count_calls(network: nn.Module) -> list[int]:
    sizes: list[int] = []
    network.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    return sizes


@pytest.mark.parametrize("how", [weights(output=1.0), weights(feature=1.0), ALL])
def test_the_teacher_is_asked_once_for_each_batch(tmp_path: Path, how: LossWeights) -> None:
    teacher = tiny_model()
    calls = count_calls(teacher.unet)
    train(tiny_model(seed=1).unet, teacher, tmp_path, how)
    # 8 held-out pictures at steps 0, 3 and 6, and 6 steps.
    assert calls == [8, 16, 16, 16, 8, 16, 16, 16, 8]


def test_a_student_that_learns_from_the_data_alone_has_no_teacher(tmp_path: Path) -> None:
    teacher = tiny_model()
    before = state_of(teacher)
    copied = copy.deepcopy(teacher.unet)
    copied.requires_grad_(False)  # as a copy of a frozen teacher is
    calls = count_calls(teacher.unet)
    trained = train(copied, teacher, tmp_path, weights(task=2.0), log_every=1)
    assert not calls
    assert same(state_of(teacher), before)
    assert not same(state_of(trained.network), state_of(teacher.unet))
    for row in trained.progress.history:
        assert not {"output", "feature"} & set(row)
        assert row["loss"] == pytest.approx(2 * row["task"])
    assert [set(row) for row in trained.progress.validation] == [{"step", "task"}] * 3


def test_the_learning_rate_warms_up_and_falls(tmp_path: Path) -> None:
    trained = train(tiny_model(seed=1).unet, tiny_model(), tmp_path, log_every=1, warmup_steps=3)
    rates, lr = [row["lr"] for row in trained.progress.history], tiny_params().distill.lr
    assert rates[:3] == pytest.approx([lr / 3, lr * 2 / 3, lr])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] < 0.3 * lr


def test_a_student_learns_nothing_about_channels_that_are_gone(tmp_path: Path) -> None:
    teacher, student = tiny_model(fields=TOPK), tiny_model(fields=TOPK, seed=1)
    for model in (teacher, student):
        set_logits(model, 5.0, -5.0, 5.0, -5.0)
    start = student.unet.conv_out.weight.detach().clone()
    how = weights(task=1.0, output=1.0)
    trained = train(student.unet, teacher, tmp_path, how, weight_decay=0.0, ema_decay=0.0)
    moved = (trained.network.conv_out.weight.detach() - start).flatten(1).any(dim=1)
    assert moved.tolist() == [True, False, True, False]


# --- batches ----------------------------------------------------------------------------------------


def test_latents_are_masked() -> None:
    teacher = tiny_model(fields=MASKED)
    set_logits(teacher, -30.0)  # all channels closed: what is left is the noise
    batches = batches_for(teacher, tiny_params().distill)
    for batch in (next(batches(0)), next(iter(batches.held_out()))):
        share = batches.alphas[batch.timesteps][:, None, None, None]
        torch.testing.assert_close(batch.latents, (1 - share).sqrt() * batch.target)


def seen_by(patch: pytest.MonkeyPatch) -> list[NoisyBatch]:
    """Every batch that a student is given from now on."""
    seen: list[NoisyBatch] = []
    real = Objective.__call__

    def noting(self: Objective, student: nn.Module, batch: NoisyBatch) -> Losses:
        seen.append(batch)
        return real(self, student, batch)

    patch.setattr(Objective, "__call__", noting)
    return seen


def test_all_students_are_given_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = tiny_model()
    params = tiny_params(distill__steps=9, distill__precision="fp32").distill
    seen = seen_by(monkeypatch)
    runs = []
    # 9 steps of 16 are 144 draws from 128 pictures, mirrored ones counted: looked up, for one student too.
    for index, (num_students, how) in enumerate([(1, ALL), (1, weights(task=1.0)), (6, ALL)]):
        batches = batches_for(teacher, params, num_students=num_students)
        student = tiny_model(seed=index).unet
        distill(student, teacher.unet, batches, params, how, CPU, tmp_path / str(index))
        runs.append(list(seen))
        seen.clear()
    first = runs[0]
    assert len(first) == 9 + 4
    for run in runs[1:]:
        assert len(run) == len(first)
        for batch, expected in zip(run, first, strict=True):
            assert torch.equal(batch.target, expected.target)
            assert torch.equal(batch.timesteps, expected.timesteps)
            assert torch.equal(batch.latents, expected.latents)
    assert not torch.equal(first[1].target, first[2].target)


def test_batches_do_not_depend_on_the_number_of_students(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, params = tiny_model(), tiny_params().distill
    made = []
    real = teacher.vae.encode

    def encode(images: torch.Tensor) -> Any:
        made.append(len(images))
        return real(images)

    monkeypatch.setattr(teacher.vae, "encode", encode)
    one = batches_for(teacher, params)
    assert sum(made) == 8  # those held out
    many = batches_for(teacher, params, num_students=3)  # 288 draws from 128
    assert sum(made) == 8 + 8 + 128
    for step in (0, 5, 40):
        a, b = next(one(step)), next(many(step))
        torch.testing.assert_close(a.latents, b.latents)
        assert torch.equal(a.target, b.target)


def test_batches_go_on_at_any_step() -> None:
    batches = batches_for(tiny_model(), tiny_params().distill, num_students=9)
    stream = batches(0)
    whole = [next(stream) for _ in range(6)]
    for step in range(6):
        again = next(batches(step))
        for name in ("latents", "timesteps", "target"):
            assert torch.equal(getattr(again, name), getattr(whole[step], name))


def test_held_out_pictures_are_the_first_test_pictures_with_noise_of_their_own() -> None:
    teacher, dataset = tiny_model(), tiny_dataset()

    def held_out(dataset: ImageDataset, **overrides: Any) -> list[torch.Tensor]:
        named = {f"distill__{name}": value for name, value in overrides.items()}
        batches = ModelBatches(teacher, dataset, tiny_params(**named).distill, 0, CPU)
        noise = torch.cat([next(batches(0)).target, *(batch.target for batch in batches.held_out())])
        assert len(noise.unique(dim=0)) == len(noise)
        calls = [[b.latents for b in batches.held_out()] for _ in range(2)]
        assert all(torch.equal(a, b) for a, b in zip(*calls, strict=True))
        return calls[0]

    expected = torch.cat(held_out(dataset))
    assert len(expected) == 8
    small = held_out(dataset, batch_size=3)
    assert [len(each) for each in small] == [3, 3, 2]
    torch.testing.assert_close(torch.cat(small), expected)
    images = dataset.test.images.clone()
    images[8:] = 0
    other_rest = ImageDataset("x", tiny_dataset(70).train, Split(images, dataset.test.labels), ("a",), "", "")
    assert torch.equal(torch.cat(held_out(other_rest)), expected)
    images[0] = 0
    changed = torch.cat(held_out(other_rest))
    assert not torch.equal(changed[0], expected[0])
    assert torch.equal(changed[1:], expected[1:])


# --- batches that students share --------------------------------------------------------------------

OUTPUT = weights(task=1.0, output=2.0)


def shared_by(teacher: LatentDiffusion, params: DistillParams, limit: int = 2**20) -> SharedBatches:
    batches = batches_for(teacher, params, num_students=3)
    return SharedBatches(batches, teacher.unet, params.precision, limit)


@pytest.mark.parametrize(("fields", "precision"), [(MASKED, "fp32"), (TOPK, "bf16")], ids=["fp32", "bf16"])
def test_students_that_share_batches_learn_what_they_would_alone(
    tmp_path: Path, fields: VariantParams, precision: str
) -> None:
    params = tiny_params(distill__precision=precision, distill__log_every=1).distill
    students = [weights(task=1.0), OUTPUT, ALL, OUTPUT]
    ends: dict[str, list[Distilled]] = {}
    for name in ("alone", "shared"):
        teacher = tiny_model(fields=fields)
        shaken(teacher.unet)
        shared = shared_by(teacher, params)
        plain = batches_for(teacher, params, num_students=3)
        for index, how in enumerate(students):
            batches: Batches = shared.seen_by(how) if name == "shared" else plain
            student, folder = tiny_model(seed=index, fields=fields).unet, tmp_path / name / str(index)
            ends.setdefault(name, []).append(
                distill(student, teacher.unet, batches, params, how, CPU, folder)
            )
    for alone, together in zip(ends["alone"], ends["shared"], strict=True):
        assert same(state_of(alone.network), state_of(together.network))
        assert alone.progress.validation == together.progress.validation
        rows = [[row | {"images_per_s": 0} for row in each.progress.history] for each in (alone, together)]
        assert rows[0] == rows[1]


def test_the_teacher_is_asked_once_for_students_that_need_its_prediction_alone(tmp_path: Path) -> None:
    teacher, params = tiny_model(), tiny_params().distill
    shared, calls = shared_by(teacher, params), count_calls(teacher.unet)
    asked = []
    for index, how in enumerate([weights(task=1.0), OUTPUT, OUTPUT, weights(output=1.0), ALL]):
        student = tiny_model(seed=index).unet
        distill(student, teacher.unet, shared.seen_by(how), params, how, CPU, tmp_path / str(index))
        asked.append(len(calls))
        calls.clear()
    # 6 steps and 1 batch held out; features are not kept: asked 3 times about what is held out.
    assert asked == [0, 6 + 1, 0, 0, 6 + 3]


@torch.no_grad()
def test_a_prediction_that_comes_with_the_batch_is_taken() -> None:
    teacher, student, batch = tiny_model().unet, tiny_model(seed=1).unet, a_batch()
    teacher_prediction = replace(batch, teacher_prediction=batch.predict(student))
    assert float(Objective(student, teacher, OUTPUT)(student, teacher_prediction)["output"]) == 0
    # Of the features it says nothing: the teacher itself is run.
    assert float(Objective(student, teacher, ALL)(student, teacher_prediction)["output"]) > 0


def equal(one: NoisyBatch, other: NoisyBatch) -> bool:
    return all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in ("latents", "timesteps", "target")
    )


# Three times 16 latents of 4 x 4 x 4 floats, 16 time steps, and ones for the 16 x 4 channels that are there.
TAUGHT_BYTES = 3 * 16 * 64 * 4 + 16 * 8 + 16 * 4 * 4


@pytest.mark.parametrize(("limit", "num_kept"), [(0, 0), (3 * TAUGHT_BYTES - 1, 2), (2**20, 6)])
def test_shared_batches_are_those_of_the_steps_whatever_is_kept(limit: int, num_kept: int) -> None:
    teacher, params = tiny_model(), tiny_params().distill
    stream = batches_for(teacher, params, num_students=3)(0)
    expected = [next(stream) for _ in range(6)]
    for first in range(6):
        shared = shared_by(teacher, params, limit)
        # A student that goes on where it was interrupted comes first; the next has all steps.
        for step, how in ((first, OUTPUT), (0, OUTPUT), (0, ALL)):
            for wanted, batch in zip(expected[step:], shared.seen_by(how)(step), strict=False):
                assert equal(batch, wanted)
        again = [[next(shared.seen_by(how)(step)) for step in range(6)] for how in (OUTPUT, OUTPUT)]
        assert sum(one is other for one, other in zip(*again, strict=True)) == num_kept
        assert all(batch.teacher_prediction is not None for batch in again[0])


def test_a_batch_that_gets_its_prediction_later_takes_the_room_of_one() -> None:
    shared = shared_by(tiny_model(), tiny_params().distill, limit=2 * TAUGHT_BYTES)
    for how in (ALL, OUTPUT):
        made = [next(shared.seen_by(how)(step)) for step in range(2)]
    assert all(next(shared.seen_by(ALL)(step)) is batch for step, batch in enumerate(made))
    assert all(batch.teacher_prediction is not None for batch in made)


def test_what_is_held_out_is_made_once() -> None:
    shared = shared_by(tiny_model(), tiny_params(distill__batch_size=3).distill, limit=0)
    made = [list(shared.seen_by(how).held_out()) for how in (ALL, OUTPUT, weights(task=1.0), OUTPUT)]
    assert [len(batch.latents) for batch in made[0]] == [3, 3, 2]
    assert all(batch.teacher_prediction is None for batch in made[0])
    for batches in made[1:]:
        assert all(equal(one, other) for one, other in zip(batches, made[0], strict=True))
    assert all(
        one is other and one.teacher_prediction is not None
        for one, other in zip(made[1], made[3], strict=True)
    )


def test_a_term_that_no_student_has_gets_no_panel() -> None:
    history = pd.DataFrame({"student": ["a", "a"], "step": [1, 2], "task": [2.0, 1.0], "output": [0.5, 0.4]})
    for table in (history, history.assign(feature=float("nan"))):
        titles = [axis.get_title(loc="left") for axis in distillation_curves(table, ["a"]).axes]
        assert [title.split(":")[0] for title in titles] == ["Task", "Output"]
    assert len(distillation_curves(history[:0], ["a"]).axes) == 1


# --- validation and the step to keep ----------------------------------------------------------------


def test_validation_is_of_the_average_before_between_and_after(tmp_path: Path) -> None:
    teacher, student = tiny_model(), tiny_model(seed=1).unet
    params = tiny_params(distill__num_validation=11, distill__batch_size=4).distill
    objective = Objective(student, teacher.unet, ALL)
    batches = batches_for(teacher, params)
    before = held_out_losses(student, objective, batches)
    options = {"steps": 7, "num_validation": 11, "batch_size": 4, "ema_decay": 0.9, "lr": 1e-2}
    trained = train(student, teacher, tmp_path, **options)
    rows = trained.progress.validation
    assert [row["step"] for row in rows] == [0, 3, 6, 7]
    # A network in training lies in memory channels last: other kernels, which add in another order. PyTorch's
    # own and oneDNN's differ by 5e-8 of a loss here; two hundred times that, for processors not seen.
    assert rows[0] == pytest.approx({"step": 0, **before}, rel=1e-5)
    after = held_out_losses(trained.network, objective, batches)
    assert rows[-1] == pytest.approx({"step": 7, **after}, rel=1e-5)
    raw = held_out_losses(student, objective, batches)  # the weights that are averaged
    assert raw["task"] != pytest.approx(after["task"], rel=1e-4)
    assert all(rows[i]["task"] != rows[i + 1]["task"] for i in range(3))


@torch.no_grad()
def test_held_out_losses_are_means_over_pictures() -> None:
    teacher, student = tiny_model(), tiny_model(seed=1).unet
    objective = Objective(student, teacher.unet, ALL)
    losses = {
        size: held_out_losses(
            student,
            objective,
            batches_for(teacher, tiny_params(distill__batch_size=size, distill__num_validation=10).distill),
        )
        for size in (16, 4)
    }
    assert set(losses[16]) == {"task", "output", "feature"}
    assert losses[4]["task"] == pytest.approx(losses[16]["task"], rel=1e-5)


class Scripted:
    """A measure of quality with the values of a script, which notes the weights that it is asked about."""

    def __init__(self, *values: float) -> None:
        self.values: Iterator[float] = iter(values)
        self.seen: list[Weights] = []

    def __call__(self, network: nn.Module) -> dict[str, float]:
        assert not network.training
        self.seen.append(state_of(network))
        return {DISTANCE: next(self.values), f"{DISTANCE}_se": 0.5}


QUALITY = {"num_images": 4, "num_reference": 8, "sampler": {"kind": "ddim", "steps": 2}}


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ((4.0, 3.0, 1.0, 2.0), 2),
        ((1.0, 2.0, 3.0, 4.0), 0),
        ((4.0, 3.0, 2.0, 1.0), 3),
        ((2.0, 1.0, 1.0, 1.0), 1),
    ],
    ids=["between", "no training", "last", "first of equals"],
)
@pytest.mark.parametrize("select", ["loss", "distance", "last"])
def test_the_step_to_keep(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    select: str,
    values: tuple[float, ...],
    kept: int,
    ema_decay: float,
) -> None:
    script = Scripted(*values) if select != "loss" else Scripted(*(9.0 for _ in values))
    if select == "loss":
        losses = iter(values)
        monkeypatch.setattr(
            distillation, "held_out_losses", lambda *args: {"task": next(losses), "output": 0.0}
        )
    options = {"select": select, "ema_decay": ema_decay, "validate_every": 2}
    student, teacher = tiny_model(seed=1).unet, tiny_model()
    trained = train(student, teacher, tmp_path, measure=script, quality=QUALITY, **options)
    expected = 3 if select == "last" else kept
    assert trained.kept_step == [0, 2, 4, 6][expected]
    assert same(state_of(trained.network), script.seen[expected])
    assert not same(script.seen[0], script.seen[1])
    assert [row[DISTANCE] for row in trained.progress.validation] == (
        [*values] if select != "loss" else [9.0] * 4
    )


def test_an_interrupted_student_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (5.0, 1.0, 3.0, 2.0)
    options = {"select": "distance", "validate_every": 2, "log_every": 1, "quality": QUALITY}

    def run(folder: str, *values: float) -> Distilled:
        student, teacher = tiny_model(seed=1).unet, tiny_model()
        return train(student, teacher, tmp_path / folder, measure=Scripted(*values), **options)

    whole = run("whole", *script)
    with monkeypatch.context() as patch:
        cut_training(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            run("cut", *script[:3])
    with monkeypatch.context() as patch:
        taken = record_steps(patch)
        resumed = run("cut", script[3])
        assert taken == [5]
        again = run("cut")
        assert taken == [5]  # what is done is not done again
    for other in (resumed, again):
        assert other.kept_step == whole.kept_step == 2
        assert same(state_of(other.network), state_of(whole.network))
        assert other.progress.validation == whole.progress.validation
        losses = [[row["loss"] for row in each.progress.history] for each in (other, whole)]
        assert losses[0] == losses[1]


def test_a_loss_that_is_not_finite_is_told_with_the_student(tmp_path: Path) -> None:
    student = tiny_model(seed=1).unet
    with torch.no_grad():
        student.conv_out.bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match="distill: the loss is not finite near step 0"):
        train(student, tiny_model(), tmp_path)


@pytest.mark.parametrize("quality", [{"fd_effnet_lite0": float("nan")}, {"fd_effnet_lite0": float("inf")}])
def test_a_step_is_not_chosen_by_a_distance_that_is_no_number(
    tmp_path: Path, quality: dict[str, float]
) -> None:
    options = {"select": "distance", "quality": QUALITY}
    with pytest.raises(TrainingError, match="not finite near step 0: fd_effnet_lite0"):
        train(tiny_model(seed=1).unet, tiny_model(), tmp_path, measure=lambda _: quality, **options)


# --- all students of a run --------------------------------------------------------------------------

OPERATORS = {"7": ["mid_block.resnets.0"], "30": ["down_blocks.1.resnets.0", "up_blocks.1.resnets.1"]}
STUDENTS = {
    "distilled": {"start": "pruned", "task_weight": 1.0, "output_weight": 1.0, "feature_weight": 1.0},
    "scratch": {"start": "scratch", "task_weight": 1.0, "output_weight": 1.0, "feature_weight": 0.0},
    "dense-finetuned": {"start": "dense", "task_weight": 1.0, "output_weight": 0.0, "feature_weight": 0.0},
}
ROWS = ["distilled-7", "scratch-7", "distilled-30", "scratch-30", "dense-finetuned"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run after `prune`, with two plans."""
    root = tmp_path_factory.mktemp("prepared")
    paths = RunPaths(root / "run")
    teacher = tiny_model("baseline")
    shaken(teacher.unet)
    save_model(teacher, paths.train("baseline").model)
    paths.score.mkdir(parents=True)
    files.write_json(paths.score_protocol, {"variant": "baseline"})
    unet = teacher.unet
    found = find_operators(unet, lambda: unet(torch.randn(3, 4, 4, 4), 3))
    for name, operators in OPERATORS.items():
        plan = complete_plan(plan_from_json({"operators": operators}, "test"), unet, found)
        pruned = shaken(apply_plan(unet, plan), seed=1)
        save_model(teacher.with_unet(pruned, "pruned", 0.0), paths.pruned_model(name), plan)
    files.write_json(paths.prune_result, {name: {"num_operators": 1} for name in OPERATORS})
    save_dataset(tiny_dataset(), root / "data" / "photos.safetensors")
    return root


@pytest.fixture
def context_of(prepared: Path, tmp_path: Path) -> Callable[..., Context]:
    """From overrides of the parameters to a context on a copy of the prepared run."""

    def make(run: str = "run", **overrides: Any) -> Context:
        shutil.copytree(prepared / "run", tmp_path / run, dirs_exist_ok=True)
        options = {"students": STUDENTS, "log_every": 1, **overrides}
        named = {f"distill__{name}": value for name, value in options.items()}
        return Context(tiny_params(**named), RunPaths(tmp_path / run), prepared / "data", CPU)

    return make


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_every_student_of_every_plan_is_trained_and_saved(
    context_of: Callable[..., Context], capsys: pytest.CaptureFixture[str]
) -> None:
    context = context_of()
    paths, before = context.paths, files_below(context.paths.root)
    stage.run(context)
    after = files_below(paths.root)
    assert {name: after[name] for name in before} == before  # the teacher's folder among them
    assert not (paths.root / ".resume").exists()
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed] == ROWS
    result = files.read_json(paths.distill_result)
    assert list(result) == ROWS
    for row, how in result.items():
        student, _, plan = row.partition("-")
        assert how == {
            "student": student,
            "plan": plan or None,
            "steps": 6,
            "kept_step": 6,
            "select": "last",
            **STUDENTS[student],
        }
        folder = paths.distilled_model(row)
        model = load_model(folder)
        assert (model.info.name, model.info.ema_decay) == (row, context.params.distill.ema_decay)
        assert sorted(removed_operators(model.unet)) == sorted(OPERATORS.get(plan, []))
        if plan:
            assert model_plan(folder) == model_plan(paths.pruned_model(plan))
    history, validation = pd.read_csv(paths.distill_history), pd.read_csv(paths.distill_validation)
    assert list(history) == ["student", "step", "loss", "task", "output", "feature", "lr", "images_per_s"]
    assert list(validation) == ["student", "step", "task", "output", "feature"]
    for table, steps in ((history, [1, 2, 3, 4, 5, 6]), (validation, [0, 3, 6])):
        assert list(dict.fromkeys(table["student"])) == ROWS
        for row, lines in table.groupby("student"):
            assert lines["step"].tolist() == steps
            assert lines["task"].notna().all()
            how = STUDENTS[str(row).partition("-")[0]]
            for term in ("output", "feature"):
                assert lines[term].notna().all() == lines[term].notna().any() == bool(how[f"{term}_weight"])


def starts_of(context: Context, patch: pytest.MonkeyPatch) -> dict[str, nn.Module]:
    """The students of a run before their first step, by row."""
    starts: dict[str, nn.Module] = {}

    def noting(student: nn.Module, *args: Any) -> Distilled:
        starts[args[-1].removeprefix("distill ")] = copy.deepcopy(student)
        return distill(student, *args)

    def batches(*args: Any) -> ModelBatches:
        announced.append(args[-1])
        return ModelBatches(*args)

    announced: list[int] = []
    patch.setattr(stage, "distill", noting)
    patch.setattr(stage, "ModelBatches", batches)
    stage.run(context)
    assert announced == [len(starts)]
    return starts


def test_students_start_as_they_should(
    context_of: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The second one would see what the first one did to a teacher that it was not a copy of.
    context = context_of(students=STUDENTS | {"again": STUDENTS["dense-finetuned"]}, steps=3)
    starts = starts_of(context, monkeypatch)
    teacher = load_model(context.paths.train("baseline").model).unet
    for name in ("dense-finetuned", "again"):
        assert same(state_of(starts[name]), state_of(teacher))
    for plan in OPERATORS:
        pruned = load_model(context.paths.pruned_model(plan)).unet
        assert same(state_of(starts[f"distilled-{plan}"]), state_of(pruned))
        fresh, dense = state_of(starts[f"scratch-{plan}"]), state_of(teacher)
        for name, tensor in state_of(pruned).items():
            assert fresh[name].shape == tensor.shape
            assert not torch.isclose(fresh[name], tensor).all()
            if name in dense:
                assert not torch.isclose(fresh[name], dense[name]).all()
        norms = [m for m in starts[f"scratch-{plan}"].modules() if isinstance(m, nn.GroupNorm)]
        assert norms
        assert all(bool((norm.weight == 1).all()) for norm in norms)


@pytest.mark.parametrize("kind", ["unet2d", "light", "cut"])
def test_any_unet_can_be_had_anew(kind: str) -> None:
    options = {} if kind == "unet2d" else LIGHT
    dense = CutLightUNet(in_channels=3, width=8) if kind == "cut" else tiny_model(**options).unet
    fresh = stage.reinitialised(dense, Plan(()), 0)
    assert type(fresh) is type(dense)
    shapes = [{name: tensor.shape for name, tensor in each.state_dict().items()} for each in (fresh, dense)]
    assert shapes[0] == shapes[1]
    assert not same(state_of(fresh), state_of(dense))


def test_fresh_weights_are_the_same_for_the_same_seed_and_move_no_other_number() -> None:
    dense = tiny_model().unet
    plan = plan_from_json({"operators": OPERATORS["30"]}, "test")
    made = []
    for outside, seed in ((1, 0), (2, 0), (1, 5)):
        torch.manual_seed(outside)
        made.append(state_of(stage.reinitialised(dense, plan, seed)))
        after = torch.rand(3)
        torch.manual_seed(outside)
        assert torch.equal(after, torch.rand(3))
    assert same(made[0], made[1])
    assert not same(made[0], made[2])


def test_a_run_that_was_cut_goes_on_with_the_student_it_was_at(
    context_of: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.run(context_of("whole"))
    context = context_of("cut")
    old = context.paths.distill / "of an earlier run.txt"
    old.parent.mkdir()
    old.touch()
    step = Trainer._step
    with monkeypatch.context() as patch:

        def cut(self: Trainer, *args: Any) -> Any:
            if (self.label, self.progress.step) == ("distill distilled-30", 4):
                raise KeyboardInterrupt
            return step(self, *args)

        patch.setattr(SAVE_EVERY, -1.0)
        patch.setattr(Trainer, "_step", cut)
        with pytest.raises(KeyboardInterrupt):
            stage.run(context)
    assert files_below(context.paths.distill) == {old.name: b""}
    taken: list[tuple[str, int]] = []

    def note(self: Trainer, *args: Any) -> Any:
        taken.append((self.label.removeprefix("distill "), self.progress.step))
        return step(self, *args)

    monkeypatch.setattr(Trainer, "_step", note)
    stage.run(context)
    rest = [("distilled-30", 4), ("distilled-30", 5)]
    assert taken == rest + [(row, i) for row in ("scratch-30", "dense-finetuned") for i in range(6)]
    assert not (context.paths.root / ".resume").exists()
    whole, resumed = (files_below(context.paths.root.parent / run / "distill") for run in ("whole", "cut"))
    assert whole.keys() == resumed.keys()
    assert all(whole[name] == resumed[name] for name in whole if name != "history.csv")
    tables = [
        pd.read_csv(context.paths.root.parent / run / "distill" / "history.csv").drop(columns="images_per_s")
        for run in ("whole", "cut")
    ]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_state_of_another_training_is_not_gone_on_from(
    context_of: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []

    def stop(*args: Any) -> Distilled:
        seen.append(args[6])
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "distill", stop)

    def start(context: Context) -> None:
        with pytest.raises(KeyboardInterrupt):
            stage.run(context)

    start(context_of())
    # Other students are no reason to start this one anew.
    start(context_of(students={"distilled": STUDENTS["distilled"]}))
    assert len(set(seen)) == 1
    start(context_of(lr=3e-4))
    start(context_of(students={"distilled": STUDENTS["distilled"] | {"feature_weight": 0.5}}))
    for folder in (
        RunPaths(seen[0].parents[1]).train("baseline").model,
        RunPaths(seen[0].parents[1]).pruned_model("7"),
    ):
        context = context_of()
        plan = model_plan(folder) if folder.name == "7" else None
        model = load_model(folder)
        shaken(model.unet, seed=3)
        save_model(model, folder, plan)
        start(context)
    assert len(set(seen)) == 5


def test_quality_is_measured_on_the_way_and_can_choose(
    context_of: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []

    def sample(source: ImageGenerator, num: int, seed: int) -> torch.Tensor:
        seeds.append(seed)
        return sample_from(source, num, seed)

    monkeypatch.setattr(stage, "sample_from", sample)
    context = context_of(quality=QUALITY, select="distance")
    stage.run(context)
    validation = pd.read_csv(context.paths.distill_validation)
    assert validation[DISTANCE].notna().all()
    for row, how in files.read_json(context.paths.distill_result).items():
        lines = validation[validation["student"] == row].set_index("step")
        assert how["kept_step"] == lines[DISTANCE].idxmin()
    assert len(seeds) == 3 * len(ROWS)
    assert len(set(seeds)) == 1
    assert seeds[0] != context.params.seed  # of the evaluation's noise
    assert reference_cache(context.data).is_dir()


def test_what_is_missing_or_does_not_fit_is_told_in_a_line(context_of: Callable[..., Context]) -> None:
    def no_result(paths: RunPaths) -> None:
        paths.prune_result.unlink()

    def no_plan(paths: RunPaths) -> None:
        files.write_json(paths.prune_result, {})

    def no_model(paths: RunPaths) -> None:
        shutil.rmtree(paths.pruned_model("30"))

    def not_pruned(paths: RunPaths) -> None:
        save_model(load_model(paths.train("baseline").model), paths.pruned_model("7"))

    def no_teacher(paths: RunPaths) -> None:
        shutil.rmtree(paths.train("baseline").model)

    def other_teacher(paths: RunPaths) -> None:
        save_model(tiny_model("baseline", **LIGHT), paths.train("baseline").model)

    cases: list[tuple[Callable[[RunPaths], None], type[PelapError], str, dict[str, Any]]] = [
        (no_result, DataError, "prune/result.json: no such file", {}),
        (no_plan, DataError, "names no plan", {}),
        (no_model, ModelError, "models/30: no such model folder; run `pelap prune`", {}),
        (not_pruned, PlanError, "plan.json", {}),
        (no_teacher, ModelError, "no such model folder", {}),
        # Without one that starts from scratch, which would be told of it by the plan itself.
        (other_teacher, PlanError, "was made for the network", {"students": {"one": STUDENTS["distilled"]}}),
        (lambda paths: None, DataError, "num_reference", {"quality": QUALITY | {"num_reference": 65}}),
        (lambda paths: None, DataError, "batch_size", {"batch_size": 65}),
    ]
    for index, (damage, kind, words, overrides) in enumerate(cases):
        context = context_of(f"run{index}", **overrides)
        damage(context.paths)
        with pytest.raises(kind, match=words) as caught:
            stage.run(context)
        assert "\n" not in str(caught.value)
        assert not context.paths.distill.exists()
