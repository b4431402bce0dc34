"""One part of a model as a folder in diffusers' own format: config.json and safetensors.

Whoever saves with diffusers into a folder that holds something leaves that there; which network is loaded
then is a matter of names, not of what was saved last. Here that is seen, and refused.
"""

import pickle
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from diffusers import ModelMixin
from safetensors import SafetensorError, safe_open
from torch import nn

from pelap.core import files
from pelap.core.errors import DataError, ModelError, blamed_on
from pelap.core.part_checks import demand_flags, demand_kind, demand_numbers, demand_settings, kind_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

CONFIG = "config.json"
INDEX = "model_index.json"  # of a pipeline
WEIGHTS = "diffusion_pytorch_model.safetensors"
DENOISERS = ("unet", "transformer")  # what diffusers' pipelines call the part that denoises

# `model.fp16-00001-of-00002.safetensors` (the variant was last once), or a list of such shards.
WEIGHTS_FILE = re.compile(
    r"(?P<stem>[^.]+?)(\.(?P<variant>[^.]+?))?(-\d{5}-of-(?P<total>\d{5}))?(\.(?P<late>.+))?"
    r"\.(?P<suffix>safetensors|bin|msgpack|h5|flashpack)(?P<list>\..*json)?"
)
STEMS = {  # how the names of weights begin, by diffusers, transformers and us
    *("diffusion_pytorch_model", "diffusion_flax_model", "pytorch_model", "flax_model", "tf_model", "model"),
    *("pruned", "cut"),
}
# Networks that are not as their configuration says, and the file that says what they are.
OURS = {"pruned": "plan.json", "cut": "kept_channels.json"}
PRECISION = re.compile(r"b?(fp?|float)\d+")  # names of variants that are a network's own weights, rounded
LARGER, SPARE = (
    64,
    2**28,
)  # times the bytes of its weights, and bytes, that a network may have before it is cut
UNREADABLE = (OSError, RuntimeError, ValueError, SafetensorError, pickle.UnpicklingError)

Part = TypeVar("Part", bound=ModelMixin)


class Copy(NamedTuple):
    """The weights of a network as they were saved once."""

    variant: str  # empty for the plain ones
    total: int  # how many shards; 0 for one file
    suffix: str
    stem: str
    files: tuple[Path, ...]


# --- which files are a network's: there may be shards, variants, pickles, other networks


def network_files(folder: Path) -> list[Path]:
    """The files in a folder that are a network's by their names; not the configuration, which all have."""

    def is_one(name: str) -> bool:
        match = WEIGHTS_FILE.fullmatch(name)
        return name in OURS.values() or (match is not None and match["stem"].partition("-")[0] in STEMS)

    there = sorted(folder.iterdir()) if folder.is_dir() else []
    return [file for file in there if is_one(file.name) and file.is_file()]


def copies(folder: Path) -> list[Copy]:
    """All that lie in a folder, whatever their names if none is known.

    What diffusers prefers comes first: safetensors, plain, shards.
    """
    found: dict[tuple[str, int, str, str], list[Path]] = {}
    for file in network_files(folder) or sorted(folder.glob("*")):
        match = WEIGHTS_FILE.fullmatch(file.name)
        if match and match["suffix"] in ("safetensors", "bin") and not match["list"]:
            variant = match["variant"] or match["late"] or ""
            key = (variant, int(match["total"] or 0), match["suffix"], match["stem"])
            found.setdefault(key, []).append(file)
    order = sorted(found, key=lambda key: (key[2] != "safetensors", key[0], -key[1], key[3]))
    return [Copy(*key, tuple(found[key])) for key in order]


def loaded_copy(folder: Path) -> Copy | None:
    """The weights that are loaded from a folder; None where there are none, or pickles alone.

    Several variants without plain weights are a `ModelError`.
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
    for file in sorted(network_files(folder), key=lambda file: file.suffix == ".json"):
        ours = (kind for kind, said in OURS.items() if file.name == said or file.name.startswith(f"{kind}."))
        kinds.setdefault(next(ours, "dense"), file)
    if len(kinds) > 1:
        (one, first), (other, second) = sorted(kinds.items())[:2]
        belongings = {kind: f"{kind}.safetensors and {said}" for kind, said in OURS.items()}
        belongings["dense"] = "diffusion_pytorch_model*"
        raise ModelError(
            f"{folder}: holds two networks, {first.name} ({one}) and {second.name} ({other}); delete what "
            f"is not meant: {belongings[one]}; {belongings[other]}"
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
            found |= {name: lambda it=it: it for name, it in state.items() if torch.is_tensor(it)}
        else:
            opened = stack.enter_context(safe_open(file, framework="pt"))
            found |= {name: lambda name=name, file=opened: file.get_tensor(name) for name in opened.keys()}
    return found


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape:
        return False
    coarse = [torch.finfo(each.dtype) for each in (one, other) if each.is_floating_point()]
    if len(coarse) < 2:
        return True  # positions and the like
    eps, tiny = (max(getattr(each, name) for each in coarse) for name in ("eps", "smallest_normal"))
    return torch.allclose(one.double(), other.double(), rtol=2 * eps, atol=2 * eps * tiny, equal_nan=True)


# --- reading and writing


def save_part(part: ModelMixin, folder: Path) -> None:
    """Write a part so that its class's ``from_pretrained`` reads it, in place of all that the folder held."""
    with files.atomic_dir(folder) as partial:
        part.save_pretrained(partial, safe_serialization=True)


def demand_replaceable(folder: Path, *says: str) -> None:
    """Raise a `ModelError` for a folder of somebody's own files, in which none `says` that it is a model."""
    known = any((folder / name).exists() for name in says)
    if folder.is_dir() and any(folder.iterdir()) and not known:
        raise ModelError(f"{folder}: holds files that are no model's; name another folder, or empty this one")


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a part, or of a whole model.

    Raises:
        ModelError: It is missing or unreadable, or a part's has a number that no network was made with.
    """
    try:
        config = files.read_mapping(folder / CONFIG)
    except DataError as error:
        raise ModelError(str(error)) from None
    if "pelap_format" not in config:
        demand_settings(config, folder / CONFIG)
    return config


def build_part(kind: type[Part], folder: Path) -> Part:
    """A part with fresh weights from the configuration in `folder`, or a `ModelError` says what is wrong.

    It is described first, without memory for its weights: one that is far larger than those that lie beside
    the configuration gets none.
    """
    config = read_config(folder)
    demand_flags(config, kind, folder / CONFIG)
    with blamed_on(f"{folder / CONFIG}: makes no network", "make the model again"):
        with torch.device("meta"):
            described = sum(tensor.nbytes for tensor in kind.from_config(config).state_dict().values())
        if described > SPARE + LARGER * weights_bytes(folder):
            raise ModelError(
                f"{folder / CONFIG}: describes a network of {described / 2**30:.3g} GiB, far more than the "
                "weights beside it; give the file that belongs to them"
            )
        part: Part = kind.from_config(config)
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
    for what, names, others in (("lacks", wanted, tensors), ("has the unknown", tensors, wanted)):
        if odd := [name for name in names if name not in others]:
            more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
            raise ModelError(
                f"{path}: {what} tensor {odd[0]}{more}; it belongs to another model, make it again"
            )
    for name, tensor in wanted.items():
        found = tensors[name]
        if tensor.shape != found.shape:
            raise ModelError(
                f"{path}: tensor {name} has shape {tuple(found.shape)}, the configuration wants "
                f"{tuple(tensor.shape)}; make the model again"
            )
        demand_kind(path, name, tensor.dtype, kind_of(found.dtype))
    part.load_state_dict(tensors)
    demand_numbers(part, path)


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
