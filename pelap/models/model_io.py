"""A whole model as a folder, and any such folder, pruned or not, back to a model.

::

    model/config.json                   which parts, and what they were trained as
    model/digests.json                  SHA-256 of every other file
    model/vae, mask, normaliser, conditioner, scheduler, unet    each in diffusers' own format
    model/unet/plan.json, pruned.safetensors         instead of the usual weights when pruned (pelap.surgery)
    model/vae/kept_channels.json, cut.safetensors    the same for a pretrained autoencoder that was cut

These have their weights under another file name: plain diffusers then refuses the folder instead of
loading it with fresh random weights where something is gone.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import AutoencoderKL, ModelMixin, UNet2DConditionModel, UNet2DModel
from pydantic import TypeAdapter, ValidationError
from torch import nn

from pelap.config import DiffusionParams, SoundParams
from pelap.config.load import explain
from pelap.config.upgrade import renamed
from pelap.core import files
from pelap.core.digests import demand_unchanged, write_digests
from pelap.core.errors import DataError, ModelError, blamed_on
from pelap.core.part_io import (
    CONFIG,
    INDEX,
    build_part,
    demand_one_network,
    demand_replaceable,
    load_part,
    load_weights,
    read_config,
    save_part,
)
from pelap.core.replacing import is_folder
from pelap.data.dataset import ImageDataset
from pelap.models.latent_diffusion import LatentDiffusion, ModelInfo, make_scheduler
from pelap.models.light_unet import CutLightUNet, LightUNet
from pelap.models.mask import ImportanceMask, LatentNorm
from pelap.models.text_conditioner import TextConditioner
from pelap.models.vae import VAE, Autoencoder, PretrainedVAE

FORMAT = 3
READABLE = (2, FORMAT)  # 2 is that of version 0.1, with other names inside
INFO = TypeAdapter(ModelInfo)
KEPT_CHANNELS = "kept_channels.json"
CUT_WEIGHTS = "cut.safetensors"
UNETS = {kind.__name__: kind for kind in (UNet2DModel, UNet2DConditionModel, LightUNet, CutLightUNet)}
UNetLoader: TypeAlias = Callable[[type[ModelMixin], Path], nn.Module]
OPTIONAL_PARTS = {"mask": ImportanceMask, "normaliser": LatentNorm, "conditioner": TextConditioner}


def save_model(model: LatentDiffusion, folder: Path) -> None:
    """Write a model folder atomically; one that was a model's or a pipeline's is replaced.

    Raises:
        ModelError: The folder holds files, and no model or pipeline.
    """
    demand_replaceable(folder, CONFIG, INDEX)
    with files.atomic_dir(folder) as partial:
        _save_vae(model.vae, partial / "vae")
        optional = [name for name in OPTIONAL_PARTS if getattr(model, name) is not None]
        for name in (*optional, "unet"):
            save_part(getattr(model, name), partial / name)
        make_scheduler(model.info.diffusion).save_pretrained(partial / "scheduler")
        parts, info = ["vae", "unet", "scheduler", *optional], INFO.dump_python(model.info, mode="json")
        files.write_json(partial / CONFIG, {"pelap_format": FORMAT, "parts": parts, "info": info})
        write_digests(partial)


def load_model(
    folder: Path, device: torch.device | None = None, load_unet: UNetLoader = load_part
) -> LatentDiffusion:
    """Rebuild a model that `save_model` wrote, in evaluation mode; `load_unet` is of a class, from a folder.

    Raises:
        ModelError: Not a model folder, or a file is missing or of another shape.
    """
    if not is_folder(folder):
        raise ModelError(f"{folder}: no such model folder; train one first, or correct the path")
    config = read_config(folder)
    if (folder / INDEX).is_file():
        raise ModelError(
            f"{folder}: holds two networks, a model ({CONFIG}) and a pipeline ({INDEX}) that was saved over "
            "it; make the model again in another folder"
        )
    info = _info_from_json(config, folder / CONFIG)
    optional = {
        name: load_part(kind, folder / name) if name in config["parts"] else None
        for name, kind in OPTIONAL_PARTS.items()
    }
    vae, unet = _load_vae(folder / "vae"), folder / "unet"
    model = LatentDiffusion(info, vae, load_unet(_unet_class(unet), unet), **optional).to(device).eval()
    _try_out(model, folder)
    demand_unchanged(folder, ModelError)
    return model


@torch.no_grad()
def _try_out(model: LatentDiffusion, folder: Path) -> None:
    """Send one picture through every part: weights may fit a configuration that is of another network."""
    place, side = next(model.unet.parameters()).device, model.info.image_size
    with _blamed_on(folder / "vae"):
        shape = (1, model.vae.image_channels, side, side)
        picture = torch.linspace(-1, 1, math.prod(shape), device=place).view(shape)
        latents = _of_shape((1, *model.latent_shape), model.posterior(picture).mean)
        _of_shape(shape, model.vae.decode(latents))
        if (shape[1] == 1) != (model.info.sound is not None):
            raise ValueError(f"sounds have 1 channel and pictures 3, it makes {shape[1]}")
    with _blamed_on(folder / "mask"):
        _of_shape(latents.shape[:2], model.gates(latents).values)
    if model.normaliser is not None:
        with _blamed_on(folder / "normaliser"):
            _of_shape(latents.shape, model.normaliser.restore(model.normaliser(latents)))
    with _blamed_on(folder / "conditioner"):
        told = {} if model.conditioner is None else model.conditions(model.tokens_of([0]).to(place))
    with _blamed_on(folder / "unet"):
        _of_shape(latents.shape, model.unet(latents, torch.ones((), device=place), **told).sample)


def _blamed_on(part: Path) -> AbstractContextManager[None]:
    remedy = "give the file that the model was saved with, or make the model again"
    return blamed_on(f"{part / CONFIG}: fails on a picture", remedy)


def _of_shape(wanted: Sequence[int], made: torch.Tensor) -> torch.Tensor:
    if tuple(made.shape) != tuple(wanted):
        raise ValueError(f"its part makes {tuple(made.shape)} where {tuple(wanted)} is needed")
    if not made.isfinite().all():
        raise ValueError("what its part makes of a picture is not finite")
    return made


def trained_model(
    folder: Path,
    dataset: ImageDataset,
    device: torch.device,
    load: Callable[[Path, torch.device], LatentDiffusion] = load_model,
) -> LatentDiffusion:
    """A model that was trained on pictures like these; unless `load` is given, one that is not pruned.

    Raises:
        ModelError: It cannot be loaded, or as in `demand_trained_on`.
    """
    model = load(folder, device)
    demand_trained_on(model, folder, dataset)
    return model


def said_if_another(model: LatentDiffusion, folder: Path, name: str) -> None:
    """Warn where a model's folder is called after another one: it may have been exchanged or copied."""
    if model.info.name != name:
        print(f"warning: {folder} holds the model {model.info.name}, and is taken for {name}")


def demand_trained_on(model: LatentDiffusion, folder: Path, dataset: ImageDataset) -> None:
    """Refuse a model, from `folder`, that was trained on other pictures.

    Another draw, or version, of the same data set is said on the terminal.

    Raises:
        ModelError: It was trained on another data set, at another size, or with prompts of other classes.
    """
    name, side = dataset.name, dataset.train.images.shape[-1]
    if (model.info.dataset, model.info.image_size) != (name, side):
        raise ModelError(
            f"{folder}: was trained on {model.info.dataset} at {model.info.image_size} pixels, the data "
            f"are {name} at {side}; train again, or give another --data or --run"
        )
    learnt, heard = (_analysis(sound) for sound in (model.info.sound, dataset.sound))
    if learnt != heard:
        raise ModelError(
            f"{folder}: was trained on sounds analysed by {learnt}, the data by {heard}; train again, or "
            "download with the former download.sounds"
        )
    told = dataset.class_names if model.conditioner is None else tuple(model.conditioner.config.class_names)
    if told != dataset.class_names:
        raise ModelError(
            f"{folder}: was trained with prompts of the classes {', '.join(told)}, the data have "
            f"{', '.join(dataset.class_names)}; train again"
        )
    if model.info.data not in ("", dataset.key.name):
        print(
            f"warning: {folder} was trained on other pictures, labels or names of classes than the packed "
            f"{dataset.name} has now; train again, unless that is what you want"
        )


def _save_vae(vae: Autoencoder, folder: Path) -> None:
    if not isinstance(vae, PretrainedVAE):
        save_part(vae, folder)
    elif not vae.is_cut:
        save_part(vae.vae, folder)
    else:
        vae.vae.save_config(folder)
        files.write_json(folder / KEPT_CHANNELS, vae.kept)
        files.save_tensors(folder / CUT_WEIGHTS, vae.vae.state_dict())


def _load_vae(folder: Path) -> Autoencoder:
    if read_config(folder).get("_class_name") == VAE.__name__:
        own: VAE = load_part(VAE, folder)
        return own
    if not (folder / KEPT_CHANNELS).exists():
        return PretrainedVAE(load_part(AutoencoderKL, folder))
    demand_one_network(folder)
    whole = PretrainedVAE(build_part(AutoencoderKL, folder))
    vae = whole.keep(_kept_channels(folder / KEPT_CHANNELS, whole.latent_channels))
    load_weights(vae.vae, folder / CUT_WEIGHTS)
    return vae


def _kept_channels(path: Path, channels: int) -> list[int]:
    try:
        kept = files.read_json(path)
    except DataError as error:
        raise ModelError(str(error)) from None
    if not (isinstance(kept, list) and kept and kept == [c for c in range(channels) if c in kept]):
        raise ModelError(
            f"{path}: expected a rising list of channels in 0..{channels - 1}; make the model again"
        )
    return kept


def _unet_class(folder: Path) -> type[ModelMixin]:
    name = read_config(folder).get("_class_name")
    if not isinstance(name, str) or name not in UNETS:
        raise ModelError(f"{folder / CONFIG}: unknown UNet {name!r}; use one of {', '.join(UNETS)}")
    return UNETS[name]


def _info_from_json(config: dict[str, Any], path: Path) -> ModelInfo:
    if config.get("pelap_format") not in READABLE:
        raise ModelError(f"{path}: not a PeLAP model of format {FORMAT}; give a folder that `pelap` wrote")
    with blamed_on(f"{path}: describes no model", "make the model again"):
        info = renamed("info", config["info"])
        info["variant"] = renamed("variants.*", info["variant"])
        info["diffusion"] = DiffusionParams.written(info["diffusion"])
        sound = info.get("sound")
        info["sound"] = None if sound is None else SoundParams.written(sound)
        list(config["parts"])
        try:
            return INFO.validate_python(info)
        except ValidationError as error:
            raise ModelError(f"{path}: {explain(error)}; make the model again") from None


def _analysis(sound: SoundParams | None) -> dict[str, float] | None:
    """What decides how a spectrogram looks; not how many there are."""
    return None if sound is None else sound.model_dump(exclude={"train_per_class", "test_per_class"})
