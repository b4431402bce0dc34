"""The score of one operator from two sets of latents, what chance adds to it, and how sure it is.

A set of N latents has the avg and the std of the model's latents only up to chance, and the norm of a
difference has no sign: chance adds to each part of the score about the root of the summed variances of that
difference, other for every operator, and falls with N as slowly as 1 / sqrt(N). Both are estimated by leaving
one latent out after the other (a jackknife), the same one of both sets, as they are made from the same noise.

Shapes: N latents, D elements of a latent.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from scipy import stats

from pelap.config.pruning import Formula

CONFIDENCE = 0.95


def combine(formula: Formula, avg_dist: torch.Tensor, std_dist: torch.Tensor) -> torch.Tensor:
    """The score from its two parts; the paper found ``avg+std`` best."""
    return {"avg+std": avg_dist + std_dist, "avg": avg_dist, "std": std_dist, "avg*std": avg_dist * std_dist}[
        formula
    ]


class LatentSet:
    """avg and std of a set of latents (N, ...), N >= 2, elementwise; and of the set without each latent.

    Source: LD-Pruner, section 2.3; N - 1 in the denominator of std.
    """

    def __init__(self, latents: torch.Tensor) -> None:
        x = latents.flatten(1).double()  # (N, D)
        self.num = len(x)
        self.avg = x.mean(0)  # (D,)
        self._centred = x - self.avg
        self._scatter = self._centred.square().sum(0)
        self.std = (self._scatter / (self.num - 1)).sqrt()  # (D,)

    @cached_property
    def without(self) -> torch.Tensor:
        """Avg and std without each latent, (2, N, D); no std where of two latents one is left."""
        num = self.num
        avg = self.avg - self._centred / (num - 1)
        scatter = (self._scatter - self._centred.square() * (num / (num - 1))).clamp_min(0)
        std = (scatter / (num - 2)).sqrt() if num > 2 else torch.full_like(scatter, math.nan)
        return torch.stack([avg, std])


@dataclass(frozen=True)
class Change:
    """What became of a set of latents without an operator: LD-Pruner's score and its parts.

    Args:
        original: Latents of the untouched model.
        modified: Those without the operator, from the same noise; not finite: the score is infinite.
    """

    original: LatentSet
    modified: LatentSet

    @cached_property
    def parts(self) -> torch.Tensor:
        """avg_dist and std_dist (2,) float64."""
        avg, std = self.modified.avg - self.original.avg, self.modified.std - self.original.std
        parts = torch.stack([avg.norm(), std.norm()])
        return parts if parts.isfinite().all() else torch.full_like(parts, math.inf)

    @cached_property
    def noise(self) -> torch.Tensor:
        """What chance adds to the square of each part, on average (2,): the summed variances of its elements.

        Of the avg that is tr(cov of the differences) / N. NaN where two latents say nothing of the std.
        """
        return standard_error(self._without.movedim(1, -1)).square().sum(dim=1)

    def score(self, formula: Formula) -> float:
        """The paper's."""
        return float(combine(formula, *self.parts))

    def debiased(self, formula: Formula) -> float:
        """The same with what chance adds taken from the squares of the parts: what many latents tend to."""
        parts = _less(self.parts, self.noise) if self.parts.isfinite().all() else self.parts
        return float(combine(formula, *parts))

    def replicates(self, formula: Formula) -> torch.Tensor:
        """Debiased scores without each latent (N,); infinite where the score is."""
        num = self.original.num
        noise = self.noise[:, None] * num / (num - 1)  # of one latent less
        replicates = combine(formula, *_less(self._without.norm(dim=2), noise))
        return replicates if self.parts.isfinite().all() else torch.full_like(replicates, math.inf)

    def interval(self, formula: Formula) -> tuple[float, float]:
        """Where the expected score of as many latents lies at 95 %, as (low, high); NaN of two latents.

        By Student's t and the jackknife's standard error. For changes that are Gaussian it covers 95 to 99 %:
        most where the operator changes nothing, as chance alone scatters less than its parts do. Where one
        latent in ten carries the change, or its tails are long, it may cover but half at eight latents.
        """
        value = self.score(formula)
        if math.isinf(value):
            return value, value
        half = quantile(self.original.num) * float(
            standard_error(combine(formula, *self._without.norm(dim=2)))
        )
        return (math.nan if math.isnan(half) else max(0.0, value - half)), value + half

    @cached_property
    def _without(self) -> torch.Tensor:
        """Differences of avg and std without each latent, (2, N, D)."""
        return self.modified.without - self.original.without


def change_of(original: torch.Tensor, modified: torch.Tensor) -> Change:
    """The change between two sets of latents (N, ...) that were made from the same noise."""
    return Change(LatentSet(original), LatentSet(modified))


def quantile(num: int) -> float:
    """Standard errors in half of a 95 % interval, of the jackknife of so many latents."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, num - 1))


def standard_error(replicates: torch.Tensor) -> torch.Tensor:
    """The jackknife's of a value, from those without each latent in the last dimension (..., N)."""
    num = replicates.shape[-1]
    spread = replicates - replicates.mean(dim=-1, keepdim=True)
    return ((num - 1) / num * spread.square().sum(dim=-1)).sqrt()


def _less(parts: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return (parts.square() - noise).clamp_min(0).sqrt()
