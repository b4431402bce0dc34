"""PeLAP: masked latent diffusion models, explained, scored, pruned and distilled.

The package is a library; `pelap.cli` and the stages are its command line. Nothing heavy is imported
here, so that ``pelap --help`` answers at once.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

__version__ = "0.1.0"


def load_pipeline(folder: str | Path, device: "torch.device | str | None" = None) -> "DiffusionPipeline":
    """A diffusers pipeline from a folder, pruned by PeLAP or not, float32 and in evaluation mode.

    Raises:
        ModelError: Not a pipeline folder, a package is not installed, or a file or a tensor is missing.
        PlanError: The plan of a pruned one is damaged or does not fit.
    """
    from pelap.loading import load_pipeline as load

    return load(Path(folder), device)
