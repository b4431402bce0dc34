"""Pictures from a model or a pipeline."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch

from pelap.config import SamplerParams
from pelap.core.device import autocast, normalise_in_fp32, synchronise, uses_bf16
from pelap.core.errors import ConfigError, ModelError, finite
from pelap.core.graphs import Graphed
from pelap.core.paths import cached_name
from pelap.core.rng import generator, noise
from pelap.data.dataset import all_equal, to_uint8
from pelap.diffusion.reverse import ReverseProcess
from pelap.models.deep_cache import DeepCache
from pelap.models.latent_diffusion import LatentDiffusion
from pelap.models.text_conditioner import UNKNOWN, Guidance

PURPOSE = "sample"  # stream of the starting noise: all models make picture i of a seed from the same
BATCH_SIZE = 128
REMEDY = "mend its weights, remove less of it, or use other steps or another scheduler"


class ImageGenerator(Protocol):
    """Something that makes pictures from noise; a `LatentPipeline` is one."""

    @property
    def name(self) -> str:
        """What it is called in messages."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, h, w)."""

    @property
    def num_asked(self) -> int:
        """How many prompts or classes items ask for in turn: item i for number i % num_asked; 1 for none."""

    def labels(self, num: int) -> torch.Tensor | None:
        """The class (num,) that each of the first items is asked to be; None where no prompts ask.

        It is `UNKNOWN` where a prompt does not say.
        """

    def denoise(self, noise: torch.Tensor, indices: Sequence[int], seed: int) -> torch.Tensor:
        """Latents from noise, both (B, C, h, w); row i is item ``indices[i]`` of the seed."""

    def paint(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures, float (B, 3 or 1, H, W) in [-1, 1] or a bit beyond, on the model's device."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """The same as uint8, on its device or the CPU; a `ModelError` where they are not finite."""

    def forget(self) -> None:
        """Give back the memory of what was recorded to be replayed; the next batches are recorded anew."""


@dataclass(frozen=True)
class ModelGenerator:
    """A model of this project, in evaluation mode, with a reverse process.

    Its weights must not change any more. On a CUDA device the whole way from noise to latents is recorded
    once and replayed for every batch of the same size, where no step draws noise.
    """

    model: LatentDiffusion
    sampler: SamplerParams
    precision: str = "fp32"
    """Of the UNet, see `pelap.core.device.autocast`. Steps between its calls, and the decoder, which is a
    small part of the time and leaves its rounding in the pictures, are always float32."""
    record: bool = True  # False never records

    def __post_init__(self) -> None:
        if self.device.type == "cpu" and uses_bf16(self.device, self.precision):
            normalise_in_fp32(self.model.unet)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def name(self) -> str:
        return self.model.info.name

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return self.model.latent_shape

    @property
    def num_asked(self) -> int:
        return 1 if self.model.conditioner is None else len(self.model.conditioner.prompts)

    def labels(self, num: int) -> torch.Tensor | None:
        conditioner = self.model.conditioner
        return None if conditioner is None else conditioner.labels_of_prompts(range(num))

    def denoise(self, noise: torch.Tensor, indices: Sequence[int], seed: int) -> torch.Tensor:
        with torch.no_grad():
            told = self.model.guidance(indices)
        conditions = {} if told is None else told.conditions
        if not self._process.draws:
            # A replay overwrites what the one before it gave.
            on_host = self.device.type == "cuda" and not noise.is_cuda
            # From pinned memory a copy to the device need not be waited for.
            return self._denoise((noise.pin_memory() if on_host else noise, conditions)).clone()
        step_noise = [generator(seed, "sample-step", i) for i in indices]
        with autocast(self.device, self.precision):
            start = noise.to(self.device)
            return self._process.run(self.model.unet, start, step_noise, self._open_channels, told)

    def paint(self, latents: torch.Tensor) -> torch.Tensor:
        return self.model.decode_sample(latents)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return to_uint8(finite(self.paint(latents), f"{self.name}: pictures", REMEDY))

    def forget(self) -> None:
        self.__dict__.pop("_denoise", None)

    @cached_property
    def _process(self) -> ReverseProcess:
        return ReverseProcess(self.model.info.diffusion, self.sampler, self.device)

    @cached_property
    def _open_channels(self) -> torch.Tensor | None:
        with torch.no_grad():
            return self.model.open_channels()

    @cached_property
    def _denoise(self) -> Graphed[torch.Tensor]:
        process, open_channels = self._process, self._open_channels  # made before anything is recorded
        conditioner = self.model.conditioner

        def denoise(given: tuple[torch.Tensor, dict[str, torch.Tensor]]) -> torch.Tensor:
            noise, conditions = given
            guidance = None if conditioner is None else Guidance(conditions, conditioner.guidance_scale)
            # Entered anew by every call: what autocast keeps of the weights belongs to the recording.
            with autocast(self.device, self.precision):
                return process.run(self.model.unet, noise, open_channels=open_channels, guidance=guidance)

        # A deep cache reads the time step on the CPU, which waits for the device.
        record = self.record and not isinstance(self.model.unet, DeepCache)
        return Graphed(denoise, self.device, record)


@torch.no_grad()
def sample_from(source: ImageGenerator, num: int, seed: int, batch_size: int = BATCH_SIZE) -> torch.Tensor:
    """Generate pictures, uint8 (num, 3 or 1, H, W) on the CPU.

    Picture i depends on (seed, i) alone; the batch size changes nothing but speed and memory.

    Raises:
        ModelError: Latents or pictures are not finite; they would be black.
    """
    pictures, of_latents, of_pictures = torch.empty(0), [], []
    for start in range(0, num, batch_size):
        indices = range(start, min(start + batch_size, num))
        latents = source.denoise(noise(source.latent_shape, seed, PURPOSE, indices), indices, seed)
        painted = source.paint(latents)
        of_latents.append(_zeros_or_nan(latents))
        of_pictures.append(_zeros_or_nan(painted))
        made = to_uint8(painted)
        if start == 0:
            pictures = torch.empty((num, *made.shape[1:]), dtype=made.dtype, pin_memory=made.is_cuda)
        # Waited for at the end alone, so that noise is drawn while the device computes.
        pictures[indices.start : indices.stop].copy_(made, non_blocking=True)
    synchronise(made.device)
    finite(torch.cat(of_latents), f"{source.name}: latents", REMEDY)
    finite(torch.cat(of_pictures), f"{source.name}: pictures", REMEDY)
    return pictures


def in_turn(num_images: int, sources: Iterable[ImageGenerator]) -> torch.Tensor:
    """What each of so many pictures is asked to be, (num_images,) int64 without meaning but for equality.

    One answer for all sources, as pictures of theirs from the same noise are compared: where they ask for
    different numbers of things in turn, for each pair of these.
    """
    return torch.arange(num_images) % math.lcm(*(source.num_asked for source in sources))


def _zeros_or_nan(items: torch.Tensor) -> torch.Tensor:
    """(B, ...) to (B,), on the same device: 0 for an item that is finite. Nothing is waited for."""
    least, most = items.reshape(len(items), -1).aminmax(dim=1)
    return (most - least) * 0


def sample_images(
    model: LatentDiffusion, sampler: SamplerParams, num: int, seed: int, batch_size: int = BATCH_SIZE
) -> torch.Tensor:
    """Generate pictures with a model of this project; see `sample_from`."""
    return sample_from(ModelGenerator(model, sampler), num, seed, batch_size)


def said_if_alike(name: str, images: torch.Tensor) -> list[str]:
    """A warning, printed and returned, where all of several pictures (N, C, H, W) are the same."""
    if len(images) < 2 or not all_equal(images):
        return []
    line = f"{name}: all {len(images)} pictures are the same"
    print(f"warning: {line}")
    return [line]


def cached_models(
    dense: LatentDiffusion | None, intervals: Iterable[int], taken: Collection[str]
) -> dict[str, LatentDiffusion]:
    """A model whose steps share deep features, by `cached_name`; nothing where there is none.

    Args:
        dense: The model.
        intervals: Of `DeepCache`.
        taken: Names that other models have.

    Raises:
        ConfigError: Its UNet cannot be cached, or a name is taken.
    """
    result: dict[str, LatentDiffusion] = {}
    if dense is None:
        return result
    for interval in intervals:
        name = cached_name(interval)
        if name in taken:
            raise ConfigError(
                f"evaluate.deepcache_intervals: {name} is the name of a model already; call the variant or "
                "student something else"
            )
        try:
            result[name] = dense.with_unet(DeepCache(dense.unet, interval), name, dense.info.ema_decay)
        except ModelError as error:
            raise ConfigError(
                f"evaluate.deepcache_intervals: {dense.info.name} cannot be cached ({error}); or set it to []"
            ) from None
    return result


def describe_models(models: Mapping[str, LatentDiffusion], num_images: int) -> dict[str, Any]:
    """What the pictures of models were asked to be, and EMA, for a protocol."""
    conditioners = [model.conditioner for model in models.values() if model.conditioner is not None]
    prompts = None
    if conditioners:
        labels = conditioners[0].labels_of_prompts(range(num_images))
        prompts = conditioners[0].describe() | {"num_judged": int((labels != UNKNOWN).sum())}
    return {
        "prompts": prompts,
        "rows_per_latent": max([1, *(conditioner.rows_per_latent for conditioner in conditioners)]),
        "ema_decay": {name: model.info.ema_decay for name, model in models.items()},
    }
