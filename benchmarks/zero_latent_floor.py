"""How close the light UNet comes to its least error where the clean latent is 0.

    python benchmarks/zero_latent_floor.py --steps 3000

Trains the paper's UNet (width 64, 4 latent channels of 8x8) on pure noise, with and without a stem, and
prints its loss on fresh noise beside the floor 1/64 + Var(std) that its first group norm sets.
"""

import argparse
import time

import torch
from torch.nn import functional as F

from pelap.config import DiffusionParams
from pelap.core.rng import generator
from pelap.diffusion.loss import add_noise, alphas_cumprod
from pelap.masking.observation import zero_latent_floor
from pelap.models.light_unet import LightUNet
from pelap.training.trainer import cosine

DIFFUSION = DiffusionParams(num_train_timesteps=1000, beta_start=0.0001, beta_end=0.02)
SHAPE = (4, 8, 8)


def loss(unet: LightUNet, alphas: torch.Tensor, batch_size: int, stream: torch.Generator) -> torch.Tensor:
    noise = torch.randn(batch_size, *SHAPE, generator=stream)
    steps = torch.randint(len(alphas), (batch_size,), generator=stream)
    noisy = add_noise(torch.zeros_like(noise), noise, steps, alphas)
    return F.mse_loss(unet(noisy, steps).sample, noise)


def train(stem: bool, num_steps: int, lr: float, batch_size: int) -> float:
    torch.manual_seed(0)
    unet, alphas = LightUNet(in_channels=4, width=64, stem=stem), alphas_cumprod(DIFFUSION)
    optimiser = torch.optim.AdamW(unet.parameters(), lr=lr)
    stream = generator(0, "zero-latent-floor")
    for step in range(num_steps):
        optimiser.param_groups[0]["lr"] = cosine(lr, 0.0, step / num_steps)
        optimiser.zero_grad()
        value = loss(unet, alphas, batch_size, stream)
        value.backward()
        optimiser.step()
        if (step + 1) % max(1, num_steps // 10) == 0:
            print(f"  step {step + 1}: training loss {float(value.detach()):.4f}", flush=True)
    with torch.no_grad():
        return float(torch.stack([loss(unet, alphas, 1024, stream) for _ in range(20)]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    print(f"floor without stem: {zero_latent_floor(LightUNet(), SHAPE[1] * SHAPE[2]):.5f}")
    for stem in (False, True):
        start = time.monotonic()
        final = train(stem, args.steps, args.lr, args.batch_size)
        print(f"stem {stem}: loss {final:.5f} on 20,480 fresh latents, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
