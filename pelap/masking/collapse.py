"""What a mask did to its latents: the numbers that tell a collapse from a better model.

A lower noise loss alone tells nothing: it falls as the UNet's input shrinks. So every loss stands
beside the error that a predictor without any network reaches at the same scale. docs/collapse.md has
the formulas.

Shapes: N pictures, C latent channels, h and w sides of a latent, T time steps.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import pandas as pd
import torch

from pelap.core.rng import generator
from pelap.masking.observation import Observations, Thresholds

HEALTHY = "healthy"
PARTIAL_MASK = "partial mask"
MASK_COLLAPSE = "mask collapse"
SCALE_COLLAPSE = "latent scale collapse"

NUM_BINS = 10  # bins of time steps in the table of losses
NUM_FOLDS, MIN_PER_COORDINATE = 10, 3  # of `full_gaussian_floor`


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
    """`gaussian_floor` with the full covariance of inputs (N, C, h, w), of which these alone are known.

    A predictor fitted to inputs and judged by the same ones looks too good; fitted to nine tenths and judged
    by the tenth that is left, each in turn, too bad by about as much. The mean of both is within 3 % of the
    truth on average from three times as many inputs as coordinates on, and NaN below.
    """
    flat = inputs.flatten(1).double()  # (N, coordinates)
    num, size = flat.shape
    if num < MIN_PER_COORDINATE * size or not size:
        return float("nan")
    # Drawn: in their order pictures may go through the classes.
    fold = torch.randperm(num, generator=generator(0, "folds")) % NUM_FOLDS
    left_out = [_judged(flat[fold != k], flat[fold == k], alphas) for k in range(NUM_FOLDS)]
    return (_judged(flat, flat, alphas) + sum(left_out) / NUM_FOLDS) / 2


def _judged(known: torch.Tensor, judges: torch.Tensor, alphas: torch.Tensor) -> float:
    """Error on some inputs of the affine predictor that is best for a Gaussian like the known ones."""
    centred = known - known.mean(dim=0)
    v, axes = torch.linalg.eigh(centred.T @ centred / (len(known) - 1))
    v = v.clamp_min(0)
    seen = ((judges - known.mean(dim=0)) @ axes).square().mean(dim=0)  # along the axes
    a = alphas.double()[:, None]  # (T, 1)
    return float((a * (a * v.square() + (1 - a) * seen) / (a * v + 1 - a).square()).mean())


def channel_std(inputs: torch.Tensor) -> torch.Tensor:
    """Root of the variance over pictures and positions, (C,), of inputs (N, C, h, w)."""
    return inputs.transpose(0, 1).flatten(1).std(dim=1)


def mask_entropy(masks: torch.Tensor) -> float:
    """Mean entropy of masks in 0..1 read as probabilities, in bits: 0 when all are 0 or 1, 1 at 1/2."""
    m = masks.double()
    entropy = (torch.special.entr(m) + torch.special.entr(1 - m)).mean() / math.log(2)
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
    """What happened by a row of `summarise`, by the first rule that holds, and the numbers that say so.

    1. No channel is active: mask collapse.
    2. The UNet's input has a standard deviation below the threshold: latent scale collapse.
    3. Some channels are not active: partial mask.
    4. Otherwise: healthy.
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
        reason = f"{scale}, below {thresholds.scale:g}, with {active} of {channels} channels open"
        return SCALE_COLLAPSE, reason
    name = PARTIAL_MASK if active < channels else HEALTHY
    return name, f"{active} of {channels} channels are open (mean mask {row['mean_mask']:.3g}); {scale}"


def collapse_row(seen: Observations, thresholds: Thresholds) -> dict[str, float | str]:
    """A row of `collapse.csv`: the verdict, its reason, and the numbers of `summarise`."""
    row = summarise(seen, thresholds)
    name, reason = verdict(row, thresholds)
    return {"verdict": name, "reason": reason, **row}


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
