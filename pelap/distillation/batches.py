"""What the networks of a distillation are given, made once for all students."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils._pytree import register_dataclass, tree_leaves

from pelap.diffusion.loss import noise_error

KEPT_BYTES = 2 * 2**30  # training batches that do not fit into this any more are made anew for every student


@dataclass
class NoisyBatch:
    """What both networks are given, and what the data say to it."""

    latents: torch.Tensor  # (B, C, h, w) with noise
    timesteps: torch.Tensor  # (B,)
    target: torch.Tensor  # (B, C, h, w) what a network's first C channels should be
    open_channels: torch.Tensor | None = None  # (B or 1, C, 1, 1) ones for channels that are there; None: all
    conditions: Mapping[str, Any] = field(default_factory=dict)  # what else a network is called with, by name
    teacher_prediction: torch.Tensor | None = None  # (B, C, h, w) of the teacher, where that is known already

    def predict(self, network: nn.Module) -> torch.Tensor:
        """What a network makes of the batch, (B, C, h, w).

        It may have further channels, for a variance: no task loss is defined for them, and they are left out.
        """
        output: torch.Tensor = network(self.latents, timestep=self.timesteps, **self.conditions).sample
        return output[:, : self.target.shape[1]]

    def task_loss(self, predicted: torch.Tensor) -> torch.Tensor:
        """Mean squared error of a prediction (B, C, h, w), over the channels that are there."""
        return noise_error(predicted, self.target, self.open_channels).mean()


register_dataclass(NoisyBatch)


class Batches(Protocol):
    """What networks are trained and judged on, the same in every run and for every student."""

    def __call__(self, step: int) -> Iterator[NoisyBatch]:
        """The endless batches from a step on."""

    def held_out(self) -> Iterable[NoisyBatch]:
        """The batches of pictures that are never learnt from, with the same noise at every call."""


class SharedBatches:
    """Keeps batches from when they are first asked for, so that the next student is given the same objects.

    What a student sees does not depend on what is kept, to the last bit. Nobody may write into a batch, save
    for the teacher's prediction, which is then known to the next student too. Of training batches `limit`
    bytes are kept at most; those held out in any case: they are few, and asked for again and again.
    """

    def __init__(self, batches: Batches, limit: int = KEPT_BYTES) -> None:
        self._batches = batches
        self._room = limit
        self._kept: dict[int, NoisyBatch] = {}
        self._held_out: list[NoisyBatch] | None = None

    def __call__(self, step: int) -> Iterator[NoisyBatch]:
        made, position = self._batches(step), step
        for index in count(step):
            batch = self._kept.get(index)
            if batch is None:
                if position != index:  # behind batches that were kept, and not made again
                    made = self._batches(index)
                batch, position = next(made), index + 1
                # With the teacher's prediction, which is as large as the target.
                leaves = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor)]
                num_bytes = sum(leaf.untyped_storage().nbytes() for leaf in (*leaves, batch.target))
                if num_bytes <= self._room:
                    self._kept[index] = batch
                    self._room -= num_bytes
            yield batch

    def held_out(self) -> list[NoisyBatch]:
        if self._held_out is None:
            self._held_out = list(self._batches.held_out())
        return self._held_out
