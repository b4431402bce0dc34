"""Operations and bytes of a piece of work, kernel by kernel, and the time that a machine needs at the least.

Operations are those of products, convolutions and attention, as PyTorch counts them. Bytes are what a kernel
has to read and write if it touches every value once: its tensors, broadcast ones at their true size. Views
cost nothing. A kernel takes the longer of the two at the machine's rates; those of a piece of work follow one
another, so that their times add up.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

CLASSES = {
    "convolution, backward": (("conv", "backward"),),
    "convolution, forward": (("conv",),),
    "matrix products": (("mm",), ("linear",), ("attention",), ("matmul",)),
    "optimiser": (("adam",), ("foreach",)),
    "norm": (
        ("group_norm",),
        ("groupnorm",),
        ("batch_norm",),
        ("batchnorm",),
        ("layer_norm",),
        ("layernorm",),
    ),
    "activation": (("silu",), ("sigmoid",), ("tanh",), ("clamp",), ("relu",), ("gelu",), ("softmax",)),
    "copies and casts": (
        *(("copy",), ("clone",), ("aten::to",), ("aten::cat",), ("contiguous",), ("fill",), ("zero",)),
        *(("index",), ("flip",), ("where",), ("memcpy",), ("memset",)),
    ),
}
"""Kinds of operators, by words that are all in the name; the first that fits counts."""
REST = "rest"

WITHOUT_KERNEL = ("empty", "resize", "local_scalar_dense", "lift_fresh", "alias", "set_")
OVERWRITES = ("copy_", "fill_", "zero_", "normal_", "uniform_", "random_", "bernoulli_")
"""Operators that do not read what they write into."""


@dataclass(frozen=True)
class Rates:
    """What a machine can do."""

    flops: dict[str, float]
    """FLOP/s of products by the type of their values; ``convolution float32`` where that differs."""
    bytes_per_s: float

    def least_seconds(self, kernel: "Kernel") -> float:
        """Of one call of a kernel."""
        rate = self.flops.get(f"{kernel.kind.split(',')[0]} {kernel.dtype}") or self.flops.get(kernel.dtype)
        computing = kernel.flops / (rate or self.flops["float32"])
        return max(computing, kernel.bytes / self.bytes_per_s)


@dataclass(frozen=True)
class Kernel:
    """One call of an operator."""

    name: str
    kind: str
    dtype: str  # of its first tensor with a fraction
    flops: int
    bytes: int


def kind_of(name: str) -> str:
    """The class of an operator or kernel, of those above."""
    name = name.lower()
    for kind, choices in CLASSES.items():
        if any(all(word in name for word in words) for words in choices):
            return kind
    return REST


class Counter(TorchDispatchMode):
    """Notes every kernel that is called in the block."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        result = func(*args, **kwargs)
        name = func._schema.name  # as the profiler writes it: aten::add
        if not any(word in name for word in WITHOUT_KERNEL):
            moved = _bytes_moved(func, name, tuple(args), kwargs, result)
            if moved:
                count = flop_registry.get(func._overloadpacket)
                flops = int(count(*args, **kwargs, out_val=result)) if count else 0
                self.kernels.append(Kernel(name, kind_of(name), _dtype((args, kwargs)), flops, moved))
        return result


def _bytes_moved(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """What a call reads and writes; 0 for a view."""
    given, made = list(_tensors((args, kwargs))), list(_tensors(result))
    storages = {tensor.untyped_storage()._cdata for tensor in given}
    fresh = [tensor for tensor in made if tensor.untyped_storage()._cdata not in storages]
    changed = list(_changed(func, args, kwargs))
    if made and not fresh and not changed:
        return 0
    read = sum(map(_size, given))
    if name.rpartition("::")[2] in OVERWRITES:
        read -= sum(map(_size, changed))
    return read + sum(map(_size, [*fresh, *changed]))


def _changed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Arguments that the operator writes into."""
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            yield from _tensors(value)


def _tensors(tree: object) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _size(tensor: Tensor) -> int:
    """Bytes of the values that there really are: a broadcast tensor repeats them."""
    num = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        num *= size if stride else min(size, 1)
    return num * tensor.element_size()


def _dtype(tree: object) -> str:
    kinds = [tensor.dtype for tensor in _tensors(tree) if tensor.is_floating_point()]
    return str(kinds[0]).removeprefix("torch.") if kinds else "none"


def totals(kernels: Iterable[Kernel], rates: Rates) -> dict[str, dict[str, float]]:
    """FLOPs, bytes and least seconds by class."""
    sums: defaultdict[str, dict[str, float]] = defaultdict(
        lambda: {"flops": 0.0, "bytes": 0.0, "predicted_s": 0.0}
    )
    for kernel in kernels:
        of_kind = sums[kernel.kind]
        of_kind["flops"] += kernel.flops
        of_kind["bytes"] += kernel.bytes
        of_kind["predicted_s"] += rates.least_seconds(kernel)
    return dict(sums)
