"""The autoencoder of PeLAP-A: pictures to latents, in the paper four times smaller on a side, and back.

Shapes: B batch, H and W sides of a picture, h and w of its latent, c latent channels. The width is the
number of channels at full resolution, 64 in the paper.
"""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import AutoencoderKL, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F

from pelap.core.errors import ModelError, blamed_on
from pelap.core.part_checks import demand_kinds, demand_numbers, demand_settings
from pelap.core.part_io import CONFIG, demand_one_network, read_config, variant_of
from pelap.models.light_unet import ConvWithOnes, fold_inputs

GROUPS = 8


class ResidualBlock(nn.Module):
    """x + conv3(SiLU(GN(conv3(SiLU(GN(x))))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(GROUPS, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


def _halve(channels: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(channels, outputs, 4, stride=2, padding=1)


def _double(channels: int, outputs: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, outputs, 4, stride=2, padding=1)


class VAE(ModelMixin, ConfigMixin):
    """Variational autoencoder with a diagonal Gaussian posterior (PeLAP-A, section 3).

    The downsampling is a picture's side over that of its latents, a power of two; the paper has 4. Every
    halving beyond that is one more strided convolution and residual block of 2w channels.
    """

    @register_to_config
    def __init__(
        self, width: int = 64, latent_channels: int = 4, image_channels: int = 3, downsampling: int = 4
    ) -> None:
        super().__init__()
        wide = 2 * width
        halvings = range(downsampling.bit_length() - 2)  # beyond the first
        self.encoder = nn.Sequential(
            nn.Conv2d(image_channels, width, 3, padding=1),  # (B, w, H, W)
            ResidualBlock(width),
            _halve(width, wide),  # (B, 2w, H/2, W/2)
            ResidualBlock(wide),
            *(layer for _ in halvings for layer in (_halve(wide, wide), ResidualBlock(wide))),
            nn.GroupNorm(GROUPS, wide),  # (B, 2w, h, w)
            nn.SiLU(),
        )
        self.mean_head = nn.Conv2d(wide, latent_channels, 1)
        self.logvar_head = nn.Conv2d(wide, latent_channels, 1)
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, wide, 3, padding=1),  # (B, 2w, h, w)
            ResidualBlock(wide),
            *(layer for _ in halvings for layer in (_double(wide, wide), ResidualBlock(wide))),
            _double(wide, width),  # (B, w, H, W)
            ResidualBlock(width),
            nn.GroupNorm(GROUPS, width),
            nn.SiLU(),
            nn.Conv2d(width, image_channels, 3, padding=1),
            nn.Tanh(),
        )

    @property
    def latent_channels(self) -> int:
        return self.config.latent_channels

    @property
    def image_channels(self) -> int:
        return self.config.image_channels

    @property
    def downsampling(self) -> int:
        return self.config.downsampling

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance of the posterior, each (B, c, h, w), of images in [-1, 1]."""
        features = self.encoder(images)
        return self.mean_head(features), self.logvar_head(features)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures (B, image_channels, H, W) in [-1, 1] of latents (B, c, h, w)."""
        images: torch.Tensor = self.decoder(latents)
        return images


class PretrainedVAE(nn.Module):
    """Latents scaled as the diffusion model that the autoencoder comes from wants them.

    Args:
        vae: Its weights are frozen. Latents are (z - shift_factor) * scaling_factor, pictures [-1, 1].
        kept: Which channels of those in its configuration it still has; None: all.
    """

    def __init__(self, vae: AutoencoderKL, kept: Sequence[int] | None = None) -> None:
        super().__init__()
        self.vae = vae.requires_grad_(False)
        self.kept = tuple(range(vae.config.latent_channels) if kept is None else kept)
        self.scale = float(vae.config.scaling_factor)
        self.shift = float(vae.config.get("shift_factor") or 0.0)

    @property
    def image_channels(self) -> int:
        return 3

    @property
    def latent_channels(self) -> int:
        return len(self.kept)

    @property
    def is_cut(self) -> bool:
        return self.latent_channels < self.vae.config.latent_channels

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance of the scaled posterior, each (B, c, h, w), of images in [-1, 1]."""
        posterior = self.vae.encode(images).latent_dist
        return (posterior.mean - self.shift) * self.scale, posterior.logvar + 2 * math.log(self.scale)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, H, W) of scaled latents (B, c, h, w)."""
        images: torch.Tensor = self.vae.decode(latents / self.scale + self.shift).sample
        return images

    def keep(self, channels: Sequence[int]) -> "PretrainedVAE":
        """A copy with only these of the present latent channels; the others are zero when it decodes."""
        vae, count = copy.deepcopy(self.vae), self.latent_channels
        rows = [*channels, *(count + channel for channel in channels)]  # means, then log variances
        of, name = (vae.encoder, "conv_out") if vae.quant_conv is None else (vae, "quant_conv")
        last = getattr(of, name)
        setattr(of, name, _conv(nn.Conv2d, last.weight[rows], last.bias[rows]))
        of, name = (vae.decoder, "conv_in") if vae.post_quant_conv is None else (vae, "post_quant_conv")
        first = getattr(of, name)
        if self.shift:
            weight = fold_inputs(first.weight, channels, torch.full((count,), self.shift).to(first.weight))
            setattr(of, name, _conv(ConvWithOnes, weight, first.bias))
        else:
            setattr(of, name, _conv(nn.Conv2d, first.weight[:, list(channels)], first.bias))
        return PretrainedVAE(vae, [self.kept[channel] for channel in channels]).train(self.training)


def _conv(kind: type[nn.Conv2d], weight: torch.Tensor, bias: torch.Tensor) -> nn.Conv2d:
    """A convolution with this weight (O, I, k, k) and bias (O,) that keeps the size of its input."""
    outputs, inputs, size, _ = weight.shape
    new = kind(inputs, outputs, size, padding=size // 2).to(weight)
    new.load_state_dict({"weight": weight, "bias": bias})
    return new


Autoencoder: TypeAlias = VAE | PretrainedVAE


def load_pretrained_vae(source: str) -> PretrainedVAE:
    """Read an autoencoder from a diffusers folder, or from the hub by its name.

    Args:
        source: A folder with an autoencoder's config.json, or of a whole pipeline (its ``vae`` is taken),
            or a name on the hub, ``owner/name`` or ``owner/name/subfolder``.

    Raises:
        ModelError: It cannot be read, is no `AutoencoderKL`, or its weights are not finite numbers.
    """
    folder, name = Path(source), f"vae.source {source}"
    if folder.is_dir():
        folder = folder / "vae" if (folder / "vae" / CONFIG).is_file() else folder
        # Of another class, diffusers itself would take fresh random weights.
        if (kind := read_config(folder).get("_class_name")) != AutoencoderKL.__name__:
            raise ModelError(f"{folder / CONFIG}: is a {kind}, not an AutoencoderKL; give another vae.source")
        where = str(folder)
        demand_one_network(folder)
        options: dict[str, Any] = {"local_files_only": True, "variant": variant_of(folder)}
    elif source[0] in "./~":
        raise ModelError(f"{name}: no such folder; correct the path, or give a name on the hub")
    else:
        where, subfolder = "/".join(source.split("/")[:2]), "/".join(source.split("/")[2:])
        options = {"subfolder": subfolder} if subfolder else {}
    remedy = "give a diffusers folder, or a hub name with the network at hand"
    with blamed_on(f"{name}: cannot be loaded as AutoencoderKL", remedy):
        vae, found = AutoencoderKL.from_pretrained(
            where, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True, **options
        )
    demand_settings(vae.config, name)
    # diffusers fills what is missing with fresh random weights as well.
    if found["missing_keys"]:
        raise ModelError(f"{name}: lacks tensor {min(found['missing_keys'])}; give a whole AutoencoderKL")
    if (vae.config.in_channels, vae.config.out_channels) != (3, 3):
        raise ModelError(f"{name}: is not for pictures of three colours; give another AutoencoderKL")
    demand_numbers(vae, Path(where))
    if folder.is_dir():
        demand_kinds(vae, folder)
    return PretrainedVAE(vae)
