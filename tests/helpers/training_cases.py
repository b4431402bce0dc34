"""Trainings and observations in one call."""

from pathlib import Path

import torch

from pelap.config import TrainParams
from pelap.data.dataset import ImageDataset
from pelap.masking.observation import Observations, Observer, Thresholds
from pelap.models.latent_diffusion import LatentDiffusion
from pelap.training.joint import joint_training
from pelap.training.parallel import train_alone
from pelap.training.trainer import Progress


def train_jointly(
    model: LatentDiffusion,
    dataset: ImageDataset,
    params: TrainParams,
    device: torch.device,
    checkpoint: Path | None = None,
) -> tuple[LatentDiffusion, Progress]:
    return train_alone(joint_training(model, dataset, params, device, checkpoint))


def observe(
    model: LatentDiffusion,
    images: torch.Tensor,
    seed: int = 0,
    batch_size: int = 16,
    thresholds: Thresholds = Thresholds(),  # noqa: B008  immutable
    labels: torch.Tensor | None = None,
) -> Observations:
    return Observer(model, images, seed, batch_size, thresholds, labels=labels)()
