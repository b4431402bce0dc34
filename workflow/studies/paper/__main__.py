"""Draw a run's collapse beside the paper's own figures: ``python -m workflow.studies.paper FOLDER``."""

import argparse
import sys
from pathlib import Path

from pelap.core import files
from pelap.core.errors import PelapError
from workflow.studies.common import write_figure
from workflow.studies.paper.figures import collapse_figure

TABLES = {
    "epochs": ("variant", "epoch", "diffusion_loss", "unet_input_std", "recon_mse", "masked_recon_mse"),
    "timesteps": ("variant", "first_step", "last_step", "diffusion_loss"),
    "collapse": ("variant", "zero_latent_floor"),
}

parser = argparse.ArgumentParser(prog="python -m workflow.studies.paper", description=__doc__)
parser.add_argument("folder", type=Path, metavar="FOLDER", help="with the tables of the stage collapse")
folder = parser.parse_args().folder
try:
    figure = collapse_figure(*(files.read_csv(folder / f"{name}.csv", own) for name, own in TABLES.items()))
    write_figure(folder / "collapse.png", figure)
except PelapError as error:
    sys.exit(f"error: {error}")
print(folder / "collapse.png")
