"""What a mask did to its latents: the numbers that tell a collapse from a better model.

A lower noise loss alone tells nothing: it falls as the UNet's input shrinks. So every loss stands
beside the error that a predictor without any network reaches at the same scale. docs/collapse.md has
the formulas.

Shapes: N pictures, C latent channels, h and w sides of a latent, T time steps.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import pandas as pd
import torch
from torch import nn

from pelap.core.errors import finite
from pelap.core.graphs import Graphed
from pelap.core.rng import generator, noise
from pelap.data.dataset import to_float
from pelap.diffusion.loss import add_noise_to, noise_error
from pelap.models.latent_diffusion import LatentDiffusion, apply_mask
from pelap.models.light_unet import LightUNet
from pelap.models.schedule import add_noise, alphas_cumprod

HEALTHY = "healthy"
PARTIAL_MASK = "partial mask"
MASK_COLLAPSE = "mask collapse"
SCALE_COLLAPSE = "latent scale collapse"

MEND = "train it again with a lower lr, or in fp32"

NUM_BINS = 10
"""Bins of time steps in the table of losses."""


class Thresholds(NamedTuple):
    """Where open ends and collapse begins."""

    active: float = 0.5
    """A channel is active when its mean mask is above (PeLAP-A, section 4)."""
    scale: float = 0.5
    """The UNet's input has collapsed when its standard deviation is below; pure noise has 1."""


class Observations(NamedTuple):
    """What a model makes of N pictures."""

    masks: torch.Tensor  # (N, C)
    there: torch.Tensor  # (C,) bool: not taken away by a static hard gate
    unet_inputs: torch.Tensor  # (N, C, h, w) z*m, normalised where the variant says so
    kl: torch.Tensor  # (N, C) KL of the posterior from N(0, 1), mean over positions, in nats
    timesteps: torch.Tensor  # (N,)
    noise_errors: torch.Tensor  # (N,) mean squared error of the predicted noise
    zero_errors: torch.Tensor  # (N,) the same where the clean latent is 0
    recon_errors: torch.Tensor  # (N,) squared error summed over a picture's values, decoded from z
    masked_recon_errors: torch.Tensor  # (N,) the same, decoded from z*m
    hard_recon_errors: torch.Tensor  # (N,) the same, from z*m without channels below the threshold
    alphas: torch.Tensor  # (T,) alpha-bar
    num_cut: int  # channels that were cut out of the model
    zero_floor: float  # least error of this UNet where the clean latent is 0


class Observer:
    """Runs models over the same pictures with the same noise: both are made once and kept for the next model.

    What is drawn belongs to (seed, picture) alone, so that a second call gives what a new observer would.
    It stays where the model is: for N pictures two latents, and 3 bytes a pixel.

    Args:
        images: (N, 3 or 1, H, W) uint8.
        seed: Names the posterior's and the diffusion's noise; picture i's depends on (seed, i) alone.
        batch_size: Pictures at a time; changes no number.
        thresholds: For the hard mask.
        record: Whether whole batches are recorded as a CUDA graph, on a CUDA device.
        labels: (N,) of the pictures, that a model with a conditioner is told; None: all 0.
    """

    def __init__(
        self,
        images: torch.Tensor,
        seed: int,
        batch_size: int,
        thresholds: Thresholds = Thresholds(),  # noqa: B008  immutable
        record: bool = True,
        labels: torch.Tensor | None = None,
    ) -> None:
        self._images = images
        self._labels = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels
        self._seed = seed
        self._batch_size = batch_size
        self._thresholds = thresholds
        self._record = record
        self._drawn: _Drawn | None = None
        self._drawn_for: object = None
        self._look: Graphed[tuple[torch.Tensor, ...]] | None = None
        self._looks_at: object = None

    @torch.no_grad()
    def __call__(self, model: LatentDiffusion) -> Observations:
        """What a model, in evaluation mode, makes of the pictures.

        Raises:
            ModelError: Masks, latents or errors are not finite, which no verdict can be given of.
        """
        drawn = self._drawn_as(model)
        look = self._look_through(model, drawn.alphas)
        batches = zip(*(tensor.split(self._batch_size) for tensor in drawn.of_pictures), strict=True)
        # Copied, as the next replay of a graph writes into the same tensors.
        parts = [tuple(tensor.clone() for tensor in look(batch)) for batch in batches]
        masks, inputs, kl, noise_errors, zero_errors, recon, masked_recon, hard_recon = (
            finite(torch.cat(tensors).cpu(), f"{model.info.name}: what it makes of pictures", MEND)
            for tensors in zip(*parts, strict=True)
        )
        open_channels = model.open_channels()
        there = torch.ones(masks.shape[1]) if open_channels is None else open_channels[0, :, 0, 0].cpu()
        floor = zero_latent_floor(model.unet, math.prod(model.latent_shape[1:]))
        return Observations(
            masks=masks,
            there=there > 0,
            unet_inputs=inputs,
            kl=kl,
            timesteps=drawn.timesteps.cpu(),
            noise_errors=noise_errors,
            zero_errors=zero_errors,
            recon_errors=recon,
            masked_recon_errors=masked_recon,
            hard_recon_errors=hard_recon,
            alphas=drawn.alphas.cpu(),
            num_cut=len(model.info.cut_channels),
            zero_floor=floor,
        )

    def _drawn_as(self, model: LatentDiffusion) -> "_Drawn":
        """The kept draws, made anew for a model of another shape, forward process or device."""
        device = next(model.parameters()).device
        wanted = (model.latent_shape, model.info.diffusion, device)
        if self._drawn is None or self._drawn_for != wanted:
            self._drawn = _draw(self._images, self._labels, model, self._seed, device)
            self._drawn_for = wanted
        return self._drawn

    def _look_through(
        self, model: LatentDiffusion, alphas: torch.Tensor
    ) -> "Graphed[tuple[torch.Tensor, ...]]":
        """`_observe` of a model, recorded anew where its weights lie elsewhere than at the last call."""
        places = [tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers(), alphas)]
        wanted = (id(model), places, [module.training for module in model.modules()])
        if self._look is None or self._looks_at != wanted:

            def look(batch: Batch) -> tuple[torch.Tensor, ...]:
                return _observe(model, batch, alphas, self._thresholds)

            # The function holds the model, so that no other one gets its id.
            self._look, self._looks_at = Graphed(look, alphas.device, self._record), wanted
        return self._look


Batch: TypeAlias = tuple[torch.Tensor, ...]
"""Pictures, posterior's noise, diffusion's noise, time steps and prompts, as in `_Drawn`."""


class _Drawn(NamedTuple):
    """What does not depend on a model's weights, on its device."""

    images: torch.Tensor  # (N, 3 or 1, H, W) uint8
    posterior: torch.Tensor  # (N, C, h, w) standard normal
    added: torch.Tensor  # (N, C, h, w) standard normal
    timesteps: torch.Tensor  # (N,)
    tokens: torch.Tensor  # (N, L) prompts; L is 0 without a conditioner
    alphas: torch.Tensor  # (T,) alpha-bar

    @property
    def of_pictures(self) -> Batch:
        return (self.images, self.posterior, self.added, self.timesteps, self.tokens)


def _draw(
    images: torch.Tensor, labels: torch.Tensor, model: LatentDiffusion, seed: int, device: torch.device
) -> _Drawn:
    alphas = alphas_cumprod(model.info.diffusion)
    # Time steps spread evenly over 0..T-1 and over the pictures: less spread than drawing them.
    order = torch.randperm(len(images), generator=generator(seed, "collapse-timesteps"))
    timesteps = order * len(alphas) // len(images)  # (N,)
    drawn = _Drawn(
        images,
        noise(model.latent_shape, seed, "collapse-posterior", range(len(images))),
        noise(model.latent_shape, seed, "collapse-noise", range(len(images))),
        timesteps,
        model.tokens_for(labels),
        alphas,
    )
    return _Drawn(*(tensor.to(device) for tensor in drawn))


def observe(
    model: LatentDiffusion,
    images: torch.Tensor,
    seed: int,
    batch_size: int,
    thresholds: Thresholds = Thresholds(),  # noqa: B008  immutable
    labels: torch.Tensor | None = None,
) -> Observations:
    """What a model, in evaluation mode, makes of pictures; see `Observer`, for several models of them."""
    return Observer(images, seed, batch_size, thresholds, labels=labels)(model)


def _observe(
    model: LatentDiffusion, batch: Batch, alphas: torch.Tensor, thresholds: Thresholds
) -> tuple[torch.Tensor, ...]:
    """Masks, inputs, KL and errors of one batch, in the order of `Observations`.

    Nothing in it waits for the device, so that it can be recorded.
    """
    images, posterior, added, steps, tokens = batch
    pictures, conditions = to_float(images), model.conditions(tokens)
    encoded = model.encode(pictures, posterior)
    latents = encoded.latents
    gates = model.gates(latents)
    noisy = add_noise_to(model, latents, gates, added, steps, alphas)
    # Zero where the noise is added: behind a normaliser, which would shift it.
    only_noise = add_noise(torch.zeros_like(noisy.clean), added, steps, alphas)
    nothing = only_noise if noisy.open_channels is None else only_noise * noisy.open_channels

    def error_of(seen: torch.Tensor) -> torch.Tensor:
        return noise_error(model.unet(seen, steps, **conditions).sample, added, noisy.open_channels)

    def recon_error(values: torch.Tensor) -> torch.Tensor:
        decoded = model.vae.decode(apply_mask(latents, values))
        return (decoded - pictures).square().sum(dim=(1, 2, 3))

    return (
        gates.values,
        noisy.clean,
        encoded.kl().mean(dim=(2, 3)),
        error_of(noisy.latents),
        error_of(nothing),
        recon_error(torch.ones_like(gates.values)),
        recon_error(gates.values),
        recon_error(hard_mask(gates.values, thresholds)),
    )


def hard_mask(values: torch.Tensor, thresholds: Thresholds) -> torch.Tensor:
    """The mask with everything at or below the threshold set to exactly 0, same shape."""
    return torch.where(values > thresholds.active, values, 0.0)


def gaussian_floor(variances: torch.Tensor, alphas: torch.Tensor) -> float:
    """Error of the best affine noise predictor that looks at each coordinate by itself.

    Mean over time steps and coordinates of a*v / (a*v + 1 - a). A reference, not a lower bound: a
    network that uses structure between coordinates goes below it. With the eigenvalues of the covariance
    for v it is the error of the best affine predictor that looks at all coordinates.

    Args:
        variances: v, of each coordinate of the UNet's clean input, any shape.
        alphas: a = alpha-bar, (T,) in 0..1.
    """
    v = variances.double().flatten()[None, :]  # (1, coordinates)
    a = alphas.double()[:, None]  # (T, 1)
    return float((a * v / (a * v + 1 - a)).mean())


def full_gaussian_floor(inputs: torch.Tensor, alphas: torch.Tensor) -> float:
    """`gaussian_floor` with the full covariance of inputs (N, C, h, w).

    NaN unless N exceeds the number of coordinates: with fewer pictures the covariance has directions
    without variance that the pictures at large do have.
    """
    flat = inputs.flatten(1).double()  # (N, coordinates)
    if len(flat) <= flat.shape[1] or not flat.shape[1]:
        return float("nan")
    return gaussian_floor(torch.linalg.eigvalsh(torch.cov(flat.T)).clamp_min(0), alphas)


def zero_latent_floor(unet: nn.Module, positions: int) -> float:
    """The least error that this UNet can reach where the clean latent is 0 and only noise comes in.

    A light UNet without stem begins with a norm of each channel e by itself, so it sees (e - mean) / std and
    can at best answer with that times E[std]: the error is Var(mean) + Var(std) over draws of `positions`
    standard normal values, 0.0234 for 64. Any other UNet begins with a convolution, which sees all: 0.

    Args:
        unet: Which.
        positions: h * w of a latent.
    """
    if not isinstance(unet, LightUNet) or unet.config.stem:
        return 0.0
    n = positions
    mean_std = math.sqrt(2 / n) * math.exp(math.lgamma(n / 2) - math.lgamma((n - 1) / 2))
    return 1 / n + (n - 1) / n - mean_std**2


def channel_std(inputs: torch.Tensor) -> torch.Tensor:
    """Root of the variance over pictures and positions, (C,), of inputs (N, C, h, w)."""
    return inputs.transpose(0, 1).flatten(1).std(dim=1)


def mask_entropy(masks: torch.Tensor) -> float:
    """Mean entropy of masks in 0..1 read as probabilities, in bits: 0 when all are 0 or 1, 1 at 1/2."""
    m = masks.double()
    entropy = -(torch.special.xlogy(m, m) + torch.special.xlogy(1 - m, 1 - m)).mean() / math.log(2)
    return abs(float(entropy))  # minus zero is no entropy


def summarise(seen: Observations, thresholds: Thresholds) -> dict[str, float]:
    """The numbers of a row of `collapse.csv`; docs/collapse.md defines each.

    ``unet_input_std`` is averaged over active channels, or over all where none is active. Ratios are NaN
    where the floor is 0.
    """
    active = seen.masks.mean(dim=0) > thresholds.active  # (C,)
    stds = channel_std(seen.unet_inputs)
    loss = float(seen.noise_errors.mean())
    inputs = seen.unet_inputs[:, seen.there]
    floor = gaussian_floor(inputs.var(dim=0), seen.alphas) if seen.there.any() else 0.0
    return {
        "latent_channels": seen.masks.shape[1] + seen.num_cut,
        "mean_mask": float(seen.masks.mean()),
        "min_mask": float(seen.masks.min()),
        "max_mask": float(seen.masks.max()),
        "mask_entropy": mask_entropy(seen.masks),
        "mask_std_images": float(seen.masks.std(dim=0).mean()),
        "active_channels": int(active.sum()),
        "unet_input_std": float(stds[active].mean() if active.any() else stds.mean()),
        "diffusion_loss": loss,
        "gaussian_floor": floor,
        "gaussian_floor_full": full_gaussian_floor(inputs, seen.alphas),
        "floor_ratio": loss / floor if floor > 0 else float("nan"),
        "zero_latent_loss": float(seen.zero_errors.mean()),
        "zero_latent_floor": seen.zero_floor,
        "recon_mse": float(seen.recon_errors.mean()),
        "masked_recon_mse": float(seen.masked_recon_errors.mean()),
        "hard_recon_mse": float(seen.hard_recon_errors.mean()),
        "kl": float(seen.kl.mean()),
    }


def verdict(row: dict[str, float], thresholds: Thresholds) -> tuple[str, str]:
    """What happened, by the first rule that holds, and the numbers that say so.

    1. No channel is active: mask collapse.
    2. The UNet's input has a standard deviation below the threshold: latent scale collapse.
    3. Some channels are not active: partial mask.
    4. Otherwise: healthy.

    Args:
        row: From `summarise`.
        thresholds: Of both rules.
    """
    active, channels = int(row["active_channels"]), int(row["latent_channels"])
    std = row["unet_input_std"]
    scale = f"the UNet's input has standard deviation {std:.3g}"
    if active == 0:
        return MASK_COLLAPSE, (
            f"no channel of {channels} has a mean mask above {thresholds.active:g} "
            f"(mean {row['mean_mask']:.3g}, largest value {row['max_mask']:.3g}); {scale}"
        )
    if std < thresholds.scale:
        return (
            SCALE_COLLAPSE,
            f"{scale}, below {thresholds.scale:g}, with {active} of {channels} channels open",
        )
    name = PARTIAL_MASK if active < channels else HEALTHY
    return name, f"{active} of {channels} channels are open (mean mask {row['mean_mask']:.3g}); {scale}"


def channel_table(seen: Observations, thresholds: Thresholds) -> pd.DataFrame:
    """One row a channel: its mask over pictures, the scale that the UNet sees, and its KL in nats."""
    means = seen.masks.mean(dim=0)
    return pd.DataFrame(
        {
            "channel": range(len(means)),
            "mean_mask": means.numpy(),
            "min_mask": seen.masks.amin(dim=0).numpy(),
            "max_mask": seen.masks.amax(dim=0).numpy(),
            "mask_std_images": seen.masks.std(dim=0).numpy(),
            "active": (means > thresholds.active).numpy(),
            "unet_input_std": channel_std(seen.unet_inputs).numpy(),
            "kl": seen.kl.mean(dim=0).numpy(),
        }
    )


def timestep_table(seen: Observations) -> pd.DataFrame:
    """Noise loss in bins of time steps, beside the floors at the same steps.

    Columns first_step, last_step (inclusive), num_images, diffusion_loss, gaussian_floor,
    zero_latent_loss. An empty bin is left out.
    """
    total = len(seen.alphas)
    edges = [total * i // NUM_BINS for i in range(NUM_BINS + 1)]
    variances = seen.unet_inputs[:, seen.there].var(dim=0)
    rows = []
    for first, end in pairwise(edges):
        inside = (seen.timesteps >= first) & (seen.timesteps < end)
        if inside.any():
            rows.append(
                {
                    "first_step": first,
                    "last_step": end - 1,
                    "num_images": int(inside.sum()),
                    "diffusion_loss": float(seen.noise_errors[inside].mean()),
                    "gaussian_floor": gaussian_floor(variances, seen.alphas[first:end]),
                    "zero_latent_loss": float(seen.zero_errors[inside].mean()),
                }
            )
    return pd.DataFrame(rows)


def masks_per_class(masks: torch.Tensor, labels: torch.Tensor, class_names: Sequence[str]) -> pd.DataFrame:
    """Mean mask (N, C) of each class and channel: columns class_name, channel, mean_mask."""
    rows = [
        {"class_name": name, "channel": channel, "mean_mask": float(value)}
        for label, name in enumerate(class_names)
        if bool((labels == label).any())
        for channel, value in enumerate(masks[labels == label].mean(dim=0))
    ]
    return pd.DataFrame(rows, columns=["class_name", "channel", "mean_mask"])
