"""`params.yaml` as frozen models: every number of a run, checked before anything else happens."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    ValidationError,
    create_model,
    model_validator,
)

from pelap.errors import ConfigError

TORCHVISION_DATASETS = ("cifar10", "cifar100", "svhn")
BUILTIN_DATASETS = ("photos", *TORCHVISION_DATASETS)
STAGES = ("download", "train", "collapse", "score", "prune", "distill", "evaluate", "report")
RESERVED_MODELS = ("pruned", "distilled", "real")
"""Row names of the evaluation that no variant may take."""

Name: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
Share: TypeAlias = Annotated[float, Field(gt=0, lt=1)]
Decay: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
Precision: TypeAlias = Literal["auto", "fp32", "bf16"]


class Section(BaseModel):
    """A mapping of `params.yaml`: no unknown key, no silent conversion, no infinity."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True
    )


class PhotoCrops(Section):
    """Crops taken from each of the eight photographs."""

    train_per_photo: PositiveInt
    test_per_photo: PositiveInt
    min_crop: Annotated[int, Field(ge=8)]
    max_crop: Annotated[int, Field(ge=8)]

    @model_validator(mode="after")
    def _ordered(self) -> "PhotoCrops":
        if self.min_crop > self.max_crop:
            raise ValueError("min_crop must not exceed max_crop")
        return self


class DownloadParams(Section):
    """Where pictures come from."""

    image_size: Annotated[int, Field(ge=8, le=1024, multiple_of=4)]
    photos: PhotoCrops
    folders: dict[Name, str]


class VAEParams(Section):
    """Size of the autoencoder; the paper has width 64 and 4 latent channels."""

    width: Annotated[int, Field(ge=8, multiple_of=8)]
    latent_channels: PositiveInt


class LightUNetParams(Section):
    """The paper's UNet (base width 64)."""

    kind: Literal["light"]
    width: Annotated[int, Field(ge=8, multiple_of=8)]


class UNet2DParams(Section):
    """A diffusers `UNet2DModel` with residual blocks and self-attention."""

    kind: Literal["unet2d"]
    channels: Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1)]
    layers_per_block: PositiveInt
    attention: Annotated[tuple[bool, ...], Field(strict=False)]
    attention_head_dim: PositiveInt
    norm_num_groups: PositiveInt

    @model_validator(mode="after")
    def _fits(self) -> "UNet2DParams":
        if len(self.attention) != len(self.channels):
            raise ValueError("attention needs one true or false for each entry of channels")
        for value in self.channels:
            if value % self.norm_num_groups or value % self.attention_head_dim:
                raise ValueError(
                    f"{value} channels are not a multiple of norm_num_groups and attention_head_dim"
                )
        return self


UNetParams: TypeAlias = Annotated[LightUNetParams | UNet2DParams, Field(discriminator="kind")]


class DiffusionParams(Section):
    """The forward process: linear betas over `num_train_timesteps` steps."""

    num_train_timesteps: PositiveInt
    beta_start: Share
    beta_end: Share

    @model_validator(mode="after")
    def _rising(self) -> "DiffusionParams":
        if self.beta_start > self.beta_end:
            raise ValueError("beta_start must not exceed beta_end")
        return self


class SamplerParams(Section):
    """How noise becomes latents; `steps` must divide the number of training time steps."""

    kind: Literal["ddim", "ddpm"]
    steps: PositiveInt


class TrainParams(Section):
    """Joint training of VAE, mask and UNet."""

    epochs: PositiveInt
    batch_size: PositiveInt
    lr: PositiveFloat
    lr_min: NonNegativeFloat
    lr_update: Literal["step", "epoch"]
    weight_decay: NonNegativeFloat
    grad_clip: PositiveFloat
    horizontal_flip: bool
    kl_weight: NonNegativeFloat
    ema_decay: Decay
    precision: Precision
    select: Literal["last", "best"]
    log_every: PositiveInt
    num_validation: PositiveInt
    preview: SamplerParams


class VariantParams(Section):
    """One way of coupling autoencoder, mask and diffusion; comments in `params.yaml`."""

    mask: Literal["none", "sigmoid"]
    normalise: bool
    decode_from: Literal["z", "z*m"]
    detach: Annotated[tuple[Literal["encoder", "mask"], ...], Field(strict=False)]
    strength: Literal["lambda", "seed"]

    @model_validator(mode="after")
    def _needs_mask(self) -> "VariantParams":
        if self.mask == "none":
            if self.decode_from == "z*m":
                raise ValueError("decode_from z*m needs a mask; use z")
            if "mask" in self.detach:
                raise ValueError("detach names mask, but there is none; leave it out")
            if self.strength == "lambda":
                raise ValueError("strength lambda needs a mask; use seed")
        return self


class CollapseParams(Section):
    """What the mask does, over `num_images` test pictures."""

    num_images: Annotated[int, Field(ge=2)]
    batch_size: PositiveInt
    active_threshold: Share


class ScoreParams(Section):
    """LD-Pruner's score of every operator."""

    variant: Name
    num_latents: Annotated[int, Field(ge=2)]
    sampler: SamplerParams
    batch_size: PositiveInt
    latency_batch_size: PositiveInt
    latency_repeats: Annotated[int, Field(ge=3)]


class PruneParams(Section):
    """How much to remove: exactly one of the three targets."""

    time_reduction: Share | None
    num_params: PositiveInt | None
    num_operators: PositiveInt | None

    @model_validator(mode="after")
    def _one_target(self) -> "PruneParams":
        if sum(target is not None for _, target in self) != 1:
            raise ValueError("give exactly one of time_reduction, num_params, num_operators")
        return self


class DistillParams(Section):
    """Fine-tuning of the pruned UNet with the dense one as teacher."""

    steps: PositiveInt
    batch_size: PositiveInt
    lr: PositiveFloat
    lr_min: NonNegativeFloat
    horizontal_flip: bool
    warmup_steps: Annotated[int, Field(ge=0)]
    weight_decay: NonNegativeFloat
    grad_clip: PositiveFloat
    ema_decay: Decay
    precision: Precision
    task_weight: NonNegativeFloat
    output_weight: NonNegativeFloat
    feature_weight: NonNegativeFloat
    log_every: PositiveInt

    @model_validator(mode="after")
    def _learns(self) -> "DistillParams":
        if not (self.task_weight or self.output_weight or self.feature_weight):
            raise ValueError("all three weights are zero: nothing to learn from")
        if self.warmup_steps >= self.steps:
            raise ValueError("warmup_steps must be below steps")
        return self


class EvaluateParams(Section):
    """Quality and cost of every model."""

    num_images: Annotated[int, Field(ge=2)]
    num_reference: Annotated[int, Field(ge=2)]
    num_reconstructions: PositiveInt
    batch_size: PositiveInt
    sampler: SamplerParams
    inception_weights: str | None
    latency_batch_size: PositiveInt
    latency_repeats: Annotated[int, Field(ge=3)]


class Params(Section):
    """A whole parameter file.

    A stage may be given a file with just its own keys (see `STAGE_KEYS`); the others are then not
    set on the object.
    """

    dataset: Name
    seed: Annotated[int, Field(ge=0)]
    lambda_: Annotated[NonNegativeFloat, Field(alias="lambda")]
    download: DownloadParams
    vae: VAEParams
    unet: UNetParams
    diffusion: DiffusionParams
    train: TrainParams
    variants: Annotated[dict[Name, VariantParams], Field(min_length=1)]
    collapse: CollapseParams
    score: ScoreParams
    prune: PruneParams
    distill: DistillParams
    evaluate: EvaluateParams


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
