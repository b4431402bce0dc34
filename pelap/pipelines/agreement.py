"""Where two pipelines, or a pipeline and data, meet: whether they mean the same, whatever the order."""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_structure

from pelap.core.errors import ConfigError, ModelError
from pelap.core.part_io import labels_of_classes
from pelap.data.dataset import ImageDataset
from pelap.pipelines.kinds import autoencoder_of, config_of, refuse

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from pelap.pipelines.latent import LatentPipeline

OF_SCHEDULER = ("prediction type", "number of noise levels", "noise levels")  # parts of a training
SCALING = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
DECODING = ("decoder.", "post_quant_conv.")  # what training does not use of an autoencoder
COMPUTED = 1e-4  # relative difference, at most, of noise levels that were computed in other orders
ROUNDED = 1e-2  # the same of weights that were rounded to 16 bits
ENCODED = 0.05  # the same, of its length, of what text encoders with such weights say to a text


def differences_in_training(pipe: "DiffusionPipeline", other: "DiffusionPipeline") -> list[str]:
    """What two pipelines' denoisers were trained for otherwise, in words; what a text means is no part of it.

    A denoiser of another training makes nothing of the latents. Sampling is no part of it: schedulers of one
    training differ in their steps.
    """
    names, others = names_of_classes(pipe), names_of_classes(other)
    theirs, differing = _training(other), []
    for part, mine in _training(pipe).items():
        near = ROUNDED if part == "latents" else COMPUTED
        if not _alike(mine, theirs[part], partial(torch.allclose, rtol=near, atol=near * 1e-4)):
            differing.append(part)
    return differing + (["class names"] if names and others and names != others else [])


def _training(pipe: "DiffusionPipeline") -> dict[str, Any]:
    """What a denoiser learnt to predict, and of which latents."""
    settings, autoencoder = pipe.scheduler.config, autoencoder_of(pipe)
    weights = {} if autoencoder is None else autoencoder.state_dict()
    encoder = {name: tensor for name, tensor in weights.items() if not name.startswith(DECODING)}
    scaling = [str(getattr(autoencoder, "config", {}).get(name)) for name in SCALING]
    return {
        "prediction type": settings.get("prediction_type", "epsilon"),
        "number of noise levels": settings.get("num_train_timesteps"),
        "noise levels": getattr(pipe.scheduler, "alphas_cumprod", None),
        "latents": (scaling, encoder),
    }


def mean_the_same(conditions: Any, others: Any) -> bool:
    """Whether two denoisers are told the same: trees of tensors, whose encoders may be rounded."""
    return _alike(conditions, others, lambda a, b: float((a - b).norm()) <= ENCODED * float(a.norm()))


def _alike(one: Any, other: Any, near: Callable[[torch.Tensor, torch.Tensor], bool]) -> bool:
    """Whether two trees have the same structure, tensors that are near each other, and else equal leaves."""
    return tree_structure(one) == tree_structure(other) and all(
        a.shape == b.shape and near(a.cpu().double(), b.cpu().double())
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        else type(a) is type(b) and a == b
        for a, b in zip(tree_leaves(one), tree_leaves(other), strict=True)
    )


def names_of_classes(pipe: "DiffusionPipeline") -> dict[int, list[str]]:
    """The names that a class-conditional pipeline has for each class, by its number, as they are compared."""
    labels = labels_of_classes(pipe)
    return {number: sorted(map(_plain, text.split(","))) for number, text in labels.items()}


def class_numbers(pipe: "DiffusionPipeline", denoiser: nn.Module, class_names: Sequence[str]) -> list[int]:
    """The number that a class-conditional pipeline has for each class of a data set, label 0, 1, ...

    Names decide, where the pipeline has names. Where it has none, classes that are called by numbers are
    those numbers; all others are taken in their order, if there are as many as the pipeline has, and that is
    said.

    Raises:
        ModelError: The pipeline has no such class, or the data's classes have no certain number there.
    """
    known, there = names_of_classes(pipe), int(config_of(denoiser).num_embeds_ada_norm)
    if known or all(name.isdecimal() for name in class_names):
        numbers = [_number_of(pipe, name, known) if known else int(name) for name in class_names]
        if max(numbers) >= there or len(set(numbers)) < len(numbers):
            told = ", ".join(f"{name} ({number})" for name, number in zip(class_names, numbers, strict=True))
            problem = f"has the classes 0..{there - 1}, the data {told}"
            refuse(pipe, problem, "each class of the data needs one of its own there")
        return numbers
    if len(class_names) != there:
        problem = f"was made for {there} classes, the data have {len(class_names)}"
        refuse(pipe, problem, "give the data that it was trained on, or name its classes (id2label)")
    first = f"{class_names[0]} is taken for its class 0"
    print(f"{type(pipe).__name__} has no names of classes (id2label): by their order {first}, and so on")
    return list(range(there))


def _number_of(pipe: "DiffusionPipeline", name: str, known: Mapping[int, Sequence[str]]) -> int:
    wanted = {_plain(part) for part in name.split(",")}  # one of its names, or several
    numbers = [number for number, names in known.items() if wanted <= {*names}]
    if len(numbers) != 1:
        how = f"{len(numbers)} classes" if numbers else "no class"
        shown = ", ".join(f"{number}: {names[0]}" for number, names in list(known.items())[:3])
        refuse(pipe, f"has {how} called {name!r} ({shown}, ...)", "name the data's classes as it does")
    return numbers[0]


def _plain(name: str) -> str:
    """A name as it is compared: case, accents' way of writing, and what stands for a space do not matter."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().replace("_", " ").replace("-", " ").split())


def demand_pictures_of(pipeline: "LatentPipeline", name: Path | str, dataset: ImageDataset) -> None:
    """Refuse sounds, and data of another size than the pictures of the pipeline that is called `name`.

    Raises:
        ModelError: They have another size.
        ConfigError: They are sounds.
    """
    if dataset.sound is not None:
        raise ConfigError(
            f"dataset: {dataset.name} holds sounds, and pipelines make pictures; name one of pictures"
        )
    height, width = pipeline.decode(torch.zeros(1, *pipeline.latent_shape)).shape[-2:]
    side = dataset.train.images.shape[-1]
    if (height, width) != (side, side):
        raise ModelError(
            f"{name}: makes pictures of {width}x{height} pixels, those of {dataset.name} have "
            f"{side}x{side}; make that data set again with download.image_size: {height}, or give other data"
        )
