"""train: a variant's autoencoder, mask and UNet, jointly or one after the other."""

from contextlib import ExitStack
from dataclasses import replace

import pandas as pd
import torch

from pelap.core import files
from pelap.core.device import keep_freed_memory
from pelap.core.digests import result_dir
from pelap.core.errors import ConfigError, finite
from pelap.core.keys import ResumeState
from pelap.core.paths import TrainPaths
from pelap.data.dataset import ImageDataset, to_float, to_uint8
from pelap.data.modality import modality_of
from pelap.diffusion.sampler import said_if_alike, sample_images
from pelap.models.latent_diffusion import LatentDiffusion
from pelap.models.model_io import save_model
from pelap.stages.shared import Context
from pelap.training.parallel import Training, train_parallel
from pelap.training.trainer import Progress
from pelap.training.variants import demand_fit, train_variant

NUM_PREVIEW = 32


def run(context: Context, variant: str | None = None) -> None:
    """Train one variant, or all of the parameters' in turn.

    Interrupted, it goes on where it was: variants that were done come back from their resume state.

    Raises:
        ConfigError: There is no such variant.
    """
    params, device = context.params, context.device
    if variant is not None and variant not in params.variants:
        raise ConfigError(f"--variant {variant}: unknown; use one of {', '.join(params.variants)}")
    if device.type == "cpu":
        keep_freed_memory()
    dataset = context.dataset()
    chosen = [variant] if variant else list(params.variants)
    for name in chosen:  # all of them before the first is trained
        demand_fit(params, name, dataset)
    with ExitStack() as held:
        for name in chosen:
            held.enter_context(files.exclusive(context.paths.train(name).root))
        # Its train pictures are on the device once for all variants.
        shared = replace(dataset, train=replace(dataset.train, images=dataset.train.images.to(device)))
        trainings = [_training(context, shared, name) for name in chosen]
        for state in train_parallel(trainings, device, params.train.parallel_variants):
            state.drop()


def _training(context: Context, dataset: ImageDataset, name: str) -> Training[ResumeState]:
    """Train a variant step by step and save it; the state is to be dropped when all are saved."""
    paths = context.paths
    model, progress, state = yield from train_variant(
        context.params, name, dataset, context.device, paths.resume
    )
    with result_dir(paths.train(name).root) as partial:
        _save(model, progress, dataset, context, TrainPaths(partial))
    return state


def _save(
    model: LatentDiffusion, progress: Progress, dataset: ImageDataset, context: Context, paths: TrainPaths
) -> None:
    save_model(model, paths.model)
    files.write_csv(paths.history, pd.DataFrame(progress.history))
    files.write_csv(paths.validation, pd.DataFrame(progress.validation))
    modality, originals = modality_of(dataset.sound), dataset.test.images[:NUM_PREVIEW]
    with torch.no_grad():
        decoded = model.reconstruct(to_float(originals.to(context.device))).cpu()
    finite(decoded, f"{model.info.name}: reconstructions", "train with a lower lr, or in fp32")
    pairs = torch.stack([originals, to_uint8(decoded)], dim=1).flatten(0, 1)  # each picture beside its copy
    modality.save_grid(pairs, paths.reconstructions)
    samples = sample_images(model, context.params.train.preview, NUM_PREVIEW, context.params.seed)
    said_if_alike(model.info.name, samples)
    modality.save_grid(samples, paths.samples)
