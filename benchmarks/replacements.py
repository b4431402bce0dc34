"""How much less a replacement hurts when it is fitted: scores of the same operators, replaced in other ways.

    python benchmarks/replacements.py [--model DIR] [--latents 32] [--steps 20]

Projections: fitted by least squares, random, or without parameters. Norms: left out, or a scale and a shift
for each channel. The table has the median and the quartiles of the scores, and for how many of the operators
a way is the best of its group.
"""

import argparse
from pathlib import Path

import pandas as pd

from pelap.config import SamplerParams, ScoreParams
from pelap.core.device import choose_device
from pelap.core.terminal import progress
from pelap.diffusion.denoiser import Denoiser
from pelap.diffusion.reverse import model_denoiser
from pelap.pipelines.pipeline_io import load_model
from pelap.scoring.score import score_operators
from pelap.surgery.fit import fit_replacements
from pelap.surgery.operators import Init, Norm, find_operators

WAYS: dict[str, dict[str, tuple[Norm, Init]]] = {
    "projection": {
        "fitted": ("identity", "least_squares"),
        "random": ("identity", "random"),
        "parameter_free": ("identity", "parameter_free"),
    },
    "norm": {"identity": ("identity", "least_squares"), "affine": ("affine", "least_squares")},
}


def belongs(group: str, kind: str, replacement: str) -> bool:
    if group == "norm":
        return kind == "normalisation"
    return "projection" in replacement or "channel_pool" in replacement


def scores(denoiser: Denoiser, group: str, norm: Norm, init: Init, num_latents: int, rows: int) -> pd.Series:
    operators = [
        operator
        for operator in find_operators(denoiser.network, denoiser.forward(3), norm, init)
        if belongs(group, operator.kind, operator.replacement.name)
    ]
    noise = denoiser.noise(num_latents, 1, 0)
    replacements = fit_replacements(
        denoiser.network, operators, lambda: denoiser.denoise(noise, range(num_latents)), init
    )
    params = ScoreParams(num_latents=num_latents, num_seeds=1, batch_size=rows)
    table = score_operators(denoiser.network, denoiser.denoise, operators, replacements, noise, params).table
    return table.set_index("operator")["score"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("results/default/train/invariant/model"))
    parser.add_argument("--latents", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=256, help="rows of noise in one pass")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    model = load_model(args.model, choose_device(args.device))
    denoiser = model_denoiser(model, SamplerParams(kind="ddim", steps=args.steps), seed=0)
    rows = []
    with progress("ways", sum(map(len, WAYS.values()))) as report:
        for group, ways in WAYS.items():
            by_way = {
                way: scores(denoiser, group, norm, init, args.latents, args.rows)
                for way, (norm, init) in ways.items()
            }
            # What a way does not offer is left out of the comparison.
            table = pd.DataFrame(by_way).dropna()
            best = table.idxmin(axis=1).value_counts()
            for way in table:
                low, middle, high = table[way].quantile([0.25, 0.5, 0.75])
                rows.append((group, way, len(table), low, middle, high, best.get(way, 0)))
                report(len(rows), str(way))
    columns = ["replaced by", "way", "operators", "first quartile", "median", "third quartile", "best for"]
    print(pd.DataFrame(rows, columns=columns).to_string(index=False, float_format="{:.3g}".format))


if __name__ == "__main__":
    main()
