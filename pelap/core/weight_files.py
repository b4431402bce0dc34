"""Which files in a part's folder are its weights: there may be shards, variants, pickles, other networks.

Whoever saves with diffusers into a folder that holds something leaves that there; which network is loaded
then is a matter of names, not of what was saved last. Here that is seen, and refused.
"""

import pickle
import re
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from pelap.core import files
from pelap.core.errors import DataError, ModelError

WEIGHTS_FILE = re.compile(
    r"(?P<stem>[^.]+?)(?:\.(?P<variant>[^.]+?))?(?:-\d{5}-of-(?P<total>\d{5}))?(?:\.(?P<late>[^.]+))?"
    r"\.(?P<suffix>safetensors|bin)"
)
"""``model.fp16-00001-of-00002.safetensors``; the variant was last once."""
OURS = {"pruned": "plan.json", "cut": "kept_channels.json"}
"""Networks that are not as their configuration says, and the file that says what they are."""
PRECISION = re.compile(r"b?(fp?|float)\d+")
"""Names of variants that are a network's own weights, rounded."""
UNREADABLE = (OSError, RuntimeError, ValueError, SafetensorError, pickle.UnpicklingError)


class Copy(NamedTuple):
    """The weights of a network as they were saved once."""

    variant: str
    """Empty for the plain ones."""
    total: int
    """How many shards; 0 for one file."""
    suffix: str
    stem: str
    files: tuple[Path, ...]


def copies(folder: Path) -> list[Copy]:
    """All that lie in a folder, whatever their names if none is known.

    What diffusers prefers comes first: safetensors, plain, shards.
    """
    found: dict[tuple[str, int, str, str], list[Path]] = {}
    for file in files.network_files(folder) or sorted(folder.glob("*")):
        match = WEIGHTS_FILE.fullmatch(file.name)
        if match:
            variant = match["variant"] or match["late"] or ""
            key = (variant, int(match["total"] or 0), match["suffix"], match["stem"])
            found.setdefault(key, []).append(file)
    order = sorted(found, key=lambda key: (key[2] != "safetensors", key[0], -key[1], key[3]))
    return [Copy(*key, tuple(found[key])) for key in order]


def loaded_copy(folder: Path) -> Copy | None:
    """The weights that are loaded from a folder; None where there are none, or pickles alone.

    Raises:
        ModelError: There are several variants and no plain weights.
    """
    usable = [copy for copy in copies(folder) if copy.suffix == "safetensors"]
    variants = sorted({copy.variant for copy in usable})
    if len(variants) > 1 and "" not in variants:
        raise ModelError(
            f"{folder}: has the variants {', '.join(variants)} and no plain weights; leave the files of one"
        )
    return next(iter(usable), None)


def variant_of(folder: Path) -> str | None:
    """The name of the variant that is loaded, as in many a download; None for plain weights."""
    copy = loaded_copy(folder)
    return copy.variant or None if copy else None


def weights_bytes(folder: Path) -> int:
    """Size of the weights that are loaded from a folder, or that are pickled there."""
    copy = loaded_copy(folder) or next(iter(copies(folder)), None)
    return sum(file.stat().st_size for file in copy.files) if copy else 0


def demand_one_kind(folder: Path) -> None:
    """Raise a `ModelError` where a dense network and one that is not lie in one folder, and name both."""
    kinds: dict[str, Path] = {}
    for file in sorted(files.network_files(folder), key=lambda file: not WEIGHTS_FILE.fullmatch(file.name)):
        kinds.setdefault(_kind(file), file)
    if len(kinds) > 1:
        (one, first), (other, second) = sorted(kinds.items())[:2]
        raise ModelError(
            f"{folder}: holds two networks, {first.name} ({one}) and {second.name} ({other}); delete what "
            f"is not meant: {_belongings(one)}; {_belongings(other)}"
        )


def demand_one_network(folder: Path) -> None:
    """Raise a `ModelError` where two things in a folder claim to be its network, and name both."""
    demand_one_kind(folder)
    loaded = loaded_copy(folder)
    if loaded is None:
        return
    _demand_shards(folder, loaded.variant)
    for copy in copies(folder):
        alike = copy.variant in ("", loaded.variant) or PRECISION.fullmatch(copy.variant)
        if copy != loaded and alike and not _agree(loaded, copy):
            raise ModelError(
                f"{folder}: holds two networks, {loaded.files[0].name} and {copy.files[0].name} have other "
                "weights; delete the one that is not meant"
            )


def _kind(file: Path) -> str:
    ours = (kind for kind, said in OURS.items() if file.name == said or file.name.startswith(f"{kind}."))
    return next(ours, "dense")


def _belongings(kind: str) -> str:
    return f"{kind}.safetensors and {OURS[kind]}" if kind in OURS else "diffusion_pytorch_model*"


def _demand_shards(folder: Path, variant: str) -> None:
    """Refuse a list of shards that are gone: it is read first, and then nothing is found."""
    pattern = f"*.safetensors*.{variant}.*json" if variant else "*.safetensors.index.json"
    for index in folder.glob(pattern):
        try:
            named = sorted(set(files.read_mapping(index, ["weight_map"])["weight_map"].values()))
        except (DataError, AttributeError, TypeError):
            continue  # the libraries say what is wrong with it
        gone = [name for name in named if not (folder / name).exists()]
        if gone:
            raise ModelError(
                f"{folder}: {index.name} names {gone[0]}, which is not there; fetch all, or delete that list "
                "if the network is in other files"
            )


def _agree(one: Copy, other: Copy) -> bool:
    """Whether two copies may be of one network: tensors of equal names are equal up to rounding."""
    try:
        with ExitStack() as stack:
            tensors, others = (_tensors(copy, stack) for copy in (one, other))
            return all(_close(tensors[name](), others[name]()) for name in tensors.keys() & others.keys())
    except UNREADABLE as error:
        print(f"{other.files[0]}: not compared with {one.files[0].name} ({files.one_line(error)})")
        return True


def _tensors(copy: Copy, stack: ExitStack) -> dict[str, Callable[[], torch.Tensor]]:
    """How each tensor is read, by its name: one after the other, for networks larger than the memory."""
    found: dict[str, Callable[[], torch.Tensor]] = {}
    for file in copy.files:
        if copy.suffix == "bin":
            # This reader makes numbers of a pickle, and runs nothing in it.
            state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
            found |= {name: partial(_itself, each) for name, each in state.items() if torch.is_tensor(each)}
        else:
            opened = stack.enter_context(safe_open(file, framework="pt"))
            found |= {name: partial(opened.get_tensor, name) for name in opened.keys()}
    return found


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape:
        return False
    coarse = [torch.finfo(each.dtype) for each in (one, other) if each.is_floating_point()]
    if len(coarse) < 2:
        return True  # positions and the like
    eps, tiny = (max(getattr(each, name) for each in coarse) for name in ("eps", "smallest_normal"))
    return torch.allclose(one.double(), other.double(), rtol=2 * eps, atol=2 * eps * tiny, equal_nan=True)
