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
from pelap.training.objective import Schedule
from pelap.training.trainer import Progress, Trainer, indices_from

CPU = torch.device("cpu")
STEPS = 10  # steps of an epoch of a `Schedule` here


def _schedule(train: dict[str, Any] | None = None, **fields: Any) -> Schedule:
    """Six epochs, two of the autoencoder before them where it is trained first, penalty 0.5."""
    options = {"train__epochs": 6, "train__vae_epochs": 2} | (train or {})
    return Schedule(VariantParams(sparsity_key="lambda", **fields), 0.5, tiny_params(**options).train, STEPS)


@pytest.mark.parametrize(
    ("fields", "num_alone", "start", "shares"),
    [
        ({}, 0, 0, [1.0]),
        ({"start_epoch": 3}, 0, 30, [1.0]),
        ({"schedule": "linear", "warmup_epochs": 2}, 0, 0, [0.0, 0.25, 0.5, 0.75, 1.0]),
        (
            {"schedule": "cosine", "warmup_epochs": 2, "start_epoch": 3},
            *(0, 30),
            [(1 - math.cos(math.pi * i / 4)) / 2 for i in range(5)],
        ),
        # Epochs of the mask are counted from the end of the first phase.
        (
            {"vae_training": "two_stage", "start_epoch": 1, "schedule": "linear", "warmup_epochs": 2},
            *(20, 30),
            [0.0, 0.25, 0.5, 0.75, 1.0],
        ),
    ],
    ids=["constant", "start", "linear", "cosine", "vae first"],
)
def test_the_penalty_and_the_mask_come_with_their_epochs(
    fields: dict[str, Any], num_alone: int, start: int, shares: list[float]
) -> None:
    schedule = _schedule(**fields)
    phases = [schedule.at(step) for step in range(schedule.num_steps)]
    assert len(phases) == num_alone + 60
    assert [phase.vae_alone for phase in phases] == [step < num_alone for step in range(len(phases))]
    assert [phase.masked for phase in phases] == [step >= start for step in range(len(phases))]
    weights = [phase.sparsity_weight for phase in phases]
    assert weights[:start] == [0.0] * start
    warmup = weights[start : start + 5 * len(shares) : 5]
    assert warmup == pytest.approx([0.5 * share for share in shares])
    assert weights == sorted(weights)
    assert set(weights[start + 5 * (len(shares) - 1) :]) == {0.5}


@pytest.mark.parametrize(("fields", "starts"), [({}, [0, 60]), ({"vae_training": "two_stage"}, [0, 20, 80])])
def test_the_learning_rate_falls_once_in_each_phase(fields: dict[str, Any], starts: list[int]) -> None:
    params = _schedule().params
    smooth, by_epoch = _schedule(**fields), _schedule({"train__lr_update": "epoch"}, **fields)
    for first, end in pairwise(starts):
        rates = [smooth.lr_at(step) for step in range(first, end)]
        assert rates[0] == params.lr
        assert rates == sorted(set(rates), reverse=True)
        assert rates[len(rates) // 2] == pytest.approx((params.lr + params.lr_min) / 2)
        assert params.lr_min < rates[-1] < 0.02 * params.lr
        # The paper's moves by epoch.
        expected = [rates[step // STEPS * STEPS] for step in range(end - first)]
        assert [by_epoch.lr_at(step) for step in range(first, end)] == expected


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
        kept, progress = train_jointly(model, tiny_dataset(), tiny_params(**options).train, CPU)
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
    "sparsity_key": "seed",
    "sparsity_weight": 0.1,
    "normalise": "before_mask",
    "decoder_input": "masked",
    "vae_training": "two_stage",
}


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_the_others_wait_for_the_autoencoder_trained_first_and_learn_on_what_is_kept_of_it(
    trained: Train, ema_decay: float
) -> None:
    weights, kept, progress = trained(FIRST, epochs=2, vae_epochs=1, ema_decay=ema_decay)
    assert _moves(weights, "vae") == [True] * 4 + [False] * 8
    for part in ("unet", "mask"):
        assert _moves(weights, part) == [False] * 4 + [True] * 8
    for name, tensor in kept.vae.named_parameters():
        assert torch.equal(tensor, weights[4][f"vae.{name}"])  # their average, if there is one
    history = progress.history
    assert [("noise" in row) for row in history] == [False] * 4 + [True] * 8
    assert history[4]["lr"] == history[0]["lr"] > history[3]["lr"]
    assert [(row["epoch"], row["step"]) for row in progress.validation] == [(1, 4), (2, 8), (3, 12)]


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_mask_that_learns_from_pictures_alone_is_trained_and_frozen_with_the_autoencoder(
    trained: Train, ema_decay: float
) -> None:
    fields = FIRST | {
        "gate": "hard_concrete",
        "adaptive": False,
        "mask_losses": ["reconstruction", "sparsity"],
    }
    weights, kept, progress = trained(fields, epochs=2, vae_epochs=1, ema_decay=ema_decay)
    for part in ("vae", "mask"):
        assert _moves(weights, part) == [True] * 4 + [False] * 8
    assert _moves(weights, "unet") == [False] * 4 + [True] * 8
    assert kept.mask is not None
    assert torch.equal(kept.mask.logits, weights[4]["mask.logits"])  # their average, if there is one
    means = [row["mean_mask"] for row in progress.history]
    assert len(set(means[:4])) == 4  # gates are drawn while they learn
    assert len(set(means[4:])) == 1  # and used as they are afterwards


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
    for part in ("vae", "unet"):
        assert _moves(weights, part) == [True] * 12
    means = [row["mean_mask"] for row in progress.history]
    assert means[:4] == [1.0] * 4
    assert all(0.9 < mean < 0.96 for mean in means[4:])
    assert progress.validation[0]["mean_mask"] == 1 > progress.validation[1]["mean_mask"]
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


def test_training_has_the_steps_asked_for_and_a_new_order_after_each_epoch(
    trained: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    real = joint.joint_losses

    def noting(model: LatentDiffusion, images: torch.Tensor, *args: Any) -> Any:
        if model.training:
            seen.append(images)
        return real(model, images, *args)

    monkeypatch.setattr(joint, "joint_losses", noting)
    firsts = []
    for asked, expected in ((None, 4), (1, 1), (100, 4)):
        _, _, progress = trained({"sparsity_key": "lambda"}, steps_per_epoch=asked)
        assert [row["step"] for row in progress.validation] == [expected, 2 * expected]
        firsts.append((seen[0], seen[expected]))
        seen.clear()
    for other in firsts[1:]:
        assert all(torch.equal(*pair) for pair in zip(firsts[0], other, strict=True))


# --- the normaliser's statistics --------------------------------------------------------------------


def _demand_standard(model: LatentDiffusion, seen: str) -> None:
    """The normaliser must give the training pictures mean 0 and standard deviation 1, in each channel."""
    images = to_float(tiny_dataset().train.images)
    latents = model.encode(images, torch.randn(len(images), *model.latent_shape)).latents.detach()
    if seen == "after_mask":
        latents = model.unet_input(latents, model.gates(latents)).detach()
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(4), rtol=0, atol=0.1)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(4), rtol=0, atol=0.05)


@pytest.mark.parametrize(("normalise", "ema_decay"), [("before_mask", 0.9), ("after_mask", 0.0)])
def test_a_trained_model_normalises_by_the_statistics_of_its_own_encoder(
    trained: Train, normalise: str, ema_decay: float
) -> None:
    fields = {"sparsity_key": "lambda", "normalise": normalise}
    _, kept, _ = trained(fields, epochs=2, lr=0.01, ema_decay=ema_decay)
    assert not kept.training
    _demand_standard(kept, normalise)


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
    _demand_standard(model.eval(), "before_mask")
