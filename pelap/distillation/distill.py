"""Distillation: the pruned denoiser learns from the data and from the dense one (LD-Pruner, section 2.4).

============  =====================================================================================
``task``      mean squared error of the prediction against what the data say: the loss of training
``output``    squared distance of the prediction to the teacher's, over the teacher's mean square
``feature``   the same of block outputs, as the mean over the blocks that both networks have
``loss``      their sum, each times its weight
============  =====================================================================================

LD-Pruner names the task and the two distances to the teacher; what is compared is as in BK-SDM (Kim et al.,
2023): the last output and those of the blocks. Plain squared distances differ by orders of magnitude from
block to block, so that a few decide; LAPTOP-Diff (Zhang et al., 2024) weights the terms by the norms of the
teacher's features. Here every distance is divided by the teacher's mean square: 0 is the teacher, 1 is what
a student that gives zeros has.

``task`` is always computed, ``output`` wherever the teacher is run at all, ``feature`` only where it counts.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import register_dataclass

from pelap.config import DistillParams, LossWeights
from pelap.core.device import autocast
from pelap.core.errors import TrainingError
from pelap.diffusion.loss import noise_error
from pelap.training.parallel import train_alone
from pelap.training.trainer import (
    Losses,
    Optimisation,
    Progress,
    Trainer,
    cosine,
)

BLOCK_LISTS = ("down_blocks", "mid_block", "up_blocks", "transformer_blocks")
"""Where diffusers' UNets and transformers keep their blocks."""


@dataclass(frozen=True)
class NoisyBatch:
    """What both networks are given, and what the data say to it."""

    latents: torch.Tensor  # (B, C, h, w) with noise
    timesteps: torch.Tensor  # (B,)
    target: torch.Tensor  # (B, C, h, w) what a network's first C channels should be
    open_channels: torch.Tensor | None = None
    """(B or 1, C, 1, 1) ones for channels that are there; None: all."""
    conditions: Mapping[str, Any] = field(default_factory=dict)
    """What else a network is called with, by keyword."""
    teacher_prediction: torch.Tensor | None = None
    """(B, C, h, w) what the teacher predicts, where that is known already."""

    def predict(self, network: nn.Module) -> torch.Tensor:
        """What a network makes of the batch, (B, C, h, w).

        It may have further channels, for a variance: no task loss is defined for them, and they are left out.
        """
        output: torch.Tensor = network(self.latents, timestep=self.timesteps, **self.conditions).sample
        return output[:, : self.target.shape[1]]


register_dataclass(NoisyBatch)


class Batches(Protocol):
    """What networks are trained and judged on, the same in every run and for every student."""

    def __call__(self, step: int) -> Iterator[NoisyBatch]:
        """The endless batches from a step on."""

    def held_out(self) -> Iterable[NoisyBatch]:
        """The batches of pictures that are never learnt from, with the same noise at every call."""


Quality: TypeAlias = Callable[[nn.Module], Mapping[str, float]]
"""From a network in evaluation mode to metrics of what it makes, `DISTANCE` among them."""

DISTANCE = "fd_effnet_lite0"
"""The metric that `select: distance` goes by, the less the better."""
CRITERIA = {"loss": "task", "distance": DISTANCE}
"""What is least at the step to keep, by `select`."""


class Distilled(NamedTuple):
    """What fine-tuning gave."""

    network: nn.Module
    """The one to keep, in evaluation mode."""
    progress: Progress
    """Logged losses, and held-out ones from step 0 on."""
    kept_step: int
    """After how many steps it was as it is kept."""


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


def relative_distance(
    student: torch.Tensor, teacher: torch.Tensor, open_channels: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean squared difference over the teacher's mean square: nothing dominates by its scale.

    Args:
        student: What is compared, of any shape; (B, C, h, w) where there is a support.
        teacher: What it should be.
        open_channels: Which channels are there, and counted; see `NoisyBatch`.
    """
    teacher = teacher.float()
    if open_channels is None:
        difference, size = F.mse_loss(student.float(), teacher), teacher.square().mean()
    else:
        nothing = torch.zeros_like(teacher)
        difference, size = (noise_error(each, teacher, open_channels).mean() for each in (student, nothing))
    return difference / size.clamp_min(1e-12)


class Objective:
    """The loss of a student; see the head of this module.

    Where neither `output_weight` nor `feature_weight` counts, the teacher is not run, and neither distance is
    among the losses. Without a `feature_weight`, `feature` is not among them, and the teacher is run only for
    batches that do not bring its prediction.

    Args:
        student: The network to be trained, or any of the same structure.
        teacher: The dense one.
        weights: Of the three terms.

    Raises:
        TrainingError: Features alone count, and there are none.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, weights: LossWeights) -> None:
        self.teacher = teacher if weights.output_weight or weights.feature_weight else None
        self.weights = weights
        self.names = matched_blocks(student, teacher) if weights.feature_weight else []
        if not (self.names or weights.task_weight or weights.output_weight):
            raise TrainingError(
                "feature_weight alone counts, but the plan left no block to compare; give task_weight or "
                "output_weight too"
            )

    def __call__(self, student: nn.Module, batch: NoisyBatch) -> Losses:
        """``loss`` and its terms for a network on a batch."""
        terms = self._terms(student, batch)
        weighted = {name: getattr(self.weights, f"{name}_weight") for name in terms}
        # What does not count is left out, not multiplied by 0: it would be differentiated all the same.
        loss = torch.stack([weight * terms[name] for name, weight in weighted.items() if weight]).sum()
        return {"loss": loss, **terms}

    def _terms(self, student: nn.Module, batch: NoisyBatch) -> Losses:
        if self.teacher is None:
            return {"task": _task(batch.predict(student), batch)}
        target, teacher_prediction = self._ask(self.teacher, batch)
        with FeatureTap(student, self.names) as learnt:
            predicted = batch.predict(student)
        terms = {
            "task": _task(predicted, batch),
            "output": relative_distance(predicted, target, batch.open_channels),
        }
        if self.weights.feature_weight:
            distances = [
                relative_distance(learnt.features[name], teacher_prediction[name])
                for name in teacher_prediction
            ]
            nothing = torch.zeros((), device=predicted.device)
            terms["feature"] = torch.stack(distances).mean() if distances else nothing
        return terms

    def _ask(self, teacher: nn.Module, batch: NoisyBatch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """The teacher's prediction, and its features where they count."""
        if batch.teacher_prediction is not None and not self.names:
            return batch.teacher_prediction, {}
        with FeatureTap(teacher, self.names) as tap, torch.no_grad():
            return batch.predict(teacher), tap.features


def _task(predicted: torch.Tensor, batch: NoisyBatch) -> torch.Tensor:
    return noise_error(predicted, batch.target, batch.open_channels).mean()


@torch.no_grad()
def held_out_losses(network: nn.Module, objective: Objective, batches: Batches) -> dict[str, float]:
    """The terms of the loss on pictures that are not learnt from, as means over the pictures."""
    sums: dict[str, float] = {}
    num_pictures = 0
    for batch in batches.held_out():
        num = len(batch.latents)
        num_pictures += num
        for name, value in objective(network, batch).items():
            sums[name] = sums.get(name, 0.0) + float(value) * num
    return {name: total / num_pictures for name, total in sums.items() if name != "loss"}


def distill(
    student: nn.Module,
    teacher: nn.Module,
    batches: Batches,
    params: DistillParams,
    weights: LossWeights,
    device: torch.device,
    checkpoint: Path | None = None,
    quality: Quality | None = None,
    label: str = "distill",
    show_progress: bool = True,
) -> Distilled:
    """Train a denoiser with the dense one as teacher.

    Both stay in evaluation mode: a dropout would make them differ where their weights do not, and draw
    numbers that a resumed run does not repeat.

    The weights to keep are chosen from the steps that were validated, the first of several that are equally
    good. Step 0 is one of them: for a network that starts from trained weights, no training may be the best
    that can be had.

    Args:
        student: Trained in place. It may have any start.
        teacher: The dense network; its weights stay as they are.
        batches: What they are given.
        params: The section `distill`; its `students` are not looked at.
        weights: Of the terms of the loss.
        device: Where to compute.
        checkpoint: Folder of the resume state, read and written; of a training that is done, it holds the
            end, and calling again gives the same without training. None: nothing is kept.
        quality: Measured with the losses at every validation; `select: distance` needs it.
        label: Names the training in progress and errors.
        show_progress: On standard error.

    Raises:
        TrainingError: The loss is not finite, or there is none.
        DataError: Fewer pictures than one batch.
    """
    teacher = teacher.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    teacher.requires_grad_(False).eval()
    # A copy of a network that was frozen is frozen, and would not learn.
    trainer = Trainer(
        student.requires_grad_(True).eval(), _optimisation(params), device, checkpoint, label, show_progress
    )
    objective = Objective(student, teacher, weights)
    validation = _Validation(trainer, objective, batches, params, quality)

    def losses(batch: NoisyBatch) -> Losses:
        return objective(student, batch)

    def after_step(step: int) -> None:
        if step % params.validate_every == 0 or step == params.steps:
            validation.add(step)

    if trainer.progress.step == 0:
        validation.add(0)
    inputs = _without_gradients(batches(trainer.progress.step))
    train_alone(trainer.steps(inputs, lambda _: losses, after_step))
    trainer.save()
    return Distilled(trainer.kept.eval(), trainer.progress, validation.kept_step())


def _without_gradients(batches: Iterator[NoisyBatch]) -> Iterator[NoisyBatch]:
    while True:
        with torch.no_grad():
            batch = next(batches)
        yield batch


class _Validation:
    """Looks at the weights that would be kept now, and notes which were best."""

    def __init__(
        self,
        trainer: Trainer,
        objective: Objective,
        batches: Batches,
        params: DistillParams,
        quality: Quality | None,
    ) -> None:
        self.trainer = trainer
        self.objective = objective
        self.batches = batches
        self.params = params
        self.quality = quality

    def add(self, step: int) -> None:
        """A row of `validation.csv`."""
        network = self.trainer.current
        with autocast(self.trainer.device, self.params.precision):
            row = held_out_losses(network, self.objective, self.batches)
        self.trainer.demand_finite(row)
        if self.quality is not None:
            row |= self.quality(network)
            self.trainer.demand_finite(row)
        self.trainer.progress.validation.append({"step": step, **row})
        if self.kept_step() == step:
            self.trainer.keep_current()

    def kept_step(self) -> int:
        """The step whose weights are kept, of those so far; the last one of all where nothing is chosen."""
        if self.params.select == "last":
            return self.params.steps
        criterion = CRITERIA[self.params.select]
        return int(min(self.trainer.progress.validation, key=lambda row: row[criterion])["step"])


def _optimisation(params: DistillParams) -> Optimisation:
    return Optimisation(
        num_steps=params.steps,
        batch_size=params.batch_size,
        lr_at=lambda step: _learning_rate(params, step),
        weight_decay=params.weight_decay,
        grad_clip=params.grad_clip,
        ema_decay=params.ema_decay,
        precision=params.precision,
        execution=params.execution,
        log_every=params.log_every,
        select="last" if params.select == "last" else "best",
    )


def _learning_rate(params: DistillParams, step: int) -> float:
    """Linear warm-up, then cosine; counted in steps."""
    if step < params.warmup_steps:
        return params.lr * (step + 1) / params.warmup_steps
    return cosine(
        params.lr, params.lr_min, (step - params.warmup_steps) / (params.steps - params.warmup_steps)
    )
