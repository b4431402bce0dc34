"""Which building blocks of a denoiser can be removed: found by watching a real forward pass.

An operator is a convolution, a linear layer, a normalisation, an activation, an attention layer or
a residual block (LD-Pruner, section 2.1). It is offered if every one of its calls gives back a
tensor of the shape that it was given, so that leaving it out keeps all shapes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pelap.errors import ModelError

KINDS: dict[str, str] = {
    "Conv2d": "convolution",
    "Linear": "linear",
    "GroupNorm": "normalisation",
    "LayerNorm": "normalisation",
    "SiLU": "activation",
    "GELU": "activation",
    "ReLU": "activation",
    "Mish": "activation",
    "Attention": "attention",
    "ResnetBlock2D": "residual_block",
    "LightBlock": "block",
}
"""Kind of an operator by the name of its class: names, so that no model code is imported here."""

KINDS_WITH_RESIDUAL = ("attention", "residual_block")
"""What is left of these without their body is the path around it, not nothing."""

KEPT = ("conv_in", "conv_out", "time_embedding", "time_proj", "time_embed")
"""Never offered: without these there is no input, no output or no time."""


@dataclass(frozen=True)
class Operator:
    """One candidate for removal."""

    name: str
    """As in ``unet.named_modules()``."""
    kind: str
    replacement: str
    """What stands in its place: ``identity``, or ``residual`` for the path around its body."""
    parent: str | None
    """The smallest operator that it lies in."""


@dataclass
class Trace:
    """The calls of one module during a forward pass."""

    inputs: list[torch.Size] = field(default_factory=list)
    outputs: list[torch.Size] = field(default_factory=list)

    @property
    def keeps_shape(self) -> bool:
        return bool(self.inputs) and self.inputs == self.outputs


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The tensor that a module works on: its first argument, given by position or by name."""
    value = args[0] if args else next(iter(kwargs.values()))
    if not isinstance(value, torch.Tensor):
        raise ModelError(f"an operator was called with {type(value).__name__} where a tensor was expected")
    return value


@contextmanager
def hooked(module: nn.Module, names: list[str], make: Callable[[str], Any]) -> Iterator[None]:
    """Forward hooks ``make(name)(module, args, kwargs, output)`` on submodules, taken off again."""
    handles = [
        module.get_submodule(name).register_forward_hook(make(name), with_kwargs=True) for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def trace(unet: nn.Module, forward: Callable[[], object], names: list[str]) -> dict[str, Trace]:
    """Shapes in and out of every call of the named submodules during ``forward()``."""
    traces = {name: Trace() for name in names}

    def make(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            traces[name].inputs.append(first_tensor(args, kwargs).shape)
            traces[name].outputs.append(output.shape if isinstance(output, torch.Tensor) else torch.Size())

        return hook

    with hooked(unet, names, make), torch.no_grad():
        forward()
    return traces


def find_operators(unet: nn.Module, forward: Callable[[], object]) -> list[Operator]:
    """Every operator of `unet` that can be left out, in the order of ``named_modules()``.

    Args:
        unet: The denoiser.
        forward: Runs it once on an input of the usual shape.

    Raises:
        ModelError: There is none.
    """
    kinds = {
        name: KINDS[type(module).__name__]
        for name, module in unet.named_modules()
        if type(module).__name__ in KINDS and name.split(".")[0] not in KEPT
    }
    traces = trace(unet, forward, list(kinds))
    offered = {name: kind for name, kind in kinds.items() if traces[name].keeps_shape}
    if not offered:
        raise ModelError(f"{type(unet).__name__} has no operator that keeps its input's shape")
    return [
        Operator(
            name, kind, "residual" if kind in KINDS_WITH_RESIDUAL else "identity", _parent(name, offered)
        )
        for name, kind in offered.items()
    ]


def is_inside(name: str, other: str) -> bool:
    """Whether operator `name` is a part of operator `other`."""
    return name.startswith(f"{other}.")


def _parent(name: str, offered: dict[str, str]) -> str | None:
    around = [other for other in offered if is_inside(name, other)]
    return max(around, key=len, default=None)
