"""Noisy batches of a model of this project, for distillation: latents masked and noised as in training."""

from collections.abc import Iterator

import torch

from pelap.config import DistillParams
from pelap.core.graphs import to_device
from pelap.core.rng import generator
from pelap.data.dataset import BatchIndices, ImageDataset
from pelap.diffusion.loss import add_noise_to
from pelap.distillation.batches import NoisyBatch
from pelap.models.latent_diffusion import LatentDiffusion
from pelap.models.schedule import alphas_cumprod
from pelap.training.objective import Posteriors, StepNoise, draw_step_noise, frozen_posteriors
from pelap.training.trainer import indices_from


class ModelBatches:
    """The `Batches` of a model; its autoencoder and mask stay as they are.

    They do not depend on the number of students, but for the rounding of pictures encoded together.

    Args:
        model: The teacher.
        dataset: Its train split is learnt from, the first pictures of its test split are held out.
        params: The section `distill`.
        seed: Names every random number.
        device: Where to compute.
        num_students: How many are trained on these batches; pictures are encoded once where that is less.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        dataset: ImageDataset,
        params: DistillParams,
        seed: int,
        device: torch.device,
        num_students: int = 1,
    ) -> None:
        self.model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model.eval()
        self.params = params
        self.seed = seed
        self.device = device
        self.alphas = alphas_cumprod(model.info.diffusion).to(device)
        images, flip = dataset.train.images.to(device), params.horizontal_flip
        num_draws = params.steps * params.batch_size * num_students
        self.num_images = len(images)
        self.posteriors = frozen_posteriors(self.model, images, flip, num_draws, params.precision)
        self.labels = dataset.train.labels.cpu()
        self.held_out_labels = dataset.test.labels[: params.num_validation]
        unseen = dataset.test.images[: params.num_validation].to(device)
        self.num_held_out = len(unseen)
        # Looked at before the first step and after the last one at least.
        self.held_out_posteriors = frozen_posteriors(
            self.model, unseen, flip=False, num_draws=2 * len(unseen), precision=params.precision
        )

    def __call__(self, step: int) -> Iterator[NoisyBatch]:
        """The batches from `step` on."""
        size, flip = self.params.batch_size, self.params.horizontal_flip
        indices = indices_from(self.num_images, size, self.seed, "distill-order", flip, step)
        for index, chosen in enumerate(indices, start=step):
            stream = generator(self.seed, "distill-prompts", index)
            tokens = self.model.tokens_for(self.labels[chosen.indices], stream)
            random = draw_step_noise(self.model, size, self.seed, "distill-step", index, tokens)
            yield self._noisy(self.posteriors, chosen, random)

    def held_out(self) -> Iterator[NoisyBatch]:
        """Test pictures; the noise of each is its own, whatever the size of a batch."""
        for items in torch.arange(self.num_held_out).split(self.params.batch_size):
            tokens = self.model.tokens_for(self.held_out_labels[items])
            draws = [
                draw_step_noise(self.model, 1, self.seed, "distill-validate", i, prompt[None])
                for i, prompt in zip(items.tolist(), tokens, strict=True)
            ]
            random = StepNoise(*(torch.cat(column) for column in zip(*draws, strict=True)))
            indices = BatchIndices(items, torch.zeros_like(items, dtype=torch.bool))
            yield self._noisy(self.held_out_posteriors, indices, random)

    @torch.no_grad()
    def _noisy(self, posteriors: Posteriors, indices: BatchIndices, random: StepNoise) -> NoisyBatch:
        indices, random = to_device((indices, random), self.device)
        latents = self.model.encoded(posteriors(indices), random.posterior).latents
        gates = self.model.gates(latents)
        noisy = add_noise_to(self.model, latents, gates, random.noise, random.timesteps, self.alphas)
        conditions = self.model.conditions(random.tokens)
        return NoisyBatch(noisy.latents, random.timesteps, random.noise, noisy.open_channels, conditions)
