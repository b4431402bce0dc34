"""What each part of LD-Pruner's score sees, on sets of latents whose change is known.

`python benchmarks/parts.py` -> a table in Markdown. A set of latents is drawn and changed in one known way;
beside the parts of the score stands the Frechet distance of the two sets of latents themselves.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pandas as pd
import torch

from pelap.core.rng import generator
from pelap.evaluation.frechet import FeatureStatistics, frechet_distance
from pelap.scoring.statistic import change_of

SHAPE = (4, 4, 4)  # of a latent: few enough values that a covariance of them is known well
FORMULAS = ("avg+std", "avg", "std", "avg*std")

Change = Callable[[torch.Tensor], torch.Tensor]


def modes(num: int, seed: int) -> torch.Tensor:
    """Latents (num, *SHAPE) of two kinds, with unit variance: a centre each, and noise around it."""
    stream = generator(seed, "parts")
    centres = torch.randn((2, *SHAPE), generator=stream)
    which = torch.arange(num) % 2
    latents = centres[which] + 0.5 * torch.randn((num, *SHAPE), generator=stream)
    return (latents - latents.mean(0)) / latents.std(0)


def changes(latents: torch.Tensor, size: float, seed: int) -> dict[str, torch.Tensor]:
    """The set changed in ways that a lost operator may change it, of about the same size."""
    stream = generator(seed, "parts-change")
    direction = torch.randn(latents.shape[1:], generator=stream)
    noise = torch.randn(latents.shape, generator=stream)
    near = torch.where(
        (torch.arange(len(latents)) % 2 == 0)[:, None, None, None], latents, latents.roll(1, 0)
    )
    return {
        "nothing": latents,
        "all moved alike (a shift)": latents + size * direction,
        "all drawn together (less variety)": (1 - size) * latents,
        "noise added (more spread)": latents + size * noise,
        "one kind of two is lost": near,
        "both kinds there, items exchanged": latents.roll(1, 0),
        "values exchanged, each by itself (no structure)": _exchanged(latents, stream),
        "moved and drawn together": (1 - size) * (latents + size * direction),
    }


def _exchanged(latents: torch.Tensor, stream: torch.Generator) -> torch.Tensor:
    """Every value of a latent from another item: each has its distribution, but nothing goes together."""
    flat = latents.flatten(1)
    order = torch.rand(flat.shape, generator=stream).argsort(dim=0)
    return flat.gather(0, order).view(latents.shape)


def table(num: int, size: float, seed: int) -> pd.DataFrame:
    """Parts, formulas and the distance of the sets, a row a change."""
    latents = modes(num, seed)
    original = FeatureStatistics.of(latents.flatten(1))
    rows = {}
    for name, changed in changes(latents, size, seed).items():
        change = change_of(latents, changed)
        formulas = {formula: change.score(formula) for formula in FORMULAS}
        formulas |= {f"{FORMULAS[0]}, debiased": change.debiased(FORMULAS[0])}
        distance = frechet_distance(FeatureStatistics.of(changed.flatten(1)), original)
        rows[name] = {**formulas, "Frechet distance": distance}
    return pd.DataFrame(rows).T


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num", type=int, default=4096, metavar="N", help="latents [%(default)s]")
    parser.add_argument(
        "--size", type=float, default=0.3, help="of the change, in standard deviations [%(default)s]"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    args = parser.parse_args()
    found = table(args.num, args.size, args.seed)
    print("| change |", " | ".join(found.columns), "|")
    print("|---|" + "--:|" * len(found.columns))
    for name, row in found.iterrows():
        print(f"| {name} |", " | ".join(f"{value:.2f}" for value in row), "|")


if __name__ == "__main__":
    main()
