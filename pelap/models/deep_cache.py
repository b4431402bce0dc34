"""DeepCache: neighbouring sampling steps share the deep features of a UNet.

Ma, Fang and Wang, "DeepCache: Accelerating Diffusion Models for Free", CVPR 2024.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import nn

from pelap.core.calls import in_place
from pelap.core.errors import ModelError


class DeepCache(nn.Module):
    """A diffusers UNet that computes its deep part in every `interval`-th step of a sampling run alone.

    In the steps between, only the input convolution, the first block on the way down, the last one on the
    way up and the output are computed; all that is deeper gives again what it gave in the last whole step.
    An interval of 1 is the UNet itself. Nothing is trained, and the weights are the UNet's own.

    A run is a series of calls with falling time steps and one shape of the sample; any other call starts
    the next run, with a whole step. Samplers that call the network twice at one time step thus compute more
    than they need, and guidance has to be in one batch. Not for use in several threads at once: the UNet's
    deep blocks are bypassed during a call.

    Args:
        unet: A `UNet2DModel` or `UNet2DConditionModel` of at least two levels, pruned or not.
        interval: Steps from one whole step to the next, at least 1.

    Raises:
        ModelError: The network is not such a UNet.
    """

    def __init__(self, unet: nn.Module, interval: int) -> None:
        super().__init__()
        if interval < 1:
            raise ValueError(f"interval is {interval}, it must be at least 1")
        self._deep = _deep_modules(unet)
        self.unet = unet
        self.interval = interval
        self.reset()

    @property
    def config(self) -> Any:
        """The UNet's."""
        return self.unet.config

    def reset(self) -> None:
        """Forget the run: the next call is a whole one."""
        self._kept: list[Any] = [None] * len(self._deep)
        self._num_calls = 0
        self._last: tuple[float, torch.Size] | None = None

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor | float, *args: Any, **kwargs: Any) -> Any:
        """What the UNet returns for noisy latents (B, C, h, w), exactly in whole steps, else about so.

        The time step is one for all rows, or (B,); further arguments are the UNet's.
        """
        now = float(torch.as_tensor(timestep).max())
        if self._last is None or now >= self._last[0] or sample.shape != self._last[1]:
            self.reset()
        whole = self._num_calls % self.interval == 0
        try:
            with ExitStack() as stack:
                for place, module in enumerate(self._deep):
                    forward = self._keeping(place, module.forward) if whole else self._giving(place)
                    stack.enter_context(in_place(module, "forward", forward))
                result = self.unet(sample, timestep, *args, **kwargs)
        except BaseException:
            self.reset()  # what is kept may be of two steps
            raise
        self._num_calls += 1
        self._last = (now, sample.shape)
        return result

    def _keeping(self, place: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def keep(*args: Any, **kwargs: Any) -> Any:
            self._kept[place] = forward(*args, **kwargs)
            return self._kept[place]

        return keep

    def _giving(self, place: int) -> Callable[..., Any]:
        return lambda *args, **kwargs: self._kept[place]


def _deep_modules(unet: nn.Module) -> tuple[nn.Module, ...]:
    """What is not computed in the steps between: all below the first level, and the way there."""
    if not isinstance(unet, UNet2DModel | UNet2DConditionModel):
        raise ModelError(
            f"deep cache: {type(unet).__name__} is no UNet2DModel or UNet2DConditionModel of diffusers, "
            "whose deep blocks are known; use one of them"
        )
    down, up = list(unet.down_blocks), list(unet.up_blocks)
    # The first level must be closed: what the last block on the way up takes comes from the first one down.
    if len(down) < 2 or len(getattr(up[-1], "resnets", ())) != 1 + len(getattr(down[0], "resnets", ())):
        raise ModelError(
            f"deep cache: this {type(unet).__name__} has no first level apart from a deeper part; use one of "
            "two levels or more, whose last block up has one residual block more than its first block down"
        )
    way = getattr(down[0], "downsamplers", None) or ()
    middle = [] if unet.mid_block is None else [unet.mid_block]
    return (*way, *down[1:], *middle, *up[:-1])
