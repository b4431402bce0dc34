"""Resume state as a folder of safetensors and JSON: modules, optimiser, progress. No pickle."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pelap import io
from pelap.errors import DataError

TENSORS = "state.safetensors"
PROGRESS = "progress.json"


def save_checkpoint(folder: Path, parts: dict[str, Any], progress: Any) -> None:
    """Write atomically.

    Args:
        folder: Where to.
        parts: Modules and optimisers by name.
        progress: A dataclass instance of JSON values.
    """
    tensors = {
        f"{name}/{key}": tensor for name, part in parts.items() for key, tensor in _tensors(part).items()
    }
    with io.atomic_dir(folder) as partial:
        io.save_tensors(partial / TENSORS, {key: tensor.cpu() for key, tensor in tensors.items()})
        io.write_json(partial / PROGRESS, vars(progress))


def load_checkpoint(folder: Path, parts: dict[str, Any], progress: Any) -> bool:
    """Fill parts and progress from `folder` in place; False where there is nothing to go on from.

    A checkpoint that does not fit (written by another version) is dropped: starting over is right.
    """
    try:
        tensors, _ = io.load_tensors(folder / TENSORS)
        fields = io.read_json(folder / PROGRESS)
    except DataError:
        return False
    owned = {name: _below(name, tensors) for name in parts}
    # All or nothing: a part that does not fit must not leave the others filled.
    if not all(_fits(part, owned[name]) for name, part in parts.items()):
        return False
    for name, part in parts.items():
        _fill(part, owned[name])
    for key, value in fields.items():
        setattr(progress, key, value)
    return True


def weights_digest(network: nn.Module) -> str:
    """SHA-256 of a network's parameters and buffers with their names: whose state a checkpoint is."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def drop_checkpoint(folder: Path) -> None:
    """Remove the resume state of work that is done, and its parent once that is empty."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.parent.is_dir() and not any(folder.parent.iterdir()):
        folder.parent.rmdir()


def _below(name: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix(f"{name}/"): t for key, t in tensors.items() if key.startswith(f"{name}/")}


def _fits(part: Any, tensors: dict[str, torch.Tensor]) -> bool:
    """Whether the tensors are those of this module, or slots of this optimiser's parameters."""
    if isinstance(part, nn.Module):
        own = part.state_dict()
        return own.keys() == tensors.keys() and all(own[key].shape == tensors[key].shape for key in own)
    num_parameters = sum(len(group["params"]) for group in part.param_groups)
    there = {int(key.split("/")[0]) for key in tensors}
    # A parameter that no phase has trained yet has no slot.
    return bool(there) and there <= set(range(num_parameters))


def _tensors(part: Any) -> dict[str, torch.Tensor]:
    if isinstance(part, nn.Module):
        return dict(part.state_dict())
    state = part.state_dict()["state"]
    return {f"{index}/{key}": value for index, slots in state.items() for key, value in slots.items()}


def _fill(part: Any, tensors: dict[str, torch.Tensor]) -> None:
    if isinstance(part, nn.Module):
        part.load_state_dict(tensors)
        return
    parameters = [parameter for group in part.param_groups for parameter in group["params"]]
    slots: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split("/", 1)
        slots.setdefault(int(index), {})[key] = _laid_out_like(parameters[int(index)], tensor)
    part.load_state_dict({"state": slots, "param_groups": part.state_dict()["param_groups"]})


def _laid_out_like(parameter: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """The fused optimiser walks memory: its slots must have the strides of their parameter."""
    if tensor.shape != parameter.shape:
        return tensor
    return torch.empty_like(parameter).copy_(tensor)
