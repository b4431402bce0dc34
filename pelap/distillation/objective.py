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
a student that gives zeros has. That takes scale away; it does not make the terms equal. `Objective.shares`
says what each is of the whole, and docs/evaluation.md what was found.

``task`` is always computed, ``output`` wherever the teacher is run at all, ``feature`` only where it counts.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from pelap.config import LossWeights
from pelap.core.device import autocast
from pelap.core.errors import TrainingError
from pelap.diffusion.loss import noise_error
from pelap.distillation.batches import NoisyBatch
from pelap.surgery.operators import forward_hooks
from pelap.training.trainer import Losses

TERMS = ("task", "output", "feature")
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
    """Mean squared difference over the teacher's mean square: the scale of both does not count.

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
        loss = torch.stack(list(self.weighted(terms).values())).sum()
        return {"loss": loss, **terms}

    def weighted(self, terms: Losses) -> Losses:
        """The terms that count, each times its weight; ``loss`` is their sum."""
        weights = {name: getattr(self.weights, f"{name}_weight") for name in terms}
        # What does not count is left out, not multiplied by 0: it would be differentiated all the same.
        return {name: weight * terms[name] for name, weight in weights.items() if weight}

    def shares(self, network: nn.Module, batch: NoisyBatch, precision: str) -> dict[str, float]:
        """How much of the loss on a batch, and of its gradient, each term is that counts.

        A gradient is that of the weighted term with respect to all parameters of the network together, before
        it is clipped, and its size the Euclidean norm. Norms are compared, not directions: terms may pull
        against each other. It costs a forward pass, and a backward pass for every term; of one term alone the
        shares are known. The network stays as it is, with the ``grad`` of its parameters.

        Args:
            network: Of the student's structure; frozen parameters count like others.
            batch: What it is given.
            precision: Of the forward pass, as in the section `distill`.

        Returns:
            0 to 1: ``<term>_loss_share``, the weighted term over the sum of all, and
            ``<term>_gradient_share``, the norm of its gradient over the sum of the norms. Shares of a sum
            that is 0, as with a student equal to its teacher, or not finite are left out.
        """
        names = [name for name in TERMS if getattr(self.weights, f"{name}_weight")]
        if len(names) == 1:
            return {f"{names[0]}_{kind}_share": 1.0 for kind in ("loss", "gradient")}
        # Other leaves in the same memory: its own may be frozen, or known to a recorded step.
        leaves = {f"network.{name}": p.detach().requires_grad_() for name, p in network.named_parameters()}
        with torch.enable_grad(), autocast(batch.latents.device, precision):
            terms: Losses = functional_call(_WeightedTerms(self, network), leaves, (batch,))
        values = {name: term.item() for name, term in terms.items()}
        norms = {name: _gradient_norm(term, list(leaves.values())) for name, term in terms.items()}
        return _shares("loss", values) | _shares("gradient", norms)

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


class _WeightedTerms(nn.Module):
    """What `functional_call` needs: a module that holds the network whose parameters it is to exchange."""

    def __init__(self, objective: Objective, network: nn.Module) -> None:
        super().__init__()
        self.objective = objective
        self.network = network

    def forward(self, batch: NoisyBatch) -> Losses:
        return self.objective.weighted(self.objective._terms(self.network, batch))


def _shares(kind: str, parts: Mapping[str, float]) -> dict[str, float]:
    total = sum(parts.values())
    return (
        {f"{name}_{kind}_share": part / total for name, part in parts.items()} if 0 < total < math.inf else {}
    )


def _gradient_norm(term: torch.Tensor, parameters: Sequence[torch.Tensor]) -> float:
    if not term.requires_grad:
        return 0.0
    gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    norms = [gradient.norm() for gradient in gradients if gradient is not None]
    return float(torch.stack(norms).norm())
