"""Which keys change nothing of what a stage does, for the user to know."""

from collections.abc import Mapping, Sequence
from typing import Any

from pelap.config import Params, VariantParams

PIPELINE_UNUSED: dict[str, tuple[str, ...]] = {
    "score": ("score.variant", "score.sampler.kind"),
    "prune": ("score.variant", "score.sampler.kind", "score.criteria"),
    "distill": ("distill.quality",),
    "evaluate": (
        "evaluate.models",
        "evaluate.num_reconstructions",
        "evaluate.sampler.kind",
        "evaluate.step_counts",
        "evaluate.deepcache_intervals",
    ),
}
"""What of these sections is for models of this project alone: a pipeline is one network, with a scheduler."""


def unused_by_pipeline(stage: str, params: Params, scored: bool = False, planned: bool = False) -> list[str]:
    """Keys whose values change nothing of what a stage does for a diffusers pipeline, for the user to know.

    Args:
        stage: One of `PIPELINE_KEYS`.
        params: Of which what is null, empty or false asks for nothing.
        scored: Whether `prune` finds the protocol of the scores, which says how they were made.
        planned: Whether `prune` is given a plan.
    """
    keys = list(PIPELINE_UNUSED[stage])
    if stage == "prune":
        rescores = not planned and any(method.iterative_step for method in params.prune.methods.values())
        keys += [] if rescores else ["score.early_stop", "score.num_resamples"]
        keys = (["seed", "score"] if scored else keys) + _unused_by_pruning(params, planned)
    if stage == "distill":
        keys += [f"distill.students.{name}.skip" for name in params.distill.students]
    if stage == "evaluate":
        keys += _unused_by_figures(params)
        keys += [] if "classifier" in params.evaluate.extractors else ["evaluate.classifier"]
    return [key for key in keys if _asks(_at(params, key))]


def unused_by_run(stage: str, params: Params, planned: bool = False, variant: str | None = None) -> list[str]:
    """The same of a stage of a run; see `unused_by_pipeline`.

    Args:
        stage: One of `STAGES`.
        params: At least its keys.
        planned: Whether `prune` is given a plan.
        variant: The only one that `train` is to train.
    """
    keys: list[str] = _unused_by_pruning(params, planned) if stage == "prune" else []
    if stage == "train":
        trained = [each for name, each in params.variants.items() if variant in (None, name)]
        keys += _unused_by_training(params, trained) if trained else []
    if stage == "evaluate":
        keys += _unused_by_figures(params)
        if params.evaluate.models == "variants":
            keys += ["evaluate.step_counts", "evaluate.deepcache_intervals", "evaluate.lpips_weights"]
    return [key for key in keys if _asks(_at(params, key))]


def _unused_by_pruning(params: Params, planned: bool) -> list[str]:
    if planned:
        return ["prune"]
    return (
        [] if params.prune.target == "time_reduction" else ["prune.max_measurements"]
    )  # of what a clock says


def _unused_by_training(params: Params, variants: Sequence[VariantParams]) -> list[str]:
    used = {
        "lambda": not params.lambda_ or any(each.sparsity_key == "lambda" for each in variants),
        "vae": any(each.vae is None for each in variants),
        "unet": any(each.unet is None for each in variants),
        "train.vae_epochs": any(each.vae_training == "two_stage" for each in variants),
        "train.parallel_variants": params.train.parallel_variants == 1 or len(variants) > 1,
    }
    return [key for key, is_used in used.items() if not is_used]


TIMED = ("evaluate.latency_compiled", "evaluate.latency_batch_sizes", "evaluate.sampler_repeats")


def _unused_by_figures(params: Params) -> list[str]:
    evaluate = params.evaluate
    inception = any(name.startswith("inception") for name in evaluate.extractors)
    keys = [] if inception else ["evaluate.inception_weights"]
    return keys if evaluate.latency_repeats else [*keys, *TIMED]


def _at(params: Params, key: str) -> Any:
    value: Any = params
    for name in key.split("."):
        field = {"lambda": "lambda_"}.get(name, name)
        value = value[name] if isinstance(value, Mapping) else getattr(value, field)
    return value


def _asks(value: Any) -> bool:
    """Whether a value asks for something: null, false and what is empty do not."""
    return value is not None and value is not False and value != ()
