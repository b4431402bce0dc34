"""train: a variant's autoencoder, mask and UNet, jointly."""

import torch

from pelap import io
from pelap.data.dataset import ImageDataset, to_float, to_uint8
from pelap.data.grid import save_grid
from pelap.errors import ConfigError
from pelap.loading import save_model
from pelap.models.ldm import LatentDiffusion, ModelInfo, build_model
from pelap.params import VariantParams
from pelap.paths import TrainPaths
from pelap.sampling import sample_images
from pelap.stages.context import Context
from pelap.training.checkpoint import drop_checkpoint
from pelap.training.joint import train_jointly
from pelap.training.loop import Progress

NUM_PREVIEW = 32


def run(context: Context, variant: str | None = None) -> None:
    """Train one variant, or all of the parameters' in turn.

    Raises:
        ConfigError: There is no such variant.
    """
    variants = context.params.variants
    if variant is not None and variant not in variants:
        raise ConfigError(f"--variant {variant}: unknown; use one of {', '.join(variants)}")
    dataset = context.dataset()
    for name in [variant] if variant else list(variants):
        with io.exclusive(context.paths.train(name).folder):
            _train(context, dataset, name, variants[name])


def _train(context: Context, dataset: ImageDataset, name: str, variant: VariantParams) -> None:
    params, paths = context.params, context.paths.train(name)
    strength = params.lambda_ if variant.strength == "lambda" else 0.0
    info = ModelInfo(
        name=name,
        variant=variant,
        diffusion=params.diffusion,
        image_size=dataset.train.images.shape[-1],
        dataset=dataset.name,
        seed=params.seed,
        strength=strength,
        ema_decay=params.train.ema_decay,
    )
    configuration = [repr(info), params.vae, params.unet, params.train, dataset.checksum]
    checkpoint = context.paths.checkpoint(f"train-{name}", io.digest(configuration))
    # Every variant starts from the same weights, so that differences come from the variant alone.
    torch.manual_seed(params.seed)
    model = build_model(info, params.vae, params.unet)
    model, progress = train_jointly(model, dataset, params.train, context.device, checkpoint)
    with io.atomic_dir(paths.folder) as partial:
        _save(model, progress, dataset, context, TrainPaths(partial))
    drop_checkpoint(checkpoint)


def _save(
    model: LatentDiffusion, progress: Progress, dataset: ImageDataset, context: Context, paths: TrainPaths
) -> None:
    import pandas as pd

    save_model(model, paths.model)
    io.write_csv(paths.history, pd.DataFrame(progress.history))
    io.write_csv(paths.validation, pd.DataFrame(progress.validation))
    originals = dataset.test.images[:NUM_PREVIEW]
    with torch.no_grad():
        decoded = to_uint8(model.reconstruct(to_float(originals.to(context.device)))).cpu()
    pairs = torch.stack([originals, decoded], dim=1).flatten(0, 1)  # each picture beside its copy
    save_grid(pairs, paths.reconstructions)
    samples = sample_images(model, context.params.train.preview, NUM_PREVIEW, context.params.seed)
    save_grid(samples, paths.samples)
