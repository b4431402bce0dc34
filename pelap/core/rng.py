"""Named randomness: every random number belongs to a (seed, purpose, index).

Image i's noise depends on these three alone, never on batch size, order, device or on what was drawn
before, so that a resumed, a batched and a sharded run see the same numbers.
"""

import hashlib
from collections.abc import Iterable, Sequence

import torch


def generator(seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """A fresh CPU generator for one named stream.

    Drawing on the CPU and moving the result makes the numbers the same on every device.
    """
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def noise(shape: Sequence[int], seed: int, purpose: str, indices: Iterable[int]) -> torch.Tensor:
    """Standard normal noise, one stream an item.

    Args:
        shape: Shape of one item, for latents (C, H, W).
        seed: The run's seed.
        purpose: Name of the stream, for example ``"sample"``.
        indices: Item numbers; item i gets the same values in whatever batch it is drawn.

    Returns:
        float32 tensor of shape (N, *shape) on the CPU.
    """
    rows = [torch.randn(tuple(shape), generator=generator(seed, purpose, i)) for i in indices]
    return torch.stack(rows)
