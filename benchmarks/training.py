"""Images/s of training at the paper's configuration, against a loop in the style of the released code.

    python benchmarks/training.py [--params presets/pelap-a.yaml] [--compiled] [--out FILE.json]

Ours is `pelap.training.joint` as `pelap train` runs it, with precision and execution on `auto`. The reference
trains the same model from the same weights on the same losses: pictures by PIL and torchvision's transforms
in data workers, float32, eager, PyTorch's usual layout and AdamW, every loss read at every step; in a
process of its own. Both take the same number of steps in turns; the first turn warms up, medians of the
others count. Pictures are random: speed does not depend on them.

The last rows compare with ourselves and with the machine: ours in float32, which shows what precision gives
and what the rest does; the step recorded as a CUDA graph or compiled with the same step taken eagerly; the
rate of the step's products and convolutions with the rate that this machine reaches in one large product of
the same precision (the ratio is the share of the peak, below 1); and five values of lambda trained at once
with the same trained one after the other.
"""

import copy
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
from harness import ROOT, Entry, argument_parser, compare, finish, in_turns, product_rate
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from pelap.config import Params, TrainParams
from pelap.config.load import load_params
from pelap.config.rules import parts_of
from pelap.core.device import has_fast_bf16, keep_freed_memory, synchronise
from pelap.data.dataset import ImageDataset, Split, to_float
from pelap.diffusion.loss import alphas_cumprod
from pelap.models.latent_diffusion import LatentDiffusion, ModelInfo, build_model, build_vae
from pelap.training.joint import joint_training
from pelap.training.objective import StepNoise, draw_step_noise, joint_losses
from pelap.training.parallel import Training, train_parallel

VARIANT = "pelap"
LAMBDAS = (0.001, 0.005, 0.01, 0.05, 0.1)  # of the paper's ablation
NUM_TEST = 128
COUNTED = 4  # pictures whose operations are counted; a picture's do not depend on how many there are

Chunk = Callable[[], Any]  # takes some steps of a training that goes on with the next call


@dataclass(frozen=True)
class Setting:
    """What is trained, on what."""

    params: Params
    num_pictures: int
    side: int
    device: torch.device

    @cached_property
    def dataset(self) -> ImageDataset:
        """Random pictures."""
        random = torch.Generator().manual_seed(0)

        def split(num: int) -> Split:
            shape = (num, 3, self.side, self.side)
            images = torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)
            return Split(images, torch.zeros(num, dtype=torch.int64))

        return ImageDataset(
            "random", split(self.num_pictures), split(NUM_TEST), ("any",), "random", checksum="0" * 64
        )

    def model(self, sparsity_weight: float | None = None) -> LatentDiffusion:
        """The variant with fresh weights, the same at every call."""
        params, variant = self.params, self.params.variants[VARIANT]
        vae, unet = parts_of(variant, params.vae, params.unet)
        info = ModelInfo(
            name=VARIANT,
            variant=variant,
            diffusion=params.diffusion,
            image_size=self.side,
            dataset="random",
            seed=params.seed,
            sparsity_weight=variant.weight(params.lambda_) if sparsity_weight is None else sparsity_weight,
            ema_decay=params.train.ema_decay,
        )
        torch.manual_seed(params.seed)
        return build_model(info, build_vae(vae), unet)

    def numbers(
        self, execution: str = "auto", num_steps: int | None = None, precision: str = "auto"
    ) -> TrainParams:
        """The section `train` for so many steps, or for many more than are taken; validation is short."""
        epochs = {"epochs": 10**6} if num_steps is None else {"epochs": 1, "steps_per_epoch": num_steps}
        return self.params.train.model_copy(
            update={
                "precision": precision,
                "execution": execution,
                "select": "last",
                "num_validation": NUM_TEST,
                **epochs,
            }
        )

    def training(
        self, checkpoint: Path, numbers: TrainParams, sparsity_weight: float | None = None
    ) -> Training[Any]:
        return joint_training(self.model(sparsity_weight), self.dataset, numbers, self.device, checkpoint)


def take(steps: Iterator[Any], num: int) -> None:
    for _ in range(num):
        next(steps)


class Pictures(Dataset[torch.Tensor]):
    """Decoded and changed one by one, as torchvision's data sets do it."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.transform = transforms.Compose(
            [
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.5,) * 3, (0.5,) * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        pictures: torch.Tensor = self.transform(Image.fromarray(self.images[index]))
        return pictures


def reference_steps(setting: Setting, num_workers: int) -> Iterator[dict[str, float]]:
    """The losses of step after step of the loop that ours is compared with."""
    params, device, model = setting.params, setting.device, setting.model().to(setting.device)
    model.train()
    alphas = alphas_cumprod(params.diffusion).to(device)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=params.train.lr, weight_decay=params.train.weight_decay
    )
    loader = DataLoader(
        Pictures(setting.dataset.train.images),
        params.train.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
    )
    while True:
        for batch in loader:
            images = batch.to(device)
            random = draw_there(model, len(images), device)
            kl_weight, sparsity_weight = params.train.kl_weight, model.info.sparsity_weight
            losses = joint_losses(model, images, random, kl_weight, sparsity_weight, alphas)
            optimiser.zero_grad()
            losses["loss"].backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), params.train.grad_clip)
            optimiser.step()
            yield {name: value.item() for name, value in losses.items()}


def serve(setting: Setting, num_workers: int, wanted: Connection) -> None:
    """Take as many steps of the reference as are asked for, again and again."""
    steps = reference_steps(setting, num_workers)
    while True:
        num = wanted.recv()
        take(steps, num)
        synchronise(setting.device)
        wanted.send(num)


@contextmanager
def reference(setting: Setting, num_workers: int) -> Iterator[Callable[[int], None]]:
    """Takes steps of the reference in a process of its own, where nothing of ours is switched on."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(setting, num_workers, there))
    process.start()
    there.close()  # so that an end of the process is an end of what it says

    def take_there(num: int) -> None:
        here.send(num)
        here.recv()

    try:
        yield take_there
    finally:
        process.kill()  # to end by itself, it would take seconds


def draw_there(model: LatentDiffusion, num: int, device: torch.device) -> StepNoise:
    """Random numbers of a step, from the device's own generator."""
    shape = (num, *model.latent_shape)
    total = model.info.diffusion.num_train_timesteps
    return StepNoise(
        torch.randn(shape, device=device),
        torch.randn(shape, device=device),
        torch.randint(total, (num,), device=device),
        torch.rand(shape[:2], device=device),
        torch.empty(num, 0, dtype=torch.int64, device=device),
    )


def flops_of_picture(setting: Setting) -> float:
    """Operations of a step's products and convolutions, forward and backward, for one picture."""
    model = setting.model().train()
    images = to_float(setting.dataset.train.images[:COUNTED])
    random = draw_step_noise(model, COUNTED, 0, "count", 0)
    alphas = alphas_cumprod(setting.params.diffusion)
    with FlopCounterMode(display=False) as counter:
        joint_losses(model, images, random, 1.0, 1.0, alphas)["loss"].backward()
    return counter.get_total_flops() / COUNTED


def ablation(setting: Setting, num_steps: int, parallel_variants: int) -> None:
    """Train a model for each lambda from its first step to its last, so many side by side."""
    numbers = setting.numbers(num_steps=num_steps)
    with tempfile.TemporaryDirectory() as folder:  # a new one at every call, or runs would be resumed
        trainings = [setting.training(Path(folder) / str(value), numbers, value) for value in LAMBDAS]
        train_parallel(trainings, setting.device, parallel_variants)


def default_workers() -> int:
    """Half of the cores for data workers, two at least and eight at most."""
    return min(8, max(2, (os.cpu_count() or 1) // 2))


def main(arguments: Sequence[str] | None = None) -> list[Entry]:
    parser = argument_parser(__doc__, rounds=5)
    parser.add_argument("--params", type=Path, default=ROOT / "presets" / "pelap-a.yaml", metavar="FILE")
    parser.add_argument("--pictures", type=int, default=50_000, help="[%(default)s, as CIFAR-10]")
    parser.add_argument("--side", type=int, default=32, help="of a picture in pixels [%(default)s]")
    parser.add_argument("--steps", type=int, help="of a turn [4; 100 on a GPU]")
    parser.add_argument("--ablation-steps", type=int, help="of a lambda [4; 400 on a GPU]; 0: no ablation")
    parser.add_argument(
        "--workers", type=int, default=default_workers(), help="of the reference [%(default)s]"
    )
    parser.add_argument(
        "--compiled", action="store_true", help="our step through torch.compile, a minute more"
    )
    args = parser.parse_args(arguments)
    device, params = args.device, load_params(args.params, "train")
    if device.type == "cpu":
        keep_freed_memory()  # as `pelap train` does
    on_gpu = device.type == "cuda"
    steps = args.steps or (100 if on_gpu else 4)
    ablation_steps = (400 if on_gpu else 4) if args.ablation_steps is None else args.ablation_steps
    setting = Setting(params, args.pictures, args.side, device)
    executions = ["auto", *(["eager"] if on_gpu or args.compiled else []), *["compiled"] * args.compiled]
    with tempfile.TemporaryDirectory() as name, reference(setting, args.workers) as take_there:
        folder = Path(name)
        runs: dict[str, Chunk] = {
            execution: partial(take, setting.training(folder / execution, setting.numbers(execution)), steps)
            for execution in executions
        }
        in_fp32 = setting.training(folder / "fp32", setting.numbers(precision="fp32"))
        runs |= {"fp32": partial(take, in_fp32, steps), "reference": partial(take_there, steps)}
        times, _ = in_turns(runs, args.rounds, device, "training")
        rates = {name: steps * params.train.batch_size / median(values) for name, values in times.items()}
        entries = [compare("training", rates["auto"], rates["reference"], "images/s", device)]
        entries.append(compare("training, bf16 of fp32", rates["auto"], rates["fp32"], "images/s", device))
        if on_gpu:
            entries.append(compare("training, recorded", rates["auto"], rates["eager"], "images/s", device))
        if args.compiled:
            entries.append(
                compare("training, compiled", rates["compiled"], rates["eager"], "images/s", device)
            )
        flops, dtype = flops_of_picture(setting), torch.bfloat16 if has_fast_bf16(device) else torch.float32
        peak, reached = product_rate(device, dtype), rates["auto"] * flops
        entries.append(compare("training, share of the peak", reached / 1e9, peak / 1e9, "GFLOP/s", device))
        checks: dict[str, Any] = {
            "GFLOP of a picture": flops / 1e9,
            "precision of the peak": str(dtype),
            "images/s": rates,
            "seconds of every turn": copy.deepcopy(times),
        }
        if ablation_steps:
            both = {
                "together": partial(ablation, setting, ablation_steps, len(LAMBDAS)),
                "alone": partial(ablation, setting, ablation_steps, 1),
            }
            times, _ = in_turns(both, max(1, args.rounds // 2), device, "ablation", warmup=0)
            least = {name: min(values) for name, values in times.items()}
            entries.append(
                compare("ablation, five lambdas at once", least["together"], least["alone"], "s", device)
            )
            checks["seconds of every ablation"] = times
    return finish(entries, checks, args.out)


if __name__ == "__main__":
    main()
