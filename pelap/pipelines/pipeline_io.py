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
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ModelMixin
from torch import nn

from pelap.core import files
from pelap.core.errors import ModelError, blamed_on
from pelap.core.part_checks import demand_kinds, demand_numbers
from pelap.core.part_io import (
    CONFIG,
    DENOISERS,
    INDEX,
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
from pelap.pipelines.pipeline_index import LIBRARIES, SCHEDULER, Parts, read_index
from pelap.surgery.apply import PLAN, PRUNED_WEIGHTS, demand_plan, digest, load_pruned
from pelap.surgery.plan import Plan, load_plan

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


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
    return _plan_of(folder, _denoiser(folder, read_index(folder)))


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
    kinds = read_index(folder)
    with _no_bars():
        # All of them: nothing is left for diffusers to look up in the folder.
        parts = _load_parts(folder, kinds)
        with _blamed_on(folder / INDEX):
            pipe = DiffusionPipeline.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, **parts
            )
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
    file, scheduler = folder / "scheduler" / SCHEDULER, getattr(pipe, "scheduler", None)
    saved = files.read_mapping(file, infinite=True).get("_class_name") if file.is_file() else None
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


def _load_parts(folder: Path, kinds: Parts) -> dict[str, Any]:
    """The parts, with nothing filled in where a tensor is missing.

    A part that the pipeline does without is there as None: diffusers demands some to be named.
    """
    denoiser = _denoiser(folder, kinds)
    plan = _plan_of(folder, denoiser)
    pruned_class = _class_of(folder / denoiser, kinds[denoiser], plan is not None)
    parts: dict[str, Any] = {}
    for name, kind in kinds.items():
        if plan is not None and name == denoiser:
            assert pruned_class is not None
            parts[name] = load_pruned(pruned_class, folder / name, plan)
        elif kind is not None and issubclass(kind, nn.Module):
            parts[name] = _load_whole(kind, folder / name)
        elif kind is not None:
            with _blamed_on(_settings_of(folder / name)):
                parts[name] = kind.from_pretrained(str(folder / name), local_files_only=True)
        else:
            parts[name] = None
    return parts


def _settings_of(part: Path) -> Path:
    """The file that most likely is to blame where a part without weights cannot be made."""
    return next(iter(sorted(part.glob("*config.json"))), part)


def _class_of(folder: Path, indexed: Any, is_pruned: bool) -> type[ModelMixin] | None:
    """A denoiser's class; refuses one that was put in the place of one of another class."""
    found = read_config(folder).get("_class_name")
    kind = getattr(importlib.import_module("diffusers"), str(found), None)
    kind = kind if isinstance(kind, type) and issubclass(kind, ModelMixin) else None
    # What several classes were once, and diffusers reads as the one that it is now.
    same = kind is indexed or "Transformer2DModel" in (found, indexed and indexed.__name__)
    if kind and indexed and not same:
        raise ModelError(
            f"{folder / CONFIG}: is a {found}, and {INDEX} has {indexed.__name__} here; save the whole "
            "pipeline again"
        )
    if kind is None and is_pruned:
        raise ModelError(
            f"{folder / CONFIG}: {str(found)[:40]} is no model of diffusers; make the pipeline again"
        )
    return kind


def _load_whole(kind: Any, folder: Path) -> nn.Module:
    """A network whose files hold all its tensors; the libraries themselves fill gaps with random numbers."""
    demand_one_network(folder)
    with _blamed_on(folder / CONFIG):
        network, found = kind.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            variant=variant_of(folder),
        )
    if found["missing_keys"]:
        raise ModelError(
            f"{folder}: lacks tensor {min(found['missing_keys'])} of its {kind.__name__}; give a whole one"
        )
    if isinstance(network, ModelMixin) and found["unexpected_keys"]:
        raise ModelError(
            f"{folder}: has the tensor {min(found['unexpected_keys'])}, which its configuration does not; "
            "give the config.json that belongs to it"
        )
    demand_kinds(network, folder)
    demand_numbers(network, folder)
    return network  # type: ignore[no-any-return]


def _blamed_on(file: Path) -> AbstractContextManager[None]:
    return blamed_on(f"{file}: cannot be loaded", "save the whole pipeline again, as safetensors")
