"""Summaries of studies: part of the project's folder, not of the package."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pelap.core.errors import ConfigError
from pelap.core.keys import working_folder_on_path

STUDIES = {"compare": "seeds", "study": "collapse", "choosing": "choosing", "tasks": "tasks"}
"""Commands, and the studies that they summarise: ``python -m workflow.studies NAME`` is the same."""


def summarise(command: str, root: Path, asked: Sequence[str] | None) -> None:
    """Write what the finished cells under `root` say together, or those that are asked for."""
    study_module(f"{STUDIES[command]}.summarise").summarise(root, asked)


def study_module(name: str) -> Any:
    """A module of ``workflow.studies``, by its name there.

    Raises:
        ConfigError: The working folder is not the project's.
    """
    with working_folder_on_path():
        try:
            return importlib.import_module(f"workflow.studies.{name}")
        except ModuleNotFoundError as error:
            if error.name is None or not f"workflow.studies.{name}".startswith(error.name):
                raise
            raise ConfigError(
                f"workflow/studies/{name.replace('.', '/')}: is not here; run it in PeLAP's folder"
            ) from None
