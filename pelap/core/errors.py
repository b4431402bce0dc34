"""What a user did wrong, in one line: what, where, how to mend it.

Library code raises these for anything a user can cause; the command line prints the message and
exits with status 2. An `assert` or any other exception is a defect of PeLAP itself.
"""


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
