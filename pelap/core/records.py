"""What stages say of their results in JSON that others read back. Any key may be missing, and more be there.

`pelap.core.files` checks by these what it reads.
"""

from typing import Any

from typing_extensions import TypedDict  # pydantic takes that of Python from 3.12 on

Number = float | None


class ScoreProtocol(TypedDict, total=False):
    """`score/protocol.json`, as far as the report shows it."""

    variant: str
    seed: int
    num_latents: int
    num_seeds: int
    formula: str
    early_stop: Number
    rank_correlation: Number
    latency_batch_size: int


class PlanResult(TypedDict, total=False):
    """What pruning by one plan gave, an entry of `prune/result.json`."""

    num_operators: int
    promised_time_reduction: Number
    measured_time_reduction: Number
    params_before: Number
    params_after: Number
    latency_ms_before: Number
    latency_ms_after: Number


class Student(TypedDict, total=False):
    """How one network was trained further, an entry of `distill/result.json`."""

    start: str
    plan: str | None
    steps: int
    kept_step: int
    select: str
    task_weight: float
    output_weight: float
    feature_weight: float


class Prompts(TypedDict, total=False):
    """What samples were made of."""

    number: int
    guidance_scale: Number
    first: list[str]
    num_judged: int | None


class Pipeline(TypedDict, total=False):
    """How a pipeline made its latents."""

    scheduler: str
    steps: int
    rows_per_latent: int


class Classifier(TypedDict, total=False):
    """What told the classes apart."""

    test_accuracy: Number
    num_test: int | None


class EvaluateProtocol(TypedDict, total=False):
    """`evaluate/protocol.json`, and that beside the metrics of pipelines."""

    scored_variant: str | None
    deepcache_intervals: list[int]
    jackknife_groups: int
    num_images: int
    num_reference: int
    rows_per_latent: int
    latency_batch_sizes: list[int]
    seed: int
    prompts: Prompts | None
    pipelines: dict[str, Pipeline]
    classifier: Classifier | None
    sound: dict[str, Any] | None
    versions: dict[str, str]
