"""A tiny class-conditional pipeline and its pictures, made in a minute or two, to try PeLAP on."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from PIL import Image
from torch.nn import functional as F

CLASSES = ("disc", "stripes")
SIDE = 16
"""Of a picture in pixels."""
STEPS = 200
"""Of training, for the autoencoder and for the denoiser."""


def draw(num: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures in [-1, 1] (num, 3, SIDE, SIDE), discs and stripes in turns, and their classes (num,)."""
    stream = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIDE), torch.linspace(-1, 1, SIDE), indexing="ij")
    one, two, size = torch.rand(3, num, 1, 1, generator=stream)
    disc = (x - one + 0.5) ** 2 + (y - two + 0.5) ** 2 < (0.3 + 0.4 * size) ** 2
    stripes = torch.sin((5 + 6 * size) * (x * torch.cos(3 * one) + y * torch.sin(3 * one)) + 6 * two) > 0
    labels = torch.arange(num) % len(CLASSES)
    shape = torch.where(labels[:, None, None] == 0, disc, stripes)[:, None].float()  # (num, 1, SIDE, SIDE)
    light, dark = torch.rand(2, num, 3, 1, 1, generator=stream)
    return (0.4 + 0.6 * light) * shape * 2 + 0.6 * dark * (1 - shape) - 1, labels


def save_pictures(folder: Path, num_train: int = 512, num_test: int = 64) -> None:
    """Write them as ``train/<class>/*.png`` and ``test/<class>/*.png``."""
    for split, num, seed in (("train", num_train, 0), ("test", num_test, 1)):
        for index, (picture, label) in enumerate(zip(*draw(num, seed), strict=True)):
            path = folder / split / CLASSES[label] / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = ((picture + 1) * 127.5).round().clamp(0, 255).byte()
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)


def make_pipeline(steps: int | None = None) -> DiTPipeline:
    """Train an autoencoder and a transformer on such pictures."""
    torch.manual_seed(0)
    steps = STEPS if steps is None else steps
    levels = {"block_out_channels": (16, 32), "norm_num_groups": 8, "latent_channels": 4}
    ends = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKL(sample_size=SIDE, **levels, **ends)
    transformer = DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=16, num_layers=4, sample_size=SIDE // 2, patch_size=2,
        in_channels=4, out_channels=4, num_embeds_ada_norm=len(CLASSES),
    )  # fmt: skip
    _train(vae, steps, lambda pictures, labels: F.mse_loss(vae(pictures).sample, pictures))
    with torch.no_grad():
        latents = vae.encode(draw(256, 2)[0]).latent_dist.mean
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    scheduler = DDIMScheduler(clip_sample=False)

    def denoising_loss(pictures: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            clean = vae.encode(pictures).latent_dist.mean * vae.config.scaling_factor
        noise, times = torch.randn_like(clean), torch.randint(1000, (len(clean),))
        noisy = scheduler.add_noise(clean, noise, times)
        return F.mse_loss(transformer(noisy, timestep=times, class_labels=labels).sample, noise)

    _train(transformer.train(), 2 * steps, denoising_loss)
    return DiTPipeline(transformer.eval(), vae.eval(), scheduler, id2label=dict(enumerate(CLASSES)))


def _train(network: torch.nn.Module, steps: int, loss_of) -> None:  # type: ignore[no-untyped-def]
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(*draw(32, 1000 + step)).backward()
        optimizer.step()
        schedule.step()
