"""The parameters of a run as frozen models: one class a section of `params.yaml`."""

from typing import Annotated, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    model_validator,
)

Name: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
Share: TypeAlias = Annotated[float, Field(gt=0, lt=1)]
Decay: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
Precision: TypeAlias = Literal["auto", "fp32", "bf16"]


class Section(BaseModel):
    """A mapping of `params.yaml`: no unknown key, no silent conversion, no infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


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


class PelapVAEParams(Section):
    """The paper's autoencoder, trained here; the paper has width 64 and 4 latent channels."""

    kind: Literal["pelap"]
    width: Annotated[int, Field(ge=8, multiple_of=8)]
    latent_channels: PositiveInt


class AutoencoderKLParams(Section):
    """A pretrained diffusers `AutoencoderKL`, frozen: `source` is a folder or a name on the hub."""

    kind: Literal["autoencoder_kl"]
    source: Annotated[str, Field(min_length=1)]


VAEParams: TypeAlias = Annotated[PelapVAEParams | AutoencoderKLParams, Field(discriminator="kind")]


class LightUNetParams(Section):
    """The paper's UNet (base width 64); `stem` puts a convolution before its first norm."""

    kind: Literal["light"]
    width: Annotated[int, Field(ge=8, multiple_of=8)]
    stem: bool


class UNet2DParams(Section):
    """A diffusers `UNet2DModel` with residual blocks and self-attention."""

    kind: Literal["unet2d"]
    channels: Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1)]
    layers_per_block: PositiveInt
    attention: Annotated[tuple[bool, ...], Field(strict=False)]
    attention_head_dim: PositiveInt
    norm_num_groups: PositiveInt

    @model_validator(mode="after")
    def _fits(self) -> "UNet2DParams":
        if len(self.attention) != len(self.channels):
            raise ValueError("attention needs one true or false for each entry of channels")
        for value in self.channels:
            if value % self.norm_num_groups or value % self.attention_head_dim:
                raise ValueError(
                    f"{value} channels are not a multiple of norm_num_groups and attention_head_dim"
                )
        return self


UNetParams: TypeAlias = Annotated[LightUNetParams | UNet2DParams, Field(discriminator="kind")]


class DiffusionParams(Section):
    """The forward process: linear betas over `num_train_timesteps` steps."""

    num_train_timesteps: PositiveInt
    beta_start: Share
    beta_end: Share

    @model_validator(mode="after")
    def _rising(self) -> "DiffusionParams":
        if self.beta_start > self.beta_end:
            raise ValueError("beta_start must not exceed beta_end")
        return self


class SamplerParams(Section):
    """How noise becomes latents; `steps` must divide the number of training time steps."""

    kind: Literal["ddim", "ddpm"]
    steps: PositiveInt


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


Loss: TypeAlias = Literal["diffusion", "reconstruction", "sparsity"]
Losses: TypeAlias = Annotated[tuple[Loss, ...], Field(strict=False)]
ALL_LOSSES: tuple[Loss, ...] = ("diffusion", "reconstruction", "sparsity")


class VariantParams(Section):
    """One way of coupling autoencoder, mask and diffusion; what is left out is as in the paper.

    `params.yaml` explains every field.
    """

    gate: Literal["none", "sigmoid", "topk", "hard_concrete"] = "sigmoid"
    adaptive: bool = True
    k: PositiveInt | None = None
    mask_lr: PositiveFloat | None = None
    strength: Literal["lambda", "seed"]
    penalty: NonNegativeFloat = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_epochs: NonNegativeInt = 0
    start_epoch: NonNegativeInt = 0
    normalise: Literal["none", "before_mask", "after_mask"] = "none"
    decode_from: Literal["z", "z*m"] = "z"
    encoder_losses: Losses = ALL_LOSSES
    mask_losses: Losses = ALL_LOSSES
    vae_training: Literal["joint", "first", "frozen"] = "joint"
    cut: bool = False
    vae: VAEParams | None = None
    unet: UNetParams | None = None

    @model_validator(mode="after")
    def _coherent(self) -> "VariantParams":
        rules = (self._without_mask, self._gate_problem, self._training_problem, self._penalty_problem)
        for rule in rules:
            problem = rule()
            if problem:
                raise ValueError(problem)
        return self

    def weight(self, lambda_: float) -> float:
        """The sparsity weight, once any warm-up is over, in a run with this `lambda`."""
        return lambda_ if self.strength == "lambda" else self.penalty

    def mask_learns(self, lambda_: float) -> bool:
        """Whether any loss reaches the mask."""
        return (
            ("diffusion" in self.mask_losses and not self._normalised_away())
            or ("reconstruction" in self.mask_losses and self.decode_from == "z*m")
            or ("sparsity" in self.mask_losses and self.weight(lambda_) > 0)
        )

    def _normalised_away(self) -> bool:
        """Whether the UNet sees the same whatever the mask: one factor a channel, then unit variance."""
        return not self.adaptive and self.normalise == "after_mask" and self.gate != "hard_concrete"

    def _given(self, name: str) -> bool:
        """Whether a field differs from the paper's."""
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    def _without_mask(self) -> str | None:
        """A field that needs a mask where there is none."""
        if self.gate != "none":
            return None
        if self.decode_from == "z*m":
            return "decode_from z*m needs a mask; use z"
        if self.normalise == "after_mask":
            return "normalise after_mask needs a mask; use before_mask"
        if self.strength == "lambda":
            return "strength lambda needs a mask; use seed"
        mask_fields = (
            "adaptive", "k", "mask_lr", "penalty", "schedule", "warmup_epochs", "start_epoch",
            "mask_losses", "cut",
        )  # fmt: skip
        useless = [name for name in mask_fields if self._given(name)]
        return f"{', '.join(useless)}: there is no mask; leave it out" if useless else None

    def _gate_problem(self) -> str | None:
        if (self.gate == "topk") != (self.k is not None):
            return "k, the number of open channels, belongs to gate topk; give both or neither"
        if self.gate == "topk" and (self.strength == "lambda" or self.penalty):
            return "gate topk keeps k channels open, so a sparsity penalty changes nothing; use strength seed"
        if self.cut and self.decode_from == "z":
            return "cut takes channels away that a decoder of z was trained on; use decode_from z*m"
        return None

    def _penalty_problem(self) -> str | None:
        if self.strength == "lambda" and self.penalty:
            return "penalty is for strength seed; with strength lambda the weight is lambda"
        if (self.strength == "lambda" or self.penalty) and "sparsity" not in self.mask_losses:
            return "the penalty does not reach the mask; add sparsity to mask_losses, or leave it out"
        if (self.schedule == "constant") != (self.warmup_epochs == 0):
            return "schedule linear or cosine and warmup_epochs above 0 belong together; give both or neither"
        if self.warmup_epochs and self.strength == "seed" and not self.penalty:
            return "there is no penalty to warm up; give penalty, or use strength lambda"
        return None

    def _training_problem(self) -> str | None:
        if self.vae_training != "joint" and self._given("encoder_losses"):
            return (
                f"vae_training {self.vae_training} keeps every loss from the encoder; "
                "leave encoder_losses out"
            )
        # Whether lambda is 0 is not known here: `pelap.config` looks once more.
        if self.gate != "none" and not self.mask_learns(lambda_=1.0):
            return "no loss is left to train the mask; name one in mask_losses that sees it"
        return None


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
    sampler: SamplerParams
    batch_size: PositiveInt
    latency_batch_size: PositiveInt
    latency_repeats: Annotated[int, Field(ge=3)]


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
