"""The sections that the stages read, and the whole file, with the library's defaults."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from pelap.config.model import (
    ConditioningParams,
    Count,
    Decay,
    DiffusionParams,
    Execution,
    Name,
    NoConditioning,
    PelapVAEParams,
    Precision,
    SamplerParams,
    Section,
    Seed,
    Share,
    UNet2DParams,
    UNetParams,
    VAEParams,
    VariantParams,
    Width,
    check_falling,
)
from pelap.config.pruning import DistillParams, PruneParams, ScoreParams


class PhotoCrops(Section):
    """Crops taken from each of the eight photographs."""

    train_per_photo: Count = 1024
    test_per_photo: Count = 256
    min_crop: Annotated[Count, Field(ge=8)] = 48
    max_crop: Annotated[Count, Field(ge=8)] = 160

    @model_validator(mode="after")
    def _ordered(self) -> "PhotoCrops":
        if self.min_crop > self.max_crop:
            raise ValueError("min_crop must not exceed max_crop")
        return self


class SoundParams(Section):
    """How sounds become pictures: log-mel spectrograms, `image_size` bands of `image_size` frames."""

    sample_rate: Annotated[Count, Field(ge=4000)] = 16000
    num_fft: Annotated[int, Field(ge=64, le=65536)] = 1024
    hop_length: Annotated[Count, Field(ge=16)] = 256
    range_db: Annotated[float, Field(ge=20, le=120)] = 80.0
    train_per_class: Count = 512
    test_per_class: Count = 64

    @model_validator(mode="after")
    def _overlap(self) -> "SoundParams":
        if 2 * self.hop_length > self.num_fft:
            raise ValueError("hop_length must be at most half of num_fft: without overlap no way leads back")
        return self


FOLDERS = {"cifar10-jpeg": "data/downloads/cifar10-jpeg.tar.xz"}


class DownloadParams(Section):
    """Where pictures and sounds come from."""

    image_size: Annotated[int, Field(ge=12, le=1024, multiple_of=4)] = 32
    photos: PhotoCrops = PhotoCrops()
    sounds: SoundParams = SoundParams()
    folders: dict[Name, str] = FOLDERS


class TrainParams(Section):
    """Joint training of VAE, mask and UNet, after `vae_epochs` of the VAE alone where a variant says so."""

    epochs: Count = 6
    vae_epochs: Count = 3
    steps_per_epoch: Count | None = None
    batch_size: Count = 64
    lr: PositiveFloat = 0.001
    lr_min: NonNegativeFloat = 0.00001
    lr_update: Literal["step", "epoch"] = "step"
    weight_decay: NonNegativeFloat = 0.0001
    grad_clip: PositiveFloat = 1.0
    horizontal_flip: bool = True
    kl_weight: NonNegativeFloat = 0.001
    ema_decay: Decay = 0.995
    precision: Precision = "auto"
    execution: Execution = "auto"
    parallel_variants: Count = 1
    select: Literal["last", "best"] = "last"
    log_every: Count = 16
    num_validation: Count = 512
    preview: SamplerParams = SamplerParams(steps=50)

    @model_validator(mode="after")
    def _falling(self) -> "TrainParams":
        check_falling(self.lr, self.lr_min)
        return self


class CollapseParams(Section):
    """What the mask does, over `num_images` test pictures."""

    num_images: Annotated[Count, Field(ge=2)] = 1024
    batch_size: Count = 256
    active_threshold: Share = 0.5
    scale_threshold: Share = 0.5


class ClassifierParams(Section):
    """A small network that learns to tell the classes of the real train pictures apart."""

    steps: Count = 500
    batch_size: Count = 128
    lr: PositiveFloat = 0.002
    width: Width = 32
    horizontal_flip: bool = True


class EvaluateParams(Section):
    """Quality and cost of every model, or of the variants alone."""

    models: Literal["all", "variants"] = "all"
    num_images: Annotated[Count, Field(ge=2)] = 1500
    num_reference: Annotated[Count, Field(ge=2)] = 4000
    num_reconstructions: Count = 1024
    batch_size: Count = 128
    sampler: SamplerParams = SamplerParams()
    precision: Precision = "fp32"
    step_counts: Annotated[tuple[Count, ...], Field(strict=False)] = (10,)
    deepcache_intervals: Annotated[tuple[Annotated[Count, Field(ge=2)], ...], Field(strict=False)] = ()
    only_frechet: bool = False
    extractors: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = ("effnet-lite0",)
    classifier: ClassifierParams | None = None
    inception_weights: str | None = None
    lpips_weights: str | None = None
    latency_batch_sizes: Annotated[tuple[Count, ...], Field(strict=False, min_length=1)] = (64, 1)
    latency_compiled: bool = False
    latency_repeats: Annotated[Count, Field(ge=3)] | None = 30
    sampler_repeats: Annotated[Count, Field(ge=3)] = 5

    @model_validator(mode="after")
    def _once(self) -> "EvaluateParams":
        for key in ("step_counts", "deepcache_intervals", "extractors", "latency_batch_sizes"):
            if len(set(getattr(self, key))) < len(getattr(self, key)):
                raise ValueError(f"{key} names something twice")
        if "classifier" in self.extractors and self.classifier is None:
            raise ValueError("extractors: classifier needs the section classifier; give its numbers there")
        return self


VARIANTS = {  # no mask, the paper's, and one that the scale of latents cannot close
    "baseline": VariantParams(gate="none", sparsity_key="seed"),
    "pelap": VariantParams(sparsity_key="lambda"),
    "invariant": VariantParams(
        gate="hard_concrete",
        adaptive=False,
        mask_lr=0.03,
        sparsity_key="lambda",
        normalise="before_mask",
        decoder_input="masked",
        encoder_losses=("reconstruction",),
        mask_losses=("reconstruction", "sparsity"),
    ),
}


class Params(Section):
    """A whole parameter file; what a stage does not read (see `STAGE_KEYS`) is not set on the object."""

    dataset: Name = "photos"
    seed: Seed = 0
    lambda_: Annotated[NonNegativeFloat, Field(alias="lambda")] = 0.001
    download: DownloadParams = DownloadParams()
    vae: VAEParams = PelapVAEParams()
    unet: UNetParams = UNet2DParams()
    conditioning: ConditioningParams = NoConditioning()
    diffusion: DiffusionParams = DiffusionParams()
    train: TrainParams = TrainParams()
    variants: Annotated[dict[Name, VariantParams], Field(min_length=1)] = VARIANTS
    collapse: CollapseParams = CollapseParams()
    score: ScoreParams = ScoreParams()
    prune: PruneParams = PruneParams()
    distill: DistillParams = DistillParams()
    evaluate: EvaluateParams = EvaluateParams()
