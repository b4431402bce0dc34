"""Which pipelines can be used: their kinds, and what is read off one. A new kind is one entry of `KINDS`."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import torch
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
LONGEST = 40  # letters of a scheduler's option in a message

Predict: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""What the scheduler's step wants, from scaled latents (B, C, H, W) and one time step ()."""


@dataclass(frozen=True)
class Kind:
    """Pipelines that are run in the same way."""

    fits: Callable[["DiffusionPipeline", nn.Module], bool]  # a pipeline with this denoiser, from noise
    predict: Callable[["DiffusionPipeline", nn.Module, Sequence[int]], Predict] | None = None
    """For the pipeline, its denoiser and the class (if any) of each row; None: its own call takes noise and
    prompts, and gives latents."""
    num_classes: Callable[[nn.Module], int] = lambda denoiser: 0
    takes_text: bool = False


def _is_text(pipe: "DiffusionPipeline", denoiser: nn.Module) -> bool:
    return {"prompt", "latents", "output_type"} <= _defaults(pipe).keys() and hasattr(pipe, "encode_prompt")


def _is_class(pipe: "DiffusionPipeline", denoiser: nn.Module) -> bool:
    return _demanded(pipe) == {"class_labels"} and "num_embeds_ada_norm" in config_of(denoiser)


def _is_unconditional(pipe: "DiffusionPipeline", denoiser: nn.Module) -> bool:
    plain = isinstance(denoiser, UNet2DModel) and denoiser.class_embedding is None
    return plain and not _demanded(pipe) and "prompt" not in _defaults(pipe)


def _defaults(pipe: "DiffusionPipeline") -> dict[str, Any]:
    """The arguments of a pipeline's call with their defaults, `Parameter.empty` where there is none."""
    return {
        name: each.default
        for name, each in inspect.signature(type(pipe).__call__).parameters.items()
        if name not in ("self", "args", "kwargs")
    }


def _demanded(pipe: "DiffusionPipeline") -> set[str]:
    return {name for name, default in _defaults(pipe).items() if default is inspect.Parameter.empty}


def _predict(pipe: "DiffusionPipeline", denoiser: nn.Module, labels: Sequence[int]) -> Predict:
    return lambda latents, t: denoiser(latents, t).sample


def _predict_classes(pipe: "DiffusionPipeline", denoiser: nn.Module, labels: Sequence[int]) -> Predict:
    """With classifier-free guidance."""
    null, num_channels = _num_classes(denoiser), config_of(denoiser).in_channels
    with_null = torch.tensor([*labels, *[null] * len(labels)], device=next(denoiser.parameters()).device)
    scale = default_of(pipe, "guidance_scale")

    def predict(latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        twice, times = torch.cat([latents, latents]), t.expand(len(with_null))
        output = denoiser(twice, timestep=times, class_labels=with_null).sample
        # A DiT may give a variance as well, in channels after those of the noise; none is used.
        conditional, free = output[:, :num_channels].chunk(2)
        guided: torch.Tensor = free + scale * (conditional - free)
        return guided

    return predict


def _num_classes(denoiser: nn.Module) -> int:
    return int(config_of(denoiser).num_embeds_ada_norm)


KINDS = {
    "text": Kind(_is_text, takes_text=True),
    "class": Kind(_is_class, _predict_classes, _num_classes),
    "unconditional": Kind(_is_unconditional, _predict),
}


def kind_of(pipe: "DiffusionPipeline", denoiser: nn.Module) -> Kind:
    """How a pipeline is run; a `ModelError` for one that is not supported."""
    if not _defaults(pipe).keys() & MORE_THAN_NOISE:
        for kind in KINDS.values():
            if kind.fits(pipe, denoiser):
                return kind
    return refuse(pipe, "is of a kind that is not supported", f"supported are {SUPPORTED}")


def refuse(pipe: "DiffusionPipeline", problem: str, remedy: str, cause: Exception | None = None) -> NoReturn:
    """Say what is wrong with a pipeline."""
    raise ModelError(f"{named(pipe)}: {problem}; {remedy}") from cause


def named(pipe: "DiffusionPipeline") -> str:
    """The class of a pipeline, with its folder where it came from one."""
    folder = pipe.config.get("_name_or_path")
    return f"{folder}: {type(pipe).__name__}" if folder else type(pipe).__name__


def denoiser_of(pipe: "DiffusionPipeline") -> str:
    """Name of the denoiser among the parts; a `ModelError` where there is none."""
    for part in DENOISERS:
        if isinstance(getattr(pipe, part, None), nn.Module):
            return part
    return refuse(pipe, "has neither a unet nor a transformer", f"supported are {SUPPORTED}")


def latent_shape_of(pipe: "DiffusionPipeline", denoiser: nn.Module) -> tuple[int, ...]:
    """(C, H, W) of what the denoiser takes and predicts the noise of; a `ModelError` where it is more."""
    config, name = config_of(denoiser), type(denoiser).__name__
    channels, size = config.get("in_channels"), config.get("sample_size")
    if channels is None or size is None:
        remedy = "set them in its config.json, in latent pixels"
        refuse(pipe, f"its {name} has no in_channels and sample_size", remedy)
    # Twice as many: it predicts a variance as well.
    if (config.get("out_channels") or channels) not in (channels, 2 * channels):
        problem = f"its {name} takes {channels} channels and gives {config.out_channels}, as for inpainting"
        refuse(pipe, f"{problem}: its input is not noise alone", f"supported are {SUPPORTED}")
    shape = (channels, size, size) if isinstance(size, int) else (channels, *size)
    if not (len(shape) == 3 and all(type(number) is int and number > 0 for number in shape)):
        remedy = "set them in its config.json, whole numbers above 0"
        refuse(pipe, f"its {name} has the in_channels and sample_size {shape}", remedy)
    return shape


def check_scheduler(pipe: "DiffusionPipeline", kind: Kind, num_steps: int) -> None:
    """Refuse a scheduler whose latents depend on their batch, or that cannot take so many steps.

    Raises:
        ModelError: It has no usual step, draws one noise for a batch, or goes the other way.
        ConfigError: `num_steps` is out of its range.
    """
    scheduler, usual = pipe.scheduler, "save the pipeline with a DDIMScheduler"
    name = type(scheduler).__name__
    if hasattr(scheduler, "noise_sampler"):
        remedy = "save the pipeline with another, for example EulerAncestralDiscreteScheduler"
        refuse(pipe, f"has {name}, which draws one noise for a whole batch", remedy)
    if kind.predict is not None and not _has_usual_step(scheduler):
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
        f"{name}={text if len(text := str(value)) <= LONGEST else f'{text[:LONGEST]}...'}"
        for name, value in scheduler.config.items()
        if isinstance(value, str | int | float | list) and name in defaults and value != defaults[name]
    )
    return f"{type(scheduler).__name__}({', '.join(options)})"


def config_of(network: nn.Module) -> Any:
    """The mapping by which diffusers made a network."""
    return network.config


def autoencoder_of(pipe: "DiffusionPipeline") -> Any:
    """Of diffusers; None where the denoiser works on pixels."""
    return getattr(pipe, "vae", None) or getattr(pipe, "vqvae", None)


def unscaled(latents: torch.Tensor, config: Any) -> torch.Tensor:
    """Latents (B, C, h, w) of a denoiser as the decoder with this configuration wants them."""
    scaled = latents / float(config.get("scaling_factor", 1.0))
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        return scaled * latents.new_tensor(std)[:, None, None] + latents.new_tensor(mean)[:, None, None]
    return scaled + float(config.get("shift_factor") or 0.0)


def default_of(pipe: "DiffusionPipeline", name: str) -> Any:
    """Default of an argument of the pipeline's call; None: it has no such argument."""
    return _defaults(pipe).get(name)
