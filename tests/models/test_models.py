"""The networks are the paper's, and each variant couples them as its fields say."""

import pytest
import torch
from tiny import LIGHT, UNET, tiny_model

from pelap.config import UNet2DConditionParams
from pelap.models.latent_diffusion import apply_mask, build_unet
from pelap.models.light_unet import LightUNet
from pelap.models.mask import ImportanceMask
from pelap.models.vae import VAE
from pelap.profiling.cost import count_params

VARIANTS = ["baseline", "pelap", "invariant"]


@pytest.mark.parametrize(
    ("network", "expected"), [(VAE(), 2_127_499), (ImportanceMask(), 292), (LightUNet(), 820_748)]
)
def test_parameter_counts_are_the_papers(network: torch.nn.Module, expected: int) -> None:
    assert count_params(network) == expected


@pytest.mark.parametrize("stem", [False, True])
@pytest.mark.parametrize("channels", [1, 4, 12])
def test_light_unet_hides_scale_and_shift_of_each_latent_channel_unless_it_has_a_stem(
    channels: int, stem: bool
) -> None:
    unet = LightUNet(in_channels=channels, width=8, stem=stem).eval()
    x = torch.randn(2, channels, 8, 8)
    scale = torch.linspace(0.5, 7.0, channels)[None, :, None, None]
    plain, scaled = unet(x, 10).sample, unet(x * scale + 1, 10).sample
    assert plain.shape == x.shape
    assert torch.allclose(plain, scaled, rtol=1e-3, atol=1e-4) is not stem


@pytest.mark.parametrize("options", [{}, LIGHT], ids=["unet2d", "light"])
def test_unet_takes_one_time_step_or_one_an_item(options: dict[str, object]) -> None:
    unet = tiny_model(**options).unet
    x = torch.randn(3, 4, 4, 4)
    torch.testing.assert_close(unet(x, torch.tensor(7)).sample, unet(x, torch.full((3,), 7)).sample)


@pytest.mark.parametrize("decoder_input", ["unmasked", "masked"])
def test_decoder_sees_z_or_masked_z(decoder_input: str) -> None:
    model = tiny_model("pelap", fields={"decoder_input": decoder_input})
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    latents = model.encode(images).latents
    gates = model.gates(latents)
    expected = latents if decoder_input == "unmasked" else apply_mask(latents, gates.values)
    torch.testing.assert_close(model.decoder_input(latents, gates), expected, rtol=0, atol=0)
    torch.testing.assert_close(model.reconstruct(images), model.vae.decode(expected), rtol=0, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_posterior_noise_has_the_posteriors_standard_deviation(variant: str) -> None:
    model = tiny_model(variant)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    noise = torch.randn(2, 4, 4, 4)
    mean, logvar = model.vae.encode(images)
    encoded = model.encode(images, noise)
    z = mean + logvar.exp().sqrt() * noise
    expected = z if model.normaliser is None else model.normaliser(z)
    torch.testing.assert_close(encoded.latents, expected)
    torch.testing.assert_close((encoded.mean, encoded.logvar), (mean, logvar), rtol=0, atol=0)


@pytest.mark.parametrize("downsampling", [4, 8])
@pytest.mark.parametrize("colours", [3, 1])
def test_autoencoder_shrinks_by_the_factor_asked_for_and_restores_the_range(
    colours: int, downsampling: int
) -> None:
    vae = VAE(width=8, latent_channels=3, image_channels=colours, downsampling=downsampling)
    given = torch.rand(2, colours, 32, 32) * 2 - 1
    mean, logvar = vae.encode(given)
    side = 32 // downsampling
    assert mean.shape == logvar.shape == (2, 3, side, side)
    images = vae.decode(10 * mean)
    assert images.shape == given.shape
    assert images.abs().max() <= 1
    assert (vae.image_channels, vae.downsampling) == (colours, downsampling)


def test_autoencoder_of_the_paper_is_what_it_was() -> None:
    # Fresh weights come in the order of the layers: one more layer would change every seed's.
    torch.manual_seed(0)
    given = VAE(8, 4, 3, 4)
    torch.manual_seed(0)
    for mine, default in zip(given.parameters(), VAE(8, 4).parameters(), strict=True):
        assert torch.equal(mine, default)
    assert len(VAE(8, 4, downsampling=8).encoder) == len(given.encoder) + 2


def test_unet_for_prompts_has_heads_of_the_size_asked_for() -> None:
    params = UNet2DConditionParams(**(UNET | {"channels": (16, 32), "norm_num_groups": 8}))
    unet = build_unet(params, latent_channels=4, latent_side=8, prompt_width=24)
    attention = unet.get_submodule("down_blocks.1.attentions.0.transformer_blocks.0.attn2")
    assert attention.heads == 32 // 8
    assert attention.to_k.in_features == 24
    assert not any("attentions" in name for name, _ in unet.get_submodule("down_blocks.0").named_modules())
