"""The networks are the paper's, and each variant couples them as its fields say."""

import pytest
import torch
from tiny import tiny_model, tiny_raw

from pelap.measure.cost import count_params
from pelap.models.ldm import apply_mask
from pelap.models.light_unet import LightUNet
from pelap.models.mask import ImportancePredictor, LatentNormaliser
from pelap.models.vae import VAE


@pytest.mark.parametrize(
    ("network", "expected"), [(VAE(), 2_127_499), (ImportancePredictor(), 292), (LightUNet(), 820_748)]
)
def test_parameter_counts_are_the_papers(network: torch.nn.Module, expected: int) -> None:
    assert count_params(network) == expected


def test_vae_shrinks_by_four_and_restores_the_range() -> None:
    vae = VAE(width=8)
    mean, logvar = vae.encode(torch.rand(2, 3, 32, 32) * 2 - 1)
    assert mean.shape == logvar.shape == (2, 4, 8, 8)
    images = vae.decode(10 * mean)
    assert images.shape == (2, 3, 32, 32)
    assert images.abs().max() <= 1


def test_mask_starts_at_sigmoid_of_three_whatever_the_latents() -> None:
    masks = ImportancePredictor()(torch.randn(5, 4, 8, 8))
    assert masks.shape == (5, 4)
    torch.testing.assert_close(masks, torch.full((5, 4), 0.9525741))


def test_light_unet_hides_scale_and_shift_of_each_latent_channel() -> None:
    unet = LightUNet(width=8).eval()
    x = torch.randn(2, 4, 8, 8)
    scale = torch.tensor([0.5, 2.0, 3.0, 7.0])[None, :, None, None]
    torch.testing.assert_close(unet(x, 10).sample, unet(x * scale + 1, 10).sample, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("variant", ["baseline", "pelap", "invariant"])
def test_unet_takes_one_time_step_or_one_an_item(variant: str) -> None:
    unet = tiny_model(variant).unet
    x = torch.randn(3, 4, 4, 4)
    torch.testing.assert_close(unet(x, torch.tensor(7)).sample, unet(x, torch.full((3,), 7)).sample)


def test_normaliser_gives_unit_variance_in_training_and_by_stored_statistics_later() -> None:
    normaliser = LatentNormaliser()
    latents = torch.randn(64, 4, 8, 8) * torch.tensor([0.1, 1.0, 5.0, 20.0])[None, :, None, None] + 3
    for _ in range(200):
        out = normaliser(latents)
    for result in (out, normaliser.eval()(latents)):
        torch.testing.assert_close(result.std(dim=(0, 2, 3)), torch.ones(4), rtol=0.01, atol=0)
        torch.testing.assert_close(result.mean(dim=(0, 2, 3)), torch.zeros(4), rtol=0, atol=0.01)


def _gradients(variant: str, **overrides: object) -> tuple[bool, bool]:
    """Whether a loss on the UNet's input reaches (encoder, mask)."""
    model = tiny_model(variant, **overrides).train()
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    loss = model.unet_input(model.encode(images).latents).square().sum()
    if not loss.requires_grad:
        return False, False
    loss.backward()
    encoder = model.vae.mean_head.weight.grad
    bias = None if model.mask is None else model.mask.layers[-1].bias.grad
    return encoder is not None and bool(encoder.any()), bias is not None and bool(bias.any())


def test_noise_loss_reaches_what_the_variant_says() -> None:
    assert _gradients("baseline") == (True, False)
    assert _gradients("pelap") == (True, True)
    assert _gradients("invariant") == (False, False)


@pytest.mark.parametrize(
    ("detach", "expected"), [([], (True, True)), (["encoder"], (False, True)), (["mask"], (True, False))]
)
def test_each_part_can_be_detached_by_itself(detach: list[str], expected: tuple[bool, bool]) -> None:
    variants = tiny_raw()["variants"]
    variants["pelap"]["detach"] = detach
    assert _gradients("pelap", variants=variants) == expected


@pytest.mark.parametrize(("variant", "masked"), [("baseline", False), ("pelap", False), ("invariant", True)])
def test_decoder_sees_z_or_masked_z(variant: str, masked: bool) -> None:
    model = tiny_model(variant)
    latents = torch.randn(2, 4, 4, 4)
    expected = apply_mask(latents, model.importance(latents)) if masked else latents
    torch.testing.assert_close(model.decoder_input(latents), expected, rtol=0, atol=0)
