"""What steps are given, made while the device computes earlier steps."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch
from torch.utils._pytree import tree_map

Item = TypeVar("Item")

DEPTH = 8  # items that are made ahead


def prefetch(items: Iterator[Item], device: torch.device) -> Iterator[Item]:
    """The same items; for a CUDA device a thread makes them ahead, in memory that the device copies from.

    Args:
        items: Trees of CPU tensors; making them must not use the device.
        device: Where they will be used.
    """
    return _prefetched(items) if device.type == "cuda" else items


def _prefetched(items: Iterator[Item], pin: bool = True) -> Iterator[Item]:
    def make() -> list[Item]:
        """The next item, or none behind the last one."""
        return [_pinned(item) if pin else item for item in islice(items, 1)]

    with ThreadPoolExecutor(1) as pool:
        ahead = deque(pool.submit(make) for _ in range(DEPTH))
        try:
            while made := ahead.popleft().result():
                ahead.append(pool.submit(make))
                yield made[0]
        finally:  # nobody wants more
            pool.shutdown(cancel_futures=True)


def _pinned(item: Item) -> Item:
    pinned: Item = tree_map(lambda leaf: leaf.pin_memory() if isinstance(leaf, torch.Tensor) else leaf, item)
    return pinned
