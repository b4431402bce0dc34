"""Resume state as a folder of safetensors and JSON: modules, optimiser, progress. No pickle.

A state's folder is named by the key of everything that the work's result depends on, so that nothing is gone
on from but the same work. Beside it stands what the key is made of, to say why work starts anew.
"""

import glob
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pelap import io
from pelap.errors import DataError
from pelap.keys import Key

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

    From a checkpoint that is damaged or does not fit nothing is gone on either, which is said.
    """
    if not folder.is_dir():
        return False
    try:
        tensors, _ = io.load_tensors(folder / TENSORS)
        fields = io.read_mapping(folder / PROGRESS, vars(progress))
    except DataError as error:
        print(f"starts anew: {error}")
        return False
    owned = {name: _below(name, tensors) for name in parts}
    # All or nothing: a part that does not fit must not leave the others filled.
    misfits = [name for name, part in parts.items() if not _fits(part, owned[name])]
    if misfits:
        print(f"starts anew: {folder} holds another {', '.join(misfits)}")
        return False
    for name, part in parts.items():
        _fill(part, owned[name])
    for key, value in fields.items():
        setattr(progress, key, value)
    return True


class ResumeState:
    """Where the state of work is kept while it lasts; the same work, interrupted, goes on from there.

    Where an interrupted run of the work was of something else, that is said on the terminal.

    Args:
        parent: Folder of states. Neither DVC nor Snakemake may know it: both delete outputs before a rerun.
        label: What the work is.
        made_of: Everything that its result depends on.

    Attributes:
        folder: For this work's state; it need not exist.
    """

    def __init__(self, parent: Path, label: str, made_of: Key) -> None:
        self._parent = parent
        self._label = label
        self._note = parent / f"{label}.made-of.json"
        self.folder = parent / f"{label}-{made_of.name}"
        if not self.folder.is_dir() and self._folders():
            differing = ", ".join(made_of.differences(self._noted())) or "nothing that was noted"
            print(f"{label.strip('.')}: starts anew; the run that was interrupted has another {differing}")
        io.write_json(self._note, dict(made_of.parts))

    def drop(self) -> None:
        """Remove the state, and those of other parameters too: nobody will ask for them again."""
        for folder in self._folders():
            shutil.rmtree(folder, ignore_errors=True)
        self._note.unlink(missing_ok=True)
        if self._parent.is_dir() and not any(self._parent.iterdir()):
            self._parent.rmdir()

    def _folders(self) -> list[Path]:
        """Those of states of the same label, whatever they are made of."""
        name = re.compile(re.escape(self._label) + "-[0-9a-f]{12}")
        return [
            path for path in self._parent.glob(f"{glob.escape(self._label)}-*") if name.fullmatch(path.name)
        ]

    def _noted(self) -> dict[str, Any]:
        """What the last run that began this work was made of."""
        try:
            return io.read_mapping(self._note)
        except DataError:
            return {}


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
