"""Latents of every operator's absence, kept until they are scored, on disk where work is to be resumed."""

from pathlib import Path

import torch

from pelap.core import files
from pelap.core.errors import DataError


class LatentStore:
    """Sets of latents by name that grow at their end.

    Args:
        folder: One safetensors file a name; what is there already counts. None keeps them in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._memory: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}
        if folder is not None and folder.is_dir():
            self._counts = {path.stem: n for path in folder.iterdir() if (n := _count(path))}

    def count(self, name: str) -> int:
        """How many latents there are of a name."""
        return self._counts.get(name, 0)

    def get(self, name: str) -> torch.Tensor:
        """The latents (N, ...) of a name, on the CPU."""
        if self._folder is None:
            return self._memory[name]
        return files.load_tensors(self._path(self._folder, name))[0]["latents"]

    def append(self, name: str, latents: torch.Tensor) -> None:
        """Add latents (n, ...) to a name's."""
        latents = latents.detach().cpu()
        whole = torch.cat([self.get(name), latents]) if self.count(name) else latents.contiguous()
        if self._folder is None:
            self._memory[name] = whole
        else:
            files.save_tensors(self._path(self._folder, name), {"latents": whole})
        self._counts[name] = len(whole)

    @staticmethod
    def _path(folder: Path, name: str) -> Path:
        return folder / f"{name}.safetensors"


def _count(path: Path) -> int:
    """Latents in a file; 0 for one that cannot be read, which is then made anew."""
    try:
        return len(files.load_tensors(path)[0]["latents"])
    except (DataError, KeyError):
        return 0
