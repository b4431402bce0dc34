"""The optimisation loop that joint training and distillation share: step, average, log, resume."""

import copy
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import compress, count, islice
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from pelap.config import DistillParams, TrainParams
from pelap.core.device import NORMS_CRASH, ask_gradients_of_norms, autocast, normalise_in_fp32
from pelap.core.errors import TrainingError, finite
from pelap.core.files import one_line
from pelap.core.graphs import Graphed, Tree
from pelap.core.rng import generator
from pelap.core.terminal import progress
from pelap.data.dataset import BatchIndices, epoch_indices
from pelap.training.checkpoint import load_checkpoint, save_checkpoint

CHECKPOINT_SECONDS = 15.0

Losses = dict[str, torch.Tensor]  # scalar losses by name; ``loss`` is the one that is minimised
LossFunction: TypeAlias = Callable[[Any], Losses]
"""Losses of what a step is given, a tree of tensors. All that changes from step to step is in there."""


@dataclass(frozen=True)
class Optimisation:
    """How to take steps."""

    num_steps: int
    lr_at: Callable[[int], float]
    params: TrainParams | DistillParams  # batch size, weight decay, moving average, execution and so on
    keep: str | None = None
    """Of the weights that were validated, those are kept at which this figure is least; None: the last."""
    keep_after: int = -1  # weights of steps up to this one are not kept
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


@torch.no_grad()
def mean_losses(losses_of: LossFunction, batches: Iterable[tuple[int, Tree]]) -> dict[str, float]:
    """Losses of batches as means over their pictures; every batch stands beside the number of these."""
    sizes: list[int] = []
    found: dict[str, list[torch.Tensor]] = {}
    for size, batch in batches:
        sizes.append(size)
        for name, value in losses_of(batch).items():
            found.setdefault(name, []).append(value.clone())  # the next replay writes into the same tensor
    return {
        name: sum(value * size for value, size in zip(torch.stack(values).tolist(), sizes, strict=True))
        / sum(sizes)
        for name, values in found.items()
    }


def indices_from(
    num_images: int,
    batch_size: int,
    seed: int,
    purpose: str,
    flip: bool,
    step: int,
    steps_per_epoch: int | None = None,
) -> Iterator[BatchIndices]:
    """What endless training batches hold, starting with the one of `step`; on the CPU.

    The order of an epoch depends on (seed, purpose, epoch) alone, so a resumed run sees what an
    uninterrupted one would have seen. An epoch is all pictures, or the first `steps_per_epoch` batches of
    their order.
    """
    steps_per_epoch = steps_in_epoch(num_images, batch_size, steps_per_epoch)
    for epoch in count(step // steps_per_epoch):
        indices = epoch_indices(num_images, batch_size, generator(seed, purpose, epoch), flip)
        for index, chosen in enumerate(islice(indices, steps_per_epoch)):
            if epoch * steps_per_epoch + index >= step:
                yield chosen


class Trainer:
    """Minimises a loss over a module's trainable parameters.

    `model` is what is optimised; `current` is what it is worth now, its moving average where there is
    one; `kept` is what to use afterwards.
    """

    def __init__(
        self, model: nn.Module, how: Optimisation, device: torch.device, checkpoint: Path | None, label: str
    ) -> None:
        self.model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.how = how
        self.device = device
        self.checkpoint = checkpoint
        self.label = label
        if device.type == "cpu":
            normalise_in_fp32(model)
            if NORMS_CRASH:
                ask_gradients_of_norms(model)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            _parameter_groups(model, how.lr_factors),
            lr=how.lr_at(0),
            weight_decay=how.params.weight_decay,
            fused=device.type != "mps",
            capturable=device.type == "cuda",
        )
        for group in self.optimiser.param_groups:
            group["lr"] = self._number(group["lr"])
        self.progress = Progress()
        self.average = copy.deepcopy(model).requires_grad_(False) if how.params.ema_decay else None
        self.ema_weight = torch.zeros((), device=device)
        self.best = copy.deepcopy(model) if how.keep is not None else None
        self._recorded: tuple[LossFunction, Graphed[Losses]] | None = None
        self._compiles = how.params.execution == "compiled"
        if checkpoint is not None:
            load_checkpoint(checkpoint, self.state(), self.progress)

    @property
    def current(self) -> nn.Module:
        """The moving average of the weights, or the weights where there is none."""
        return self.average if self.average is not None else self.model

    @property
    def kept(self) -> nn.Module:
        """The weights to keep, by the rule `Optimisation.keep`."""
        return self.best if self.best is not None else self.current

    @property
    def kept_step(self) -> int:
        """After how many steps the weights were as they are kept: of several that are as good, the first."""
        rows = [row for row in self.progress.validation if row["step"] > self.how.keep_after]
        if self.how.keep is None or not rows:
            return self.how.num_steps
        figure = self.how.keep
        return int(min(rows, key=lambda row: row[figure])["step"])

    def validated(self, row: dict[str, float]) -> None:
        """Note what the current weights, of the step in the row, give on data that they do not learn from."""
        self.progress.validation.append(row)
        if self.best is not None and self.kept_step == row["step"]:
            self.best.load_state_dict(self.current.state_dict())

    def state(self) -> dict[str, Any]:
        """The stateful parts, by the name they have in a checkpoint."""
        parts = {"model": self.model, "optimiser": self.optimiser, "average": self.average, "best": self.best}
        return {name: part for name, part in parts.items() if part is not None}

    def steps(
        self,
        inputs: Iterator[Tree],
        losses_at: Callable[[int], LossFunction],
        after_step: Callable[[int], None],
    ) -> Generator[None, None, None]:
        """Train to the end from wherever the checkpoint left off; yields before the first step, after each.

        Args:
            inputs: What the steps are given, from the first one to be taken on.
            losses_at: The losses of a step, computed under autocast: the same function for as long as nothing
                but what it is given changes.
            after_step: Called with the number of steps done, for validation.

        Raises:
            TrainingError: A loss or a weight is not finite.
        """
        yield
        logged_at = saved_at = time.monotonic()
        state, totals = self.progress, _Totals()
        if state.step >= self.how.num_steps:
            print(f"{self.label}: was finished before the interruption, and is kept")
        with progress(self.label, self.how.num_steps, state.step) as report:
            while state.step < self.how.num_steps:
                totals.add(self._step(losses_at(state.step), next(inputs)))
                if state.step % self.how.params.log_every == 0 or state.step == self.how.num_steps:
                    row = self._log(totals, logged_at)
                    report(state.step, f"loss {row['loss']:.4f}, {row['images_per_s']:.0f} images/s")
                    totals, logged_at = _Totals(), time.monotonic()
                paused_at = time.monotonic()
                after_step(state.step)
                logged_at += time.monotonic() - paused_at  # validation is not training speed
                if not totals.num_steps and time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                    self.save()
                    saved_at = time.monotonic()
                yield
        self._recorded = None  # with the memory of its graph
        # The losses were computed before the last update, which may have been the one too many.
        for tensor in self.kept.state_dict().values():
            self.demand_finite({"weights": float(tensor.float().sum())})

    def save(self) -> None:
        """Write the checkpoint that the next `Trainer` of the same configuration goes on from."""
        if self.checkpoint is not None:
            save_checkpoint(self.checkpoint, self.state(), self.progress)

    def demand_finite(self, values: Mapping[str, float]) -> None:
        """Stop a run that has diverged: raise a `TrainingError` if a figure, by its name, is not finite."""
        for name, value in values.items():
            what = f"{self.label}: the loss is not finite near step {self.progress.step}: {name}"
            finite(value, what, "lower lr (or set precision to fp32) and run again", TrainingError)

    def _step(self, losses: LossFunction, inputs: Tree) -> Losses:
        """Take a step; its losses stay where they are computed, for reading them waits for the device."""
        step = self.progress.step
        for group in self.optimiser.param_groups:
            lr = self.how.lr_at(step) * group["lr_factor"]
            group["lr"] = group["lr"].fill_(lr) if isinstance(group["lr"], torch.Tensor) else lr
        # Rises from 0.1, so that a short run does not average its random start in.
        self.ema_weight.fill_(1 - min(self.how.params.ema_decay, (1 + step) / (10 + step)) if step else 1.0)
        values = self._values(losses, inputs)
        self.progress.step += 1
        return values

    def _values(self, losses: LossFunction, inputs: Tree) -> Losses:
        """Of a step; where it cannot be compiled, nothing of it has been done, and it is taken as it is."""
        if self._recorded is None or self._recorded[0] != losses:
            self._recorded = (losses, self._graphed(losses))
        try:
            return self._recorded[1](inputs)
        except Exception as error:
            if not self._compiles or not _is_of_a_compiler(error):
                raise
            reason = one_line(error)[:100]
            print(f"{self.label}: steps run as they are: torch.compile fails here ({reason})")
            self._compiles = False
            self._recorded = (losses, self._graphed(losses))
            return self._recorded[1](inputs)

    def _graphed(self, losses: LossFunction) -> Graphed[Losses]:
        """A whole step on these losses, from its inputs to the moving average, without Python if possible."""
        if self._compiles:
            losses = torch.compile(losses, dynamic=False)
        record = self.how.params.execution != "eager"
        return Graphed(partial(self._advance, losses), self.device, record)

    def _advance(self, losses: LossFunction, inputs: Tree) -> Losses:
        with autocast(self.device, self.how.params.precision):
            values = losses(inputs)
        self.optimiser.zero_grad(set_to_none=True)
        values["loss"].backward()
        nn.utils.clip_grad_norm_(self.parameters, self.how.params.grad_clip)
        self.optimiser.step()
        if self.average is not None:
            _move_towards(self.average, self.model, self.ema_weight)
        return {name: value.detach() for name, value in values.items()}

    def _log(self, totals: "_Totals", logged_at: float) -> dict[str, float]:
        """A row of `history.csv`: means over the steps since the last one."""
        means = totals.means()  # waits for the device: the clock is read afterwards
        self.demand_finite(means)
        row = {
            "step": self.progress.step,
            **means,
            "lr": self.how.lr_at(self.progress.step - 1),
            "images_per_s": totals.num_steps * self.how.params.batch_size / (time.monotonic() - logged_at),
        }
        self.progress.history.append(row)
        return row

    def _number(self, value: float) -> Any:
        """A number that changes from step to step, as a recorded step can read it."""
        return torch.tensor(value, device=self.device) if self.device.type == "cuda" else value


def _is_of_a_compiler(error: Exception) -> bool:
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "triton"))


class _Totals:
    """Sums of losses, kept on their device; phases of a training have different ones."""

    def __init__(self) -> None:
        self.num_steps = 0
        self._sums: Losses = {}
        self._counts: dict[str, int] = {}

    def add(self, losses: Losses) -> None:
        """Add those of a step."""
        for name, value in losses.items():
            self._sums.setdefault(name, torch.zeros((), device=value.device))
            self._counts[name] = self._counts.get(name, 0) + 1
        torch._foreach_add_([self._sums[name] for name in losses], list(losses.values()))
        self.num_steps += 1

    def means(self) -> dict[str, float]:
        """Each over the steps that had it."""
        return {name: float(total) / self._counts[name] for name, total in self._sums.items()}


@torch.no_grad()
def _move_towards(average: nn.Module, model: nn.Module, weight: torch.Tensor) -> None:
    """Move parameters and buffers a part of the way, 0 to 1; whole numbers are copied."""
    kept, current = ([*module.parameters(), *module.buffers()] for module in (average, model))
    floats = [tensor.is_floating_point() for tensor in kept]
    there, here = (list(compress(tensors, floats)) for tensors in (current, kept))
    distances = torch._foreach_sub(there, here)
    torch._foreach_mul_(distances, weight)
    torch._foreach_add_(here, distances)
    for old, new, is_float in zip(kept, current, floats, strict=True):
        if not is_float:
            old.copy_(new)


def _parameter_groups(model: nn.Module, lr_factors: Mapping[str, float]) -> list[dict[str, Any]]:
    """Trainable parameters by the factor of their learning rate."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(lr_factors.get(name.split(".")[0], 1.0), []).append(parameter)
    return [{"params": parameters, "lr_factor": factor} for factor, parameters in groups.items()]
