"""The sections that the stages read, and the whole file."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pelap.params.model import DiffusionParams, SamplerParams, UNetParams, VAEParams
from pelap.params.section import Decay, Name, Precision, Section, Share
from pelap.params.variant import VariantParams


class PhotoCrops(Section):
    """Crops taken from each of the eight photographs."""

    train_per_photo: PositiveInt
    test_per_photo: PositiveInt
    min_crop: Annotated[int, Field(ge=8)]
    max_crop: Annotated[int, Field(ge=8)]

    @model_validator(mode="after")
    def _ordered(self) -> "PhotoCrops":
        if self.min_crop > self.max_crop:
            raise ValueError("min_crop must not exceed max_crop")
        return self


class DownloadParams(Section):
    """Where pictures come from."""

    image_size: Annotated[int, Field(ge=12, le=1024, multiple_of=4)]
    photos: PhotoCrops
    folders: dict[Name, str]


def _check_falling(lr: float, lr_min: float) -> None:
    if lr_min > lr:
        raise ValueError("lr_min must not exceed lr")


class TrainParams(Section):
    """Joint training of VAE, mask and UNet, after `vae_epochs` of the VAE alone where a variant says so."""

    epochs: PositiveInt
    vae_epochs: PositiveInt
    steps_per_epoch: PositiveInt | None
    batch_size: PositiveInt
    lr: PositiveFloat
    lr_min: NonNegativeFloat
    lr_update: Literal["step", "epoch"]
    weight_decay: NonNegativeFloat
    grad_clip: PositiveFloat
    horizontal_flip: bool
    kl_weight: NonNegativeFloat
    ema_decay: Decay
    precision: Precision
    select: Literal["last", "best"]
    log_every: PositiveInt
    num_validation: PositiveInt
    preview: SamplerParams

    @model_validator(mode="after")
    def _falling(self) -> "TrainParams":
        _check_falling(self.lr, self.lr_min)
        return self


class CollapseParams(Section):
    """What the mask does, over `num_images` test pictures."""

    num_images: Annotated[int, Field(ge=2)]
    batch_size: PositiveInt
    active_threshold: Share
    scale_threshold: Share


class ScoreParams(Section):
    """LD-Pruner's score of every operator."""

    variant: Name
    num_latents: Annotated[int, Field(ge=2)]
    num_seeds: PositiveInt
    sampler: SamplerParams
    formula: Literal["avg+std", "avg", "std", "avg*std"]
    norm: Literal["identity", "scale_shift"]
    start: Literal["fitted", "random", "parameter_free"]
    early_stop: Share | None
    num_resamples: Annotated[int, Field(ge=20)]
    batch_size: PositiveInt
    latency_batch_size: PositiveInt
    latency_repeats: Annotated[int, Field(ge=3)]

    @model_validator(mode="after")
    def _sets_of_equal_size(self) -> "ScoreParams":
        if self.num_latents % self.num_seeds or self.num_latents < 2 * self.num_seeds:
            raise ValueError("num_latents must be a multiple of num_seeds, at least twice it")
        return self


class PruneParams(Section):
    """How much to remove: exactly one of the three targets."""

    time_reduction: Share | None
    num_params: PositiveInt | None
    num_operators: PositiveInt | None

    @model_validator(mode="after")
    def _one_target(self) -> "PruneParams":
        if sum(target is not None for _, target in self) != 1:
            raise ValueError("give exactly one of time_reduction, num_params, num_operators")
        return self


class DistillParams(Section):
    """Fine-tuning of the pruned UNet with the dense one as teacher."""

    steps: PositiveInt
    batch_size: PositiveInt
    lr: PositiveFloat
    lr_min: NonNegativeFloat
    horizontal_flip: bool
    warmup_steps: NonNegativeInt
    weight_decay: NonNegativeFloat
    grad_clip: PositiveFloat
    ema_decay: Decay
    precision: Precision
    task_weight: NonNegativeFloat
    output_weight: NonNegativeFloat
    feature_weight: NonNegativeFloat
    log_every: PositiveInt

    @model_validator(mode="after")
    def _learns(self) -> "DistillParams":
        if not (self.task_weight or self.output_weight or self.feature_weight):
            raise ValueError("all three weights are zero: nothing to learn from")
        _check_falling(self.lr, self.lr_min)
        if self.warmup_steps >= self.steps:
            raise ValueError("warmup_steps must be below steps")
        return self


class EvaluateParams(Section):
    """Quality and cost of every model, or of the variants alone."""

    models: Literal["all", "variants"]
    num_images: Annotated[int, Field(ge=2)]
    num_reference: Annotated[int, Field(ge=2)]
    num_reconstructions: PositiveInt
    batch_size: PositiveInt
    sampler: SamplerParams
    inception_weights: str | None
    latency_batch_size: PositiveInt
    latency_repeats: Annotated[int, Field(ge=3)] | None


class Params(Section):
    """A whole parameter file.

    A stage may be given a file with just its own keys (see `STAGE_KEYS`); the others are then not
    set on the object.
    """

    dataset: Name
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)]
    lambda_: Annotated[NonNegativeFloat, Field(alias="lambda")]
    download: DownloadParams
    vae: VAEParams
    unet: UNetParams
    diffusion: DiffusionParams
    train: TrainParams
    variants: Annotated[dict[Name, VariantParams], Field(min_length=1)]
    collapse: CollapseParams
    score: ScoreParams
    prune: PruneParams
    distill: DistillParams
    evaluate: EvaluateParams
