"""Two names of one file system exchanged in one step, where the system has that."""

import ctypes
import os
import sys
from pathlib import Path

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux; RENAME_SWAP of macOS is 2 too


def swap(one: Path, other: Path) -> bool:
    """Exchange what two paths name, at no moment without either; False: it cannot be done here.

    Linux has renameat2(2) since 3.15, and macOS renamex_np(2); not for every file system (NFS, say).
    """
    if os.name != "posix":
        return False
    system, names = ctypes.CDLL(None, use_errno=True), (os.fsencode(one), os.fsencode(other))
    if sys.platform == "darwin" and hasattr(system, "renamex_np"):
        return bool(system.renamex_np(*names, _EXCHANGE) == 0)
    if hasattr(system, "renameat2"):
        return bool(system.renameat2(_HERE, names[0], _HERE, names[1], _EXCHANGE) == 0)
    return False
