"""What is half-written, and what killed processes left of it: the next that works there removes it."""

import hashlib
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

# Version 0.1 left the machine out.
PARTIAL = re.compile(r"\..+\.(?P<pid>[1-9]\d{0,8})(@(?P<machine>[0-9a-f]{8}))?\.partial")


@cache
def _machine() -> str:
    """Digest of where a process is known by its number: the machine, and on Linux the container."""
    space = ""
    with suppress(OSError):
        space = str(Path("/proc/self/ns/pid").readlink())
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]


def partial_of(final: Path) -> Path:
    """Where this process writes what is to become `final`: a hidden neighbour that says whose it is."""
    return final.with_name(f".{final.name}.{os.getpid()}@{_machine()}.partial")


def sweep(folder: Path) -> None:
    """Remove what processes of this machine that are no more left half-written directly in a folder."""
    with suppress(OSError):
        for path in list(folder.iterdir()):
            match = PARTIAL.fullmatch(path.name)
            if match and match["machine"] in (None, _machine()) and not _is_alive(int(match["pid"])):
                remove(path)


sweep_once = cache(sweep)  # a process; where files are written by the hundred


def _is_alive(pid: int) -> bool:
    if os.name != "posix":
        return True  # to ask would end it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's
    return True


def remove(path: Path) -> None:
    """Delete a file or a folder, or as much of it as can be."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


@contextmanager
def scratch_dir(folder: Path) -> Iterator[Path]:
    """A new folder in `folder`, for as long as the block lasts."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    made = partial_of(folder / "pelap")
    remove(made)
    made.mkdir(mode=0o700)
    try:
        yield made
    finally:
        remove(made)
