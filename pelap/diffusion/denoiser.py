"""What is scored and pruned: a denoiser with a way from noise to latents, whoever made it."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from pelap.core.calls import capture_calls
from pelap.core.device import autocast, uses_bf16
from pelap.core.keys import key
from pelap.core.rng import noise

PURPOSE = "score"  # the stream of the starting noise


@dataclass(frozen=True)
class Denoiser:
    """A denoiser under examination."""

    name: str
    network: nn.Module
    latent_shape: tuple[int, ...]
    device: torch.device
    denoise: Callable[[torch.Tensor, Sequence[int]], torch.Tensor]
    """Noise (B, *latent_shape) and the items that its rows are, to latents, through `network`."""
    networks: tuple[nn.Module, ...]  # all that its latents depend on
    protocol: dict[str, Any]  # what its latents are made with
    spacing: str  # of the time steps, as diffusers calls it
    task_loss: Callable[[torch.Tensor, Sequence[int], torch.Generator], torch.Tensor] | None = None
    """The loss of training on latents (B, *latent_shape) of these items, noise and time steps drawn from the
    stream; None where the training is not known."""
    precision: str = "fp32"
    """Of `forward` alone, see `pelap.core.device.autocast`; fp32 leaves the network to its own."""
    num_asked: int = 1  # how many prompts or classes the numbers of a seed ask for in turn; 1 for none

    @cached_property
    def weights(self) -> str:
        """Digest of all that its latents depend on."""
        return key(networks=self.networks).parts["networks"]

    def forward(self, batch_size: int, network: nn.Module | None = None) -> Callable[[], object]:
        """The first call of the denoising of so many latents, to be repeated without gradient.

        With guidance the network gets twice as many rows. Another network is called with the same arguments.
        """
        start = noise(self.latent_shape, 0, "cost", range(batch_size)).to(self.device)
        ((args, kwargs),) = capture_calls(
            self.network, lambda: self.denoise(start, range(batch_size)), first_only=True
        )
        called = self.network if network is None else network
        mixed = uses_bf16(self.device, self.precision)

        def forward() -> object:
            with torch.no_grad(), autocast(self.device, self.precision) if mixed else nullcontext():
                return called(*args, **kwargs)

        return forward

    def noise(self, num_latents: int, num_seeds: int, seed: int) -> torch.Tensor:
        """Starting points (num_latents, *latent_shape).

        Item i is number i // num_seeds of the seed that comes i % num_seeds after `seed`.
        """
        rows = [
            noise(self.latent_shape, seed + i % num_seeds, PURPOSE, [i // num_seeds])
            for i in range(num_latents)
        ]
        return torch.cat(rows).to(self.device)


def said_if_some_are_left(name: str, num_items: int, num_asked: int, setting: str) -> list[str]:
    """A warning, printed and returned, where items ask in turn and do not come to all prompts or classes."""
    if num_items >= num_asked:
        return []
    line = (
        f"{name}: {num_items} items ask for the first of {num_asked} prompts or classes alone; raise "
        f"{setting}, or mix their order"
    )
    print(f"warning: {line}")
    return [line]
