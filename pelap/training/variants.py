"""A variant of a run: from its parameters to the model to keep."""

from pathlib import Path

import torch

from pelap.config import NoConditioning, Params
from pelap.config.rules import latent_problem, parts_of
from pelap.core.errors import ConfigError
from pelap.core.keys import ResumeState, code_of, key
from pelap.data.dataset import ImageDataset
from pelap.data.entries import read_prompts
from pelap.data.modality import modality_of
from pelap.masking.channel_removal import closed_channels, cut_channels, describe_cut
from pelap.models.latent_diffusion import LatentDiffusion, ModelInfo, build_model, build_vae
from pelap.models.text_conditioner import TextConditioner, build_conditioner
from pelap.training.joint import joint_training
from pelap.training.parallel import Training
from pelap.training.trainer import Progress


def demand_fit(params: Params, name: str, dataset: ImageDataset) -> None:
    """Refuse latents that do not suit UNet or mask; a pretrained autoencoder's are known only here.

    Raises:
        ConfigError: They do not, or the autoencoder takes other pictures than these.
        DataError: The file of prompts cannot be read.
    """
    variant = params.variants[name]
    vae_params, unet_params = parts_of(variant, params.vae, params.unet)
    vae = build_vae(vae_params, modality_of(dataset.sound).num_channels)
    channels, size = dataset.train.images.shape[1], dataset.train.images.shape[-1]
    problem = latent_problem(variant, unet_params, size, vae.downsampling, vae.latent_channels)
    if problem is None and vae.image_channels != channels:
        problem = (
            f"its pretrained vae takes pictures of {vae.image_channels} colours, not the spectrograms of "
            f"{dataset.name}; use vae.kind pelap"
        )
    if problem is not None:
        raise ConfigError(f"variants.{name}: {problem}")
    _conditioner(params, dataset, _prompts(params))


def train_variant(
    params: Params, name: str, dataset: ImageDataset, device: torch.device, resume: Path
) -> Training[tuple[LatentDiffusion, Progress, ResumeState]]:
    """Train a variant step by step; see `pelap.training.parallel`.

    Args:
        params: Whose `variants` it is one of.
        name: Its name.
        dataset: What it is trained and validated on.
        device: Where to compute.
        resume: Folder of states, one of which an interrupted training goes on from.

    Returns:
        The model to keep, without closed channels if the variant says `cut`; what was logged; and the state
        to drop once they are saved.

    Raises:
        TrainingError: The loss is not finite.
        DataError: Fewer pictures than one batch.
    """
    variant, prompts = params.variants[name], _prompts(params)
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
    # Every variant starts from the same weights, so that differences come from the variant alone.
    torch.manual_seed(params.seed)
    vae = build_vae(vae_params, modality_of(dataset.sound).num_channels)
    made_of = key(
        model=info,
        autoencoder=[vae_params, vae],  # its weights too: what is at a pretrained one's place may change
        unet=unet_params,
        conditioning=params.conditioning,
        prompts=prompts,
        training=params.train.model_dump(exclude={"execution", "parallel_variants"}),
        data=dataset.key,
        code=code_of(__name__),
    )
    state = ResumeState(resume, f"train-{name}", made_of)
    model = build_model(info, vae, unet_params, _conditioner(params, dataset, prompts))
    model, progress = yield from joint_training(model, dataset, params.train, device, state.folder)
    if variant.cut:
        model = _without_closed_channels(model, dataset, params.train.batch_size)
    return model, progress, state


def _prompts(params: Params) -> list[str] | None:
    told = params.conditioning
    if isinstance(told, NoConditioning) or told.prompts is None:
        return None
    return read_prompts(Path(told.prompts))


def _conditioner(params: Params, dataset: ImageDataset, prompts: list[str] | None) -> TextConditioner | None:
    told = params.conditioning
    return None if isinstance(told, NoConditioning) else build_conditioner(told, dataset.class_names, prompts)


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
