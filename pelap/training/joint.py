"""Joint training of VAE, mask and UNet."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

import torch

from pelap.config import TrainParams
from pelap.core.device import autocast
from pelap.core.graphs import Graphed, to_device
from pelap.core.rng import generator
from pelap.data.dataset import BatchIndices, ImageDataset, Split, gather_batch, to_float
from pelap.diffusion.loss import alphas_cumprod
from pelap.masking.collapse import summarise
from pelap.masking.observation import Observer, Thresholds
from pelap.models.latent_diffusion import LatentDiffusion
from pelap.training.objective import (
    Posteriors,
    Schedule,
    StepNoise,
    autoencoder_losses,
    draw_step_noise,
    frozen_posteriors,
    joint_losses,
)
from pelap.training.parallel import Training, prefetch
from pelap.training.trainer import (
    Losses,
    LossFunction,
    Optimisation,
    Progress,
    Trainer,
    indices_from,
    mean_losses,
    steps_in_epoch,
)

NUM_CALIBRATION = 1024  # training pictures that the statistics of a normaliser are taken over


class StepInputs(NamedTuple):
    """All that changes from step to step of one phase."""

    indices: BatchIndices
    random: StepNoise
    sparsity_weight: torch.Tensor  # () weight of the sparsity penalty


def joint_training(
    model: LatentDiffusion,
    dataset: ImageDataset,
    params: TrainParams,
    device: torch.device,
    checkpoint: Path | None = None,
) -> Training[tuple[LatentDiffusion, Progress]]:
    """Train a fresh model in place, step by step; see `pelap.training.parallel`.

    Args:
        model: From `build_model`; its `info.seed` names every random number.
        dataset: Its train split is trained on, its test split validated on.
        params: The section `train`.
        device: Where to compute.
        checkpoint: Folder of the resume state, read and written; of a training that is done it holds the end.
            None: nothing is kept.

    Returns:
        The model to keep (the moving average where there is one), and what was logged.

    Raises:
        TrainingError: The loss is not finite.
        DataError: Fewer pictures than one batch.
    """
    run = _JointTraining(model, dataset, params, device, checkpoint)
    steps_per_epoch = run.schedule.steps_per_epoch

    def after_step(step: int) -> None:
        if step % steps_per_epoch == 0:
            run.validate(step // steps_per_epoch)

    inputs = prefetch(run.inputs(run.trainer.progress.step), device)
    yield from run.trainer.steps(inputs, run.losses_at, after_step)
    run.trainer.save()
    run.validation = None  # with the memory of what was recorded
    kept = cast(LatentDiffusion, run.trainer.kept)
    calibrate(kept, run.images, params.batch_size)
    return kept.eval(), run.trainer.progress


@torch.no_grad()
def calibrate(model: LatentDiffusion, images: torch.Tensor, batch_size: int) -> None:
    """Set the normaliser's statistics to those of the first training pictures (N, 3 or 1, H, W) uint8.

    The running averages of training lag behind the encoder, and an average of weights is an encoder that
    they never saw.
    """
    if model.normaliser is None:
        return
    training = model.training
    statistics = model.normaliser.statistics
    statistics.reset_running_stats()
    momentum, statistics.momentum = statistics.momentum, None  # the plain mean over batches
    model.eval()
    model.normaliser.train()
    for index, batch in enumerate(images[:NUM_CALIBRATION].split(batch_size)):
        random = draw_step_noise(model, len(batch), model.info.seed, "calibrate", index)
        latents = model.encode(to_float(batch), random.posterior.to(images.device)).latents
        model.unet_input(latents, model.gates(latents))
    statistics.momentum = momentum
    model.train(training)


class _JointTraining:
    """Phases, batches, random numbers and validation of a run."""

    def __init__(
        self,
        model: LatentDiffusion,
        dataset: ImageDataset,
        params: TrainParams,
        device: torch.device,
        checkpoint: Path | None,
    ) -> None:
        variant = model.info.variant
        self.model = model
        self.params = params
        self.seed = model.info.seed
        self.images = dataset.train.images.to(device)
        self.labels = dataset.train.labels.cpu()
        steps_per_epoch = steps_in_epoch(len(self.images), params.batch_size, params.steps_per_epoch)
        self.schedule = Schedule(variant, model.info.sparsity_weight, params, steps_per_epoch)
        how = Optimisation(
            self.schedule.num_steps,
            self.schedule.lr_at,
            params,
            keep="loss" if params.select == "best" else None,
            keep_after=max(self.schedule.mask_step, self.schedule.vae_steps),
            lr_factors={} if variant.mask_lr is None else {"mask": variant.mask_lr / params.lr},
        )
        self.trainer = Trainer(model, how, device, checkpoint, f"train {model.info.name}")
        self.alphas = alphas_cumprod(model.info.diffusion).to(device)
        # The first pictures, not every n-th: classes take turns, so that a stride would pick some of them.
        self.unseen = Split(
            dataset.test.images[: params.num_validation].to(device),
            dataset.test.labels[: params.num_validation],
        )
        self.posteriors: Posteriors | None = None
        self.validation: _Validation | None = None
        model.train()

    def inputs(self, step: int) -> Iterator[StepInputs]:
        """What the steps are given from `step` on, on the CPU."""
        size, flip = self.params.batch_size, self.params.horizontal_flip
        order = len(self.images), size, self.seed, "train-order", flip, step
        indices = indices_from(*order, self.schedule.steps_per_epoch)
        for index, chosen in enumerate(indices, start=step):
            stream = generator(self.seed, "train-prompts", index)
            tokens = self.model.tokens_for(self.labels[chosen.indices], stream)
            random = draw_step_noise(self.model, size, self.seed, "train-step", index, tokens)
            yield StepInputs(chosen, random, torch.tensor(self.schedule.at(index).sparsity_weight))

    def losses_at(self, step: int) -> LossFunction:
        phase = self.schedule.at(step)
        if self.model.mask is not None:
            self.model.mask.started.fill_(phase.masked)
        if phase.vae_alone:
            return self._autoencoder_losses
        if self.model.info.variant.vae_training != "joint" and self.posteriors is None:
            self.posteriors = self._frozen_posteriors(step)
        return self._joint_losses

    def _autoencoder_losses(self, given: StepInputs) -> Losses:
        images = gather_batch(self.images, given.indices)
        weights = (self.params.kl_weight, given.sparsity_weight)
        return autoencoder_losses(self.model, images, given.random, *weights)

    def _joint_losses(self, given: StepInputs) -> Losses:
        images = gather_batch(self.images, given.indices)
        posterior = None if self.posteriors is None else self.posteriors(given.indices)
        weights = (self.params.kl_weight, given.sparsity_weight)
        return joint_losses(self.model, images, given.random, *weights, self.alphas, posterior)

    def _frozen_posteriors(self, step: int) -> Posteriors:
        """Keep what is trained first as it is from `step` on; its average is the one that will be kept."""
        variant, current = self.model.info.variant, cast(LatentDiffusion, self.trainer.current)
        parts = ["vae"] if variant.vae_training == "two_stage" else []
        for name in [*parts, *(["mask"] if variant.mask_with_autoencoder else [])]:
            part = getattr(self.model, name)
            if step == self.schedule.vae_steps:
                part.load_state_dict(getattr(current, name).state_dict())
            part.requires_grad_(False)
        num_draws = (self.schedule.num_steps - self.schedule.vae_steps) * self.params.batch_size
        how = self.params.horizontal_flip, num_draws, self.params.precision
        return frozen_posteriors(self.model, self.images, *how)

    def validate(self, epoch: int) -> None:
        """A row of `validation.csv`: losses and collapse of the model to keep, on test pictures."""
        kept, step = cast(LatentDiffusion, self.trainer.current), self.trainer.progress.step
        training = kept.training
        kept.eval()
        if kept is not self.model:
            calibrate(kept, self.images, self.params.batch_size)
        if self.validation is None:
            weight = self.schedule.sparsity_weight
            self.validation = _Validation(kept, self.unseen, self.params, weight, self.alphas)
        losses = self.validation.losses()
        self.trainer.demand_finite(losses)
        seen = self.validation.collapse()
        kept.train(training)
        at = {"epoch": epoch, "step": step, "sparsity_weight": self.schedule.at(step - 1).sparsity_weight}
        # Progress is JSON, which has no NaN; a missing value becomes NaN again in the table.
        known = {name: value for name, value in (losses | seen).items() if not math.isnan(value)}
        self.trainer.validated(at | known)


class _Validation:
    """Losses and collapse of one model, in evaluation mode, with the same noise after every epoch.

    Channels count as active by the paper's threshold; the penalty counts in full, so that epochs before and
    after a warm-up compare.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        unseen: Split,
        params: TrainParams,
        sparsity_weight: float,
        alphas: torch.Tensor,
    ) -> None:
        seed, size, record = model.info.seed, params.batch_size, params.execution != "eager"
        self._observer = Observer(model, unseen.images, seed, size, record=record, labels=unseen.labels)

        self._batches: list[tuple[torch.Tensor, StepNoise]] = []
        splits = zip(unseen.images.split(size), unseen.labels.split(size), strict=True)
        for index, (images, labels) in enumerate(splits):
            noise = draw_step_noise(model, len(labels), seed, "validate", index, model.tokens_for(labels))
            self._batches.append((images, to_device(noise, images.device)))
        weights = params.kl_weight, sparsity_weight

        def losses(batch: tuple[torch.Tensor, StepNoise]) -> Losses:
            images, random = batch
            with autocast(images.device, params.precision):
                return joint_losses(model, to_float(images), random, *weights, alphas)

        self._losses_of = Graphed(losses, alphas.device, record)

    def losses(self) -> dict[str, float]:
        """Means over the pictures."""
        return mean_losses(self._losses_of, ((len(batch[0]), batch) for batch in self._batches))

    def collapse(self) -> dict[str, float]:
        """Of `pelap.masking.collapse.summarise`."""
        return summarise(self._observer(), Thresholds())
