"""Names: of data sets, variants, methods, students, plans, models. They become paths and words of commands.

So where a file brings one in, parameters, a table or a protocol, it is checked by these patterns: no
separator, no space, nothing that a shell knows, no dash or dot in front, no longer than file systems take.
"""

import re
from collections.abc import Iterable

from pelap.core.errors import DataError

NAME = r"[a-z0-9][a-z0-9_-]{0,63}"  # what parameters name
MADE_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}"
"""What stages call by such names, numbers and operators: ``pruned-ld-pruner-12.5``. Every `NAME` is one."""
_MADE_NAME = re.compile(MADE_NAME)


def is_made_name(text: object) -> bool:
    """Whether something read from a file is a name that a stage may have written there."""
    return isinstance(text, str) and _MADE_NAME.fullmatch(text) is not None


def demand_names(names: Iterable[object], where: str) -> None:
    """Raise a `DataError` that begins with `where` if one of `names` is none."""
    for name in names:
        if not is_made_name(name):
            raise DataError(
                f"{where}: {str(name)[:80]!r} is no name; a name has letters, digits, and dots, - and _ "
                "within, 200 at most; make the file again"
            )
