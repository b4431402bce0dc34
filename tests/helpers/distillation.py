"""Students and teachers that are small enough for tests."""

from pathlib import Path
from typing import Any

import torch
from tiny import tiny_dataset, tiny_params
from torch import nn

from pelap.config import DistillParams, LossWeights, VariantParams
from pelap.distillation.batches import ModelBatches
from pelap.distillation.distill import Distilled, Quality, distill
from pelap.models.latent_diffusion import LatentDiffusion

CPU = torch.device("cpu")
MASKED = VariantParams(sparsity_key="lambda", normalise="before_mask", decoder_input="masked")
TOPK = VariantParams(gate="topk", k=2, adaptive=False, sparsity_key="seed", decoder_input="masked")
QUALITY = {"num_images": 4, "num_reference": 8, "sampler": {"kind": "ddim", "steps": 2}}

Weights = dict[str, torch.Tensor]


def weights(task: float = 0.0, output: float = 0.0, feature: float = 0.0) -> LossWeights:
    return LossWeights(task_weight=task, output_weight=output, feature_weight=feature)


ALL = weights(1.0, 1.0, 1.0)


def state_of(network: nn.Module) -> Weights:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def shaken(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network with every parameter moved, as if it had been trained."""
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=stream) + 0.01)
    return network


def distill_params(**overrides: Any) -> DistillParams:
    """The section `distill`."""
    return tiny_params(**{f"distill__{name}": value for name, value in overrides.items()}).distill


def batches_for(teacher: LatentDiffusion, params: DistillParams, **options: Any) -> ModelBatches:
    return ModelBatches(teacher, tiny_dataset(), params, 0, CPU, **options)


def train(
    student: nn.Module,
    teacher: LatentDiffusion,
    checkpoint: Path,
    how: LossWeights = ALL,
    measure: Quality | None = None,
    **overrides: Any,
) -> Distilled:
    params = distill_params(**overrides)
    return distill(student, teacher.unet, batches_for(teacher, params), params, how, CPU, checkpoint, measure)


def count_calls(network: nn.Module) -> list[int]:
    """The size of every batch that a network is called with from now on."""
    sizes: list[int] = []
    network.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    return sizes
