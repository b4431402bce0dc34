"""Distillation: a denoiser is trained with the dense one as teacher."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn

from pelap.config import DistillParams, LossWeights
from pelap.core.device import autocast
from pelap.core.keys import Key, key
from pelap.data.dataset import ImageDataset
from pelap.distillation.batches import Batches, NoisyBatch
from pelap.distillation.objective import Objective
from pelap.surgery.plan import Plan
from pelap.training.parallel import train_alone
from pelap.training.trainer import LossFunction, Optimisation, Progress, Trainer, cosine, mean_losses

DISTANCE = "fd_effnet_lite0"  # the metric that `select: distance` goes by, the less the better
CRITERIA = {"last": None, "loss": "task", "distance": DISTANCE}  # by `select`: what is least at the step kept

Quality: TypeAlias = Callable[[nn.Module], Mapping[str, float]]
"""From a network in evaluation mode to metrics of what it makes, `DISTANCE` among them."""


class Distilled(NamedTuple):
    """What fine-tuning gave."""

    network: nn.Module  # the one to keep, in evaluation mode
    progress: Progress  # logged losses, and held-out ones from step 0 on
    kept_step: int  # after how many steps it was as it is kept


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
        checkpoint: Folder of the resume state, read and written. Of a training that is done it holds the end:
            calling again gives the same without training. None: nothing is kept.
        quality: Measured with the losses at every validation; `select: distance` needs it.
        label: Names the training in progress and errors.

    Raises:
        TrainingError: The loss is not finite, or there is none.
        DataError: Fewer pictures than one batch.
    """
    teacher = teacher.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    teacher.eval()
    how = Optimisation(params.steps, partial(_learning_rate, params), params, keep=CRITERIA[params.select])
    # A copy of a network that was frozen is frozen, and would not learn.
    trainer = Trainer(student.requires_grad_(True).eval(), how, device, checkpoint, label)
    objective = Objective(student, teacher, weights)

    losses: LossFunction = partial(objective, student)

    def after_step(step: int) -> None:
        if step % params.validate_every and step < params.steps:
            return
        network = trainer.current
        with torch.no_grad(), autocast(device, params.precision):
            row = held_out_losses(network, objective, batches)
            first = next(iter(batches.held_out()))
        trainer.demand_finite(row)
        row |= objective.shares(student, first, params.precision)
        if quality is not None:
            row |= quality(network)
            trainer.demand_finite(row)
        trainer.validated({"step": step, **row})

    if trainer.progress.step == 0:
        after_step(0)
    inputs = _inputs(batches(trainer.progress.step), objective, device, params.precision)
    train_alone(trainer.steps(inputs, lambda _: losses, after_step))
    trainer.save()
    return Distilled(trainer.kept.eval(), trainer.progress, trainer.kept_step)


def held_out_losses(network: nn.Module, objective: Objective, batches: Batches) -> dict[str, float]:
    """The terms of the loss on pictures that are not learnt from, as means over the pictures."""
    sized = ((len(batch.latents), objective.complete(batch)) for batch in batches.held_out())
    losses = mean_losses(partial(objective, network), sized)
    return {name: value for name, value in losses.items() if name != "loss"}


def training_key(
    student: nn.Module,
    plan: Plan | None,
    dataset: ImageDataset,
    params: DistillParams,
    weights: LossWeights,
    seed: int,
    **taught_by: Any,
) -> Key:
    """Of a training of a student: everything that its end depends on, with what the teacher is made of."""
    return key(
        student=student,
        plan=plan,
        training=params.model_dump(exclude={"students", "execution"}),
        losses=weights.model_dump(exclude={"skip"}),
        seed=seed,
        data=dataset.key,
        **taught_by,
    )


def _inputs(
    batches: Iterator[NoisyBatch], objective: Objective, device: torch.device, precision: str
) -> Iterator[NoisyBatch]:
    while True:
        with torch.no_grad():
            batch = next(batches)
        with autocast(device, precision):
            objective.complete(batch)
        yield batch


def _learning_rate(params: DistillParams, step: int) -> float:
    """Linear warm-up, then cosine; counted in steps."""
    warmup = params.warmup_steps
    if step < warmup:
        return params.lr * (step + 1) / warmup
    return cosine(params.lr, params.lr_min, (step - warmup) / (params.steps - warmup))
