"""score: LD-Pruner's score of every operator of one denoiser, with its cost."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from pelap import io
from pelap.device import full_precision
from pelap.keys import Key, code_of, key
from pelap.loading import load_model
from pelap.measure.cost import count_macs, count_params
from pelap.measure.latency import measure_latency, measure_module_latencies
from pelap.params import Params, ScoreParams
from pelap.progress import progress
from pelap.pruning.fit import make_stand_ins
from pelap.pruning.latents import LatentStore
from pelap.pruning.operators import Operator, find_operators, hooked
from pelap.pruning.plan import fingerprint
from pelap.pruning.replace import StandIn
from pelap.pruning.score import Scores, Scoring, score_operators
from pelap.report.changes import named
from pelap.stages.context import Context
from pelap.stages.importance import demand_criteria, importances
from pelap.stages.piped import open_pipeline
from pelap.stages.protocol import environment, protocol_beside
from pelap.stages.subject import Subject, model_subject, pipeline_subject, said_if_some_are_left
from pelap.training.checkpoint import ResumeState

TRACE_ROWS = 3
"""Latents in the pass that finds the operators: few, and a number that no other dimension is likely to be."""

SHAPING = ("num_latents", "num_seeds", "norm", "start", "early_stop")
"""Parameters of a score that its latents or their order depend on, beside the subject's protocol."""

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
    with io.exclusive(paths.score):
        model = load_model(paths.train(params.variant).model, context.device)
        subject = model_subject(model, params.sampler, seed, params.num_seeds)
        state = ResumeState(paths.resume, "score", _key(subject, params, seed))
        table, scores = _score(subject, params, seed, state)
        with io.atomic_dir(paths.score) as partial:
            io.write_csv(partial / paths.scores.name, table)
            protocol = _protocol(subject, params, seed, scores)
            io.write_json(partial / paths.score_protocol.name, protocol)
        _finish(subject, params, seed, scores, save_latents, state)
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
    with io.exclusive(out):
        pipeline = open_pipeline(folder, score.sampler.steps, device, prompts)
        subject = pipeline_subject(pipeline, folder.name, seed, score.num_seeds)
        state = ResumeState(out.parent, f".{out.name}.resume", _key(subject, score, seed))
        table, scores = _score(subject, score, seed, state)
        io.write_csv(out, table)
        io.write_json(protocol_beside(out), _protocol(subject, score, seed, scores))
        _finish(subject, score, seed, scores, save_latents, state)
    _show(table, scores)
    print(f"scores in {out}")


def find(subject: Subject, params: ScoreParams, only: Sequence[str] | None = None) -> list[Operator]:
    """The subject's operators, or those named."""
    return find_operators(subject.network, subject.forward(TRACE_ROWS), params.norm, params.start, only=only)


def fit(
    subject: Subject, operators: Sequence[Operator], params: ScoreParams, seed: int
) -> dict[str, StandIn]:
    """Replacements of operators, started as the parameters say; the same for the same seed."""
    start = subject.noise(params.num_latents, params.num_seeds, seed)

    def run_through() -> None:
        for items in torch.arange(len(start)).split(params.batch_size):
            subject.denoise(start[items], items.tolist())

    return make_stand_ins(subject.network, operators, run_through, params.start, seed)


def _score(
    subject: Subject, params: ScoreParams, seed: int, state: ResumeState
) -> tuple[pd.DataFrame, Scores]:
    demand_criteria(subject, params)
    numbers = params.num_latents // params.num_seeds
    said_if_some_are_left(subject.name, numbers, subject.num_asked, "score.num_latents")
    operators = find(subject, params)
    stand_ins = fit(subject, operators, params, seed)
    start = subject.noise(params.num_latents, params.num_seeds, seed)
    store = LatentStore(state.folder)
    with progress(f"score {subject.name}", len(operators) * len(start)) as report, full_precision():
        scoring = scoring_of(params, seed)
        scores = score_operators(
            subject.network, subject.denoise, operators, stand_ins, start, scoring, store, report
        )
    table = scores.table.merge(costs(subject, operators, stand_ins, params))
    ranks = importances(subject, operators, stand_ins, scores.original, params, seed)
    table = table.assign(**{name: table["operator"].map(values) for name, values in ranks.items()})
    return table[[*FIRST, *(column for column in table if column not in FIRST)]], scores


def scoring_of(params: ScoreParams, seed: int) -> Scoring:
    """How to score, from the section `score`."""
    return Scoring(
        formula=params.formula,
        rows_per_batch=params.batch_size,
        num_sets=params.num_seeds,
        early_stop=params.early_stop,
        num_resamples=params.num_resamples,
        seed=seed,
    )


def costs(
    subject: Subject, operators: Sequence[Operator], stand_ins: dict[str, StandIn], params: ScoreParams
) -> pd.DataFrame:
    """Parameters, MACs and milliseconds of each operator, parts included, in one pass of the batch."""
    network, names = subject.network, [operator.name for operator in operators]
    forward = subject.forward(params.latency_batch_size)
    macs = count_macs(network, forward)
    latencies = measure_module_latencies(network, forward, names, subject.device, params.latency_repeats)
    instead = _replacement_ms(subject, forward, stand_ins, params.latency_repeats)
    return pd.DataFrame(
        {
            "operator": names,
            "params": [count_params(network.get_submodule(name)) for name in names],
            "replacement_params": [count_params(stand_ins[name]) for name in names],
            "macs": [macs.get(name, 0) for name in names],
            "latency_ms": [latencies[name] for name in names],
            "latency_share": [latencies[name] / latencies[""] for name in names],
            "replacement_share": [instead[name] / latencies[""] for name in names],
        }
    )


def _replacement_ms(
    subject: Subject, forward: Callable[[], object], stand_ins: dict[str, StandIn], repeats: int
) -> dict[str, float]:
    """Milliseconds of each replacement on what its operator is given in a pass; 0 where it does nothing.

    By itself, not in the network: a block and its parts cannot be replaced at once.
    """
    working = {name: stand_in for name, stand_in in stand_ins.items() if stand_in.steps}
    calls: dict[str, list[tuple[Any, Any]]] = {name: [] for name in working}

    def keep(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls[name].append((args, kwargs))

    with hooked({name: subject.network.get_submodule(name) for name in working}, keep):
        forward()

    def run(name: str) -> None:
        with torch.no_grad():
            for args, kwargs in calls[name]:
                working[name](*args, **kwargs)

    times = measure_latency({name: partial(run, name) for name in working}, subject.device, repeats)
    return dict.fromkeys(stand_ins, 0.0) | {name: time.median_ms for name, time in times.items()}


def _key(subject: Subject, params: ScoreParams, seed: int) -> Key:
    """Of the latents of a scoring; what gives others starts anew."""
    return key(
        networks=subject.weights,
        sampling=subject.protocol,
        seed=seed,
        score={name: getattr(params, name) for name in SHAPING},
        code=code_of(__name__),
    )


def _protocol(subject: Subject, params: ScoreParams, seed: int, scores: Scores) -> dict[str, object]:
    return {
        "seed": seed,
        **params.model_dump(),
        **subject.protocol,
        "network": fingerprint(subject.network),
        "weights": subject.weights,
        "rank_correlation": scores.rank_correlation,
        "num_rows": scores.num_rows,
        **environment(subject.device),
    }


def _finish(
    subject: Subject,
    params: ScoreParams,
    seed: int,
    scores: Scores,
    save_latents: Path | None,
    state: ResumeState,
) -> None:
    """Save the latents for whoever wants to check, and drop the resume state."""
    if save_latents is not None:
        start = subject.noise(params.num_latents, params.num_seeds, seed)
        about = {
            "seed": seed,
            "num_seeds": params.num_seeds,
            "steps": params.sampler.steps,
            "spacing": subject.spacing,
            "subject": subject.name,
        }
        texts = {name: str(value) for name, value in about.items()}
        io.save_tensors(save_latents, {"noise": start.cpu(), "original": scores.original}, texts)
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
