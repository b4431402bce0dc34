"""Scoring many operators a pass against the plain loop of the definition, and early stop against both.

    python benchmarks/scoring.py [--model DIR] [--latents 32] [--steps 20] [--rows 256] [--out FILE.json]

The plain loop takes one operator out by surgery and denoises, operator by operator, in the layout that a
model has when it is loaded. Both score the same operators from the same noise, in one process and in turns;
the least of the rounds counts, because other work on the machine only ever adds.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from default_models import default_model
from harness import Entry, argument_parser, compare, finish, in_turns

from pelap.config import SamplerParams, ScoreParams
from pelap.core.device import full_precision
from pelap.diffusion.denoiser import Denoiser
from pelap.diffusion.reverse import model_denoiser
from pelap.scoring.score import Scores, score_operators
from pelap.scoring.statistic import change_of
from pelap.surgery.apply import apply_plan
from pelap.surgery.fit import fit_replacements
from pelap.surgery.operators import Operator, find_operators
from pelap.surgery.plan import Plan, PlanEntry
from pelap.surgery.replacements import Replacement

LOWEST = 1 / 3


def plain_loop(
    model: Any,
    denoiser: Denoiser,
    operators: list[Operator],
    replacements: dict[str, Replacement],
    noise: torch.Tensor,
) -> pd.DataFrame:
    """The definition, word for word."""
    dense, items = model.unet, range(len(noise))
    rows = []
    with torch.no_grad():
        original = denoiser.denoise(noise, items)
        for operator in operators:
            plan = Plan((PlanEntry(operator.name, operator.kind, operator.replacement),))
            model.unet = apply_plan(dense, plan, replacements)
            score = change_of(original, denoiser.denoise(noise, items)).score("avg+std")
            rows.append({"operator": operator.name, "score": score})
    model.unet = dense
    return pd.DataFrame(rows)


def main(arguments: Sequence[str] | None = None) -> list[Entry]:
    parser = argument_parser(__doc__, rounds=3)
    parser.add_argument("--model", type=Path, metavar="DIR", help="model folder [the default run's]")
    parser.add_argument("--latents", type=int, default=32, help="[%(default)s]")
    parser.add_argument("--steps", type=int, default=20, help="of the sampler [%(default)s]")
    parser.add_argument("--rows", type=int, default=256, help="of noise in one pass [%(default)s]")
    parser.add_argument("--every", type=int, default=1, help="score every n-th operator, for a quick look")
    args = parser.parse_args(arguments)
    device = args.device
    model, words = default_model("dense", args.model, device)
    denoiser = model_denoiser(model, SamplerParams(kind="ddim", steps=args.steps), seed=0)
    operators = find_operators(denoiser.network, denoiser.forward(3))[:: args.every]
    noise = denoiser.noise(args.latents, 1, 0)
    replacements = fit_replacements(
        denoiser.network, operators, lambda: denoiser.denoise(noise, range(len(noise)))
    )

    def ours(early_stop: float | None) -> Scores:
        params = ScoreParams(
            num_latents=args.latents, num_seeds=1, batch_size=args.rows, early_stop=early_stop
        )
        return score_operators(denoiser.network, denoiser.denoise, operators, replacements, noise, params)

    def plain() -> pd.DataFrame:
        model.unet.to(memory_format=torch.contiguous_format)
        return plain_loop(model, denoiser, operators, replacements, noise)

    runs = {"plain": plain, "batched": lambda: ours(None), "early stop": lambda: ours(LOWEST)}
    with full_precision():
        times, results = in_turns(runs, args.rounds, device, "scoring", warmup=0)
    least = {name: min(values) for name, values in times.items()}
    full, stopped = results["batched"], results["early stop"]
    num_rows = len(operators) * args.latents
    entries = [
        compare("scoring", least["batched"], least["plain"], "s", device),
        compare("scoring, early stop", least["early stop"], least["plain"], "s", device),
        compare("scoring, rows denoised with early stop", stopped.num_rows, num_rows, "rows", device),
    ]
    wanted = math.ceil(LOWEST * len(operators))
    scores = full.table.merge(results["plain"], on="operator", suffixes=("", "_plain"))
    scale = float(full.original.std()) * math.sqrt(full.original[0].numel())
    difference = float((scores["score"] - scores["score_plain"]).abs().max())
    lowest = [set(each.table["operator"][:wanted]) for each in (full, stopped)]
    checks = {
        "model": words,
        "operators": len(operators),
        "largest difference of a score, over the std of the latents per element": difference / scale,
        "same lowest third with early stop": lowest[0] == lowest[1],
        "seconds of every round": times,
    }
    return finish(entries, checks, args.out)


if __name__ == "__main__":
    main()
