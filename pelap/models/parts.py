"""One part of a model as a folder in diffusers' own format: config.json and safetensors."""

from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import ModelMixin
from torch import nn

from pelap import io
from pelap.errors import DataError, ModelError
from pelap.models.weight_files import demand_one_network

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
DENOISERS = ("unet", "transformer")
"""What diffusers' pipelines call the part that denoises."""

Part = TypeVar("Part", bound=ModelMixin)


def save_part(part: ModelMixin, folder: Path) -> None:
    """Write a part so that its class's ``from_pretrained`` reads it, in place of all that the folder held."""
    with io.atomic_dir(folder) as partial:
        part.save_pretrained(partial, safe_serialization=True)


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a part.

    Raises:
        ModelError: It is missing or unreadable.
    """
    try:
        config = io.read_json(folder / CONFIG)
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
        raise ModelError(f"{folder / CONFIG}: {io.one_line(error)}; make the model again") from None
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
        ModelError: A tensor is missing, left over or of another shape.
    """
    try:
        tensors, _ = io.load_tensors(path)
    except DataError as error:
        raise ModelError(str(error)) from None
    wanted = part.state_dict()
    _demand(path, "lacks", [name for name in wanted if name not in tensors])
    _demand(path, "has the unknown", [name for name in tensors if name not in wanted])
    for name, tensor in wanted.items():
        _same_shape(path, name, tensor, tensors[name])
    part.load_state_dict(tensors)


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
