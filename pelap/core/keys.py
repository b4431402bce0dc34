"""Keys of what is kept: everything that its numbers depend on, in one name.

A cache, a checkpoint or a summary may be used again if the same would be made again. So each has a `Key` of
all that it is made of: weights, settings of a scheduler, parameters, pixels, seeds, and the code that makes
it. What is made of anything else has another key, and `Key.differences` says in which parts.
"""

import ast
import dataclasses
import glob
import hashlib
import importlib.util
import os
import re
import shutil
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.metadata import packages_distributions, version
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from pelap.core import digests, files
from pelap.core.errors import DataError
from pelap.core.leftovers import sweep
from pelap.core.replacing import is_folder


@dataclasses.dataclass(frozen=True)
class Key:
    """What something kept is made of: the digest of every part, by the part's name."""

    parts: Mapping[str, str]

    @property
    def name(self) -> str:
        """Twelve hexadecimal digits, for file names: equal keys have equal names."""
        return digests.digest(dict(self.parts))

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Names of the parts that another key's `parts` have otherwise, or not at all."""
        names = [*self.parts, *(name for name in other if name not in self.parts)]
        return [name for name in names if self.parts.get(name) != other.get(name)]


def key(**parts: Any) -> Key:
    """The key of what is made of `parts`.

    Args:
        parts: By names that a reader of a message understands. Networks count with class, settings and
            weights; diffusers' schedulers with class, settings and noise levels; tokenizers with their
            vocabulary; tensors, sections of parameters and dataclasses with their values; a `Path` with what
            is in that file or folder; everything else has to be plain JSON.

    Raises:
        TypeError: A part is of a type whose value is not known here.
    """
    return Key({name: digests.digest(_plain(value)) for name, value in parts.items()})


def code_of(module: str) -> str:
    """Digest of the source of a module and of all that it imports, from other files too.

    Installed packages count with their version, Python and its library do not count, nor do comments,
    docstrings and layout. ``import_module(f"package.{name}")`` counts as all modules of that package; one
    that is imported under another name that is computed is not seen.

    Args:
        module: Dotted name, found as Python finds it, or in the working folder.
    """
    with working_folder_on_path():
        return digests.digest(_sources(module))


@contextmanager
def working_folder_on_path() -> Iterator[None]:
    """Modules of the user's are found: an installed command does not look in the working folder."""
    path = list(sys.path)
    sys.path.append(str(Path.cwd()))
    try:
        yield
    finally:
        sys.path[:] = path


class ResumeState:
    """Where the state of work is kept while it lasts; the same work, interrupted, goes on from there.

    Where an interrupted run of the work was of something else, that is said on the terminal.

    Args:
        parent: Folder of states. Neither DVC nor Snakemake may know it: both delete outputs before a rerun.
        label: What the work is.
        made_of: Everything that its result depends on.

    Attributes:
        folder: For this work's state; it need not exist.
    """

    def __init__(self, parent: Path, label: str, made_of: Key) -> None:
        self._parent = parent
        self._label = label
        self._note = parent / f"{label}.made-of.json"
        self.folder = parent / f"{label}-{made_of.name}"
        for place in (parent, self.folder):
            sweep(place)
        if not is_folder(self.folder) and self._folders():
            differing = ", ".join(made_of.differences(self._noted())) or "nothing that was noted"
            print(f"{label.strip('.')}: starts anew; the run that was interrupted has another {differing}")
        files.write_json(self._note, dict(made_of.parts))

    def drop(self) -> None:
        """Remove the state, and those of other parameters too: nobody will ask for them again."""
        for folder in self._folders():
            shutil.rmtree(folder, ignore_errors=True)
        self._note.unlink(missing_ok=True)
        if self._parent.is_dir() and not any(self._parent.iterdir()):
            self._parent.rmdir()

    def _folders(self) -> list[Path]:
        """Those of states of the same label, whatever they are made of."""
        name = re.compile(re.escape(self._label) + "-[0-9a-f]{12}")
        return [
            path for path in self._parent.glob(f"{glob.escape(self._label)}-*") if name.fullmatch(path.name)
        ]

    def _noted(self) -> dict[str, Any]:
        """What the last run that began this work was made of."""
        try:
            return files.read_mapping(self._note)
        except DataError:
            return {}


# --- the values of parts, and the code


def _plain(value: Any) -> Any:
    """A value as JSON that says all that matters of it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, Key):
        return dict(value.parts)
    if isinstance(value, Path):
        return _content(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "model_dump"):  # a section of parameters
        return _plain(value.model_dump(mode="json"))
    return _of_torch(value)


def _of_torch(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return digests.tensors_digest({"": value})
    settings = _settings(getattr(value, "config", {}))
    if isinstance(value, torch.nn.Module):
        return [type(value).__qualname__, settings, digests.tensors_digest(value.state_dict())]
    if hasattr(value, "set_timesteps"):  # a scheduler, whose noise levels may have been set by hand
        levels = getattr(value, "alphas_cumprod", None)
        return [type(value).__qualname__, settings, None if levels is None else _plain(levels)]
    if hasattr(value, "get_vocab"):  # a tokenizer
        special = value.special_tokens_map
        return [type(value).__qualname__, value.get_vocab(), value.model_max_length, str(special)]
    raise TypeError(f"{type(value).__name__} has no value that a key could be made of")


def _settings(config: Any) -> dict[str, str]:
    """Of diffusers a mapping, of transformers an object; where it came from does not count."""
    config = config.to_dict() if hasattr(config, "to_dict") else config
    return {name: str(setting) for name, setting in config.items() if not name.startswith("_")}


def _content(path: Path) -> Any:
    if path.is_dir():
        return {file.relative_to(path).as_posix(): digests.sha256(file) for file in _files_below(path)}
    return digests.sha256(path) if path.is_file() else None


def _files_below(folder: Path) -> Iterator[Path]:
    """All of them, behind links to folders too."""
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link around itself
            folders.clear()
            continue
        seen.add(real)
        yield from (path for path in (Path(parent, name) for name in sorted(names)) if path.is_file())


def _sources(module: str) -> dict[str, str]:
    """What a module and all that it imports are, by their names; of a package its version."""
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        top = name.partition(".")[0]
        if name in found or top in sys.stdlib_module_names:
            continue
        file = _own_file(name)
        if file is None:
            packages = sorted(set(_distributions().get(top, [])))
            found[name] = ", ".join(f"{package} {version(package)}" for package in packages)
            continue
        stamp = file.stat()
        found[name], tree = _parsed(file, stamp.st_mtime_ns, stamp.st_size)
        waiting += _imports(tree, name, file)
    return found


@cache
def _parsed(file: Path, modified_ns: int, size: int) -> tuple[str, ast.Module]:
    """Digest and tree of a source file, read anew when it was edited since."""
    tree = _what_runs(ast.parse(file.read_bytes()))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), tree


def _own_file(module: str) -> Path | None:
    """Source of a module that belongs to no installed package; None for the others."""
    if _is_installed(module.partition(".")[0]):
        return None  # without looking inside, which would import it
    spec = _spec(module)
    origin = spec.origin if spec else getattr(sys.modules.get(module), "__file__", None)
    return Path(origin).resolve() if origin is not None and origin.endswith(".py") else None


def _is_installed(package: str) -> bool:
    """Whether a package at the top is none of the user's, or none at all; a mere folder may be the user's."""
    spec = _spec(package)
    if spec is None:
        return not hasattr(sys.modules.get(package), "__file__")
    places = [spec.origin] if spec.has_location else list(spec.submodule_search_locations or [])
    return not places or any(
        Path(str(place)).resolve().is_relative_to(installed) for place in places for installed in _installed()
    )


def _spec(module: str) -> ModuleSpec | None:
    loaded = sys.modules.get(module)
    try:
        return importlib.util.find_spec(module) if loaded is None else loaded.__spec__
    except (ImportError, ValueError):
        return None


@cache
def _installed() -> tuple[Path, ...]:
    """Where installed packages are."""
    places = [*map(sysconfig.get_path, ("stdlib", "purelib", "platlib")), *site.getsitepackages()]
    return tuple({Path(place).resolve() for place in places})


_distributions = cache(packages_distributions)


def _imports(tree: ast.AST, module: str, file: Path) -> Iterator[str]:
    """Names of what a module may import, anywhere in it."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name for alias in node.names for name in _with_parents(alias.name))
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from _with_parents(base)
            names = (f"{base}.{alias.name}" for alias in node.names)
            # What is imported may be a module of the package, or something in it.
            inside = not _is_installed(base.partition(".")[0])
            yield from (name for name in names if inside and _own_file(name) is not None)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "import_module":
            for parent in re.findall(r"^f'([\w.]+)\.\{", ast.unparse(node.args[0])):
                places = getattr(_spec(parent), "submodule_search_locations", None) or []
                yield from (f"{parent}.{found.name}" for found in iter_modules(places))


def _with_parents(name: str) -> Iterator[str]:
    """``a.b.c``, and the packages that importing it runs."""
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _what_runs(tree: ast.Module) -> ast.Module:
    """The tree without docstrings, and without what is imported for type checkers alone."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        first = body[0].value if body and isinstance(body[0], ast.Expr) else None
        says = isinstance(first, ast.Constant) and isinstance(first.value, str)
        node.body = [  # type: ignore[attr-defined]
            each
            for each in (body[1:] if says else body)
            if not (isinstance(each, ast.If) and ast.unparse(each.test) == "TYPE_CHECKING")
        ]
    return tree
