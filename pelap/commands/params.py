"""params: a parameter file with everything that it leaves out, or one of version 0.1 under today's names."""

from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pelap.commands.modes import check_out
from pelap.config.load import parse_overrides, parse_params, resolved
from pelap.config.upgrade import rename
from pelap.config.yaml import read_yaml
from pelap.core import files
from pelap.core.errors import ConfigError

NULL = "tag:yaml.org,2002:null"
REMEDY = "give the path of a parameter file"
EXPLAINED = Path("params.yaml")  # where the comments are from, if it is there


def params(file: Path, overrides: Sequence[str] = (), upgrade: bool = False, out: Path | None = None) -> None:
    """Print a parameter file, or write it.

    Args:
        file: A preset or any other parameter file.
        overrides: ``KEY=VALUE`` that stand above the file's.
        upgrade: Leave it as it is, comments too, but for names of version 0.1.
        out: Where to instead of the terminal; it may be the same file.

    Raises:
        ConfigError: It is not as it must be.
    """
    if upgrade and overrides:
        raise ConfigError(
            "--set: does not go with --upgrade, which changes names alone; leave one of them out"
        )
    if out is not None:
        check_out(out, is_file=True)
    yaml = _yaml()
    if not upgrade:
        yaml.representer.ignore_aliases = lambda _: True  # values of one preset may be one object
    text = StringIO()
    yaml.dump(_upgraded(file) if upgrade else _whole(file, overrides), text)
    if out is None:
        print(text.getvalue(), end="")
    else:
        with files.atomic_path(out) as partial:
            partial.write_text(text.getvalue(), encoding="utf-8")


def _whole(file: Path, overrides: Sequence[str]) -> Any:
    whole = resolved(file, parse_overrides(overrides), REMEDY)
    parse_params(whole, str(file))
    if not EXPLAINED.is_file():
        return whole
    read_yaml(EXPLAINED, REMEDY)  # says what is wrong
    explained = _yaml().load(EXPLAINED)
    return _fill(explained, whole) if isinstance(explained, Mapping) else whole


def _fill(explained: Any, values: Mapping[str, Any]) -> Any:
    """Give a mapping with comments these values."""
    for key in [key for key in explained if key not in values]:
        del explained[key]
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(explained.get(key), Mapping):
            _fill(explained[key], value)
        elif key not in explained or explained[key] != value:
            explained[key] = value
    return explained


def _upgraded(file: Path) -> Any:
    read_yaml(file, REMEDY)  # says what is wrong
    raw = _yaml().load(file)
    if isinstance(raw, Mapping):
        rename(raw)  # type: ignore[arg-type]
    return raw


def _yaml() -> YAML:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 120
    yaml.default_flow_style = None
    yaml.representer.add_representer(type(None), lambda each, _: each.represent_scalar(NULL, "null"))
    return yaml
