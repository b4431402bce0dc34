"""The reverse process: from noise to latents, by diffusers' schedulers; models as denoisers with that way."""

from collections.abc import Sequence

import torch
from torch import nn

from pelap.config import DiffusionParams, SamplerParams
from pelap.core.device import normalise_in_fp32, uses_bf16
from pelap.core.errors import ConfigError
from pelap.core.rng import generator
from pelap.diffusion.denoiser import Denoiser
from pelap.diffusion.loss import add_noise, alphas_cumprod, noise_error
from pelap.models.latent_diffusion import SPACING, LatentDiffusion, make_scheduler
from pelap.models.text_conditioner import Guidance


class ReverseProcess:
    """From noise to latents: a scheduler and its time steps, made once and used for any number of batches.

    Args:
        diffusion: The forward process that the UNet was trained with.
        sampler: Which reverse process, in how many steps.
        device: Where latents are.

    Raises:
        ConfigError: The number of steps does not divide that of the forward process.
    """

    def __init__(self, diffusion: DiffusionParams, sampler: SamplerParams, device: torch.device) -> None:
        if diffusion.num_train_timesteps % sampler.steps:
            raise ConfigError(
                f"{sampler.steps} sampling steps do not divide the model's {diffusion.num_train_timesteps} "
                "time steps; use e.g. 50"
            )
        self.draws = sampler.kind != "ddim"  # whether its steps add noise
        self._scheduler = make_scheduler(diffusion, sampler.kind)
        self._scheduler.set_timesteps(sampler.steps)
        # As numbers for the scheduler and as tensors for the UNet: no copy to the device in a step.
        self._steps: list[int] = self._scheduler.timesteps.tolist()
        self._on_device = self._scheduler.timesteps.to(device)  # (steps,)

    @torch.no_grad()
    def run(
        self,
        unet: nn.Module,
        noise: torch.Tensor,
        generators: Sequence[torch.Generator] | None = None,
        open_channels: torch.Tensor | None = None,
        guidance: Guidance | None = None,
    ) -> torch.Tensor:
        """Denoise from t = T-1 down; what does not draw can be recorded, see `pelap.core.graphs`.

        Args:
            unet: ``unet(x, t).sample`` predicts the noise in x.
            noise: Standard normal (B, C, h, w): the starting point.
            generators: One CPU generator an item for the noise of the steps, where they have any.
            open_channels: Ones, and zeros where latents stay at zero; any shape that broadcasts. None: ones.
            guidance: What the UNet is told beside the time step; None: nothing.

        Returns:
            Latents (B, C, h, w) of the noise's type; under autocast only the UNet computes in less.
        """
        options = {"generator": list(generators) if generators else None} if self.draws else {}
        latents = noise if open_channels is None else noise * open_channels
        for step, on_device in zip(self._steps, self._on_device, strict=True):
            predicted = _predicted(unet, latents, on_device, guidance).to(latents.dtype)
            latents = self._scheduler.step(predicted, step, latents, **options).prev_sample
            if open_channels is not None:
                latents = latents * open_channels
        return latents


def _predicted(
    unet: nn.Module, latents: torch.Tensor, timestep: torch.Tensor, guidance: Guidance | None
) -> torch.Tensor:
    """The noise in latents (B, C, h, w), with classifier-free guidance where its scale is not 1."""
    predicted: torch.Tensor
    if guidance is None or guidance.scale == 1:
        predicted = unet(latents, timestep, **(guidance.conditions if guidance else {})).sample
        return predicted
    both = unet(torch.cat([latents, latents]), timestep, **guidance.conditions).sample
    told, untold = both.chunk(2)
    predicted = untold + guidance.scale * (told - untold)
    return predicted


def denoise(
    model: LatentDiffusion,
    sampler: SamplerParams,
    noise: torch.Tensor,
    generators: Sequence[torch.Generator] | None = None,
    items: Sequence[int] | None = None,
) -> torch.Tensor:
    """Latents (B, C, h, w) from noise, zero in channels that are gone; see `ReverseProcess`.

    The model's conditioner has a prompt for each of the `items`, which the rows are, by default 0, 1, ...
    """
    guidance = model.guidance(range(len(noise)) if items is None else items)
    process = ReverseProcess(model.info.diffusion, sampler, noise.device)
    return process.run(model.unet, noise, generators, model.open_channels(), guidance)


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
        seen = noisy if open_channels is None else noisy * open_channels
        predicted = model.unet(seen, timesteps, **model.conditions(prompts.to(place))).sample
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
