"""Tiny diffusers pipelines with random weights, of every kind that is supported; seconds to make."""

import string
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LDMPipeline,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

PROMPTS = ["a red cat", "two dogs", "rain"]
SIDE = 8  # of latents; where there is a decoder its pictures are twice as large
GROUPS = {"norm_num_groups": 4}
LEVELS = {"block_out_channels": (8, 16), "layers_per_block": 1}


def awake(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that let every operator be felt, where fresh ones may be zero or tiny."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            fan_in = weight[0].numel() if weight.dim() > 1 else 4
            weight.add_(torch.randn(weight.shape, generator=generator) * fan_in**-0.5 * 0.5)
    return network.eval()


def unet2d(channels: int, **options: Any) -> UNet2DModel:
    return awake(
        UNet2DModel(
            in_channels=channels,
            **(
                {"sample_size": SIDE, "out_channels": channels, "attention_head_dim": 8}
                | LEVELS
                | GROUPS
                | options
            ),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )
    )


def autoencoder(**options: Any) -> AutoencoderKL:
    return awake(
        AutoencoderKL(
            sample_size=2 * SIDE,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            **(LEVELS | GROUPS | options),
        )
    )


def tiny_ddim() -> DDIMPipeline:
    return DDIMPipeline(unet2d(3), DDIMScheduler())


def tiny_ddpm(**scheduler: Any) -> DDPMPipeline:
    return DDPMPipeline(unet2d(3), DDPMScheduler(**scheduler))


def tiny_ldm() -> LDMPipeline:
    vqvae = VQModel(
        latent_channels=3,
        num_vq_embeddings=32,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **LEVELS,
        **GROUPS,
    )
    return LDMPipeline(awake(vqvae), unet2d(3), DDIMScheduler(clip_sample=False))


def tokenizer() -> CLIPTokenizer:
    letters = [letter + end for letter in string.ascii_lowercase for end in ("", "</w>")]
    words = ["<|startoftext|>", "<|endoftext|>", *letters]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=16)


def text_encoder(vocabulary: int, kind: type[CLIPTextModel] = CLIPTextModel) -> CLIPTextModel:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPTextConfig(
        vocab_size=vocabulary, max_position_embeddings=16, **sizes, **ends, projection_dim=16
    )
    return awake(kind(config))


def conditional_unet(**options: Any) -> UNet2DConditionModel:
    return awake(
        UNet2DConditionModel(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            **(
                {"sample_size": SIDE, "in_channels": 4, "out_channels": 4}
                | {"cross_attention_dim": 16, "attention_head_dim": 2}
                | LEVELS
                | GROUPS
                | options
            ),
        )
    )


def tiny_stable_diffusion(scheduler: Any = None, **unet: Any) -> StableDiffusionPipeline:
    words = tokenizer()
    return StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=text_encoder(len(words)),
        tokenizer=words,
        unet=conditional_unet(**unet),
        scheduler=scheduler or PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def tiny_stable_diffusion_xl() -> StableDiffusionXLPipeline:
    words = tokenizer()
    unet = conditional_unet(
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    return StableDiffusionXLPipeline(
        vae=autoencoder(latents_mean=[0.5, 0.0, -0.5, 1.0], latents_std=[1.0, 2.0, 3.0, 4.0]),
        text_encoder=text_encoder(len(words)),
        text_encoder_2=text_encoder(len(words), CLIPTextModelWithProjection),
        tokenizer=words,
        tokenizer_2=words,
        unet=unet,
        scheduler=EulerDiscreteScheduler(),
        add_watermarker=False,
    )


def tiny_stable_diffusion_3() -> StableDiffusion3Pipeline:
    """Text to image with a transformer, flow matching and a shifted latent."""
    words = tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=SIDE,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
    )
    return StableDiffusion3Pipeline(
        transformer=awake(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(shift_factor=0.5),
        text_encoder=text_encoder(len(words), CLIPTextModelWithProjection),
        tokenizer=words,
        text_encoder_2=text_encoder(len(words), CLIPTextModelWithProjection),
        tokenizer_2=words,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def tiny_dit() -> DiTPipeline:
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=SIDE,
        norm_num_groups=4,
    )
    return DiTPipeline(awake(transformer), autoencoder(), DDIMScheduler(clip_sample=False))


BUILDERS: dict[str, Callable[[], DiffusionPipeline]] = {
    "ddim": tiny_ddim,
    "ddpm": tiny_ddpm,
    "ldm": tiny_ldm,
    "stable_diffusion": tiny_stable_diffusion,
    "stable_diffusion_xl": tiny_stable_diffusion_xl,
    "stable_diffusion_3": tiny_stable_diffusion_3,
    "dit": tiny_dit,
}


def prompts_for(kind: str) -> list[str] | None:
    return PROMPTS if kind.startswith("stable_diffusion") else None


def same(latents: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal up to what rounding grows to in a few steps of a network with large random weights."""
    assert latents.shape == expected.shape
    return float((latents - expected).abs().max()) < 1e-3 * float(expected.std())
