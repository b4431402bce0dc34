"""The score of one operator from two sets of latents, and how sure it is."""

import math

import torch

from pelap.config.pruning import Formula
from pelap.core.rng import generator

CONFIDENCE = 0.95


def distances(original: torch.Tensor, modified: torch.Tensor) -> tuple[float, float]:
    """avg_dist and std_dist of two sets of latents (N, ...), N >= 2, made from the same noise.

    Source: LD-Pruner, section 2.3; avg and std (N - 1 in the denominator) elementwise over the set, L2
    norm over the elements. Both are infinite where an operator's absence makes values that are not finite.
    """
    if not modified.isfinite().all():
        return math.inf, math.inf
    original, modified = original.double(), modified.double()
    avg_dist = torch.linalg.vector_norm(original.mean(0) - modified.mean(0))
    std_dist = torch.linalg.vector_norm(original.std(0) - modified.std(0))
    return float(avg_dist), float(std_dist)


def combine(formula: Formula, avg_dist: torch.Tensor, std_dist: torch.Tensor) -> torch.Tensor:
    """The score from its two parts; the paper found ``avg+std`` best."""
    return {"avg+std": avg_dist + std_dist, "avg": avg_dist, "std": std_dist, "avg*std": avg_dist * std_dist}[
        formula
    ]


def score(formula: Formula, original: torch.Tensor, modified: torch.Tensor) -> float:
    """The score of two sets of latents; infinite where an operator's absence makes values that are not."""
    avg_dist, std_dist = distances(original, modified)
    return float(combine(formula, *torch.tensor([avg_dist, std_dist], dtype=torch.float64)))


class Bootstrap:
    """Scores over sets drawn with replacement from the latents; every operator is drawn the same sets.

    Args:
        original: Latents of the untouched model (N, ...).
        num_resamples: Sets to draw.
        seed: Names the draws.
    """

    def __init__(self, original: torch.Tensor, num_resamples: int, seed: int) -> None:
        self._original = original
        self.num_latents = num = len(original)
        drawn = torch.randint(num, (num_resamples, num), generator=generator(seed, "bootstrap", num))
        ones = torch.ones(drawn.shape, dtype=torch.float64)
        self._counts = torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(1, drawn, ones)  # (R, N)
        self._avg, self._std = self._moments(original)

    def draws(self, formula: Formula, modified: torch.Tensor) -> torch.Tensor:
        """Scores of the resampled sets (R,), moved so that their mean is the score.

        The norm of a difference grows with the noise in it, so resampled scores lie higher than the score:
        just their spread is used.
        """
        value = score(formula, self._original, modified)
        if value == math.inf:
            return torch.full((len(self._counts),), value, dtype=torch.float64)
        avg, std = self._moments(modified)
        resampled = combine(formula, (avg - self._avg).norm(dim=1), (std - self._std).norm(dim=1))
        return resampled - resampled.mean() + value

    def interval(
        self, formula: Formula, modified: torch.Tensor, confidence: float = CONFIDENCE
    ) -> tuple[float, float]:
        """Where the expected score of as many latents lies, as (low, high), low >= 0."""
        tails = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
        # "lower" and "higher" rather than "linear": between infinities there is no middle.
        draws = self.draws(formula, modified)
        low = draws.quantile(tails[0], interpolation="lower")
        high = draws.quantile(tails[1], interpolation="higher")
        return max(0.0, float(low)), float(high)

    def _moments(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The avg and the std of every resampled set, (R, D) each."""
        x = latents.flatten(1).double()
        num, centre = len(x), x.mean(0)
        x = x - centre  # so that the difference of squares below loses no digits
        avg = self._counts @ x / num
        var = (self._counts @ x.square() - num * avg.square()) / (num - 1)
        return avg + centre, var.clamp_min(0).sqrt()
