"""sample: pictures from any model folder."""

from pathlib import Path

from pelap.data.grid import save_grid, save_png
from pelap.device import choose_device
from pelap.errors import ConfigError
from pelap.io import atomic_dir
from pelap.loading import load_model
from pelap.params import SamplerParams
from pelap.sampling import sample_images

GRID = "grid.png"


def sample(folder: Path, num: int, seed: int, steps: int, out: Path, device: str) -> None:
    """Write `num` PNG pictures and a grid into `out`; picture i depends on (seed, i) alone.

    Raises:
        ConfigError: `out` holds something, or `steps` does not divide the model's number of time steps.
    """
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"--out {out}: is not empty; name a new folder, so that nothing is mixed or lost")
    model = load_model(folder, choose_device(device))
    images = sample_images(model, SamplerParams(kind="ddim", steps=steps), num, seed)
    with atomic_dir(out) as partial:
        for index, image in enumerate(images):
            save_png(image, partial / f"{index:05d}.png")
        save_grid(images, partial / GRID)
    print(f"{num} pictures and {GRID} in {out}")
