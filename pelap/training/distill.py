"""Distillation: the pruned denoiser learns from the data and from the dense one (LD-Pruner, section 2.4)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional as F

from pelap.denoising import noise_error
from pelap.params import DistillParams
from pelap.training.loop import Losses, Optimisation, Progress, Trainer, cosine

BLOCK_LISTS = ("down_blocks", "mid_block", "up_blocks", "transformer_blocks")
"""Where diffusers' UNets and transformers keep their blocks."""


@dataclass(frozen=True)
class NoisyBatch:
    """What both networks are given, and what the data say to it."""

    latents: torch.Tensor  # (B, C, h, w) with noise
    timesteps: torch.Tensor  # (B,)
    target: torch.Tensor  # (B, C, h, w) what a network's first C channels should be
    support: torch.Tensor | None = None
    """(B or 1, C, 1, 1) ones for channels that are there; None: all."""
    conditions: Mapping[str, Any] = field(default_factory=dict)
    """What else a network is called with, by keyword."""

    def predict(self, network: nn.Module) -> torch.Tensor:
        """What a network makes of the batch, (B, C, h, w).

        It may have further channels, for a variance: no task loss is defined for them, and they are left out.
        """
        output: torch.Tensor = network(self.latents, timestep=self.timesteps, **self.conditions).sample
        return output[:, : self.target.shape[1]]


Batches: TypeAlias = Callable[[int], Iterator[NoisyBatch]]
"""From the number of a step to the endless batches from that step on, the same ones in every run."""


def matched_blocks(student: nn.Module, teacher: nn.Module) -> list[str]:
    """Names of the blocks whose outputs are compared: those at the top that both networks have.

    A block that was removed is none of them: what stands in its place is of another class, and cannot learn
    what the block did.
    """
    blocks: dict[str, nn.Module] = {}
    for name, child in teacher.named_children():
        if name in BLOCK_LISTS and isinstance(child, nn.ModuleList):
            blocks |= {f"{name}.{i}": block for i, block in enumerate(child)}
        elif name in BLOCK_LISTS or name.startswith("block_"):
            blocks[name] = child
    there = dict(student.named_modules())
    return [name for name, block in blocks.items() if type(there.get(name)) is type(block)]


class FeatureTap:
    """Keeps the latest output of named blocks while it is open."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        self.features: dict[str, torch.Tensor] = {}
        self._handles = [
            network.get_submodule(name).register_forward_hook(self._keeper(name)) for name in names
        ]

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
    taught: torch.Tensor,
    target: torch.Tensor,
    weights: tuple[float, float, float],
    support: torch.Tensor | None = None,
) -> Losses:
    """The three terms and their weighted sum ``loss``.

    Args:
        student: Block outputs of the pruned network.
        teacher: Block outputs of the dense network, from the same noisy latents.
        predicted: The student's prediction (B, C, h, w).
        taught: The teacher's.
        target: What the data say: the true noise, for networks that predict it.
        weights: Of task, output and feature.
        support: Which channels are there; see `NoisyBatch`.
    """
    task = noise_error(predicted, target, support).mean()
    output = noise_error(predicted, taught.float(), support).mean()
    pairs = [(student.features[name], teacher.features[name]) for name in teacher.features]
    feature = torch.stack([relative_distance(s, t) for s, t in pairs]).mean() if pairs else torch.zeros(())
    loss = weights[0] * task + weights[1] * output + weights[2] * feature
    return {"loss": loss, "task": task, "output": output, "feature": feature}


def distill(
    student: nn.Module,
    teacher: nn.Module,
    batches: Batches,
    params: DistillParams,
    device: torch.device,
    checkpoint: Path,
) -> tuple[nn.Module, Progress]:
    """Fine-tune a pruned denoiser with the dense one as teacher.

    Both stay in evaluation mode: a dropout would make them differ where their weights do not, and draw
    numbers that a resumed run does not repeat.

    Args:
        student: The pruned network, trained in place.
        teacher: The dense one.
        batches: What they are given.
        params: The section `distill`.
        device: Where to compute.
        checkpoint: Folder of the resume state, read and written.

    Returns:
        The network to keep, and the logged history.

    Raises:
        TrainingError: The loss is not finite.
        DataError: Fewer pictures than one batch.
    """
    teacher = teacher.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    teacher.requires_grad_(False).eval()
    trainer = Trainer(student.eval(), _optimisation(params), device, checkpoint, "distill")
    stream = batches(trainer.progress.step)
    weights = (params.task_weight, params.output_weight, params.feature_weight)
    names = matched_blocks(student, teacher)
    with ExitStack() as stack:
        taps = [stack.enter_context(FeatureTap(network, names)) for network in (student, teacher)]

        def losses(step: int) -> Losses:
            with torch.no_grad():
                batch = next(stream)
                taught = batch.predict(teacher)
            predicted = batch.predict(student)
            return distillation_losses(
                taps[0], taps[1], predicted, taught, batch.target, weights, batch.support
            )

        progress = trainer.run(losses, lambda step: None)
    return trainer.kept.eval(), progress


def _optimisation(params: DistillParams) -> Optimisation:
    return Optimisation(
        num_steps=params.steps,
        batch_size=params.batch_size,
        lr_at=lambda step: _learning_rate(params, step),
        weight_decay=params.weight_decay,
        grad_clip=params.grad_clip,
        ema_decay=params.ema_decay,
        precision=params.precision,
        log_every=params.log_every,
    )


def _learning_rate(params: DistillParams, step: int) -> float:
    """Linear warm-up, then cosine; counted in steps."""
    if step < params.warmup_steps:
        return params.lr * (step + 1) / params.warmup_steps
    return cosine(
        params.lr, params.lr_min, (step - params.warmup_steps) / (params.steps - params.warmup_steps)
    )
