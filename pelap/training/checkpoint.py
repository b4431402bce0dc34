"""Resume state as a folder of safetensors and JSON: modules, optimiser, progress. No pickle.

A state's folder is named by the key of everything that the work's result depends on, so that nothing is gone
on from but the same work. Beside it stands what the key is made of, to say why work starts anew.
"""

from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import nn

from pelap.core import files
from pelap.core.errors import DataError, blamed_on
from pelap.core.replacing import is_folder

TENSORS = "state.safetensors"
PROGRESS = "progress.json"


def save_checkpoint(folder: Path, parts: dict[str, Any], progress: Any) -> None:
    """Write modules and optimisers by name, and a dataclass instance of JSON values; atomically."""
    tensors = {f"{name}/{key}": t.cpu() for name, part in parts.items() for key, t in _tensors(part).items()}
    with files.atomic_dir(folder) as partial:
        files.save_tensors(partial / TENSORS, tensors)
        files.write_json(partial / PROGRESS, vars(progress))


def load_checkpoint(folder: Path, parts: dict[str, Any], progress: Any) -> bool:
    """Fill parts and progress from `folder` in place; False where there is nothing to go on from.

    From a checkpoint that is damaged or does not fit nothing is gone on either, which is said.
    """
    if not is_folder(folder):
        return False
    owned: dict[str, dict[str, torch.Tensor]] = {name: {} for name in parts}
    try:
        tensors, _ = files.load_tensors(folder / TENSORS)
        fields = files.read_mapping(folder / PROGRESS, vars(progress))
        for key, tensor in tensors.items():
            name, _, below = key.partition("/")
            owned.setdefault(name, {})[below] = tensor
        with blamed_on(f"{folder}: is no checkpoint", "it is made anew", DataError):
            TypeAdapter(type(progress)).validate_python(fields)
            # All or nothing: a part that does not fit must not leave the others filled.
            misfits = [name for name, part in parts.items() if not _fits(part, owned[name])]
    except DataError as error:
        print(f"starts anew: {error}")
        return False
    if misfits:
        print(f"starts anew: {folder} holds another {', '.join(misfits)}")
        return False
    for name, part in parts.items():
        _fill(part, owned[name])
    vars(progress).update(fields)
    return True


def _fits(part: Any, tensors: dict[str, torch.Tensor]) -> bool:
    """Whether the tensors are those of this module, or slots of this optimiser's parameters."""
    if isinstance(part, nn.Module):
        own = part.state_dict()
        return own.keys() == tensors.keys() and all(own[key].shape == tensors[key].shape for key in own)
    there = {int(key.split("/")[0]) for key in tensors}
    # A parameter that no phase has trained yet has no slot.
    return bool(there) and there <= set(range(len(_parameters(part))))


def _tensors(part: Any) -> dict[str, torch.Tensor]:
    if isinstance(part, nn.Module):
        return dict(part.state_dict())
    state = part.state_dict()["state"]
    return {f"{index}/{key}": value for index, slots in state.items() for key, value in slots.items()}


def _fill(part: Any, tensors: dict[str, torch.Tensor]) -> None:
    if isinstance(part, nn.Module):
        part.load_state_dict(tensors)
        return
    parameters = _parameters(part)
    slots: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition("/")
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape:  # the fused optimiser walks memory: their strides must be equal
            tensor = torch.empty_like(parameter).copy_(tensor)
        slots.setdefault(int(index), {})[key] = tensor
    part.load_state_dict({"state": slots, "param_groups": part.state_dict()["param_groups"]})


def _parameters(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]
