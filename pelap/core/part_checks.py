"""Whether the numbers of a part can be a network's: its settings, the kinds and the values of its weights.

Libraries take any: whole numbers become weights, and settings that no network was trained with make pictures
that look like those of a bad network.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from pelap.core.errors import ModelError, finite

MOST = 1e8  # of any number in a configuration: bases of rotary embeddings and vocabularies stay below
SHOWN = 40  # characters of a wrong value that an error repeats
# By what a key's name has in it. No network that is known comes near these ends.
RANGES = (
    (re.compile(r"(^|_)eps(ilon)?$"), 0.0, 1.0),
    (re.compile(r"scal(e|ing)_factor$|latents_std"), 1e-4, 1e4),
    (re.compile(r"shift_factor$|latents_mean"), -1e4, 1e4),
    (re.compile(r"beta_(start|end)$|trained_betas"), 0.0, 1.0),
    (re.compile(r"^num_(hidden_)?layers$|^layers_per_block$|^downsampling$"), 1, 1024),
    (re.compile(r"layers"), -1024, 1024),
    (re.compile(r"(sample|image|embed_max)_size"), 1, 4096),
    (re.compile(r"timesteps$"), 0, 1e6),
    (re.compile(r"^lambda_min_clipped$"), float("-inf"), MOST),  # the one that is infinite by default
)


def demand_settings(config: Mapping[str, Any], path: Path | str) -> None:
    """Raise a `ModelError` for a number in a configuration, from `path`, that no network was made with."""
    for name, value in _numbers(config):
        found = (ends for pattern, *ends in RANGES if pattern.search(name))
        least, most = next(found, (-MOST, MOST))
        if not least <= value <= most:
            raise ModelError(
                f"{path}: {name}: {str(value)[:SHOWN]} is not in {least:g}..{most:g}; give the file that the "
                "network was saved with"
            )


def demand_flags(config: Mapping[str, Any], kind: type[Any], path: Path) -> None:
    """Raise a `ModelError` where a switch of a class is neither true nor false, or a number is one of these.

    Any word would switch it on.
    """
    for name, parameter in inspect.signature(kind).parameters.items():
        value, usual = config.get(name), parameter.default
        if isinstance(usual, bool | int | float) and value is not None:
            if isinstance(usual, bool) and not isinstance(value, bool):
                raise ModelError(f"{path}: {name}: {str(value)[:SHOWN]} is not true or false; set it to one")
            if isinstance(value, bool) and not isinstance(usual, bool):
                raise ModelError(f"{path}: {name}: {value} is no number; set it to one, usual is {usual}")


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, int | float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, str(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _numbers(inner, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def demand_numbers(part: nn.Module, path: Path) -> None:
    """Raise a `ModelError` where weights from `path` are not finite: all that comes of them would be NaN."""
    for name, weight in part.state_dict().items():
        if weight.is_floating_point():
            finite(weight, f"{path}: tensor {name}", "make the model again")


def demand_kinds(part: nn.Module, folder: Path) -> None:
    """Refuse files whose tensors are of another kind than the network's: booleans or whole numbers.

    Libraries that load them turn them into floats. A file that cannot be read is none that was loaded.

    Raises:
        ModelError: Names the tensor.
    """
    wanted = part.state_dict()
    for path in filter(Path.is_file, sorted(folder.glob("*.safetensors"))):
        with suppress(SafetensorError, OSError), safe_open(path, "pt") as file:
            for name in wanted.keys() & file.keys():
                found = file.get_slice(name).get_dtype()
                kind = "float" if "F" in found else _OTHERS.get(found[0], "whole")
                demand_kind(path, name, wanted[name].dtype, kind)


_OTHERS = {"B": "bool", "C": "complex"}  # by the first letter that safetensors gives a type


def demand_kind(path: Path, name: str, wanted: torch.dtype, found: str) -> None:
    """Raise a `ModelError` for a tensor in `path` that is not of the network's kind; see `kind_of`."""
    if kind_of(wanted) != found:
        raise ModelError(
            f"{path}: tensor {name} holds numbers of another kind than {wanted} ({found}); make the model "
            "again"
        )


def kind_of(dtype: torch.dtype) -> str:
    """``float``, ``bool``, ``complex`` or ``whole``."""
    if dtype == torch.bool:
        return "bool"
    return "float" if dtype.is_floating_point else "complex" if dtype.is_complex else "whole"
