"""`model_index.json` of a pipeline: which parts it has, and of which classes.

A folder comes from anybody, and its index names what is imported. diffusers has run code from beside the
parts; so names are looked at here, and only classes of diffusers and transformers are taken.
"""

import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any, TypeAlias

from diffusers import ModelMixin, SchedulerMixin

from pelap.core import files
from pelap.core.errors import DataError, ModelError
from pelap.core.part_checks import demand_flags, demand_settings
from pelap.core.part_io import CONFIG, INDEX
from pelap.core.replacing import is_folder

LIBRARIES = ("diffusers", "transformers")
SCHEDULER = "scheduler_config.json"

Parts: TypeAlias = dict[str, type[Any] | None]
"""Class of every part of a pipeline; None for one that it does without."""


def read_index(folder: Path) -> Parts:
    """The parts of a pipeline's folder, whose configurations hold numbers that can be a network's.

    Raises:
        ModelError: Not a pipeline folder, a package is not installed, or it names or holds code of its own,
            or numbers out of their range.
    """
    if not is_folder(folder):
        raise ModelError(
            f"{folder}: no such folder of a model or pipeline; correct the path, or download it first"
        )
    try:
        index = files.read_mapping(folder / INDEX, ["_class_name"])
    except DataError:
        raise ModelError(
            f"{folder / INDEX}: missing or damaged; give a folder that a diffusers pipeline was saved to"
        ) from None
    named = {
        name: _library_and_class(folder, name, value)
        for name, value in index.items()
        if isinstance(value, list) and name != "_class_name"
    }
    for name in named:
        _demand_no_code(folder / name)
    _demand_pipeline(folder, index["_class_name"])
    _demand_labels(folder, index.get("id2label"))
    parts = {name: kind and _class_of(folder, name, *kind) for name, kind in named.items()}
    for name, found in parts.items():
        file = folder / name / (SCHEDULER if found and issubclass(found, SchedulerMixin) else CONFIG)
        if found and issubclass(found, ModelMixin | SchedulerMixin) and file.is_file():
            demand_flags(_settings(file), found, file)
    return parts


def _library_and_class(folder: Path, name: str, value: list[Any]) -> tuple[str, str] | None:
    """What a part is of, its module as it is imported."""
    where = f"{folder / INDEX}: {name[:40]}"
    if not (name.isidentifier() and not name.startswith("_") and len(value) == 2):
        raise ModelError(f"{where}: is no part of a pipeline; save the whole pipeline again")
    library, kind = value
    if library is None or kind is None:
        return None
    if not (isinstance(library, str) and isinstance(kind, str) and re.fullmatch(r"\w+(\.\w+)*", library)):
        raise ModelError(f"{where}: names no library and class; save the whole pipeline again")
    module = library if library in LIBRARIES else f"diffusers.pipelines.{library.removeprefix(_PIPELINES)}"
    if library not in LIBRARIES and not _is_there(module):
        raise ModelError(
            f"{where}: is of {library[:40]}, and code that comes with a folder is not run; parts are of "
            "diffusers or transformers"
        )
    if not _is_there(module):
        raise ModelError(
            f"{folder}: its {name} is a {kind} of the package transformers, which is not "
            "installed; run `pip install '.[text]'` in PeLAP's folder"
        )
    return module, kind


_PIPELINES = "diffusers.pipelines."


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def _demand_no_code(part: Path) -> None:
    """Refuse Python beside a part, which some versions run, and settings that ask for some from elsewhere.

    Numbers have to be in their ranges as well.
    """
    for file in sorted(part.glob("*.py")):
        raise ModelError(
            f"{file}: code that comes with a folder is not run; delete it, or give another folder"
        )
    for file in sorted(part.glob("*config*.json")):
        settings = _settings(file)
        asked = [key for key, value in settings.items() if value and _asks_for_code(key, value)]
        if asked:
            raise ModelError(
                f"{file}: {asked[0]}: asks for code from elsewhere, which is not run; delete that key"
            )
        if file.name in (CONFIG, SCHEDULER):
            demand_settings(settings, file)


def _settings(file: Path) -> dict[str, Any]:
    try:
        return files.read_mapping(file, infinite=file.name == SCHEDULER)
    except DataError as error:
        raise ModelError(str(error)) from None


def _asks_for_code(key: str, value: Any) -> bool:
    from_hub = key.endswith("_implementation") and "/" in str(value)  # a kernel that is fetched
    return from_hub or key in ("auto_map", "custom_pipelines", "trust_remote_code")


def _demand_pipeline(folder: Path, name: Any) -> None:
    from diffusers import DiffusionPipeline

    kind = getattr(importlib.import_module("diffusers"), name, None) if isinstance(name, str) else None
    # Some load further folders, which a text beside them names.
    connected = getattr(kind, "_load_connected_pipes", False)
    if not (isinstance(kind, type) and issubclass(kind, DiffusionPipeline)) or connected:
        raise ModelError(
            f"{folder / INDEX}: is of a class of its own, {str(name)[:40]}; give one of diffusers' pipelines"
        )


def _demand_labels(folder: Path, labels: Any) -> None:
    numbered = isinstance(labels, dict) and all(
        number.isdecimal() and isinstance(text, str) for number, text in labels.items()
    )
    if not (numbered or labels is None):
        raise ModelError(f"{folder / INDEX}: id2label: expected a text for every number of a class; mend it")


def _class_of(folder: Path, name: str, module: str, kind: str) -> type[Any]:
    """A class that is loaded from tensors, settings or words; imports `module`, which is known."""
    from diffusers import DiffusionPipeline

    found = getattr(importlib.import_module(module), kind, None)
    bases: tuple[type[Any], ...] = (ModelMixin, SchedulerMixin)
    if _is_there("transformers"):
        bases += (importlib.import_module("transformers.utils").PushToHubMixin,)
    if not (isinstance(found, type) and issubclass(found, bases)) or issubclass(found, DiffusionPipeline):
        raise ModelError(
            f"{folder / INDEX}: {name}: {kind[:40]} is no network, scheduler or tokenizer of {module}; save "
            "the whole pipeline again"
        )
    return found
