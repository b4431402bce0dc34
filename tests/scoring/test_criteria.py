"""Importances are what their formulas say, of every network, which is left as it was found."""

import copy
import math
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from tiny_networks import CASES, Case, awake
from torch import nn
from torch.nn import functional as F

from pelap.core.calls import Call
from pelap.core.errors import ModelError
from pelap.scoring import criteria
from pelap.scoring.criteria import record_calls
from pelap.surgery.fit import fit_replacements
from pelap.surgery.operators import Operator, forward_hooks, swapped_modules
from pelap.surgery.replacements import Replacement, ReplacementSpec, argument_of, input_of, output_size

ROWS = 3
SINGLE = ("convolution", "linear", "normalisation", "activation")
"""Kinds of operators that take one tensor and give one."""


class Ready(NamedTuple):
    """A network with everything that its criteria take."""

    case: Case
    operators: list[Operator]
    replacements: dict[str, Replacement]
    calls: list[Call]

    @property
    def network(self) -> nn.Module:
        return self.case.network

    def losses(self) -> list[Callable[[], torch.Tensor]]:
        """Mean over rows of what depends on each row alone, at the calls' own inputs."""
        return [partial(mean_loss, self.network, call) for call in self.calls]


@cache
def ready(name: str) -> Ready:
    """In double precision, so that numbers can be compared closely."""
    case = CASES[name]()
    operators = case.find("affine")
    replacements = fit_replacements(case.network, operators, case.run(), "least_squares")
    calls = record_calls(case.network, lambda: case.denoise(case.noise(ROWS), range(ROWS)), 2)
    case.network.double()
    doubled = [Call(as_double(call.args), as_double(call.kwargs)) for call in calls]
    return Ready(case, operators, {key: part.double() for key, part in replacements.items()}, doubled)


def as_double(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: as_double(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(as_double(part) for part in value)
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def output(network: nn.Module, call: Call) -> torch.Tensor:
    return criteria.output_of(network(*call.args, **call.kwargs))


def row_losses(network: nn.Module, call: Call) -> torch.Tensor:
    return (output(network, call) - 0.3).square().flatten(1).sum(1)


def mean_loss(network: nn.Module, call: Call) -> torch.Tensor:
    return row_losses(network, call).mean()


def of_kinds(denoiser: Ready, kinds: tuple[str, ...]) -> list[Operator]:
    return [operator for operator in denoiser.operators if operator.kind in kinds]


def same(denoiser: Ready, factor: float = 1.0) -> dict[str, Replacement]:
    """Copies of operators in their own places, times a factor."""
    modules = {op.name: denoiser.network.get_submodule(op.name) for op in of_kinds(denoiser, SINGLE)}
    return {
        name: Replacement(argument_of(module), [copy.deepcopy(module), Times(factor)])
        for name, module in modules.items()
    }


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x


class Fails(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("broken off")


@pytest.fixture(params=CASES)
def denoiser(request: pytest.FixtureRequest) -> Ready:
    return ready(request.param)


# Calls


class Counts(nn.Module):
    """Writes over what it is given, as a careless network may."""

    def __init__(self) -> None:
        super().__init__()
        self.called = 0

    def forward(self, x: torch.Tensor, parts: dict[str, list[torch.Tensor]]) -> torch.Tensor:
        self.called += 1
        parts["list"][0].mul_(0)
        return x.mul_(0)


def calls_of(num_steps: int, num_calls: int) -> list[float]:
    network = Counts()

    def run() -> None:
        for step in range(num_steps):
            value = torch.full((2, 1), float(step))
            network(value, parts={"list": [value.clone()]})

    calls = record_calls(network, run, num_calls)
    assert network.called == num_steps
    assert not network._forward_pre_hooks
    for call in calls:
        assert torch.equal(call.args[0], call.kwargs["parts"]["list"][0])
    return [float(call.args[0][0]) for call in calls]


def test_calls_are_spread_over_the_run_and_hold_what_was_given() -> None:
    assert calls_of(9, 3) == [0, 4, 8]
    assert calls_of(9, 2) == [0, 8]
    assert calls_of(9, 1) == [4]
    assert calls_of(3, 5) == [0, 1, 2]
    assert calls_of(1, 5) == [0]
    steps = calls_of(20, 5)
    assert (len(steps), steps[0], steps[-1]) == (5, 0, 19)
    assert all(4 <= later - earlier <= 6 for earlier, later in pairwise(steps))


def test_a_run_that_breaks_off_or_never_calls_leaves_nothing_behind() -> None:
    network = Counts()
    with pytest.raises(ModelError, match="never calls Counts"):
        record_calls(network, lambda: None, 2)
    with pytest.raises(RuntimeError, match="broken off"):
        record_calls(network, lambda: Fails()(torch.zeros(1)), 2)
    assert not network._forward_pre_hooks


def test_the_output_is_found_in_what_networks_return() -> None:
    y = torch.ones(2)
    for value in (y, (y, None), SimpleNamespace(sample=y)):
        assert criteria.output_of(value) is y
    for wrong in (None, (), SimpleNamespace(prev_sample=y)):
        with pytest.raises(ModelError, match="gives no tensor"):
            criteria.output_of(wrong)


# Chance and size


def test_random_numbers_go_with_the_name_and_the_seed() -> None:
    operators = ready("unet2d").operators
    values = criteria.random(operators, 1)
    assert criteria.random(operators[::-1], 1) == values
    assert criteria.random(operators[3:4], 1) == {operators[3].name: values[operators[3].name]}
    assert criteria.random(operators, 2) != values
    assert len(set(values.values())) == len(operators)
    assert all(0 <= value < 1 for value in values.values())


def test_magnitude_is_the_norm_of_all_parameters(denoiser: Ready) -> None:
    values = criteria.magnitude(denoiser.network, denoiser.operators)
    assert list(values) == [operator.name for operator in denoiser.operators]
    for name, value in values.items():
        weights = [w.detach().flatten() for w in denoiser.network.get_submodule(name).parameters()]
        assert value == pytest.approx(float(torch.cat(weights).norm()) if weights else math.inf)
    assert math.inf in values.values()


# Criteria of a single step


def test_similarity_is_the_mean_cosine_of_rows_over_all_calls(denoiser: Ready) -> None:
    cosines: dict[str, list[float]] = {operator.name: [] for operator in denoiser.operators}
    batched = {operator.name: operator.batched for operator in denoiser.operators}

    def compare(name: str, module: nn.Module, args: Any, kwargs: Any, y: Any) -> None:
        replacement = denoiser.replacements[name]
        x = replacement.replace(input_of(replacement.argument, args, kwargs), output_size(args, kwargs))
        y = y[0] if isinstance(y, tuple) else y
        x, y = (z.flatten(1) if batched[name] else z.flatten()[None] for z in (x, y))
        cosines[name] += F.cosine_similarity(x, y).tolist()

    modules = {name: denoiser.network.get_submodule(name) for name in cosines}
    with torch.no_grad(), forward_hooks(modules, compare):
        for call in denoiser.calls:
            output(denoiser.network, call)
    values = criteria.block_similarity(
        denoiser.network, denoiser.calls, denoiser.operators, denoiser.replacements
    )
    expected = {name: 1 - sum(each) / len(each) for name, each in cosines.items()}
    assert values == pytest.approx(expected, abs=1e-9)
    assert max(values.values()) > 0.1


@pytest.mark.parametrize("rows", [1, 4 * ROWS])
@torch.no_grad()
def test_output_error_is_that_of_one_operator_replaced_after_another(denoiser: Ready, rows: int) -> None:
    """However many operators share a pass."""
    network, operators = denoiser.network, denoiser.operators[::3]
    values = criteria.output_error(network, denoiser.calls, operators, denoiser.replacements, rows)
    expected = {}
    for operator in operators:
        errors = []
        for call in denoiser.calls:
            original = output(network, call)
            with swapped_modules(network, {operator.name: denoiser.replacements[operator.name]}):
                errors.append(float((output(network, call) - original).norm() / original.norm()) ** 2)
        expected[operator.name] = sum(errors) / len(errors)
    assert list(values) == [operator.name for operator in operators]
    assert values == pytest.approx(expected, rel=1e-6, abs=1e-15)


def test_an_operator_that_gives_no_numbers_is_never_taken_and_spoils_no_other() -> None:
    denoiser = ready("unet2d")
    broken = "mid_block.resnets.0.conv1"
    replacements = same(denoiser, 0.5)
    operators = of_kinds(denoiser, SINGLE)
    ways: list[Callable[[dict[str, Replacement]], dict[str, float]]] = [
        lambda parts: criteria.block_similarity(denoiser.network, denoiser.calls, operators, parts),
        lambda parts: criteria.output_error(denoiser.network, denoiser.calls, operators, parts, 100),
        lambda parts: criteria.taylor(denoiser.network, denoiser.losses(), operators, parts),
    ]
    for way in ways:
        values = way(replacements | {broken: same(denoiser, math.nan)[broken]})
        assert values.pop(broken) == math.inf
        expected = way(replacements)
        del expected[broken]
        assert values == pytest.approx(expected)


# The estimate from the gradient


@torch.no_grad()
def numerical(denoiser: Ready, operator: Operator, call: Call, step: float = 1e-5) -> float:
    """Sum over rows of |dL/da| of y + a (replacement(x) - y), a difference of two passes."""
    replacement = denoiser.replacements[operator.name]

    def losses(a: float) -> torch.Tensor:
        def blend(name: str, module: nn.Module, args: Any, kwargs: Any, y: Any) -> Any:
            x = replacement.replace(input_of(replacement.argument, args, kwargs), output_size(args, kwargs))
            if isinstance(y, tuple):
                return (y[0] + a * (x - y[0]), *y[1:])
            return y + a * (x - y)

        with forward_hooks({operator.name: denoiser.network.get_submodule(operator.name)}, blend):
            return row_losses(denoiser.network, call)

    change = (losses(step) - losses(-step)) / (2 * step * len(losses(0.0)))
    return float(change.abs().sum() if operator.batched else change.sum().abs())


def test_taylor_is_the_derivative_of_blending_in_the_replacement(denoiser: Ready) -> None:
    """Of all operators, those that see just the time, see columns, or are called several times included."""
    denoiser.network.requires_grad_(False)
    try:
        values = criteria.taylor(
            denoiser.network, denoiser.losses(), denoiser.operators, denoiser.replacements
        )
    finally:
        denoiser.network.requires_grad_(True)
    assert list(values) == [operator.name for operator in denoiser.operators]
    largest = max(values.values())
    for operator in denoiser.operators:
        expected = sum(numerical(denoiser, operator, call) for call in denoiser.calls) / len(denoiser.calls)
        assert values[operator.name] == pytest.approx(expected, rel=1e-4, abs=1e-7 * largest), operator.name


def test_a_loss_without_gradient_is_refused() -> None:
    denoiser = ready("light")
    constant = [lambda: torch.tensor(1.0), lambda: torch.ones(1, requires_grad=True).sum()]
    cut = torch.no_grad()(denoiser.losses()[0])
    for loss in (*constant, cut):
        with pytest.raises(ModelError, match="without gradient"):
            criteria.taylor(denoiser.network, [loss], denoiser.operators, denoiser.replacements)


def test_passes_without_gradient_beside_the_loss_do_not_count() -> None:
    denoiser = ready("light")
    (loss, *_) = denoiser.losses()

    def with_others() -> torch.Tensor:
        with torch.no_grad():
            output(denoiser.network, denoiser.calls[-1])
        return loss()

    plain, others = (
        criteria.taylor(denoiser.network, [each], denoiser.operators, denoiser.replacements)
        for each in (loss, with_others)
    )
    assert plain == others


# The network


class Writes(nn.Module):
    """Writes over an operator's output, and inside an operator over what that is given.

    Without `conv` that is the network's own input.
    """

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = Halve(in_place)
        self.conv_out = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        y = y.add_(1.0) if self.in_place else y + 1.0
        y = self.norm(y)
        y = y.mul_(2.0) if self.in_place else y * 2.0
        out: torch.Tensor = self.conv_out(y)
        return out


class Halve(nn.Module):
    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.mul_(0.5) if self.in_place else x * 0.5
        return y.add_(0.1) if self.in_place else y + 0.1


def values_of(in_place: bool) -> list[dict[str, float]]:
    network = awake(Writes(in_place))
    start = Case(network, lambda net, x, t, items: net(x)).noise(ROWS)
    names = (("conv", "convolution"), ("norm", "activation"))
    operators = [Operator(name, kind, ReplacementSpec(), None) for name, kind in names]
    replacements = {operator.name: Replacement("x", []) for operator in operators}
    calls = record_calls(network, lambda: network(start.clone()), 1)
    assert torch.equal(calls[0].args[0], start)
    losses = [lambda: network(start).square().mean()]
    return [
        criteria.block_similarity(network, calls * 2, operators, replacements),
        criteria.output_error(network, calls * 2, operators, replacements, 1),
        criteria.output_error(network, calls * 2, operators, replacements, 100),
        criteria.taylor(network, losses, operators, replacements),
    ]


def test_what_a_network_writes_over_is_not_seen() -> None:
    written, kept = values_of(True), values_of(False)
    for found, expected in zip(written, kept, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
        assert min(expected.values()) > 1e-3


def state_of(network: nn.Module) -> list[Any]:
    modules = [(name, id(module), module.training) for name, module in network.named_modules()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules()]
    weights = [(id(w), w.requires_grad, w._version, id(w.grad)) for w in network.parameters()]
    return [modules, hooks, weights, torch.is_grad_enabled()]


def run_all(denoiser: Ready, replacements: dict[str, Replacement], way: str) -> None:
    given = denoiser.operators, replacements
    if way == "taylor":
        criteria.taylor(denoiser.network, denoiser.losses(), *given)
    elif way == "block_similarity":
        criteria.block_similarity(denoiser.network, denoiser.calls, *given)
    else:
        criteria.output_error(denoiser.network, denoiser.calls, *given, 1 if way == "alone" else 100)


@pytest.mark.parametrize("way", ["taylor", "block_similarity", "alone", "together"])
def test_the_network_is_left_as_it_was_found(way: str) -> None:
    """Gradients of its parameters included, and when something breaks off."""
    denoiser = ready("light")
    weights = list(denoiser.network.parameters())
    weights[0].grad = torch.ones_like(weights[0])
    weights[1].requires_grad_(False)
    before = state_of(denoiser.network)
    try:
        run_all(denoiser, denoiser.replacements, way)
        assert state_of(denoiser.network) == before
        last = denoiser.operators[-1].name
        with pytest.raises(RuntimeError, match="broken off"):
            run_all(denoiser, denoiser.replacements | {last: Replacement("x", [Fails()])}, way)
        assert state_of(denoiser.network) == before
        assert torch.equal(weights[0].grad, torch.ones_like(weights[0]))
    finally:
        weights[0].grad = None
        weights[1].requires_grad_(True)


class GivesBack(nn.Module):
    """An operator gives what it was given, which the sum reads again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.same = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x)
        twice: torch.Tensor = y + self.same(y)
        return twice


def test_what_others_still_read_is_not_replaced() -> None:
    network = awake(GivesBack())
    calls = [Call((torch.ones(ROWS, 4, 8, 8),), {})]
    operators = [Operator(name, "activation", ReplacementSpec(), None) for name in ("conv", "same")]
    replacements = {"conv": Replacement("x", []), "same": Replacement("input", [Times(0.5)])}
    together = criteria.output_error(network, calls, operators, replacements, 2 * ROWS)
    assert together["same"] == pytest.approx(0.25**2)


def test_a_network_that_gives_no_numbers_is_refused_by_what_compares_with_it() -> None:
    denoiser = ready("plain")
    network, replacements = copy.deepcopy(denoiser.network), denoiser.replacements
    with torch.no_grad():
        next(network.parameters()).fill_(math.nan)
    with pytest.raises(ModelError, match="output_error: the denoiser's output: NaN or infinite"):
        criteria.output_error(network, denoiser.calls, denoiser.operators, replacements)
    losses = [partial(mean_loss, network, denoiser.calls[0])]
    with pytest.raises(ModelError, match="taylor: the loss: NaN or infinite"):
        criteria.taylor(network, losses, denoiser.operators, replacements)
    values = criteria.magnitude(network, denoiser.operators).values()
    assert not any(math.isnan(value) for value in values)


def test_an_output_of_zeros_has_no_relative_error() -> None:
    class Nothing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 0 * self.layer(x)

    with pytest.raises(ModelError, match="gives zeros"):
        criteria.output_error(Nothing(), [Call((torch.ones(1, 1, 2, 2),), {})], [], {})
