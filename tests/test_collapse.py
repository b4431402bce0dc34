"""The analysis of a mask, on cases whose answer is known."""

import math

import pytest
import torch
from tiny import tiny_dataset, tiny_model, tiny_params

from pelap.collapse import Observations, channel_std, gaussian_floor, masks_per_class, observe, summarise
from pelap.data.dataset import to_float
from pelap.diffusion import alphas_cumprod

ALPHAS = alphas_cumprod(tiny_params().diffusion)


def test_floor_is_the_error_of_the_best_affine_predictor() -> None:
    # One coordinate of variance 0.5 at one time step, against least squares on drawn data.
    variance, alpha = 0.5, 0.3
    z = torch.randn(400_000, generator=torch.Generator().manual_seed(0)) * variance**0.5
    e = torch.randn(400_000, generator=torch.Generator().manual_seed(1))
    x = alpha**0.5 * z + (1 - alpha) ** 0.5 * e
    slope = (x * e).mean() / (x * x).mean()
    error = float((slope * x - e).square().mean())
    assert gaussian_floor(torch.tensor([variance]), torch.tensor([alpha])) == pytest.approx(error, rel=0.01)


def test_floor_falls_with_the_scale_of_the_latents_to_zero() -> None:
    floors = [gaussian_floor(torch.full((4,), v), ALPHAS) for v in (0.0, 1e-4, 0.01, 1.0)]
    assert floors[0] == 0
    assert floors == sorted(floors)


def test_channel_std_is_over_pictures_and_positions() -> None:
    x = torch.randn(50, 3, 8, 8) * torch.tensor([1.0, 2.0, 0.5])[None, :, None, None] + 7
    torch.testing.assert_close(channel_std(x), torch.tensor([1.0, 2.0, 0.5]), rtol=0.05, atol=0)


def _seen(masks: torch.Tensor, inputs: torch.Tensor) -> Observations:
    num = len(masks)
    return Observations(masks, inputs, torch.full((num,), 0.2), torch.ones(num), torch.full((num,), 3.0))


def test_known_masks_give_known_active_channels() -> None:
    inputs = torch.randn(20, 4, 4, 4) * torch.tensor([1.0, 1.0, 9.0, 9.0])[None, :, None, None]
    masks = torch.tensor([0.9, 0.6, 0.5, 0.1]).repeat(20, 1)
    row = summarise(_seen(masks, inputs), ALPHAS, 0.5)
    assert row["active_channels"] == 2
    assert row["mean_mask"] == pytest.approx(0.525)
    assert row["unet_input_std"] == pytest.approx(1, rel=0.1)
    assert (row["recon_mse"], row["masked_recon_mse"]) == (1, 3)
    assert row["floor_ratio"] == pytest.approx(row["diffusion_loss"] / row["gaussian_floor"])
    none = summarise(_seen(masks * 0.1, inputs), ALPHAS, 0.5)
    assert none["active_channels"] == 0
    assert none["unet_input_std"] == pytest.approx(5, rel=0.1)


def test_masks_per_class() -> None:
    masks = torch.tensor([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])
    table = masks_per_class(masks, torch.tensor([0, 1, 0]), ["a", "b", "absent"])
    assert table.values.tolist() == [["a", 0, 0.5], ["a", 1, 0.5], ["b", 0, 0.5], ["b", 1, 0.5]]


def test_a_closed_mask_leaves_nothing_to_the_unet_and_to_the_masked_decoder() -> None:
    model, images = tiny_model("pelap"), tiny_dataset().test.images
    assert model.mask is not None
    torch.nn.init.constant_(model.mask.layers[-1].bias, -200.0)
    seen = observe(model, images, 0, 16)
    assert float(seen.unet_inputs.abs().max()) == 0
    nothing = (model.vae.decode(torch.zeros(1, 4, 4, 4)) - to_float(images)).square().sum(dim=(1, 2, 3))
    torch.testing.assert_close(seen.masked_recon_errors, nothing.detach())
    assert not torch.allclose(seen.recon_errors, nothing.detach())
    row = summarise(seen, ALPHAS, 0.5)
    assert row["gaussian_floor"] == 0
    assert math.isnan(row["floor_ratio"])


@pytest.mark.parametrize("variant", ["baseline", "pelap", "invariant"])
def test_observations_do_not_depend_on_the_batch_size(variant: str) -> None:
    model, images = tiny_model(variant), tiny_dataset().test.images
    whole, parts = observe(model, images, 0, 16), observe(model, images, 0, 5)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert torch.equal(whole.masks, torch.ones_like(whole.masks)) == (variant == "baseline")
