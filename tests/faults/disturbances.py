"""Commands that are killed, started twice at once, or out of disk: nothing half-written, nothing other."""

import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from trial import Child, Kill, Outcome, command, run_call, run_command
from world import Job, World, contents, hidden, visible

SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
FRESH = 0.1  # share of kills that meet a new interpreter, from its first millisecond on
START = 4.0  # seconds in which that imports


def kill(world: World, rng: random.Random, place: Path) -> list[str]:
    """A job is killed once or twice at any moment, then run to its end."""
    job = _any_job(world, rng)
    world.prepare(job, place)
    problems: list[str] = []
    for _ in range(rng.choice((1, 1, 2))):
        which = rng.choice(SIGNALS)
        if rng.random() < FRESH:
            after = rng.choice((0.05, START, START + job.seconds)) * rng.random()
            outcome = _fresh(world.words(job, place), Kill(after, which))
        else:
            after = rng.random() * 1.1 * job.seconds
            outcome = world.run(job, place, kill=Kill(after, which))
        told = f"{job.name} {which.name} after {after:.3f} s"
        problems += [
            f"{told}: {problem}" for problem in (outcome.problem, *_half_written(job, place)) if problem
        ]
    return [*problems, *(f"{job.name}: {problem}" for problem in _finish(world, job, place))]


def pair(world: World, rng: random.Random, place: Path) -> list[str]:
    """The same command twice at once: one wins, the other does nothing or says so in a line."""
    job = _any_job(world, rng)
    world.prepare(job, place)
    words = world.words(job, place)
    both = [Child(lambda: command(words))]
    time.sleep(rng.choice((0.0, 0.3 * rng.random())))
    both.append(Child(lambda: command(words)))
    ends = [child.wait() for child in both]
    problems = [f"{job.name}: {end.problem}" for end in ends if end.problem]
    if all(end.status for end in ends):
        problems.append(f"{job.name}: nobody won: {ends}")
    return problems + [f"{job.name}: {problem}" for problem in _difference(job, place)]


def full_disk(world: World, rng: random.Random, place: Path) -> list[str]:
    """The disk is full after any number of bytes; with space the same command ends as ever."""
    job = _any_job(world, rng)
    made = sum((world.root / job.leaves / name).stat().st_size for name in job.result)
    free, told = int(rng.random() * 1.3 * made), place.with_suffix(".json")
    place.mkdir(parents=True)

    def inside() -> int:
        disk = _Disk(place)
        world.prepare(job, place / "inside")
        disk.resize(disk.used() + free)
        outcome = world.run(job, place / "inside")
        problems = [
            problem for problem in (outcome.problem, *_half_written(job, place / "inside")) if problem
        ]
        if outcome.status not in (0, 2):
            problems.append(f"ends with {outcome.status}: {outcome.said[:400]}")
        disk.resize(2**30)
        told.write_text(json.dumps(problems + _finish(world, job, place / "inside")))
        return 0

    end = run_call(inside, seconds=300)
    problems = json.loads(told.read_text()) if told.exists() else [f"the trial itself failed: {end}"]
    return [f"{job.name} with {free} bytes free: {problem}" for problem in problems]


def _any_job(world: World, rng: random.Random) -> Job:
    return world.jobs[rng.choice(sorted(world.jobs))]


def _fresh(words: Iterable[str], kill: Kill) -> Outcome:
    """In a new interpreter, which takes seconds to start."""
    begun = time.monotonic()
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-m", "pelap", *words], **options) as process:
        time.sleep(kill.after)
        process.send_signal(kill.signal)
        _, said = process.communicate(timeout=300)
    ours = "/pelap/" in said or "pelap: " in said
    return Outcome(
        process.returncode, said if ours else "", time.monotonic() - begun
    )  # else Python's own start


def _problems(outcome: Outcome, job: Job, place: Path) -> list[str]:
    return [outcome.problem] * bool(outcome.problem) + _half_written(job, place)


def _finish(world: World, job: Job, place: Path) -> list[str]:
    """The same command once more: it ends, what it leaves is what it would have left, and nothing beside."""
    done = not _difference(job, place)  # before the signal came; some jobs want a new folder then
    outcome = run_command(world.words(job, place))
    if outcome.status and not (done and outcome.refused):
        return [f"does not go on: {outcome.status} {outcome.said[:400]}"]
    return _difference(job, place) + [f"left behind: {name}" for name in hidden(place)]


def _difference(job: Job, place: Path) -> list[str]:
    found = contents(place / job.leaves)
    names = [name for name in job.result | found if job.result.get(name) != found.get(name)]
    return [f"differs: {', '.join(names[:5])}"] if names else []


def _half_written(job: Job, place: Path) -> list[str]:
    """Files under a final name that cannot be read, or models that are not what they are to be."""
    below, problems = place / job.leaves, []
    for name in visible(below):
        try:
            whole = _is_whole(below / name)
        except ValueError:
            whole = False
        if not whole:
            problems.append(f"half-written: {name}")
    found = contents(below) if not problems else {}
    models = [name for name in found if name.endswith((".safetensors", "config.json"))]
    return problems + [f"not the final one: {name}" for name in models if job.result.get(name) != found[name]]


def _is_whole(path: Path) -> bool:
    content = path.read_bytes()
    if path.suffix == ".json":
        return json.loads(content) is not None
    if path.suffix == ".csv":
        return content.endswith(b"\n")
    if path.suffix == ".png":
        return content.endswith(b"IEND\xaeB`\x82")
    if path.suffix == ".html":
        return content.rstrip().endswith(b"</html>")
    if path.suffix == ".safetensors":
        length = int.from_bytes(content[:8], "little")
        ends = [
            each["data_offsets"][1]
            for name, each in json.loads(content[8 : 8 + length]).items()
            if name[0] != "_"
        ]
        return len(content) == 8 + length + max(ends, default=0)
    return True


class _Disk:
    """A file system of its own over a folder, which only this process and its children see."""

    NEW_USER, NEW_MOUNTS, PRIVATE, REMOUNT = 0x10000000, 0x00020000, 0x44000, 0x20

    def __init__(self, folder: Path) -> None:
        self.folder, self._libc = folder, ctypes.CDLL(None, use_errno=True)
        user, group = os.getuid(), os.getgid()
        self._do(self._libc.unshare(self.NEW_MOUNTS | (self.NEW_USER if user else 0)))
        if user:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        self._do(self._libc.mount(b"none", b"/", None, self.PRIVATE, None))
        self._mount(0, 2**30)

    def used(self) -> int:
        stat = os.statvfs(self.folder)
        return (stat.f_blocks - stat.f_bfree) * stat.f_bsize

    def resize(self, size: int) -> None:
        self._mount(self.REMOUNT, size)

    def _mount(self, flags: int, size: int) -> None:
        options = f"size={max(4096, size)}".encode()
        self._do(self._libc.mount(b"tmpfs", str(self.folder).encode(), b"tmpfs", flags, options))

    def _do(self, result: int) -> None:
        if result:
            raise OSError(ctypes.get_errno(), "no file system of its own")
