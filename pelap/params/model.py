"""The parts of a model: autoencoder, UNet, forward and reverse process."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, PositiveInt, model_validator

from pelap.params.section import Section, Share


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
