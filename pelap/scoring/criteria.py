"""Importances of operators that need no denoising run for each of them; the lowest goes first.

They are what LD-Pruner's score is compared with: chance, the size of the weights, a first-order estimate of
the loss, the error of a single step, and how little an operator changes what it is given.

A criterion is a function here, marked `criterion`, and its name in `CheapCriterion` (pelap/config).
It asks for what it needs by the names of its arguments, which are those of `Evidence`, and gives a number for
each operator by its name.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import nn

from pelap.core.calls import Call, capture_calls, copied
from pelap.core.errors import ModelError, finite
from pelap.core.rng import generator
from pelap.surgery.operators import Operator, beside, in_passes, replaced_on_slices
from pelap.surgery.replacements import Replacement, argument_of, input_of

MEND = "train it longer, mend it, or leave the criterion out"
NUM_CALLS = 5  # steps of the run that single-step criteria look at; also draws of noise for a gradient


@dataclass(frozen=True)
class Evidence:
    """What a criterion may ask for."""

    network: nn.Module  # the denoiser, in evaluation mode: no row depends on another
    operators: Sequence[Operator]
    replacements: Mapping[str, Replacement]
    run: Callable[[], object]  # a denoising run of some latents through the network
    loss: Callable[[torch.Generator], torch.Tensor] | None
    """Of training on these latents, noise and time steps drawn from the stream; None where not known."""
    rows_per_batch: int  # operators share a pass while the rows of all of them together are no more than this
    seed: int

    @cached_property
    def calls(self) -> list[Call]:
        """Of the network, spread over the run."""
        return record_calls(self.network, self.run, NUM_CALLS)

    @property
    def losses(self) -> list[Callable[[], torch.Tensor]]:
        """With the noise of one draw each."""
        assert self.loss is not None
        return [partial(self.loss, generator(self.seed, "taylor", draw)) for draw in range(NUM_CALLS)]


Criterion = TypeVar("Criterion", bound=Callable[..., dict[str, float]])
CRITERIA: dict[str, Callable[..., dict[str, float]]] = {}  # by name


def criterion(function: Criterion) -> Criterion:
    """Enter a function into `CRITERIA` under its own name."""
    CRITERIA[function.__name__] = function
    return function


def needs(name: str) -> list[str]:
    """What a criterion asks for of `Evidence`."""
    return list(inspect.signature(CRITERIA[name]).parameters)


def importances(name: str, evidence: Evidence) -> dict[str, float]:
    """Every operator's importance by a criterion."""
    return CRITERIA[name](**{part: getattr(evidence, part) for part in needs(name)})


def repeat(call: Call, network: nn.Module, copies: int = 1) -> torch.Tensor:
    """What a network gives (copies * B, ...), each of a call's B rows given `copies` times over.

    It gets tensors of its own, which it may write over.
    """
    rows = _rows(network, call)
    return output_of(network(*copied(call.args, rows, copies), **copied(call.kwargs, rows, copies)))


def output_of(value: Any) -> torch.Tensor:
    """The tensor in what a denoiser returns: itself, diffusers' ``.sample``, or the first of a tuple.

    Raises:
        ModelError: There is none.
    """
    if not isinstance(value, torch.Tensor):
        value = value[0] if isinstance(value, tuple) and value else getattr(value, "sample", None)
    if not isinstance(value, torch.Tensor):
        raise ModelError("criteria: the denoiser gives no tensor; let it return one, a tuple or `.sample`")
    return value


def record_calls(network: nn.Module, run: Callable[[], object], num_calls: int) -> list[Call]:
    """What `run` calls the network with, at `num_calls` calls spread evenly over the run, in their order.

    They are the first, the last and some between; the middle one if one is asked for, all if there are no
    more. See `pelap.core.calls.capture_calls`.

    Raises:
        ModelError: The network is not called.
    """
    calls = capture_calls(network, run)
    if not calls:
        raise ModelError(f"criteria: the run never calls {type(network).__name__}; give the one it uses")
    if num_calls == 1:
        return [calls[(len(calls) - 1) // 2]]
    wanted = min(num_calls, len(calls))
    return [calls[round(i * (len(calls) - 1) / max(wanted - 1, 1))] for i in range(wanted)]


@criterion
def random(operators: Sequence[Operator], seed: int) -> dict[str, float]:
    """Uniform numbers in 0..1, each operator's by its name, whatever other operators there are."""
    return {
        operator.name: float(torch.rand((), generator=generator(seed, f"random {operator.name}")))
        for operator in operators
    }


@criterion
@torch.no_grad()
def magnitude(network: nn.Module, operators: Sequence[Operator]) -> dict[str, float]:
    """L2 norm of all of an operator's parameters; infinite, never to be taken, where it has none."""
    return {operator.name: _finite(_norm(network.get_submodule(operator.name))) for operator in operators}


def _norm(module: nn.Module) -> float:
    squares = [float(parameter.double().square().sum()) for parameter in module.parameters()]
    return math.sqrt(sum(squares)) if squares else math.inf


@criterion
@torch.no_grad()
def block_similarity(
    network: nn.Module,
    calls: Sequence[Call],
    operators: Sequence[Operator],
    replacements: Mapping[str, Replacement],
) -> dict[str, float]:
    """How far the replacement's direction is from the operator's on the operator's own inputs, 0..2.

    Source: block influence of ShortGPT (Men et al. 2024), 1 - mean cosine of output and input over rows,
    with the replacement's value in the place of the input. A row is one of the batch, or the whole tensor
    where an operator's rows are others. One pass a call serves all operators.
    """
    batched = {operator.name: operator.batched for operator in operators}
    sums = {name: [0.0, 0] for name in batched}

    def compare(name: str, *outputs: torch.Tensor) -> None:
        rows = [y.double().reshape(len(y) if batched[name] else 1, -1) for y in outputs]  # (R, N)
        cosines = _cosines(*rows)
        sums[name][0] += float(cosines.sum())
        sums[name][1] += len(cosines)

    with beside(network, _of(operators, replacements), compare):
        for call in calls:
            repeat(call, network)
    return {name: _finite(1 - total / count if count else math.nan) for name, (total, count) in sums.items()}


def _of(operators: Sequence[Operator], replacements: Mapping[str, Replacement]) -> dict[str, Replacement]:
    return {operator.name: replacements[operator.name] for operator in operators}


def _cosines(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """(R,) of rows (R, N); two rows of zeros are the same."""
    norms = torch.linalg.vector_norm(x, dim=1), torch.linalg.vector_norm(y, dim=1)
    both_zero = (norms[0] == 0) & (norms[1] == 0)
    one_zero = (norms[0] == 0) ^ (norms[1] == 0)
    cosines: torch.Tensor = (x * y).sum(dim=1) / (norms[0] * norms[1])
    return cosines.masked_fill_(both_zero, 1.0).masked_fill_(one_zero, 0.0)


@criterion
@torch.no_grad()
def output_error(
    network: nn.Module,
    calls: Sequence[Call],
    operators: Sequence[Operator],
    replacements: Mapping[str, Replacement],
    rows_per_batch: int = 128,
) -> dict[str, float]:
    """Relative squared error of the denoiser's output with that operator alone replaced, mean over calls.

    ||out_mod - out||^2 / ||out||^2 over all rows of a call; infinite where it is not finite.

    Raises:
        ModelError: The output with nothing replaced is not finite, or all zero.
    """
    totals = {operator.name: 0.0 for operator in operators}
    for call in calls:
        rows, expected = _rows(network, call), repeat(call, network).double()
        size = float(finite(expected.square().sum(), "output_error: the denoiser's output", MEND))
        if size == 0:
            raise ModelError(f"output_error: the denoiser gives zeros, which no error is relative to; {MEND}")
        for group in in_passes(operators, max(1, rows_per_batch // rows)):
            with replaced_on_slices(network, _of(group, replacements), rows):
                made = repeat(call, network, len(group)).double()
            for operator, part in zip(group, made.chunk(len(group)), strict=True):
                totals[operator.name] += float((part - expected).square().sum()) / size
    return {name: _finite(total / len(calls) if calls else math.nan) for name, total in totals.items()}


@criterion
def taylor(
    network: nn.Module,
    losses: Sequence[Callable[[], torch.Tensor]],
    operators: Sequence[Operator],
    replacements: Mapping[str, Replacement],
) -> dict[str, float]:
    """First-order estimate of what each replacement does to the loss, from one pass and its gradient a loss.

    The sum over rows of the batch of |sum of dL/dy * (replacement(x) - y) over the row|, mean over losses. An
    operator's calls in a pass add up before the absolute value is taken; where its rows are not the batch's,
    so do all of its elements.

    Source: Molchanov et al. 2017 (equation 8), with the replacement's value in the place of zero.

    Parameters of the network may be frozen; their `grad` stays as it is.

    Raises:
        ModelError: A loss has no gradient with respect to the operators, or is not finite.
    """
    batched = {operator.name: operator.batched for operator in operators}
    totals = dict.fromkeys(batched, 0.0)
    gates: dict[tuple[str, int], torch.Tensor] = {}

    def blend(name: str, y: torch.Tensor, instead: torch.Tensor) -> torch.Tensor | None:
        if not torch.is_grad_enabled():
            return None  # of a pass that the loss does not depend on
        key = name, len(y) if batched[name] else 1
        if key not in gates:
            kind = torch.promote_types(y.dtype, torch.float32)
            gates[key] = torch.zeros(key[1], dtype=kind, device=y.device, requires_grad=True)
        blended: torch.Tensor = _Blend.apply(y, gates[key], instead - y.detach())
        return blended

    for loss in losses if operators else ():
        gates.clear()
        with torch.enable_grad(), beside(network, _of(operators, replacements), blend):
            value = loss()
        finite(value.detach(), "taylor: the loss", MEND)
        for name, slope in _slopes(value, gates):
            totals[name] += float(slope.abs().sum())
    return {name: _finite(total / len(losses) if losses else math.nan) for name, total in totals.items()}


def _slopes(
    loss: torch.Tensor, gates: Mapping[tuple[str, int], torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Gradients of the gates that count; those of parameters are neither computed nor added to."""
    inputs = list(gates.values())
    found = torch.autograd.grad(loss, inputs, allow_unused=True) if inputs and loss.requires_grad else ()
    slopes = [(name, slope) for (name, _), slope in zip(gates, found, strict=False) if slope is not None]
    if not slopes:
        raise ModelError("taylor: a loss is without gradient; let it run the network, and not in no_grad")
    yield from slopes


class _Blend(torch.autograd.Function):
    """y + gate * change at gate = 0, gate being (R,) for rows of y, with the gradient of both.

    Not written as that sum, which would be without value where the change is not finite.
    """

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, gate: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, change)
        return y.clone()  # the network may write over what it gets

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        (grad,) = grads
        gate, change = ctx.saved_tensors
        slope = (grad.to(gate.dtype) * change.to(gate.dtype)).reshape(len(gate), -1).sum(dim=1)
        return grad, slope, None


def _rows(network: nn.Module, call: Call) -> int:
    """Rows of the batch that a network is called with."""
    return len(input_of(argument_of(network), call.args, call.kwargs))


def _finite(value: float) -> float:
    """Infinite where a value is not a number: never to be taken."""
    return value if math.isfinite(value) else math.inf
