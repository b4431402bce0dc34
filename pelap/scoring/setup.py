"""What a scoring starts from: operators, replacements, settings and costs of one denoiser."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import nn

from pelap.config import ScoreParams
from pelap.diffusion.denoiser import Denoiser
from pelap.profiling.cost import count_macs, count_params
from pelap.profiling.latency import measure_latency, measure_module_latencies
from pelap.scoring.score import Scoring
from pelap.surgery.fit import fit_replacements
from pelap.surgery.operators import Operator, find_operators, forward_hooks
from pelap.surgery.replacements import Replacement

TRACE_ROWS = 3
"""Latents in the pass that finds the operators: few, and a number that no other dimension is likely to be."""


def find(denoiser: Denoiser, params: ScoreParams, only: Sequence[str] | None = None) -> list[Operator]:
    """The denoiser's operators, or those named."""
    return find_operators(
        denoiser.network,
        denoiser.forward(TRACE_ROWS),
        params.norm_replacement,
        params.replacement_init,
        only=only,
    )


def fit(
    denoiser: Denoiser, operators: Sequence[Operator], params: ScoreParams, seed: int
) -> dict[str, Replacement]:
    """Replacements of operators, started as the parameters say; the same for the same seed."""
    start = denoiser.noise(params.num_latents, params.num_seeds, seed)

    def run_through() -> None:
        for items in torch.arange(len(start)).split(params.batch_size):
            denoiser.denoise(start[items], items.tolist())

    return fit_replacements(denoiser.network, operators, run_through, params.replacement_init, seed)


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
    denoiser: Denoiser,
    operators: Sequence[Operator],
    replacements: dict[str, Replacement],
    params: ScoreParams,
) -> pd.DataFrame:
    """Parameters, MACs and milliseconds of each operator, parts included, in one pass of the batch."""
    network, names = denoiser.network, [operator.name for operator in operators]
    forward = denoiser.forward(params.latency_batch_size)
    macs = count_macs(network, forward)
    latencies = measure_module_latencies(network, forward, names, denoiser.device, params.latency_repeats)
    instead = _replacement_ms(denoiser, forward, replacements, params.latency_repeats)
    return pd.DataFrame(
        {
            "operator": names,
            "params": [count_params(network.get_submodule(name)) for name in names],
            "replacement_params": [count_params(replacements[name]) for name in names],
            "macs": [macs.get(name, 0) for name in names],
            "latency_ms": [latencies[name] for name in names],
            "latency_share": [latencies[name] / latencies[""] for name in names],
            "replacement_share": [instead[name] / latencies[""] for name in names],
        }
    )


def _replacement_ms(
    denoiser: Denoiser, forward: Callable[[], object], replacements: dict[str, Replacement], repeats: int
) -> dict[str, float]:
    """Milliseconds of each replacement on what its operator is given in a pass; 0 where it does nothing.

    By itself, not in the network: a block and its parts cannot be replaced at once.
    """
    working = {name: replacement for name, replacement in replacements.items() if replacement.steps}
    calls: dict[str, list[tuple[Any, Any]]] = {name: [] for name in working}

    def keep(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls[name].append((args, kwargs))

    with forward_hooks({name: denoiser.network.get_submodule(name) for name in working}, keep):
        forward()

    def run(name: str) -> None:
        with torch.no_grad():
            for args, kwargs in calls[name]:
                working[name](*args, **kwargs)

    times = measure_latency({name: partial(run, name) for name in working}, denoiser.device, repeats)
    return dict.fromkeys(replacements, 0.0) | {name: time.median_ms for name, time in times.items()}
