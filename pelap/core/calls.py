"""What a network is called with: recorded while something else runs it, or answered by something else."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn


class Call(NamedTuple):
    """Arguments of one call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _FirstCallError(Exception):
    """Ends a run at the first call of its network."""


@torch.no_grad()
def capture_calls(network: nn.Module, run: Callable[[], object], first_only: bool = False) -> list[Call]:
    """What `run` calls `network` with, in the order of the calls; none if it does not.

    Args:
        network: Any module.
        run: Runs it, as a sampler does; all calls' arguments are held until it ends.
        first_only: The run ends at the first call, of which nothing is computed.

    Returns:
        Arguments, with copies of the tensors: samplers write over theirs.
    """
    calls: list[Call] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(Call(copied(args), copied(kwargs)))
        if first_only:
            raise _FirstCallError

    handle = network.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        run()
    except _FirstCallError:
        pass
    finally:
        handle.remove()
    return calls


@contextmanager
def in_place(of: Any, method: str, function: Callable[..., Any]) -> Iterator[None]:
    """For the block, an object has another function in the place of a method; it gets its own back."""
    before = vars(of).get(method)
    setattr(of, method, function)
    try:
        yield
    finally:
        delattr(of, method)  # uncovers that of its class
        if before is not None:
            setattr(of, method, before)


def copied(value: Any, num_rows: int = 0, copies: int = 1) -> Any:
    """A copy of arguments down to their tensors, without gradient.

    Tensors of `num_rows` rows hold these `copies` times over.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach()
        several = copies > 1 and value.ndim > 0 and len(value) == num_rows
        return torch.cat([value] * copies) if several else value.clone()
    if isinstance(value, dict):
        return {name: copied(part, num_rows, copies) for name, part in value.items()}
    if type(value) in (tuple, list):
        return type(value)(copied(part, num_rows, copies) for part in value)
    return value
