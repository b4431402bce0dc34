"""Joint training of VAE, mask and UNet: the objective of every variant (PeLAP-A, section 3)."""

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import functional as F

from pelap.config import TrainParams, VariantParams
from pelap.core.device import autocast
from pelap.core.graphs import Graphed, to_device
from pelap.core.rng import generator
from pelap.data.dataset import BatchIndices, ImageDataset, gather_batch, to_float
from pelap.diffusion.loss import add_noise_to, noise_error
from pelap.masking.collapse import Observer, Thresholds, summarise
from pelap.models.latent_diffusion import Encoded, LatentDiffusion, Posterior
from pelap.models.schedule import alphas_cumprod
from pelap.training.parallel import train_alone
from pelap.training.posteriors import Posteriors, frozen_posteriors
from pelap.training.prefetch import prefetch
from pelap.training.trainer import (
    Losses,
    LossFunction,
    Optimisation,
    Progress,
    Trainer,
    cosine,
    indices_from,
    steps_in_epoch,
)


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


class StepInputs(NamedTuple):
    """All that changes from step to step of one phase."""

    indices: BatchIndices
    random: StepNoise
    sparsity_weight: torch.Tensor  # () weight of the sparsity penalty


@dataclass(frozen=True)
class Phase:
    """What a step trains."""

    vae_alone: bool
    masked: bool
    """Whether the mask is in force, or still all ones."""
    sparsity_weight: float
    """Weight of the sparsity penalty."""


class Schedule:
    """A run in phases: the VAE alone (`vae_training: two_stage`), all without mask, all with mask.

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
        self.mask_step = self.vae_steps + variant.start_epoch * steps_per_epoch
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
        step, total = (
            (step, self.vae_steps)
            if step < self.vae_steps
            else (step - self.vae_steps, self.num_steps - self.vae_steps)
        )
        if self.params.lr_update == "epoch":
            step -= step % self.steps_per_epoch
        return cosine(self.params.lr, self.params.lr_min, step / total)


def autoencoder_losses(
    model: LatentDiffusion, images: torch.Tensor, random: StepNoise, kl_weight: float
) -> Losses:
    """The autoencoder alone on pictures (B, 3 or 1, H, W) in [-1, 1]: ``loss`` = recon + kl_weight * kl."""
    encoded = model.encode(images, random.posterior)
    recon = F.mse_loss(model.vae.decode(encoded.latents).float(), images)
    kl = encoded.kl().mean()
    return {"loss": recon + kl_weight * kl, "recon": recon, "kl": kl}


def joint_losses(
    model: LatentDiffusion,
    images: torch.Tensor,
    random: StepNoise,
    kl_weight: float,
    sparsity_weight: float | torch.Tensor,
    alphas: torch.Tensor,
) -> Losses:
    """Loss terms on pictures (B, 3 or 1, H, W) in [-1, 1].

    ``loss`` = recon + kl_weight * kl + noise + sparsity_weight * sparsity, with recon and noise as mean
    squared errors and sparsity as the mean cost of the gates. ``mean_mask`` is the mean of their values.
    Each term reaches the parts that the variant's `encoder_losses` and `mask_losses` name.
    """
    encoded = model.encode(images, random.posterior)
    return _with_reconstruction(model, images, encoded, random, kl_weight, sparsity_weight, alphas)


def frozen_losses(
    model: LatentDiffusion,
    images: torch.Tensor,
    posterior: Posterior,
    random: StepNoise,
    kl_weight: float,
    sparsity_weight: float | torch.Tensor,
    alphas: torch.Tensor,
) -> Losses:
    """`joint_losses` of pictures whose posterior by the frozen autoencoder is known.

    Where no mask learns from the reconstruction either, nothing does: its terms are left out.
    """
    encoded = model.encoded(posterior, random.posterior)
    if model.mask is not None and "reconstruction" in model.info.variant.mask_losses:
        return _with_reconstruction(model, images, encoded, random, kl_weight, sparsity_weight, alphas)
    return denoising_losses(model, encoded.latents, random, sparsity_weight, alphas)


def denoising_losses(
    model: LatentDiffusion,
    latents: torch.Tensor,
    random: StepNoise,
    sparsity_weight: float | torch.Tensor,
    alphas: torch.Tensor,
) -> Losses:
    """What `joint_losses` has beside the autoencoder: ``loss`` = noise + sparsity_weight * sparsity."""
    uniform = random.gates if model.training else None
    seen = model.reached_by("diffusion", latents, uniform)
    noisy = add_noise_to(model, *seen, random.noise, random.timesteps, alphas)
    conditions = model.conditions(random.tokens)
    predicted = model.unet(noisy.latents, random.timesteps, **conditions).sample
    noise = noise_error(predicted, random.noise, noisy.open_channels).mean()
    gates = model.reached_by("sparsity", latents, uniform)[1]
    loss = noise + sparsity_weight * gates.open_probability.mean()
    return {"loss": loss, "noise": noise, "mean_mask": gates.values.mean()}


def _with_reconstruction(
    model: LatentDiffusion,
    images: torch.Tensor,
    encoded: Encoded,
    random: StepNoise,
    kl_weight: float,
    sparsity_weight: float | torch.Tensor,
    alphas: torch.Tensor,
) -> Losses:
    uniform = random.gates if model.training else None
    reached = model.reached_by("reconstruction", encoded.latents, uniform)
    recon = F.mse_loss(model.vae.decode(model.decoder_input(*reached)).float(), images)
    kl = encoded.kl().mean()
    denoising = denoising_losses(model, encoded.latents, random, sparsity_weight, alphas)
    loss = recon + kl_weight * kl + denoising["loss"]
    return denoising | {"loss": loss, "recon": recon, "kl": kl}


def train_jointly(
    model: LatentDiffusion,
    dataset: ImageDataset,
    params: TrainParams,
    device: torch.device,
    checkpoint: Path,
) -> tuple[LatentDiffusion, Progress]:
    """Train a fresh model in place.

    Args:
        model: From `build_model`; its `info.seed` names every random number.
        dataset: Its train split is trained on, its test split validated on.
        params: The section `train`.
        device: Where to compute.
        checkpoint: Folder of the resume state, read and written.

    Returns:
        The model to keep (the moving average where there is one), and the logged history.

    Raises:
        TrainingError: The loss is not finite.
        DataError: Fewer pictures than one batch.
    """
    return train_alone(joint_training(model, dataset, params, device, checkpoint))


def joint_training(
    model: LatentDiffusion,
    dataset: ImageDataset,
    params: TrainParams,
    device: torch.device,
    checkpoint: Path,
) -> Generator[None, None, tuple[LatentDiffusion, Progress]]:
    """`train_jointly` step by step, for `pelap.training.parallel`."""
    images = dataset.train.images.to(device)
    steps_per_epoch = steps_in_epoch(len(images), params.batch_size, params.steps_per_epoch)
    schedule = Schedule(model.info.variant, model.info.sparsity_weight, params, steps_per_epoch)
    mask_lr = model.info.variant.mask_lr
    how = Optimisation(
        num_steps=schedule.num_steps,
        batch_size=params.batch_size,
        lr_at=schedule.lr_at,
        weight_decay=params.weight_decay,
        grad_clip=params.grad_clip,
        ema_decay=params.ema_decay,
        precision=params.precision,
        execution=params.execution,
        log_every=params.log_every,
        select=params.select,
        lr_factors={"mask": mask_lr / params.lr} if mask_lr is not None else {},
    )
    trainer = Trainer(model, how, device, checkpoint, f"train {model.info.name}")
    objective = _Objective(trainer, schedule, model, images, dataset)

    def after_step(step: int) -> None:
        if step % steps_per_epoch == 0:
            objective.validate(step // steps_per_epoch)

    inputs = prefetch(objective.inputs(trainer.progress.step), device)
    yield from trainer.steps(inputs, objective.losses_at, after_step)
    objective.forget()
    kept = trainer.kept
    assert isinstance(kept, LatentDiffusion)
    calibrate(kept, images, params.batch_size)
    return kept.eval(), trainer.progress


NUM_CALIBRATION = 1024
"""Training pictures that the statistics of a normaliser are taken over."""


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
        random = to_device(
            draw_step_noise(model, len(batch), model.info.seed, "calibrate", index), images.device
        )
        latents = model.encode(to_float(batch), random.posterior).latents
        model.unet_input(latents, model.gates(latents))
    statistics.momentum = momentum
    model.train(training)


class _Objective:
    """Batches and random numbers of a run, and the choice of the epoch to keep."""

    def __init__(
        self,
        trainer: Trainer,
        schedule: Schedule,
        model: LatentDiffusion,
        images: torch.Tensor,
        dataset: ImageDataset,
    ) -> None:
        self.trainer = trainer
        self.schedule = schedule
        self.model = model
        self.params = schedule.params
        self.seed = model.info.seed
        self.alphas = alphas_cumprod(model.info.diffusion).to(trainer.device)
        # The first pictures, not every n-th: classes take turns, so that a stride would pick some of them.
        self.validation_images = dataset.test.images[: self.params.num_validation].to(trainer.device)
        self.validation_labels = dataset.test.labels[: self.params.num_validation]
        self.observer = self._observer(record=self.params.execution != "eager")
        self.images = images
        self.labels = dataset.train.labels.cpu()
        self.posteriors: Posteriors | None = None
        self.validation: _Validation | None = None
        model.train()

    def _observer(self, record: bool) -> Observer:
        images, labels = self.validation_images, self.validation_labels
        return Observer(images, self.seed, self.params.batch_size, record=record, labels=labels)

    def inputs(self, step: int) -> Iterator[StepInputs]:
        """What the steps are given from `step` on, on the CPU."""
        params = self.params
        indices = indices_from(
            len(self.images),
            params.batch_size,
            self.seed,
            "train-order",
            params.horizontal_flip,
            step,
            self.schedule.steps_per_epoch,
        )
        for index, chosen in enumerate(indices, start=step):
            stream = generator(self.seed, "train-prompts", index)
            tokens = self.model.tokens_for(self.labels[chosen.indices], stream)
            random = draw_step_noise(self.model, params.batch_size, self.seed, "train-step", index, tokens)
            yield StepInputs(chosen, random, torch.tensor(self.schedule.at(index).sparsity_weight))

    def losses_at(self, step: int) -> LossFunction:
        """The losses of the phase that a step is in."""
        phase = self.schedule.at(step)
        if self.model.mask is not None:
            self.model.mask.started.fill_(phase.masked)
        if phase.vae_alone:
            return self._autoencoder_losses
        if self.model.info.variant.vae_training == "joint":
            return self._joint_losses
        if self.posteriors is None:
            self.posteriors = self._frozen_posteriors(step)
        return self._frozen_losses

    def _autoencoder_losses(self, given: StepInputs) -> Losses:
        images = gather_batch(self.images, given.indices)
        return autoencoder_losses(self.model, images, given.random, self.params.kl_weight)

    def _joint_losses(self, given: StepInputs) -> Losses:
        images = gather_batch(self.images, given.indices)
        return joint_losses(
            self.model, images, given.random, self.params.kl_weight, given.sparsity_weight, self.alphas
        )

    def _frozen_losses(self, given: StepInputs) -> Losses:
        assert self.posteriors is not None
        images, posterior = gather_batch(self.images, given.indices), self.posteriors(given.indices)
        return frozen_losses(
            self.model,
            images,
            posterior,
            given.random,
            self.params.kl_weight,
            given.sparsity_weight,
            self.alphas,
        )

    def _frozen_posteriors(self, step: int) -> Posteriors:
        """Keep the autoencoder as it is from `step` on; its average is the one that will be kept."""
        if self.model.info.variant.vae_training == "two_stage":
            if step == self.schedule.vae_steps:
                current = self.trainer.current
                assert isinstance(current, LatentDiffusion)
                self.model.vae.load_state_dict(current.vae.state_dict())
            self.model.vae.requires_grad_(False)
        num_draws = (self.schedule.num_steps - self.schedule.vae_steps) * self.params.batch_size
        flip, precision = self.params.horizontal_flip, self.params.precision
        return frozen_posteriors(self.model, self.images, flip, num_draws, precision)

    def forget(self) -> None:
        """Give back the memory of what was recorded."""
        self.validation = None
        self.observer = self._observer(record=False)

    def validate(self, epoch: int) -> None:
        """A row of `validation.csv`: losses and collapse of the model to keep, on test pictures.

        The noise is the same after every epoch; channels count as active by the paper's threshold. The
        penalty counts in full, so that epochs before and after a warm-up compare.
        """
        kept = self.trainer.current
        assert isinstance(kept, LatentDiffusion)
        training = kept.training
        kept.eval()
        if kept is not self.model:
            calibrate(kept, self.images, self.params.batch_size)
        phase = self.schedule.at(self.trainer.progress.step - 1)
        losses = self._validation_losses(kept)
        self.trainer.demand_finite(losses)
        seen = self.observer(kept)
        kept.train(training)
        row = {"epoch": epoch, "step": self.trainer.progress.step, "sparsity_weight": phase.sparsity_weight}
        history = self.trainer.progress.validation
        row |= losses | summarise(seen, Thresholds())
        # Progress is JSON, which has no NaN; a missing value becomes NaN again in the table.
        history.append({name: value for name, value in row.items() if not math.isnan(value)})
        masked = [past["loss"] for past in history if past["step"] > self.schedule.mask_step]
        if masked and losses["loss"] == min(masked):
            self.trainer.keep_current()

    @torch.no_grad()
    def _validation_losses(self, model: LatentDiffusion) -> dict[str, float]:
        """Means over the pictures; `model` is the same one at every call."""
        if self.validation is None:
            self.validation = _Validation(model, self)
        return self.validation.losses()


class _Validation:
    """The losses of a model on the validation pictures, with the same noise at every call."""

    def __init__(self, model: LatentDiffusion, objective: _Objective) -> None:
        self._model = model
        self._objective = objective
        device, size = objective.trainer.device, objective.params.batch_size
        batches = zip(
            objective.validation_images.split(size), objective.validation_labels.split(size), strict=True
        )
        self._batches = [
            (images, to_device(self._drawn(model.tokens_for(labels), index), device))
            for index, (images, labels) in enumerate(batches)
        ]
        record = objective.params.execution != "eager"
        self._losses_of = Graphed(self._losses_of_batch, device, record)

    def _drawn(self, tokens: torch.Tensor, index: int) -> StepNoise:
        return draw_step_noise(self._model, len(tokens), self._objective.seed, "validate", index, tokens)

    def losses(self) -> dict[str, float]:
        """Means over the pictures."""
        sums: dict[str, torch.Tensor] = {}
        for images, random in self._batches:
            for name, value in self._losses_of((images, random)).items():
                weighted = value.double() * len(images)
                sums[name] = sums[name] + weighted if name in sums else weighted
        num = len(self._objective.validation_images)
        return {name: float(total) / num for name, total in sums.items()}

    def _losses_of_batch(self, batch: tuple[torch.Tensor, StepNoise]) -> Losses:
        images, random = batch
        kl_weight, sparsity_weight = (
            self._objective.params.kl_weight,
            self._objective.schedule.sparsity_weight,
        )
        with autocast(images.device, self._objective.params.precision):
            return joint_losses(
                self._model, to_float(images), random, kl_weight, sparsity_weight, self._objective.alphas
            )
