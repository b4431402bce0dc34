"""Model folders of this project, whether their UNet is pruned or not."""

from pathlib import Path

import torch
from diffusers import ModelMixin
from torch import nn

from pelap.models import model_io
from pelap.models.latent_diffusion import LatentDiffusion
from pelap.surgery.apply import PLAN, demand_plan, load_pruned
from pelap.surgery.plan import Plan, load_plan


def save_model(model: LatentDiffusion, folder: Path, plan: Plan | None = None) -> None:
    """Write a model folder atomically; see `pelap.models.model_io.save_model`.

    Args:
        model: What to save.
        folder: Replaced if it is a model's or a pipeline's.
        plan: For a pruned UNet, how it came from the network that its configuration describes, if it does
            not know it.

    Raises:
        ModelError: The folder holds files, and no model or pipeline.
        PlanError: That is not how it came about.
    """
    demand_plan(model.unet, plan)
    model_io.save_model(model, folder)


def load_model(folder: Path, device: torch.device | None = None) -> LatentDiffusion:
    """Rebuild a model, in evaluation mode.

    Raises:
        ModelError: Not a model folder, or a file is missing or of another shape.
        PlanError: The plan of a pruned one is damaged or does not fit.
    """
    return model_io.load_model(folder, device, _load_unet)


def _load_unet(kind: type[ModelMixin], folder: Path) -> nn.Module:
    if not (folder / PLAN).exists():
        return model_io.load_dense_unet(kind, folder)
    return load_pruned(kind, folder, load_plan(folder / PLAN))


def model_plan(folder: Path) -> Plan:
    """The plan that a pruned model's UNet came by.

    Raises:
        PlanError: The model is not pruned, or its plan is damaged.
    """
    return load_plan(folder / "unet" / PLAN)
