"""One part of a model as a folder in diffusers' own format: config.json and safetensors."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from diffusers import ModelMixin
from safetensors import SafetensorError, safe_open
from torch import nn

from pelap.core import files
from pelap.core.errors import DataError, ModelError
from pelap.core.finite import finite
from pelap.core.weight_files import demand_one_network

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

CONFIG = "config.json"
INDEX = "model_index.json"
"""Of a pipeline."""
WEIGHTS = "diffusion_pytorch_model.safetensors"
DENOISERS = ("unet", "transformer")
"""What diffusers' pipelines call the part that denoises."""

Part = TypeVar("Part", bound=ModelMixin)


def save_part(part: ModelMixin, folder: Path) -> None:
    """Write a part so that its class's ``from_pretrained`` reads it, in place of all that the folder held."""
    with files.atomic_dir(folder) as partial:
        part.save_pretrained(partial, safe_serialization=True)


def demand_replaceable(folder: Path, *says: str) -> None:
    """Refuse to replace a folder of somebody's own files, in which no file `says` that it is a model.

    Raises:
        ModelError: It is one.
    """
    known = any((folder / name).exists() for name in says)
    if folder.is_dir() and any(folder.iterdir()) and not known:
        raise ModelError(f"{folder}: holds files that are no model's; name another folder, or empty this one")


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a part.

    Raises:
        ModelError: It is missing or unreadable.
    """
    try:
        config = files.read_json(folder / CONFIG)
    except DataError as error:
        raise ModelError(str(error)) from None
    if not isinstance(config, dict):
        raise ModelError(f"{folder / CONFIG}: expected an object; make the model again")
    return config


def build_part(kind: type[Part], folder: Path) -> Part:
    """A part with fresh weights from the configuration in `folder`.

    Raises:
        ModelError: The configuration does not fit the class.
    """
    try:
        part: Part = kind.from_config(read_config(folder))
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(f"{folder / CONFIG}: {files.one_line(error)}; make the model again") from None
    return part


def load_part(kind: type[Part], folder: Path) -> Part:
    """Rebuild a part; unlike diffusers' own loader, nothing missing is filled in.

    Raises:
        ModelError: A file or a tensor is missing, left over or of another shape, or another network's files
            are there too.
    """
    demand_one_network(folder)
    part = build_part(kind, folder)
    load_weights(part, folder / WEIGHTS)
    return part


def load_weights(part: nn.Module, path: Path) -> None:
    """Fill `part` from a safetensors file that holds exactly its tensors.

    Raises:
        ModelError: A tensor is missing, left over, of another shape or kind, or not finite.
    """
    try:
        tensors, _ = files.load_tensors(path)
    except DataError as error:
        raise ModelError(str(error)) from None
    wanted = part.state_dict()
    _demand(path, "lacks", [name for name in wanted if name not in tensors])
    _demand(path, "has the unknown", [name for name in tensors if name not in wanted])
    for name, tensor in wanted.items():
        _same_shape(path, name, tensor, tensors[name])
        _same_kind(path, name, tensor, tensors[name].dtype.is_floating_point)
    part.load_state_dict(tensors)
    demand_numbers(part, path)


def demand_numbers(part: nn.Module, path: Path) -> None:
    """Refuse weights of which some are not finite: all that comes of them would be NaN.

    Raises:
        ModelError: Names the tensor, and `path` as where it is from.
    """
    for name, weight in part.named_parameters():
        finite(weight.detach(), f"{path}: tensor {name}", "make the model again")


def demand_kinds(part: nn.Module, folder: Path) -> None:
    """Refuse files whose tensors are of another kind than the network's: booleans or whole numbers.

    Libraries that load them turn them into floats. A file that cannot be read is none that was loaded.

    Raises:
        ModelError: Names the tensor.
    """
    wanted = part.state_dict()
    for path in sorted(folder.glob("*.safetensors")):
        with suppress(SafetensorError, OSError), safe_open(path, "pt") as file:
            for name in wanted.keys() & file.keys():
                kind = file.get_slice(name).get_dtype()
                _same_kind(path, name, wanted[name], "F" in kind)


def _same_kind(path: Path, name: str, wanted: torch.Tensor, is_float: bool) -> None:
    if wanted.is_floating_point() != is_float:
        raise ModelError(
            f"{path}: tensor {name} holds numbers of another kind than {wanted.dtype}; make the model again"
        )


def _demand(path: Path, what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise ModelError(
            f"{path}: {what} tensor {names[0]}{more}; it belongs to another model, make it again"
        )


def _same_shape(path: Path, name: str, wanted: torch.Tensor, found: torch.Tensor) -> None:
    if wanted.shape != found.shape:
        raise ModelError(
            f"{path}: tensor {name} has shape {tuple(found.shape)}, the configuration wants "
            f"{tuple(wanted.shape)}; make the model again"
        )


def labels_of_classes(pipe: "DiffusionPipeline") -> dict[int, str]:
    """What a class-conditional pipeline calls each class, ``name`` or ``name, other name``; empty: nothing.

    diffusers reads it from the pipeline's folder, looks names up in it, and leaves it out when it saves.
    """
    texts: Mapping[Any, str] = pipe.config.get("id2label") or {}
    names = {int(number): [text] for number, text in texts.items()}
    if not names:
        for name, number in getattr(pipe, "labels", {}).items():
            names.setdefault(number, []).append(name)
    return {number: ", ".join(names[number]) for number in sorted(names)}
