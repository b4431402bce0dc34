"""Phases of training: which part learns when, at which rate, under which penalty, on which statistics."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from tiny import tiny_dataset, tiny_model, tiny_params
from training_cases import train_jointly

from pelap.config import VariantParams
from pelap.data.dataset import to_float
from pelap.models.latent_diffusion import LatentDiffusion
from pelap.training import joint
from pelap.training.joint import calibrate
from pelap.training.objective import Phase, Schedule
from pelap.training.trainer import Progress, Trainer, indices_from

CPU = torch.device("cpu")
STEPS = 10  # steps of an epoch here


def _schedule(train: dict[str, Any] | None = None, **fields: Any) -> Schedule:
    """Six epochs, two of the autoencoder before them where it is trained first, penalty 0.5."""
    options = {"train__epochs": 6, "train__vae_epochs": 2} | (train or {})
    return Schedule(VariantParams(sparsity_key="lambda", **fields), 0.5, tiny_params(**options).train, STEPS)


def _strengths(schedule: Schedule) -> list[float]:
    return [schedule.at(step).sparsity_weight for step in range(schedule.num_steps)]


# --- the penalty over time --------------------------------------------------------------------------


def test_a_constant_penalty_is_there_from_the_first_step() -> None:
    schedule = _schedule()
    assert schedule.num_steps == 60
    assert _strengths(schedule) == [0.5] * 60
    assert schedule.at(0) == Phase(vae_alone=False, masked=True, sparsity_weight=0.5)


@pytest.mark.parametrize(
    ("shape", "quarter"), [("linear", 0.25), ("cosine", (1 - math.cos(math.pi / 4)) / 2)]
)
@pytest.mark.parametrize("start", [0, 3])
def test_a_warm_up_rises_from_nothing_to_the_whole_penalty(shape: str, quarter: float, start: int) -> None:
    schedule = _schedule(schedule=shape, warmup_epochs=2, start_epoch=start)
    strengths, first = _strengths(schedule), start * STEPS
    assert strengths[: first + 1] == [0.0] * (first + 1)
    assert strengths[first + 5] == pytest.approx(0.5 * quarter)
    assert strengths[first + 10] == pytest.approx(0.25)
    assert strengths[first + 19] < 0.5
    assert strengths[first + 20 :] == [0.5] * (40 - first)
    assert strengths == sorted(strengths)


def test_the_mask_comes_into_force_with_its_start_epoch() -> None:
    schedule = _schedule(start_epoch=3)
    masked = [schedule.at(step).masked for step in range(60)]
    assert masked == [False] * 30 + [True] * 30
    assert _strengths(schedule) == [0.0] * 30 + [0.5] * 30


def test_the_autoencoder_may_be_trained_first() -> None:
    schedule = _schedule(vae_training="two_stage", start_epoch=1, schedule="linear", warmup_epochs=1)
    assert (schedule.vae_steps, schedule.num_steps) == (20, 80)
    assert [schedule.at(step).vae_alone for step in range(80)] == [True] * 20 + [False] * 60
    # Epochs of the mask are counted from the end of the first phase.
    assert [schedule.at(step).masked for step in range(80)] == [False] * 30 + [True] * 50
    strengths = _strengths(schedule)
    assert strengths[:31] == [0.0] * 31
    assert strengths[35] == pytest.approx(0.25)
    assert strengths[40:] == [0.5] * 40
    assert _schedule(vae_training="joint").vae_steps == 0


# --- the learning rate ------------------------------------------------------------------------------


def test_the_learning_rate_falls_once_in_each_phase() -> None:
    params = _schedule().params
    for schedule, starts in ((_schedule(), [0, 60]), (_schedule(vae_training="two_stage"), [0, 20, 80])):
        for first, end in pairwise(starts):
            rates = [schedule.lr_at(step) for step in range(first, end)]
            assert rates[0] == params.lr
            assert rates == sorted(rates, reverse=True)
            assert len(set(rates)) == len(rates)
            assert rates[len(rates) // 2] == pytest.approx((params.lr + params.lr_min) / 2)
            assert params.lr_min < rates[-1] < 0.02 * params.lr


@pytest.mark.parametrize(("coupling", "starts"), [("joint", [0]), ("two_stage", [0, 20])])
def test_the_papers_learning_rate_moves_by_epoch(coupling: str, starts: list[int]) -> None:
    schedule = _schedule({"train__lr_update": "epoch"}, vae_training=coupling)
    for first in starts:
        assert schedule.lr_at(first) == schedule.lr_at(first + 9) > schedule.lr_at(first + 10)
        assert schedule.lr_at(first + 10) == schedule.lr_at(first + 19)
    total = schedule.num_steps - schedule.vae_steps
    expected = schedule.params.lr_min + (schedule.params.lr - schedule.params.lr_min) / 2
    assert schedule.lr_at(schedule.vae_steps + total // 2) == pytest.approx(expected)


# --- training by it ---------------------------------------------------------------------------------

Weights = dict[str, torch.Tensor]
Train = Callable[..., tuple[list[Weights], LatentDiffusion, Progress]]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Train:
    """Trains a variant of some fields; weights before every step and after the last, 4 steps an epoch."""

    def run(fields: dict[str, Any], **train: Any) -> tuple[list[Weights], LatentDiffusion, Progress]:
        options = {"train__batch_size": 16, "train__ema_decay": 0.0, "train__log_every": 1}
        options |= {f"train__{name}": value for name, value in train.items()}
        model = tiny_model(fields=VariantParams(**fields), **options)
        weights: list[Weights] = []
        step = Trainer._step

        def snapshot() -> None:
            weights.append({name: p.detach().clone() for name, p in model.named_parameters()})

        def noting(self: Trainer, *args: Any) -> Any:
            snapshot()
            return step(self, *args)

        monkeypatch.setattr(Trainer, "_step", noting)
        params = tiny_params(**options).train
        kept, progress = train_jointly(model, tiny_dataset(), params, CPU)
        snapshot()
        return weights, kept, progress

    return run


def _moves(weights: list[Weights], part: str) -> list[bool]:
    """Whether each step changed a part."""
    return [
        any(not torch.equal(before[name], after[name]) for name in before if name.split(".")[0] == part)
        for before, after in pairwise(weights)
    ]


FIRST = {
    "sparsity_key": "lambda",
    "normalise": "before_mask",
    "decoder_input": "masked",
    "vae_training": "two_stage",
}


def test_the_autoencoder_trained_first_stays_and_the_others_wait_for_it(trained: Train) -> None:
    weights, kept, progress = trained(FIRST, epochs=2, vae_epochs=1)
    assert _moves(weights, "vae") == [True] * 4 + [False] * 8
    for part in ("unet", "mask"):
        assert _moves(weights, part) == [False] * 4 + [True] * 8
    for name, tensor in kept.vae.named_parameters():
        assert torch.equal(tensor, weights[4][f"vae.{name}"])
    history = progress.history
    assert all("noise" not in row for row in history[:4])
    assert all("noise" in row for row in history[4:])
    assert history[4]["lr"] == history[0]["lr"] > history[3]["lr"]
    assert [row["epoch"] for row in progress.validation] == [1, 2, 3]


def test_the_unet_learns_on_the_averaged_autoencoder_that_is_kept(trained: Train) -> None:
    weights, kept, _ = trained(FIRST, epochs=2, vae_epochs=1, ema_decay=0.9)
    for name, tensor in kept.vae.named_parameters():
        assert torch.equal(weights[5][f"vae.{name}"], tensor)
        assert torch.equal(weights[-1][f"vae.{name}"], tensor)


def test_joint_training_moves_every_part_from_the_first_step(trained: Train) -> None:
    weights, *_ = trained({"sparsity_key": "lambda"}, epochs=1)
    for part in ("vae", "unet", "mask"):
        assert _moves(weights, part) == [True] * 4


def test_the_epoch_to_keep_is_none_of_the_autoencoder_alone(
    trained: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    real = Trainer.keep_current

    def keep(self: Trainer) -> None:
        real(self)
        steps.append(self.progress.step)

    monkeypatch.setattr(Trainer, "keep_current", keep)
    trained(FIRST, epochs=1, vae_epochs=2, select="best")
    assert steps == [12]


def test_the_epoch_to_keep_has_its_mask_in_force(trained: Train) -> None:
    fields = {"sparsity_key": "seed", "sparsity_weight": 0.1, "start_epoch": 2, "decoder_input": "masked"}
    # Without a step forward the first epoch would be as good as any.
    _, kept, _ = trained(fields, epochs=3, select="best", lr=1e-12, lr_min=0.0)
    assert kept.mask is not None
    assert bool(kept.mask.started)


def test_until_its_start_epoch_the_mask_is_open_and_does_not_learn(trained: Train) -> None:
    fields = {
        "gate": "sigmoid",
        "adaptive": False,
        "sparsity_key": "lambda",
        "start_epoch": 1,
        "schedule": "linear",
        "warmup_epochs": 1,
    }
    weights, kept, progress = trained(fields, epochs=3, weight_decay=0.0)
    assert _moves(weights, "mask") == [False] * 4 + [True] * 8
    means = [row["mean_mask"] for row in progress.history]
    assert means[:4] == [1.0] * 4
    assert all(0.9 < mean < 0.96 for mean in means[4:])
    assert progress.validation[0]["mean_mask"] == 1
    assert progress.validation[1]["mean_mask"] < 1
    # Of the epoch's last step.
    assert [row["sparsity_weight"] for row in progress.validation] == pytest.approx([0, 0.001 * 3 / 4, 0.001])
    assert kept.mask is not None
    assert kept.mask.started


@pytest.mark.parametrize("mask_lr", [None, 0.05])
def test_the_mask_has_a_learning_rate_of_its_own(trained: Train, mask_lr: float | None) -> None:
    fields = {"adaptive": False, "sparsity_key": "seed", "sparsity_weight": 1.0, "mask_lr": mask_lr}
    train = {"epochs": 1, "steps_per_epoch": 1, "lr": 0.002, "lr_update": "epoch", "weight_decay": 0.0}
    weights, _, progress = trained(fields, **train)
    # Adam's first step is the learning rate, whatever the gradient.
    moved = {name: (weights[1][name] - tensor).abs().max() for name, tensor in weights[0].items()}
    assert float(moved.pop("mask.logits")) == pytest.approx(mask_lr or 0.002, rel=1e-3)
    assert float(max(moved.values())) == pytest.approx(0.002, rel=1e-3)
    assert progress.history[0]["lr"] == 0.002


def test_a_learning_rate_of_the_mask_falls_with_the_others(
    trained: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[dict[float, float]] = []
    step = Trainer._step

    def noting(self: Trainer, *args: Any) -> Any:
        losses = step(self, *args)
        rates.append({group["lr_factor"]: group["lr"] for group in self.optimiser.param_groups})
        return losses

    monkeypatch.setattr(Trainer, "_step", noting)
    trained({"sparsity_key": "lambda", "mask_lr": 0.03}, epochs=1)
    assert all(row[30.0] == pytest.approx(30 * row[1.0]) for row in rates)
    assert rates[-1][30.0] < rates[0][30.0]


# --- epochs of fewer steps --------------------------------------------------------------------------


def test_an_epoch_of_fewer_steps_takes_the_first_batches_of_a_new_order() -> None:
    stream = indices_from(40, 4, 0, "order", False, 0, steps_per_epoch=3)
    epochs = [torch.cat([next(stream).indices for _ in range(3)]).tolist() for _ in range(4)]
    assert all(len(set(seen)) == 12 for seen in epochs)
    assert len({frozenset(seen) for seen in epochs}) == 4
    whole = indices_from(40, 4, 0, "order", False, 0)
    assert torch.cat([next(whole).indices for _ in range(3)]).tolist() == epochs[0]


@pytest.mark.parametrize("steps_per_epoch", [None, 1, 2, 100])
def test_batches_go_on_at_any_step(steps_per_epoch: int | None) -> None:
    whole = indices_from(14, 4, 0, "order", True, 0, steps_per_epoch)
    first = [next(whole) for _ in range(8)]
    assert {int(each) for indices in first for each in indices.mirrored} == {0, 1}
    for start in range(6):
        rest = indices_from(14, 4, 0, "order", True, start, steps_per_epoch)
        for expected in first[start:]:
            for found, wanted in zip(next(rest), expected, strict=True):
                assert torch.equal(found, wanted)


@pytest.mark.parametrize(("asked", "expected"), [(None, 4), (1, 1), (3, 3), (100, 4)])
def test_an_epoch_has_the_steps_that_are_asked_for_and_that_the_data_has(
    trained: Train, asked: int | None, expected: int
) -> None:
    weights, _, progress = trained({"sparsity_key": "lambda"}, steps_per_epoch=asked)
    assert progress.step == len(weights) - 1 == 2 * expected
    assert [(row["epoch"], row["step"]) for row in progress.validation] == [(1, expected), (2, 2 * expected)]


def test_training_takes_a_new_order_after_each_short_epoch(
    trained: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    real = joint.joint_losses

    def noting(model: LatentDiffusion, images: torch.Tensor, *args: Any) -> Any:
        if model.training:
            seen.append(images)
        return real(model, images, *args)

    monkeypatch.setattr(joint, "joint_losses", noting)
    trained({"sparsity_key": "lambda"})
    trained({"sparsity_key": "lambda"}, steps_per_epoch=1)
    whole, short = seen[:8], seen[8:]
    assert len(short) == 2
    assert torch.equal(short[0], whole[0])
    assert torch.equal(short[1], whole[4])  # the first batch of the second epoch


# --- the normaliser's statistics --------------------------------------------------------------------


def _statistics(model: LatentDiffusion, seen: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation per channel of what the normaliser gives on the training pictures."""
    images = to_float(tiny_dataset().train.images)
    latents = model.encode(images, torch.randn(len(images), *model.latent_shape)).latents.detach()
    if seen == "after_mask":
        latents = model.unet_input(latents, model.gates(latents)).detach()
    return latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("normalise", ["before_mask", "after_mask"])
def test_a_trained_model_normalises_by_the_statistics_of_its_own_encoder(
    trained: Train, normalise: str, ema_decay: float
) -> None:
    fields = {"sparsity_key": "lambda", "normalise": normalise}
    train = {"epochs": 2, "lr": 0.01, "ema_decay": ema_decay}
    _, kept, _ = trained(fields, **train)
    assert not kept.training
    mean, std = _statistics(kept, normalise)
    torch.testing.assert_close(mean, torch.zeros(4), rtol=0, atol=0.1)
    torch.testing.assert_close(std, torch.ones(4), rtol=0, atol=0.05)


@pytest.mark.parametrize("training", [True, False])
def test_calibration_forgets_the_statistics_before_it_and_changes_nothing_else(training: bool) -> None:
    model = tiny_model(fields=VariantParams(sparsity_key="lambda", normalise="before_mask")).train(training)
    assert model.normaliser is not None
    statistics = model.normaliser.statistics
    assert statistics.running_mean is not None
    statistics.running_mean.fill_(50.0)
    momentum = statistics.momentum
    before = {name: p.clone() for name, p in model.named_parameters()}
    images = tiny_dataset().train.images
    calibrate(model, images, 16)
    found = {name: tensor.clone() for name, tensor in model.normaliser.state_dict().items()}
    assert (model.training, model.normaliser.training, statistics.momentum) == (training, training, momentum)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    calibrate(model, images, 16)  # the same pictures and noise: the same statistics
    assert all(torch.equal(tensor, found[name]) for name, tensor in model.normaliser.state_dict().items())
    mean, std = _statistics(model.eval(), "before_mask")
    torch.testing.assert_close(mean, torch.zeros(4), rtol=0, atol=0.1)
    torch.testing.assert_close(std, torch.ones(4), rtol=0, atol=0.05)


def test_without_a_normaliser_there_is_nothing_to_calibrate() -> None:
    model = tiny_model("baseline")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    calibrate(model, tiny_dataset().train.images, 16)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
