"""Numbers that are numbers: the one check wherever latents, pictures, features, scores or losses are made."""

import math
from typing import TYPE_CHECKING, TypeVar

from pelap.core.errors import ModelError, PelapError

if TYPE_CHECKING:
    from torch import Tensor

Values = TypeVar("Values", "Tensor", float)


def finite(values: Values, what: str, remedy: str, error: type[PelapError] = ModelError) -> Values:
    """The values, all of which have to be finite.

    Args:
        values: A number, or a tensor (N, ...) of N items. One on a device is waited for.
        what: What they are and whose, for the message.
        remedy: What to do about it.
        error: What to raise.

    Raises:
        PelapError: Of the class `error`: some are NaN or infinite. The message says of how many items.
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
