"""Peak memory of training, scoring and evaluation at the size of CIFAR-10, against a limit of 4096 MiB.

    python benchmarks/memory.py [--params presets/pelap-a.yaml] [--out FILE.json]

Each part is the command `pelap STAGE` in a process of its own, on 50,000 random pictures of 32x32, with the
parameters of the paper's preset: batches of 128 in training (its other variants, and all but a few steps, are
left out), 2,048 latents a pass in scoring. Evaluation makes fewer pictures on a CPU than the preset says;
what it held is in the output. The row of imports is what a process holds that has done nothing yet but import
torch, diffusers and the project, and wake the device up: it is part of every other row.

Host memory is the most that was ever resident, pages of libraries included. On a GPU there is a row more for
each part: the most that PyTorch's allocator took from the device.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LIMIT_MIB = 4096
MIB = 2**20
PARTS = {"imports": None, "training": "train", "scoring": "score", "evaluation": "evaluate"}
"""Names of rows, and the command that each is about."""
VARIANT = "pelap"
INSIDE = "--inside"  # first argument of the process that is measured


def peak_resident_mib() -> float:
    """The most memory of this process that was resident at once."""
    status = Path("/proc/self/status")
    if status.is_file():  # what `resource` says there includes the process that this one was started from
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def inside(device: str, report: str, command: list[str]) -> int:
    """Run a command of `pelap` in this process, then write what it took."""
    start = time.monotonic()
    if command:
        from pelap.cli import main as pelap

        code = pelap([*command, "--device", device])
    else:
        import diffusers  # noqa: F401

        import pelap.stages.train

        code = 0
    import torch

    taken = {}
    if device == "cuda":
        torch.zeros(1, device="cuda")
        taken["device_mib"] = torch.cuda.max_memory_reserved() / MIB
    taken |= {"host_mib": peak_resident_mib(), "seconds": time.monotonic() - start}
    Path(report).write_text(json.dumps(taken))
    return code


def measure(folder: Path, device: str, command: list[str]) -> dict[str, float]:
    """Peak memory in MiB and time of a command in a process of its own.

    Raises:
        RuntimeError: It failed.
    """
    report = folder / "report.json"
    script = [sys.executable, str(Path(__file__).resolve()), INSIDE, device, str(report), *command]
    done = subprocess.run(script, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"exit status {done.returncode}"
        raise RuntimeError(f"pelap {' '.join(command)}: {reason}")
    taken: dict[str, float] = json.loads(report.read_text())
    return taken


def scaled(raw: dict[str, Any], steps: int, images: int, reference: int) -> dict[str, Any]:
    """Parameters for one variant and a short run; batches and what is kept stay as they are."""
    raw["variants"] = {VARIANT: raw["variants"][VARIANT]}
    raw["train"] |= {"epochs": 1, "steps_per_epoch": steps, "num_validation": min(images, 10_000)}
    sampler = {"kind": "ddim", "steps": 2}
    raw["train"]["preview"] = sampler
    raw["score"] |= {"variant": VARIANT, "sampler": sampler, "latency_repeats": 3}
    raw["evaluate"] |= {
        "models": "variants",
        "num_images": images,
        "num_reference": reference,
        "num_reconstructions": images,
        "sampler": sampler,
        "step_counts": [],
        "latency_repeats": None,
        "latency_compiled": False,
    }
    return raw


def write_pictures(path: Path, name: str, num: int, side: int) -> None:
    """A packed data set of random pictures of ten classes."""
    import torch

    from pelap.data.dataset import ImageDataset, Split, save_dataset

    random = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        images = torch.randint(0, 256, (count, 3, side, side), generator=random, dtype=torch.uint8)
        return Split(images, torch.arange(count) % 10)

    classes = tuple(str(label) for label in range(10))
    save_dataset(ImageDataset(name, split(num), split(num // 5), classes, "random", "0" * 64), path)


def main(arguments: Sequence[str] | None = None) -> list[Any]:
    import torch
    from harness import ROOT, argument_parser, compare, finish

    from pelap.config.load import resolved
    from pelap.core.paths import packed_dataset

    parser = argument_parser(__doc__, rounds=1)
    parser.add_argument("--params", type=Path, default=ROOT / "presets" / "pelap-a.yaml", metavar="FILE")
    parser.add_argument("--pictures", type=int, default=50_000, help="to train on [%(default)s]")
    parser.add_argument("--side", type=int, default=32, help="of a picture in pixels [%(default)s]")
    parser.add_argument("--steps", type=int, help="of training [4; 50 on a GPU]")
    parser.add_argument("--images", type=int, help="that evaluation makes [512; 10000 on a GPU]")
    parser.add_argument("--reference", type=int, help="that it compares with [1024; 40000 on a GPU]")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="[all]")
    args = parser.parse_args(arguments)
    device, cpu, on_gpu = args.device, torch.device("cpu"), args.device.type == "cuda"
    sizes = {
        "steps": args.steps or (50 if on_gpu else 4),
        "images": args.images or (10_000 if on_gpu else 512),
        "reference": args.reference or (40_000 if on_gpu else 1024),
    }
    entries, taken = [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = scaled(resolved(args.params), **sizes)
        params = folder / "params.json"
        params.write_text(json.dumps(raw))
        write_pictures(packed_dataset(folder, raw["dataset"]), raw["dataset"], args.pictures, args.side)
        options = ["--run", str(folder / "run"), "--params", str(params), "--data", str(folder)]
        for part in args.parts:
            stage = PARTS[part]
            taken[part] = measure(folder, device.type, [stage, *options] if stage else [])
            found = compare(f"memory of {part}", taken[part]["host_mib"], LIMIT_MIB, "MiB", cpu)
            entries.append(found)
            if on_gpu and stage:
                used = taken[part]["device_mib"]
                entries.append(compare(f"memory of {part}, GPU", used, LIMIT_MIB, "MiB", device))
    return finish(entries, {"sizes": sizes, "taken": taken}, args.out)


if __name__ == "__main__":
    if sys.argv[1:2] == [INSIDE]:
        raise SystemExit(inside(sys.argv[2], sys.argv[3], sys.argv[4:]))
    main()
