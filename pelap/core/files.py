"""Files: atomic writes, locks, and one-line errors for what cannot be read.

Whatever appears under its final name is complete: content goes to a hidden neighbour first and is
renamed into place.
"""

import errno
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pelap.core.errors import BusyError, ConfigError, DataError, PelapError
from pelap.core.leftovers import partial_of, sweep, sweep_once
from pelap.core.names import demand_names
from pelap.core.replacing import aside, heal, replace

if TYPE_CHECKING:
    import pandas as pd
    import torch

LARGEST = 64 * 2**20  # bytes of a text that is read, a table say; the largest of ours has 0.2 MB
# Columns of our tables that hold names, whatever the names look like.
TEXT_COLUMNS = (
    *("operator", "kind", "replacement", "parent", "action", "variant", "class_name"),
    *("plan", "student", "model", "against", "mode", "metric", "verdict", "reason", "task", "dataset"),
)
MIXED_COLUMNS = ("paper",)  # figures as the paper gives them, some in words


@contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """Yield a hidden path beside `final`; it takes the final name when the block succeeds."""
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(final)
    sweep_once(final.parent)
    try:
        with _writing(final):
            yield partial
        _give_usual_mode(partial)
        os.replace(partial, final)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_dir(final: Path) -> Iterator[Path]:
    """Yield an empty hidden folder; it replaces the folder `final` when the block succeeds.

    A failed block leaves `final` as it was. Where that is a link, what it leads to is replaced; a file never.
    """
    final = final.resolve() if final.is_symlink() else final
    if final.is_file():
        raise PelapError(f"{final}: is a file where a folder is to be; give another place")
    final.parent.mkdir(parents=True, exist_ok=True)
    heal(final)
    sweep(final.parent)
    partial = partial_of(final)
    for left in (partial, aside(final)):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir()
    try:
        with _writing(final):
            yield partial
        for file in partial.rglob("*.safetensors"):
            _give_usual_mode(file)
        replace(partial, final)
    finally:
        heal(final)  # where it was interrupted between two renames
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _writing(final: Path) -> Iterator[None]:
    """Say what was being written when space ran out; the tensor library raises its own kind for that."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = one_line(error)
        raise PelapError(f"{final}: cannot be written ({reason}); free space and run again") from None


def _give_usual_mode(path: Path) -> None:
    """Safetensors makes files that only their owner can read; others share data sets and models."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


@contextmanager
def exclusive(target: Path, wait: bool = False) -> Iterator[None]:
    """Hold `target` for this process alone; the lock ends with the process, however it ends.

    Raises:
        BusyError: Another process holds it, and is not to be waited for (`wait`).
    """
    from filelock import FileLock, Timeout

    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent)
    lock = FileLock(target.with_name(f".{target.name}.lock"), timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout:
        raise BusyError(
            f"{target}: another pelap process is writing here; wait for it to end, "
            "or give this one another place (--run, --out, for download --data)"
        ) from None
    try:
        yield
    finally:
        lock.release()


def drop(paths: Iterable[Path]) -> None:
    """Delete files, those of them that are there."""
    for path in paths:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented; NaN and infinities are refused (JSON has none)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def demand_file(path: Path, largest: int = LARGEST) -> None:
    """Refuse, with a `DataError`, a pipe or a device, which may have no end, and a file of more bytes."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: is no file (a folder, a pipe or a device); give a file")
    if path.exists() and path.stat().st_size > largest:
        raise DataError(f"{path}: has more than {largest:,} bytes, which nothing that is read here has")


def read_text(path: Path, largest: int = LARGEST) -> str:
    """UTF-8 text, with or without a mark in front, as a Windows editor writes it.

    Raises:
        DataError: See `demand_file`.
        FileNotFoundError, UnicodeDecodeError: For the caller to say what was to be there.
    """
    demand_file(path, largest)
    return path.read_text(encoding="utf-8-sig")


def read_json(path: Path, infinite: bool = False) -> Any:
    """Read JSON; a `DataError` says that the file is missing or something else.

    NaN and infinities are something else: JSON has none. Schedulers of diffusers write some (`infinite`).
    """
    heal(path)
    try:
        return json.loads(read_text(path), parse_constant=None if infinite else _refuse_constant)
    except FileNotFoundError:
        raise missing(path) from None
    except (ValueError, RecursionError) as error:  # no JSON, no text, a number without end, too deep
        raise DataError(f"{path}: not valid JSON ({one_line(error)}); make it again") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def read_mapping(
    path: Path, keys: Iterable[str] = (), kind: Any = None, infinite: bool = False
) -> dict[str, Any]:
    """Read a JSON object that has at least these keys, or a `DataError` says what is wrong with it.

    `kind` is what pydantic checks it by, such as an entry of `pelap.core.records`.
    """
    value = read_json(path, infinite)
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON mapping; make it again")
    _demand(path, "keys", keys, value)
    _demand_kind(path, value, kind)
    return value


def read_mappings(
    path: Path, keys: Iterable[str] = (), again: str = "make it again", kind: Any = None
) -> dict[str, Any]:
    """Read a JSON object of such objects by name, as `prune/result.json`; `again` says how to mend it."""
    whole, keys = read_mapping(path), list(keys)
    for name, value in whole.items():
        absent = [key for key in keys if key not in value] if isinstance(value, dict) else ["a mapping"]
        if absent:
            raise DataError(f"{path}: {name}: lacks {', '.join(absent)}; {again}")
    demand_names(whole, str(path))
    _demand_kind(path, whole, kind and dict[str, kind], again)
    return whole


def _demand_kind(path: Path, value: Any, kind: Any, again: str = "make it again") -> None:
    from pydantic import TypeAdapter, ValidationError  # for which what reads nothing else need not wait

    try:
        TypeAdapter(kind or Any).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place, said, found = ".".join(map(str, first["loc"])), first["msg"], str(first["input"])[:40]
        raise DataError(f"{path}: {place}: {said} (it is {found!r}); {again}") from None


def read_metrics(path: Path) -> dict[str, dict[str, float | None]]:
    """Read ``{model: {metric: number}}``; a `DataError` says that it is missing or holds anything else."""
    metrics = read_mapping(path)
    demand_names(metrics, str(path))
    for model, values in metrics.items():
        kinds = {type(value) for value in values.values()} if isinstance(values, dict) else {dict}
        if not kinds <= {int, float, type(None)}:
            raise DataError(f"{path}: {model}: expected a mapping of metrics to numbers; make it again")
    return metrics


def write_csv(path: Path, table: "pd.DataFrame") -> None:
    """Write a table atomically, without index, with the shortest exact floats."""
    with atomic_path(path) as partial:
        table.to_csv(partial, index=False, lineterminator="\n")


def read_csv(path: Path, columns: Iterable[str] = ()) -> "pd.DataFrame":
    """Read a table that has at least these columns, or a `DataError` says what is wrong with it.

    Names stay text, even ``NA`` and ``001``. All else is numbers, or true and false, where it is asked for or
    where most of a column is.
    """
    import pandas as pd

    heal(path)
    demand_file(path)
    columns = tuple(columns)
    try:
        text = dict.fromkeys(TEXT_COLUMNS, str)
        table = pd.read_csv(path, keep_default_na=False, na_values=["", "nan"], dtype=text)
    except FileNotFoundError:
        raise missing(path) from None
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable CSV table ({one_line(error)})") from None
    _demand(path, "columns", columns, table)
    for name in table.columns:
        if name not in (*TEXT_COLUMNS, *MIXED_COLUMNS) and table[name].dtype.kind not in "biuf":
            _demand_numbers(path, table[name], demanded=name in columns)
    return table


def _demand_numbers(path: Path, column: "pd.Series[Any]", demanded: bool) -> None:
    """Refuse a word among numbers; a column of words alone is none of ours, unless it is demanded."""
    import pandas as pd

    cells = column.dropna().astype(str)
    flags = cells.isin(["True", "False"])
    what = "true or false" if flags.mean() > 0.5 else "a number"
    words = cells[~flags if flags.mean() > 0.5 else pd.to_numeric(cells, errors="coerce").isna()]
    if len(words) and (demanded or len(words) < len(cells)):
        raise DataError(
            f"{path}: row {int(words.index[0]) + 1}, column {column.name}: {words.iloc[0][:40]!r} is not "
            f"{what}; mend that cell, or make the table again"
        )


def _demand(path: Path, what: str, names: Iterable[str], there: Any) -> None:
    if absent := [name for name in names if name not in there]:
        raise DataError(f"{path}: lacks the {what} {', '.join(absent)}; make it again")


def save_tensors(
    path: Path, tensors: Mapping[str, "torch.Tensor"], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file atomically, equal bytes for equal tensors and `metadata` (of strings)."""
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as partial:
        save_file(contiguous, partial, metadata=dict(metadata or {}))
        _sort_metadata(partial)


def _sort_metadata(path: Path) -> None:
    """The library writes metadata in an order that chance decides; DVC compares bytes."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:  # what is spelled otherwise stays as it is
            file.seek(8)
            file.write(text.ljust(length))


def load_tensors(path: Path) -> tuple[dict[str, "torch.Tensor"], dict[str, str]]:
    """Tensors (on the CPU) and metadata of a safetensors file; a `DataError` says that it is not complete."""
    from safetensors import SafetensorError, safe_open

    heal(path)
    if not path.is_file():
        raise missing(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(
            f"{path}: not a complete safetensors file ({one_line(error)}); delete it and make it again"
        ) from None


def read_noted(path: Path) -> dict[str, Any]:
    """A mapping that an earlier run noted for itself; empty where it is missing; damage is said."""
    try:
        return read_mapping(path) if path.exists() else {}
    except (DataError, OSError) as error:
        print(f"warning: {one_line(error)}; going on without it", file=sys.stderr)
        return {}


def missing(path: Path) -> DataError:
    """The error for a file that an earlier stage should have made."""
    return DataError(f"{path}: no such file; correct the path, or make it first (the stages: pelap --help)")


def one_line(error: BaseException) -> str:
    """The first line of an exception's text, for use inside a one-line message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def demand_new(folder: Path, option: str = "--out") -> None:
    """Refuse to write among other files, with a `ConfigError`."""
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(
            f"{option} {folder}: is not empty; name a new folder, so that nothing is mixed or lost"
        )


def check_writable(folder: Path) -> None:
    """Fail before the work rather than after it, with a `PelapError`, if `folder` cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        probe = partial_of(folder / "probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise PelapError(f"{folder}: cannot write here ({error.strerror}); choose another place") from None
