"""Which pipelines can be used, and what is read off one: its kind, its denoiser, its latents' shape."""

import inspect
import math
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from diffusers import UNet2DModel
from torch import nn

from pelap.core.errors import ConfigError, ModelError
from pelap.core.part_io import DENOISERS

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

MORE_THAN_NOISE = frozenset({"image", "mask_image", "control_image", "video", "num_frames", "pag_scale"})
"""Arguments of a call that say that it does not begin from noise, makes no single picture, or changes
the denoiser while it runs."""

SUPPORTED = (
    "unconditional ones with a UNet2DModel (DDPMPipeline, DDIMPipeline, LDMPipeline), text-to-image ones "
    "whose call takes latents (StableDiffusionPipeline, -XL and -3), and DiTPipeline"
)

LONGEST = 40
"""Letters of a scheduler's option in a message."""

Kind = Literal["unconditional", "text", "class"]


def refuse(pipe: "DiffusionPipeline", problem: str, remedy: str, cause: Exception | None = None) -> NoReturn:
    """Say what is wrong with a pipeline, with its folder where it came from one."""
    folder = pipe.config.get("_name_or_path")
    where = f"{folder}: {type(pipe).__name__}" if folder else type(pipe).__name__
    raise ModelError(f"{where}: {problem}; {remedy}") from cause


def denoiser_of(pipe: "DiffusionPipeline") -> str:
    """Name of the denoiser among the parts; a `ModelError` where there is none."""
    for part in DENOISERS:
        if isinstance(getattr(pipe, part, None), nn.Module):
            return part
    return refuse(pipe, "has neither a unet nor a transformer", f"supported are {SUPPORTED}")


def latent_shape_of(pipe: "DiffusionPipeline", denoiser: nn.Module) -> tuple[int, ...]:
    """(C, H, W) of what the denoiser takes and predicts the noise of; a `ModelError` where it is more."""
    config = config_of(denoiser)
    channels, size = config.get("in_channels"), config.get("sample_size")
    if channels is None or size is None:
        refuse(
            pipe,
            f"its {type(denoiser).__name__} has no in_channels and sample_size",
            "set them in its config.json, in latent pixels",
        )
    # Twice as many: it predicts a variance as well.
    if (config.get("out_channels") or channels) not in (channels, 2 * channels):
        refuse(
            pipe,
            f"its {type(denoiser).__name__} takes {channels} channels and gives {config.out_channels}, "
            "as for inpainting: its input is not noise alone",
            f"supported are {SUPPORTED}",
        )
    return (channels, size, size) if isinstance(size, int) else (channels, *size)


def kind_of(pipe: "DiffusionPipeline", denoiser: nn.Module) -> Kind:
    """How a pipeline is run; a `ModelError` for one that is not supported."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    demanded = {name for name, value in parameters.items() if value.default is inspect.Parameter.empty}
    demanded -= {"self", "kwargs", "args"}
    known = set(parameters)
    if not known & MORE_THAN_NOISE:
        if {"prompt", "latents", "output_type"} <= known and hasattr(pipe, "encode_prompt"):
            return "text"
        if demanded == {"class_labels"} and "num_embeds_ada_norm" in config_of(denoiser):
            return "class"
        plain = isinstance(denoiser, UNet2DModel) and denoiser.class_embedding is None
        if plain and not demanded and "prompt" not in known:
            return "unconditional"
    return refuse(pipe, "is of a kind that is not supported", f"supported are {SUPPORTED}")


def check_scheduler(pipe: "DiffusionPipeline", kind: Kind, num_steps: int) -> None:
    """Refuse a scheduler whose latents depend on their batch, or that cannot take so many steps.

    Raises:
        ModelError: It has no usual step, draws one noise for a batch, or goes the other way.
        ConfigError: `num_steps` is out of its range.
    """
    scheduler = pipe.scheduler
    name = type(scheduler).__name__
    if hasattr(scheduler, "noise_sampler"):
        remedy = "save the pipeline with another, for example EulerAncestralDiscreteScheduler"
        refuse(pipe, f"has {name}, which draws one noise for a whole batch", remedy)
    usual = "save the pipeline with a DDIMScheduler"
    if kind != "text" and not _has_usual_step(scheduler):
        refuse(pipe, f"has {name}, which has no usual step", usual)
    if "Inverse" in name:
        refuse(pipe, f"has {name}, which goes from pictures to noise", usual)
    most = scheduler.config.get("num_train_timesteps", math.inf)
    if not 1 <= num_steps <= most:
        raise ConfigError(f"steps: {num_steps} is not in 1..{most} of the pipeline's {name}; use e.g. 50")


def _has_usual_step(scheduler: Any) -> bool:
    """Whether a scheduler goes from latents to latents by a prediction and a time step, and no more."""
    needed = ("set_timesteps", "scale_model_input", "init_noise_sigma", "step")
    if not all(hasattr(scheduler, method) for method in needed):
        return False
    parameters = inspect.signature(scheduler.step).parameters.values()
    return sum(each.default is each.empty and each.kind != each.VAR_KEYWORD for each in parameters) == 3


def options_of(scheduler: Any) -> str:
    """A scheduler with those of its options that are not its class's defaults, as one would write it."""
    defaults = {name: each.default for name, each in inspect.signature(type(scheduler)).parameters.items()}
    options = (
        f"{name}={_short(value)}"
        for name, value in scheduler.config.items()
        if isinstance(value, str | int | float | list) and name in defaults and value != defaults[name]
    )
    return f"{type(scheduler).__name__}({', '.join(options)})"


def _short(value: Any) -> str:
    return str(value) if len(str(value)) <= LONGEST else f"{str(value)[:LONGEST]}..."


def config_of(network: nn.Module) -> Any:
    """The mapping by which diffusers made a network."""
    return network.config


def default_of(pipe: "DiffusionPipeline", name: str) -> Any:
    """Default of an argument of the pipeline's call; None: it has no such argument."""
    parameter = inspect.signature(type(pipe).__call__).parameters.get(name)
    return None if parameter is None else parameter.default
