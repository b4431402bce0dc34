"""The models of the default run; where it has not been made, networks of the same shapes with fresh weights.

A checkout has the plan of the default run but not its models. Speed depends on shapes alone, so benchmarks
run all the same, and say in their output which models they had.
"""

from pathlib import Path

import torch
from harness import ROOT

from pelap.config.load import load_params
from pelap.config.rules import parts_of
from pelap.models.latent_diffusion import LatentDiffusion, ModelInfo, build_model, build_vae
from pelap.pipelines.pipeline_io import load_model
from pelap.surgery.apply import apply_plan
from pelap.surgery.plan import load_plan

RUN = ROOT / "results" / "default"
PLAN = RUN / "prune" / "plans" / "35.json"
FOLDERS = {
    "dense": RUN / "train" / "invariant" / "model",
    "pruned": RUN / "prune" / "models" / "35",
    "distilled": RUN / "distill" / "models" / "distilled-35",
}
IMAGE_SIZE = 32


def default_model(kind: str, given: Path | None, device: torch.device) -> tuple[LatentDiffusion, str]:
    """A model in evaluation mode, and what it is in words.

    Args:
        kind: ``dense``, ``pruned`` or ``distilled``.
        given: The folder that was asked for; None takes the default run's.
        device: Where it will compute.
    """
    folder = given or FOLDERS[kind]
    if given is None and not folder.is_dir():
        return _fresh(kind).to(device).eval(), "fresh weights in the shapes of the default run"
    name = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    return load_model(folder, device), str(name)


def _fresh(kind: str) -> LatentDiffusion:
    params = load_params(ROOT / "params.yaml", "score")
    variant = params.variants[params.score.variant]
    vae, unet = parts_of(variant, params.vae, params.unet)
    info = ModelInfo(
        name=kind,
        variant=variant,
        diffusion=params.diffusion,
        image_size=IMAGE_SIZE,
        dataset=params.dataset,
        seed=params.seed,
        sparsity_weight=variant.weight(params.lambda_),
        ema_decay=params.train.ema_decay,
    )
    torch.manual_seed(params.seed)
    model = build_model(info, build_vae(vae), unet)
    return model if kind == "dense" else model.with_unet(apply_plan(model.unet, load_plan(PLAN)), kind, 0.0)
