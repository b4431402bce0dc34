"""Reading `params.yaml`: every number of a run is checked before anything else happens."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError, create_model

from pelap.config import (
    AutoencoderKLParams,
    BlockUNetParams,
    CheapCriterion,
    Params,
    PelapVAEParams,
    Section,
    TextConditioning,
    UNet2DConditionParams,
    UNetParams,
    VAEParams,
    VariantParams,
)
from pelap.core.errors import ConfigError

TORCHVISION_DATASETS = ("cifar10", "cifar100", "svhn")
BUILTIN_DATASETS = ("photos", "sounds", *TORCHVISION_DATASETS)
STAGES = ("download", "train", "collapse", "score", "prune", "distill", "evaluate", "report")
REAL_ROW = "real"
"""Row of real pictures in the evaluation; no model may take its name."""
PRUNED_ROWS = (REAL_ROW, "pruned")
"""What no student may be called; `pruned-<plan>` are the networks before any fine-tuning."""

# Repeated from the modules that they belong to: those import torch, a check must not. Tests compare.
NUM_PHOTOGRAPHS, NUM_RECIPES = 8, 8

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
"""The keys of `params.yaml` that each stage reads; `dvc.yaml` and the sweeps list the same ones."""

PIPELINE_KEYS: dict[str, tuple[str, ...]] = {
    "score": ("seed", "score"),
    "prune": ("seed", "score", "prune"),
    "distill": ("dataset", "seed", "distill"),
    "evaluate": ("dataset", "seed", "evaluate"),
}
"""The keys that a stage reads for a diffusers pipeline, which brings a model and settings of its own."""

PIPELINE_UNUSED: dict[str, tuple[str, ...]] = {
    "score": ("score.variant", "score.sampler.kind"),
    "prune": ("score.variant", "score.sampler.kind", "score.criteria"),
    "distill": ("distill.quality",),
    "evaluate": (
        "evaluate.models",
        "evaluate.num_reconstructions",
        "evaluate.sampler.kind",
        "evaluate.step_counts",
        "evaluate.deepcache_intervals",
    ),
}
"""What of these sections is for models of this project alone: a pipeline is one network, with a scheduler."""


def read_yaml(path: Path) -> Any:
    """Parse YAML 1.2 (``1e-3`` is a number, a key given twice is refused).

    Raises:
        ConfigError: The file is missing or is not YAML.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; give a parameter file with --params")
    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give a parameter file with --params") from None
    except (YAMLError, ValueError) as error:
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


def load_pipeline_params(path: Path, stage: str) -> Params:
    """Read and check what a stage needs for a diffusers pipeline; whatever else is there is not looked at.

    Raises:
        ConfigError: One line that names every offending key.
    """
    raw, keys = read_yaml(path), PIPELINE_KEYS[stage]
    if isinstance(raw, Mapping):
        missing = [key for key in keys if key not in raw]
        if missing:
            raise ConfigError(f"{path}: lacks {', '.join(missing)}; start from the params.yaml of PeLAP")
        raw = {key: raw[key] for key in keys}
    return parse_params(raw, str(path), demanded=keys)


def parse_params(
    raw: Any, source: str, stage: str | None = None, demanded: Collection[str] | None = None
) -> Params:
    """Check parameters that are already parsed; see `load_params`.

    Args:
        raw: As parsed.
        source: Names them in errors.
        stage: Demand this stage's keys.
        demanded: Demand these keys; without either all are.
    """
    if not isinstance(raw, Mapping) or not all(isinstance(key, str) for key in raw):
        raise ConfigError(f"{source}: expected a mapping of parameters; start from the params.yaml of PeLAP")
    if demanded is None:
        demanded = STAGE_KEYS[stage] if stage else [key_of(name) for name in Params.model_fields]
    chosen = {
        name: (field.annotation, field)
        for name, field in Params.model_fields.items()
        if key_of(name) in {*demanded, *raw}
    }
    try:
        checked = create_model("Params", __base__=Section, **chosen)(**raw)  # type: ignore[call-overload]
    except ValidationError as error:
        raise ConfigError(f"{source}: {explain(error)}") from None
    fields = {name: getattr(checked, name) for name in chosen}
    params = Params.model_construct(**fields)
    problems = _disagreements(params, frozenset(fields))
    if problems:
        raise ConfigError(f"{source}: {'; '.join(problems)}")
    return params


def unused_by_pipeline(stage: str, params: Params, scored: bool = False, planned: bool = False) -> list[str]:
    """Keys whose values change nothing of what a stage does for a diffusers pipeline, for the user to know.

    Args:
        stage: One of `PIPELINE_KEYS`.
        params: Of which what is null, empty or false asks for nothing.
        scored: Whether `prune` finds the protocol of the scores, which says how they were made.
        planned: Whether `prune` is given a plan.
    """
    keys = list(PIPELINE_UNUSED[stage])
    if stage == "prune":
        rescores = not planned and any(method.iterative_step for method in params.prune.methods.values())
        keys += [] if rescores else ["score.early_stop", "score.num_resamples"]
        keys = (["seed", "score"] if scored else keys) + _unused_by_pruning(params, planned)
    if stage == "distill":
        keys += [f"distill.students.{name}.skip" for name in params.distill.students]
    if stage == "evaluate":
        keys += _unused_by_figures(params)
        keys += [] if "classifier" in params.evaluate.extractors else ["evaluate.classifier"]
    return [key for key in keys if _asks(_at(params, key))]


def unused_by_run(stage: str, params: Params, planned: bool = False, variant: str | None = None) -> list[str]:
    """The same of a stage of a run; see `unused_by_pipeline`.

    Args:
        stage: One of `STAGES`.
        params: At least its keys.
        planned: Whether `prune` is given a plan.
        variant: The only one that `train` is to train.
    """
    keys: list[str] = _unused_by_pruning(params, planned) if stage == "prune" else []
    if stage == "train":
        trained = [each for name, each in params.variants.items() if variant in (None, name)]
        keys += _unused_by_training(params, trained) if trained else []
    if stage == "evaluate":
        keys += _unused_by_figures(params)
        if params.evaluate.models == "variants":
            keys += ["evaluate.step_counts", "evaluate.deepcache_intervals", "evaluate.lpips_weights"]
    return [key for key in keys if _asks(_at(params, key))]


def _unused_by_pruning(params: Params, planned: bool) -> list[str]:
    if planned:
        return ["prune"]
    return (
        [] if params.prune.target == "time_reduction" else ["prune.max_measurements"]
    )  # of what a clock says


def _unused_by_training(params: Params, variants: Sequence[VariantParams]) -> list[str]:
    used = {
        "lambda": not params.lambda_ or any(each.sparsity_key == "lambda" for each in variants),
        "vae": any(each.vae is None for each in variants),
        "unet": any(each.unet is None for each in variants),
        "train.vae_epochs": any(each.vae_training == "two_stage" for each in variants),
        "train.parallel_variants": params.train.parallel_variants == 1 or len(variants) > 1,
    }
    return [key for key, is_used in used.items() if not is_used]


TIMED = ("evaluate.latency_compiled", "evaluate.latency_batch_sizes", "evaluate.sampler_repeats")


def _unused_by_figures(params: Params) -> list[str]:
    evaluate = params.evaluate
    inception = any(name.startswith("inception") for name in evaluate.extractors)
    keys = [] if inception else ["evaluate.inception_weights"]
    return keys if evaluate.latency_repeats else [*keys, *TIMED]


def _at(params: Params, key: str) -> Any:
    value: Any = params
    for name in key.split("."):
        field = {"lambda": "lambda_"}.get(name, name)
        value = value[name] if isinstance(value, Mapping) else getattr(value, field)
    return value


def _asks(value: Any) -> bool:
    """Whether a value asks for something: null, false and what is empty do not."""
    return value is not None and value is not False and value != ()


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
        if fields["sparsity_key"] != "lambda":
            chosen["lambda"] = 0.0
    return chosen


def explain(error: ValidationError) -> str:
    """Every offending key with its fault, on one line."""
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
    """Rules that span sections, each applied where its sections are there."""
    rules = {
        _dataset_exists: {"dataset", "download"},
        _folders_have_names_of_their_own: {"download"},
        _made_items_suffice: {"dataset", "download", "evaluate"},
        _variants_have_names_of_their_own: {"variants"},
        _students_have_names_of_their_own: {"distill"},
        _rows_have_names_of_their_own: {"variants", "prune", "distill"},
        _scored_variant_exists: {"score", "variants"},
        _criteria_are_there: {"score", "prune"},
        _masks_can_learn: {"lambda_", "variants"},
        _schedules_end_in_time: {"train", "variants"},
        _autoencoders_train_as_told: {"vae", "variants"},
        _latents_fit: {"download", "unet", "vae", "variants"},
        _prompts_have_a_way_in: {"conditioning", "unet", "variants"},
        _sounds_keep_their_direction: {"dataset"},
        _sampler_steps_divide: {"diffusion", "train", "score", "distill", "evaluate"},
    }
    return [problem for rule, needed in rules.items() if needed <= given for problem in rule(params)]


def _dataset_exists(params: Params) -> list[str]:
    known = (*BUILTIN_DATASETS, *params.download.folders)
    if params.dataset in known:
        return []
    return [
        f"dataset: {params.dataset!r} is unknown; use one of {', '.join(known)}, "
        "or add its path to download.folders"
    ]


def _folders_have_names_of_their_own(params: Params) -> list[str]:
    taken = [name for name in params.download.folders if name in BUILTIN_DATASETS]
    return [f"download.folders.{name}: is the name of a built-in data set; choose another" for name in taken]


def _made_items_suffice(params: Params) -> list[str]:
    download = params.download
    made = {
        "photos": (NUM_PHOTOGRAPHS * download.photos.train_per_photo, "photos.train_per_photo"),
        "sounds": (NUM_RECIPES * download.sounds.train_per_class, "sounds.train_per_class"),
    }
    if params.dataset not in made:
        return []
    there, key = made[params.dataset]
    learner = params.evaluate.classifier
    needs = {
        "evaluate: num_reference + num_images": params.evaluate.num_reference + params.evaluate.num_images,
        "evaluate.classifier.batch_size": 0 if learner is None else learner.batch_size,
    }
    return [
        f"{what} is {wanted}, but with download.{key} there are {there} train items of {params.dataset}"
        for what, wanted in needs.items()
        if wanted > there
    ]


def _variants_have_names_of_their_own(params: Params) -> list[str]:
    return [_row_taken(f"variants.{name}") for name in params.variants if name == REAL_ROW]


def _students_have_names_of_their_own(params: Params) -> list[str]:
    return [_row_taken(f"distill.students.{name}") for name in params.distill.students if name in PRUNED_ROWS]


def _rows_have_names_of_their_own(params: Params) -> list[str]:
    plans, students = params.prune.plans, params.distill.students
    made = [
        *(f"pruned-{plan}" for plan in plans),
        *(name for name, student in students.items() if student.start == "dense"),
        *(f"{name}-{plan}" for name, it in students.items() if it.start != "dense" for plan in plans),
    ]
    twice = [f"rows: two would be called {row}; rename a student or a method" for row in _twice(made)]
    return twice + [_row_taken(f"variants.{name}") for name in params.variants if name in made]


def _twice(names: list[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def _row_taken(key: str) -> str:
    return f"{key}: is the name of another row of the evaluation; choose another"


def _scored_variant_exists(params: Params) -> list[str]:
    if params.score.variant in params.variants:
        return []
    return [
        f"score.variant: {params.score.variant!r} is not a variant; use one of {', '.join(params.variants)}"
    ]


def _criteria_are_there(params: Params) -> list[str]:
    return [
        f"prune.methods.{name}.criterion: {method.criterion} is not among score.criteria; add it there"
        for name, method in params.prune.methods.items()
        if method.criterion in get_args(CheapCriterion) and method.criterion not in params.score.criteria
    ]


def _masks_can_learn(params: Params) -> list[str]:
    return [
        f"variants.{name}: lambda is 0 and no other loss trains the mask; name one in mask_losses that "
        "sees it"
        for name, variant in params.variants.items()
        if variant.gate != "none" and not variant.mask_learns(params.lambda_)
    ]


def _schedules_end_in_time(params: Params) -> list[str]:
    problems, epochs = [], params.train.epochs
    for name, variant in params.variants.items():
        if variant.start_epoch >= epochs:
            problems.append(
                f"variants.{name}.start_epoch: {variant.start_epoch} leaves none of the {epochs} "
                "train.epochs to the mask"
            )
        elif variant.start_epoch + variant.warmup_epochs > epochs:
            problems.append(
                f"variants.{name}.warmup_epochs: ends after start_epoch + warmup_epochs = "
                f"{variant.start_epoch + variant.warmup_epochs} epochs, training after {epochs}"
            )
    return problems


def parts_of(variant: VariantParams, vae: VAEParams, unet: UNetParams) -> tuple[VAEParams, UNetParams]:
    """The autoencoder and UNet of a variant: its own, or those of the run."""
    return variant.vae or vae, variant.unet or unet


def _autoencoders_train_as_told(params: Params) -> list[str]:
    problems = []
    for name, variant in params.variants.items():
        pretrained = isinstance(variant.vae or params.vae, AutoencoderKLParams)
        if pretrained and variant.vae_training != "frozen":
            problems.append(
                f"variants.{name}: vae_training {variant.vae_training}, but a pretrained autoencoder_kl "
                "stays as it is; use frozen"
            )
        if not pretrained and variant.vae_training == "frozen":
            problems.append(
                f"variants.{name}: vae_training frozen needs a pretrained vae (kind autoencoder_kl); use "
                "first or joint"
            )
    return problems


def _latents_fit(params: Params) -> list[str]:
    problems = []
    for name, variant in params.variants.items():
        vae, unet = parts_of(variant, params.vae, params.unet)
        if isinstance(vae, PelapVAEParams):  # a pretrained one is looked at where it is read
            size, channels = params.download.image_size, vae.latent_channels
            problem = latent_problem(variant, unet, size, vae.downsampling, channels)
            problems += [f"variants.{name}: {problem}"] if problem else []
    return problems


def latent_problem(
    variant: VariantParams, unet: UNetParams, image_size: int, downsampling: int, channels: int
) -> str | None:
    """Why latents of this size suit neither mask nor UNet; None where they do.

    Args:
        variant: With its mask.
        unet: What denoises the latents.
        image_size: Side of a picture in pixels.
        downsampling: A picture's side over its latent's.
        channels: Of a latent.
    """
    if variant.k is not None and variant.k > channels:
        return f"k is {variant.k}, but there are {channels} latent channels"
    if image_size % downsampling:
        return f"pictures of {image_size} pixels are no multiple of the autoencoder's factor {downsampling}"
    side = image_size // downsampling
    halvings = len(unet.channels) - 1 if isinstance(unet, BlockUNetParams) else 1
    if side % 2**halvings == 0:
        return None
    return (
        f"the UNet halves latents {halvings} times, but those of {image_size} pixels have a side of {side}; "
        "use fewer levels or another size"
    )


def _sounds_keep_their_direction(params: Params) -> list[str]:
    # Of a folder's data set it is known only where that is read.
    return backwards(params) if params.dataset == "sounds" else []


def backwards(params: Params) -> list[str]:
    """What would turn sounds backwards, of the sections that are there."""
    sections = {name: getattr(params, name, None) for name in ("train", "distill")}
    sections["evaluate.classifier"] = getattr(getattr(params, "evaluate", None), "classifier", None)
    return [
        f"{name}.horizontal_flip: would turn sounds backwards; set it to false"
        for name, section in sections.items()
        if section is not None and section.horizontal_flip
    ]


def _prompts_have_a_way_in(params: Params) -> list[str]:
    told, problems = isinstance(params.conditioning, TextConditioning), []
    for name, variant in params.variants.items():
        hears = isinstance(variant.unet or params.unet, UNet2DConditionParams)
        if told and not hears:
            problems.append(
                f"variants.{name}: its UNet takes no prompts; use unet.kind unet2d_condition, or "
                "conditioning: {kind: none}"
            )
        if hears and not told:
            problems.append(
                f"variants.{name}: unet2d_condition needs prompts; use conditioning.kind text, or unet.kind "
                "unet2d"
            )
    return problems


def _sampler_steps_divide(params: Params) -> list[str]:
    total = params.diffusion.num_train_timesteps
    steps = {
        "train.preview.steps": params.train.preview.steps,
        "score.sampler.steps": params.score.sampler.steps,
        "evaluate.sampler.steps": params.evaluate.sampler.steps,
    }
    if params.distill.quality is not None:
        steps["distill.quality.sampler.steps"] = params.distill.quality.sampler.steps
    steps |= {f"evaluate.step_counts.{i}": num for i, num in enumerate(params.evaluate.step_counts)}
    return [
        f"{key}: {num} does not divide diffusion.num_train_timesteps ({total})"
        for key, num in steps.items()
        if total % num
    ]
