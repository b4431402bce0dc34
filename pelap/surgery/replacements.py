"""What stands where an operator was: the cheapest thing that gives the shape that the rest expects.

=============================  ==========================  ==========================================
operator                       replacement                 gives
=============================  ==========================  ==========================================
shape kept                     ``identity``                its input
normalisation, shape kept      ``identity`` or             its input, or a scale and a shift for each
                               ``affine``             channel
residual inside                ``residual``                the path around the body, the block's own
                                                           shortcut convolution included
channels change                ``projection``              a 1x1 convolution, on tokens a linear layer
lower resolution               ``avg_pool``                the mean over squares
higher resolution              ``nearest``                 each value repeated
resolution and channels        ``avg_pool+projection``,    both, in this order
                               ``projection+nearest``
=============================  ==========================  ==========================================

LD-Pruner (section 2.2) removes an operator where the shapes agree and otherwise puts a cheaper one; what it
does on a change of resolution is not said, so pooling and repeating are a choice of this project. Projections
and scales start from a least-squares fit, at random, or not at all: then ``channel_pool`` stands for
``projection``, without parameters.
"""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pelap.config.upgrade import renamed_steps
from pelap.core.errors import ModelError, PlanError

STEPS = ("identity", "residual", "projection", "channel_pool", "avg_pool", "nearest", "affine")


@dataclass(frozen=True)
class ReplacementSpec:
    """What stands in an operator's place, as data that a plan holds."""

    name: str = "identity"  # one of `STEPS`, or two joined with ``+``
    in_channels: int = 0  # of a projection, and of the channels that are scaled and shifted
    out_channels: int = 0
    factor: int = 1  # side of the squares that are pooled, or that a value is repeated over
    channels_last: bool = False  # tokens (B, N, C) rather than maps (B, C, H, W)
    num_outputs: int = 0
    """0: the operator gives a tensor; n: a tuple of n, of which just the first is replaced."""

    @property
    def steps(self) -> tuple[str, ...]:
        return tuple(self.name.split("+"))

    def given(self) -> dict[str, Any]:
        """The name, and whatever else differs from the defaults."""
        return {
            field.name: value
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default or field.name == "name"
        }

    def to_json(self) -> dict[str, Any]:
        """Whatever differs from the defaults, with the name first under ``replacement``."""
        values = self.given()
        return {"replacement": values.pop("name")} | values


MOST_CHANNELS = 65536  # of a replacement, or places that it joins to one


def replacement_from_json(value: Mapping[str, Any], where: str) -> ReplacementSpec:
    """Read what `ReplacementSpec.to_json` wrote; without a name it is ``identity``.

    Raises:
        PlanError: A name is unknown, or a value is of another type.
    """
    known = {field.name: field for field in fields(ReplacementSpec) if field.name != "name"}
    given: dict[str, Any] = {name: value[name] for name in known if name in value}
    wrong = [name for name, number in given.items() if type(number) is not type(known[name].default)]
    wrong = wrong or [name for name, number in given.items() if not 0 <= number <= MOST_CHANNELS]
    if wrong:
        raise PlanError(f"{where}: {wrong[0]} is {given[wrong[0]]!r}; give a number as `pelap prune` does")
    replacement = ReplacementSpec(renamed_steps(str(value.get("replacement", "identity"))), **given)
    unknown = [step for step in replacement.steps if step not in STEPS]
    if unknown:
        raise PlanError(f"{where}: unknown replacement {unknown[0]!r}; use one of {', '.join(STEPS)}")
    return replacement


def is_replacement(name: object) -> bool:
    """Whether this is the name of a replacement."""
    return isinstance(name, str) and all(step in STEPS for step in name.split("+"))


def affine(norm: nn.Module, shape: tuple[int, ...]) -> ReplacementSpec:
    """A scale and a shift for each channel of what a normalisation of this shape works on."""
    channels_first = any(c.__name__.startswith(("Group", "Batch", "Instance")) for c in type(norm).__mro__)
    return ReplacementSpec("affine", shape[1 if channels_first else -1], channels_last=not channels_first)


class Replacement(nn.Module):
    """Stands where an operator was and takes whatever the operator took; it looks at the first tensor."""

    def __init__(self, argument: str, steps: Sequence[nn.Module], num_outputs: int = 0) -> None:
        super().__init__()
        self.argument = argument
        self.steps = nn.ModuleList(steps)
        self.num_outputs = num_outputs

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        y = self.replace(input_of(self.argument, args, kwargs), output_size(args, kwargs))
        return (y, *(None,) * (self.num_outputs - 1)) if self.num_outputs else y

    def replace(self, x: torch.Tensor, output_size: Sequence[int] | None = None) -> torch.Tensor:
        """The replacement's value; `output_size` (H, W) is what an upsampler was told to reach."""
        for step in self.steps:
            x = step(x, output_size) if isinstance(step, Nearest) else step(x)
        return x


class Projection(nn.Module):
    """A 1x1 convolution of maps (B, C, H, W), or a linear layer of tokens (..., C)."""

    def __init__(self, in_channels: int, out_channels: int, channels_last: bool) -> None:
        super().__init__()
        self.channels_last = channels_last
        self.linear: nn.Conv2d | nn.Linear = (
            nn.Linear(in_channels, out_channels) if channels_last else nn.Conv2d(in_channels, out_channels, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.linear(x)
        return y


class ChannelPool(nn.Module):
    """A projection without parameters: neighbouring channels averaged, or repeated where more are wanted."""

    def __init__(self, out_channels: int, channels_last: bool) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.channels_last = channels_last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        last = x if self.channels_last else x.movedim(1, -1)
        flat = last.reshape(-1, 1, last.shape[-1])
        grouped = F.adaptive_avg_pool1d(flat, self.out_channels).view(*last.shape[:-1], self.out_channels)
        return grouped if self.channels_last else grouped.movedim(-1, 1)


class Nearest(nn.Module):
    """Each value repeated over a square."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor, output_size: Sequence[int] | None = None) -> torch.Tensor:
        if output_size is not None:
            return F.interpolate(x, size=tuple(output_size), mode="nearest")
        return F.interpolate(x, scale_factor=float(self.factor), mode="nearest")


class ScaleShift(nn.Module):
    """A scale and a shift for each channel, 1 and 0 at first."""

    def __init__(self, channels: int, channels_last: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels))
        self.channels_last = channels_last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (-1,) if self.channels_last else (-1, *(1,) * (x.ndim - 2))
        return torch.addcmul(self.shift.view(shape), x, self.scale.view(shape))


class Divide(nn.Module):
    """By the number that diffusers' blocks divide their sum of body and residual by."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / self.by


def input_of(argument: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """The tensor that a module works on: its first argument, by position or by its name.

    Raises:
        ModelError: It is something else.
    """
    value = args[0] if args else kwargs.get(argument)
    if not isinstance(value, torch.Tensor):
        raise ModelError(f"an operator was called with {type(value).__name__} where a tensor was expected")
    return value


def argument_of(module: nn.Module) -> str:
    """Name of the first argument of a module's ``forward``."""
    if isinstance(module, Replacement):
        return module.argument
    return next(iter(inspect.signature(module.forward).parameters), "")


def output_size(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Sequence[int] | None:
    """The size that an upsampler of diffusers may be told to reach, as its second argument."""
    size = kwargs.get("output_size", args[1] if len(args) > 1 else None)
    is_size = isinstance(size, tuple | list) and len(size) == 2 and all(map(_is_number, size))
    return size if is_size else None


def _is_number(n: object) -> bool:
    """Whether this may be a side: while a network is traced, sides are symbols or tensors."""
    return isinstance(n, int | torch.SymInt) or (isinstance(n, torch.Tensor) and n.ndim == 0)


def residual_steps(module: nn.Module) -> list[nn.Module] | None:
    """Copies of what lies on the path around a block's body; None if it has no residual inside.

    By the names of diffusers' classes and attributes, so that their code is not imported here.
    """
    name = type(module).__name__
    if name in ("BasicTransformerBlock", "Transformer2DModel"):
        return []
    if name == "Attention" and getattr(module, "residual_connection", False):
        return _divided([], module.rescale_output_factor)
    if name in ("ResnetBlock2D", "ResnetBlockCondNorm2D"):
        path = [getattr(module, part, None) for part in ("upsample", "downsample", "conv_shortcut")]
        steps = [step for step in path if step is not None]
        if all(isinstance(step, nn.Module) for step in steps):
            return _divided([copy.deepcopy(step) for step in steps], module.output_scale_factor)
    return None


def _divided(steps: list[nn.Module], by: Any) -> list[nn.Module]:
    return steps if by == 1 else [*steps, Divide(float(by))]


def build_replacement(
    replacement: ReplacementSpec, module: nn.Module, where: str = "", network: nn.Module | None = None
) -> Replacement:
    """The module that `replacement` describes, for `module`; projections have random weights.

    Args:
        replacement: What to build.
        module: The operator that it stands in for; it gives the name of the input and the residual path.
        where: Names the operator in errors.
        network: Gives device and type for a module that has no parameters.

    Raises:
        PlanError: A number is missing.
    """
    steps = [step for name in replacement.steps for step in _steps(name, replacement, module, where)]
    around = [module] if network is None else [module, network]
    like = next((parameter for part in around for parameter in part.parameters()), torch.empty(0))
    return Replacement(argument_of(module), steps, replacement.num_outputs).to(like.device, like.dtype)


def _steps(name: str, spec: ReplacementSpec, module: nn.Module, where: str) -> list[nn.Module]:
    if name in ("identity", "residual"):
        # A block of somebody else's keeps its shape: what is left of it is its input.
        return (residual_steps(module) or []) if name == "residual" else []
    needs = {"avg_pool": ["factor"], "nearest": ["factor"], "affine": ["in_channels"]}
    for needed in needs.get(name, ["in_channels", "out_channels"]):
        if getattr(spec, needed) < (2 if needed == "factor" else 1):
            raise PlanError(f"plan: {where}: {name} needs {needed}; let `pelap prune --plan` fill it in")
    make: dict[str, Callable[[], nn.Module]] = {
        # What is left at the edges is averaged by itself.
        "avg_pool": lambda: nn.AvgPool2d(spec.factor, ceil_mode=True),
        "nearest": lambda: Nearest(spec.factor),
        "affine": lambda: ScaleShift(spec.in_channels, spec.channels_last),
        "channel_pool": lambda: ChannelPool(spec.out_channels, spec.channels_last),
        "projection": lambda: Projection(spec.in_channels, spec.out_channels, spec.channels_last),
    }
    return [make[name]()]
