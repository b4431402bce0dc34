"""What every table of figures says of itself: where and with what it was made."""

import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from pelap import __version__
from pelap.core.device import describe

PACKAGES = ("torch", "torchvision", "diffusers", "torchmetrics", "torch-fidelity")


def protocol_beside(table: Path) -> Path:
    """Where the protocol of a table of figures stands."""
    return table.with_name(f"{table.stem}.protocol.json")


def environment(device: torch.device) -> dict[str, object]:
    """Device, package versions and the revision of the code."""
    return {
        "device": describe(device),
        "python": platform.python_version(),
        "versions": {"pelap": __version__} | _versions(),
        "git_revision": _git_revision(),
    }


def _versions() -> dict[str, str]:
    """Of the packages that are installed; PeLAP itself need not be, it runs from a checkout too."""
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _git_revision() -> str | None:
    """Of the repository that this code is in; None where it is in none, or in one that has other code."""
    here = Path(__file__)
    if _git(here.parent, "ls-files", here.name) is None:
        return None
    return _git(here.parent, "describe", "--always", "--dirty")


def _git(folder: Path, *command: str) -> str | None:
    """What a command prints; None where it prints nothing or fails."""
    argv = ["git", "-C", str(folder), *command]
    try:
        result = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
