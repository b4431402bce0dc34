"""A stand-in for CUDA graphs on a CPU: what a function calls is noted, and called again at a replay.

It shows what a graph shows: numbers that Python computed at the recording stay what they were, and nothing
that the function does beside calling operators happens again.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pelap.core import graphs
from pelap.training.trainer import Trainer


def tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Tape(TorchDispatchMode):
    """Notes operators; undoes afterwards what they wrote into tensors that were there before."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.made: set[int] = set()
        self.before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.is_write:
                for each in tensors(value):
                    if each.untyped_storage()._cdata not in self.made:
                        self.before.setdefault(each.data_ptr(), (each, each.detach().clone()))
        result = func(*args, **kwargs)
        given = {each.untyped_storage()._cdata for each in tensors((args, kwargs))}
        self.made |= {each.untyped_storage()._cdata for each in tensors(result)} - given
        self.calls.append((func, args, kwargs, result))
        return result

    def undo(self) -> None:
        with torch.no_grad():
            for each, value in self.before.values():
                each.copy_(value)

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, result in self.calls:
                again = func(*args, **kwargs)
                for old, new in zip(tensors(result), tensors(again), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class TapeRecorder:
    """In the place of `graphs.Recorder`."""

    num_recorded = 0

    def __init__(self, device: torch.device) -> None:
        pass

    def run(self, function: Callable[[], Any]) -> Any:
        return function()

    def record(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        type(self).num_recorded += 1
        with Tape() as tape:
            result = function()
        tape.undo()
        return result, tape.replay


def record_on_cpu(patch: pytest.MonkeyPatch) -> type[TapeRecorder]:
    """Let a CPU record what a CUDA device records; the class counts its recordings."""

    class Recorder(TapeRecorder):
        num_recorded = 0

    patch.setattr(graphs, "can_record", lambda device: True)
    patch.setattr(graphs, "Recorder", Recorder)
    patch.setattr(Trainer, "_number", lambda self, value: torch.tensor(value))
    return Recorder
