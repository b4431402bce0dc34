"""Every data set by its name in `params.yaml`, where its files are looked for, and whether they have changed.

`inputs` writes what the parameters name outside of a run, as it is now, so that a change of it is seen.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pelap.config import DownloadParams
from pelap.config.load import parse_overrides, parse_params, resolved, select_keys
from pelap.config.rules import BUILTIN_DATASETS
from pelap.core import files
from pelap.core.errors import DataError
from pelap.core.keys import code_of, key, working_folder_on_path
from pelap.core.paths import DOWNLOADS, input_file
from pelap.data.entries import Remarks, entries, passed_over

if TYPE_CHECKING:  # with torch, for which those who ask where files are need not wait
    from pelap.data.dataset import ImageDataset

DATA_DIR_VARIABLE = "PELAP_DATA_DIR"  # names one more folder with archives, for example a shared one
USUAL_DOWNLOADS = Path("data") / DOWNLOADS  # as parameter files write it, wherever the data of a run lie
READING = ("download", "train", "evaluate")  # the stages that read something outside
NAMING_FILES = ("source", "prompts", "inception_weights", "lpips_weights")  # parameters that may be paths
ELSEWHERE = " (where it is named by a relative path, an absolute one is the same everywhere)"


def build_dataset(name: str, params: DownloadParams, seed: int, data_dir: Path) -> "ImageDataset":
    """Make a data set by the function `build` of its module, which takes the same arguments.

    Args:
        name: Key of `BUILTIN_DATASETS` or of `params.folders`.
        params: The section `download`.
        seed: Of the run; only data sets with a section of their own in `download` depend on it.
        data_dir: Archives are looked for and put in its ``downloads``, and fetched from the network only if
            nothing here holds them.

    Raises:
        DataError: They cannot be had or read; one line that says how to mend it.
    """
    module = BUILTIN_DATASETS.get(name, "folder")
    if module == "folder" and name not in params.folders:
        raise DataError(f"dataset: {name!r} is unknown; add its path to download.folders")
    dataset: ImageDataset = import_module(f"pelap.datasets.{module}").build(name, params, seed, data_dir)
    return dataset


# --- where they are, before the network is asked


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
        # A relative path is another place in each folder: DVC runs some experiments in a copy of the project.
        here = "" if path.is_absolute() else f" in {Path.cwd()} (an absolute path is the same everywhere)"
        wanted = _download_name(path, data_dir)
        raise DataError(
            f"{path}: no such file or folder{here}; correct download.folders.{name}, or "
            + where_to_put(wanted or path.name, data_dir)
            + ("" if wanted else f" and name it {path.name}")
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


def where_to_put(filename: str | Path, data_dir: Path) -> str:
    """Advice for the end of an error message."""
    return f"put {filename} into {data_dir / DOWNLOADS} or into the folder named by {DATA_DIR_VARIABLE}"


# --- as they are now


def inputs(params: Path, data: Path, overrides: Sequence[str] = ()) -> None:
    """Write what each stage reads outside of the run, the same text for the same state.

    Raises:
        ConfigError: The parameters are not as they must be.
    """
    raw = resolved(params, parse_overrides(overrides))
    parse_params(raw, str(params))
    for stage in READING:
        file = input_file(data, stage)
        before = files.read_noted(file)
        now = inputs_of(stage, raw, data)
        say_unseen(now, before)
        files.write_json(file, seen_last(now, before))


def seen_last(now: Mapping[str, str | None], before: Mapping[str, Any]) -> dict[str, str | None]:
    """What cannot be seen from here, a copy of the project or a tidied disk, is as it was seen last."""
    return {name: before.get(name) if state is None else state for name, state in now.items()}


def say_unseen(now: Mapping[str, str | None], before: Mapping[str, Any]) -> None:
    """Print a line for each part that `seen_last` takes from before: it may be another now."""
    for name, state in now.items():
        if state is None and before.get(name) is not None:
            print(f"{name}: not to be seen from here; taken as it was seen last{ELSEWHERE}")


def inputs_of(
    stage: str, raw: Mapping[str, Any], data: Path, variant: str | None = None
) -> dict[str, str | None]:
    """The digest of all that a stage, or the training of a variant, reads and its parameters only name.

    Returns:
        By the parameter that names it: of files and folders the content, of a user's pictures the names,
        sizes and times of the files, of extractors the code. None for what is not here to be seen.
    """
    if stage not in READING:
        return {}
    found: dict[str, Any] = dict(_named_files(select_keys(raw, stage, variant)))
    location = raw["download"]["folders"].get(raw["dataset"]) if stage == "download" else None
    if location is not None:
        found[f"download.folders.{raw['dataset']}"] = _pictures(location, data)
    if stage == "evaluate":
        modules = [name.partition(":")[0] for name in raw["evaluate"]["extractors"] if ":" in name]
        found |= {module: _code(module) for module in modules}
    seen = {name: value for name, value in found.items() if value is not None}
    return {**dict.fromkeys(found), **key(**seen).parts}


def _named_files(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Path | None]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _named_files(value, f"{above}{name}.")
        elif name in NAMING_FILES and isinstance(value, str):
            path = Path(value).expanduser()
            yield f"{above}{name}", path if path.exists() else None


def _code(module: str) -> str | None:
    """The digest of an extractor's code, None where `evaluate` will say what is wrong."""
    try:
        with working_folder_on_path():
            return None if find_spec(module) is None else code_of(module)
    except Exception:  # looking for a module runs code of its package, which may raise anything
        return None


def _pictures(location: str, data: Path) -> Any:
    """State of the user's own pictures or sounds, None where `download` will say what is wrong.

    Names, sizes and times: to read thousands of pictures at every look would take minutes. Whoever gives a
    file the time of another cannot give it the time of this change.
    """
    source = find_source(location, data)
    if source is None:
        return None
    try:
        inside = entries(source, Remarks()) if source.is_dir() else ()
        read = [source / entry.path for entry in inside if passed_over(entry.path) is None]
        found = sorted(filter(Path.is_file, read if source.is_dir() else [source]))
        stats = [(str(file), file.stat()) for file in found]
    except (OSError, DataError):
        return None
    return [[name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for name, stat in stats]
