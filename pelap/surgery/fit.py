"""Least-squares starts of replacements: what comes closest to the operator on the activations that it sees.

Closed form, from sums over every call of a denoising run, in double precision.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from pelap.core.rng import generator
from pelap.surgery.operators import Init, Operator, forward_hooks
from pelap.surgery.replacements import (
    Nearest,
    Projection,
    Replacement,
    ScaleShift,
    build_replacement,
    input_of,
)

Fittable = Projection | ScaleShift


def fit_replacements(
    unet: nn.Module,
    operators: Sequence[Operator],
    run: Callable[[], object],
    init: Init = "least_squares",
    seed: int = 0,
) -> dict[str, Replacement]:
    """The replacement of every operator, by its name, ready for `score_operators` and `apply_plan`.

    Args:
        unet: The denoiser.
        operators: From `find_operators` with the same `init`.
        run: Runs the denoiser on what it usually sees; called at most once.
        init: How projections and scales start; with ``parameter_free`` there are none.
        seed: Names the random start.
    """
    replacements = {}
    for operator in operators:
        module = unet.get_submodule(operator.name)
        replacements[operator.name] = build_replacement(operator.replacement, module, operator.name, unet)
    # The step that has something to start; where there is one, there is no other with parameters.
    steps = {name: [s for s in part.steps if isinstance(s, Fittable)] for name, part in replacements.items()}
    fittable = {name: found[0] for name, found in steps.items() if found}
    if init == "random":
        for name, step in fittable.items():
            # The name decides the numbers: another one would start replacements elsewhere.
            _start_at_random(step, generator(seed, f"stand-in {name}"))
    elif fittable:
        _fit(unet, {name: _Sums(replacements[name], step) for name, step in fittable.items()}, run)
    return replacements


@torch.no_grad()
def _start_at_random(step: Fittable, stream: torch.Generator) -> None:
    """Normal weights that keep the variance; no bias."""
    weight, bias = step.parameters()
    fan_in = weight[0].numel() if isinstance(step, Projection) else 1
    weight.copy_(torch.randn(weight.shape, generator=stream) / fan_in**0.5)
    bias.zero_()


@torch.no_grad()
def _fit(unet: nn.Module, sums: dict[str, "_Sums"], run: Callable[[], object]) -> None:
    def record(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        x = input_of(sums[name].replacement.argument, args, kwargs)
        sums[name].add(x, output[0] if isinstance(output, tuple) else output)

    with forward_hooks({name: unet.get_submodule(name) for name in sums}, record):
        run()
    for each in sums.values():
        each.solve()


class _Sums:
    """Normal equations of y = W x + b, or of y = w x + b for each channel by itself."""

    def __init__(self, replacement: Replacement, step: Fittable) -> None:
        self.replacement = replacement
        self.step = step
        self.gram: torch.Tensor | float = 0.0
        self.cross: torch.Tensor | float = 0.0

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        # Pooling and repeating commute with a step that works on each place by itself.
        for step in self.replacement.steps:
            if step is not self.step:
                x = step(x, y.shape[-2:]) if isinstance(step, Nearest) else step(x)
        rows, targets = self._rows(x), self._rows(y)
        ones = torch.ones_like(rows[:, :1])
        if isinstance(self.step, Projection):
            design = torch.cat([rows, ones], dim=1)  # (R, C + 1)
            self.gram = self.gram + design.T @ design
            self.cross = self.cross + design.T @ targets  # (C + 1, C')
        else:
            design = torch.stack([rows, ones.expand_as(rows)])  # (2, R, C)
            self.gram = self.gram + torch.einsum("irc,jrc->cij", design, design)
            self.cross = self.cross + torch.einsum("irc,rc->ci", design, targets).unsqueeze(-1)

    def _rows(self, x: torch.Tensor) -> torch.Tensor:
        """(R, C) in double precision."""
        last = self.step.channels_last
        return (x if last else x.movedim(1, -1)).flatten(0, -2).double()

    def solve(self) -> None:
        """Write the least-norm solution into the step, which stays as it is if nothing finite was seen."""
        gram, cross = self.gram, self.cross
        if not (isinstance(gram, torch.Tensor) and isinstance(cross, torch.Tensor)):
            return
        if not (gram.isfinite().all() and cross.isfinite().all()):
            return
        solution = torch.linalg.pinv(gram, hermitian=True) @ cross  # (C + 1, C') or (C, 2, 1)
        weight, bias = self.step.parameters()
        if isinstance(self.step, ScaleShift):
            solution = solution[..., 0].T
        weight.copy_(solution[:-1].T.reshape(weight.shape))
        bias.copy_(solution[-1])
