"""A diffusers `AutoencoderKL`, frozen, in the shape of this project's own autoencoder."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn

from pelap.core import files
from pelap.core.errors import ModelError
from pelap.core.part_io import CONFIG, demand_kinds, demand_numbers, read_config
from pelap.core.weight_files import demand_one_network, variant_of
from pelap.models.cut import ConvWithOnes, fold_inputs


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
        """Whether it has fewer channels than its configuration says."""
        return self.latent_channels < self.vae.config.latent_channels

    @property
    def downsampling(self) -> int:
        """A picture's side divided by its latent's side."""
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
        constants = torch.full((count,), self.shift, device=vae.device, dtype=vae.dtype)
        if vae.quant_conv is None:
            vae.encoder.conv_out = _keep_outputs(vae.encoder.conv_out, rows)
        else:
            vae.quant_conv = _keep_outputs(vae.quant_conv, rows)
        if vae.post_quant_conv is None:
            vae.decoder.conv_in = _keep_inputs(vae.decoder.conv_in, channels, constants)
        else:
            vae.post_quant_conv = _keep_inputs(vae.post_quant_conv, channels, constants)
        return PretrainedVAE(vae, [self.kept[channel] for channel in channels]).train(self.training)


def _keep_outputs(conv: nn.Conv2d, kept: Sequence[int]) -> nn.Conv2d:
    """A convolution that computes only these of its outputs."""
    assert conv.bias is not None
    return _conv_like(conv, nn.Conv2d, conv.weight[list(kept)], conv.bias[list(kept)])


def _keep_inputs(conv: nn.Conv2d, kept: Sequence[int], constants: torch.Tensor) -> nn.Conv2d:
    """A convolution of only these of its inputs, the others being `constants` (C,)."""
    assert conv.bias is not None
    if constants.any():
        return _conv_like(conv, ConvWithOnes, fold_inputs(conv.weight, kept, constants), conv.bias)
    return _conv_like(conv, nn.Conv2d, conv.weight[:, list(kept)], conv.bias)


def _conv_like(conv: nn.Conv2d, kind: type[nn.Conv2d], weight: torch.Tensor, bias: torch.Tensor) -> nn.Conv2d:
    """A convolution as `conv`, same padding and no stride, with another weight (O, I, k, k) and bias (O,)."""
    outputs, inputs, size, _ = weight.shape
    new = kind(inputs, outputs, size, padding=size // 2).to(weight)
    new.load_state_dict({"weight": weight, "bias": bias})
    return new


def load_pretrained_vae(source: str) -> PretrainedVAE:
    """Read an autoencoder from a diffusers folder, or from the hub by its name.

    Args:
        source: A folder with an autoencoder's config.json, or of a whole pipeline (its ``vae`` is taken),
            or a name on the hub, ``owner/name`` or ``owner/name/subfolder``.

    Raises:
        ModelError: It cannot be read, is no `AutoencoderKL`, or its weights are not finite numbers.
    """
    folder = Path(source)
    if folder.is_dir():
        folder = folder / "vae" if (folder / "vae" / CONFIG).is_file() else folder
        _demand_autoencoder(folder)
        where = str(folder)
        demand_one_network(folder)
        options: dict[str, Any] = {"local_files_only": True, "variant": variant_of(folder)}
    elif source[0] in "./~":
        raise ModelError(f"vae.source {source}: no such folder; correct the path, or give a name on the hub")
    else:
        where, subfolder = "/".join(source.split("/")[:2]), "/".join(source.split("/")[2:])
        options = {"subfolder": subfolder} if subfolder else {}
    try:
        vae, found = AutoencoderKL.from_pretrained(
            where, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"vae.source {source}: cannot be loaded as AutoencoderKL ({files.one_line(error)}); give a "
            "diffusers folder, or a hub name with the network at hand"
        ) from None
    # diffusers itself fills what is missing with fresh random weights.
    if found["missing_keys"]:
        raise ModelError(
            f"vae.source {source}: lacks tensor {min(found['missing_keys'])}; give a whole AutoencoderKL"
        )
    if (vae.config.in_channels, vae.config.out_channels) != (3, 3):
        raise ModelError(
            f"vae.source {source}: is not for pictures of three colours; give another AutoencoderKL"
        )
    demand_numbers(vae, Path(where))
    if folder.is_dir():
        demand_kinds(vae, folder)
    return PretrainedVAE(vae)


def _demand_autoencoder(folder: Path) -> None:
    # diffusers itself fills a folder of another class with fresh random weights.
    name = read_config(folder).get("_class_name")
    if name != AutoencoderKL.__name__:
        raise ModelError(f"{folder / CONFIG}: is a {name}, not an AutoencoderKL; give another vae.source")
