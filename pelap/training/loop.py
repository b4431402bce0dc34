"""The optimisation loop that joint training and distillation share: step, average, log, resume."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pelap.data.dataset import Picks, epoch_picks
from pelap.device import autocast, synchronise
from pelap.errors import TrainingError
from pelap.progress import progress
from pelap.seeding import generator
from pelap.training.checkpoint import load_checkpoint, save_checkpoint

CHECKPOINT_SECONDS = 15.0

Losses = dict[str, torch.Tensor]
"""Scalar losses by name; ``loss`` is the one that is minimised."""


@dataclass(frozen=True)
class Optimisation:
    """How to take steps."""

    num_steps: int
    batch_size: int
    lr_at: Callable[[int], float]
    weight_decay: float
    grad_clip: float
    ema_decay: float
    precision: str
    log_every: int
    select: str = "last"
    """Which weights to keep: ``last``, or ``best`` by the caller's validation."""
    lr_factors: Mapping[str, float] = field(default_factory=dict)
    """What `lr_at` is multiplied by for the parameters of a part, by the part's name."""


@dataclass
class Progress:
    """Where training stands; everything here survives an interruption."""

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)


def cosine(lr: float, lr_min: float, position: float) -> float:
    """Cosine from `lr` at position 0 down to `lr_min` at position 1."""
    return lr_min + (lr - lr_min) * (1 + math.cos(math.pi * position)) / 2


def steps_in_epoch(num_images: int, batch_size: int, limit: int | None) -> int:
    """Steps of an epoch: the whole batches that the pictures fill, or `limit` if that is fewer."""
    whole = max(1, num_images // batch_size)
    return min(limit or whole, whole)


def picks_from(
    num_images: int,
    batch_size: int,
    seed: int,
    purpose: str,
    flip: bool,
    step: int,
    device: torch.device,
    steps_per_epoch: int | None = None,
) -> Iterator[Picks]:
    """What endless training batches hold, starting with the one of `step`.

    The order of an epoch depends on (seed, purpose, epoch) alone, so a resumed run sees what an
    uninterrupted one would have seen. An epoch is all pictures, or the first `steps_per_epoch` batches of
    their order.
    """
    steps_per_epoch = steps_in_epoch(num_images, batch_size, steps_per_epoch)
    for epoch in count(step // steps_per_epoch):
        picks = epoch_picks(num_images, batch_size, generator(seed, purpose, epoch), flip, device)
        for index, chosen in enumerate(islice(picks, steps_per_epoch)):
            if epoch * steps_per_epoch + index >= step:
                yield chosen


class Trainer:
    """Minimises a loss over a module's trainable parameters.

    `model` is what is optimised; `current` is what it is worth now, its moving average where there is
    one; `kept` is what to use afterwards.
    """

    def __init__(
        self, model: nn.Module, how: Optimisation, device: torch.device, checkpoint: Path, label: str
    ) -> None:
        self.model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.how = how
        self.device = device
        self.checkpoint = checkpoint
        self.label = label
        if device.type == "cpu":
            _normalise_in_fp32(model)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            _parameter_groups(model, how.lr_factors),
            lr=how.lr_at(0),
            weight_decay=how.weight_decay,
            fused=device.type != "mps",
        )
        self.progress = Progress()
        self.average = self._moving_average() if how.ema_decay else None
        self.best = copy.deepcopy(model) if how.select == "best" else None
        load_checkpoint(self.checkpoint, self.state(), self.progress)

    @property
    def current(self) -> nn.Module:
        """The moving average of the weights, or the weights where there is none."""
        return self.average.module if self.average is not None else self.model

    @property
    def kept(self) -> nn.Module:
        """The weights to keep, by the rule `Optimisation.select`."""
        return self.best if self.best is not None else self.current

    def keep_current(self) -> None:
        """Note that the current weights are the best so far."""
        if self.best is not None:
            self.best.load_state_dict(self.current.state_dict())

    def state(self) -> dict[str, Any]:
        """The stateful parts, by the name they have in a checkpoint."""
        parts = {
            "model": self.model,
            "optimiser": self.optimiser,
            "average": self.average,
            "best": self.best,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def run(self, losses: Callable[[int], Losses], after_step: Callable[[int], None]) -> Progress:
        """Train to the end from wherever the checkpoint left off.

        Args:
            losses: Losses of a step, computed under autocast.
            after_step: Called with the number of steps done, for validation.

        Raises:
            TrainingError: A loss or a weight is not finite.
        """
        totals: dict[str, list[torch.Tensor]] = {}
        logged_at = saved_at = time.monotonic()
        state = self.progress
        with progress(self.label, self.how.num_steps, state.step) as report:
            while state.step < self.how.num_steps:
                self._step(losses, totals)
                if state.step % self.how.log_every == 0 or state.step == self.how.num_steps:
                    row = self._log(totals, time.monotonic() - logged_at)
                    report(state.step, f"loss {row['loss']:.4f}, {row['images_per_s']:.0f} images/s")
                    totals, logged_at = {}, time.monotonic()
                paused_at = time.monotonic()
                after_step(state.step)
                logged_at += time.monotonic() - paused_at  # validation is not training speed
                if not totals and time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                    self.save()
                    saved_at = time.monotonic()
        self._demand_finite_weights()
        return state

    def save(self) -> None:
        """Write the checkpoint that the next `Trainer` of the same configuration goes on from."""
        save_checkpoint(self.checkpoint, self.state(), self.progress)

    def demand_finite(self, loss: float) -> None:
        """Stop a run that has diverged.

        Raises:
            TrainingError: The loss is not finite.
        """
        if not math.isfinite(loss):
            raise TrainingError(
                f"{self.label}: the loss is not finite near step {self.progress.step}; "
                "lower lr (or set precision to fp32) and run again"
            )

    def _demand_finite_weights(self) -> None:
        # The losses were computed before the last update, which may have been the one too many.
        for tensor in self.kept.state_dict().values():
            self.demand_finite(float(tensor.float().sum()))

    def _step(self, losses: Callable[[int], Losses], totals: dict[str, list[torch.Tensor]]) -> None:
        step = self.progress.step
        for group in self.optimiser.param_groups:
            group["lr"] = self.how.lr_at(step) * group["lr_factor"]
        with autocast(self.device, self.how.precision):
            values = losses(step)
        self.optimiser.zero_grad(set_to_none=True)
        values["loss"].backward()
        nn.utils.clip_grad_norm_(self.parameters, self.how.grad_clip)
        self.optimiser.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        # Kept where they are computed: reading them here would wait for the device at every step.
        for name, value in values.items():
            totals.setdefault(name, []).append(value.detach())
        self.progress.step += 1

    def _moving_average(self) -> AveragedModel:
        """Exponential moving average of parameters and buffers.

        The decay rises from 0.1 so that a short run does not average its random start in.
        """

        @torch.no_grad()
        def update(averages: Any, currents: Any, num_averaged: Any) -> None:
            # Not `num_averaged`: reading it waits for the device.
            num = self.progress.step
            if averages[0].is_floating_point():
                weight = 1 - min(self.how.ema_decay, (1 + num) / (10 + num))
                torch._foreach_lerp_(averages, currents, weight)
            else:
                torch._foreach_copy_(averages, currents)

        average = AveragedModel(self.model, multi_avg_fn=update, use_buffers=True)
        return average.requires_grad_(False)

    def _log(self, totals: dict[str, list[torch.Tensor]], seconds: float) -> dict[str, float]:
        """Means over the steps since the last row that had the loss: phases have different ones."""
        synchronise(self.device)
        steps = len(totals["loss"])
        means = {name: float(torch.stack(values).float().mean()) for name, values in totals.items()}
        self.demand_finite(means["loss"])
        row = {
            "step": self.progress.step,
            **means,
            "lr": self.how.lr_at(self.progress.step - 1),
            "images_per_s": steps * self.how.batch_size / seconds,
        }
        self.progress.history.append(row)
        return row


def _parameter_groups(model: nn.Module, lr_factors: Mapping[str, float]) -> list[dict[str, Any]]:
    """Trainable parameters by the factor of their learning rate."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(lr_factors.get(name.split(".")[0], 1.0), []).append(parameter)
    return [{"params": parameters, "lr_factor": factor} for factor, parameters in groups.items()]


def _normalise_in_fp32(model: nn.Module) -> None:
    """Keep group norms out of bf16: on a CPU their backward pass is seven times slower in it."""

    def to_fp32(module: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (args[0].float(),)

    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_pre_hook(to_fp32)
