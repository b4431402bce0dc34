"""A folder takes another's place, in one step where the system has that, else in two that a reader ends."""

import os
import sys
from contextlib import suppress
from pathlib import Path

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux; RENAME_SWAP of macOS is 2 too


def swap(one: Path, other: Path) -> bool:
    """Exchange what two paths name, at no moment without either; False: it cannot be done here.

    Linux has renameat2(2) since 3.15, and macOS renamex_np(2); not for every file system (NFS, say).
    """
    if os.name != "posix":
        return False
    import ctypes

    system, names = ctypes.CDLL(None, use_errno=True), (os.fsencode(one), os.fsencode(other))
    if sys.platform == "darwin" and hasattr(system, "renamex_np"):
        return bool(system.renamex_np(*names, _EXCHANGE) == 0)
    if hasattr(system, "renameat2"):
        return bool(system.renameat2(_HERE, names[0], _HERE, names[1], _EXCHANGE) == 0)
    return False


def replace(partial: Path, final: Path) -> None:
    """Give a folder its final name; one that has it now has the hidden name then, and is deleted with it."""
    if not final.exists():
        os.replace(partial, final)
    elif not swap(partial, final):  # on a system that cannot, there is neither for a moment: see `heal`
        os.replace(final, aside(final))
        try:
            os.replace(partial, final)
        except OSError:
            if aside(final).exists():
                raise
            return replace(partial, final)  # a reader took this for the end of a killed command
        os.replace(aside(final), partial)
    return None


def aside(folder: Path) -> Path:
    """Where a folder is between two renames."""
    return folder.with_name(f".{folder.name}.old")


def heal(path: Path) -> None:
    """Put back a folder, at `path` or above, that a killed command had moved aside to replace it."""
    for folder in filter(lambda each: each.name, (path, *path.parents)):
        folder = folder.resolve() if folder.is_symlink() else folder
        if aside(folder).is_dir() and not folder.exists():
            with suppress(OSError):  # of those who may not, or come second
                os.replace(aside(folder), folder)


def is_folder(path: Path) -> bool:
    """Whether a folder is there, after `heal`."""
    heal(path)
    return path.is_dir()
