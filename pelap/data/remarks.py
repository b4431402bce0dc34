"""What reading files changes or leaves out: counted, to be said."""

from collections import Counter
from collections.abc import Callable

Remark = Callable[[str], None]
"""Takes what was changed or left out while a file was read, in words that a count can follow."""


class Remarks:
    """What was passed over or changed while files were read: how often, and where first."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, what: str, path: str) -> None:
        """Count `what` once more."""
        self._counts[what] += 1
        self._first.setdefault(what, path)

    def about(self, path: str) -> Remark:
        """A function that counts what it is called with, of the file at `path`."""
        return lambda what: self.add(what, path)

    def lines(self) -> list[str]:
        """One line each, in the order in which they came up."""
        lines = (f"{what}: {count}, first {self._first[what]}" for what, count in self._counts.items())
        return [line.encode(errors="backslashreplace").decode() for line in lines]


def unsaid(what: str) -> None:
    """The remark that nobody hears."""
