"""What work should take on this machine, and what it takes: training, sampling, scoring, features.

    python benchmarks/roofline.py [--device cpu] [--out FILE.json]

Counted first (see counting.py): the operations and bytes of every kernel of one training step of the
paper's configuration, one sampling step, one scoring pass and one pass of the feature network. Over the
measured rates of this machine, products in each precision and a large copy, they give the time that is
predicted: every kernel takes the longer of its two times, one after the other. Beside it stands what was
measured, the least of the rounds, as the project runs the work; by class of operator, the profiler's own
times of the same work run eagerly. Tables go to the terminal in Markdown.

A prediction is no bound to every digit: a copy of large arrays goes through memory, but values that fit into
a cache go faster, and a kernel that fuses two operators moves less than both.
"""

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from counting import CLASSES, REST, Counter, Kernel, Rates, kind_of, totals
from default_models import default_model
from harness import ROOT, argument_parser, in_turns, product_rate, seconds
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from training import Setting, take

from pelap.config import SamplerParams, ScoreParams
from pelap.config.load import load_params
from pelap.core import graphs
from pelap.core.device import describe, full_precision, has_fast_bf16, keep_freed_memory
from pelap.core.files import write_json
from pelap.core.rng import noise
from pelap.diffusion.reverse import model_denoiser
from pelap.diffusion.sampler import PURPOSE, ModelGenerator
from pelap.evaluation.features import EffNetLite0
from pelap.scoring.score import Scores, score_operators
from pelap.surgery.fit import fit_replacements
from pelap.surgery.operators import find_operators

Run = Callable[[], Any]


@dataclass(frozen=True)
class Work:
    """Something that the project does again and again."""

    name: str
    run: Run  # as the project does it
    eager: Run  # the same, every kernel launched by itself, so that it can be seen
    units: float  # how often it is done in a run
    exact: bool  # whether convolutions are in full float32 on a GPU too


@contextmanager
def never_recorded() -> Iterator[None]:
    """Nothing is recorded as a CUDA graph in the block."""
    with mock.patch.object(graphs, "WARMUP_CALLS", 10**9):
        yield


def unrecorded(run: Run) -> Run:
    def eager() -> Any:
        with never_recorded():
            return run()

    return eager


def training_step(params: Path, side: int, device: torch.device, folder: Path) -> Work:
    """Of the paper's configuration."""
    loaded = load_params(params, "train")
    setting = Setting(loaded, 64 * loaded.train.batch_size, side, device)
    steps = {
        execution: setting.training(folder / execution, setting.numbers(execution))
        for execution in ("auto", "eager")
    }
    for training in steps.values():
        next(training)  # up to the first step
    name = f"training step, {loaded.train.batch_size} pictures"
    return Work(name, partial(take, steps["auto"], 1), partial(take, steps["eager"], 1), 1, exact=False)


def sampling_step(model: Path | None, num: int, device: torch.device) -> Work:
    """Of the dense network of the default run, in float32."""
    sampler = SamplerParams(kind="ddim", steps=20)
    network = default_model("dense", model, device)[0]

    def sampling() -> Run:
        source = ModelGenerator(network, sampler)
        start = noise(source.latent_shape, 0, PURPOSE, range(num))
        return torch.no_grad()(partial(source.denoise, start, range(num), 0))

    name = f"sampling step, {num} pictures"
    return Work(name, sampling(), unrecorded(sampling()), sampler.steps, exact=False)


def scoring_pass(model: Path | None, rows: int, every: int, device: torch.device) -> Work:
    """Of the same network with some operators replaced, in float32."""
    sampler, num_latents = SamplerParams(kind="ddim", steps=4), rows // 8
    denoiser = model_denoiser(default_model("dense", model, device)[0], sampler, seed=0)
    operators = find_operators(denoiser.network, denoiser.forward(3))[::every]
    start = denoiser.noise(num_latents, 1, 0)
    replacements = fit_replacements(
        denoiser.network, operators, lambda: denoiser.denoise(start, range(num_latents))
    )

    def run() -> Scores:
        params = ScoreParams(num_latents=num_latents, num_seeds=1, batch_size=rows)
        with full_precision():
            return score_operators(denoiser.network, denoiser.denoise, operators, replacements, start, params)

    counter = Counted(denoiser.network)
    with counter:
        run()
    return Work(f"scoring pass, {rows} rows", run, unrecorded(run), counter.rows / rows, exact=True)


class Counted:
    """Adds up the rows that a network is given in the block."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.rows = 0
        self._network = network

    def __enter__(self) -> None:
        def add(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            self.rows += len(args[0])

        self._handle = self._network.register_forward_pre_hook(add)

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def feature_pass(side: int, device: torch.device) -> Work:
    """Of effnet-lite0 on one chunk of pictures."""
    extractor = EffNetLite0(device)
    shape = (extractor.chunk_size, 3, side, side)
    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    run = partial(extractor, images)
    return Work(f"feature pass, {len(images)} pictures", run, unrecorded(run), 1, exact=True)


def measured_rates(device: torch.device) -> Rates:
    """What this machine reaches in large products and a large copy."""
    flops = {"float32": product_rate(device, torch.float32)}
    if has_fast_bf16(device):
        flops["bfloat16"] = product_rate(device, torch.bfloat16)
    if device.type == "cuda":
        flops["convolution float32"] = product_rate(device, torch.float32, tf32=True)
    source = torch.ones(2**26, device=device)  # 256 MiB
    target = torch.empty_like(source)
    least = min(seconds(lambda: target.copy_(source), device)[0] for _ in range(8))
    return Rates(flops, 2 * source.numel() * source.element_size() / least)


def exact_rates(rates: Rates) -> Rates:
    """Without the rounding of convolutions to TF32."""
    flops = {name: rate for name, rate in rates.flops.items() if not name.startswith("convolution")}
    return Rates(flops, rates.bytes_per_s)


def self_seconds(run: Run, device: torch.device, repeats: int) -> dict[str, float]:
    """Time by class of operator of one run, without what operators call; the device's own time on a GPU."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]
    with profile(activities=activities) as profiled:
        for _ in range(repeats):
            run()
    sums: defaultdict[str, float] = defaultdict(float)
    for event in profiled.key_averages():
        if event.device_type == DeviceType.CPU:  # a GPU's kernels count with the operator that launched them
            microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            sums[kind_of(event.key)] += microseconds / 1e6 / repeats
    return dict(sums)


def best(rates: Sequence[Rates]) -> Rates:
    """The best of each that was seen: other work on the machine only ever takes away."""
    flops = {name: max(each.flops[name] for each in rates) for name in rates[0].flops}
    return Rates(flops, max(each.bytes_per_s for each in rates))


@dataclass(frozen=True)
class Measured:
    """What was counted and timed of a piece of work, all of its units together."""

    work: Work
    seconds: float
    kernels: list[Kernel]
    seconds_by_class: dict[str, float]


def measure(work: Work, rounds: int, device: torch.device) -> Measured:
    """Time a piece of work as it is done, then count and time its kernels one by one."""
    # On a GPU work is recorded at its fourth call.
    times, _ = in_turns({work.name: work.run}, rounds, device, work.name, 5 if device.type == "cuda" else 1)
    work.eager()
    with Counter() as counter:
        work.eager()
    return Measured(work, min(times[work.name]), counter.kernels, self_seconds(work.eager, device, rounds))


def judge(measured: Measured, rates: Rates) -> dict[str, Any]:
    """Counts, predictions and measurements of one unit, by class and in all."""
    work, seen = measured.work, measured.seconds_by_class
    classes = totals(measured.kernels, exact_rates(rates) if work.exact else rates)
    by_class = {
        kind: {
            **{
                key: classes.get(kind, {}).get(key, 0.0) / work.units
                for key in ("flops", "bytes", "predicted_s")
            },
            "measured_s": seen.get(kind, 0.0) / work.units,
        }
        for kind in (*CLASSES, REST)
        if kind in classes or kind in seen
    }
    summed = {
        key: sum(values[key] for values in by_class.values()) for key in ("flops", "bytes", "predicted_s")
    }
    return {
        "name": work.name,
        **summed,
        "measured_s": measured.seconds / work.units,
        "gap": measured.seconds / work.units / summed["predicted_s"],
        "kernels": len(measured.kernels) / work.units,
        "by_class": by_class,
    }


def tables(result: dict[str, Any]) -> str:
    """All of it in Markdown."""
    rates = result["rates"]
    flops = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s {name}" for name, rate in rates["flops"].items())
    lines = [
        f"{result['device']}, torch {result['versions']['torch']}: {flops}, "
        f"{rates['bytes_per_s'] / 1e9:,.1f} GB/s copied",
        "",
        "| work | GFLOP | MB moved | kernels | predicted ms | measured ms | measured / predicted |",
        "|---|---|---|---|---|---|---|",
    ]
    for work in result["works"]:
        cells = (work["name"], _counts(work), f"{work['kernels']:.0f}", _times(work), f"{work['gap']:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    for work in result["works"]:
        lines += [
            "",
            f"| {work['name']} | GFLOP | MB moved | predicted ms | measured ms (profiler) |",
            "|---|---|---|---|---|",
        ]
        for kind, values in work["by_class"].items():
            lines.append(f"| {kind} | {_counts(values)} | {_times(values)} |")
    return "\n".join(lines)


def _counts(values: dict[str, float]) -> str:
    return f"{values['flops'] / 1e9:,.2f} | {values['bytes'] / 1e6:,.1f}"


def _times(values: dict[str, float]) -> str:
    return f"{values['predicted_s'] * 1e3:,.2f} | {values['measured_s'] * 1e3:,.2f}"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argument_parser(__doc__, rounds=3)
    parser.add_argument("--params", type=Path, default=ROOT / "presets" / "pelap-a.yaml", metavar="FILE")
    parser.add_argument("--model", type=Path, metavar="DIR", help="sampled and scored [the default run's]")
    parser.add_argument("--side", type=int, default=32, help="of a picture in pixels [%(default)s]")
    parser.add_argument("--images", type=int, help="in a batch of samples [128; 1024 on a GPU]")
    parser.add_argument("--rows", type=int, default=256, help="in a scoring pass [%(default)s]")
    parser.add_argument("--every", type=int, default=8, help="score every n-th operator [%(default)s]")
    parser.add_argument("--tables", type=Path, metavar="FILE.md", help="where the tables go as well")
    parser.add_argument(
        "--give-back",
        action="store_true",
        help="freed memory to the system, which training on a CPU does not",
    )
    args = parser.parse_args(arguments)
    if args.device.type == "cpu" and not args.give_back:
        keep_freed_memory()
    device, rates, measured = args.device, [measured_rates(args.device)], []
    num = args.images or (1024 if device.type == "cuda" else 128)
    with tempfile.TemporaryDirectory() as folder:
        makers = (
            partial(training_step, args.params, args.side, device, Path(folder)),
            partial(sampling_step, args.model, num, device),
            partial(scoring_pass, args.model, args.rows, args.every, device),
            partial(feature_pass, args.side, device),
        )
        for make in makers:
            measured.append(measure(make(), args.rounds, device))
            rates.append(measured_rates(device))
    result = {
        "device": describe(device),
        "versions": {package: version(package) for package in ("torch", "diffusers")},
        "rates": asdict(best(rates)),
        "works": [judge(each, best(rates)) for each in measured],
    }
    print(tables(result))
    if args.tables:
        args.tables.parent.mkdir(parents=True, exist_ok=True)
        args.tables.write_text(tables(result) + "\n")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, result)
    return result


if __name__ == "__main__":
    main()
