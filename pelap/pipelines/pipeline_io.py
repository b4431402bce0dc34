"""Folders of diffusers pipelines and of this project's models, pruned or not, to these and back.

::

    pipeline/model_index.json, scheduler, vae, ...     as diffusers writes them
    pipeline/plan.json                                 when the denoiser is pruned
    pipeline/unet/config.json, pruned.safetensors      then, instead of the usual weights

Plain diffusers loads the first kind and refuses the second. No pickle is written, and no network is read from
one. A model's folder is described in `pelap.models.model_io`.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from diffusers import ModelMixin
from torch import nn

from pelap.core import files
from pelap.core.errors import DataError, ModelError
from pelap.core.part_io import (
    CONFIG,
    DENOISERS,
    INDEX,
    demand_kinds,
    demand_numbers,
    demand_one_kind,
    demand_one_network,
    demand_replaceable,
    labels_of_classes,
    load_part,
    network_files,
    read_config,
    variant_of,
)
from pelap.core.replacing import is_folder
from pelap.data.entries import read_prompts
from pelap.models import model_io
from pelap.models.latent_diffusion import LatentDiffusion
from pelap.pipelines.latent import LatentPipeline
from pelap.surgery.apply import PLAN, PRUNED_WEIGHTS, demand_plan, digest, load_pruned
from pelap.surgery.plan import Plan, load_plan

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

LIBRARIES = ("diffusers", "transformers")  # their networks are loaded here, to see that no tensor is missing
UNREADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError)
"""What the libraries raise over a folder."""

Parts: TypeAlias = dict[str, tuple[str | None, str | None]]
"""Library and class of every part of a pipeline; None for one that it does without."""


def save_model(model: LatentDiffusion, folder: Path, plan: Plan | None = None) -> None:
    """Write a model folder atomically; see `pelap.models.model_io.save_model`.

    The plan of a pruned UNet is as in `save_pipeline`.

    Raises:
        ModelError: The folder holds files, and no model or pipeline.
        PlanError: That is not how the UNet came about.
    """
    demand_plan(model.unet, plan)
    model_io.save_model(model, folder)


def load_model(folder: Path, device: torch.device | None = None) -> LatentDiffusion:
    """As `pelap.models.model_io.load_model`, pruned or not; a `PlanError` where a plan does not fit."""

    def load_unet(kind: type[ModelMixin], part: Path) -> nn.Module:
        plan = part / PLAN
        return load_pruned(kind, part, load_plan(plan)) if plan.exists() else load_part(kind, part)

    return model_io.load_model(folder, device, load_unet)


def model_plan(folder: Path) -> Plan:
    """The plan that a pruned model's UNet came by; a `PlanError` where there is none, or a damaged one."""
    return load_plan(folder / "unet" / PLAN)


def is_pipeline(folder: Path) -> bool:
    """Whether a folder is one of a diffusers pipeline, pruned or not."""
    return is_folder(folder) and (folder / INDEX).is_file()


def pipeline_plan(folder: Path) -> Plan | None:
    """The plan that a pruned pipeline's denoiser came by; None: it is not pruned.

    Raises:
        ModelError: Not a pipeline folder, or it holds two networks, or plans, or weights without their plan.
        PlanError: The plan is damaged.
    """
    return _plan_of(folder, _denoiser(folder, _read_index(folder)))


def save_pipeline(
    pipe: "DiffusionPipeline",
    folder: Path,
    plan: Plan | None = None,
    write_more: Callable[[Path], None] = lambda partial: None,
) -> None:
    """Write a pipeline folder atomically.

    Args:
        pipe: The pipeline.
        folder: Replaced if it is a pipeline's or a model's.
        plan: For a pruned denoiser, how it came from the network that its configuration describes, if it
            does not know it.
        write_more: Called with the folder while it still has another name.

    Raises:
        ModelError: The folder holds files, and no pipeline or model.
        PlanError: That is not how it came about.
    """
    demand_replaceable(folder, INDEX, CONFIG)
    part = next(name for name in DENOISERS if name in pipe.components)
    demand_plan(getattr(pipe, part), plan)
    if labels := labels_of_classes(pipe):
        pipe.register_to_config(id2label=labels)
    with files.atomic_dir(folder) as partial, _no_bars():
        pipe.save_pretrained(partial, safe_serialization=True)
        if (partial / part / PLAN).exists():
            os.replace(partial / part / PLAN, partial / PLAN)
        write_more(partial)


def load_pipeline(folder: str | Path, device: torch.device | str | None = None) -> "DiffusionPipeline":
    """Rebuild a pipeline from a folder, float32 and in evaluation mode.

    Raises:
        ModelError: Not a pipeline folder, a package is not installed, or a file or a tensor is missing.
        PlanError: Its plan is damaged or does not fit.
    """
    # Seconds that commands without a pipeline need not wait for.
    from diffusers import DiffusionPipeline

    folder = Path(folder)
    parts = _read_index(folder)
    try:
        with _no_bars():
            networks = _load_networks(folder, parts)
            pipe = DiffusionPipeline.from_pretrained(
                str(folder),
                local_files_only=True,
                use_safetensors=True,
                variant=_variant_of_others(folder, parts, networks),
                **networks,
            )
    except UNREADABLE as error:
        raise _unreadable(folder, error) from error
    for network in pipe.components.values():
        if isinstance(network, nn.Module):
            network.float().eval()
    _say_other_scheduler(folder, pipe)
    if labels := files.read_json(folder / INDEX).get("id2label"):
        pipe.register_to_config(id2label=labels)
    return pipe.to(device)


def open_pipeline(
    folder: Path, num_steps: int, device: torch.device, prompts: Path | None = None, precision: str = "fp32"
) -> LatentPipeline:
    """A pipeline folder, pruned or not, ready to make latents and pictures.

    Raises:
        ModelError: Not a pipeline that can be loaded and used.
        ConfigError: Prompts are missing or out of place, or `num_steps` does not suit the scheduler.
        DataError: The file of prompts cannot be read.
    """
    texts = None if prompts is None else read_prompts(prompts)
    return LatentPipeline(load_pipeline(folder, device), num_steps, texts, precision)


def _say_other_scheduler(folder: Path, pipe: "DiffusionPipeline") -> None:
    """Diffusers makes the class that the index names, or the pipeline's own, of another one's settings."""
    file, scheduler = folder / "scheduler/scheduler_config.json", getattr(pipe, "scheduler", None)
    saved = files.read_json(file).get("_class_name") if file.is_file() else None
    if scheduler is not None and saved not in (None, type(scheduler).__name__):
        print(
            f"warning: {file}: is of {saved}, but {type(pipe).__name__} makes a {type(scheduler).__name__} "
            "of it; what it samples is that one's"
        )


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


def _read_index(folder: Path) -> Parts:
    if not is_folder(folder):
        raise ModelError(
            f"{folder}: no such folder of a model or pipeline; correct the path, or download it first"
        )
    try:
        index = files.read_mapping(folder / INDEX, ["_class_name"])
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
    for name, (library, kind) in parts.items():
        if library == "transformers" and importlib.util.find_spec("transformers") is None:
            raise ModelError(
                f"{folder}: its {name} is a {kind} of the package transformers, which is not "
                "installed; run `pip install '.[text]'` in PeLAP's folder"
            )
    return parts


def _denoiser(folder: Path, parts: Parts) -> str:
    denoiser = next((part for part in DENOISERS if part in parts), None)
    if denoiser is None:
        raise ModelError(
            f"{folder}: has neither a unet nor a transformer; give the folder of a pipeline that denoises"
        )
    if not (folder / denoiser).is_dir():
        raise ModelError(f"{folder}: lacks its folder {denoiser}; fetch or save the whole pipeline")
    return denoiser


def _plan_of(folder: Path, denoiser: str) -> Plan | None:
    """The plan of the denoiser, whose weights are such as the plan says."""
    part = folder / denoiser
    demand_one_kind(part)
    # At the top where we wrote it; beside the weights where a loaded pipeline was saved again.
    plans = {path: load_plan(path) for path in (folder / PLAN, part / PLAN) if path.exists()}
    if len({digest(plan) for plan in plans.values()}) > 1:
        raise ModelError(
            f"{folder}: holds two plans, {PLAN} and {denoiser}/{PLAN}; delete the one that {denoiser}/"
            f"{PRUNED_WEIGHTS} is not of"
        )
    weights = [file for file in network_files(part) if file.name != PLAN]
    is_pruned = any(file.name == PRUNED_WEIGHTS for file in weights)
    if plans and weights and not is_pruned:
        raise ModelError(
            f"{folder}: holds two networks, {next(iter(plans)).relative_to(folder)} is of a pruned one and "
            f"{denoiser}/{weights[0].name} of a dense one; delete that plan to keep the dense one"
        )
    if is_pruned and not plans:
        raise ModelError(f"{part}: cannot be loaded ({PRUNED_WEIGHTS} lost its {PLAN}); prune it again")
    return next(iter(plans.values()), None)


def _load_networks(folder: Path, parts: Parts) -> dict[str, nn.Module | None]:
    """The networks among the parts, with nothing filled in where a tensor is missing.

    A part that the pipeline does without is there as None: diffusers demands some to be named.
    """
    denoiser = _denoiser(folder, parts)
    plan = _plan_of(folder, denoiser)
    pruned_class = _class_of(folder / denoiser, parts[denoiser][1], plan is not None)
    networks: dict[str, nn.Module | None] = {}
    for name, (library, class_name) in parts.items():
        if plan is not None and name == denoiser:
            assert pruned_class is not None
            networks[name] = load_pruned(pruned_class, folder / name, plan)
        elif library is None or class_name is None:
            networks[name] = None
        elif library in LIBRARIES:
            kind = getattr(importlib.import_module(library), class_name, None)
            if isinstance(kind, type) and issubclass(kind, nn.Module):
                networks[name] = _load_whole(kind, folder / name)
    return networks


def _class_of(folder: Path, indexed: str | None, is_pruned: bool) -> type[ModelMixin] | None:
    """A denoiser's class; refuses one that was put in the place of one of another class."""
    found = read_config(folder).get("_class_name")
    kind = _model_of_diffusers(found)
    # What several classes were once, and diffusers reads as the one that it is now.
    same = found == indexed or "Transformer2DModel" in (found, indexed)
    if kind and _model_of_diffusers(indexed) and not same:
        raise ModelError(
            f"{folder / CONFIG}: is a {found}, and {INDEX} has {indexed} here; save the whole pipeline again"
        )
    if kind is None and is_pruned:
        raise ModelError(f"{folder / CONFIG}: {found!r} is no model of diffusers; make the pipeline again")
    return kind


def _model_of_diffusers(name: Any) -> type[ModelMixin] | None:
    kind = getattr(importlib.import_module("diffusers"), str(name), None)
    return kind if isinstance(kind, type) and issubclass(kind, ModelMixin) else None


def _load_whole(kind: Any, folder: Path) -> nn.Module:
    """A network whose files hold all its tensors; the libraries themselves fill gaps with random numbers."""
    demand_one_network(folder)
    try:
        network, found = kind.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            variant=variant_of(folder),
        )
    except UNREADABLE as error:
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
    demand_kinds(network, folder)
    demand_numbers(network, folder)
    return network  # type: ignore[no-any-return]


def _variant_of_others(folder: Path, parts: Parts, networks: Mapping[str, nn.Module | None]) -> str | None:
    """Of the parts that are left to diffusers; it takes plain weights where there is no such variant."""
    left = [name for name in parts if name not in networks]
    for name in left:
        demand_one_network(folder / name)
    variants = {name: variant for name in left if (variant := variant_of(folder / name))}
    if len(set(variants.values())) > 1:
        raise ModelError(f"{folder}: variants differ, {variants}; fetch one variant of all parts")
    return next(iter(variants.values()), None)


def _unreadable(folder: Path, error: Exception) -> ModelError:
    return ModelError(f"{folder}: cannot be loaded ({files.one_line(error)}); save it again, as safetensors")
