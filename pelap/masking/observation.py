"""What a model makes of pictures: the observations that the numbers of `pelap.masking.collapse` are of.

Shapes: N pictures, C latent channels, h and w sides of a latent, T time steps.
"""

import math
from typing import NamedTuple

import torch
from torch import nn

from pelap.core.errors import finite
from pelap.core.graphs import Graphed, to_device
from pelap.core.rng import generator, noise
from pelap.data.dataset import to_float
from pelap.diffusion.loss import add_noise, add_noise_to, alphas_cumprod, noise_error
from pelap.models.latent_diffusion import LatentDiffusion, apply_mask
from pelap.models.light_unet import LightUNet

MEND = "train it again with a lower lr, or in fp32"


class Thresholds(NamedTuple):
    """Where open ends and collapse begins."""

    active: float = 0.5  # a channel is active when its mean mask is above (PeLAP-A, section 4)
    scale: float = 0.5  # the UNet's input has collapsed when its std is below; pure noise has 1


class Observations(NamedTuple):
    """What a model makes of N pictures."""

    masks: torch.Tensor  # (N, C)
    unet_inputs: torch.Tensor  # (N, C, h, w) z*m, normalised where the variant says so
    kl: torch.Tensor  # (N, C) KL of the posterior from N(0, 1), mean over positions, in nats
    noise_errors: torch.Tensor  # (N,) mean squared error of the predicted noise
    zero_errors: torch.Tensor  # (N,) the same where the clean latent is 0
    recon_errors: torch.Tensor  # (N,) squared error summed over a picture's values, decoded from z
    masked_recon_errors: torch.Tensor  # (N,) the same, decoded from z*m
    hard_recon_errors: torch.Tensor  # (N,) the same, from z*m without channels below the threshold
    there: torch.Tensor  # (C,) bool: not taken away by a static hard gate
    timesteps: torch.Tensor  # (N,)
    alphas: torch.Tensor  # (T,) alpha-bar
    num_cut: int  # channels that were cut out of the model
    zero_floor: float  # least error of this UNet where the clean latent is 0


class Observer:
    """Runs a model, in evaluation mode, over the same pictures with the same noise at every call.

    It stays where the model is: for N pictures two latents, and 3 bytes a pixel. Weights may change in
    place from call to call.

    Args:
        model: Which.
        images: (N, 3 or 1, H, W) uint8.
        seed: Names the posterior's and the diffusion's noise; picture i's depends on (seed, i) alone.
        batch_size: Pictures at a time; changes no number.
        thresholds: For the hard mask.
        record: Whether whole batches are recorded as a CUDA graph, on a CUDA device.
        labels: (N,) of the pictures, that a model with a conditioner is told; None: all 0.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        images: torch.Tensor,
        seed: int,
        batch_size: int,
        thresholds: Thresholds = Thresholds(),  # noqa: B008  immutable
        record: bool = True,
        labels: torch.Tensor | None = None,
    ) -> None:
        device, num = next(model.parameters()).device, len(images)
        self._model = model
        self._thresholds = thresholds
        self._alphas = alphas_cumprod(model.info.diffusion).to(device)
        # Time steps spread evenly over 0..T-1 and over the pictures: less spread than drawing them.
        order = torch.randperm(num, generator=generator(seed, "collapse-timesteps"))
        self._timesteps = order * len(self._alphas) // num  # (N,)
        given = (
            images,
            noise(model.latent_shape, seed, "collapse-posterior", range(num)),
            noise(model.latent_shape, seed, "collapse-noise", range(num)),
            self._timesteps,
            model.tokens_for(torch.zeros(num, dtype=torch.int64) if labels is None else labels),
        )
        split = (tensor.split(batch_size) for tensor in to_device(given, device))
        self._batches = list(zip(*split, strict=True))
        self._look = Graphed(self._observe, device, record)

    @torch.no_grad()
    def __call__(self) -> Observations:
        """What the model makes of the pictures.

        Raises:
            ModelError: Masks, latents or errors are not finite, which no verdict can be given of.
        """
        model = self._model
        # Copied, as the next replay of a graph writes into the same tensors.
        parts = [
            {name: tensor.clone() for name, tensor in self._look(batch).items()} for batch in self._batches
        ]
        what = f"{model.info.name}: what it makes of pictures"
        seen = {
            name: finite(torch.cat([each[name] for each in parts]).cpu(), what, MEND) for name in parts[0]
        }
        open_channels = model.open_channels()
        there = torch.ones(model.latent_shape[0]) if open_channels is None else open_channels.flatten().cpu()
        return Observations(
            **seen,
            there=there > 0,
            timesteps=self._timesteps,
            alphas=self._alphas.cpu(),
            num_cut=len(model.info.cut_channels),
            zero_floor=zero_latent_floor(model.unet, math.prod(model.latent_shape[1:])),
        )

    def _observe(self, batch: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        # Nothing waits for the device, so it can be recorded.
        model = self._model
        images, posterior, added, steps, tokens = batch
        pictures, conditions = to_float(images), model.conditions(tokens)
        encoded = model.encode(pictures, posterior)
        latents = encoded.latents
        gates = model.gates(latents)
        noisy = add_noise_to(model, latents, gates, added, steps, self._alphas)
        # Zero where the noise is added: behind a normaliser, which would shift it.
        only_noise = add_noise(torch.zeros_like(noisy.clean), added, steps, self._alphas)
        nothing = only_noise if noisy.open_channels is None else only_noise * noisy.open_channels

        def error_of(seen: torch.Tensor) -> torch.Tensor:
            return noise_error(model.unet(seen, steps, **conditions).sample, added, noisy.open_channels)

        def recon_error(values: torch.Tensor) -> torch.Tensor:
            decoded = model.vae.decode(apply_mask(latents, values))
            return (decoded - pictures).square().sum(dim=(1, 2, 3))

        return {
            "masks": gates.values,
            "unet_inputs": noisy.clean,
            "kl": encoded.kl().mean(dim=(2, 3)),
            "noise_errors": error_of(noisy.latents),
            "zero_errors": error_of(nothing),
            "recon_errors": recon_error(torch.ones_like(gates.values)),
            "masked_recon_errors": recon_error(gates.values),
            "hard_recon_errors": recon_error(hard_mask(gates.values, self._thresholds)),
        }


def hard_mask(values: torch.Tensor, thresholds: Thresholds) -> torch.Tensor:
    """The mask with everything at or below the threshold set to exactly 0, same shape."""
    return torch.where(values > thresholds.active, values, 0.0)


def zero_latent_floor(unet: nn.Module, positions: int) -> float:
    """The least error of a UNet that knows the noise, all that comes in at latents of 0, up to its scale.

    A light UNet without stem begins with a norm of each channel e by itself, so it sees (e - mean) / std and
    can at best answer with that times E[std]: the error is Var(mean) + Var(std) over draws of `positions`
    standard normal values, 0.0234 for 64. Any other UNet begins with a convolution, which sees all: 0.
    It is no strict bound: the norm's epsilon lets a little of the scale through, and with the whole of it
    Var(mean), 1/64 for 64, would be left. No training here came near that.

    Args:
        unet: Which.
        positions: h * w of a latent.
    """
    if not isinstance(unet, LightUNet) or unet.config.stem:
        return 0.0
    n = positions
    mean_std = math.sqrt(2 / n) * math.exp(math.lgamma(n / 2) - math.lgamma((n - 1) / 2))
    return 1 / n + (n - 1) / n - mean_std**2
