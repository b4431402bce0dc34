"""train: a variant's autoencoder, mask and UNet, jointly or one after the other."""

from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from pelap.config import ConditioningParams, NoConditioning, VariantParams
from pelap.config.rules import latent_problem, parts_of
from pelap.core import files
from pelap.core.device import keep_freed_memory
from pelap.core.errors import ConfigError, finite
from pelap.core.keys import code_of, key
from pelap.core.paths import TrainPaths
from pelap.core.resume import ResumeState
from pelap.data.dataset import ImageDataset, to_float, to_uint8
from pelap.data.modality import modality_of
from pelap.data.prompts import read_prompts
from pelap.diffusion.sampler import said_if_alike, sample_images
from pelap.masking.channel_removal import closed_channels, cut_channels, describe_cut
from pelap.models.latent_diffusion import LatentDiffusion, ModelInfo, build_model, build_vae
from pelap.models.model_io import save_model
from pelap.models.text_conditioner import TextConditioner, build_conditioner
from pelap.stages.shared import Context
from pelap.training.joint import joint_training
from pelap.training.parallel import train_parallel
from pelap.training.trainer import Progress

NUM_PREVIEW = 32


def run(context: Context, variant: str | None = None) -> None:
    """Train one variant, or all of the parameters' in turn.

    Raises:
        ConfigError: There is no such variant.
    """
    variants = context.params.variants
    if variant is not None and variant not in variants:
        raise ConfigError(f"--variant {variant}: unknown; use one of {', '.join(variants)}")
    if context.device.type == "cpu":
        keep_freed_memory()
    dataset = context.dataset()
    chosen = [variant] if variant else list(variants)
    for name in chosen:  # all of them before the first is trained
        _demand_fit(context, dataset, name, variants[name])
    with ExitStack() as held:
        for name in chosen:
            held.enter_context(files.exclusive(context.paths.train(name).folder))
        shared = _on_device(dataset, context.device)
        trainings = [_training(context, shared, name, variants[name]) for name in chosen]
        train_parallel(trainings, context.device, context.params.train.parallel_variants)


def _on_device(dataset: ImageDataset, device: torch.device) -> ImageDataset:
    """The data set with its train pictures on a device, once for all variants."""
    return replace(dataset, train=replace(dataset.train, images=dataset.train.images.to(device)))


def _training(
    context: Context, dataset: ImageDataset, name: str, variant: VariantParams
) -> Generator[None, None, None]:
    """Train a variant step by step and save it; see `pelap.training.parallel`."""
    params, paths = context.params, context.paths.train(name)
    vae_params, unet_params = parts_of(variant, params.vae, params.unet)
    info = ModelInfo(
        name=name,
        variant=variant,
        diffusion=params.diffusion,
        image_size=dataset.train.images.shape[-1],
        dataset=dataset.name,
        seed=params.seed,
        sparsity_weight=variant.weight(params.lambda_),
        ema_decay=params.train.ema_decay,
        sound=dataset.sound,
        data=dataset.key.name,
    )
    numbers = params.train.model_dump(exclude={"execution", "parallel_variants"})
    told = params.conditioning
    # Every variant starts from the same weights, so that differences come from the variant alone.
    torch.manual_seed(params.seed)
    vae = build_vae(vae_params, modality_of(dataset.sound).num_channels)
    made_of = key(
        model=info,
        autoencoder=[vae_params, vae],  # its weights too: what is at a pretrained one's place may change
        unet=unet_params,
        conditioning=told,
        prompts=_prompts(told),
        training=numbers,
        data=dataset.key,
        code=code_of(__name__),
    )
    state = ResumeState(context.paths.resume, f"train-{name}", made_of)
    model = build_model(info, vae, unet_params, _conditioner(context, dataset))
    model, progress = yield from joint_training(model, dataset, params.train, context.device, state.folder)
    if variant.cut:
        model = _without_closed_channels(model, dataset, params.train.batch_size)
    with files.atomic_dir(paths.folder) as partial:
        _save(model, progress, dataset, context, TrainPaths(partial))
    state.drop()


def _conditioner(context: Context, dataset: ImageDataset) -> TextConditioner | None:
    told = context.params.conditioning
    if isinstance(told, NoConditioning):
        return None
    return build_conditioner(told, dataset.class_names, _prompts(told))


def _prompts(told: ConditioningParams) -> list[str] | None:
    """What the file of prompts says, if one is named."""
    if isinstance(told, NoConditioning) or told.prompts is None:
        return None
    return read_prompts(Path(told.prompts))


def _demand_fit(context: Context, dataset: ImageDataset, name: str, variant: VariantParams) -> None:
    """Refuse latents that do not suit UNet or mask; a pretrained autoencoder's are known only here."""
    vae_params, unet_params = parts_of(variant, context.params.vae, context.params.unet)
    vae = build_vae(vae_params, modality_of(dataset.sound).num_channels)
    size = dataset.train.images.shape[-1]
    problem = latent_problem(variant, unet_params, size, vae.downsampling, vae.latent_channels)
    if problem:
        raise ConfigError(f"variants.{name}: {problem}")
    if vae.image_channels != dataset.train.images.shape[1]:
        raise ConfigError(
            f"variants.{name}: its pretrained vae takes pictures of {vae.image_channels} colours, not the "
            f"spectrograms of {dataset.name}; use vae.kind pelap"
        )
    _conditioner(context, dataset)  # refuses prompts that it cannot read


def _without_closed_channels(
    model: LatentDiffusion, dataset: ImageDataset, batch_size: int
) -> LatentDiffusion:
    """The model to save for a variant with `cut`; a mask that closed everything is kept to be looked at."""
    channels = model.latent_shape[0]
    closed = closed_channels(model, dataset.train.images, batch_size)
    if len(closed) == channels:
        print(f"{model.info.name}: all {channels} latent channels are closed; nothing is cut")
        return model
    print(f"{model.info.name}: {describe_cut(closed, channels)}")
    return cut_channels(model, closed) if closed else model


def _save(
    model: LatentDiffusion, progress: Progress, dataset: ImageDataset, context: Context, paths: TrainPaths
) -> None:
    import pandas as pd

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
