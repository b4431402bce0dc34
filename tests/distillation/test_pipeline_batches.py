"""What a pipeline's denoiser is given to learn from: what it was trained on, as far as known."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)
from pipeline_pairs import CPU, batches_of, denoiser, dit_of_two_classes
from tiny import tiny_dataset
from tiny_pipelines import (
    PROMPTS,
    tiny_ddim,
    tiny_ddpm,
    tiny_dit,
    tiny_ldm,
    tiny_stable_diffusion,
    tiny_stable_diffusion_xl,
    unet2d,
)

from pelap.core import rng
from pelap.data.dataset import to_float
from pelap.distillation import pipeline_distillation
from pelap.distillation.objective import matched_blocks
from pelap.distillation.pipeline_distillation import PipelineBatches, encode
from pelap.pipelines.latent import LatentPipeline
from pelap.surgery.apply import apply_plan
from pelap.surgery.plan import plan_from_json

STEPS = 4
# diffusers' Euler schedulers with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


SCHEDULERS = {
    "ddpm": DDPMScheduler(beta_schedule="scaled_linear"),
    "ddim": DDIMScheduler(rescale_betas_zero_snr=True),
    "pndm": PNDMScheduler(num_train_timesteps=50),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_noise_is_added_as_the_scheduler_does(name: str) -> None:
    pipe, dataset = tiny_ddpm(), tiny_dataset(side=8)
    pipe.scheduler = scheduler = SCHEDULERS[name]
    seen = []
    for step, batch in zip(range(4), batches_of(pipe, dataset)(0), strict=False):
        stream = rng.generator(0, "distill-step", step)
        torch.randn(16, 3, 8, 8, generator=stream)  # a posterior's, were there an encoder
        noise = torch.randn(16, 3, 8, 8, generator=stream)
        assert torch.equal(batch.target, noise)
        # Whole again, the noise taken off, they are pictures of the data.
        a = scheduler.alphas_cumprod[batch.timesteps][:, None, None, None]
        zeros = torch.zeros_like(noise)
        clean = (batch.latents - scheduler.add_noise(zeros, noise, batch.timesteps)) / a.sqrt()
        clear = (a > 0.01).flatten()
        pictures = to_float(dataset.train.images)
        pictures = torch.cat([pictures, pictures.flip(-1)])
        nearest = (clean[:, None] - pictures).abs().amax(dim=(2, 3, 4)).amin(dim=1)
        assert nearest[clear].max() < 1e-4
        seen.append(batch.timesteps)
    times = torch.cat(seen)
    assert times.max() < scheduler.config.num_train_timesteps
    assert times.max() > 0.8 * scheduler.config.num_train_timesteps


def test_schedulers_that_scale_give_what_their_denoiser_sees() -> None:
    scheduler = EulerDiscreteScheduler(steps_offset=1, beta_schedule="scaled_linear")
    batch = next(batches_of(tiny_stable_diffusion(scheduler))(3))
    ddpm = DDPMScheduler(steps_offset=1, clip_sample=False, beta_schedule="scaled_linear")
    torch.manual_seed(0)  # the same networks
    torch.testing.assert_close(batch.latents, next(batches_of(tiny_stable_diffusion(ddpm))(3)).latents)
    scheduler.set_timesteps(1000)
    clean, noise, time = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), scheduler.timesteps[400]
    noisy = scheduler.add_noise(clean, noise, time[None])
    seen = scheduler.scale_model_input(noisy, time)
    expected = ddpm.add_noise(clean, noise, time[None].long())
    torch.testing.assert_close(seen, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_target_is_what_the_denoiser_predicts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_ddpm(prediction_type=kind)
    clean = torch.randn(16, 3, 8, 8)
    monkeypatch.setattr(pipeline_distillation, "encode", lambda *_: clean)
    batch = next(batches_of(pipe, tiny_dataset(side=8))(0))
    stream = rng.generator(0, "distill-step", 0)
    _, noise = (torch.randn(16, 3, 8, 8, generator=stream) for _ in range(2))
    velocity = pipe.scheduler.get_velocity(clean, noise, batch.timesteps)
    expected = {"epsilon": noise, "sample": clean, "v_prediction": velocity}[kind]
    torch.testing.assert_close(batch.target, expected)


@pytest.mark.parametrize("build", [tiny_ldm, tiny_stable_diffusion, tiny_stable_diffusion_xl, tiny_dit])
@torch.no_grad()
def test_latents_are_what_the_decoder_takes(build: Any) -> None:
    pipe = build()
    autoencoder = getattr(pipe, "vqvae", None) or pipe.vae
    if hasattr(autoencoder.config, "shift_factor"):
        autoencoder.register_to_config(shift_factor=0.3)
    pictures = to_float(tiny_dataset(side=16).train.images[:4])
    prompts = PROMPTS if hasattr(pipe, "encode_prompt") else None
    pipeline = LatentPipeline(pipe, STEPS, prompts)
    noise = torch.randn(4, *pipeline.latent_shape)
    encoded = autoencoder.encode(pictures)
    if hasattr(encoded, "latent_dist"):
        inside = encoded.latent_dist.mean + encoded.latent_dist.logvar.exp().sqrt() * noise
    else:
        inside = encoded.latents
    latents = encode(pipe, pictures, noise)
    assert not torch.allclose(latents, inside, rtol=0.1)  # something was scaled
    expected = ((autoencoder.decode(inside).sample.clamp(-1, 1) + 1) * 127.5).round()
    assert (pipeline.decode(latents) - expected).abs().max() <= 1


def test_pixels_of_one_colour_are_learnt_as_grey() -> None:
    pipe = tiny_ddim()
    pipe.unet = unet2d(1)
    pictures = torch.rand(2, 3, 8, 8)
    grey = encode(pipe, pictures, torch.zeros(2, 1, 8, 8))
    torch.testing.assert_close(grey, pictures.mean(1, keepdim=True))
    batch = next(batches_of(pipe, tiny_dataset(side=8))(0))
    assert batch.predict(pipe.unet).shape == batch.target.shape == (16, 1, 8, 8)


def labels_of(batches: PipelineBatches, step: int) -> torch.Tensor:
    """Labels of a batch, 2 where there is none, by another way than the batch's own."""
    size = batches.params.batch_size
    order = torch.cat(
        [
            torch.randperm(64, generator=rng.generator(0, "distill-order", epoch))[: 64 // size * size]
            for epoch in range(20)
        ]
    )
    labels = order[step * size : (step + 1) * size] % 2  # tiny_dataset takes turns
    stream = rng.generator(0, "distill-step", step)
    shape = (size, *batches.pipeline.latent_shape)
    for _ in range(2):
        torch.randn(shape, generator=stream)
    torch.randint(1000, (size,), generator=stream)
    return torch.where(torch.rand(size, generator=stream) < 0.1, 2, labels)


@pytest.mark.parametrize("build", [tiny_stable_diffusion, tiny_stable_diffusion_xl])
@torch.no_grad()
def test_captions_are_the_names_of_classes(build: Any) -> None:
    pipe, dataset = build(), replace(tiny_dataset(side=16), class_names=("red_cat", "two dogs"))
    batches = batches_of(pipe, dataset, distill__batch_size=32)
    assert batches.pipeline.prompts == ("red cat", "two dogs")
    one_by_one = [
        pipe.encode_prompt(prompt=text, device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=True)
        for text in batches.pipeline.prompts
    ]
    table = torch.cat([encoding[0] for encoding in one_by_one] + [one_by_one[0][1]])  # the last: for none
    seen = []
    for step, batch in zip(range(4), batches(0), strict=False):
        labels = labels_of(batches, step)
        torch.testing.assert_close(batch.conditions["encoder_hidden_states"], table[labels])
        if build is tiny_stable_diffusion_xl:
            pooled = torch.cat([encoding[2] for encoding in one_by_one] + [one_by_one[0][3]])
            added = batch.conditions["added_cond_kwargs"]
            torch.testing.assert_close(added["text_embeds"], pooled[labels])
            assert added["time_ids"].shape == (32, 6)
        assert batch.predict(pipe.unet).shape == batch.target.shape
        seen.append(labels)
    assert set(torch.cat(seen).tolist()) == {0, 1, 2}
    assert not torch.allclose(table[0], table[1])


def test_classes_are_given_by_their_labels_and_some_by_none() -> None:
    batches = batches_of(dit_of_two_classes())
    labels = []
    for step, batch in zip(range(60), batches(0), strict=False):
        assert torch.equal(batch.conditions["class_labels"], labels_of(batches, step))
        labels.append(batch.conditions["class_labels"])
    share = (torch.cat(labels) == 2).float().mean()
    assert 0.06 < share < 0.14
    unconditional = next(batches_of(tiny_ddim(), tiny_dataset(side=8))(0))
    assert not unconditional.conditions


class Unguided(StableDiffusionPipeline):
    def __call__(
        self, prompt: Any = None, latents: Any = None, output_type: str = "pil", **options: Any
    ) -> Any:
        options |= {"latents": latents, "output_type": output_type}
        return super().__call__(prompt=prompt, guidance_scale=1.0, **options)


def test_without_guidance_every_item_has_its_caption() -> None:
    pipe = tiny_stable_diffusion()
    pipe.__class__ = Unguided
    batches = batches_of(pipe)
    assert batches.pipeline.copies == 1
    captions = batches.conditions["encoder_hidden_states"]
    assert len(captions) == 2
    for _, batch in zip(range(5), batches(0), strict=False):
        given = batch.conditions["encoder_hidden_states"][:, None]
        assert (given == captions).flatten(2).all(dim=2).any(dim=1).all()


def test_batches_go_on_at_any_step() -> None:
    batches = batches_of(dit_of_two_classes())
    first = [batch for _, batch in zip(range(7), batches(0), strict=False)]
    for start in range(7):
        again = next(batches(start))
        assert torch.equal(again.latents, first[start].latents)
        assert torch.equal(again.conditions["class_labels"], first[start].conditions["class_labels"])


@pytest.mark.parametrize("build", [tiny_stable_diffusion, dit_of_two_classes])
def test_held_out_batches_are_of_test_pictures_and_the_same_at_every_call(build: Any) -> None:
    pipe, dataset = build(), tiny_dataset(side=16)
    other = replace(dataset, test=tiny_dataset(side=16, num_train=9).train)
    one, two = (
        batches_of(pipe, each, distill__num_validation=9, distill__batch_size=4) for each in (dataset, other)
    )
    calls = [list(batches.held_out()) for batches in (one, one, two)]
    assert [[len(batch.latents) for batch in batches] for batches in calls] == [[4, 4, 1]] * 3
    for first, again, elsewhere in zip(*calls, strict=True):
        assert torch.equal(first.latents, again.latents)
        assert torch.equal(first.target, again.target)
        assert torch.equal(first.target, elsewhere.target)
        assert not torch.equal(first.latents, elsewhere.latents)
        assert first.predict(denoiser(pipe)).shape == first.target.shape  # a variance is left out
    assert not torch.equal(calls[0][0].target, calls[0][1].target)
    assert not torch.equal(calls[0][0].target, next(one(0)).target)


def test_blocks_that_are_gone_are_not_compared() -> None:
    unet, transformer = tiny_stable_diffusion().unet, dit_of_two_classes().transformer
    five = ["down_blocks.0", "down_blocks.1", "up_blocks.0", "up_blocks.1", "mid_block"]
    assert matched_blocks(unet, unet) == five
    assert matched_blocks(transformer, transformer) == ["transformer_blocks.0", "transformer_blocks.1"]
    for network, gone in ((unet, "mid_block"), (transformer, "transformer_blocks.1")):
        pruned = apply_plan(network, plan_from_json({"operators": [gone]}, "test"))
        left = matched_blocks(network, network)
        left.remove(gone)
        assert matched_blocks(pruned, network) == left
        within = {"mid_block": "mid_block.resnets.0", "transformer_blocks.1": "transformer_blocks.1.ff"}[gone]
        pruned = apply_plan(network, plan_from_json({"operators": [within]}, "test"))
        assert gone in matched_blocks(pruned, network)
