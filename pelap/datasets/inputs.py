"""inputs: what the parameters name outside of a run, as it is now, so that a change of it is seen."""

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pelap.config.load import parse_overrides, parse_params, resolved, select_keys
from pelap.core import files
from pelap.core.keys import code_of, key, working_folder_on_path
from pelap.core.paths import input_file
from pelap.data.entries import Remarks, entries, passed_over
from pelap.datasets.locate import find_source

READING = ("download", "train", "evaluate")  # the stages that read something outside
NAMING_FILES = ("source", "prompts", "inception_weights", "lpips_weights")
"""Keys of the parameters whose values may be paths."""
ELSEWHERE = " (where it is named by a relative path, an absolute one is the same everywhere)"


def inputs(params: Path, data: Path, overrides: Sequence[str] = ()) -> None:
    """Write what each stage reads outside of the run, the same text for the same state.

    Raises:
        ConfigError: The parameters are not as they must be.
    """
    raw = resolved(params, parse_overrides(overrides))
    parse_params(raw, str(params))
    for stage in READING:
        file = input_file(data, stage)
        before = files.read_mapping(file) if file.is_file() else {}
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
    """The digest of everything that a stage reads and its parameters only name.

    Args:
        stage: Any.
        raw: All parameters, as parsed.
        data: The data folder.
        variant: The one that is trained, where it is one.

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
    except OSError:
        return None
    return [[name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for name, stat in stats]
