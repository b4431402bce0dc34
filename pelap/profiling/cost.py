"""What a network costs apart from time: parameters, multiply-accumulates, memory."""

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from pelap.core.device import synchronise
from pelap.profiling.latency import watch_calls


def count_params(module: nn.Module) -> int:
    """Number of parameters, frozen ones included, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(module: nn.Module, forward: Callable[[], object]) -> dict[str, int]:
    """Multiply-accumulates of one call of `forward`, for the batch that it passes.

    Half the floating-point operations that PyTorch counts: convolutions, matrix products and attention;
    not normalisation, activations, biases or interpolation.

    Args:
        module: The network.
        forward: Calls the network; it is called once, without gradients.

    Returns:
        The count by submodule, as `named_modules` calls them, the modules inside included, summed over
        several calls in a pass; 0 for a module that is not called (a `ModuleList` is not). ``""`` is
        everything that `forward` does.
    """
    modules = dict(module.named_modules(remove_duplicate=False))
    macs = dict.fromkeys(modules, 0)
    started: defaultdict[str, list[int]] = defaultdict(list)
    counter = FlopCounterMode(display=False)

    def enter(name: str) -> None:
        started[name].append(counter.get_total_flops())

    def leave(name: str) -> None:
        macs[name] += (counter.get_total_flops() - started[name].pop()) // 2

    with torch.no_grad(), _countable_attention(), watch_calls(modules, enter, leave), counter:
        forward()
    return macs | {"": counter.get_total_flops() // 2}


def peak_memory_mib(module: nn.Module, forward: Callable[[], object], device: torch.device) -> float:
    """Memory that one call of `forward` needs, in MiB: weights plus the most that is alive at once.

    Weights are the parameters and buffers of `module`. To them comes the largest rise during the call,
    without gradients, above what was allocated before it; inputs that exist beforehand, other networks
    and what caches hold are left out. On CUDA the rise is the allocator's own (scratch space of kernels
    included, sizes rounded up to its blocks); elsewhere it is the storage of all tensors that operators
    returned and that are still referred to, which leaves out scratch space inside operators.

    Args:
        module: The network whose weights count.
        forward: Calls the network; it is called once, on CUDA twice.
        device: Where it computes.
    """
    weights = sum(t.numel() * t.element_size() for t in chain(module.parameters(), module.buffers()))
    with torch.no_grad():
        rise = _cuda_rise(forward, device) if device.type == "cuda" else _storage_rise(forward)
    return (weights + rise) / 2**20


def _cuda_rise(forward: Callable[[], object], device: torch.device) -> int:
    forward()  # libraries take their workspaces at the first call
    synchronise(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    forward()
    synchronise(device)
    peak: int = torch.cuda.max_memory_allocated(device)
    return peak - before


def _storage_rise(forward: Callable[[], object]) -> int:
    live = _LiveStorage()
    with live:
        forward()
    return live.peak_bytes


class _LiveStorage(TorchDispatchMode):
    """Adds up the storages that operators return, until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_bytes = 0
        self._sizes: dict[int, int] = {}  # of the storages that are alive

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # A view or an in-place operator returns storage that it was given, maybe a weight's.
        given = {storage._cdata for storage in _storages((args, kwargs))}
        result = func(*args, **kwargs)
        for storage in _storages(result):
            if storage._cdata not in given and storage._cdata not in self._sizes:
                self._sizes[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self._sizes.pop, storage._cdata)
        self.peak_bytes = max(self.peak_bytes, sum(self._sizes.values()))
        return result


def _storages(tree: object) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@contextmanager
def _countable_attention() -> Iterator[None]:
    """Attention as plain matrix products.

    Some fused kernels are unknown to the counter, depending on device and version, and count as nothing.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
