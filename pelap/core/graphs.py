"""Functions of tensors without Python in between: recorded once as a CUDA graph, then replayed."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from pelap.core.garbage import no_garbage_collection

Tree = Any  # tensors in tuples, lists and dictionaries
Result = TypeVar("Result")

WARMUP_CALLS = 3  # calls before the recording: libraries choose their kernels, optimisers make their state


def to_device(tree: Tree, device: torch.device) -> Tree:
    """The same tree with its tensors on a device; what is in pinned memory is not waited for."""
    return tree_map_only(torch.Tensor, lambda leaf: leaf.to(device, non_blocking=True), tree)


def can_record(device: torch.device) -> bool:
    """Whether a device has graphs of kernels."""
    return device.type == "cuda"


class Graphed(Generic[Result]):
    """Calls a function; on a CUDA device its kernels are recorded at one call and replayed at later ones.

    Every call has its effect exactly once: the first calls run the function as it is, the one that records
    is replayed at once. What the function does beside launching kernels happens only while it is not
    replayed, and kernels find what they read where it was at the recording: weights may change in place,
    anything that changes from call to call has to be an argument.

    Calls with other shapes than those of the first call run as they are, and so do all calls elsewhere
    than on a CUDA device.

    Args:
        function: Of one tree of tensors; it must not wait for the device, nor draw random numbers.
        device: Where it computes; arguments are moved there.
        record: False never records.
    """

    def __init__(self, function: Callable[[Tree], Result], device: torch.device, record: bool = True) -> None:
        self._function = function
        self._device = device
        self._recorder = Recorder(device) if record and can_record(device) else None
        self._num_calls = 0
        self._shapes: list[torch.Size] | None = None
        self._inputs: Tree = None
        self._result: Any = None
        self._replay: Callable[[], None] | None = None

    def __call__(self, inputs: Tree) -> Result:
        """The function's result; that of a replay is overwritten by the next call."""
        if self._recorder is None or not self._fits(inputs):
            return self._function(to_device(inputs, self._device))
        self._num_calls += 1
        if self._num_calls <= WARMUP_CALLS:
            result: Result = self._recorder.run(lambda: self._function(to_device(inputs, self._device)))
            return result
        if self._replay is None:
            on_device = to_device(inputs, self._device)
            self._inputs = tree_map_only(torch.Tensor, torch.clone, on_device)
            self._result, self._replay = self._recorder.record(lambda: self._function(self._inputs))
        for kept, given in zip(tree_leaves(self._inputs), tree_leaves(inputs), strict=True):
            if isinstance(kept, torch.Tensor):
                kept.copy_(given, non_blocking=True)
        self._replay()
        result = self._result
        return result

    def _fits(self, inputs: Tree) -> bool:
        shapes = [leaf.shape for leaf in tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]
        if self._shapes is None:
            self._shapes = shapes
        return shapes == self._shapes


class Recorder:
    """Runs and records functions in a stream of its own, as CUDA wants it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def run(self, function: Callable[[], Tree]) -> Tree:
        """A plain call in the stream that will record: autograd remembers the stream of its first pass."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = function()
        current.wait_stream(self._stream)
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                leaf.record_stream(current)
        return result

    def record(self, function: Callable[[], Tree]) -> tuple[Tree, Callable[[], None]]:
        """The tensors that the result will be in, and what computes them; nothing is computed yet."""
        graph = torch.cuda.CUDAGraph()
        # Other threads may pin memory meanwhile (`pelap.training.parallel`), which a global capture forbids;
        # an old graph that is given back in the middle of a recording breaks it.
        with (
            no_garbage_collection(),
            torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
        ):
            result = function()
        return result, graph.replay
