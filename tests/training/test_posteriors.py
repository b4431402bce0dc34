"""What a frozen autoencoder says about pictures: looked up or computed, it is the same."""

from typing import Any

import pytest
import torch
from tiny import tiny_dataset, tiny_model, tiny_params
from training_cases import train_jointly

from pelap.config import VariantParams
from pelap.data.dataset import BatchIndices, gather_batch
from pelap.models.latent_diffusion import LatentDiffusion
from pelap.training import objective
from pelap.training.objective import frozen_posteriors
from pelap.training.trainer import Progress

CPU = torch.device("cpu")
IMAGES = tiny_dataset(num_train=40).train.images
PICKS = BatchIndices(torch.tensor([3, 0, 39, 3, 17]), torch.tensor([False, True, True, True, False]))


def encoded_by(model: LatentDiffusion, patch: pytest.MonkeyPatch) -> list[int]:
    """The number of pictures in every call of the encoder from now on."""
    sizes: list[int] = []
    real = model.vae.encode

    def encode(images: torch.Tensor) -> Any:
        sizes.append(len(images))
        return real(images)

    patch.setattr(model.vae, "encode", encode)
    return sizes


TABLE_BYTES = 2 * 2 * 40 * 4 * 4 * 4 * 4  # mean and variance, both sides, 40 latents of (4, 4, 4) floats


@pytest.mark.parametrize(
    ("flip", "num_draws", "room", "made"),
    [
        (True, 80, TABLE_BYTES, 0),  # no less work
        (True, 81, TABLE_BYTES, 80),
        (True, 81, TABLE_BYTES - 1, 0),  # too large
        (False, 40, TABLE_BYTES, 0),
        (False, 41, TABLE_BYTES // 2, 40),
    ],
)
@pytest.mark.parametrize("chunk", [7, 256])
def test_looking_up_is_encoding(
    monkeypatch: pytest.MonkeyPatch, flip: bool, num_draws: int, room: int, made: int, chunk: int
) -> None:
    monkeypatch.setattr(objective, "TABLE_BYTES", room)
    monkeypatch.setattr(objective, "TABLE_BATCH_SIZE", chunk)
    model = tiny_model()
    picks = PICKS if flip else PICKS._replace(mirrored=torch.zeros(5, dtype=torch.bool))
    expected = model.posterior(gather_batch(IMAGES, picks))
    assert torch.allclose(expected.mean[0], expected.mean[3]) != flip  # a picture and its mirror image
    sizes = encoded_by(model, monkeypatch)
    look_up = frozen_posteriors(model, IMAGES, flip, num_draws, "fp32")
    assert sum(sizes) == made
    for found, wanted in zip(look_up(picks), expected, strict=True):
        assert found.dtype == torch.float32
        assert not found.requires_grad
        torch.testing.assert_close(found, wanted)
    assert sum(sizes) == (made or 5)


FIRST = VariantParams(
    sparsity_key="lambda", normalise="before_mask", decoder_input="masked", vae_training="two_stage"
)
# 4 steps of the autoencoder, then 12 with it frozen: 192 pictures are drawn from 128, mirrored ones counted.
OPTIONS: dict[str, Any] = {
    "train__batch_size": 16,
    "train__epochs": 3,
    "train__log_every": 1,
    "train__ema_decay": 0.9,
}


def _train() -> tuple[LatentDiffusion, Progress]:
    model = tiny_model(fields=FIRST, **OPTIONS)
    return train_jointly(model, tiny_dataset(), tiny_params(**OPTIONS).train, CPU)


def test_a_table_changes_nothing_of_a_training_but_the_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = objective.frozen_posteriors

    def noting(model: LatentDiffusion, *args: Any) -> Any:
        with monkeypatch.context() as patch:
            sizes = encoded_by(model, patch)
            look_up = real(model, *args)
        made.append(sum(sizes))
        return look_up

    monkeypatch.setattr("pelap.training.joint.frozen_posteriors", noting)
    with_table, progress = _train()
    monkeypatch.setattr(objective, "TABLE_BYTES", 0)
    without, expected = _train()
    assert made == [128, 0]
    for row, wanted in zip(progress.history, expected.history, strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-4)
    weights = without.state_dict()
    for name, tensor in with_table.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-3, atol=1e-4)
