"""Noising and sampling."""

from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_params
from torch import nn

from pelap.diffusion import add_noise, alphas_cumprod, make_scheduler, sample_latents
from pelap.errors import ConfigError
from pelap.params import SamplerParams, VariantParams
from pelap.sampling import sample_images
from pelap.seeding import generator, noise

DIFFUSION = tiny_params().diffusion


def test_noise_of_an_item_depends_on_seed_purpose_and_index_alone() -> None:
    batch = noise((2, 3), seed=1, purpose="a", indices=range(4))
    torch.testing.assert_close(noise((2, 3), 1, "a", [2]), batch[2:3], rtol=0, atol=0)
    for seed, purpose, index in ((2, "a", 2), (1, "b", 2), (1, "a", 3)):
        assert not torch.equal(noise((2, 3), seed, purpose, [index]), batch[2:3])


def test_add_noise_agrees_with_diffusers() -> None:
    z, e = torch.randn(5, 4, 8, 8), torch.randn(5, 4, 8, 8)
    t = torch.tensor([0, 1, 500, 998, 999])
    ours = add_noise(z, e, t, alphas_cumprod(DIFFUSION))
    torch.testing.assert_close(ours, make_scheduler(DIFFUSION).add_noise(z, e, t))


@pytest.mark.parametrize("kind", ["ddim", "ddpm"])
def test_schedulers_have_the_settings_for_unbounded_latents(kind: str) -> None:
    config = make_scheduler(DIFFUSION, kind).config
    assert (config.clip_sample, config.clip_sample_range, config.timestep_spacing) == (True, 4.0, "trailing")
    assert (config.beta_schedule, config.beta_start, config.beta_end) == ("linear", 1e-4, 0.02)


def test_steps_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="7 sampling steps"):
        sample_latents(Recorder(), DIFFUSION, SamplerParams(kind="ddim", steps=7), torch.randn(1, 4, 4, 4))


class Recorder(nn.Module):
    """Predicts no noise and notes the time steps."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> nn.Module:
        self.steps.append(int(t))
        self.sample = torch.zeros_like(x)
        return self


@pytest.mark.parametrize("kind", ["ddim", "ddpm"])
@pytest.mark.parametrize("steps", [1, 4, 20, 1000])
def test_sampling_starts_at_the_last_time_step(kind: str, steps: int) -> None:
    unet = Recorder()
    streams = [generator(0, "s", i) for i in range(2)]
    sample_latents(unet, DIFFUSION, SamplerParams(kind=kind, steps=steps), torch.randn(2, 4, 4, 4), streams)
    assert len(unet.steps) == steps
    assert unet.steps[0] == 999
    assert unet.steps == sorted(unet.steps, reverse=True)


class Ideal(nn.Module):
    """The best noise predictor for latents of standard deviation 1 (independent coordinates)."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> nn.Module:
        a = alphas_cumprod(DIFFUSION)[int(t)]
        self.sample = (1 - a).sqrt() * x
        return self


def test_unit_variance_comes_out_with_unit_variance() -> None:
    start = torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    out = sample_latents(Ideal(), DIFFUSION, SamplerParams(kind="ddim", steps=50), start)
    assert 0.95 < float(out.std()) < 1.05


@pytest.mark.parametrize("kind", ["ddim", "ddpm"])
def test_latents_outside_the_support_are_zero_whatever_the_unet_says(kind: str) -> None:
    seen: list[torch.Tensor] = []

    class Loud(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> nn.Module:
            seen.append(x)
            self.sample = torch.full_like(x, 3.0)
            return self

    support = torch.tensor([1.0, 0.0, 1.0])[None, :, None, None]
    streams = [generator(0, "s", i) for i in range(2)]
    sampler = SamplerParams(kind=kind, steps=4)
    out = sample_latents(Loud(), DIFFUSION, sampler, torch.randn(2, 3, 4, 4), streams, support)
    for latents in (*seen, out):
        assert not latents[:, 1].any()
        assert (latents[:, [0, 2]] != 0).all()


CUT = {"gate": "topk", "k": 2, "adaptive": False, "strength": "seed", "decode_from": "z*m"}


@pytest.mark.parametrize("kind", ["ddim", "ddpm"])
@pytest.mark.parametrize("fields", [{"strength": "lambda"}, CUT], ids=["adaptive", "cut"])
def test_picture_does_not_depend_on_its_batch(kind: str, fields: dict[str, Any]) -> None:
    model = tiny_model(fields=VariantParams(**fields))
    sampler = SamplerParams(kind=kind, steps=4)
    together = sample_images(model, sampler, 6, seed=3, batch_size=6)
    apart = sample_images(model, sampler, 6, seed=3, batch_size=2)
    assert (together.int() - apart.int()).abs().max() <= 1
    assert not torch.equal(together, sample_images(model, sampler, 6, seed=4, batch_size=6))
