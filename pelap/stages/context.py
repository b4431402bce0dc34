"""What the command line hands to a stage."""

from dataclasses import dataclass
from pathlib import Path

import torch

from pelap.config import backwards
from pelap.data.dataset import ImageDataset, load_dataset
from pelap.errors import ConfigError
from pelap.params import Params
from pelap.paths import RunPaths, packed_dataset


@dataclass(frozen=True)
class Context:
    """Checked parameters, where to read and write, and what to compute on."""

    params: Params
    paths: RunPaths
    data: Path
    device: torch.device

    def dataset(self) -> ImageDataset:
        """The packed data set that `download` made.

        Raises:
            DataError: It is missing or damaged.
            ConfigError: It holds sounds, and the parameters mirror pictures.
        """
        dataset = load_dataset(packed_dataset(self.data, self.params.dataset))
        problems = backwards(self.params) if dataset.sound is not None else []
        if problems:
            raise ConfigError("; ".join(problems))
        return dataset
