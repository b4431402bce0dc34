"""Images/s of sampling with dense, pruned and distilled networks, against diffusers' own pipeline.

    python benchmarks/sampling.py [--steps 20] [--images N] [--out FILE.json]

Ours is `pelap.diffusion.sampler.ModelGenerator`, which every stage samples with. The reference is diffusers'
DDIMPipeline, called as its documentation says, with the dense network as diffusers loads it and the same
schedule in the same number of steps. Both start from nothing, so each draws its noise in its own way, and end
with latents on the host: the decoder is in neither, for the pipeline has none. All take turns; medians count.
Rows with `bf16` are ours in mixed precision against the same reference, which has float32.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from default_models import default_model
from diffusers import DDIMPipeline
from harness import Entry, argument_parser, compare, finish, in_turns
from torch import nn

from pelap.config import SamplerParams
from pelap.core.device import has_fast_bf16
from pelap.core.rng import noise
from pelap.diffusion.sampler import PURPOSE, ModelGenerator
from pelap.models.latent_diffusion import LatentDiffusion, make_scheduler

KINDS = ("dense", "pruned", "distilled")
REFERENCE = "diffusers"

Run = Callable[[], Any]


def our_run(model: LatentDiffusion, sampler: SamplerParams, num: int, precision: str) -> Run:
    """Latents of the first items, from their noise on."""
    source = ModelGenerator(model, sampler, precision)

    def run() -> torch.Tensor:
        start = noise(source.latent_shape, 0, PURPOSE, range(num))
        return source.denoise(start, range(num), 0).cpu()

    return torch.no_grad()(run)


def reference_run(model: LatentDiffusion, sampler: SamplerParams, num: int) -> Run:
    """diffusers' pipeline around a copy of the network in PyTorch's usual layout."""
    unet: nn.Module = copy.deepcopy(model.unet).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    pipeline = DDIMPipeline(unet, make_scheduler(model.info.diffusion, "ddim"))
    pipeline.set_progress_bar_config(disable=True)
    return partial(pipeline, batch_size=num, num_inference_steps=sampler.steps, output_type="np")


def main(arguments: Sequence[str] | None = None) -> list[Entry]:
    parser = argument_parser(__doc__, rounds=5)
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=Path, metavar="DIR", help="model folder [the default run's]")
    parser.add_argument("--steps", type=int, default=20, help="of the sampler [%(default)s]")
    parser.add_argument("--images", type=int, help="in one batch [128; 1024 on a GPU]")
    args = parser.parse_args(arguments)
    device, sampler = args.device, SamplerParams(kind="ddim", steps=args.steps)
    num = args.images or (1024 if device.type == "cuda" else 128)
    models, words = {}, {}
    for kind in KINDS:
        models[kind], words[kind] = default_model(kind, getattr(args, kind), device)
    runs = {REFERENCE: reference_run(models["dense"], sampler, num)}
    for precision in ["fp32", *["bf16"] * has_fast_bf16(device)]:
        suffix = "" if precision == "fp32" else f", {precision}"
        for kind in KINDS:
            runs[f"sampling, {kind}{suffix}"] = our_run(models[kind], sampler, num, precision)
    # On a GPU a run is recorded at its fourth call.
    warmup = 5 if device.type == "cuda" else 1
    times, _ = in_turns(runs, args.rounds, device, "sampling", warmup)
    rates = {name: num / median(values) for name, values in times.items()}
    reference = rates.pop(REFERENCE)
    entries = [compare(name, rate, reference, "images/s", device) for name, rate in rates.items()]
    ours, dense = rates["sampling, pruned"], rates["sampling, dense"]
    entries.append(compare("sampling, pruned against our dense", ours, dense, "images/s", device))
    checks = {"models": words, "images": num, "steps": args.steps, "seconds of every turn": times}
    return finish(entries, checks, args.out)


if __name__ == "__main__":
    main()
