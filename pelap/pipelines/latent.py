"""A diffusers pipeline as a function: from noise to latents, and from latents to pictures.

The pipeline's own scheduler, settings and defaults are used as they are; only the number of steps and
all noise come from here, so that a latent depends on its noise, its index and the seed alone.

Text-to-image pipelines are called themselves. Others offer no way in for noise, or none out for
latents: their loop is written out, and gives what their own call gives. It steps the latents that
were not scaled for the denoiser, and begins at the scheduler's noise level, where `DiTPipeline`
does neither; schedulers that scale (`EulerDiscreteScheduler`) need both.
"""

import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pelap.core.calls import capture_calls, in_place
from pelap.core.device import autocast, normalise_in_fp32, uses_bf16
from pelap.core.digests import digest
from pelap.core.errors import ConfigError, ModelError, blamed_on, finite
from pelap.core.keys import key
from pelap.core.rng import generator
from pelap.data.dataset import to_uint8
from pelap.diffusion.denoiser import Denoiser
from pelap.pipelines import kinds
from pelap.pipelines.kinds import Predict, autoencoder_of, default_of, refuse

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

STEP_NOISE = "step"  # the stream of the noise that stochastic schedulers add in their steps


class LatentPipeline:
    """Makes latents from noise, and pictures from latents.

    Args:
        pipe: Its modules are set to float32 and evaluation mode, its progress bar is turned off.
        num_steps: Steps of its scheduler.
        prompts: For text-to-image pipelines: item i gets prompt i, from the first again after the last.
        precision: Of the denoiser alone, see `pelap.core.device.autocast`.

    Attributes:
        classes: Of class-conditional pipelines, the numbers of those that items go through, at first all.
        part: Name of the denoiser among the pipeline's components: ``unet`` or ``transformer``.
        latent_shape: Shape of one latent, (C, H, W).
        copies: Rows of the denoiser's batch for a latent: 2 with classifier-free guidance. Those of a
            batch stand one copy of the whole batch after the other.

    Raises:
        ModelError: The pipeline is of no kind that is supported, or its own call fails.
        ConfigError: Prompts are missing or out of place, or `num_steps` does not suit the scheduler.
    """

    def __init__(
        self,
        pipe: "DiffusionPipeline",
        num_steps: int,
        prompts: Sequence[str] | None = None,
        precision: str = "fp32",
    ) -> None:
        self.pipe = pipe
        self.num_steps = num_steps
        self.precision = precision
        self.prompts = tuple(prompts or ())
        self._encodings: dict[tuple[str, str], Any] = {}
        self.part = kinds.denoiser_of(pipe)
        with blamed_on(f"{kinds.named(pipe)}: its settings cannot be used", "mend the folder"):
            self.latent_shape = kinds.latent_shape_of(pipe, self.denoiser)
            self._kind = kinds.kind_of(pipe, self.denoiser)
            self.classes: Sequence[int] = range(self._kind.num_classes(self.denoiser))
            kinds.check_scheduler(pipe, self._kind, num_steps)
        if self._kind.takes_text and not self.prompts:
            raise ConfigError(f"prompts: {type(pipe).__name__} takes text; give a list, or --prompts FILE")
        if self.prompts and not self._kind.takes_text:
            raise ConfigError(f"prompts: {type(pipe).__name__} takes no text; leave them out")
        pipe.set_progress_bar_config(disable=True)
        for component in pipe.components.values():
            if isinstance(component, nn.Module):
                component.float().eval()
        self.copies = self._try_out()
        self._timesteps = [float(t) for t in pipe.scheduler.timesteps]

    @property
    def denoiser(self) -> nn.Module:
        """The network that is called in every step; another one can be put in its place."""
        network: nn.Module = getattr(self.pipe, self.part)
        return network

    @denoiser.setter
    def denoiser(self, network: nn.Module) -> None:
        setattr(self.pipe, self.part, network.eval())

    @property
    def num_asked(self) -> int:
        """How many prompts or classes items ask for in turn; 1 for none."""
        return len(self.prompts) or len(self.classes) or 1

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @torch.no_grad()
    def denoise(self, noise: torch.Tensor, indices: Sequence[int], seed: int | Sequence[int]) -> torch.Tensor:
        """Latents from noise.

        Args:
            noise: (B, *latent_shape), standard normal.
            indices: Which item each row is: its prompt or class is number i modulo theirs.
            seed: With an item's number it names the noise of its steps; one for all, or one each.

        Returns:
            (B, *latent_shape) float32 on the denoiser's device. A row is the same in whatever batch
            (up to rounding). Nothing says that they are finite: what makes pictures of them has to look.

        Raises:
            ModelError: The scheduler, the denoiser or the pipeline's own call fails.
        """
        assert noise.shape == (len(indices), *self.latent_shape), "one row of noise for every index"
        seeds = [seed] * len(indices) if isinstance(seed, int) else seed
        generators = [generator(s, STEP_NOISE, i) for s, i in zip(seeds, indices, strict=True)]
        noise = noise.to(self.device, torch.float32)
        with self._said_of("its own call fails"), self._in_precision():
            if self._kind.predict is None:
                return self._call(noise, indices, generators)
            labels = [self.classes[i % len(self.classes)] for i in indices] if self.classes else []
            return self._loop(noise, self._kind.predict(self.pipe, self.denoiser, labels), generators)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures, uint8 (B, 3, H, W) on the CPU, of latents (B, *latent_shape).

        Raises:
            ModelError: The decoder fails, or the pictures are not of one colour or three, or not finite.
        """
        images = self.paint(latents)
        finite(images, f"{self.name}: pictures", "mend the weights of its decoder, or use other latents")
        return to_uint8(images).cpu().expand(-1, 3, -1, -1)

    @torch.no_grad()
    def paint(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures, float (B, 3, H, W) in [-1, 1] or a bit beyond, on the device; see `decode`."""
        decoder, images = autoencoder_of(self.pipe), latents
        if decoder is not None:
            with self._said_of(f"its {type(decoder).__name__} fails"):
                images = decoder.decode(kinds.unscaled(latents.to(self.device), decoder.config)).sample
        if images.shape[1] not in (1, 3):
            refuse(self.pipe, f"makes pictures of {images.shape[1]} channels", "use one for 1 or 3 colours")
        return images.expand(-1, 3, -1, -1)

    def labels(self, num: int) -> None:
        """What it is asked for is nothing that a classifier of a data set knows."""

    def forget(self) -> None:
        """Nothing was recorded."""

    @property
    def name(self) -> str:
        """What it is and where it came from, with its scheduler and steps, for messages."""
        return f"{kinds.named(self.pipe)} with {self._way}"

    @property
    def _way(self) -> str:
        return f"{kinds.options_of(self.pipe.scheduler)} at {self.num_steps} steps"

    def _said_of(self, what: str) -> AbstractContextManager[None]:
        """Say in one line what a stranger's code raises, which may be anything."""
        remedy = "mend the folder, or use another scheduler or number of steps"
        return blamed_on(f"{self.name}: {what}", remedy)

    def describe(self) -> dict[str, Any]:
        """How latents are made, as a JSON object."""
        pipe, scheduler = self.pipe, self.pipe.scheduler
        # Schedulers have infinities among their settings, which are no JSON.
        config = json.loads(scheduler.to_json_string(), parse_constant=lambda text: str(float(text)))
        # Of the call itself; networks and scheduler have their own.
        options = {
            name: setting
            for name, setting in pipe.config.items()
            if not name.startswith("_") and name != "id2label" and not isinstance(setting, list | tuple)
        }
        options |= {name: part for name, part in pipe.components.items() if hasattr(part, "get_vocab")}
        return {
            "pipeline": type(pipe).__name__,
            "denoiser": type(self.denoiser).__name__,
            "scheduler": type(scheduler).__name__,
            "scheduler_config": config,
            "steps": self.num_steps,
            "timestep_spacing": config.get("timestep_spacing"),
            "first_timestep": self._timesteps[0],
            "last_timestep": self._timesteps[-1],
            "guidance_scale": default_of(pipe, "guidance_scale"),
            "num_prompts": len(self.prompts),
            "prompts_digest": digest(self.prompts) if self.prompts else None,
            "classes_digest": digest(list(self.classes)) if self.classes else None,
            "options_digest": key(options=options).name,
        }

    def _try_out(self) -> int:
        """Run the pipeline through the first call of its denoiser; give the rows of that for one latent."""
        start = torch.zeros(1, *self.latent_shape)
        for args, kwargs in capture_calls(self.denoiser, lambda: self.denoise(start, [0], seed=0), True):
            with torch.no_grad(), self._said_of(f"its {self.part} fails"):
                self.denoiser(*args, **kwargs)
                return len(args[0] if args else next(iter(kwargs.values())))
        return refuse(self.pipe, f"its call does not use its {self.part}", f"supported are {kinds.SUPPORTED}")

    def _loop(self, noise: torch.Tensor, predict: Predict, generators: list[torch.Generator]) -> torch.Tensor:
        """Step by step through the scheduler, from noise (B, C, H, W) to latents of the same shape."""
        scheduler = self.pipe.scheduler
        scheduler.set_timesteps(self.num_steps)
        # What this scheduler's step takes beyond the prediction; eta as the pipeline's call has it.
        known, eta = inspect.signature(scheduler.step).parameters, default_of(self.pipe, "eta")
        offered = {"generator": generators} | ({} if eta is None else {"eta": eta})
        options = {name: value for name, value in offered.items() if name in known}
        latents: torch.Tensor = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            predicted = predict(scheduler.scale_model_input(latents, t), t.to(noise.device))
            latents = scheduler.step(predicted, t, latents, **options).prev_sample
        return latents

    def _call(
        self, noise: torch.Tensor, indices: Sequence[int], generators: list[torch.Generator]
    ) -> torch.Tensor:
        """The pipeline's own call, from noise (B, C, H, W) to latents of the same shape."""
        with self._each_prompt_encoded_once(), self._steps_drawing_from(generators):
            latents = self.pipe(
                prompt=[self.prompts[i % len(self.prompts)] for i in indices],
                latents=noise,
                num_inference_steps=self.num_steps,
                generator=generators,
                output_type="latent",
                return_dict=False,
            )[0]
        if not isinstance(latents, torch.Tensor) or latents.shape != noise.shape:
            refuse(self.pipe, "its call gives no latents of the shape of its noise", f"use {kinds.SUPPORTED}")
        return latents

    @contextmanager
    def _each_prompt_encoded_once(self) -> Iterator[None]:
        """Keep what the pipeline's text encoders say to a prompt, for all later calls.

        Prompts are encoded one by one, so that the batch that one is in does not matter.
        """
        encode = self.pipe.encode_prompt
        signature = inspect.signature(encode)

        def encode_once(*args: Any, **kwargs: Any) -> Any:
            call = signature.bind(*args, **kwargs)
            prompts = call.arguments.pop("prompt")
            # Some pipelines encode a prompt several times, in different ways.
            way, rows = repr(call.arguments), []
            for prompt in prompts:
                if (prompt, way) not in self._encodings:
                    self._encodings[prompt, way] = encode(prompt=[prompt], **call.arguments)
                rows.append(self._encodings[prompt, way])
            return stack(rows)

        with in_place(self.pipe, "encode_prompt", encode_once):
            yield

    @contextmanager
    def _steps_drawing_from(self, generators: list[torch.Generator]) -> Iterator[None]:
        """Give the scheduler's steps the generators that a pipeline's own call may keep from them.

        Those for flow matching do: their schedulers draw no noise by default, but some can.
        """
        scheduler = self.pipe.scheduler
        step = scheduler.step
        signature = inspect.signature(step)

        @wraps(step)  # with its signature, which pipelines look at
        def drawing(*args: Any, **kwargs: Any) -> Any:
            call = signature.bind(*args, **kwargs)
            if call.arguments.get("generator") is None:
                call.arguments["generator"] = generators
            return step(*call.args, **call.kwargs)

        with in_place(scheduler, "step", drawing if "generator" in signature.parameters else step):
            yield

    @contextmanager
    def _in_precision(self) -> Iterator[None]:
        """Let the denoiser compute in less than float32, where that is asked for; it gives float32."""
        if not uses_bf16(self.device, self.precision):
            yield
            return
        network, forward = self.denoiser, self.denoiser.forward
        if self.device.type == "cpu":
            normalise_in_fp32(network)

        @wraps(forward)
        def mixed(*args: Any, **kwargs: Any) -> Any:
            with autocast(self.device, self.precision):
                output = forward(*args, **kwargs)
            if isinstance(output, tuple):
                return (output[0].float(), *output[1:])
            output.sample = output.sample.float()
            return output

        with in_place(network, "forward", mixed):
            yield


def pipeline_denoiser(
    pipeline: LatentPipeline, name: str, seed: int, num_seeds: int = 1, precision: str = "fp32"
) -> Denoiser:
    """A stranger's pipeline as a denoiser that can be scored, with its own scheduler and settings.

    Every seed goes through the prompts from the first, so that seeds can be compared.
    """

    def to_latents(start: torch.Tensor, items: Sequence[int]) -> torch.Tensor:
        seeds = [seed + i % num_seeds for i in items]
        return pipeline.denoise(start, [i // num_seeds for i in items], seeds)

    protocol = pipeline.describe()
    return Denoiser(
        name=name,
        network=pipeline.denoiser,
        latent_shape=pipeline.latent_shape,
        device=pipeline.device,
        denoise=to_latents,
        networks=tuple(part for part in pipeline.pipe.components.values() if isinstance(part, nn.Module)),
        protocol=protocol,
        spacing=str(protocol["timestep_spacing"]),
        precision=precision,
        num_asked=pipeline.num_asked,
    )


def stack(encodings: list[Any]) -> Any:
    """Encodings of single prompts as one of them all: tensors, None, or sequences of these."""
    first = encodings[0]
    if first is None:
        return None
    if not isinstance(first, torch.Tensor):
        return tuple(stack(list(column)) for column in zip(*encodings, strict=True))
    if any(tensor.shape != first.shape for tensor in encodings):
        raise ModelError("the text encoder gives prompts different lengths; use prompts of the same length")
    return torch.cat(encodings)
