"""Noisy batches of a model of this project, for distillation: latents masked and noised as in training."""

from collections.abc import Iterator

import torch

from pelap.denoising import add_noise_to
from pelap.diffusion import alphas_cumprod
from pelap.models.ldm import LatentDiffusion
from pelap.params import DistillParams
from pelap.training.distill import NoisyBatch
from pelap.training.joint import draw
from pelap.training.loop import batches_from


class ModelBatches:
    """The `Batches` of a model; its autoencoder and mask stay as they are.

    Args:
        model: The teacher.
        images: Training pictures (N, 3, H, W) uint8.
        params: The section `distill`.
        seed: Names every random number.
        device: Where to compute.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        images: torch.Tensor,
        params: DistillParams,
        seed: int,
        device: torch.device,
    ) -> None:
        self.model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model.requires_grad_(False).eval()
        self.images = images.to(device)
        self.params = params
        self.seed = seed
        self.alphas = alphas_cumprod(model.info.diffusion).to(device)

    def __call__(self, step: int) -> Iterator[NoisyBatch]:
        """The batches from `step` on."""
        batch_size, flip = self.params.batch_size, self.params.horizontal_flip
        batches = batches_from(self.images, batch_size, self.seed, "distill-order", flip, step)
        for index, pictures in enumerate(batches, start=step):
            yield self._noisy(pictures, index)

    def _noisy(self, pictures: torch.Tensor, step: int) -> NoisyBatch:
        random = draw(self.model, len(pictures), self.seed, "distill-step", step)
        latents = self.model.encode(pictures, random.posterior).latents
        gates = self.model.gates(latents)
        noisy = add_noise_to(self.model, latents, gates, random.noise, random.timesteps, self.alphas)
        return NoisyBatch(noisy.latents, random.timesteps, random.noise, noisy.support)
