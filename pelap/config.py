"""Reading `params.yaml`: every number of a run is checked before anything else happens."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError, create_model

from pelap.errors import ConfigError
from pelap.params import Params, Section

TORCHVISION_DATASETS = ("cifar10", "cifar100", "svhn")
BUILTIN_DATASETS = ("photos", *TORCHVISION_DATASETS)
STAGES = ("download", "train", "collapse", "score", "prune", "distill", "evaluate", "report")
RESERVED_MODELS = ("pruned", "distilled", "real")
"""Row names of the evaluation that no variant may take."""

STAGE_KEYS: dict[str, tuple[str, ...]] = {
    "download": ("dataset", "seed", "download"),
    "train": ("dataset", "seed", "lambda", "vae", "unet", "diffusion", "train", "variants"),
    "collapse": ("dataset", "seed", "variants", "collapse"),
    "score": ("seed", "score"),
    "prune": ("seed", "prune"),
    "distill": ("dataset", "seed", "distill"),
    "evaluate": ("dataset", "seed", "variants", "evaluate"),
    "report": ("dataset", "seed", "variants"),
}
"""The keys of `params.yaml` that each stage reads; `dvc.yaml` and the sweeps list the same ones."""


def read_yaml(path: Path) -> Any:
    """Parse YAML 1.2 (``1e-3`` is a number, a key given twice is refused).

    Raises:
        ConfigError: The file is missing or is not YAML.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give a parameter file with --params") from None
    except (YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: not valid YAML ({reason})") from None


def load_params(path: Path, stage: str | None = None) -> Params:
    """Read and check a parameter file.

    Args:
        path: YAML file.
        stage: Demand only this stage's keys; whatever else is there is checked as well.

    Raises:
        ConfigError: One line that names every offending key.
    """
    return parse_params(read_yaml(path), str(path), stage)


def parse_params(raw: Any, source: str, stage: str | None = None) -> Params:
    """Check parameters that are already parsed; see `load_params`. `source` names them in errors."""
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{source}: expected a mapping of parameters")
    demanded = {key_of(name) for name in Params.model_fields} if stage is None else set(STAGE_KEYS[stage])
    chosen = {
        name: (field.annotation, field)
        for name, field in Params.model_fields.items()
        if key_of(name) in demanded | set(raw)
    }
    try:
        checked = create_model("Params", __base__=Section, **chosen)(**raw)  # type: ignore[call-overload]
    except ValidationError as error:
        raise ConfigError(f"{source}: {_explain(error)}") from None
    fields = {name: getattr(checked, name) for name in chosen}
    params = Params.model_construct(**fields)
    problems = _disagreements(params, frozenset(fields))
    if problems:
        raise ConfigError(f"{source}: {'; '.join(problems)}")
    return params


def key_of(field_name: str) -> str:
    """The key of `params.yaml` behind a field (`lambda` is a reserved word of Python)."""
    return field_name.rstrip("_")


def select_keys(raw: Mapping[str, Any], stage: str, variant: str | None = None) -> dict[str, Any]:
    """The part of a raw parameter mapping that a stage reads.

    Args:
        raw: All parameters, as parsed from YAML.
        stage: One of `STAGES`.
        variant: For training, keep this variant alone, and `lambda` only where it is used.
    """
    chosen = {key: raw[key] for key in STAGE_KEYS[stage]}
    if variant is not None:
        fields = raw["variants"][variant]
        chosen["variants"] = {variant: fields}
        if fields["strength"] != "lambda":
            chosen["lambda"] = 0.0
    return chosen


def _explain(error: ValidationError) -> str:
    parts = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or "parameters"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "unknown key; correct its spelling or remove it"
        elif problem["type"] == "missing":
            message = "missing; add it"
        else:
            message = f"{message[:1].lower()}{message[1:]}"
            if not isinstance(problem["input"], Mapping):
                message += f" (it is {problem['input']!r})"
        parts.append(f"{where}: {message}")
    return "; ".join(parts)


def _disagreements(params: Params, given: frozenset[str]) -> list[str]:
    """Rules that span sections, applied to those that are there."""
    problems = []
    if {"dataset", "download"} <= given:
        known = (*BUILTIN_DATASETS, *params.download.folders)
        if params.dataset not in known:
            problems.append(
                f"dataset: {params.dataset!r} is unknown; use one of {', '.join(known)}, "
                "or add its path to download.folders"
            )
    if "variants" in given:
        problems += [
            f"variants.{name}: is the name of a row of the evaluation; choose another"
            for name in params.variants
            if name in RESERVED_MODELS
        ]
    if {"score", "variants"} <= given and params.score.variant not in params.variants:
        problems.append(
            f"score.variant: {params.score.variant!r} is not a variant; use one of "
            f"{', '.join(params.variants)}"
        )
    if "diffusion" in given:
        total = params.diffusion.num_train_timesteps
        samplers = {"train": "preview", "score": "sampler", "evaluate": "sampler"}
        for section, key in samplers.items():
            if section in given:
                steps = getattr(getattr(params, section), key).steps
                if total % steps:
                    problems.append(
                        f"{section}.{key}.steps: {steps} does not divide "
                        f"diffusion.num_train_timesteps ({total})"
                    )
    return problems
