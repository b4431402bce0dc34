"""Where archives are looked for before the network is asked."""

import os
from pathlib import Path

from pelap.paths import DOWNLOADS

DATA_DIR_VARIABLE = "PELAP_DATA_DIR"
"""Environment variable that names one more folder with archives, for example a shared one."""


def find_file(filename: str, data_dir: Path) -> Path | None:
    """The file in the data folder's downloads, else in the folder that `PELAP_DATA_DIR` names."""
    folders = [data_dir / DOWNLOADS]
    if os.environ.get(DATA_DIR_VARIABLE):
        folders.append(Path(os.environ[DATA_DIR_VARIABLE]).expanduser())
    return next((folder / filename for folder in folders if (folder / filename).exists()), None)


def where_to_put(filename: str, data_dir: Path) -> str:
    """Advice for the end of an error message."""
    return f"put {filename} into {data_dir / DOWNLOADS} or into the folder named by {DATA_DIR_VARIABLE}"
