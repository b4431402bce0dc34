"""score: LD-Pruner's score of every operator of one variant's UNet, with its cost."""

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import nn

from pelap import io
from pelap.denoising import denoise
from pelap.loading import load_model
from pelap.measure.cost import count_macs, count_params
from pelap.measure.latency import measure_module_latencies
from pelap.models.ldm import LatentDiffusion
from pelap.params import ScoreParams
from pelap.progress import progress
from pelap.pruning.operators import Operator, find_operators
from pelap.pruning.score import score_operators
from pelap.seeding import generator, noise
from pelap.stages.context import Context
from pelap.stages.protocol import environment

PURPOSE = "score"


def run(context: Context) -> None:
    """Write the table of scores, least first."""
    params, paths = context.params.score, context.paths
    with io.exclusive(paths.score):
        model = load_model(paths.train(params.variant).model, context.device)
        forward = forward_pass(model, params.latency_batch_size)
        operators = find_operators(model.unet, forward)
        scores = _score(model, operators, params, context.params.seed)
        table = scores.merge(_costs(model.unet, forward, operators, context.device, params.latency_repeats))
        with io.atomic_dir(paths.score) as partial:
            io.write_csv(partial / paths.scores.name, table)
            protocol = {"seed": context.params.seed, "dataset": model.info.dataset, **params.model_dump()}
            protocol |= environment(context.device)
            io.write_json(partial / paths.score_protocol.name, protocol)
    print(f"{len(table)} operators of {params.variant}; least and most important:")
    shown = ["operator", "kind", "score", "latency_share"]
    print(
        pd.concat([table.head(5), table.tail(3)])[shown].to_string(index=False, float_format="{:.4g}".format)
    )


def forward_pass(model: LatentDiffusion, batch_size: int) -> Callable[[], object]:
    """One pass of the UNet without gradient, on noise at the middle of the schedule."""
    device = next(model.parameters()).device
    latents = noise(model.latent_shape, 0, "cost", range(batch_size)).to(device)
    step = torch.tensor(model.info.diffusion.num_train_timesteps // 2, device=device)

    def forward() -> object:
        with torch.no_grad():
            return model.unet(latents, step)

    return forward


def _score(
    model: LatentDiffusion, operators: Sequence[Operator], params: ScoreParams, seed: int
) -> pd.DataFrame:
    device = next(model.parameters()).device
    start = noise(model.latent_shape, seed, PURPOSE, range(params.num_latents)).to(device)

    def to_latents(latents: torch.Tensor) -> torch.Tensor:
        # Item i of every copy of the set draws the same numbers, whichever operator is left out.
        streams = [generator(seed, "score-step", i % params.num_latents) for i in range(len(latents))]
        return denoise(model, params.sampler, latents, streams)

    candidates = max(1, params.batch_size // params.num_latents)
    with progress(f"score {model.info.name}", len(operators)) as report:
        return score_operators(model.unet, to_latents, operators, start, candidates, report)


def _costs(
    unet: nn.Module,
    forward: Callable[[], object],
    operators: Sequence[Operator],
    device: torch.device,
    repeats: int,
) -> pd.DataFrame:
    """Parameters, MACs and milliseconds of each operator, parts included, in one pass of the batch."""
    names = [operator.name for operator in operators]
    macs = count_macs(unet, forward)
    latencies = measure_module_latencies(unet, forward, names, device, repeats)
    return pd.DataFrame(
        {
            "operator": names,
            "params": [count_params(unet.get_submodule(name)) for name in names],
            "macs": [macs.get(name, 0) for name in names],
            "latency_ms": [latencies[name] for name in names],
            "latency_share": [latencies[name] / latencies[""] for name in names],
        }
    )
