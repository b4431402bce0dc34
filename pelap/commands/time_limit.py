"""An end by the clock, wherever the work is."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pelap.core.errors import ConfigError

AGAIN_SECONDS = 5.0
"""An exception that a callback or a destructor swallowed comes again after so long."""


class TimeIsUp(KeyboardInterrupt):
    """The time limit has passed. Whatever is ready for Ctrl-C is ready for this."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise `TimeIsUp` in the block, which is in the main thread, after so many seconds; None: never.

    Raises:
        ConfigError: This system has no timer for it.
        TimeIsUp: From anywhere in the block.
    """
    if seconds is None:
        yield
        return
    if not hasattr(signal, "setitimer"):
        raise ConfigError("--minutes: this system has no interval timer; leave it out")
    if seconds <= 0:
        raise TimeIsUp

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
