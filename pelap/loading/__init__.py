"""Models and pipelines as folders, and any such folder, pruned or not, back to what was saved."""

from pelap.loading.model import load_model, model_plan, save_model
from pelap.loading.pipeline import is_pipeline, load_pipeline, pipeline_plan, save_pipeline
from pelap.loading.pruned import load_plan

__all__ = [
    "is_pipeline",
    "load_model",
    "load_pipeline",
    "load_plan",
    "model_plan",
    "pipeline_plan",
    "save_model",
    "save_pipeline",
]
