"""A model in memory, a diffusers pipeline or one of this project: what all calls do with either."""

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch
from pydantic import ValidationError
from torch import nn

from pelap.config import Params, SamplerParams, ScoreParams, Section, SoundParams
from pelap.config.load import explain
from pelap.config.rules import unused_by_pipeline
from pelap.core import files
from pelap.core.errors import ConfigError, ModelError
from pelap.core.keys import key
from pelap.core.part_io import CONFIG, labels_of_classes
from pelap.core.terminal import hidden
from pelap.data.dataset import ImageDataset, load_dataset
from pelap.datasets.folder import build_folder
from pelap.diffusion.denoiser import Denoiser
from pelap.diffusion.reverse import model_denoiser
from pelap.diffusion.sampler import ModelGenerator
from pelap.models.latent_diffusion import LatentDiffusion
from pelap.pipelines import pipeline_io
from pelap.pipelines.agreement import class_numbers, demand_pictures_of, differences_in_training
from pelap.pipelines.kinds import denoiser_of
from pelap.pipelines.latent import LatentPipeline, pipeline_denoiser
from pelap.surgery.apply import plan_kept

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Model: TypeAlias = "DiffusionPipeline | LatentDiffusion | str | Path"  # in memory, or the folder of one
Data: TypeAlias = ImageDataset | str | Path
"""A packed data set or its file, or a folder with ``train/<class>/*`` and ``test/<class>/*``."""
S = TypeVar("S", bound=Section)


def load_pipeline(folder: str | Path, device: torch.device | str | None = None) -> Any:
    """Rebuild a diffusers pipeline, or a model of this project, from its folder, pruned or not.

    Args:
        folder: That `save_pretrained` or a call with `out` wrote.
        device: Where to; None: the CPU.

    Returns:
        The pipeline or the `LatentDiffusion`, float32 and in evaluation mode.

    Raises:
        ModelError: Neither, a package is not installed, or a file or a tensor is missing.
        PlanError: Its plan is damaged or does not fit.
    """
    folder = Path(folder)
    if not pipeline_io.is_pipeline(folder) and (folder / CONFIG).is_file() and (folder / "vae").is_dir():
        return pipeline_io.load_model(folder, torch.device(device or "cpu"))
    return pipeline_io.load_pipeline(folder, device)


def save(model: Any, folder: str | Path) -> None:
    """Write a model into a new folder, atomically; its denoiser knows its plan.

    Raises:
        ConfigError: The folder holds something.
    """
    folder = Path(folder)
    files.demand_new(folder, "out")
    write: Any = pipeline_io.save_model if isinstance(model, LatentDiffusion) else pipeline_io.save_pipeline
    write(model, folder)


def opened(model: Any, device: torch.device | None = None) -> Any:
    """A model that may be given by its folder."""
    return load_pipeline(model, device) if isinstance(model, str | Path) else model


def name_of(model: Any) -> str:
    """What it is called in tables and messages."""
    if isinstance(model, LatentDiffusion):
        return model.info.name
    return Path(model.config.get("_name_or_path") or type(model).__name__).name


def part_of(model: Any) -> str:
    """What a model calls its denoiser."""
    return "unet" if isinstance(model, LatentDiffusion) else denoiser_of(model)


def network_of(model: Any) -> nn.Module:
    """A model's denoiser."""
    network: nn.Module = getattr(model, part_of(model))
    return network


def device_of(model: Any) -> torch.device:
    """Where a model's denoiser is."""
    return next(network_of(model).parameters()).device


def demand_dense(model: Any, remedy: str) -> None:
    """Raise a `ModelError` for a model that is pruned."""
    if plan_kept(network_of(model)) is not None:
        raise ModelError(f"{name_of(model)}: is pruned already; {remedy}")


def with_denoiser(model: Any, network: nn.Module, name: str) -> Any:
    """A model that shares all but its denoiser and its scheduler with another one.

    Its denoiser has the precision of the other's.
    """
    dtype = next(network_of(model).parameters()).dtype
    if dtype != torch.float32:
        network = network.to(dtype)
    if isinstance(model, LatentDiffusion):
        return model.with_unet(network, name, model.info.ema_decay)
    twin = copy.copy(model)
    twin.register_modules(scheduler=copy.deepcopy(model.scheduler))
    setattr(twin, denoiser_of(model), network)
    labels = labels_of_classes(model)
    twin.register_to_config(_name_or_path="", **({"id2label": labels} if labels else {}))
    return twin


def working_copy(pipe: "DiffusionPipeline") -> Any:
    """A pipeline that can be set to float32 and stepped without a trace in the user's own.

    Networks that are float32 and in evaluation mode are shared; the others are copied.
    """
    twin = copy.copy(pipe)
    twin.register_modules(scheduler=copy.deepcopy(pipe.scheduler))
    for name, part in pipe.components.items():
        if not isinstance(part, nn.Module):
            continue
        if part.training or any(weight.dtype != torch.float32 for weight in part.parameters()):
            setattr(twin, name, copy.deepcopy(part).float().eval())
    return twin


def denoiser_for(model: Any, prompts: Sequence[str] | None, params: ScoreParams, seed: int) -> Denoiser:
    """What is scored and pruned of a model.

    Raises:
        ConfigError: Prompts are missing or out of place.
        ModelError: The pipeline cannot be used.
    """
    if isinstance(model, LatentDiffusion):
        return model_denoiser(_with_prompts(model, prompts), params.sampler, seed, params.num_seeds)
    pipeline = LatentPipeline(working_copy(model), params.sampler.steps, prompts)
    return pipeline_denoiser(pipeline, name_of(model), seed, params.num_seeds)


def generator_for(
    model: Any, prompts: Sequence[str] | None, sampler: SamplerParams, precision: str = "fp32"
) -> LatentPipeline | ModelGenerator:
    """What makes a model's pictures; see `denoiser_for`."""
    if isinstance(model, LatentDiffusion):
        return ModelGenerator(_with_prompts(model, prompts), sampler, precision)
    return LatentPipeline(working_copy(model), sampler.steps, prompts, precision)


def _with_prompts(model: LatentDiffusion, prompts: Sequence[str] | None) -> LatentDiffusion:
    """The same weights; prompts are kept with a model, so that others need a copy."""
    if prompts is None:
        return model
    if model.conditioner is None:
        raise ConfigError(f"prompts: {model.info.name} takes no text; leave prompts out")
    twin = copy.deepcopy(model)
    assert twin.conditioner is not None
    twin.conditioner.set_prompts(list(prompts))
    return twin


def is_of(denoiser: Denoiser, model: Any) -> bool:
    """Whether a denoiser is still that of a model, with the weights that it had."""
    if denoiser.network is not network_of(model) or denoiser.device != device_of(model):
        return False
    return key(networks=denoiser.networks).parts["networks"] == denoiser.weights


def meet_data(maker: LatentPipeline | ModelGenerator, name: str, dataset: ImageDataset) -> None:
    """Have a model make pictures of a data set's classes; refuse one of another size.

    Raises:
        ModelError: They have another size, or a class is not known.
        ConfigError: The data are sounds.
    """
    if isinstance(maker, ModelGenerator):
        side, wanted = maker.model.info.image_size, dataset.train.images.shape[-1]
        if side != wanted:
            raise ModelError(
                f"{name}: makes pictures of {side} pixels, those of {dataset.name} have {wanted}"
            )
        return
    demand_pictures_of(maker, name, dataset)
    if maker.classes:
        # As the data have each of them about equally often, and others not at all.
        maker.classes = class_numbers(maker.pipe, maker.denoiser, dataset.class_names)


def warn_of_other_training(models: Mapping[str, Any]) -> None:
    """Say where pipelines were trained for other things than the first."""
    pipes = {name: model for name, model in models.items() if not isinstance(model, LatentDiffusion)}
    first = next(iter(pipes), "")
    for name, pipe in pipes.items():
        differing = differences_in_training(pipe, pipes[first])
        if differing:
            print(
                f"warning: {name} has another {', '.join(differing)} than {first}: one of them may be wrong"
            )


def dataset_of(data: Data, model: Any) -> ImageDataset:
    """The pictures that are meant, at the size of those that a model makes.

    Raises:
        DataError: They cannot be read.
    """
    if isinstance(data, ImageDataset):
        return data
    path = Path(data)
    if path.suffix == ".safetensors":
        return load_dataset(path)
    return build_folder(
        path.name or "data", str(path.absolute()), _side_of(model), SoundParams(), path.parent
    )


def _side_of(model: Any) -> int:
    if isinstance(model, LatentDiffusion):
        return model.info.image_size
    network, autoencoder = network_of(model), getattr(model, "vae", None) or getattr(model, "vqvae", None)
    size = network.config["sample_size"]  # type: ignore[index]
    side = size if isinstance(size, int) else size[0]
    levels = 1 if autoencoder is None else len(autoencoder.config.block_out_channels)
    return int(side * 2 ** (levels - 1))


def section(kind: type[S], call: str, settings: Mapping[str, Any], /, **given: Any) -> S:
    """A section of the parameters: its defaults, what is given and not None, and settings, None or not.

    Raises:
        ConfigError: Something is unknown or out of range; all of it is named.
    """
    try:
        return kind(**({name: value for name, value in given.items() if value is not None} | dict(settings)))
    except ValidationError as error:
        raise ConfigError(f"{call}: {explain(error)}") from None


def demand_positive(call: str, **numbers: int | None) -> None:
    """Raise a `ConfigError` that names those below 1; None is a default."""
    wrong = [f"{name}: at least 1 (it is {it})" for name, it in numbers.items() if it is not None and it < 1]
    if wrong:
        raise ConfigError(f"{call}: {'; '.join(wrong)}")


def warn_of_unused(
    call: str, params: Section, settings: Mapping[str, Any], models: Iterable[Any], more: Sequence[str] = ()
) -> None:
    """Warn, in one line, of settings that a call has no use for, by the command line's rule.

    Args:
        call: Named after the stage.
        params: The section that the settings are of.
        settings: What was given, by key of the section.
        models: That the call is about.
        more: Further keys that are not looked at, with the section's name.
    """
    name = "score" if call == "prune" else call
    sections: dict[str, Any] = {name: params}
    rule = unused_by_pipeline(call, Params(**sections), planned=True)
    unused = [*more, *(each for each in rule if not each.startswith(tuple(f"{key}." for key in more)))]
    if any(isinstance(model, LatentDiffusion) for model in models):
        # These have no scheduler of their own, and their pictures are of a class.
        used = (f"{name}.sampler.kind", f"{name}.classifier")
        unused = [each for each in unused if each not in used]
    given = [each for each in unused if _is_given(settings, each.split(".")[1:])]
    if given:
        warnings.warn(f"{call}: not used by this call: {', '.join(given)}", stacklevel=3)


def _is_given(settings: Any, path: Sequence[str]) -> bool:
    for name in path:
        if isinstance(settings, Section):
            settings = settings.model_dump(exclude_unset=True)
        if not isinstance(settings, Mapping) or name not in settings:
            return False
        settings = settings[name]
    return bool(path)


def sampler_of(steps: int | None) -> SamplerParams | None:
    """A sampler of so many steps; None: the section's own."""
    return None if steps is None else section(SamplerParams, "sampler", {"kind": "ddim", "steps": steps})


@contextmanager
def prints_as_warnings(progress: bool) -> Iterator[None]:
    """With progress, bars and lines as on the command line; without, warnings alone, as Python's.

    They are given where the block fails too: they may say why.
    """
    if progress:
        yield
        return
    said = StringIO()
    try:
        with hidden(), redirect_stdout(said):
            yield
    finally:
        for line in said.getvalue().splitlines():
            if line.startswith("warning: "):
                warnings.warn(line.removeprefix("warning: "), stacklevel=4)
