"""PeLAP: masked latent diffusion models, explained, scored, pruned and distilled.

The package is a library; `pelap.cli` and the stages are its command line. Nothing heavy is imported
here, so that ``pelap --help`` answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pelap.pipelines.pipeline_io import load_pipeline

__version__ = "0.1.0"
__all__ = ["__version__", "load_pipeline"]


def __getattr__(name: str) -> Any:
    if name == "load_pipeline":
        return import_module("pelap.pipelines.pipeline_io").load_pipeline
    raise AttributeError(f"module 'pelap' has no attribute {name!r}")
