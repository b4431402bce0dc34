"""Which device to compute on, at which precision, and what a protocol says of it."""

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pelap import __version__
from pelap.core.errors import ConfigError

NORMS_CRASH = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 15)  # see `ask_gradients_of_norms`
DETERMINISTIC_VARIABLE = "PELAP_DETERMINISTIC"
PACKAGES = ("torch", "torchvision", "diffusers", "torchmetrics", "torch-fidelity")


def choose_device(name: str) -> torch.device:
    """The device called `name`; ``auto`` prefers CUDA, then Apple's MPS, then the CPU.

    With ``PELAP_DETERMINISTIC=1`` in the environment the process computes with algorithms alone that give
    the same bits at every run on the same device, where PyTorch has them; an operator that has none fails.

    Raises:
        ConfigError: It is not there, or that variable is neither 0 nor 1.
    """
    _be_deterministic(os.environ.get(DETERMINISTIC_VARIABLE, "0"))
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available.get(name, False):
        raise ConfigError(f"--device {name}: not available here; use --device auto or cpu")
    return torch.device(name)


def _be_deterministic(asked: str) -> None:
    if asked not in ("0", "1", ""):
        raise ConfigError(f"{DETERMINISTIC_VARIABLE}={asked}: set it to 1, or to 0")
    if asked == "1":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS wants for that
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is done in hardware on `device`."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False


def uses_bf16(device: torch.device, precision: str) -> bool:
    """Whether `autocast` computes in bfloat16 there."""
    return precision == "bf16" or (precision == "auto" and has_fast_bf16(device))


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Mixed precision for the block: ``fp32``, ``bf16``, or ``auto`` for bf16 where the hardware has it."""
    with torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(device, precision)):
        yield


def normalise_in_fp32(model: nn.Module) -> None:
    """Keep a model's group norms out of bfloat16, in place; any other precision stays what it is.

    On a CPU their backward pass is seven times slower in it. Twice is the same as once.
    """
    _hook_norms(model, _to_fp32)


def _to_fp32(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(each.float() if each.dtype == torch.bfloat16 else each for each in args)


@contextmanager
def full_precision() -> Iterator[None]:
    """Convolutions in full float32 for the block: on a GPU PyTorch rounds them to TF32, with 10 bits.

    Its kernels differ by batch size then, by more than the scores of two operators do.
    """
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
        yield


def keep_freed_memory() -> bool:
    """Let this process use the memory of freed tensors again instead of giving it back to the system.

    glibc maps large arrays anew for every tensor, and the system fills them with zeros page by page at the
    first touch: in a training step on the CPU that is 0.6 GB and a seventh of the time (docs/performance.md).
    The price is that memory once used stays with the process.

    Returns:
        Whether it could be done; only glibc has the switch.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    switches = (
        (-4, 0),  # M_MMAP_MAX: map no array by itself
        (-1, 2**31 - 1),  # M_TRIM_THRESHOLD: as much as may lie free at the end of the heap
        (-8, 1),  # M_ARENA_MAX: threads share that one heap, for theirs would be too small for an array
    )
    return mallopt is not None and all(mallopt(option, value) for option, value in switches)


def ask_gradients_of_norms(model: nn.Module) -> None:
    """Let group norms compute the gradient of their input even where nobody wants it, in place.

    PyTorch 2.11 crashes otherwise, on a CPU, in the backward pass of a norm whose input is channels-last.
    2.15 does not; which version mended it is not known. Twice is the same as once.
    """
    _hook_norms(model, _asking_gradients)


def _hook_norms(model: nn.Module, hook: Callable[..., Any]) -> None:
    for module in model.modules():
        if isinstance(module, nn.GroupNorm) and hook not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(hook)


def _asking_gradients(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    if not torch.is_grad_enabled():
        return args
    return tuple(each if each.requires_grad else each.detach().requires_grad_() for each in args)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given, so that a clock reads true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def describe(device: torch.device) -> str:
    """The device in words, for the protocol of a measurement."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def protocol_beside(table: Path) -> Path:
    """Where the protocol of a table of figures stands."""
    return table.with_name(f"{table.stem}.protocol.json")


def environment(device: torch.device) -> dict[str, object]:
    """Device, package versions and the revision of the code."""
    versions = {"pelap": __version__}  # which runs from a checkout too
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "device": describe(device),
        "python": platform.python_version(),
        "versions": versions,
        "git_revision": _git_revision(),
    }


def _git_revision() -> str | None:
    """Of the repository that this code is in; None where it is in none, or in one that has other code."""
    here = Path(__file__)

    def git(*command: str) -> str:
        argv = ["git", "-C", str(here.parent), *command]
        return subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False).stdout.strip()

    with suppress(OSError, subprocess.TimeoutExpired):
        if git("ls-files", here.name):
            return git("describe", "--always", "--dirty") or None
    return None
