"""What a user did wrong, in one line: what, where, how to mend it.

Library code raises these for anything a user can cause; the command line prints the message and
exits with status 2. An `assert` or any other exception is a defect of PeLAP itself.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


class PelapError(Exception):
    """Base of every error that a user can mend; the message is one line."""


LONGEST = 500  # characters of a message
# What PyTorch says of a CUDA device that is full.
_FIGURES = (re.compile(r"Tried to allocate ([\d.]+ \w+)"), re.compile(r"of which ([\d.]+ \w+) is free"))


def brief(message: str) -> str:
    """A message on one line.

    Of a longer one than `LONGEST` the middle is left out: where it is stands in front, how to mend it behind.
    """
    if len(message) > LONGEST:
        message = f"{message[: LONGEST * 3 // 5]} ... {message[-LONGEST * 2 // 5 + 5 :]}"
    return " ".join(message.split())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there is no memory left, for Python or for PyTorch on whatever device."""
    words = ("out of memory", "can't allocate memory", "bad_alloc")
    return isinstance(error, MemoryError) or any(each in str(error) for each in words)


def limit_of_machine(error: BaseException) -> str | None:
    """What to say where something was too much for Python or PyTorch; None for any other error."""
    if is_out_of_memory(error):
        figures = [found[1] for words in _FIGURES if (found := words.search(str(error)))]
        wanted = f" ({figures[0]} wanted, {figures[1]} free)" if len(figures) == len(_FIGURES) else ""
        return (
            f"out of memory{wanted}; lower batch_size (and parallel_variants, latency_batch_sizes) of this "
            "stage's parameters, or give smaller files"
        )
    if isinstance(error, RecursionError):
        return "something that was read is nested too deeply; make the file again, or lay it out flat"
    if isinstance(error, OverflowError) or "verflow" in str(error):
        reason = str(error).partition("\n")[0]
        return f"a number is too large ({reason}); use smaller ones in parameters and on the command line"
    return None


class ConfigError(PelapError):
    """A parameter is unknown, missing, of the wrong type or out of range."""


class DataError(PelapError):
    """A data set cannot be had, read or used as asked."""


class ModelError(PelapError):
    """A model folder is incomplete, does not fit, or cannot do what is asked."""


class PlanError(PelapError):
    """A pruning plan does not fit the network, or a target is out of reach."""


class TrainingError(PelapError):
    """Training cannot go on."""


class BusyError(PelapError):
    """Another process is writing the same results."""


Values = TypeVar("Values", "Tensor", float)


def finite(values: Values, what: str, remedy: str, error: type[PelapError] = ModelError) -> Values:
    """The values, all of which have to be finite.

    Args:
        values: A number, or a tensor (N, ...) of N items. One on a device is waited for.
        what: What they are and whose, for the message.
        remedy: What to do about it.
        error: What to raise, with the number of items that hold NaN or infinity.
    """
    if isinstance(values, float | int):
        if not math.isfinite(values):
            raise error(f"{what}: {values} is no finite number; {remedy}")
        return values
    if not values.isfinite().all():
        items = values.reshape(len(values), -1) if values.ndim else values.reshape(1, 1)
        broken = int((~items.isfinite()).any(dim=1).sum())
        raise error(f"{what}: NaN or infinite values in {broken} of {len(items)}; {remedy}")
    return values


@contextmanager
def blamed_on(what: "str | Path", remedy: str, error: type[PelapError] = ModelError) -> Iterator[None]:
    """Say in one line what a stranger's file makes code raise, whatever that is.

    Errors of ours go through as they are, among them what ends a run on purpose; so does a lack of memory.

    Args:
        what: The file, or what came from it, and what cannot be done.
        remedy: How to mend it.
        error: What to raise instead, from the other.
    """
    try:
        yield
    except Exception as found:
        if type(found).__module__.startswith("pelap.") or is_out_of_memory(found):
            raise
        reason = " ".join(str(found).split("\n\n")[0].split())
        raise error(f"{what} ({type(found).__name__}: {reason}); {remedy}") from found
