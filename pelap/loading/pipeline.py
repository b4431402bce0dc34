"""A diffusers pipeline folder, pruned or not, to a pipeline and back.

::

    pipeline/model_index.json, scheduler, vae, ...     as diffusers writes them
    pipeline/plan.json                                 when the denoiser is pruned
    pipeline/unet/config.json, pruned.safetensors      then, instead of the usual weights

Plain diffusers loads the first kind and refuses the second. No pickle is read or written.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ModelMixin
from torch import nn

from pelap import io
from pelap.errors import DataError, ModelError
from pelap.loading.pruned import PLAN, keep_plan, load_plan, load_pruned
from pelap.models.parts import CONFIG, DENOISERS, read_config
from pelap.pruning.plan import Plan
from pelap.pruning.surgery import removed_operators

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

INDEX = "model_index.json"
LIBRARIES = ("diffusers", "transformers")
"""Whose networks are loaded here, to see that no tensor is missing; others are left to diffusers."""


def is_pipeline(folder: Path) -> bool:
    """Whether a folder is one of a diffusers pipeline, pruned or not."""
    return (folder / INDEX).is_file()


def pipeline_plan(folder: Path) -> Plan | None:
    """The plan that a pruned pipeline's denoiser came by; None: it is not pruned.

    Raises:
        PlanError: The plan is damaged.
    """
    # At the top where we wrote it; beside the weights where a loaded pipeline was saved again.
    places = [folder / PLAN, *(folder / part / PLAN for part in DENOISERS)]
    return next((load_plan(place) for place in places if place.exists()), None)


def save_pipeline(
    pipe: "DiffusionPipeline",
    folder: Path,
    plan: Plan | None = None,
    write_more: Callable[[Path], None] = lambda partial: None,
) -> None:
    """Write a pipeline folder atomically.

    Args:
        pipe: What to save.
        folder: Replaced if it exists.
        plan: For a pruned denoiser, how it came from the network that its configuration describes.
        write_more: Called with the folder while it still has another name.
    """
    part = next(name for name in DENOISERS if name in pipe.components)
    network = getattr(pipe, part)
    assert plan is not None or not removed_operators(network), "a pruned pipeline is saved with its plan"
    if plan is not None:
        keep_plan(network, plan)
    with io.atomic_dir(folder) as partial, _no_bars():
        pipe.save_pretrained(partial, safe_serialization=True)
        if plan is not None:
            os.replace(partial / part / PLAN, partial / PLAN)
        write_more(partial)


def load_pipeline(folder: Path, device: torch.device | str | None = None) -> "DiffusionPipeline":
    """Rebuild a pipeline from a folder, float32 and in evaluation mode.

    Raises:
        ModelError: Not a pipeline folder, a package is not installed, or a file or a tensor is missing.
        PlanError: Its plan is damaged or does not fit.
    """
    # Seconds that commands without a pipeline need not wait for.
    from diffusers import DiffusionPipeline

    parts = _read_index(folder)
    try:
        with _no_bars():
            networks = _load_networks(folder, parts)
            pipe = DiffusionPipeline.from_pretrained(
                str(folder),
                local_files_only=True,
                use_safetensors=True,
                variant=_variant(folder),
                **networks,
            )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError) as error:
        raise _unreadable(folder, error) from error
    for network in pipe.components.values():
        if isinstance(network, nn.Module):
            network.float().eval()
    return pipe.to(device)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without the libraries' progress bars: our commands have their own."""
    shown = [name for name in LIBRARIES if importlib.util.find_spec(name) is not None]
    loggers = [importlib.import_module(f"{name}.utils.logging") for name in shown]
    for logger in loggers:
        logger.disable_progress_bar()
    try:
        yield
    finally:
        for logger in loggers:
            logger.enable_progress_bar()


def _read_index(folder: Path) -> dict[str, tuple[str | None, str | None]]:
    """Library and class of every part of a pipeline; None for one that it does without."""
    if not folder.is_dir():
        raise ModelError(
            f"{folder}: no such pipeline folder; correct the path, and fetch what is on a hub first"
        )
    try:
        index = io.read_mapping(folder / INDEX, ["_class_name"])
    except DataError:
        raise ModelError(
            f"{folder / INDEX}: missing or damaged; give a folder that a diffusers pipeline was saved to"
        ) from None
    if not isinstance(index["_class_name"], str):
        raise ModelError(f"{folder / INDEX}: is of a class of its own; give one of diffusers' pipelines")
    parts = {
        name: (value[0], value[1])
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and not name.startswith("_")
    }
    denoiser = next((part for part in DENOISERS if part in parts), None)
    if denoiser is None:
        raise ModelError(
            f"{folder}: has neither a unet nor a transformer; give the folder of a pipeline that denoises"
        )
    if not (folder / denoiser).is_dir():
        raise ModelError(f"{folder}: lacks its folder {denoiser}; fetch or save the whole pipeline")
    if importlib.util.find_spec("transformers") is None:
        for name, (library, kind) in parts.items():
            if library == "transformers":
                raise ModelError(
                    f"{folder}: its {name} is a {kind} of the package transformers, which is not "
                    "installed; pip install 'pelap[text]'"
                )
    return parts


def _load_networks(
    folder: Path, parts: dict[str, tuple[str | None, str | None]]
) -> dict[str, nn.Module | None]:
    """The networks among the parts, with nothing filled in where a tensor is missing.

    A part that the pipeline does without is there as None: diffusers demands some to be named.
    """
    plan = pipeline_plan(folder)
    pruned = next((part for part in DENOISERS if part in parts), None)
    networks: dict[str, nn.Module | None] = {}
    for name, (library, class_name) in parts.items():
        if plan is not None and name == pruned:
            networks[name] = load_pruned(_model_class(folder / name), folder / name, plan)
        elif library is None or class_name is None:
            networks[name] = None
        elif library in LIBRARIES:
            kind = getattr(importlib.import_module(library), class_name, None)
            if isinstance(kind, type) and issubclass(kind, nn.Module):
                networks[name] = _load_whole(kind, folder / name)
    return networks


def _model_class(folder: Path) -> type[ModelMixin]:
    """The class of diffusers that a configuration names."""
    name = read_config(folder).get("_class_name")
    kind = getattr(importlib.import_module("diffusers"), name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, ModelMixin)):
        raise ModelError(f"{folder / CONFIG}: {name!r} is no model of diffusers; make the pipeline again")
    return kind


def _load_whole(kind: Any, folder: Path) -> nn.Module:
    """A network whose files hold all its tensors; the libraries themselves fill gaps with random numbers."""
    try:
        network, found = kind.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            variant=_variant(folder),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError) as error:
        raise _unreadable(folder, error) from error
    if found["missing_keys"]:
        raise ModelError(
            f"{folder}: lacks tensor {min(found['missing_keys'])} of its {kind.__name__}; give a whole one"
        )
    if folder.name in DENOISERS and found["unexpected_keys"]:
        raise ModelError(
            f"{folder}: has the tensor {min(found['unexpected_keys'])}, which its configuration does not; "
            "give the config.json that belongs to it"
        )
    whole: nn.Module = network
    return whole


def _variant(folder: Path) -> str | None:
    """``fp16`` where that is all there is, as in many a download; the weights are float32 once loaded."""
    names = [path.name for path in folder.rglob("*.safetensors")]
    return "fp16" if names and all(".fp16." in name for name in names) else None


def _unreadable(folder: Path, error: Exception) -> ModelError:
    return ModelError(f"{folder}: cannot be loaded ({io.one_line(error)}); save it again, as safetensors")
