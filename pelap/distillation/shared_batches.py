"""Batches of distillation for several students: made once, and the teacher asked once about each."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from pelap.config import LossWeights
from pelap.core.device import autocast
from pelap.distillation.distill import Batches, NoisyBatch

KEPT_BYTES = 2 * 2**30
"""Training batches that do not fit into this any more are made anew for every student."""


class SharedBatches:
    """Keeps batches from when they are first asked for, so that the next student is given the same tensors.

    What a student sees does not depend on what is kept, to the last bit. Nobody may write into a batch.
    Those held out are kept in any case: they are few, and asked for again and again.

    Args:
        batches: What is kept.
        teacher: Whose predictions are kept with them; in evaluation mode, it must not change any more.
        precision: What students are trained in, see `pelap.core.device.autocast`; the teacher's too.
        limit: How many bytes of training batches to keep at most; 0 keeps none.
    """

    def __init__(self, batches: Batches, teacher: nn.Module, precision: str, limit: int = KEPT_BYTES) -> None:
        self._batches = batches
        self._teacher = teacher
        self._precision = precision
        self._room = limit
        self._kept: dict[int, NoisyBatch] = {}
        self._held_out: list[NoisyBatch] | None = None

    def seen_by(self, weights: LossWeights) -> Batches:
        """The batches for a student with these weights of its losses.

        With the teacher's prediction for one that is taught by it alone: for the features of the teacher's
        blocks it has to be run for each student anyhow.
        """
        return _Seen(self, asks=bool(weights.output_weight) and not weights.feature_weight)

    def from_step(self, step: int, asks: bool) -> Iterator[NoisyBatch]:
        """The endless batches from a step on, with the teacher's prediction for who asks."""
        made, position = self._batches(step), step
        for index in count(step):
            batch = self._kept.get(index)
            if batch is None:
                if position != index:  # behind batches that were kept, and not made again
                    made = self._batches(index)
                batch, position = next(made), index + 1
            if asks and batch.teacher_prediction is None:
                batch = self._taught(batch)
            self._keep(index, batch)
            yield batch

    def held_out(self, asks: bool) -> Iterator[NoisyBatch]:
        """The batches held out, likewise."""
        if self._held_out is None:
            self._held_out = list(self._batches.held_out())
        for index, batch in enumerate(self._held_out):
            if asks and batch.teacher_prediction is None:
                self._held_out[index] = self._taught(batch)
            yield self._held_out[index]

    @torch.no_grad()
    def _taught(self, batch: NoisyBatch) -> NoisyBatch:
        with autocast(batch.latents.device, self._precision):
            return replace(batch, teacher_prediction=batch.predict(self._teacher))

    def _keep(self, index: int, batch: NoisyBatch) -> None:
        """Put the batch in the place of what is kept of that step, if there is room for what is new."""
        old = self._kept.get(index)
        added = _num_bytes(batch) - (0 if old is None else _num_bytes(old))
        if added <= self._room:
            self._kept[index] = batch
            self._room -= added


@dataclass(frozen=True)
class _Seen:
    """The `Batches` that one student sees."""

    shared: SharedBatches
    asks: bool

    def __call__(self, step: int) -> Iterator[NoisyBatch]:
        return self.shared.from_step(step, self.asks)

    def held_out(self) -> Iterator[NoisyBatch]:
        return self.shared.held_out(self.asks)


def _num_bytes(batch: NoisyBatch) -> int:
    leaves = tree_leaves(batch)
    return sum(each.untyped_storage().nbytes() for each in leaves if isinstance(each, torch.Tensor))
