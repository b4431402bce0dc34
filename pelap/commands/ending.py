"""How a command ends: its exit status, and one line of what went wrong."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress

from pelap.core.errors import PelapError, brief, limit_of_machine
from pelap.core.terminal import let_through, libraries_wait, output_is_visible, visible

EXIT_ERROR = 2
EXIT_SIGNAL = 128  # and the signal's number, 2 for Ctrl-C, as shells have it


def end_of(run: Callable[[], int], resumes: bool) -> int:
    """Run a command; the exit status is its own, 2 for an error the user can mend, 130 when interrupted.

    By SIGTERM it is 143 (see `pelap.__main__`).

    Args:
        run: The command, which may raise anything.
        resumes: Whether an interrupted one goes on when it is run again.
    """
    with libraries_wait(), output_is_visible():
        try:
            status = run()
            if sys.stdout is not None:
                sys.stdout.flush()  # of what was printed to a file, the disk may be full
            return status
        except PelapError as error:
            return _fail(str(error))
        except KeyboardInterrupt as interrupt:
            where = "goes on from the last checkpoint" if resumes else "starts again"
            _say(f"interrupted; the same command {where}")
            return EXIT_SIGNAL + int((interrupt.args or (2,))[0])
        except (RuntimeError, MemoryError, OverflowError) as error:
            if (said := limit_of_machine(error)) is None:
                raise
            return _fail(said)
        except BrokenPipeError:  # whoever read the output has enough of it (`pelap prune ... | head`)
            _drop_output()
            return 0
        except OSError as error:
            if error.errno is None:
                raise
            where = f"{error.filename}: " if error.filename else ""
            return _fail(f"{where}{error.strerror}; check the path and the space left, then run again")


def _fail(message: str) -> int:
    _say(f"error: {visible(brief(message))}")
    return EXIT_ERROR


def _say(line: str) -> None:
    let_through(forget=True)
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
    if sys.stderr is not None:
        print(f"pelap: {line}", file=sys.stderr)


def _drop_output() -> None:
    """What could not be printed would be tried again, and complained of, when Python ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
