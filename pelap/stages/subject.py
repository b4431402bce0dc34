"""What is scored and pruned: a denoiser with a way from noise to latents, whoever made it."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import torch
from torch import nn

from pelap.denoising import denoise, noise_error
from pelap.device import autocast, normalise_in_fp32, uses_bf16
from pelap.diffusion import SPACING, add_noise, alphas_cumprod
from pelap.keys import key
from pelap.models.ldm import LatentDiffusion
from pelap.params import SamplerParams
from pelap.pipelines import LatentPipeline
from pelap.seeding import generator, noise

PURPOSE = "score"
"""The stream of the starting noise."""


@dataclass(frozen=True)
class Subject:
    """A denoiser under examination."""

    name: str
    network: nn.Module
    latent_shape: tuple[int, ...]
    device: torch.device
    denoise: Callable[[torch.Tensor, Sequence[int]], torch.Tensor]
    """Noise (B, *latent_shape) and the items that its rows are, to latents, through `network`."""
    networks: tuple[nn.Module, ...]
    """All that its latents depend on."""
    protocol: dict[str, Any]
    """What its latents are made with."""
    spacing: str
    """Of the time steps, as diffusers calls it."""
    task_loss: Callable[[torch.Tensor, Sequence[int], torch.Generator], torch.Tensor] | None = None
    """The loss of training on latents (B, *latent_shape) of these items, noise and time steps drawn from the
    stream; None where the training is not known."""
    precision: str = "fp32"
    """Of `forward` alone, see `pelap.device.autocast`; fp32 leaves the network to its own."""
    num_asked: int = 1
    """How many prompts or classes the numbers of a seed ask for in turn; 1 for none."""

    @cached_property
    def weights(self) -> str:
        """Digest of all that its latents depend on."""
        return key(networks=self.networks).parts["networks"]

    def forward(self, batch_size: int, network: nn.Module | None = None) -> Callable[[], object]:
        """The first call of the denoising of a batch, to be repeated without gradient.

        Args:
            batch_size: Latents; with guidance the network gets twice as many rows.
            network: Called instead, with the same arguments.
        """
        start = noise(self.latent_shape, 0, "cost", range(batch_size)).to(self.device)
        call = first_call(self.network, lambda: self.denoise(start, range(batch_size)))

        mixed = uses_bf16(self.device, self.precision)

        def forward() -> object:
            with torch.no_grad(), autocast(self.device, self.precision) if mixed else nullcontext():
                return call(self.network if network is None else network)

        return forward

    def noise(self, num_latents: int, num_seeds: int, seed: int) -> torch.Tensor:
        """Starting points (num_latents, *latent_shape).

        Item i is number i // num_seeds of the seed that comes i % num_seeds after `seed`.
        """
        rows = [
            noise(self.latent_shape, seed + i % num_seeds, PURPOSE, [i // num_seeds])
            for i in range(num_latents)
        ]
        return torch.cat(rows).to(self.device)


def model_subject(
    model: LatentDiffusion,
    sampler: SamplerParams,
    seed: int,
    num_seeds: int = 1,
    precision: str = "fp32",
) -> Subject:
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
        place, support = latents.device, model.support()
        timesteps = torch.randint(len(alphas), (len(latents),), generator=stream).to(place)
        error = torch.randn(latents.shape, generator=stream).to(place)
        noisy = add_noise(latents, error, timesteps, alphas.to(place))
        prompts = model.tokens_of([i // num_seeds for i in items])
        seen, conditions = noisy if support is None else noisy * support, model.conditions(prompts.to(place))
        predicted = model.unet(seen, timesteps, **conditions).sample
        return noise_error(predicted, error, support).mean()

    return Subject(
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


def pipeline_subject(
    pipeline: LatentPipeline, name: str, seed: int, num_seeds: int = 1, precision: str = "fp32"
) -> Subject:
    """A stranger's pipeline, with its own scheduler and settings.

    Every seed goes through the prompts from the first, so that seeds can be compared.
    """

    def to_latents(start: torch.Tensor, items: Sequence[int]) -> torch.Tensor:
        seeds = [seed + i % num_seeds for i in items]
        return pipeline.denoise(start, [i // num_seeds for i in items], seeds)

    return Subject(
        name=name,
        network=pipeline.denoiser,
        latent_shape=pipeline.latent_shape,
        device=pipeline.device,
        denoise=to_latents,
        networks=tuple(part for part in pipeline.pipe.components.values() if isinstance(part, nn.Module)),
        protocol=(protocol := pipeline.describe()),
        spacing=str(protocol["timestep_spacing"]),
        precision=precision,
        num_asked=pipeline.num_asked,
    )


def said_if_some_are_left(name: str, num_items: int, num_asked: int, setting: str) -> list[str]:
    """A warning, printed and returned, where items ask in turn and do not come to all prompts or classes."""
    if num_items >= num_asked:
        return []
    line = (
        f"{name}: {num_items} items ask for the first of {num_asked} prompts or classes alone; raise "
        f"{setting}, or mix their order"
    )
    print(f"warning: {line}")
    return [line]


class _CalledError(Exception):
    """Stops a denoising run at the first call of its network."""


def first_call(network: nn.Module, run: Callable[[], object]) -> Callable[[nn.Module], object]:
    """What `run` calls `network` with first, as a function that calls any network so.

    The run ends there; nothing of the network is computed.
    """
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
        arguments.append((args, kwargs))
        raise _CalledError

    handle = network.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        run()
    except _CalledError:
        pass
    finally:
        handle.remove()
    assert arguments, "the denoising run calls its network"
    (args, kwargs) = arguments[0]
    return lambda other: other(*args, **kwargs)
