"""YAML: parsed as data alone, and no more of it than parameters are."""

from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pelap.core.errors import ConfigError
from pelap.core.files import read_text

if TYPE_CHECKING:
    from ruamel.yaml.nodes import Node

WITH_PARAMS = "give a parameter file with --params"  # where most commands take it
MOST_DIGITS = 80  # Python refuses to write out a number of thousands
LARGEST, MOST_VALUES, DEEPEST = (2**18, 20_000, 32)  # bytes, values, levels; ours have 8 kB, 300, 5


def read_yaml(path: Path, remedy: str = WITH_PARAMS) -> Any:
    """Parse YAML 1.2 (``1e-3`` is a number, a key given twice is refused).

    Args:
        path: The file.
        remedy: What to do where there is none.

    Raises:
        ConfigError: It is missing, a folder, no YAML, or larger than parameters can be.
        DataError: It is a pipe or a device.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; {remedy}")
    try:
        return parse_yaml(read_text(path, LARGEST), str(path))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; {remedy}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid YAML ({error})") from None


def parse_yaml(text: str, source: str) -> Any:
    """The values of a document; `source` names it in the one line of a `ConfigError`."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    try:
        node = yaml.compose(StringIO(text))
        if node is None:
            return None
        values, levels = _extent(node, {})
        if values > MOST_VALUES or levels > DEEPEST:
            raise ValueError(f"more than {MOST_VALUES} values, aliases counted out, or {DEEPEST} levels")
        return yaml.constructor.construct_document(node)
    except RecursionError:
        raise ConfigError(f"{source}: nested deeper than parameters are; lay it out flat") from None
    except Exception as error:  # a YAMLError, or what comes of the values of a stranger's tags
        raise ConfigError(f"{source}: not valid YAML ({' '.join(str(error).split())})") from None


def _extent(node: "Node", known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Values and levels of a node, everything counted as often as aliases repeat it."""
    if id(node) not in known:
        known[id(node)] = (MOST_VALUES + 1, DEEPEST + 1)  # what holds itself has no end
        inner = node.value if isinstance(node.value, list) else []
        if not inner and len(node.value) > MOST_DIGITS and str(node.tag).endswith(":int"):
            raise ValueError(f"a whole number of more than {MOST_DIGITS} digits")
        below = [each for item in inner for each in (item if isinstance(item, tuple) else (item,))]
        extents = [_extent(each, known) for each in below]
        known[id(node)] = (1 + sum(n for n, _ in extents), 1 + max((n for _, n in extents), default=0))
    return known[id(node)]
