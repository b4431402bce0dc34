"""Distillation: the pruned UNet learns from the data and from the dense one (LD-Pruner, section 2.4)."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pelap.denoising import add_noise_to, noise_error
from pelap.diffusion import alphas_cumprod
from pelap.models.ldm import LatentDiffusion
from pelap.params import DistillParams
from pelap.training.joint import draw
from pelap.training.loop import Losses, Optimisation, Progress, Trainer, batches_from, cosine

BLOCK_LISTS = ("down_blocks", "mid_block", "up_blocks")
"""Where diffusers' UNets keep their blocks."""


def matched_blocks(student: nn.Module, teacher: nn.Module) -> list[str]:
    """Names of the blocks whose outputs are compared: those at the top that both networks have."""
    names = []
    for name, child in teacher.named_children():
        if name in BLOCK_LISTS:
            names += (
                [f"{name}.{i}" for i in range(len(child))] if isinstance(child, nn.ModuleList) else [name]
            )
        elif name.startswith("block_"):
            names.append(name)
    there = dict(student.named_modules())
    return [name for name in names if name in there]


class FeatureTap:
    """Keeps the latest output of named blocks while it is open."""

    def __init__(self, unet: nn.Module, names: Sequence[str]) -> None:
        self.features: dict[str, torch.Tensor] = {}
        self._handles = [unet.get_submodule(name).register_forward_hook(self._keeper(name)) for name in names]

    def _keeper(self, name: str) -> Any:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            # A down block gives (output, skips); the first is its output.
            self.features[name] = output[0] if isinstance(output, tuple) else output

        return keep

    def __enter__(self) -> "FeatureTap":
        return self

    def __exit__(self, *reason: object) -> None:
        for handle in self._handles:
            handle.remove()


def relative_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared difference over the teacher's mean square: no block dominates by its scale."""
    teacher = teacher.float()
    return F.mse_loss(student.float(), teacher) / teacher.square().mean().clamp_min(1e-12)


def distillation_losses(
    student: FeatureTap,
    teacher: FeatureTap,
    predicted: torch.Tensor,
    target: torch.Tensor,
    noise: torch.Tensor,
    weights: tuple[float, float, float],
    support: torch.Tensor | None = None,
) -> Losses:
    """The three terms and their weighted sum ``loss``.

    Args:
        student: Block outputs of the pruned UNet.
        teacher: Block outputs of the dense UNet, from the same noisy latents.
        predicted: The student's noise prediction (B, C, h, w).
        target: The teacher's.
        noise: The true noise.
        weights: Of task, output and feature.
        support: Which channels are there; see `Noisy`.
    """
    task = noise_error(predicted, noise, support).mean()
    output = noise_error(predicted, target.float(), support).mean()
    pairs = [(student.features[name], teacher.features[name]) for name in teacher.features]
    feature = torch.stack([relative_distance(s, t) for s, t in pairs]).mean() if pairs else torch.zeros(())
    loss = weights[0] * task + weights[1] * output + weights[2] * feature
    return {"loss": loss, "task": task, "output": output, "feature": feature}


def distill(
    student: LatentDiffusion,
    teacher: LatentDiffusion,
    images: torch.Tensor,
    params: DistillParams,
    seed: int,
    device: torch.device,
    checkpoint: Path,
) -> tuple[nn.Module, Progress]:
    """Fine-tune the student's UNet; autoencoder and mask are the teacher's and stay as they are.

    Args:
        student: The pruned model.
        teacher: The dense model.
        images: Training pictures (N, 3, H, W) uint8.
        params: The section `distill`.
        seed: Names every random number.
        device: Where to compute.
        checkpoint: Folder of the resume state, read and written.

    Returns:
        The UNet to keep, and the logged history.
    """
    how = Optimisation(
        num_steps=params.steps,
        batch_size=params.batch_size,
        lr_at=lambda step: _learning_rate(params, step),
        weight_decay=params.weight_decay,
        grad_clip=params.grad_clip,
        ema_decay=params.ema_decay,
        precision=params.precision,
        log_every=params.log_every,
    )
    teacher = teacher.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    teacher.requires_grad_(False).eval()
    trainer = Trainer(student.unet.train(), how, device, checkpoint, "distill")
    alphas = alphas_cumprod(teacher.info.diffusion).to(device)
    batches = batches_from(
        images.to(device),
        params.batch_size,
        seed,
        "distill-order",
        params.horizontal_flip,
        trainer.progress.step,
    )
    weights = (params.task_weight, params.output_weight, params.feature_weight)
    names = matched_blocks(student.unet, teacher.unet)
    with ExitStack() as stack:
        taps = [stack.enter_context(FeatureTap(unet, names)) for unet in (student.unet, teacher.unet)]

        def losses(step: int) -> Losses:
            pictures = next(batches)
            random = draw(teacher, len(pictures), seed, "distill-step", step)
            with torch.no_grad():
                latents = teacher.encode(pictures, random.posterior).latents
                gates = teacher.gates(latents)
                noisy = add_noise_to(teacher, latents, gates, random.noise, random.timesteps, alphas)
                target = teacher.unet(noisy.latents, random.timesteps).sample
            predicted = student.unet(noisy.latents, random.timesteps).sample
            return distillation_losses(
                taps[0], taps[1], predicted, target, random.noise, weights, noisy.support
            )

        progress = trainer.run(losses, lambda step: None)
    return trainer.kept.eval(), progress


def _learning_rate(params: DistillParams, step: int) -> float:
    """Linear warm-up, then cosine; counted in steps."""
    if step < params.warmup_steps:
        return params.lr * (step + 1) / params.warmup_steps
    return cosine(
        params.lr, params.lr_min, (step - params.warmup_steps) / (params.steps - params.warmup_steps)
    )
