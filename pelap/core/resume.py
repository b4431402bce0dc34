"""Work that is going on: a folder for its state, which is dropped where the state is of other work."""

import glob
import re
import shutil
from pathlib import Path
from typing import Any

from pelap.core import files
from pelap.core.errors import DataError
from pelap.core.keys import Key


class ResumeState:
    """Where the state of work is kept while it lasts; the same work, interrupted, goes on from there.

    Where an interrupted run of the work was of something else, that is said on the terminal.

    Args:
        parent: Folder of states. Neither DVC nor Snakemake may know it: both delete outputs before a rerun.
        label: What the work is.
        made_of: Everything that its result depends on.

    Attributes:
        folder: For this work's state; it need not exist.
    """

    def __init__(self, parent: Path, label: str, made_of: Key) -> None:
        self._parent = parent
        self._label = label
        self._note = parent / f"{label}.made-of.json"
        self.folder = parent / f"{label}-{made_of.name}"
        if not self.folder.is_dir() and self._folders():
            differing = ", ".join(made_of.differences(self._noted())) or "nothing that was noted"
            print(f"{label.strip('.')}: starts anew; the run that was interrupted has another {differing}")
        files.write_json(self._note, dict(made_of.parts))

    def drop(self) -> None:
        """Remove the state, and those of other parameters too: nobody will ask for them again."""
        for folder in self._folders():
            shutil.rmtree(folder, ignore_errors=True)
        self._note.unlink(missing_ok=True)
        if self._parent.is_dir() and not any(self._parent.iterdir()):
            self._parent.rmdir()

    def _folders(self) -> list[Path]:
        """Those of states of the same label, whatever they are made of."""
        name = re.compile(re.escape(self._label) + "-[0-9a-f]{12}")
        return [
            path for path in self._parent.glob(f"{glob.escape(self._label)}-*") if name.fullmatch(path.name)
        ]

    def _noted(self) -> dict[str, Any]:
        """What the last run that began this work was made of."""
        try:
            return files.read_mapping(self._note)
        except DataError:
            return {}
