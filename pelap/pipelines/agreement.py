"""Where two pipelines, or a pipeline and data, meet: whether they mean the same, whatever the order."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pelap.keys import Key, key
from pelap.models.parts import labels_of_classes
from pelap.pipelines.support import config_of, refuse

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

DECIMALS = 6
"""Of noise levels: schedulers of one training compute them in different orders."""
OF_SCHEDULER = ("prediction type", "number of noise levels", "noise levels")
"""Parts of a training that are its scheduler's."""
DECODING = ("decoder.", "post_quant_conv.")
"""What training does not use of an autoencoder."""


def training_of(pipe: "DiffusionPipeline") -> Key:
    """What a pipeline's denoiser was trained for; a denoiser of another training makes nothing of it.

    Sampling is no part of it: schedulers of one training differ in their steps.
    """
    scheduler, decoder = pipe.scheduler, getattr(pipe, "vae", None) or getattr(pipe, "vqvae", None)
    levels = getattr(scheduler, "alphas_cumprod", None)
    parts = {
        "prediction type": scheduler.config.get("prediction_type", "epsilon"),
        "number of noise levels": scheduler.config.get("num_train_timesteps"),
        "noise levels": None if levels is None else levels.double().round(decimals=DECIMALS),
        "latents": None if decoder is None else _encoding(decoder),
        "text encoders": [part for name, part in _networks(pipe).items() if name.startswith("text_encoder")],
        "class names": names_of_classes(pipe),
    }
    return key(**parts)


def names_of_classes(pipe: "DiffusionPipeline") -> dict[int, list[str]]:
    """The names that a class-conditional pipeline has for each class, by its number, as they are compared."""
    labels = labels_of_classes(pipe)
    return {number: sorted(map(_plain, text.split(","))) for number, text in labels.items()}


def class_numbers(pipe: "DiffusionPipeline", denoiser: nn.Module, class_names: Sequence[str]) -> list[int]:
    """The number that a class-conditional pipeline has for each class of a data set.

    Names decide, where the pipeline has names. Where it has none, classes that are called by numbers are
    those numbers; all others are taken in their order, if there are as many as the pipeline has, and that is
    said.

    Args:
        pipe: The pipeline.
        denoiser: Its denoiser.
        class_names: Of label 0, 1, ... of the data.

    Raises:
        ModelError: The pipeline has no such class, or the data's classes have no certain number there.
    """
    known, there = names_of_classes(pipe), int(config_of(denoiser).num_embeds_ada_norm)
    if known:
        return [_number_of(pipe, name, known) for name in class_names]
    if all(name.isdecimal() for name in class_names):
        numbers = [int(name) for name in class_names]
        if max(numbers) >= there or len(set(numbers)) < len(numbers):
            problem = f"has the classes 0..{there - 1}, the data {', '.join(class_names)}"
            refuse(pipe, problem, "give the data that it was trained on")
        return numbers
    if len(class_names) != there:
        problem = f"was made for {there} classes, the data have {len(class_names)}"
        refuse(pipe, problem, "give the data that it was trained on, or name its classes (id2label)")
    first = f"{class_names[0]} is taken for its class 0"
    print(f"{type(pipe).__name__} has no names of classes (id2label): by their order {first}, and so on")
    return list(range(there))


def _number_of(pipe: "DiffusionPipeline", name: str, known: Mapping[int, Sequence[str]]) -> int:
    numbers = [number for number, names in known.items() if _plain(name) in names]
    if len(numbers) != 1:
        how = f"{len(numbers)} classes" if numbers else "no class"
        shown = ", ".join(f"{number}: {names[0]}" for number, names in list(known.items())[:3])
        refuse(pipe, f"has {how} called {name!r} ({shown}, ...)", "name the data's classes as it does")
    return numbers[0]


def _plain(name: str) -> str:
    """A name as it is compared: case, accents' way of writing, and what stands for a space do not matter."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().replace("_", " ").replace("-", " ").split())


def _encoding(autoencoder: nn.Module) -> list[Any]:
    """How an autoencoder makes latents, and how they are scaled."""
    config = config_of(autoencoder)
    names = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
    weights: dict[str, torch.Tensor] = autoencoder.state_dict()
    encoder = {name: tensor for name, tensor in weights.items() if not name.startswith(DECODING)}
    return [{name: str(config.get(name)) for name in names}, encoder]


def _networks(pipe: "DiffusionPipeline") -> dict[str, nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
