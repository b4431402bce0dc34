"""What `import pelap` offers: the library in seven calls on objects in memory, and what they give."""

from pelap.api.calls import distill, evaluate, load_pipeline, make_plan, prune, sample, score
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
