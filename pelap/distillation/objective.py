"""The loss of distillation: from the data and from the dense network (LD-Pruner, section 2.4).

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

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pelap.config import LossWeights
from pelap.core.errors import TrainingError
from pelap.diffusion.loss import noise_error
from pelap.distillation.batches import NoisyBatch
from pelap.surgery.operators import forward_hooks
from pelap.training.trainer import Losses

BLOCK_LISTS = ("down_blocks", "mid_block", "up_blocks", "transformer_blocks")  # diffusers' names


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


@contextmanager
def block_outputs(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """The latest output of each named block, while the block of code lasts."""
    found: dict[str, torch.Tensor] = {}

    def keep(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        # A down block gives (output, skips); the first is its output.
        found[name] = output[0] if isinstance(output, tuple) else output

    with forward_hooks({name: network.get_submodule(name) for name in names}, keep):
        yield found


def relative_distance(
    student: torch.Tensor, teacher: torch.Tensor, open_channels: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean squared difference over the teacher's mean square: nothing dominates by its scale.

    Of any shape; (B, C, h, w) where `open_channels` says which channels are counted, as in `NoisyBatch`.
    """
    teacher = teacher.float()
    if open_channels is None:
        difference, size = F.mse_loss(student.float(), teacher), teacher.square().mean()
    else:
        nothing = torch.zeros_like(teacher)
        difference, size = (noise_error(each, teacher, open_channels).mean() for each in (student, nothing))
    return difference / size.clamp_min(1e-12)


class Objective:
    """The loss of a student, or of any network of its structure; see the head of this module.

    Where neither `output_weight` nor `feature_weight` counts, the teacher is not run, and neither distance is
    among the losses. Without a `feature_weight`, `feature` is not among them, and the teacher is run only for
    batches that do not bring its prediction.

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

    @torch.no_grad()
    def complete(self, batch: NoisyBatch) -> NoisyBatch:
        """The batch, which has the teacher's prediction then, if that is all that it is asked for.

        For features of its blocks the teacher has to be run for each student anyhow.
        """
        if self.teacher is not None and not self.weights.feature_weight and batch.teacher_prediction is None:
            batch.teacher_prediction = batch.predict(self.teacher)
        return batch

    def __call__(self, student: nn.Module, batch: NoisyBatch) -> Losses:
        """``loss`` and its terms for a network on a batch."""
        terms = self._terms(student, batch)
        weighted = {name: getattr(self.weights, f"{name}_weight") for name in terms}
        # What does not count is left out, not multiplied by 0: it would be differentiated all the same.
        loss = torch.stack([weight * terms[name] for name, weight in weighted.items() if weight]).sum()
        return {"loss": loss, **terms}

    def _terms(self, student: nn.Module, batch: NoisyBatch) -> Losses:
        if self.teacher is None:
            return {"task": batch.task_loss(batch.predict(student))}
        if batch.teacher_prediction is not None and not self.names:
            target, wanted = batch.teacher_prediction, {}
        else:
            with block_outputs(self.teacher, self.names) as wanted, torch.no_grad():
                target = batch.predict(self.teacher)
        with block_outputs(student, self.names) as learnt:
            predicted = batch.predict(student)
        terms = {
            "task": batch.task_loss(predicted),
            "output": relative_distance(predicted, target, batch.open_channels),
        }
        if self.weights.feature_weight:
            distances = [relative_distance(learnt[name], wanted[name]) for name in wanted]
            nothing = torch.zeros((), device=predicted.device)
            terms["feature"] = torch.stack(distances).mean() if distances else nothing
        return terms
