"""What steps are given, made while the device computes earlier steps."""

from collections.abc import Iterator
from queue import Full, Queue
from threading import Event, Thread
from typing import TypeVar

import torch
from torch.utils._pytree import tree_map

Item = TypeVar("Item")

DEPTH = 8
"""Items that are made ahead."""
SECONDS_TO_NOTICE = 0.1
"""How soon the maker sees that nobody wants more."""


def prefetch(items: Iterator[Item], device: torch.device) -> Iterator[Item]:
    """The same items; for a CUDA device a thread makes them ahead, in memory that the device copies from.

    Args:
        items: Trees of CPU tensors; making them must not use the device.
        device: Where they will be used.
    """
    return _prefetched(items) if device.type == "cuda" else items


def _prefetched(items: Iterator[Item], pin: bool = True) -> Iterator[Item]:
    made: Queue[tuple[Item | None, BaseException | None]] = Queue(DEPTH)
    unwanted = Event()

    def offer(item: Item | None, error: BaseException | None) -> None:
        while not unwanted.is_set():
            try:
                made.put((item, error), timeout=SECONDS_TO_NOTICE)
                return
            except Full:
                continue

    def make() -> None:
        try:
            for item in items:
                offer(_pinned(item) if pin else item, None)
                if unwanted.is_set():
                    return
            offer(None, StopIteration())
        except BaseException as error:  # raised again where the item is asked for
            offer(None, error)

    thread = Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            assert item is not None
            yield item
    finally:
        unwanted.set()
        thread.join()


def _pinned(item: Item) -> Item:
    pinned: Item = tree_map(lambda leaf: leaf.pin_memory() if isinstance(leaf, torch.Tensor) else leaf, item)
    return pinned
