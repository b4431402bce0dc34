"""What early stop saves and keeps, and whether few latents rank operators as many do, on trained models.

`python benchmarks/early_stop.py MODEL...` -> a table in Markdown, a row a model folder and share. Operators
are scored on 128 latents (two minutes a model of the default run's size, on two cores); the first 32 of them
are what a scoring has, and what early stop looks at in pieces. The truth are the lowest of all 128.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from scipy.stats import spearmanr

from pelap.config import ScoreParams
from pelap.core.device import full_precision
from pelap.diffusion.reverse import model_denoiser
from pelap.pipelines.pipeline_io import load_model
from pelap.scoring.score import ORIGINAL, LatentStore, _order, _rungs, _still_running, score_operators
from pelap.scoring.scorer import Scorer
from pelap.scoring.statistic import LatentSet, change_of

MANY, FEW, SHARES = 128, 32, (0.1, 0.33, 0.5)


class First(LatentStore):
    """The first latents of a store, in the order that early stop looks at them."""

    def __init__(self, store: LatentStore, order: torch.Tensor) -> None:
        super().__init__()
        self._store, self._order = store, order

    def get(self, name: str) -> torch.Tensor:
        return self._store.get(name)[: len(self._order)][self._order]


def rows_of(folder: Path, seed: int) -> list[list[str]]:
    """The table's rows of one model."""
    params = ScoreParams(num_latents=MANY)
    denoiser = model_denoiser(load_model(folder, torch.device("cpu")), params.sampler, seed, params.num_seeds)
    scorer, store = Scorer(denoiser, params, seed), LatentStore()
    operators, names = scorer.operators, [operator.name for operator in scorer.operators]
    with full_precision():
        score_operators(*(denoiser.network, denoiser.denoise, operators, scorer.fit(operators)),
                        *(scorer.noise, params, store))  # fmt: skip

    def scores(num: int, how: str) -> list[float]:
        changes = (change_of(store.get(ORIGINAL)[:num], store.get(name)[:num]) for name in names)
        return [getattr(change, how)(params.formula) for change in changes]

    truths = {how: scores(MANY, how) for how in ("score", "debiased")}
    rho = [f"{spearmanr(scores(FEW, how), truths[how]).statistic:.3f}" for how in truths]
    rows = []
    for share in SHARES:
        wanted, running, done, denoised = math.ceil(share * len(names)), list(operators), 0, 0
        few = params.model_copy(update={"num_latents": FEW, "early_stop": share})
        first = First(store, _order(FEW, few))
        for end in _rungs(FEW, share):
            denoised, done = denoised + len(running) * (end - done), end
            if end < FEW:
                seen = first.get(ORIGINAL)[:end]
                running = _still_running(running, wanted, LatentSet(seen), params.formula, first)
        kept = {operator.name for operator in running}
        found = []
        for truth in truths.values():
            lowest = sorted(range(len(names)), key=truth.__getitem__)[:wanted]
            found.append(f"{sum(names[place] in kept for place in lowest)} of {wanted}")
        rows.append([str(folder), f"{share:g}", *found, f"{denoised / (FEW * len(names)):.0%}", *rho])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    head = ["model", "share", "lowest by score kept", "by debiased score", "rows denoised"]
    print("|", " | ".join([*head, "rank correlation, 32 with 128 latents", "the same, debiased"]), "|")
    print("|---|" + "--:|" * 6)
    for seed, folder in enumerate(parser.parse_args().models):
        for row in rows_of(folder, seed):
            print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
