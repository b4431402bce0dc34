"""What the command line hands to a stage."""

from dataclasses import dataclass
from pathlib import Path

import torch

from pelap.config import DownloadParams, Params
from pelap.config.rules import backwards
from pelap.core.errors import ConfigError
from pelap.core.paths import RunPaths, packed_dataset
from pelap.data.dataset import ImageDataset, load_dataset, made_by


@dataclass(frozen=True)
class Context:
    """Checked parameters, where to read and write, and what to compute on."""

    params: Params
    paths: RunPaths
    data: Path
    device: torch.device

    def dataset(self) -> ImageDataset:
        """The packed data set that `download` made; what it was made by otherwise than now is said.

        Raises:
            DataError: It is missing or damaged.
            ConfigError: It holds sounds, and the parameters mirror pictures.
        """
        path = packed_dataset(self.data, self.params.dataset)
        dataset = load_dataset(path)
        download: DownloadParams | None = getattr(self.params, "download", None)  # what a stage may not read
        if download is not None and dataset.made_by:
            now = made_by(self.params.dataset, download, self.params.seed)
            if differing := now.differences(dataset.made_by):
                print(
                    f"warning: {path} was made with another {', '.join(differing)} than the parameters have "
                    "now; run `pelap download`, unless that is what you want"
                )
        if dataset.sound is not None and (problems := backwards(self.params)):
            raise ConfigError("; ".join(problems))
        return dataset
