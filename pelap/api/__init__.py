"""What `import pelap` offers: the library in seven calls on objects in memory, and what they give.

A model is a diffusers pipeline, a model of this project (`LatentDiffusion`), or the folder of either. Nothing
is printed or written unless `progress` or `out` says so; warnings are Python's. Whatever a call has no name
for is a key of its section of `params.yaml`, with the same default (`pelap.config`).
"""

from pelap.api.models import load_pipeline
from pelap.api.pruning import make_plan, prune, score
from pelap.api.quality import distill, evaluate, sample
from pelap.api.results import PruningPlan, Result, Scores

__all__ = [
    "PruningPlan",
    "Result",
    "Scores",
    "distill",
    "evaluate",
    "load_pipeline",
    "make_plan",
    "prune",
    "sample",
    "score",
]
