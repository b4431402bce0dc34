"""Reading parameters: the defaults, what a file changes of them, what the command line changes of that."""

import copy
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pelap.config import (
    ClassifierParams,
    LightUNetParams,
    NoConditioning,
    Params,
    PelapVAEParams,
    QualityParams,
    Section,
    TextConditioning,
    UNet2DConditionParams,
    UNet2DParams,
)
from pelap.config.pruning import TARGETS
from pelap.config.rules import disagreements
from pelap.config.upgrade import Outdated, outdated
from pelap.config.yaml import WITH_PARAMS, parse_yaml, read_yaml
from pelap.core.errors import ConfigError

# The keys of `params.yaml` that each stage reads; `dvc.yaml` and the sweeps list the same ones.
STAGE_KEYS: dict[str, tuple[str, ...]] = {
    "download": ("dataset", "seed", "download"),
    "train": ("dataset", "seed", "lambda", "vae", "unet", "conditioning", "diffusion", "train", "variants"),
    "collapse": ("dataset", "seed", "variants", "collapse"),
    "score": ("seed", "score"),
    "prune": ("prune",),
    "distill": ("dataset", "seed", "distill"),
    "evaluate": ("dataset", "seed", "variants", "evaluate"),
    "report": ("dataset", "seed", "variants"),
}
# Those that a stage reads for a diffusers pipeline, which brings a model and settings of its own.
PIPELINE_KEYS: dict[str, tuple[str, ...]] = {
    "score": ("seed", "score"),
    "prune": ("seed", "score", "prune"),
    "distill": ("dataset", "seed", "distill"),
    "evaluate": ("dataset", "seed", "evaluate"),
}
# Where keys are names that a user gives: a file that has such a table has all of it.
TABLES = ("variants", "prune.methods", "distill.students", "download.folders")
LONGEST_SHOWN = 100  # characters of a wrong value that an error repeats
USUAL = Path("params.yaml")  # in the working folder, where no other file is given
EXTENDS = "extends"  # key of a parameter file that says the differences from another one, by its path from it


def _plain(section: Section) -> dict[str, Any]:
    return section.model_dump(mode="json", by_alias=True)


def _table(entries: Mapping[str, Section]) -> dict[str, Any]:
    return {name: entry.model_dump(mode="json", exclude_unset=True) for name, entry in entries.items()}


DEFAULTS = _plain(Params())  # of every key, as a file would have them: one amount needs no list
DEFAULTS["variants"] = _table(Params().variants)
DEFAULTS["prune"] |= {"time_reduction": 0.25, "methods": _table(Params().prune.methods)}
DEFAULTS["distill"]["students"] = _table(Params().distill.students)
_UNETS = (LightUNetParams(), UNet2DParams(), UNet2DConditionParams())
# Defaults of sections that say by `kind` which keys they have, and of sections that are null by default.
KINDS: dict[str, Any] = {"autoencoder_kl": {}}
KINDS |= {it.kind: _plain(it) for it in (PelapVAEParams(), *_UNETS, NoConditioning(), TextConditioning())}
OPTIONAL = {"distill.quality": _plain(QualityParams()), "evaluate.classifier": _plain(ClassifierParams())}


def merge(base: Any, over: Any, path: str = "", inside: str = "") -> Any:
    """What is given laid over what there is. Sections merge; all else is replaced.

    A table of `TABLES` and a section of another `kind` are replaced as a whole, and a target of `prune` puts
    the others aside.

    Args:
        base: A value as parsed.
        over: What is given instead.
        path: Dotted key of both.
        inside: Dotted key of the one value that `over` is about; a table around it is kept.
    """
    if not isinstance(over, Mapping) or (path in TABLES and not inside.startswith(f"{path}.")):
        return over
    kind = str(over.get("kind"))
    if kind in KINDS and not (isinstance(base, Mapping) and base.get("kind") == kind):
        base = KINDS[kind]
    elif base is None:
        base = OPTIONAL.get(path)
    if not isinstance(base, Mapping):
        return over
    if path == "prune" and any(over.get(target) is not None for target in TARGETS):
        base = {**base, **dict.fromkeys(TARGETS)}
    merged = {
        key: merge(base.get(key), value, f"{path}.{key}".lstrip("."), inside) for key, value in over.items()
    }
    return {**base, **merged}


def with_overrides(raw: Any, overrides: Mapping[str, Any]) -> Any:
    """Parameters with the values of some dotted keys replaced."""
    for key, value in overrides.items():
        for name in reversed(key.split(".")):
            value = {name: value}
        raw = merge(raw, value, inside=key)
    return raw


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` of the command line by dotted key, values as in YAML; else a `ConfigError`."""
    overrides = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"--set {word}: expected KEY=VALUE, as in --set train.epochs=3")
        overrides[key] = parse_yaml(text, f"--set {key}")
    return overrides


def read_params(
    path: Path, remedy: str = WITH_PARAMS, keys: Collection[str] = tuple(DEFAULTS)
) -> dict[str, Any]:
    """What a parameter file says, over the one that it extends; sections that it leaves out are not there.

    A dotted key changes one value, an entry of a table too.

    Args:
        path: The file.
        remedy: What to do where there is none.
        keys: Sections in which names of version 0.1 are refused.

    Raises:
        ConfigError: A file is missing, is no mapping, extends itself, or has names of version 0.1.
    """
    return _layers(path, (), remedy, keys)


def _layers(path: Path, above: tuple[Path, ...], remedy: str, keys: Collection[str]) -> dict[str, Any]:
    raw = dict(_mapping(read_yaml(path, remedy), str(path)))
    if old := outdated({key: value for key, value in raw.items() if key.partition(".")[0] in keys}):
        raise ConfigError(
            f"{path}: {_names_of_0_1(old)}; `pelap params {path} --upgrade --out {path}` writes it with "
            "those of today"
        )
    dotted = {key: raw.pop(key) for key in list(raw) if "." in key}
    base = {key: DEFAULTS[key] for key in DEFAULTS.keys() & {key.partition(".")[0] for key in dotted}}
    other = raw.pop(EXTENDS, None)
    if other is not None:
        if not isinstance(other, str) or "\0" in other:
            raise ConfigError(f"{path}: {EXTENDS}: expected the path of a parameter file (it is {other!r})")
        below, correct = path.parent / other, f"correct {EXTENDS} of {path}"
        if below.resolve() in (path.resolve(), *above):
            raise ConfigError(f"{path}: {EXTENDS}: {other} extends this file; drop one of the two")
        base |= _layers(below, (*above, path.resolve()), correct, keys)
    return dict(with_overrides(merge(base, raw), dotted))


def resolved(
    path: Path, overrides: Mapping[str, Any] | None = None, remedy: str = WITH_PARAMS
) -> dict[str, Any]:
    """A whole parameter mapping, unchecked: defaults < what the file extends < file < overrides.

    Raises:
        ConfigError: See `read_params`.
    """
    whole = merge(DEFAULTS, read_params(path, remedy))
    return copy.deepcopy(dict(with_overrides(whole, overrides or {})))


def load_params(path: Path, stage: str | None = None, overrides: Mapping[str, Any] | None = None) -> Params:
    """Read and check a parameter file; what it leaves out has its default.

    Args:
        path: YAML file.
        stage: Only its keys get defaults; whatever else is there is checked as well.
        overrides: Values by dotted key that stand above the file's.

    Raises:
        ConfigError: One line that names every offending key.
    """
    return parse_params(read_params(path), str(path), stage, overrides=overrides)


def load_pipeline_params(path: Path | None, stage: str, overrides: Mapping[str, Any] | None = None) -> Params:
    """`load_params` of what a stage needs for a diffusers pipeline; nothing else is looked at.

    Args:
        path: YAML file; None: the defaults alone.
        stage: Of `PIPELINE_KEYS`.
        overrides: Values by dotted key that stand above the file's.

    Raises:
        ConfigError: One line that names every offending key.
    """
    keys = PIPELINE_KEYS[stage]
    said = {} if path is None else read_params(path, keys=keys)
    raw = {key: value for key, value in said.items() if key in keys}
    source = "the defaults" if path is None else str(path)
    return parse_params(raw, source, demanded=keys, overrides=overrides)


def parse_params(
    raw: Any,
    source: str,
    stage: str | None = None,
    demanded: Collection[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Params:
    """Check parameters that are already parsed; see `load_params`.

    Args:
        raw: As parsed.
        source: Names them in errors.
        stage: Give this stage's keys a default.
        demanded: Give these keys a default; without either all have one.
        overrides: Values by dotted key that stand above them.
    """
    raw, overrides = _mapping(raw, source), overrides or {}
    if overrides:
        source = f"{source} with --set"
    if demanded is None:
        demanded = STAGE_KEYS[stage] if stage else list(DEFAULTS)
    wanted = {*demanded, *raw, *(key.partition(".")[0] for key in overrides)}
    base = {key: value for key, value in DEFAULTS.items() if key in wanted}
    if old := outdated(with_overrides({}, overrides)):
        raise ConfigError(f"--set: {_names_of_0_1(old)}; give those of today")
    whole = with_overrides(merge(base, raw), overrides)
    if old := outdated(whole):
        raise ConfigError(f"{source}: {_names_of_0_1(old)}; give those of today")
    try:
        params = Params(**whole)
    except ValidationError as error:
        raise ConfigError(f"{source}: {explain(error)}") from None
    fields = {name for name in Params.model_fields if name.rstrip("_") in wanted}
    for name in Params.model_fields.keys() - fields:  # what a stage has not asked for it must not read
        del vars(params)[name]
    if problems := disagreements(params, fields):
        raise ConfigError(f"{source}: {'; '.join(problems)}")
    return params


def _names_of_0_1(old: Sequence[Outdated]) -> str:
    return f"names of version 0.1: {'; '.join(map(str, old))}"


def _mapping(raw: Any, source: str) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping) or not all(isinstance(key, str) for key in raw):
        raise ConfigError(f"{source}: expected a mapping of parameters; start from the params.yaml of PeLAP")
    return raw


def select_keys(raw: Mapping[str, Any], stage: str, variant: str | None = None) -> dict[str, Any]:
    """The part of a raw parameter mapping that a stage reads.

    Training of one `variant` reads that one alone, and `lambda` only where it is used.
    """
    chosen = {key: raw[key] for key in STAGE_KEYS[stage]}
    if variant is not None:
        fields = raw["variants"][variant]
        chosen["variants"] = {variant: fields}
        if fields["sparsity_key"] != "lambda":
            chosen["lambda"] = 0.0
    return chosen


def explain(error: ValidationError) -> str:
    """Every offending key with its fault, on one line."""
    found: dict[tuple[int | str, ...], list[Mapping[str, Any]]] = {}
    for problem in error.errors():
        place = problem["loc"]
        if problem["type"] == "literal_error" and str(place[-1]).startswith("literal["):
            place = place[:-1]  # the last part names a branch of a union, not a key
        found.setdefault(place, []).append(problem)
    # Of a list with a wrong entry pydantic also says that it is too short without that.
    inner = {place[:length] for place in found for length in range(len(place))}
    return "; ".join(
        f"{'.'.join(map(str, place)) or 'parameters'}: {_fault(problems)}"
        for place, problems in found.items()
        if place not in inner
    )


def _fault(problems: Sequence[Mapping[str, Any]]) -> str:
    """What is wrong with one key; several problems are branches of a union that each want other words."""
    first = problems[0]
    if first["type"] == "extra_forbidden":
        return "unknown key; correct its spelling or remove it"
    if first["type"] == "missing":
        return "missing; add it"
    message = first["msg"].removeprefix("Value error, ")
    message = f"{message[:1].lower()}{message[1:]}"
    if len(problems) > 1 and all(each["type"] == "literal_error" for each in problems):
        words = [each["ctx"]["expected"].replace(" or ", ", ") for each in problems]
        message = f"input should be one of {', '.join(words)}"
    return message if isinstance(first["input"], Mapping) else f"{message} (it is {_shown(first['input'])})"


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes out no number of thousands of digits
        return "a huge number"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
