"""What joint training minimises, for every variant (PeLAP-A, section 3), and the phases of a run.

An autoencoder that no longer learns is asked about every picture once, where that is less work, and its
posteriors are looked up afterwards.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch.nn import functional as F

from pelap.config import TrainParams, VariantParams
from pelap.core.device import autocast
from pelap.core.rng import generator
from pelap.data.dataset import BatchIndices, gather_batch, to_float
from pelap.diffusion.loss import add_noise_to, noise_error
from pelap.models.latent_diffusion import LatentDiffusion, Posterior
from pelap.training.trainer import Losses, cosine

TABLE_BYTES = 2**30  # larger tables are not made: batches are encoded as they come
TABLE_BATCH_SIZE = 256  # pictures that are encoded together for a table

Posteriors: TypeAlias = Callable[[BatchIndices], Posterior]
"""From picked pictures, mirrored or not, to their posterior."""


class StepNoise(NamedTuple):
    """The random numbers of one step on B pictures."""

    posterior: torch.Tensor  # (B, C, h, w) standard normal
    noise: torch.Tensor  # (B, C, h, w) standard normal
    timesteps: torch.Tensor  # (B,) in 0..T-1
    gates: torch.Tensor  # (B, C) uniform in 0..1
    tokens: torch.Tensor  # (B, L) the prompts that the pictures are given; L is 0 without a conditioner


def draw_step_noise(
    model: LatentDiffusion,
    batch_size: int,
    seed: int,
    purpose: str,
    index: int,
    tokens: torch.Tensor | None = None,
) -> StepNoise:
    """The numbers of step `index`, on the CPU; without `tokens` (B, L), all pictures get the first prompt."""
    stream = generator(seed, purpose, index)
    shape = (batch_size, *model.latent_shape)
    total = model.info.diffusion.num_train_timesteps
    if tokens is None:
        tokens = model.tokens_for(torch.zeros(batch_size, dtype=torch.int64))
    return StepNoise(
        torch.randn(shape, generator=stream),
        torch.randn(shape, generator=stream),
        torch.randint(total, (batch_size,), generator=stream),
        torch.rand(shape[:2], generator=stream),
        tokens,
    )


def autoencoder_losses(
    model: LatentDiffusion,
    images: torch.Tensor,
    random: StepNoise,
    kl_weight: float,
    sparsity_weight: float | torch.Tensor,
) -> Losses:
    """The autoencoder alone on pictures (B, 3 or 1, H, W) in [-1, 1]: ``loss`` = recon + kl_weight * kl.

    A mask that is trained with it adds sparsity_weight * sparsity, and the decoder sees z*m.
    """
    encoded = model.encode(images, random.posterior)
    kl = encoded.kl().mean()
    if not model.info.variant.mask_with_autoencoder:
        recon = F.mse_loss(model.vae.decode(encoded.latents).float(), images)
        return {"loss": recon + kl_weight * kl, "recon": recon, "kl": kl}
    reached = model.reached_by("reconstruction", encoded.latents, random.gates)
    recon = F.mse_loss(model.vae.decode(model.decoder_input(*reached)).float(), images)
    gates = model.reached_by("sparsity", encoded.latents, random.gates)[1]
    loss = recon + kl_weight * kl + sparsity_weight * gates.open_probability.mean()
    return {"loss": loss, "recon": recon, "kl": kl, "mean_mask": gates.values.mean()}


def joint_losses(
    model: LatentDiffusion,
    images: torch.Tensor,
    random: StepNoise,
    kl_weight: float,
    sparsity_weight: float | torch.Tensor,
    alphas: torch.Tensor,
    posterior: Posterior | None = None,
) -> Losses:
    """Loss terms on pictures (B, 3 or 1, H, W) in [-1, 1]; `alphas` (T,) is alpha-bar.

    ``loss`` = recon + kl_weight * kl + noise + sparsity_weight * sparsity, with recon and noise as mean
    squared errors and sparsity as the mean cost of the gates. ``mean_mask`` is the mean of their values.
    Each term reaches the parts that the variant's `encoder_losses` and `mask_losses` name.

    A `posterior` is the pictures' by an autoencoder that does not learn. Where no mask learns from the
    reconstruction either, nothing does, and its terms are left out.
    """
    encoded = model.encoded(model.posterior(images) if posterior is None else posterior, random.posterior)
    variant = model.info.variant
    learns = "reconstruction" in variant.mask_losses and not variant.mask_with_autoencoder
    masked = model.mask is not None and learns
    if posterior is not None and not masked:
        return denoising_losses(model, encoded.latents, random, sparsity_weight, alphas)
    uniform = _gate_noise(model, random)
    reached = model.reached_by("reconstruction", encoded.latents, uniform)
    recon = F.mse_loss(model.vae.decode(model.decoder_input(*reached)).float(), images)
    kl = encoded.kl().mean()
    denoising = denoising_losses(model, encoded.latents, random, sparsity_weight, alphas)
    loss = recon + kl_weight * kl + denoising["loss"]
    return denoising | {"loss": loss, "recon": recon, "kl": kl}


def denoising_losses(
    model: LatentDiffusion,
    latents: torch.Tensor,
    random: StepNoise,
    sparsity_weight: float | torch.Tensor,
    alphas: torch.Tensor,
) -> Losses:
    """What `joint_losses` has beside the autoencoder: ``loss`` = noise + sparsity_weight * sparsity."""
    uniform = _gate_noise(model, random)
    seen = model.reached_by("diffusion", latents, uniform)
    noisy = add_noise_to(model, *seen, random.noise, random.timesteps, alphas)
    conditions = model.conditions(random.tokens)
    predicted = model.unet(noisy.latents, random.timesteps, **conditions).sample
    noise = noise_error(predicted, random.noise, noisy.open_channels).mean()
    gates = model.reached_by("sparsity", latents, uniform)[1]
    loss = noise + sparsity_weight * gates.open_probability.mean()
    return {"loss": loss, "noise": noise, "mean_mask": gates.values.mean()}


def _gate_noise(model: LatentDiffusion, random: StepNoise) -> torch.Tensor | None:
    """What hard concrete gates are drawn with: none where the mask is as it will be used."""
    learns = model.mask is not None and any(each.requires_grad for each in model.mask.parameters())
    return random.gates if model.training and learns else None


def frozen_posteriors(
    model: LatentDiffusion, images: torch.Tensor, flip: bool, num_draws: int, precision: str
) -> Posteriors:
    """Posteriors by a model's autoencoder as it is now.

    They are looked up in a table of all pictures, and of their mirror images where these are asked for, if
    that costs fewer encodings than `num_draws` and fits into `TABLE_BYTES`.

    Args:
        model: In evaluation or training mode; its autoencoder must not change any more.
        images: Training pictures (N, 3 or 1, H, W) uint8, on the model's device.
        flip: Whether pictures are mirrored.
        num_draws: How many pictures will be picked.
        precision: Of the encoder, see `pelap.core.device.autocast`.
    """

    @torch.no_grad()
    def encode(pictures: torch.Tensor) -> Posterior:
        with autocast(images.device, precision):
            return Posterior(*(each.float() for each in model.posterior(pictures)))

    sides = (False, True) if flip else (False,)
    num_values = 2 * len(sides) * len(images) * torch.Size(model.latent_shape).numel()
    if num_draws <= len(sides) * len(images) or 4 * num_values > TABLE_BYTES:
        return lambda indices: encode(gather_batch(images, indices))

    def encode_all(mirrored: bool) -> Posterior:
        chunks = images.split(TABLE_BATCH_SIZE)
        encoded = [encode(to_float(chunk.flip(-1) if mirrored else chunk)) for chunk in chunks]
        return Posterior(*(torch.cat(parts) for parts in zip(*encoded, strict=True)))

    tables = Posterior(*(torch.stack(parts) for parts in zip(*map(encode_all, sides), strict=True)))
    # (sides, N, C, h, w)
    return lambda indices: Posterior(*(table[indices.mirrored.long(), indices.indices] for table in tables))


@dataclass(frozen=True)
class Phase:
    """What a step trains."""

    vae_alone: bool
    masked: bool  # whether the mask is in force, or still all ones
    sparsity_weight: float  # weight of the sparsity penalty


class Schedule:
    """A run in phases: the VAE alone (`vae_training: two_stage`), all without mask, all with mask.

    A mask that is trained with the VAE alone (`VariantParams.mask_with_autoencoder`) has its start there.

    Args:
        variant: Says which phases there are.
        sparsity_weight: Weight of the sparsity penalty once any warm-up is over.
        params: The section `train`.
        steps_per_epoch: Steps of an epoch.
    """

    def __init__(
        self, variant: VariantParams, sparsity_weight: float, params: TrainParams, steps_per_epoch: int
    ) -> None:
        self.variant = variant
        self.sparsity_weight = sparsity_weight
        self.params = params
        self.steps_per_epoch = steps_per_epoch
        self.vae_steps = params.vae_epochs * steps_per_epoch if variant.vae_training == "two_stage" else 0
        first = 0 if variant.mask_with_autoencoder else self.vae_steps
        self.mask_step = first + variant.start_epoch * steps_per_epoch
        self.num_steps = self.vae_steps + params.epochs * steps_per_epoch

    def at(self, step: int) -> Phase:
        """The phase of a step, counted from 0 over the whole run."""
        after_start = step - self.mask_step
        masked = after_start >= 0
        sparsity_weight = self.sparsity_weight * self._ramp(after_start) if masked else 0.0
        return Phase(vae_alone=step < self.vae_steps, masked=masked, sparsity_weight=sparsity_weight)

    def _ramp(self, step: int) -> float:
        """Share of the penalty `step` steps after the mask came into force: 0 to 1 over the warm-up."""
        warmup = self.variant.warmup_epochs * self.steps_per_epoch
        if step >= warmup:
            return 1.0
        position = step / warmup
        return position if self.variant.schedule == "linear" else (1 - math.cos(math.pi * position)) / 2

    def lr_at(self, step: int) -> float:
        """Cosine from lr to lr_min, moved every step or (the paper) every epoch; once for each phase."""
        first, end = (0, self.vae_steps) if step < self.vae_steps else (self.vae_steps, self.num_steps)
        step, total = step - first, end - first
        if self.params.lr_update == "epoch":
            step -= step % self.steps_per_epoch
        return cosine(self.params.lr, self.params.lr_min, step / total)
