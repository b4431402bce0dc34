"""sample: pictures from any model folder."""

from pathlib import Path

from pelap.data.grid import save_grid, save_png
from pelap.device import choose_device
from pelap.errors import ConfigError
from pelap.loading import load_model
from pelap.params import SamplerParams
from pelap.sampling import sample_images

GRID = "grid.png"


def sample(folder: Path, num: int, seed: int, steps: int, out: Path, device: str) -> None:
    """Write `num` PNG pictures and a grid into `out`; picture i depends on (seed, i) alone.

    Raises:
        ConfigError: `steps` does not divide the model's number of time steps.
    """
    model = load_model(folder, choose_device(device))
    total = model.info.diffusion.num_train_timesteps
    if total % steps:
        raise ConfigError(f"--steps {steps}: does not divide the model's {total} time steps; use e.g. 50")
    images = sample_images(model, SamplerParams(kind="ddim", steps=steps), num, seed)
    for index, image in enumerate(images):
        save_png(image, out / f"{index:05d}.png")
    save_grid(images, out / GRID)
    print(f"{num} pictures and {GRID} in {out}")
