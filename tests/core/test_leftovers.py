"""What a killed process left half-written goes; what a living one writes, here or elsewhere, stays."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pelap.core import files
from pelap.core.keys import ResumeState, key
from pelap.core.leftovers import partial_of, scratch_dir, sweep

WRITE = """
import os, signal, sys
from pathlib import Path
from pelap.core import files
from pelap.core.leftovers import scratch_dir
place = Path(sys.argv[1])
with files.atomic_path(place / "file") as file, files.atomic_dir(place / "folder") as folder:
    with scratch_dir(place) as scratch:
        file.write_text("half")
        (folder / "inside").write_text("half")
        (scratch / "inside").write_text("half")
        print(os.getpid(), flush=True)
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def writing(place: Path) -> subprocess.Popen[str]:
    """A process that is killed while it writes three things, when its input ends."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", WRITE, str(place)], text=True, **pipes)  # type: ignore[call-overload]
    assert process.stdout is not None
    process.stdout.readline()
    found: subprocess.Popen[str] = process
    return found


def download(place: Path) -> None:
    with files.exclusive(place / "photos"):
        pass


def scratch(place: Path) -> None:
    with scratch_dir(place):
        pass


NEXT: list[Callable[[Path], object]] = [
    *(sweep, files.check_writable, download, scratch),
    lambda place: ResumeState(place, "train", key(of=1)),
    lambda place: files.write_json(place / "anything", 1),
    lambda place: files.write_json(place / "file", 1),
]


@pytest.mark.parametrize("use", NEXT)
def test_the_next_that_works_there_removes_what_dead_ones_left(
    use: Callable[[Path], object], tmp_path: Path
) -> None:
    with writing(tmp_path) as process:
        sweep(tmp_path)
        assert len(list(tmp_path.glob(".*.partial"))) == 3
        process.communicate("")
    assert len(list(tmp_path.glob(".*.partial"))) == 3
    use(tmp_path)
    assert not list(tmp_path.glob(".*.partial"))


def test_what_may_be_a_living_ones_stays(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mine = partial_of(tmp_path / "it").name
    others = [mine, mine.replace(str(os.getpid()), "1"), f".it.{gone.pid}@00000000.partial", ".it.partial"]
    others += [f".it.{os.getpid()}.partial", f"it.{gone.pid}.partial", f".it.{gone.pid}", "it", ".it.old"]
    for name in (*others, f".it.{gone.pid}.partial", mine.replace(str(os.getpid()), str(gone.pid))):
        (tmp_path / name).touch()
    (tmp_path / f".link.{gone.pid}.partial").symlink_to(tmp_path)
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*others}
    sweep(tmp_path / "nowhere")
