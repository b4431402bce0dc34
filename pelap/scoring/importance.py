"""Further columns of a table of scores: what LD-Pruner's score is compared with."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from pelap.config import ScoreParams
from pelap.core.device import full_precision
from pelap.core.errors import ConfigError
from pelap.core.rng import generator
from pelap.diffusion.denoiser import Denoiser
from pelap.scoring import criteria
from pelap.surgery.operators import Operator
from pelap.surgery.replacements import Replacement

NUM_CALLS = 5
"""Steps of the denoising run that single-step criteria look at; also the draws of noise for a gradient."""


def demand_criteria(denoiser: Denoiser, params: ScoreParams) -> None:
    """Refuse a criterion that this denoiser cannot be ranked by.

    Raises:
        ConfigError: The loss of its training is needed, and not known.
    """
    if "taylor" in params.criteria and denoiser.task_loss is None:
        raise ConfigError(
            f"score.criteria: taylor needs the loss of training, which a pipeline ({denoiser.name}) does not "
            "tell; leave it out"
        )


def importances(
    denoiser: Denoiser,
    operators: Sequence[Operator],
    replacements: Mapping[str, Replacement],
    latents: torch.Tensor,
    params: ScoreParams,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Values of `score.criteria` of every operator, by criterion and operator; see `pelap.scoring.criteria`.

    Args:
        denoiser: The denoiser.
        operators: To be ranked.
        replacements: Their replacements.
        latents: That the untouched denoiser made (N, ...): what a gradient is taken on, for want of data.
        params: The section `score`.
        seed: Names random numbers.
    """
    network = denoiser.network
    # One batch says enough, and needs no more memory than scoring does. It is drawn, as items go through
    # prompts in their order.
    drawn = torch.randperm(params.num_latents, generator=generator(seed, "criteria"))
    items = drawn[: params.batch_size].sort().values
    start = denoiser.noise(params.num_latents, params.num_seeds, seed)[items]

    def denoise() -> object:
        return denoiser.denoise(start, items.tolist())

    def losses() -> list[Callable[[], torch.Tensor]]:
        assert denoiser.task_loss is not None
        loss = partial(denoiser.task_loss, latents[items].to(denoiser.device), items.tolist())
        return [partial(loss, generator(seed, "taylor", draw)) for draw in range(NUM_CALLS)]

    calls: list[criteria.Call] = []
    if {"output_error", "block_similarity"} & set(params.criteria):
        with full_precision():
            calls = criteria.record_calls(network, denoise, NUM_CALLS)
    ways: dict[str, Callable[[], dict[str, float]]] = {
        "random": lambda: criteria.random(operators, seed),
        "magnitude": lambda: criteria.magnitude(network, operators),
        "block_similarity": lambda: criteria.block_similarity(network, calls, operators, replacements),
        "output_error": lambda: criteria.output_error(
            network, calls, operators, replacements, params.batch_size
        ),
        "taylor": lambda: criteria.taylor(network, losses(), operators, replacements),
    }
    with full_precision():
        return {name: ways[name]() for name in params.criteria}
