"""One command in a process of its own: killed, starved or left alone, and what it said.

A process is forked from one that has torch and diffusers loaded, so that a trial costs what the command does
and not the seconds of a start. That parent never computes itself: threads do not survive a fork.
"""

import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

PROGRESS = re.compile(r"\S[\S ]*: \d+/\d+(,|$)|failed: ")  # `paper` goes on with the next cell
HELD = (signal.SIGINT, signal.SIGTERM)
HANGING = 90.0  # seconds after which a command of a tiny run will not end any more


class Kill(NamedTuple):
    """A signal so many seconds after the start."""

    after: float
    signal: int


class Outcome(NamedTuple):
    """How a command ended: its exit status (minus the signal's number where that ended it), and its words."""

    status: int
    said: str
    seconds: float

    @property
    def refused(self) -> bool:
        """Exit status 2 with one line of ours, and nothing else on stderr."""
        lines = [line for line in self.said.splitlines() if not PROGRESS.match(line)]
        return self.status == 2 and len(lines) == 1 and lines[0].startswith("pelap: error: ")

    @property
    def problem(self) -> str | None:
        """What no command may do, whatever it was given."""
        if "Traceback" in self.said or self.status == 1:
            return f"traceback: {self.said.strip().splitlines()[-1:] or self.status}"
        if self.status == -signal.SIGALRM:
            return "hangs"
        if self.status == 2 and not self.refused:
            return f"more than one line: {self.said[:400]!r}"
        if max(map(len, self.said.splitlines()), default=0) > 700:
            return f"a line of {max(map(len, self.said.splitlines()))} characters"
        return None


def run_command(
    words: Sequence[object], kill: Kill | None = None, memory: int | None = None, seconds: float = HANGING
) -> Outcome:
    """`pelap words`; `memory` is the most bytes beyond what is taken already."""
    return run_call(lambda: command(words, memory), kill, seconds)


def command(words: Sequence[object], memory: int | None = None) -> int:
    """The same in this process, which is for nothing else."""
    from pelap.__main__ import main

    if memory is not None:
        _limit_memory(memory)
    sys.argv = ["pelap", *map(str, words)]
    return main()


def run_call(call: Callable[[], int], kill: Kill | None = None, seconds: float = HANGING) -> Outcome:
    """The same with any call that returns an exit status."""
    return Child(call).wait(kill, seconds)


class Child:
    """A call that goes on in a process of its own."""

    def __init__(self, call: Callable[[], int]) -> None:
        self._begun = time.monotonic()
        self._said = tempfile.TemporaryFile("w+b")  # noqa: SIM115 (closed at the end of `wait`)
        # No signal before the command is there to take it: what Python does in a fork is not our matter.
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
        self._process = os.fork()
        if self._process == 0:
            _become(call, self._said.fileno())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)

    def wait(self, kill: Kill | None = None, seconds: float = HANGING) -> Outcome:
        """Its end; after `seconds` it is ended."""
        status = self._status(kill, seconds)
        spent = time.monotonic() - self._begun
        with self._said as said:
            said.seek(0)
            return Outcome(status, said.read().decode(errors="replace"), spent)

    def _status(self, kill: Kill | None, seconds: float) -> int:
        while True:
            ended, status = os.waitpid(self._process, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            spent = time.monotonic() - self._begun
            if kill is not None and spent >= kill.after:
                os.kill(self._process, kill.signal)
                kill = None
            if spent > seconds:
                os.kill(self._process, signal.SIGKILL)
                os.waitpid(self._process, 0)
                return -signal.SIGALRM
            time.sleep(0.002)


def _become(call: Callable[[], int], stderr: int) -> None:
    """The child: its words go to a file, and it ends here whatever happens."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(stderr, 2)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
        status = call()
    except KeyboardInterrupt:  # before the command was there to take it
        status = 130
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _limit_memory(more: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more,) * 2)
