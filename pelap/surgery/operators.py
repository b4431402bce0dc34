"""Which building blocks of a denoiser can be removed: found by watching a real forward pass.

An operator is a convolution, a linear layer, a normalisation, an activation, an attention layer, or a block
made of them (LD-Pruner, section 2.1). It is offered if every one of its calls can be replaced, which is tried
out: the replacement is put in, the network runs, and all shapes must be as before.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from pelap.core.errors import ModelError
from pelap.surgery.replacements import (
    Replacement,
    ReplacementSpec,
    affine,
    argument_of,
    build_replacement,
    input_of,
    output_size,
    residual_steps,
)

_CLASSES = {
    "convolution": "Conv1d Conv2d ConvTranspose2d",
    "linear": "Linear",
    "normalisation": "BatchNorm2d GroupNorm InstanceNorm2d LayerNorm RMSNorm",
    "activation": "ApproximateGELU ELU GEGLU GELU Hardswish LeakyReLU Mish PReLU ReLU SiLU Softplus SwiGLU "
    "Tanh",
    "attention": "Attention MultiheadAttention",
    "feed_forward": "FeedForward",
    "block": "LightBlock",
    "residual_block": "ResnetBlock2D ResnetBlockCondNorm2D",
    "transformer_block": "BasicTransformerBlock",
    "transformer": "Transformer2DModel",
    "downsampler": "Downsample2D",
    "upsampler": "Upsample2D",
}
KINDS = {name: kind for kind, names in _CLASSES.items() for name in names.split()}
"""Kind of an operator by the name of its class or of a class that it extends: names, so that no model code
is imported here."""

KEPT = (
    *("conv_in", "conv_out", "pos_embed", "proj_out", "proj_out_1", "proj_out_2"),
    *("add_embedding", "class_embedding", "time_embed", "time_embed_act", "time_embedding", "time_proj"),
)
"""Never offered, by their names at the top: without these there is no input, no output or no time."""

EMBEDDING = "Embed"
"""Part of the name of every class that embeds time, labels or patches; nothing inside one is offered."""

MISFITS = (AssertionError, AttributeError, LookupError, ModelError, RuntimeError, TypeError, ValueError)
"""What a network raises that cannot do without an operator."""

Norm = Literal["identity", "affine"]
Init = Literal["least_squares", "random", "parameter_free"]


@dataclass(frozen=True)
class Operator:
    """One candidate for removal."""

    name: str  # as in ``unet.named_modules()``
    kind: str
    replacement: ReplacementSpec  # what stands in its place
    parent: str | None  # the smallest operator that it lies in
    num_calls: int = 1  # how often a forward pass calls it
    input_shape: tuple[int, ...] = ()  # of its first call
    output_shape: tuple[int, ...] = ()
    batched: bool = True
    """Whether the rows of its tensors are the rows of the denoiser's batch, at every call."""


class CallShapes(NamedTuple):
    """What one call of a module took and gave."""

    input_shape: tuple[int, ...]  # empty if it was not given a tensor first
    output_shape: tuple[int, ...]
    num_outputs: int  # 0 for a bare tensor, else the length of the tuple


def disable_inplace(unet: nn.Module) -> None:
    """Let no activation write over its input, which others may read where the operator before it is gone."""
    for module in unet.modules():
        if getattr(module, "inplace", False) is True:
            setattr(module, "inplace", False)  # noqa: B010  (a checked assignment wants a tensor or a module)


@contextmanager
def forward_hooks(modules: Mapping[str, nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    """Forward hooks ``hook(name, module, args, kwargs, output)`` on modules, taken off again."""
    with ExitStack() as handles:
        for name, module in modules.items():
            handle = module.register_forward_hook(partial(hook, name), with_kwargs=True)
            handles.callback(handle.remove)
        yield


def trace(
    unet: nn.Module, forward: Callable[[], object], names: Iterable[str]
) -> dict[str, list[CallShapes]]:
    """Every call of the named submodules during ``forward()``; ``""`` is the network itself."""
    calls: dict[str, list[CallShapes]] = {name: [] for name in names}

    def record(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls[name].append(_call(module, args, kwargs, output))

    with forward_hooks({name: unet.get_submodule(name) for name in calls}, record), torch.no_grad():
        forward()
    return calls


def _call(module: nn.Module, args: Any, kwargs: Any, output: Any) -> CallShapes:
    try:
        given = tuple(input_of(argument_of(module), args, kwargs).shape)
    except ModelError:
        given = ()
    outputs = output if isinstance(output, tuple) else ()
    first = outputs[0] if outputs else output
    made = tuple(first.shape) if isinstance(first, torch.Tensor) else ()
    return CallShapes(given, made, len(outputs))


def find_operators(
    unet: nn.Module,
    forward: Callable[[], object],
    norm: Norm = "identity",
    init: Init = "least_squares",
    keep: Collection[str] = KEPT,
    kinds: Mapping[str, str] = KINDS,
    only: Collection[str] | None = None,
) -> list[Operator]:
    """Every operator of `unet` that can be replaced, in the order of ``named_modules()``.

    Args:
        unet: The denoiser; see `disable_inplace` for what is changed in it.
        forward: Runs it once on an input of the usual shape.
        norm: What replaces a normalisation.
        init: How projections start; ``parameter_free`` puts `ChannelPool` in their place.
        keep: First parts of the names of modules that are not offered.
        kinds: Which classes are operators, and of which kind; add your own blocks to `KINDS`.
        only: Try these names alone, where a plan is to be completed.

    Raises:
        ModelError: There is none.
    """
    disable_inplace(unet)
    candidates = _candidates(unet, keep, kinds)
    found = {name: kind for name, kind in candidates.items() if only is None or name in only}
    calls = trace(unet, forward, ["", *found])
    rows = _rows(calls.pop("")[0])
    operators: list[Operator] = []
    for name, kind in found.items():
        replacement = _choose_replacement(kind, unet.get_submodule(name), calls[name], norm, init)
        if replacement is not None and _can_replace(unet, name, replacement, calls[name], forward):
            (given, made, _), *more = calls[name]
            batched = all(_rows(call) == rows for call in calls[name])
            operators.append(Operator(name, kind, replacement, None, 1 + len(more), given, made, batched))
    if not operators and only is None:
        raise ModelError(f"{type(unet).__name__}: has no operator that can be replaced; see KINDS")
    for place, operator in enumerate(operators):
        around = [other.name for other in operators if is_inside(operator.name, other.name)]
        operators[place] = dataclasses.replace(operator, parent=max(around, key=len, default=None))
    return operators


def _candidates(unet: nn.Module, keep: Collection[str], kinds: Mapping[str, str]) -> dict[str, str]:
    """Kind by name of the modules that are operators, whether they can be replaced or not."""
    embeddings = [name for name, module in unet.named_modules() if EMBEDDING in type(module).__name__]
    found = {}
    for name, module in unet.named_modules():
        kind = next((kinds[c.__name__] for c in type(module).__mro__ if c.__name__ in kinds), None)
        kept = name.split(".")[0] in keep or any(name == e or is_inside(name, e) for e in embeddings)
        if name and kind is not None and not kept:
            found[name] = kind
    return found


def _rows(call: CallShapes) -> tuple[int, int]:
    """Leading dimensions of what a call took and gave."""
    given = call.input_shape[0] if call.input_shape else 0
    # A network may wrap its output in an object of its own; then its input must do.
    return given, call.output_shape[0] if call.output_shape else given


def _choose_replacement(
    kind: str, module: nn.Module, calls: list[CallShapes], norm: Norm, init: Init
) -> ReplacementSpec | None:
    """The cheapest thing that gives the shape of the first call; None if there is none (see the table)."""
    if not calls or not calls[0].input_shape or not calls[0].output_shape:
        return None
    call = calls[0]
    if residual_steps(module) is not None:
        return ReplacementSpec("residual", num_outputs=call.num_outputs)
    if call.input_shape == call.output_shape:
        if kind == "normalisation" and norm == "affine" and init != "parameter_free":
            return affine(module, call.input_shape)
        return ReplacementSpec("identity", num_outputs=call.num_outputs)
    replacement = _reshaping(kind, call, "channel_pool" if init == "parameter_free" else "projection")
    if replacement is None:
        return None
    built = build_replacement(replacement, module)
    # A projection in place of a 1x1 convolution or a linear layer would change nothing but the weights.
    sizes = [sum(weight.numel() for weight in each.parameters()) for each in (built, module)]
    return replacement if sizes[0] < max(sizes[1], 1) else None


def _reshaping(kind: str, call: CallShapes, projection: str) -> ReplacementSpec | None:
    """Pooling or repeating, and a change of channels; None where that is not how the shapes differ."""
    given, made = call.input_shape, call.output_shape
    is_map = len(given) == 4 and kind != "linear"
    if len(given) != len(made) or len(given) < 2 or (kind == "convolution" and not is_map):
        return None
    if not is_map and given[:-1] != made[:-1]:
        return None
    lower, higher = is_map and made[2] < given[2], is_map and made[2] > given[2]
    channels = (given[1], made[1]) if is_map else (given[-1], made[-1])
    steps = ["avg_pool"] * lower + [projection] * (channels[0] != channels[1]) + ["nearest"] * higher
    factor = -(-max(given[2], made[2]) // min(given[2], made[2])) if is_map else 1
    if not steps:
        return None
    channels = channels if projection in steps else (0, 0)
    return ReplacementSpec("+".join(steps), *channels, factor, not is_map, call.num_outputs)


def _can_replace(
    unet: nn.Module, name: str, spec: ReplacementSpec, calls: list[CallShapes], forward: Callable[[], object]
) -> bool:
    """Whether the network runs with the spec, and the spec gives the shapes of every call."""
    replacement = build_replacement(spec, unet.get_submodule(name), name, unet)
    try:
        with swapped_modules(unet, {name: replacement}):
            return trace(unet, forward, [name])[name] == calls
    except MISFITS:
        return False  # somebody looks into the operator, or the shapes do not fit further on


@contextmanager
def swapped_modules(unet: nn.Module, replacements: Mapping[str, Replacement]) -> Iterator[None]:
    """Put modules in the places of operators for the length of the block."""
    originals = {name: unet.get_submodule(name) for name in replacements}
    try:
        for name, replacement in replacements.items():
            put(unet, name, replacement)
        yield
    finally:
        for name, module in originals.items():
            put(unet, name, module)


@contextmanager
def beside(
    network: nn.Module,
    replacements: Mapping[str, Replacement],
    see: Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor | None],
    rows_of: Callable[[str, torch.Tensor], torch.Tensor] = lambda name, x: x,
) -> Iterator[None]:
    """Calls ``see(name, y, instead)`` with what each operator and its replacement give.

    A tensor that `see` returns takes the place of the operator's. `rows_of` says on which rows of its input a
    replacement works.
    """
    modules = {name: network.get_submodule(name) for name in replacements}
    instead: dict[str, torch.Tensor] = {}

    def before(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        # Not after the call: an operator may write over what it is given.
        replacement = replacements[name]
        given = rows_of(name, input_of(replacement.argument, args, kwargs).detach())
        with torch.no_grad():
            made = replacement.replace(given, output_size(args, kwargs))
        shared = made.untyped_storage().data_ptr() == given.untyped_storage().data_ptr()
        instead[name] = made.clone() if shared else made

    def after(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        seen = see(name, output[0] if isinstance(output, tuple) else output, instead.pop(name))
        return (seen, *output[1:]) if seen is not None and isinstance(output, tuple) else seen

    with ExitStack() as handles:
        for name, module in modules.items():
            handle = module.register_forward_pre_hook(partial(before, name), with_kwargs=True)
            handles.callback(handle.remove)
        with forward_hooks(modules, after):
            yield


@contextmanager
def replaced_on_slices(
    network: nn.Module, replacements: Mapping[str, Replacement], num_rows: int
) -> Iterator[None]:
    """Replace operator i on slice i of the batch alone: many operators are examined in one pass.

    Args:
        network: Gets a batch that repeats the same rows for every operator. Guidance may stack copies of it:
            rows are (copies, operators, num_rows).
        replacements: By operator, in the order of the slices; one alone is put in its operator's place.
        num_rows: Of a slice.
    """
    if len(replacements) == 1:
        with swapped_modules(network, replacements):
            yield
        return
    places = {name: place for place, name in enumerate(replacements)}

    def slice_of(name: str, x: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = x.unflatten(0, (-1, len(places), num_rows))[:, places[name]]
        return rows  # (copies, num_rows, ...), a view

    def put_in(name: str, y: torch.Tensor, instead: torch.Tensor) -> torch.Tensor:
        y = y.clone()  # others may hold what the operator gave
        slice_of(name, y).copy_(instead.unflatten(0, (-1, num_rows)))
        return y

    with beside(network, replacements, put_in, lambda name, x: slice_of(name, x).flatten(0, 1)):
        yield


def in_passes(operators: Sequence[Operator], size: int) -> Iterator[list[Operator]]:
    """Operators that share a pass: those whose rows are the batch's, up to `size`, and the others alone."""
    together = [operator for operator in operators if operator.batched]
    for start in range(0, len(together), size):
        yield together[start : start + size]
    for operator in operators:
        if not operator.batched:
            yield [operator]


def put(unet: nn.Module, name: str, module: nn.Module) -> None:
    """Make `module` the submodule called `name`."""
    parent, _, child = name.rpartition(".")
    setattr(unet.get_submodule(parent), child, module)


def is_inside(name: str, other: str) -> bool:
    """Whether operator `name` is a part of operator `other`."""
    return name.startswith(f"{other}.")
