"""What a user did wrong, in one line: what, where, how to mend it.

Library code raises these for anything a user can cause; the command line prints the message and
exits with status 2. An `assert` or any other exception is a defect of PeLAP itself.
"""

import math
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor


class PelapError(Exception):
    """Base of every error that a user can mend; the message is one line."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of PyTorch's, on whatever device, is that there is no memory left."""
    return any(words in str(error) for words in ("out of memory", "can't allocate memory"))


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
