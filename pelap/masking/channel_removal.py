"""Cutting closed latent channels out of a trained model.

What is equal to what. Let m be the mask and Z the closed channels, those with m at or below the threshold on
every train picture. The hard-masked model is the whole model with exact zeros in Z wherever latents go from
one part to the next: behind the encoder (before an adaptive mask's predictor and before the decoder), in the
UNet's input (also where noise and normalisation would have filled them) and in what the decoder gets of a
sample. In the other channels the cut model has the same posterior, latents, mask and predicted noise, for any
picture, hence the same reconstructions and, from the same noise, the same DDIM samples. What differs is
rounding. (DDPM's own noise is drawn by shape, so fewer channels get other numbers.)

It follows that

- a static gate's m in the other channels is as before, and what the cut model applies is
  `pelap.masking.observation.hard_mask` of the whole model's mask;
- for a static hard gate whose m is 0 all over Z, and a decoder of z*m, the cut model is equal to the model
  itself, in which these channels are gone already;
- an adaptive gate's predictor no longer sees Z, as if its means were 0, so m may move by what it made of
  them. A channel that is open on some pictures only stays, with the value that the gate gives it: it is not
  rounded to 0 on the others;
- a decoder that was trained on z (`decoder_input: unmasked`) loses what Z told it.

A channel of zeros is not everywhere the same as no channel; see `pelap.models.light_unet`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from diffusers import ModelMixin
from torch import nn
from torch.nn import functional as F

from pelap.core.errors import ModelError
from pelap.data.dataset import to_float
from pelap.masking.observation import Thresholds, hard_mask
from pelap.models.latent_diffusion import LatentDiffusion, ModelInfo
from pelap.models.light_unet import CutLightUNet, LightUNet, fold_inputs
from pelap.models.mask import ImportanceMask
from pelap.models.vae import PretrainedVAE

Part = TypeVar("Part", bound=ModelMixin)


class Cut(NamedTuple):
    """Where a part holds latent channels."""

    sizes: tuple[str, ...]  # entries of its configuration that are their number
    axes: Mapping[str, int]  # the tensors that hold them, and along which dimension


VAE_HEADS = ("mean_head.weight", "mean_head.bias", "logvar_head.weight", "logvar_head.bias")
VAE_CUT = Cut(("latent_channels",), dict.fromkeys(VAE_HEADS, 0) | {"decoder.0.weight": 1})
OUTPUT_AXES = {"conv_out.weight": 0, "conv_out.bias": 0}
# A diffusers UNet and a light one with stem alike.
UNET_CUT = Cut(("in_channels", "out_channels"), {"conv_in.weight": 1, **OUTPUT_AXES})
STEM_CUT = Cut(("in_channels",), UNET_CUT.axes)
# Without stem; block_in.conv1 is left to `_cut_stemless`.
STEMLESS_CUT = Cut(("in_channels",), {"block_in.norm1.weight": 0, "block_in.norm1.bias": 0, **OUTPUT_AXES})
STATIC_MASK_CUT = Cut(("latent_channels",), {"logits": 0})
ADAPTIVE_MASK_CUT = Cut(
    ("latent_channels",), {"layers.0.weight": 1, "layers.2.weight": 0, "layers.2.bias": 0}
)
NORMALISER_CUT = Cut(("latent_channels",), {"statistics.running_mean": 0, "statistics.running_var": 0})


@torch.no_grad()
def closed_channels(
    model: LatentDiffusion, images: torch.Tensor, batch_size: int, threshold: float = Thresholds().active
) -> list[int]:
    """The channels whose mask is at or below a threshold on every picture, at the posterior's mean.

    Args:
        model: In evaluation mode. Without a mask it has no closed channel.
        images: (N, 3 or 1, H, W) uint8, N at least 1.
        batch_size: Pictures at a time; changes nothing.
        threshold: Of `pelap.masking.observation.hard_mask`.
    """
    device = next(model.parameters()).device
    ever_open = torch.zeros(model.latent_shape[0], dtype=torch.bool, device=device)
    for batch in images.split(batch_size):
        latents = model.encode(to_float(batch.to(device))).latents
        hard = hard_mask(model.gates(latents).values, Thresholds(active=threshold))  # (B, C)
        ever_open |= (hard > 0).any(dim=0)
    return [channel for channel, is_open in enumerate(ever_open.tolist()) if not is_open]


def describe_cut(closed: Sequence[int], channels: int) -> str:
    """One line: what is cut from a model of so many latent channels."""
    if not closed:
        return f"cut 0 of {channels} latent channels: each is open on some train picture"
    return f"cut {len(closed)} of {channels} latent channels ({', '.join(map(str, closed))})"


@torch.no_grad()
def cut_channels(model: LatentDiffusion, closed: Sequence[int]) -> LatentDiffusion:
    """A smaller model without these latent channels; the module's docstring says what it is equal to.

    It is on the same device, and saves, loads, trains and prunes as any other.

    Args:
        model: Any but a pruned one; it stays as it is.
        closed: Channels in 0..C-1, for example from `closed_channels`.

    Raises:
        ModelError: Nothing would be left, or operators of the UNet were pruned.
    """
    kept = [channel for channel in range(model.latent_shape[0]) if channel not in closed]
    if not kept:
        raise ModelError(
            f"all {len(closed)} latent channels are closed, nothing would be left; train with a lower lambda "
            "or sparsity_weight, or normalise the latents"
        )
    return LatentDiffusion(
        _cut_info(model.info, kept, model.latent_shape[0]),
        model.vae.keep(kept) if isinstance(model.vae, PretrainedVAE) else _cut_part(model.vae, VAE_CUT, kept),
        _cut_unet(model.unet, kept),
        None if model.mask is None else _cut_mask(model.mask, kept),
        None if model.normaliser is None else _cut_part(model.normaliser, NORMALISER_CUT, kept),
        model.conditioner,
    ).train(model.training)


def _cut_info(info: ModelInfo, kept: Sequence[int], channels: int) -> ModelInfo:
    """The same with the channels that are gone, by their numbers in training."""
    before = range(channels + len(info.cut_channels))
    present = [channel for channel in before if channel not in info.cut_channels]
    remaining = [present[channel] for channel in kept]
    k = info.variant.k
    return dataclasses.replace(
        info,
        variant=info.variant.model_copy(update={"k": None if k is None else min(k, len(kept))}),
        cut_channels=tuple(channel for channel in before if channel not in remaining),
    )


def _cut_mask(mask: ImportanceMask, kept: Sequence[int]) -> ImportanceMask:
    num_active = mask.config.num_active
    sizes = {} if num_active is None else {"num_active": min(num_active, len(kept))}
    cut = ADAPTIVE_MASK_CUT if mask.config.adaptive else STATIC_MASK_CUT
    return _rebuild(type(mask), mask, _sizes(cut, kept) | sizes, _slices(mask, cut, kept))


def _cut_unet(unet: nn.Module, kept: Sequence[int]) -> nn.Module:
    _demand_whole(unet)
    if isinstance(unet, LightUNet):
        return _cut_part(unet, STEM_CUT, kept) if unet.config.stem else _cut_stemless(unet, kept)
    cut: nn.Module = _cut_part(unet, UNET_CUT, kept)
    return cut


def _cut_stemless(unet: LightUNet, kept: Sequence[int]) -> LightUNet:
    """A light UNet without stem, in which a channel of zeros leaves its norm as the norm's bias."""
    first = unet.block_in
    folded = fold_inputs(first.conv1.weight, kept, F.silu(first.norm1.bias))
    kind = CutLightUNet if folded[:, -1].any() else LightUNet
    weight = folded if kind is CutLightUNet else folded[:, :-1]
    tensors = _slices(unet, STEMLESS_CUT, kept) | {"block_in.conv1.weight": weight}
    cut: LightUNet = _rebuild(kind, unet, _sizes(STEMLESS_CUT, kept), tensors)
    return cut


def _demand_whole(unet: nn.Module) -> None:
    """Refuse a UNet from which pruning removed modules: they would come back with the new configuration.

    Its modules are compared with those of a fresh one rather than asked for pruning's own replacements: any
    other change would be lost just the same.
    """
    fresh = type(unet).from_config(_public(unet))  # type: ignore[attr-defined]
    whole, given = ({name: type(part) for name, part in each.named_modules()} for each in (fresh, unet))
    if whole != given:
        raise ModelError(
            "the UNet's operators are not those of its configuration: a pruned model cannot be cut; cut the "
            "channels first, then score and prune"
        )


def _cut_part(part: Part, cut: Cut, kept: Sequence[int]) -> Part:
    return _rebuild(type(part), part, _sizes(cut, kept), _slices(part, cut, kept))


def _sizes(cut: Cut, kept: Sequence[int]) -> dict[str, int]:
    return dict.fromkeys(cut.sizes, len(kept))


def _slices(part: nn.Module, cut: Cut, kept: Sequence[int]) -> dict[str, torch.Tensor]:
    state = part.state_dict()
    index = torch.tensor(kept, device=next(iter(state.values())).device)
    return {name: state[name].index_select(axis, index) for name, axis in cut.axes.items()}


def _rebuild(
    kind: type[Part], part: Part, sizes: Mapping[str, int], tensors: Mapping[str, torch.Tensor]
) -> Part:
    """A part of another configuration with the weights of `part`, save for `tensors`."""
    new: Part = kind.from_config({**_public(part), **sizes})
    new.load_state_dict({**part.state_dict(), **tensors})
    new.to(next(iter(part.state_dict().values())).device).train(part.training)
    return new


def _public(part: Any) -> dict[str, Any]:
    """A part's configuration without diffusers' own remarks, such as the class that it was written by."""
    return {name: value for name, value in part.config.items() if not name.startswith("_")}
