"""Rules that span sections, and which keys have no use where."""

from typing import get_args

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

TORCHVISION_DATASETS = ("cifar10", "cifar100", "svhn")
BUILTIN_DATASETS = ("photos", "sounds", *TORCHVISION_DATASETS)
STAGES = ("download", "train", "collapse", "score", "prune", "distill", "evaluate", "report")
REAL_ROW = "real"
"""Row of real pictures in the evaluation; no model may take its name."""
PRUNED_ROWS = (REAL_ROW, "pruned")
"""What no student may be called; `pruned-<plan>` are the networks before any fine-tuning."""

# Repeated from the modules that they belong to: those import torch, a check must not. Tests compare.
NUM_PHOTOGRAPHS, NUM_RECIPES = 8, 8


def disagreements(params: Params, given: frozenset[str]) -> list[str]:
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
                "two_stage or joint"
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
