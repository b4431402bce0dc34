"""The importance mask over latent channels, and the normalisation that takes scale out of play."""

import math
from typing import Any, NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

INITIAL_LOGIT = 3.0  # where every logit starts: a sigmoid mask starts at 0.95 (PeLAP-A)

STRETCH_LOW, STRETCH_HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3  # of hard concrete (arXiv 1712.01312, section 4)
HARD_GATES = ("topk", "hard_concrete")  # gates that give exact zeros
VARIANCE_FLOOR = 1e-8  # before division: an input scaled by 1e-3 still comes out at a variance of 0.99


class Gates(NamedTuple):
    """A mask and what it costs."""

    values: torch.Tensor  # (B, C) in 0..1: what latents are multiplied by
    open_probability: torch.Tensor  # (B, C) in 0..1: what the sparsity penalty averages


class ImportanceMask(ModelMixin, ConfigMixin):
    """Gates over latent channels, from the picture (adaptive) or one set for the whole model (static).

    An adaptive mask's logits are MLP(mean of z over positions), as in PeLAP-A; a static mask's are
    parameters. The gate makes values of logits l:

    - ``sigmoid``: sigmoid(l), which is also the cost (PeLAP-A).
    - ``topk``: 1 for the `num_active` largest, 0 for the others; the gradient is that of sigmoid(l)
      (straight-through). It costs nothing to choose among them: the cost is constant.
    - ``hard_concrete``: clamp(1.2 s - 0.1, 0, 1) with s = sigmoid((logit(u) + l) / T) for uniform u in
      training and s = sigmoid(l) otherwise; the cost is the probability of not being 0
      (arXiv 1712.01312, equations 10 to 12).

    Until ``started`` is set, all values are 1 and cost nothing (the curriculum's first epochs).
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        gate: str = "sigmoid",
        adaptive: bool = True,
        num_active: int | None = None,
        hidden: int = 32,
    ) -> None:
        super().__init__()
        self.register_buffer("started", torch.tensor(True))
        if not adaptive:
            self.logits = nn.Parameter(torch.full((latent_channels,), INITIAL_LOGIT))
            return
        first, last = nn.Linear(latent_channels, hidden), nn.Linear(hidden, latent_channels)
        self.layers = nn.Sequential(first, nn.ReLU(), last)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, INITIAL_LOGIT)

    @property
    def selects(self) -> bool:
        """Whether closed channels are closed for every picture and exactly 0: no part of the latent."""
        return not self.config.adaptive and self.config.gate in HARD_GATES

    def forward(self, latents: torch.Tensor, uniform: torch.Tensor | None = None) -> Gates:
        """Gates (B, C) of latents (B, C, H, W).

        Args:
            latents: Only their number is used by a static mask.
            uniform: (B, C) in 0..1 to sample hard concrete gates with, in training; None: without noise.
        """
        # Outside autocast: bf16 cannot tell a mask of 0.997 from 1.
        with torch.autocast(latents.device.type, enabled=False):
            if self.config.adaptive:
                logits = self.layers(latents.float().mean(dim=(2, 3)))
            else:
                logits = self.logits.expand(len(latents), -1)
            return Gates(*(torch.where(self.started, each, 1.0) for each in self._gates(logits, uniform)))

    def _gates(self, logits: torch.Tensor, uniform: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        soft = torch.sigmoid(logits)
        if self.config.gate == "sigmoid":
            return soft, soft
        if self.config.gate == "topk":
            chosen = logits.topk(self.config.num_active, dim=1).indices
            hard = torch.zeros_like(soft).scatter(1, chosen, 1.0)
            return hard + (soft - soft.detach()), hard
        if uniform is not None:
            soft = torch.sigmoid((torch.logit(uniform, eps=1e-6) + logits) / TEMPERATURE)
        values = (soft * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW).clamp(0, 1)
        open_logits = logits - TEMPERATURE * math.log(-STRETCH_LOW / STRETCH_HIGH)
        return values, torch.sigmoid(open_logits)


class LatentNorm(ModelMixin, ConfigMixin):
    """Unit variance and zero mean per latent channel.

    By the batch's own statistics in training, by their stored running averages otherwise. Shrinking
    the input then no longer makes the noise loss smaller.
    """

    @register_to_config
    def __init__(self, latent_channels: int = 4) -> None:
        super().__init__()
        self.statistics = nn.BatchNorm2d(latent_channels, affine=False, eps=VARIANCE_FLOOR)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Normalised latents, same shape (B, C, H, W)."""
        with torch.autocast(latents.device.type, enabled=False):
            normalised: torch.Tensor = self.statistics(latents.float())
        return normalised

    def restore(self, normalised: torch.Tensor) -> torch.Tensor:
        """The inverse by the stored statistics, same shape (B, C, H, W)."""
        statistics: Any = self.statistics
        std = (statistics.running_var + VARIANCE_FLOOR).sqrt()
        return normalised * std[:, None, None] + statistics.running_mean[:, None, None]
