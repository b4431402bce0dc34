"""score: LD-Pruner's score of every operator of one denoiser, with its cost."""

from pathlib import Path

import pandas as pd

from pelap.core import files
from pelap.core.digests import result_dir
from pelap.core.keys import ResumeState, code_of, key
from pelap.core.tables import write_table
from pelap.core.terminal import named
from pelap.diffusion.denoiser import said_if_some_are_left
from pelap.diffusion.reverse import model_denoiser
from pelap.models.model_io import load_model
from pelap.scoring.score import LatentStore, Scores
from pelap.scoring.scorer import Scorer
from pelap.stages.shared import Context

NUM_SHOWN = 4  # operators that the terminal lists from either end
NAME_WIDTH = 30


def run(context: Context, save_latents: Path | None = None) -> None:
    """Write the table of scores of the parameters' variant, least first.

    Args:
        context: Parameters, paths and device.
        save_latents: Write the starting noise and the untouched model's latents here.
    """
    params, paths, seed = context.params.score, context.paths, context.params.seed
    with files.exclusive(paths.score):
        model = load_model(paths.train(params.variant).model, context.device)
        scorer = Scorer(model_denoiser(model, params.sampler, seed, params.num_seeds), params, seed)
        made_of = key(**scorer.state_parts, code=code_of(__name__))
        state = ResumeState(paths.resume, "score", made_of)
        scores = score(scorer, state, save_latents)
        with result_dir(paths.score) as partial:
            table, protocol = partial / paths.scores.name, partial / paths.score_protocol.name
            write_table(table, scores.table, protocol, scores.protocol)
        state.drop()
    show(scores)


def score(scorer: Scorer, state: ResumeState, save_latents: Path | None) -> Scores:
    """Score all operators, from where an interrupted run stopped."""
    denoiser, params = scorer.denoiser, scorer.params
    num_items = params.num_latents // params.num_seeds
    said_if_some_are_left(denoiser.name, num_items, denoiser.num_asked, "score.num_latents")
    scores = scorer.score(LatentStore(state.folder))
    if save_latents is not None:
        about = {
            "seed": scorer.seed,
            "num_seeds": params.num_seeds,
            "steps": params.sampler.steps,
            "spacing": denoiser.spacing,
            "subject": denoiser.name,
        }
        texts = {name: str(value) for name, value in about.items()}
        files.save_tensors(save_latents, {"noise": scorer.noise.cpu(), "original": scores.original}, texts)
    return scores


def show(scores: Scores) -> None:
    """The least and the most important on the terminal."""
    table = scores.table
    print(f"{len(table)} operators, with 95 % intervals and shares of the denoiser's time; least and most:")
    for _, row in pd.concat([table.head(NUM_SHOWN), table.tail(NUM_SHOWN)]).iterrows():
        interval = f"{row['score_low']:.3g}..{row['score_high']:.3g}"
        rest = f" {row['replacement']:<12} {row['score']:>8.3g} {interval:>19} {row['latency_share']:>6.1%}"
        print(*named(row["operator"], NAME_WIDTH, rest), sep="\n")
    if table["stopped_early"].any():
        print(f"{table['stopped_early'].sum()} stopped early: {scores.num_rows} rows of noise were denoised")
    if scores.rank_correlation is not None:
        among = f" ({(~table['stopped_early']).sum()} operators)" if table["stopped_early"].any() else ""
        print(f"rank correlation of one seed's scores with another's: {scores.rank_correlation:.3f}{among}")
