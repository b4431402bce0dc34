"""A model of this project as a denoiser that can be scored."""

from collections.abc import Sequence

import torch

from pelap.config import SamplerParams
from pelap.core.device import normalise_in_fp32, uses_bf16
from pelap.core.rng import generator
from pelap.diffusion.denoiser import Denoiser
from pelap.diffusion.loss import denoise, noise_error
from pelap.models.latent_diffusion import LatentDiffusion
from pelap.models.schedule import SPACING, add_noise, alphas_cumprod


def model_denoiser(
    model: LatentDiffusion, sampler: SamplerParams, seed: int, num_seeds: int = 1, precision: str = "fp32"
) -> Denoiser:
    """A model of this project; the seeds name the noise of a stochastic sampler's steps, as in `noise`."""
    device = next(model.unet.parameters()).device
    if device.type == "cpu" and uses_bf16(device, precision):
        normalise_in_fp32(model.unet)  # as in sampling

    def to_latents(start: torch.Tensor, items: Sequence[int]) -> torch.Tensor:
        streams = [generator(seed + i % num_seeds, "score-step", i // num_seeds) for i in items]
        # Every seed goes through the prompts from the first, so that seeds can be compared.
        return denoise(model, sampler, start, streams, [i // num_seeds for i in items])

    alphas = alphas_cumprod(model.info.diffusion)

    def task_loss(latents: torch.Tensor, items: Sequence[int], stream: torch.Generator) -> torch.Tensor:
        place, open_channels = latents.device, model.open_channels()
        timesteps = torch.randint(len(alphas), (len(latents),), generator=stream).to(place)
        error = torch.randn(latents.shape, generator=stream).to(place)
        noisy = add_noise(latents, error, timesteps, alphas.to(place))
        prompts = model.tokens_of([i // num_seeds for i in items])
        seen, conditions = (
            noisy if open_channels is None else noisy * open_channels,
            model.conditions(prompts.to(place)),
        )
        predicted = model.unet(seen, timesteps, **conditions).sample
        return noise_error(predicted, error, open_channels).mean()

    return Denoiser(
        name=model.info.name,
        network=model.unet,
        latent_shape=model.latent_shape,
        device=device,
        denoise=to_latents,
        networks=(model,),
        protocol={
            "dataset": model.info.dataset,
            "sampler": sampler.model_dump(),
            "prompts": None if model.conditioner is None else model.conditioner.describe(),
        },
        spacing=SPACING,
        task_loss=task_loss,
        precision=precision,
        num_asked=1 if model.conditioner is None else len(model.conditioner.prompts),
    )
