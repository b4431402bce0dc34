"""What every section is made of, and the parts of a model: autoencoder, UNet, processes, variant."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    StringConstraints,
    model_validator,
)

from pelap.core.names import NAME

Name: TypeAlias = Annotated[str, StringConstraints(pattern=f"^{NAME}$")]
# Upper ends that no run comes near and no machine chokes on: a slip of the hand is said, not tried.
MOST = 10_000_000
Count: TypeAlias = Annotated[int, Field(gt=0, le=MOST)]  # pictures, steps, repeats, samples
Natural: TypeAlias = Annotated[int, Field(ge=0, le=MOST)]
Width: TypeAlias = Annotated[int, Field(gt=0, le=4096)]  # channels, groups, heads, tokens of a network
Depth: TypeAlias = Annotated[int, Field(gt=0, le=256)]  # its layers
Seed: TypeAlias = Annotated[int, Field(ge=0, le=2**63 - 1)]  # as torch takes them
Share: TypeAlias = Annotated[float, Field(gt=0, lt=1)]
Decay: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
Precision: TypeAlias = Literal["auto", "fp32", "bf16"]
Execution: TypeAlias = Literal["auto", "eager", "compiled"]


class Section(BaseModel):
    """A mapping of `params.yaml`: no unknown key, no silent conversion, no infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @classmethod
    def written(cls, fields: Mapping[str, Any]) -> Self:
        """From a file of results, which has every key: a lost one is a `KeyError`, never a default."""
        lost = [name for name in cls.model_fields if name not in fields]
        if lost:
            raise KeyError(f"{', '.join(lost)}: missing")
        return cls(**fields)


def _has_place(template: str) -> str:
    if template.count("{}") != 1 or "{" in template.replace("{}", "") or "}" in template.replace("{}", ""):
        raise ValueError("a template has one {}, where the class name stands")
    return template


Template: TypeAlias = Annotated[str, AfterValidator(_has_place)]


class PelapVAEParams(Section):
    """The paper's autoencoder, trained here; the paper has width 64, 4 latent channels, downsampling 4."""

    kind: Literal["pelap"] = "pelap"
    width: Annotated[Width, Field(ge=8, le=1024, multiple_of=8)] = 16
    latent_channels: Width = 4
    downsampling: Literal[4, 8] = 4


class AutoencoderKLParams(Section):
    """A pretrained diffusers `AutoencoderKL`, frozen: `source` is a folder or a name on the hub."""

    kind: Literal["autoencoder_kl"] = "autoencoder_kl"
    source: Annotated[str, Field(min_length=1)]


VAEParams: TypeAlias = Annotated[PelapVAEParams | AutoencoderKLParams, Field(discriminator="kind")]


class LightUNetParams(Section):
    """The paper's UNet (base width 64); `stem` puts a convolution before its first norm."""

    kind: Literal["light"] = "light"
    width: Annotated[Width, Field(ge=8, le=1024, multiple_of=8)] = 64
    stem: bool = False


class BlockUNetParams(Section):
    """A UNet of diffusers: residual blocks, with attention at some resolutions."""

    kind: str
    channels: Annotated[tuple[Width, ...], Field(strict=False, min_length=1, max_length=16)] = (32, 64, 64)
    layers_per_block: Depth = 2
    attention: Annotated[tuple[bool, ...], Field(strict=False)] = (False, True, False)
    attention_head_dim: Width = 8
    norm_num_groups: Width = 8

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.attention) != len(self.channels):
            raise ValueError("attention needs one true or false for each entry of channels")
        for value in self.channels:
            if value % self.norm_num_groups or value % self.attention_head_dim:
                raise ValueError(
                    f"{value} channels are not a multiple of norm_num_groups and attention_head_dim"
                )
        return self


class UNet2DParams(BlockUNetParams):
    """A `UNet2DModel`: self-attention."""

    kind: Literal["unet2d"] = "unet2d"


class UNet2DConditionParams(BlockUNetParams):
    """A `UNet2DConditionModel`: attention to the latents themselves and to the prompt's tokens."""

    kind: Literal["unet2d_condition"] = "unet2d_condition"


UNetParams: TypeAlias = Annotated[
    LightUNetParams | UNet2DParams | UNet2DConditionParams, Field(discriminator="kind")
]


class NoConditioning(Section):
    """The denoiser is told nothing but the time step."""

    kind: Literal["none"] = "none"


class TextConditioning(Section):
    """Prompts, made from class names by templates, through a text encoder that is trained with the UNet."""

    kind: Literal["text"] = "text"
    templates: Annotated[tuple[Template, ...], Field(strict=False, min_length=1)] = (
        "a photo of {}",
        "{}",
        "a small picture of {}",
        "a close view of {}",
    )
    num_tokens: Width = 8
    width: Width = 64
    layers: Depth = 2
    heads: Width = 4
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    guidance_scale: PositiveFloat = 2.0
    prompts: str | None = None

    @model_validator(mode="after")
    def _divides(self) -> "TextConditioning":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.guidance_scale != 1 and not self.dropout:
            raise ValueError(
                "guidance compares with a prediction without prompt, which is learnt from dropout; give "
                "dropout above 0, or guidance_scale: 1"
            )
        return self


ConditioningParams: TypeAlias = Annotated[NoConditioning | TextConditioning, Field(discriminator="kind")]


class DiffusionParams(Section):
    """The forward process: linear betas over `num_train_timesteps` steps."""

    num_train_timesteps: Count = 1000
    beta_start: Share = 0.0001
    beta_end: Share = 0.02

    @model_validator(mode="after")
    def _rising(self) -> "DiffusionParams":
        if self.beta_start > self.beta_end:
            raise ValueError("beta_start must not exceed beta_end")
        return self


class SamplerParams(Section):
    """How noise becomes latents; `steps` must divide the number of training time steps."""

    kind: Literal["ddim", "ddpm"] = "ddim"
    steps: Count = 20


def check_falling(lr: float, lr_min: float) -> None:
    """Refuse a schedule that rises."""
    if lr_min > lr:
        raise ValueError("lr_min must not exceed lr")


Loss: TypeAlias = Literal["diffusion", "reconstruction", "sparsity"]
Losses: TypeAlias = Annotated[tuple[Loss, ...], Field(strict=False)]
ALL_LOSSES: tuple[Loss, ...] = ("diffusion", "reconstruction", "sparsity")


class VariantParams(Section):
    """One way of coupling autoencoder, mask and diffusion; what is left out is as in the paper.

    `params.yaml` explains every field.
    """

    gate: Literal["none", "sigmoid", "topk", "hard_concrete"] = "sigmoid"
    adaptive: bool = True
    k: Width | None = None
    mask_lr: PositiveFloat | None = None
    sparsity_key: Literal["lambda", "seed"]
    sparsity_weight: NonNegativeFloat = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_epochs: Natural = 0
    start_epoch: Natural = 0
    normalise: Literal["none", "before_mask", "after_mask"] = "none"
    decoder_input: Literal["unmasked", "masked"] = "unmasked"
    encoder_losses: Losses = ALL_LOSSES
    mask_losses: Losses = ALL_LOSSES
    vae_training: Literal["joint", "two_stage", "frozen"] = "joint"
    cut: bool = False
    vae: VAEParams | None = None
    unet: UNetParams | None = None

    @model_validator(mode="after")
    def _coherent(self) -> "VariantParams":
        for rule in (self._without_mask, self._gate_problem, self._training_problem, self._penalty_problem):
            if problem := rule():
                raise ValueError(problem)
        return self

    def weight(self, lambda_: float) -> float:
        """The sparsity weight, once any warm-up is over, in a run with this `lambda`."""
        return lambda_ if self.sparsity_key == "lambda" else self.sparsity_weight

    def mask_learns(self, lambda_: float) -> bool:
        """Whether any loss reaches the mask."""
        return (
            ("diffusion" in self.mask_losses and not self._normalised_away())
            or ("reconstruction" in self.mask_losses and self.decoder_input == "masked")
            or ("sparsity" in self.mask_losses and self.weight(lambda_) > 0)
        )

    @property
    def mask_with_autoencoder(self) -> bool:
        """Whether the mask is trained, and then frozen, with an autoencoder that is trained first.

        It can be where the diffusion loss does not reach it: all that it learns from is there then.
        """
        learns_there = self.decoder_input == "masked" and "reconstruction" in self.mask_losses
        return self.vae_training == "two_stage" and learns_there and "diffusion" not in self.mask_losses

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
        if self.decoder_input == "masked":
            return "decoder_input masked needs a mask; use unmasked"
        if self.normalise == "after_mask":
            return "normalise after_mask needs a mask; use before_mask"
        if self.sparsity_key == "lambda":
            return "sparsity_key lambda needs a mask; use seed"
        mask_fields = (
            "adaptive", "k", "mask_lr", "sparsity_weight", "schedule", "warmup_epochs", "start_epoch",
            "mask_losses", "cut",
        )  # fmt: skip
        useless = [name for name in mask_fields if self._given(name)]
        return f"{', '.join(useless)}: there is no mask; leave it out" if useless else None

    def _gate_problem(self) -> str | None:
        if (self.gate == "topk") != (self.k is not None):
            return "k, the number of open channels, belongs to gate topk; give both or neither"
        if self.gate == "topk" and (self.sparsity_key == "lambda" or self.sparsity_weight):
            return "gate topk keeps k channels open, so a penalty changes nothing; use sparsity_key seed"
        if self.cut and self.decoder_input == "unmasked":
            return "cut takes channels away that a decoder of z was trained on; use decoder_input masked"
        return None

    def _penalty_problem(self) -> str | None:
        if self.sparsity_key == "lambda" and self.sparsity_weight:
            return "sparsity_weight is for sparsity_key seed; with sparsity_key lambda the weight is lambda"
        if (self.sparsity_key == "lambda" or self.sparsity_weight) and "sparsity" not in self.mask_losses:
            return "the penalty does not reach the mask; add sparsity to mask_losses, or leave it out"
        if (self.schedule == "constant") != (self.warmup_epochs == 0):
            return "schedule linear or cosine and warmup_epochs above 0 belong together; give both or neither"
        if self.warmup_epochs and self.sparsity_key == "seed" and not self.sparsity_weight:
            return "there is no penalty to warm up; give sparsity_weight, or use sparsity_key lambda"
        return None

    def _training_problem(self) -> str | None:
        if self.vae_training != "joint" and self._given("encoder_losses"):
            return (
                f"vae_training {self.vae_training} keeps every loss from the encoder; "
                "leave encoder_losses out"
            )
        # Whether lambda is 0 is not known here: `pelap.config.rules` looks once more.
        if self.gate != "none" and not self.mask_learns(lambda_=1.0):
            return "no loss is left to train the mask; name one in mask_losses that sees it"
        return None
