"""What a frozen autoencoder says about pictures: looked up or computed, it is the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from interruption import cut_training, record_steps
from tiny import tiny_dataset, tiny_model, tiny_params
from training_cases import train_jointly

from pelap.config import VariantParams
from pelap.data.dataset import BatchIndices, gather_batch
from pelap.models.latent_diffusion import LatentDiffusion
from pelap.training import posteriors
from pelap.training.posteriors import frozen_posteriors
from pelap.training.trainer import Progress

CPU = torch.device("cpu")
IMAGES = tiny_dataset(num_train=40).train.images


def encoded_by(model: LatentDiffusion, patch: pytest.MonkeyPatch) -> list[int]:
    """The number of pictures in every call of the encoder from now on."""
    sizes: list[int] = []
    real = model.vae.encode

    def encode(images: torch.Tensor) -> Any:
        sizes.append(len(images))
        return real(images)

    patch.setattr(model.vae, "encode", encode)
    return sizes


def some_picks() -> BatchIndices:
    return BatchIndices(torch.tensor([3, 0, 39, 3, 17]), torch.tensor([False, True, True, True, False]))


@pytest.mark.parametrize("chunk", [7, 256])
def test_looking_up_is_encoding(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(posteriors, "BATCH_SIZE", chunk)
    model, indices = tiny_model(), some_picks()
    expected = model.posterior(gather_batch(IMAGES, indices))
    assert not torch.allclose(expected.mean[0], expected.mean[3])  # a picture and its mirror image
    sizes = encoded_by(model, monkeypatch)
    table = frozen_posteriors(model, IMAGES, True, 1000, "fp32")
    assert sum(sizes) == 80
    for found, wanted in zip(table(indices), expected, strict=True):
        assert found.dtype == torch.float32
        assert not found.requires_grad
        torch.testing.assert_close(found, wanted)
    assert sum(sizes) == 80


def test_pictures_that_are_not_mirrored_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    sizes = encoded_by(model, monkeypatch)
    table = frozen_posteriors(model, IMAGES, False, 41, "fp32")
    assert sum(sizes) == 40
    indices = BatchIndices(torch.arange(5), torch.zeros(5, dtype=torch.bool))
    torch.testing.assert_close(table(indices).mean, model.posterior(gather_batch(IMAGES, indices)).mean)


def test_a_table_that_is_no_less_work_or_too_large_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    model, indices = tiny_model(), some_picks()
    expected = model.posterior(gather_batch(IMAGES, indices))
    table_bytes = 2 * 2 * 40 * 4 * 4 * 4 * 4  # mean and variance, both sides, 40 latents of (4, 4, 4) floats
    for flip, num_draws, room, made in (
        (True, 80, table_bytes, 0),
        (True, 81, table_bytes, 80),
        (True, 81, table_bytes - 1, 0),
        (False, 40, table_bytes, 0),
        (False, 41, table_bytes // 2, 40),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(posteriors, "TABLE_BYTES", room)
            sizes = encoded_by(model, patch)
            look_up = frozen_posteriors(model, IMAGES, flip, num_draws, "fp32")
            assert sum(sizes) == made
            if flip:
                torch.testing.assert_close(look_up(indices).mean, expected.mean)
                torch.testing.assert_close(look_up(indices).logvar, expected.logvar)
                assert sum(sizes) == (made or 10)


# --- training on them -------------------------------------------------------------------------------

FIRST = VariantParams(
    sparsity_key="lambda",
    normalise="before_mask",
    decoder_input="masked",
    vae_training="two_stage",
    start_epoch=1,
)
# 4 steps of the autoencoder, then 12 with it frozen: 192 pictures are drawn from 128, mirrored ones counted.
OPTIONS: dict[str, Any] = {"train__batch_size": 16, "train__epochs": 3, "train__log_every": 1}


def _train(checkpoint: Path, **overrides: Any) -> tuple[LatentDiffusion, Progress]:
    options = OPTIONS | overrides
    model = tiny_model(fields=FIRST, **options)
    return train_jointly(model, tiny_dataset(), tiny_params(**options).train, CPU, checkpoint)


def test_a_table_changes_nothing_but_the_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = posteriors.frozen_posteriors

    def noting(model: LatentDiffusion, *args: Any) -> Any:
        with monkeypatch.context() as patch:
            sizes = encoded_by(model, patch)
            look_up = real(model, *args)
        made.append(sum(sizes))
        return look_up

    monkeypatch.setattr("pelap.training.joint.frozen_posteriors", noting)
    with_table, progress = _train(tmp_path / "table", train__ema_decay=0.9)
    monkeypatch.setattr(posteriors, "TABLE_BYTES", 0)
    without, expected = _train(tmp_path / "none", train__ema_decay=0.9)
    assert made == [128, 0]
    for row, wanted in zip(progress.history, expected.history, strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-4)
    weights = without.state_dict()
    for name, tensor in with_table.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("cut_at", [3, 4, 5, 11])
def test_training_that_is_cut_around_the_freeze_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut_at: int
) -> None:
    expected, whole = _train(tmp_path / "whole", train__ema_decay=0.9)
    with monkeypatch.context() as patch:
        cut_training(patch, cut_at)
        with pytest.raises(KeyboardInterrupt):
            _train(tmp_path / "cut", train__ema_decay=0.9)
    with monkeypatch.context() as patch:
        taken = record_steps(patch)
        resumed, rest = _train(tmp_path / "cut", train__ema_decay=0.9)
    assert taken == [*range(cut_at, 16)]
    assert [row["loss"] for row in rest.history] == [row["loss"] for row in whole.history]
    for name, tensor in expected.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor)
