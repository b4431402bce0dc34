"""Rules that span sections, and which keys change nothing of what a stage does."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

from pelap.config import (
    AutoencoderKLParams,
    BlockUNetParams,
    CheapCriterion,
    Params,
    PelapVAEParams,
    TextConditioning,
    UNet2DConditionParams,
    UNetParams,
    VAEParams,
    VariantParams,
)
from pelap.core.paths import REAL_ROW

BUILTIN_DATASETS = {  # and the modules of `pelap.datasets` that make them
    "digits": "digits",
    "photos": "photos",
    "sounds": "synthesis",
    **dict.fromkeys(("cifar10", "cifar100", "svhn"), "torchvision_sets"),
}
STAGES = ("download", "train", "collapse", "score", "prune", "distill", "evaluate", "report")

# Repeated from the modules that they belong to: those import torch, a check must not. Tests compare.
NUM_DIGITS, NUM_PHOTOGRAPHS, NUM_RECIPES = 6000, 8, 8

OWN_SAMPLING = ("score.variant", "score.sampler.kind")
# What of these sections is for models of this project alone: a pipeline is one network, with a scheduler.
PIPELINE_UNUSED: dict[str, tuple[str, ...]] = {
    "score": OWN_SAMPLING,
    "prune": (*OWN_SAMPLING, "score.criteria"),
    "distill": ("distill.quality",),
    "evaluate": (
        *("evaluate.models", "evaluate.num_reconstructions", "evaluate.sampler.kind"),
        *("evaluate.step_counts", "evaluate.deepcache_intervals"),
    ),
}
TIMED = ("evaluate.latency_compiled", "evaluate.latency_batch_sizes", "evaluate.sampler_repeats")


def disagreements(params: Params, given: Collection[str]) -> list[str]:
    """What is wrong between sections that are right by themselves, as far as they are `given`."""
    rules: dict[Callable[[Params], Iterable[str]], set[str]] = {
        _dataset_exists: {"dataset", "download"},
        _made_items_suffice: {"dataset", "download", "evaluate"},
        _names_are_free: {"download"},
        lambda params: _taken("variants", params.variants, (REAL_ROW,)): {"variants"},
        # `pruned-<plan>` are the networks before any fine-tuning.
        lambda params: _taken("distill.students", params.distill.students, (REAL_ROW, "pruned")): {"distill"},
        _rows_differ: {"variants", "prune", "distill"},
        _scored_variant_exists: {"score", "variants"},
        _criteria_are_there: {"score", "prune"},
        _masks_can_learn: {"lambda_", "variants"},
        _schedules_end_in_time: {"train", "variants"},
        _autoencoders_train_as_told: {"vae", "variants"},
        _latents_fit: {"download", "unet", "vae", "variants"},
        _prompts_have_a_way_in: {"conditioning", "unet", "variants"},
        # Whether a folder's data set holds sounds is known only where that is read.
        lambda params: backwards(params) if params.dataset == "sounds" else []: {"dataset"},
        _sampler_steps_divide: {"diffusion", "train", "score", "distill", "evaluate"},
    }
    return [problem for rule, needed in rules.items() if needed <= {*given} for problem in rule(params)]


def _dataset_exists(params: Params) -> Iterator[str]:
    known = (*BUILTIN_DATASETS, *params.download.folders)
    if params.dataset not in known:
        yield (
            f"dataset: {params.dataset!r} is unknown; use one of {', '.join(known)}, "
            "or add its path to download.folders"
        )


def _made_items_suffice(params: Params) -> Iterator[str]:
    download, evaluate = params.download, params.evaluate
    made = {
        "digits": (NUM_DIGITS, ""),
        "photos": (NUM_PHOTOGRAPHS * download.photos.train_per_photo, "photos.train_per_photo"),
        "sounds": (NUM_RECIPES * download.sounds.train_per_class, "sounds.train_per_class"),
    }
    there, key = made.get(params.dataset, (math.inf, ""))
    needs = {
        "evaluate: num_reference + num_images": evaluate.num_reference + evaluate.num_images,
        "evaluate.classifier.batch_size": evaluate.classifier.batch_size if evaluate.classifier else 0,
    }
    for what, wanted in needs.items():
        if wanted > there:
            limit = f" with download.{key}" if key else ""
            yield f"{what} is {wanted}, but{limit} there are {there} train items of {params.dataset}"


def _names_are_free(params: Params) -> Iterator[str]:
    for name in params.download.folders.keys() & BUILTIN_DATASETS:
        yield f"download.folders.{name}: is the name of a built-in data set; choose another"


def _rows_differ(params: Params) -> Iterator[str]:
    plans, students = params.prune.plans, params.distill.students
    made = [
        *(f"pruned-{plan}" for plan in plans),
        *(name for name, student in students.items() if student.start == "dense"),
        *(f"{name}-{plan}" for name, it in students.items() if it.start != "dense" for plan in plans),
    ]
    for row in sorted({name for name in made if made.count(name) > 1}):
        yield f"rows: two would be called {row}; rename a student or a method"
    yield from _taken("variants", params.variants, made)


def _taken(section: str, names: Mapping[str, Any], rows: Collection[str]) -> list[str]:
    said = "is the name of another row of the evaluation; choose another"
    return [f"{section}.{name}: {said}" for name in names if name in rows]


def _scored_variant_exists(params: Params) -> Iterator[str]:
    scored, names = params.score.variant, params.variants
    if scored not in names:
        yield f"score.variant: {scored!r} is not a variant; use one of {', '.join(names)}"


def _criteria_are_there(params: Params) -> Iterator[str]:
    for name, method in params.prune.methods.items():
        wanted = method.criterion
        if wanted in get_args(CheapCriterion) and wanted not in params.score.criteria:
            yield f"prune.methods.{name}.criterion: {wanted} is not among score.criteria; add it there"


def _masks_can_learn(params: Params) -> Iterator[str]:
    for name, variant in params.variants.items():
        if variant.gate != "none" and not variant.mask_learns(params.lambda_):
            yield (
                f"variants.{name}: lambda is 0 and no other loss trains the mask; "
                "name one in mask_losses that sees it"
            )


def _schedules_end_in_time(params: Params) -> Iterator[str]:
    for name, variant in params.variants.items():
        key = "vae_epochs" if variant.mask_with_autoencoder else "epochs"
        epochs = getattr(params.train, key)
        start, end = variant.start_epoch, variant.start_epoch + variant.warmup_epochs
        if start >= epochs:
            where = f"variants.{name}.start_epoch"
            yield f"{where}: {start} leaves none of the {epochs} train.{key} to the mask"
        elif end > epochs:
            yield (
                f"variants.{name}.warmup_epochs: ends after start_epoch + warmup_epochs = {end} epochs, "
                f"training after {epochs}"
            )


def parts_of(variant: VariantParams, vae: VAEParams, unet: UNetParams) -> tuple[VAEParams, UNetParams]:
    """The autoencoder and UNet of a variant: its own, or those of the run."""
    return variant.vae or vae, variant.unet or unet


def _autoencoders_train_as_told(params: Params) -> Iterator[str]:
    for name, variant in params.variants.items():
        pretrained = isinstance(variant.vae or params.vae, AutoencoderKLParams)
        frozen = variant.vae_training == "frozen"
        if pretrained and not frozen:
            yield (
                f"variants.{name}: vae_training {variant.vae_training}, but a pretrained autoencoder_kl "
                "stays as it is; use frozen"
            )
        if frozen and not pretrained:
            yield (
                f"variants.{name}: vae_training frozen needs a pretrained vae (kind autoencoder_kl); use "
                "two_stage or joint"
            )


def _latents_fit(params: Params) -> Iterator[str]:
    size = params.download.image_size
    for name, variant in params.variants.items():
        vae, unet = parts_of(variant, params.vae, params.unet)
        if isinstance(vae, PelapVAEParams):  # a pretrained one is looked at where it is read
            problem = latent_problem(variant, unet, size, vae.downsampling, vae.latent_channels)
            yield from [f"variants.{name}: {problem}"] if problem else []


def latent_problem(
    variant: VariantParams, unet: UNetParams, image_size: int, downsampling: int, channels: int
) -> str | None:
    """Why latents of so many `channels` do not suit a mask, or of this size a UNet; None where they do.

    `image_size` is the side of a picture in pixels, `downsampling` that over the side of its latent.
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


def backwards(params: Params) -> list[str]:
    """What would turn sounds backwards, of the sections that are there."""
    sections = {name: getattr(params, name, None) for name in ("train", "distill")}
    sections["evaluate.classifier"] = getattr(getattr(params, "evaluate", None), "classifier", None)
    return [
        f"{name}.horizontal_flip: would turn sounds backwards; set it to false"
        for name, section in sections.items()
        if section is not None and section.horizontal_flip
    ]


def _prompts_have_a_way_in(params: Params) -> Iterator[str]:
    told = isinstance(params.conditioning, TextConditioning)
    for name, variant in params.variants.items():
        hears = isinstance(variant.unet or params.unet, UNet2DConditionParams)
        if told and not hears:
            yield (
                f"variants.{name}: its UNet takes no prompts; use unet.kind unet2d_condition, or "
                "conditioning: {kind: none}"
            )
        if hears and not told:
            yield (
                f"variants.{name}: unet2d_condition needs prompts; use conditioning.kind text, or unet.kind "
                "unet2d"
            )


def _sampler_steps_divide(params: Params) -> Iterator[str]:
    total, quality = params.diffusion.num_train_timesteps, params.distill.quality
    steps = {
        "train.preview.steps": params.train.preview.steps,
        "score.sampler.steps": params.score.sampler.steps,
        "evaluate.sampler.steps": params.evaluate.sampler.steps,
        **{f"evaluate.step_counts.{i}": num for i, num in enumerate(params.evaluate.step_counts)},
        **({"distill.quality.sampler.steps": quality.sampler.steps} if quality else {}),
    }
    for key, num in steps.items():
        if total % num:
            yield f"{key}: {num} does not divide diffusion.num_train_timesteps ({total})"


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
        scores_rest = not planned and any(method.iterative_step for method in params.prune.methods.values())
        keys += [] if scores_rest else ["score.early_stop"]
        keys = (["seed", "score"] if scored else keys) + _unused_by_pruning(params, planned)
    if stage == "distill":
        keys += [f"distill.students.{name}.skip" for name in params.distill.students]
    if stage == "evaluate":
        keys += _unused_by_figures(params)
        keys += [] if "classifier" in params.evaluate.extractors else ["evaluate.classifier"]
    return _asking(params, keys)


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
    return _asking(params, keys)


def _unused_by_pruning(params: Params, planned: bool) -> list[str]:
    by_clock = params.prune.target == "time_reduction"
    return ["prune"] if planned else [] if by_clock else ["prune.max_measurements"]


def _unused_by_training(params: Params, variants: Sequence[VariantParams]) -> list[str]:
    used = {
        "lambda": not params.lambda_ or any(each.sparsity_key == "lambda" for each in variants),
        "vae": any(each.vae is None for each in variants),
        "unet": any(each.unet is None for each in variants),
        "train.vae_epochs": any(each.vae_training == "two_stage" for each in variants),
        "train.parallel_variants": params.train.parallel_variants == 1 or len(variants) > 1,
    }
    return [key for key, is_used in used.items() if not is_used]


def _unused_by_figures(params: Params) -> list[str]:
    inception = any(name.startswith("inception") for name in params.evaluate.extractors)
    keys = [] if inception else ["evaluate.inception_weights"]
    return keys if params.evaluate.latency_repeats else [*keys, *TIMED]


def _asking(params: Params, keys: Iterable[str]) -> list[str]:
    """Those of some dotted keys whose values ask for something: null, false and what is empty do not."""

    def value_at(key: str) -> Any:
        value: Any = params
        for name in key.replace("lambda", "lambda_").split("."):
            value = value[name] if isinstance(value, Mapping) else getattr(value, name)
        return value

    values = {key: value_at(key) for key in keys}  # of which 0 is one that counts
    return [key for key, it in values.items() if it is not None and it is not False and it != ()]
