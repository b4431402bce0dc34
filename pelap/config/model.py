"""The parts of a model: autoencoder, UNet, forward and reverse process."""

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from pelap.config.section import Section, Share


def _has_place(template: str) -> str:
    if template.count("{}") != 1 or "{" in template.replace("{}", "") or "}" in template.replace("{}", ""):
        raise ValueError("a template has one {}, where the class name stands")
    return template


Template: TypeAlias = Annotated[str, AfterValidator(_has_place)]


class PelapVAEParams(Section):
    """The paper's autoencoder, trained here; the paper has width 64, 4 latent channels, downsampling 4."""

    kind: Literal["pelap"]
    width: Annotated[int, Field(ge=8, multiple_of=8)]
    latent_channels: PositiveInt
    downsampling: Literal[4, 8] = 4


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


class BlockUNetParams(Section):
    """A UNet of diffusers: residual blocks, with attention at some resolutions."""

    channels: Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1)]
    layers_per_block: PositiveInt
    attention: Annotated[tuple[bool, ...], Field(strict=False)]
    attention_head_dim: PositiveInt
    norm_num_groups: PositiveInt

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

    kind: Literal["unet2d"]


class UNet2DConditionParams(BlockUNetParams):
    """A `UNet2DConditionModel`: attention to the latents themselves and to the prompt's tokens."""

    kind: Literal["unet2d_condition"]


UNetParams: TypeAlias = Annotated[
    LightUNetParams | UNet2DParams | UNet2DConditionParams, Field(discriminator="kind")
]


class NoConditioning(Section):
    """The denoiser is told nothing but the time step."""

    kind: Literal["none"]


class TextConditioning(Section):
    """Prompts, made from class names by templates, through a text encoder that is trained with the UNet."""

    kind: Literal["text"]
    templates: Annotated[tuple[Template, ...], Field(strict=False, min_length=1)]
    num_tokens: PositiveInt
    width: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    dropout: Annotated[float, Field(ge=0, lt=1)]
    guidance_scale: PositiveFloat
    prompts: str | None

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
