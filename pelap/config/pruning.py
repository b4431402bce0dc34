"""The sections of a pruning: scores, plans and students."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Annotated, Literal, NamedTuple, TypeAlias, TypeVar

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat, model_validator

from pelap.config.model import (
    Count,
    Decay,
    Execution,
    Name,
    Natural,
    Precision,
    SamplerParams,
    Section,
    Share,
    check_falling,
)

Formula: TypeAlias = Literal["avg+std", "avg", "std", "avg*std"]
# Ways to rank operators that need no denoising run for each of them.
CheapCriterion: TypeAlias = Literal["random", "magnitude", "taylor", "output_error", "block_similarity"]
# What operators are ranked by; `score` is LD-Pruner's by the formula of the section `score`.
Criterion: TypeAlias = Literal["score", "score_debiased"] | Formula | CheapCriterion


class ScoreParams(Section):
    """LD-Pruner's score of every operator, and what it is compared with."""

    variant: Name = "invariant"
    num_latents: Annotated[Count, Field(ge=2)] = 32
    num_seeds: Count = 2
    sampler: SamplerParams = SamplerParams()
    formula: Formula = "avg+std"
    criteria: Annotated[tuple[CheapCriterion, ...], Field(strict=False)] = ()
    norm_replacement: Literal["identity", "affine"] = "identity"
    replacement_init: Literal["least_squares", "random", "parameter_free"] = "least_squares"
    early_stop: Share | None = None
    batch_size: Count = 256
    latency_batch_size: Count = 64
    latency_repeats: Annotated[Count, Field(ge=3)] = 30

    @model_validator(mode="after")
    def _sets_of_equal_size(self) -> "ScoreParams":
        if self.num_latents % self.num_seeds or self.num_latents < 2 * self.num_seeds:
            raise ValueError("num_latents must be a multiple of num_seeds, at least twice it")
        return self


def _listed(value: object) -> object:
    """A single amount as a list of one, so that `-S prune.time_reduction=0.35` needs no brackets."""
    return value if value is None or isinstance(value, list | tuple) else [value]


Amount = TypeVar("Amount")
Amounts: TypeAlias = Annotated[
    tuple[Amount, ...] | None, Field(strict=False, min_length=1), BeforeValidator(_listed)
]
TARGETS = ("time_reduction", "num_params", "num_operators")
Selection: TypeAlias = Literal["lowest_first", "per_ms", "knapsack"]


class MethodParams(Section):
    """A way to choose operators."""

    criterion: Criterion = "score"
    selection: Selection = "lowest_first"
    iterative_step: Annotated[float, Field(ge=0.02, lt=1)] | None = None
    amounts: Amounts[PositiveFloat] = None


METHODS = {"ld-pruner": MethodParams(criterion="score", selection="lowest_first")}


class PruneParams(Section):
    """How much to remove: exactly one of the three targets, with one amount or several; and how to choose."""

    time_reduction: Amounts[Share] = (0.25,)
    num_params: Amounts[Annotated[int, Field(gt=0, le=2**53)]] = None
    num_operators: Amounts[Count] = None
    methods: Annotated[dict[Name, MethodParams], Field(min_length=1)] = METHODS
    max_measurements: Natural = 5
    single_operator_plans: Natural = 0

    @model_validator(mode="after")
    def _one_target(self) -> "PruneParams":
        if sum(getattr(self, target) is not None for target in TARGETS) != 1:
            raise ValueError("give exactly one of time_reduction, num_params, num_operators")
        for name, method in self.methods.items():
            amounts = self.amounts_of(method)
            if len(set(amounts)) < len(amounts):
                raise ValueError(f"{name if method.amounts else self.target} names an amount twice")
            if self.target == "time_reduction" and max(amounts) > 1:
                raise ValueError(f"methods.{name}.amounts: shares of the time are at most 1")
            if self.target != "time_reduction" and any(amount != int(amount) for amount in amounts):
                raise ValueError(f"methods.{name}.amounts: {self.target} are whole numbers")
            if method.iterative_step is not None and method.criterion != "score":
                raise ValueError(
                    f"methods.{name}.iterative_step goes with criterion: score alone; set it to null"
                )
            if method.iterative_step is not None and self.target != "time_reduction":
                raise ValueError(f"methods.{name}.iterative_step is a share of the time; give time_reduction")
        return self

    @property
    def target(self) -> str:
        """The name of the target that is given."""
        return next(target for target in TARGETS if getattr(self, target) is not None)

    def amounts_of(self, method: MethodParams) -> tuple[float, ...]:
        """How much a method removes: its own amounts, or those of the target."""
        return tuple(method.amounts or getattr(self, self.target))

    @property
    def plans(self) -> dict[str, "PlanRequest"]:
        """What each plan is to be, by its name: percent of the time, or number, after several methods'."""
        scale = 100 if self.target == "time_reduction" else 1
        several = len(self.methods) > 1
        return {
            f"{name}-" * several + f"{scale * amount:.12g}": PlanRequest(name, method, amount)
            for name, method in self.methods.items()
            for amount in self.amounts_of(method)
        }


class PlanRequest(NamedTuple):
    """One plan to be made."""

    name: str  # of the method
    method: MethodParams
    amount: float


class LossWeights(Section):
    """What each term of the distillation loss counts."""

    task_weight: NonNegativeFloat = 1.0
    output_weight: NonNegativeFloat = 1.0
    feature_weight: NonNegativeFloat = 1.0

    @model_validator(mode="after")
    def _learns(self) -> "LossWeights":
        if not (self.task_weight or self.output_weight or self.feature_weight):
            raise ValueError("all three weights are zero: nothing to learn from")
        return self


class StudentParams(LossWeights):
    """One way of spending the steps of `distill`."""

    start: Literal["pruned", "scratch", "dense"] = "pruned"
    skip: Annotated[tuple[str, ...], Field(strict=False)] = ()  # patterns of plans that it is not trained for


class QualityParams(Section):
    """The Frechet distance on the way: samples made, and train pictures that they are compared with."""

    num_images: Annotated[Count, Field(ge=2)] = 500
    num_reference: Annotated[Count, Field(ge=2)] = 4000
    sampler: SamplerParams = SamplerParams()


STUDENTS = {
    "distilled": StudentParams(start="pruned", task_weight=1.0, output_weight=1.0, feature_weight=1.0),
    "output-only": StudentParams(start="pruned", task_weight=1.0, output_weight=1.0, feature_weight=0.0),
    "scratch": StudentParams(start="scratch", task_weight=1.0, output_weight=1.0, feature_weight=1.0),
    "dense-finetuned": StudentParams(start="dense", task_weight=1.0, output_weight=0.0, feature_weight=0.0),
}


class DistillParams(Section):
    """Fine-tuning of pruned UNets with the dense one as teacher, and of what they are compared with."""

    steps: Count = 240
    batch_size: Count = 64
    lr: PositiveFloat = 0.0005
    lr_min: NonNegativeFloat = 0.00001
    horizontal_flip: bool = True
    warmup_steps: Natural = 20
    weight_decay: NonNegativeFloat = 0.0001
    grad_clip: PositiveFloat = 1.0
    ema_decay: Decay = 0.99
    precision: Precision = "auto"
    execution: Execution = "auto"
    students: Annotated[dict[Name, StudentParams], Field(min_length=1)] = STUDENTS
    validate_every: Count = 80
    num_validation: Count = 256
    quality: QualityParams | None = None
    select: Literal["last", "loss", "distance"] = "last"
    log_every: Count = 10

    @model_validator(mode="after")
    def _coherent(self) -> "DistillParams":
        check_falling(self.lr, self.lr_min)
        if self.warmup_steps >= self.steps:
            raise ValueError("warmup_steps must be below steps")
        if self.validate_every > self.steps:
            raise ValueError("validate_every must not exceed steps")
        if self.select == "distance" and self.quality is None:
            raise ValueError("select distance needs quality, what the distance is measured with")
        if all(student.start == "dense" for student in self.students.values()):
            raise ValueError("students: none starts from the pruned UNet; add one with start: pruned")
        return self

    def rows(self, plans: Iterable[str]) -> dict[str, tuple[StudentParams, str | None]]:
        """Every network that is trained for these plans, by name; a dense one is trained once, for none."""
        rows: dict[str, tuple[StudentParams, str | None]] = {
            f"{name}-{plan}": (it, plan)
            for plan in plans
            for name, it in self.students.items()
            if it.start != "dense" and not any(fnmatchcase(plan, pattern) for pattern in it.skip)
        }
        return rows | {name: (it, None) for name, it in self.students.items() if it.start == "dense"}
