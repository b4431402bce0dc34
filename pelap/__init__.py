"""PeLAP: score, prune and distil diffusion models, your own and those of two papers.

::

    scores = pelap.score(pipe)                          # pipe: a diffusers pipeline
    plan = pelap.make_plan(scores, time_reduction=0.35)
    small = pelap.prune(pipe, plan)                     # a diffusers pipeline again
    fast = pelap.distill(small, teacher=pipe, data="pictures")
    result = pelap.evaluate({"dense": pipe, "fast": fast}, reference="pictures")

The stages of a run and their command line are in `pelap.stages` and `pelap.cli`. Nothing heavy is imported
before it is used, so that ``pelap --help`` answers at once.
"""

TYPE_CHECKING = False  # `typing` itself would be most of the time until `pelap.__main__` is there
if TYPE_CHECKING:
    from typing import Any

    from pelap.api import distill, evaluate, load_pipeline, make_plan, prune, sample, score

__version__ = "0.1.0"
__all__ = ["__version__", "distill", "evaluate", "load_pipeline", "make_plan", "prune", "sample", "score"]


def __getattr__(name: str) -> "Any":
    from importlib import import_module

    if name in __all__:
        return getattr(import_module("pelap.api"), name)
    raise AttributeError(f"module 'pelap' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
