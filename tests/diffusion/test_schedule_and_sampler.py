"""Noising and sampling."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import LIGHT, tiny_model, tiny_params
from torch import nn

from pelap.config import SamplerParams, VariantParams
from pelap.core.device import full_precision
from pelap.core.errors import ConfigError
from pelap.core.rng import generator, noise
from pelap.diffusion.loss import add_noise, alphas_cumprod
from pelap.diffusion.reverse import ReverseProcess, denoise
from pelap.diffusion.sampler import ModelGenerator, cached_models, describe_models, sample_from, sample_images
from pelap.models.deep_cache import DeepCache
from pelap.models.latent_diffusion import make_scheduler
from pelap.models.text_conditioner import TextConditioner

DIFFUSION, CPU = tiny_params().diffusion, torch.device("cpu")


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
        ReverseProcess(DIFFUSION, SamplerParams(kind="ddim", steps=7), CPU)


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
    sampler = SamplerParams(kind=kind, steps=steps)
    ReverseProcess(DIFFUSION, sampler, CPU).run(unet, torch.randn(2, 4, 4, 4), streams)
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
    out = ReverseProcess(DIFFUSION, SamplerParams(kind="ddim", steps=50), CPU).run(Ideal(), start)
    assert 0.95 < float(out.std()) < 1.05


@pytest.mark.parametrize("kind", ["ddim", "ddpm"])
def test_latents_outside_the_support_are_zero_whatever_the_unet_says(kind: str) -> None:
    seen: list[torch.Tensor] = []

    class Loud(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> nn.Module:
            seen.append(x)
            self.sample = torch.full_like(x, 3.0)
            return self

    open_channels = torch.tensor([1.0, 0.0, 1.0])[None, :, None, None]
    streams = [generator(0, "s", i) for i in range(2)]
    sampler = SamplerParams(kind=kind, steps=4)
    process = ReverseProcess(DIFFUSION, sampler, CPU)
    out = process.run(Loud(), torch.randn(2, 3, 4, 4), streams, open_channels)
    for latents in (*seen, out):
        assert not latents[:, 1].any()
        assert (latents[:, [0, 2]] != 0).all()


CUT = {"gate": "topk", "k": 2, "adaptive": False, "sparsity_key": "seed", "decoder_input": "masked"}


@pytest.mark.parametrize("kind", ["ddim", "ddpm"])
@pytest.mark.parametrize("fields", [{"sparsity_key": "lambda"}, CUT], ids=["adaptive", "cut"])
def test_picture_does_not_depend_on_its_batch(kind: str, fields: dict[str, Any]) -> None:
    model = tiny_model(fields=VariantParams(**fields))
    sampler = SamplerParams(kind=kind, steps=4)
    together = sample_images(model, sampler, 6, seed=3, batch_size=6)
    apart = sample_images(model, sampler, 6, seed=3, batch_size=2)
    assert (together.int() - apart.int()).abs().max() <= 1
    assert not torch.equal(together, sample_images(model, sampler, 6, seed=4, batch_size=6))


# --- sampling in batches --------------------------------------------------------------------------------

DDIM = SamplerParams(kind="ddim", steps=4)


@pytest.mark.parametrize("kind", ["ddim", "ddpm"])
def test_a_source_samples_as_the_plain_loop_does(kind: str) -> None:
    model, sampler = tiny_model(fields=VariantParams(**CUT)), SamplerParams(kind=kind, steps=4)
    source = ModelGenerator(model, sampler)
    for first in (0, 5):  # the second batch as the first
        start = noise(model.latent_shape, 3, "sample", range(first, first + 5))
        streams = [generator(3, "sample-step", i) for i in range(first, first + 5)]
        expected = denoise(model, sampler, start, streams)
        assert torch.equal(source.denoise(start, range(first, first + 5), 3), expected)


def test_nothing_is_copied_to_the_device_between_steps() -> None:
    """The UNet is given views of time steps that lie there from the start."""
    process = ReverseProcess(DIFFUSION, DDIM, torch.device("cpu"))
    storages = set()

    class Unet(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> Any:
            storages.add(t.untyped_storage().data_ptr())
            return type("Out", (), {"sample": x})

    process.run(Unet(), torch.randn(2, 4, 4, 4))
    assert storages == {process._on_device.untyped_storage().data_ptr()}


def test_bf16_is_that_of_the_unet_alone() -> None:
    model = tiny_model()
    seen = []
    model.unet.conv_out.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    start = noise(model.latent_shape, 0, "sample", range(4))
    exact = ModelGenerator(model, DDIM).denoise(start, range(4), 0)
    assert set(seen) == {torch.float32}
    seen.clear()
    source = ModelGenerator(model, DDIM, "bf16")
    rough = source.denoise(start, range(4), 0)
    assert set(seen) == {torch.bfloat16}
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).square().mean() < 0.01 * exact.square().mean()
    assert torch.equal(ModelGenerator(model, DDIM).denoise(start, range(4), 0), exact)


# --- models beside each other ---------------------------------------------------------------------------


def test_what_cannot_be_cached_is_told() -> None:
    dense, light = tiny_model(), tiny_model(**LIGHT)
    (cached,) = cached_models(dense, [2], ()).values()
    assert (cached.info.name, cached.unet.interval, cached.unet.unet) == ("cached-2", 2, dense.unet)
    words = r"evaluate\.deepcache_intervals: invariant cannot .* LightUNet .*\[\]"
    with pytest.raises(ConfigError, match=words):
        cached_models(light, [2], ())
    with pytest.raises(ConfigError, match="cached-2 is the name of a model already"):
        cached_models(dense, [2], ["cached-2"])
    assert cached_models(light, [], ()) == cached_models(None, [2], ()) == {}


def test_prompts_are_told() -> None:
    class Conditioned:
        conditioner = TextConditioner([f"c{i}" for i in range(10)], ["a {}"], guidance_scale=3.0)
        info = tiny_model().info

    said = describe_models({"plain": tiny_model(), "told": Conditioned()}, 20)  # type: ignore[dict-item]
    assert said["rows_per_latent"] == 2
    assert said["prompts"].pop("digest")
    first = [f"a c{i}" for i in range(8)]
    assert said["prompts"] == {"number": 10, "guidance_scale": 3.0, "first": first, "num_judged": 20}
    assert describe_models({"plain": tiny_model()}, 20)["prompts"] is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_recorded_loop_samples_as_the_plain_one_does(precision: str) -> None:
    model = tiny_model(fields=VariantParams(**CUT)).to("cuda")
    source = ModelGenerator(model, DDIM, precision)
    exact, plain = ModelGenerator(model, DDIM, record=False), replace(source, record=False)
    with full_precision():
        # Of six whole batches the last three are replayed, the last one is of another size.
        expected, rounded, recorded = (
            sample_from(each, 50, 3, batch_size=8).float() for each in (exact, plain, source)
        )
        source.forget()
        anew = sample_from(source, 50, 3, batch_size=8).float()
    assert source._denoise._replay is not None
    # Two ways to round alike lie about as far apart as each lies from what is exact, twice as far at most.
    # In float32 only the order of sums differs: one value in a hundred may go to the next of 256 levels.
    for found in (recorded, anew):
        assert rms(found - rounded) <= 0.1 + 2 * rms(rounded - expected)
    assert rms(expected - expected.mean(0)) > 10  # the pictures of another batch would be noticed


def rms(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_deep_cache_is_sampled_from_without_a_recording() -> None:
    model = tiny_model().to("cuda")
    cached = model.with_unet(DeepCache(model.unet, 2), "cached-2", 0.9)
    sources = [ModelGenerator(cached, DDIM, record=record) for record in (True, False)]
    with full_precision():
        found, plain = (sample_from(source, 10, 3, 2).int() for source in sources)
    # Both are plain loops, but the decoder's transposed convolutions add in another order at each call.
    assert (found - plain).abs().max() <= 1
    assert sources[0]._denoise._replay is None
