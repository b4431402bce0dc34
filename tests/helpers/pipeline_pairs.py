"""Pipelines with a pruned copy, and data for them, in folders."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, DiTTransformer2DModel
from tiny import tiny_dataset, tiny_params
from tiny_pipelines import awake, tiny_ddim, tiny_dit, tiny_ldm, tiny_stable_diffusion

from pelap.config import Params
from pelap.data.dataset import ImageDataset, save_dataset
from pelap.distillation.pipeline_distillation import PipelineBatches
from pelap.pipelines.pipeline_io import save_pipeline
from pelap.surgery.apply import apply_plan
from pelap.surgery.plan import plan_from_json

CPU = torch.device("cpu")


def dit_of_two_classes() -> DiffusionPipeline:
    pipe = tiny_dit()
    config = {name: value for name, value in pipe.transformer.config.items() if not name.startswith("_")}
    pipe.transformer = awake(DiTTransformer2DModel(**(config | {"num_embeds_ada_norm": 2})))
    return pipe


KINDS = {
    "ddim": tiny_ddim,
    "ldm": tiny_ldm,
    "stable_diffusion": tiny_stable_diffusion,
    "dit": dit_of_two_classes,
}

SIDES = {"ddim": 8}

REMOVED = {
    "unet": ["mid_block.resnets.0", "down_blocks.1.resnets.0"],
    "transformer": ["transformer_blocks.0.attn1"],
}


def part_of(pipe: DiffusionPipeline) -> str:
    return "transformer" if "transformer" in pipe.components else "unet"


def denoiser(pipe: DiffusionPipeline) -> torch.nn.Module:
    network: torch.nn.Module = getattr(pipe, part_of(pipe))
    return network


def save_pair(folder: Path, kind: str, names: list[str] | None = None) -> tuple[Path, Path]:
    """The dense pipeline's folder and the pruned one's."""
    pipe = KINDS[kind]()
    save_pipeline(pipe, folder / "dense")
    removed = REMOVED[part_of(pipe)] if names is None else names
    plan = plan_from_json({"operators": removed}, "test")
    setattr(pipe, part_of(pipe), apply_plan(denoiser(pipe), plan))
    save_pipeline(pipe, folder / "pruned", plan)
    return folder / "dense", folder / "pruned"


def save_data(folder: Path, dataset: ImageDataset) -> Path:
    save_dataset(dataset, folder / "photos.safetensors")
    return folder


def dataset_for(kind: str) -> ImageDataset:
    return tiny_dataset(num_train=64, side=SIDES.get(kind, 16))


def batches_of(
    pipe: DiffusionPipeline, dataset: ImageDataset | None = None, **overrides: Any
) -> PipelineBatches:
    return PipelineBatches(pipe, dataset or tiny_dataset(side=16), tiny_params(**overrides).distill, 0)


def distillation_params(**overrides: Any) -> Params:
    quick = {
        "distill__steps": 30,
        "distill__lr": 2e-3,
        "distill__warmup_steps": 2,
        "distill__ema_decay": 0.0,
        "distill__log_every": 1,
        "distill__batch_size": 16,
    }
    return tiny_params(**(quick | overrides))


def student_of(**weights: float) -> dict[str, dict[str, Any]]:
    """The section `distill.students` with one student, whose other weights are 0."""
    none = dict.fromkeys(("task_weight", "output_weight", "feature_weight"), 0.0)
    return {"one": {"start": "pruned", **none, **weights}}
