"""What the networks of a distillation are given: latents of a model masked and noised as in training.

Batches are made once for all students; those of a pipeline are in `pelap.distillation.pipeline_distillation`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils._pytree import register_dataclass, tree_leaves

from pelap.config import DistillParams
from pelap.core.graphs import to_device
from pelap.core.rng import generator
from pelap.data.dataset import BatchIndices, ImageDataset
from pelap.diffusion.loss import add_noise_to, alphas_cumprod, noise_error
from pelap.models.latent_diffusion import LatentDiffusion
from pelap.training.objective import Posteriors, StepNoise, draw_step_noise, frozen_posteriors
from pelap.training.trainer import indices_from

KEPT_BYTES = 2 * 2**30  # training batches that do not fit into this any more are made anew for every student


@dataclass
class NoisyBatch:
    """What both networks are given, and what the data say to it."""

    latents: torch.Tensor  # (B, C, h, w) with noise
    timesteps: torch.Tensor  # (B,)
    target: torch.Tensor  # (B, C, h, w) what a network's first C channels should be
    open_channels: torch.Tensor | None = None  # (B or 1, C, 1, 1) ones for channels that are there; None: all
    conditions: Mapping[str, Any] = field(default_factory=dict)  # what else a network is called with, by name
    teacher_prediction: torch.Tensor | None = None  # (B, C, h, w) of the teacher, where that is known already

    def predict(self, network: nn.Module) -> torch.Tensor:
        """What a network makes of the batch, (B, C, h, w).

        It may have further channels, for a variance: no task loss is defined for them, and they are left out.
        """
        output: torch.Tensor = network(self.latents, timestep=self.timesteps, **self.conditions).sample
        return output[:, : self.target.shape[1]]

    def task_loss(self, predicted: torch.Tensor) -> torch.Tensor:
        """Mean squared error of a prediction (B, C, h, w), over the channels that are there."""
        return noise_error(predicted, self.target, self.open_channels).mean()


register_dataclass(NoisyBatch)


class Batches(Protocol):
    """What networks are trained and judged on, the same in every run and for every student."""

    def __call__(self, step: int) -> Iterator[NoisyBatch]:
        """The endless batches from a step on."""

    def held_out(self) -> Iterable[NoisyBatch]:
        """The batches of pictures that are never learnt from, with the same noise at every call."""


class SharedBatches:
    """Keeps batches from when they are first asked for, so that the next student is given the same objects.

    What a student sees does not depend on what is kept, to the last bit. Nobody may write into a batch, save
    for the teacher's prediction, which is then known to the next student too. Of training batches `limit`
    bytes are kept at most; those held out in any case: they are few, and asked for again and again.
    """

    def __init__(self, batches: Batches, limit: int = KEPT_BYTES) -> None:
        self._batches = batches
        self._room = limit
        self._kept: dict[int, NoisyBatch] = {}
        self._held_out: list[NoisyBatch] | None = None

    def __call__(self, step: int) -> Iterator[NoisyBatch]:
        made, position = self._batches(step), step
        for index in count(step):
            batch = self._kept.get(index)
            if batch is None:
                if position != index:  # behind batches that were kept, and not made again
                    made = self._batches(index)
                batch, position = next(made), index + 1
                # With the teacher's prediction, which is as large as the target.
                leaves = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor)]
                num_bytes = sum(leaf.untyped_storage().nbytes() for leaf in (*leaves, batch.target))
                if num_bytes <= self._room:
                    self._kept[index] = batch
                    self._room -= num_bytes
            yield batch

    def held_out(self) -> list[NoisyBatch]:
        if self._held_out is None:
            self._held_out = list(self._batches.held_out())
        return self._held_out


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
