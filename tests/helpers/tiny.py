"""A model and a data set small enough for tests, from the real constructors."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from pelap.config import DownloadParams, Params, PhotoCrops, SoundParams, VariantParams
from pelap.config.load import DEFAULTS, merge, parse_params
from pelap.config.rules import parts_of
from pelap.core.errors import DataError
from pelap.data.dataset import ImageDataset, Split
from pelap.models.latent_diffusion import LatentDiffusion, ModelInfo, build_model, build_vae

ROOT = Path(__file__).parents[2]
LIGHT: dict[str, Any] = {"unet": {"kind": "light", "width": 8, "stem": False}}
"""Overrides for the paper's UNet."""
TEXT: dict[str, Any] = {
    "kind": "text",
    "templates": ["a {}", "{}"],
    "num_tokens": 4,
    "width": 16,
    "layers": 1,
    "heads": 2,
    "dropout": 0.25,
    "guidance_scale": 3.0,
    "prompts": None,
}
UNET: dict[str, Any] = {
    "kind": "unet2d_condition",
    "channels": [8, 16],
    "layers_per_block": 1,
    "attention": [False, True],
    "attention_head_dim": 8,
    "norm_num_groups": 4,
}
"""Prompts, and the UNet that takes them."""


VARIANTS: dict[str, dict[str, Any]] = {
    "baseline": {"gate": "none", "sparsity_key": "seed"},
    "pelap": {"sparsity_key": "lambda"},
    "invariant": {
        "gate": "hard_concrete",
        "adaptive": False,
        "mask_lr": 0.03,
        "sparsity_key": "lambda",
        "normalise": "before_mask",
        "decoder_input": "masked",
        "encoder_losses": ["reconstruction"],
        "mask_losses": ["reconstruction", "sparsity"],
    },
}


def raw_params(**overrides: Any) -> dict[str, Any]:
    """The library's defaults with three variants as plain data, dotted keys (``a__b``) overridden.

    Not params.yaml: that is a run's choice, and tests do not depend on it.
    """
    raw = deepcopy(dict(merge(DEFAULTS, {"variants": VARIANTS})))
    for key, value in overrides.items():
        *sections, last = key.split("__")
        target = raw
        for section in sections:
            target = target[section]
        target[last] = value
    return raw


def tiny_raw(**overrides: Any) -> dict[str, Any]:
    """A whole run's parameters that finish in seconds."""
    tiny = {
        "download__photos": {"train_per_photo": 40, "test_per_photo": 8, "min_crop": 48, "max_crop": 96},
        "vae__width": 8,
        "unet": UNET | {"kind": "unet2d"},
        "train__epochs": 2,
        "train__vae_epochs": 1,
        "train__batch_size": 32,
        "train__log_every": 2,
        "train__num_validation": 16,
        "train__preview": {"kind": "ddim", "steps": 4},
        "train__precision": "fp32",
        "collapse__num_images": 32,
        "score__num_latents": 4,
        "score__sampler": {"kind": "ddim", "steps": 4},
        "score__batch_size": 32,
        "score__latency_batch_size": 4,
        "score__latency_repeats": 3,
        "prune": {
            "time_reduction": None,
            "num_params": 3000,
            "num_operators": None,
            "methods": {"ld-pruner": {"criterion": "score", "selection": "lowest_first"}},
            "max_measurements": 2,
            "single_operator_plans": 0,
        },
        "distill__steps": 6,
        "distill__warmup_steps": 2,
        "distill__batch_size": 16,
        "distill__log_every": 2,
        "distill__precision": "fp32",
        "distill__validate_every": 3,
        "distill__num_validation": 8,
        "evaluate__num_images": 24,
        "evaluate__num_reference": 64,
        "evaluate__num_reconstructions": 16,
        "evaluate__sampler": {"kind": "ddim", "steps": 4},
        "evaluate__step_counts": [2],
        "evaluate__latency_batch_sizes": [4, 1],
        "evaluate__latency_repeats": 3,
        "evaluate__sampler_repeats": 3,
    }
    return raw_params(**(tiny | overrides))


def tiny_params(**overrides: Any) -> Params:
    return parse_params(tiny_raw(**overrides), "tiny")


SOUNDS = SoundParams(
    sample_rate=8000, num_fft=512, hop_length=128, range_db=80.0, train_per_class=3, test_per_class=2
)
CROPS = PhotoCrops(train_per_photo=6, test_per_photo=2, min_crop=48, max_crop=160)


def tiny_download(**changes: Any) -> DownloadParams:
    """The section `download` for a few pictures of 16x16; changes may be smaller than a user's may."""
    base = DownloadParams(image_size=16, photos=CROPS, sounds=SOUNDS, folders={})
    return base.model_copy(update=changes)


def tiny_dataset(num_train: int = 64, num_test: int = 16, side: int = 16) -> ImageDataset:
    """Random pictures of two classes."""
    generator = torch.Generator().manual_seed(0)

    def split(num: int) -> Split:
        images = torch.randint(0, 256, (num, 3, side, side), dtype=torch.uint8, generator=generator)
        return Split(images, torch.arange(num) % 2)

    return ImageDataset("tiny", split(num_train), split(num_test), ("even", "odd"), "random", "0" * 64)


def tiny_model(
    variant: str = "invariant",
    seed: int = 0,
    side: int = 16,
    fields: VariantParams | dict[str, Any] | None = None,
    **overrides: Any,
) -> LatentDiffusion:
    """A fresh model of a variant, in evaluation mode, for pictures of 16x16.

    `fields` replaces some of the variant's fields, or all of them by a whole `VariantParams`.
    """
    raw = tiny_raw(**overrides)
    params = parse_params(raw, "tiny")
    coupling = (
        fields
        if isinstance(fields, VariantParams)
        else VariantParams(**(raw["variants"][variant] | (fields or {})))
    )
    info = ModelInfo(
        name=variant,
        variant=coupling,
        diffusion=params.diffusion,
        image_size=side,
        dataset="tiny",
        seed=seed,
        sparsity_weight=coupling.weight(params.lambda_),
        ema_decay=0.0,
    )
    vae, unet = parts_of(coupling, params.vae, params.unet)
    torch.manual_seed(seed)
    return build_model(info, build_vae(vae), unet).eval()


def set_logits(model: LatentDiffusion, *logits: float) -> None:
    """Give the mask these logits, whatever the picture: one for all channels, or one each."""
    assert model.mask is not None
    target = model.mask.layers[-1].bias if model.mask.config.adaptive else model.mask.logits
    with torch.no_grad():
        target.copy_(torch.tensor(logits).expand_as(target))


def expect_error(call: Callable[[], object], *parts: str) -> None:
    """The call must fail with a one-line `DataError` that holds all parts."""
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
