"""score: LD-Pruner's score of every operator of one denoiser, with its cost."""

from pathlib import Path

import pandas as pd
import torch

from pelap.config import Params, ScoreParams
from pelap.core import files
from pelap.core.device import environment, full_precision, protocol_beside
from pelap.core.keys import Key, code_of, key
from pelap.core.listing import named
from pelap.core.progress import progress
from pelap.core.resume import ResumeState
from pelap.diffusion.denoiser import Denoiser, said_if_some_are_left
from pelap.diffusion.model_denoiser import model_denoiser
from pelap.pipelines.model_io import load_model
from pelap.pipelines.pipeline_denoiser import pipeline_denoiser
from pelap.pipelines.pipeline_io import open_pipeline
from pelap.scoring.importance import demand_criteria, importances
from pelap.scoring.latents import LatentStore
from pelap.scoring.score import Scores, score_operators
from pelap.scoring.setup import costs, find, fit, scoring_of
from pelap.stages.shared import Context
from pelap.surgery.plan import fingerprint

SHAPING = ("num_latents", "num_seeds", "norm_replacement", "replacement_init", "early_stop")
"""Parameters of a score that its latents or their order depend on, beside the denoiser's protocol."""

FIRST = ["operator", "kind", "replacement", "avg_dist", "std_dist", "score", "params", "macs", "latency_ms"]
"""Columns of the table that come first: what an operator is, matters and costs."""

NUM_SHOWN = 4
"""Operators that the terminal lists from either end."""
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
        denoiser = model_denoiser(model, params.sampler, seed, params.num_seeds)
        state = ResumeState(paths.resume, "score", _key(denoiser, params, seed))
        table, scores = _score(denoiser, params, seed, state)
        with files.atomic_dir(paths.score) as partial:
            files.write_csv(partial / paths.scores.name, table)
            protocol = _protocol(denoiser, params, seed, scores)
            files.write_json(partial / paths.score_protocol.name, protocol)
        _finish(denoiser, params, seed, scores, save_latents, state)
    _show(table, scores)


def score_pipeline(
    params: Params,
    folder: Path,
    out: Path,
    device: torch.device,
    prompts: Path | None = None,
    save_latents: Path | None = None,
) -> None:
    """Write the table of scores of a diffusers pipeline's denoiser, least first, and its protocol beside it.

    Args:
        params: The sections `seed` and `score` are read; the pipeline keeps its own scheduler.
        folder: The pipeline.
        out: The CSV file; the protocol goes into ``<out without .csv>.protocol.json``.
        device: Where to compute.
        prompts: One prompt a line, for text-to-image.
        save_latents: Write the starting noise and the untouched model's latents here.

    Raises:
        ModelError: Not a pipeline that can be used, or one that gives chance.
        ConfigError: Prompts are missing or out of place.
        DataError: The file of prompts cannot be read.
    """
    score, seed = params.score, params.seed
    with files.exclusive(out):
        pipeline = open_pipeline(folder, score.sampler.steps, device, prompts)
        denoiser = pipeline_denoiser(pipeline, folder.name, seed, score.num_seeds)
        state = ResumeState(out.parent, f".{out.name}.resume", _key(denoiser, score, seed))
        table, scores = _score(denoiser, score, seed, state)
        files.write_csv(out, table)
        files.write_json(protocol_beside(out), _protocol(denoiser, score, seed, scores))
        _finish(denoiser, score, seed, scores, save_latents, state)
    _show(table, scores)
    print(f"scores in {out}")


def _score(
    denoiser: Denoiser, params: ScoreParams, seed: int, state: ResumeState
) -> tuple[pd.DataFrame, Scores]:
    demand_criteria(denoiser, params)
    numbers = params.num_latents // params.num_seeds
    said_if_some_are_left(denoiser.name, numbers, denoiser.num_asked, "score.num_latents")
    operators = find(denoiser, params)
    replacements = fit(denoiser, operators, params, seed)
    start = denoiser.noise(params.num_latents, params.num_seeds, seed)
    store = LatentStore(state.folder)
    with progress(f"score {denoiser.name}", len(operators) * len(start)) as report, full_precision():
        scoring = scoring_of(params, seed)
        scores = score_operators(
            denoiser.network, denoiser.denoise, operators, replacements, start, scoring, store, report
        )
    table = scores.table.merge(costs(denoiser, operators, replacements, params))
    ranks = importances(denoiser, operators, replacements, scores.original, params, seed)
    table = table.assign(**{name: table["operator"].map(values) for name, values in ranks.items()})
    return table[[*FIRST, *(column for column in table if column not in FIRST)]], scores


def _key(denoiser: Denoiser, params: ScoreParams, seed: int) -> Key:
    """Of the latents of a scoring; what gives others starts anew."""
    return key(
        networks=denoiser.weights,
        sampling=denoiser.protocol,
        seed=seed,
        score={name: getattr(params, name) for name in SHAPING},
        code=code_of(__name__),
    )


def _protocol(denoiser: Denoiser, params: ScoreParams, seed: int, scores: Scores) -> dict[str, object]:
    return {
        "seed": seed,
        **params.model_dump(),
        **denoiser.protocol,
        "network": fingerprint(denoiser.network),
        "weights": denoiser.weights,
        "rank_correlation": scores.rank_correlation,
        "num_rows": scores.num_rows,
        **environment(denoiser.device),
    }


def _finish(
    denoiser: Denoiser,
    params: ScoreParams,
    seed: int,
    scores: Scores,
    save_latents: Path | None,
    state: ResumeState,
) -> None:
    """Save the latents for whoever wants to check, and drop the resume state."""
    if save_latents is not None:
        start = denoiser.noise(params.num_latents, params.num_seeds, seed)
        about = {
            "seed": seed,
            "num_seeds": params.num_seeds,
            "steps": params.sampler.steps,
            "spacing": denoiser.spacing,
            "subject": denoiser.name,
        }
        texts = {name: str(value) for name, value in about.items()}
        files.save_tensors(save_latents, {"noise": start.cpu(), "original": scores.original}, texts)
    state.drop()


def _show(table: pd.DataFrame, scores: Scores) -> None:
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
