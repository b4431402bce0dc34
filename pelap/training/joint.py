"""Joint training of VAE, mask and UNet: the objective of every variant (PeLAP-A, section 3)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from pelap.data.dataset import ImageDataset, to_float
from pelap.device import autocast
from pelap.diffusion import add_noise, alphas_cumprod
from pelap.models.ldm import LatentDiffusion
from pelap.params import TrainParams
from pelap.seeding import generator
from pelap.training.loop import Losses, Optimisation, Progress, Trainer, batches_from, cosine


@dataclass(frozen=True)
class Draw:
    """The random numbers of one step on B pictures."""

    posterior: torch.Tensor  # (B, C, h, w) standard normal
    noise: torch.Tensor  # (B, C, h, w) standard normal
    timesteps: torch.Tensor  # (B,) in 0..T-1


def draw(model: LatentDiffusion, batch_size: int, seed: int, purpose: str, index: int) -> Draw:
    """The numbers of step `index`, on the model's device."""
    stream = generator(seed, purpose, index)
    device = next(model.parameters()).device
    shape = (batch_size, *model.latent_shape)
    total = model.info.diffusion.num_train_timesteps
    return Draw(
        torch.randn(shape, generator=stream).to(device),
        torch.randn(shape, generator=stream).to(device),
        torch.randint(total, (batch_size,), generator=stream).to(device),
    )


def kl_divergence(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """KL of N(mean, exp(logvar)) from N(0, 1), averaged over all elements."""
    return -0.5 * (1 + logvar - mean.square() - logvar.exp()).mean()


def joint_losses(
    model: LatentDiffusion, images: torch.Tensor, random: Draw, kl_weight: float, alphas: torch.Tensor
) -> Losses:
    """Loss terms on pictures (B, 3, H, W) in [-1, 1].

    ``loss`` = recon + kl_weight * kl + noise + strength * sparsity, with recon and noise as mean
    squared errors and sparsity (also logged as ``mean_mask``) as the mean of the mask.
    """
    latents, mean, logvar = model.encode(images, random.posterior)
    decoded = model.vae.decode(model.decoder_input(latents))
    clean = model.unet_input(latents)
    noisy = add_noise(clean, random.noise, random.timesteps, alphas)
    predicted = model.unet(noisy, random.timesteps).sample
    recon = F.mse_loss(decoded.float(), images)
    noise = F.mse_loss(predicted.float(), random.noise)
    kl = kl_divergence(mean.float(), logvar.float())
    sparsity = model.importance(latents).mean()
    loss = recon + kl_weight * kl + noise + model.info.strength * sparsity
    return {"loss": loss, "recon": recon, "kl": kl, "noise": noise, "mean_mask": sparsity}


def learning_rate(params: TrainParams, steps_per_epoch: int) -> Callable[[int], float]:
    """Cosine from lr to lr_min over the run, moved every step or (the paper) every epoch."""
    num_steps = params.epochs * steps_per_epoch

    def at(step: int) -> float:
        if params.lr_update == "epoch":
            step -= step % steps_per_epoch
        return cosine(params.lr, params.lr_min, step / num_steps)

    return at


def train_jointly(
    model: LatentDiffusion, dataset: ImageDataset, params: TrainParams, device: torch.device, checkpoint: Path
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
    images = dataset.train.images.to(device)
    steps_per_epoch = max(1, len(images) // params.batch_size)
    how = Optimisation(
        num_steps=params.epochs * steps_per_epoch,
        batch_size=params.batch_size,
        lr_at=learning_rate(params, steps_per_epoch),
        weight_decay=params.weight_decay,
        grad_clip=params.grad_clip,
        ema_decay=params.ema_decay,
        precision=params.precision,
        log_every=params.log_every,
        select=params.select,
    )
    trainer = Trainer(model, how, device, checkpoint, f"train {model.info.name}")
    objective = _Objective(trainer, model, images, dataset.test.images, params)

    def after_step(step: int) -> None:
        if step % steps_per_epoch == 0:
            objective.validate(step // steps_per_epoch)

    progress = trainer.run(objective.losses, after_step)
    kept = trainer.kept
    assert isinstance(kept, LatentDiffusion)
    return kept.eval(), progress


class _Objective:
    """Batches and random numbers of a run, and the choice of the epoch to keep."""

    def __init__(
        self,
        trainer: Trainer,
        model: LatentDiffusion,
        images: torch.Tensor,
        test_images: torch.Tensor,
        params: TrainParams,
    ) -> None:
        self.trainer = trainer
        self.model = model
        self.params = params
        self.seed = model.info.seed
        self.alphas = alphas_cumprod(model.info.diffusion).to(trainer.device)
        self.validation_images = test_images[:: max(1, len(test_images) // params.num_validation)]
        self.validation_images = self.validation_images[: params.num_validation].to(trainer.device)
        self.batches = self._batches(images)
        model.train()

    def _batches(self, images: torch.Tensor) -> Iterator[torch.Tensor]:
        start = self.trainer.progress.step
        flip = self.params.horizontal_flip
        return batches_from(images, self.params.batch_size, self.seed, "train-order", flip, start)

    def losses(self, step: int) -> Losses:
        images = next(self.batches)
        random = draw(self.model, len(images), self.seed, "train-step", step)
        return joint_losses(self.model, images, random, self.params.kl_weight, self.alphas)

    def validate(self, epoch: int) -> None:
        """Losses of the model to keep on test pictures, with the same noise after every epoch."""
        kept = self.trainer.current
        assert isinstance(kept, LatentDiffusion)
        training = kept.training
        kept.eval()
        sums: dict[str, float] = {}
        batch_size = self.params.batch_size
        with torch.no_grad(), autocast(self.trainer.device, self.params.precision):
            for index, images in enumerate(self.validation_images.split(batch_size)):
                random = draw(kept, len(images), self.seed, "validate", index)
                values = joint_losses(kept, to_float(images), random, self.params.kl_weight, self.alphas)
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + float(value) * len(images)
        kept.train(training)
        num = len(self.validation_images)
        row = {name: total / num for name, total in sums.items()}
        self.trainer.demand_finite(row["loss"])
        history = self.trainer.progress.validation
        history.append({"epoch": epoch, "step": self.trainer.progress.step, **row})
        if row["loss"] == min(past["loss"] for past in history):
            self.trainer.keep_current()
