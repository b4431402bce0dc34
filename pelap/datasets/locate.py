"""Where archives are looked for before the network is asked."""

import os
from pathlib import Path

from pelap.core.errors import DataError
from pelap.core.paths import DOWNLOADS

DATA_DIR_VARIABLE = "PELAP_DATA_DIR"
"""Environment variable that names one more folder with archives, for example a shared one."""
USUAL_DOWNLOADS = Path("data") / DOWNLOADS  # as parameter files write it, wherever the data of a run lie


def find_file(filename: str | Path, data_dir: Path) -> Path | None:
    """The file in the data folder's downloads, else in the folder that `PELAP_DATA_DIR` names."""
    folders = [data_dir / DOWNLOADS]
    if os.environ.get(DATA_DIR_VARIABLE):
        folders.append(Path(os.environ[DATA_DIR_VARIABLE]).expanduser())
    return next((folder / filename for folder in folders if (folder / filename).exists()), None)


def _download_name(path: Path, data_dir: Path) -> Path | None:
    """What `find_file` may look for in the place of a path that leads nowhere; None for most.

    A path that names a place means that place. Only a bare name, or a path in the downloads, says that
    the file is wherever downloads are.
    """
    if path.parent == Path():
        return path
    folders = [folder for folder in (data_dir / DOWNLOADS, USUAL_DOWNLOADS) if path.is_relative_to(folder)]
    return path.relative_to(folders[0]) if folders else None


def locate(name: str, location: str, data_dir: Path) -> Path:
    """Where a user's folder or archive is; says so if it is not where it was said to be.

    Args:
        name: Of the data set.
        location: From `download.folders`; a bare name, or a path in the downloads, is wherever downloads are.
        data_dir: The data folder.

    Raises:
        DataError: It leads nowhere.
    """
    path, found = Path(location).expanduser(), find_source(location, data_dir)
    if found is None:
        raise DataError(
            f"{path}: no such file or folder{_seen_from(path)}; correct download.folders.{name}, or "
            + where_to_put(_download_name(path, data_dir) or path.name, data_dir)
            + ("" if _download_name(path, data_dir) else f" and name it {path.name}")
        )
    if found != path:
        print(f"{name}: {path} is read from {found}")
    return found


def find_source(location: str, data_dir: Path) -> Path | None:
    """As `locate`, without a word; None for what leads nowhere."""
    path = Path(location).expanduser()
    if path.exists():
        return path
    wanted = _download_name(path, data_dir)
    return None if wanted is None else find_file(wanted, data_dir)


def _seen_from(path: Path) -> str:
    """A relative path is another place in each folder: DVC runs some experiments in a copy of the project."""
    return "" if path.is_absolute() else f" in {Path.cwd()} (an absolute path is the same everywhere)"


def where_to_put(filename: str | Path, data_dir: Path) -> str:
    """Advice for the end of an error message."""
    return f"put {filename} into {data_dir / DOWNLOADS} or into the folder named by {DATA_DIR_VARIABLE}"
