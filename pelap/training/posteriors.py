"""Posteriors of training pictures by an autoencoder that no longer learns: computed once, then looked up."""

from collections.abc import Callable
from typing import TypeAlias

import torch

from pelap.core.device import autocast
from pelap.data.dataset import BatchIndices, gather_batch, to_float
from pelap.models.latent_diffusion import LatentDiffusion, Posterior

TABLE_BYTES = 2**30  # larger tables are not made: batches are encoded as they come
BATCH_SIZE = 256

Posteriors: TypeAlias = Callable[[BatchIndices], Posterior]
"""From picked pictures, mirrored or not, to their posterior."""


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
        chunks = images.split(BATCH_SIZE)
        encoded = [encode(to_float(chunk.flip(-1) if mirrored else chunk)) for chunk in chunks]
        return Posterior(*(torch.cat(parts) for parts in zip(*encoded, strict=True)))

    tables = Posterior(*(torch.stack(parts) for parts in zip(*map(encode_all, sides), strict=True)))
    # (sides, N, C, h, w)
    return lambda indices: Posterior(*(table[indices.mirrored.long(), indices.indices] for table in tables))
