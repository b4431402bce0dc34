"""``python -m pelap`` is the same command as ``pelap``; an interruption is one line whenever it comes.

Ctrl-C may come at once, so that nothing that takes time is imported before `main` is in its `try`.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

AGAIN = "pelap: interrupted; run the same command again"


def main() -> int:
    """Run the command that this process is for: `pelap.cli.main`, and what signals do to it."""
    status = 0
    try:
        try:
            _listen()
            from pelap.cli import main as run

            status = run()
        finally:
            _stop_listening()
    except KeyboardInterrupt as interrupt:  # before the command line was there to say it, or after
        _stop_listening()
        print(AGAIN, file=sys.stderr)
        status = 128 + int((interrupt.args or (2,))[0])
    return status


def _listen() -> None:
    """Let SIGTERM end a command as Ctrl-C does; what the caller had ignored stays ignored."""
    import signal

    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    for number, handler in usual.items():
        if signal.getsignal(number) == handler:
            signal.signal(number, _interrupt)
    sys.unraisablehook = _interrupt_again


def _interrupt(number: int, frame: "FrameType | None") -> None:
    """Raise, but not in an import: some modules go on without what they wanted, and C++ aborts."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _leave(number)
        frame = frame.f_back
    raise KeyboardInterrupt(number)


def _leave(number: int) -> "NoReturn":
    """End at once, as a kill would: nothing is half-written under its name at any moment."""
    import os

    try:  # noqa: SIM105 (what `suppress` is of may be the very import)
        sys.stdout.flush()
    except Exception:
        pass
    os.write(2, f"{AGAIN}\n".encode())
    os._exit(128 + number)


def _interrupt_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """An interruption that came in a destructor or a callback is lost there; it comes once more."""
    import signal
    from threading import Timer

    error = unraisable.exc_value
    if not isinstance(error, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
    elif error.args:  # of ours; a time limit comes again by itself
        timer = Timer(0.01, signal.raise_signal, error.args)
        timer.daemon = True
        timer.start()


def _stop_listening() -> None:
    """What is left is to leave: nothing can be interrupted any more."""
    import signal

    for number, handler in {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_DFL}.items():
        if signal.getsignal(number) == _interrupt:
            signal.signal(number, handler)


if __name__ == "__main__":
    raise SystemExit(main())
