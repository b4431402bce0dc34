"""LD-Pruner's score: how much the generated latents change without an operator (section 2.3).

score = ||avg(L_orig) - avg(L_mod)||_2 + ||std(L_orig) - std(L_mod)||_2, with avg and std taken
elementwise over the set of latents, and the norm over the elements of a latent.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import nn

from pelap.pruning.operators import Operator, first_tensor, hooked

Denoise = Callable[[torch.Tensor], torch.Tensor]
"""Noise (B, C, h, w) to latents of the same shape, through the UNet under examination."""


def distances(original: torch.Tensor, modified: torch.Tensor) -> tuple[float, float]:
    """avg_dist and std_dist of two sets of latents (N, C, h, w), N >= 2, made from the same noise."""
    avg_dist = torch.linalg.vector_norm(original.mean(0) - modified.mean(0))
    std_dist = torch.linalg.vector_norm(original.std(0) - modified.std(0))
    return float(avg_dist), float(std_dist)


@torch.no_grad()
def score_operators(
    unet: nn.Module,
    denoise: Denoise,
    operators: Sequence[Operator],
    noise: torch.Tensor,
    candidates_per_batch: int,
    report: Callable[[int], None] = lambda done: None,
) -> pd.DataFrame:
    """Score every operator, leaving out one at a time.

    Several candidates share a batch: each owns a slice of it, on which its operator is passed over.
    The batch repeats the same noise for every slice.

    Args:
        unet: The denoiser that `denoise` uses.
        denoise: The whole denoising process; it must treat the items of a batch independently.
        operators: From `find_operators`.
        noise: (N, C, h, w), the starting points of the set of latents.
        candidates_per_batch: How many operators to examine in one pass.
        report: Called with the number of operators done.

    Returns:
        Columns operator, kind, replacement, avg_dist, std_dist, score; least score first.
    """
    original = denoise(noise)
    rows = []
    for start in range(0, len(operators), candidates_per_batch):
        group = operators[start : start + candidates_per_batch]
        for operator, latents in zip(group, _modified(unet, denoise, group, noise), strict=True):
            avg_dist, std_dist = distances(original, latents)
            rows.append(
                {
                    "operator": operator.name,
                    "kind": operator.kind,
                    "replacement": operator.replacement,
                    "avg_dist": avg_dist,
                    "std_dist": std_dist,
                    "score": avg_dist + std_dist,
                }
            )
        report(start + len(group))
    return pd.DataFrame(rows).sort_values(["score", "operator"], ignore_index=True)


def _modified(
    unet: nn.Module, denoise: Denoise, group: Sequence[Operator], noise: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Latents of each candidate of the group, (N, C, h, w) each."""
    num = len(noise)
    slices = {operator.name: slice(i * num, (i + 1) * num) for i, operator in enumerate(group)}

    def make(name: str) -> Any:
        def pass_over(module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor:
            mixed = output.clone()
            mixed[slices[name]] = first_tensor(args, kwargs)[slices[name]]
            return mixed

        return pass_over

    with hooked(unet, list(slices), make):
        return torch.split(denoise(noise.repeat(len(group), 1, 1, 1)), num)
