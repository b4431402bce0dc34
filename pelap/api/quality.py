"""Bring a pruned model back, compare models, and make pictures with them."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import nn

from pelap.api.models import (
    Data,
    Model,
    dataset_of,
    demand_dense,
    demand_positive,
    device_of,
    generator_for,
    meet_data,
    name_of,
    network_of,
    opened,
    part_of,
    prints_as_warnings,
    sampler_of,
    save,
    section,
    warn_of_other_training,
    warn_of_unused,
    with_denoiser,
    working_copy,
)
from pelap.api.results import Result
from pelap.config import DistillParams, EvaluateParams, LossWeights, SamplerParams
from pelap.core.errors import ConfigError
from pelap.core.paths import REAL_ROW
from pelap.data.dataset import ImageDataset
from pelap.diffusion.denoiser import Denoiser
from pelap.diffusion.reverse import model_denoiser
from pelap.diffusion.sampler import BATCH_SIZE, ModelGenerator, sample_from
from pelap.distillation.batches import ModelBatches
from pelap.distillation.distill import distill as train_student
from pelap.distillation.pipeline_distillation import distill_pipeline
from pelap.evaluation.evaluation_reference import EvaluationReference
from pelap.evaluation.evaluator import Evaluator
from pelap.evaluation.features import CLASSIFIER
from pelap.models.latent_diffusion import LatentDiffusion
from pelap.pipelines.latent import LatentPipeline, pipeline_denoiser

if TYPE_CHECKING:
    from PIL.Image import Image

PIPELINE_BATCH_SIZE = 8  # pictures of a pipeline at a time: it may be a thousand times larger than our models
NUM_KEPT = 8  # pictures of every model that a `Result` keeps to show


def distill(
    student: Model,
    teacher: Model,
    data: Data,
    *,
    steps: int | None = None,
    seed: int = 0,
    progress: bool = False,
    out: str | Path | None = None,
    task_weight: float = 1.0,
    output_weight: float = 1.0,
    feature_weight: float = 1.0,
    **settings: Any,
) -> Any:
    """Fine-tune a pruned model's denoiser with the dense one as teacher.

    Args:
        student: Of `prune`; it is left as it is.
        teacher: The dense model that it was made from. Its weights keep their values and are laid out
            channels-last in memory, see `score`.
        data: A packed data set, its file, or a folder with ``train/<class>/*`` and ``test/<class>/*``. The
            caption of a picture is the name of its class.
        steps: Of training.
        seed: Names all random numbers.
        progress: Show how far it is.
        out: New folder to save it to.
        task_weight: Of the loss of training.
        output_weight: Of the difference to what the teacher predicts.
        feature_weight: Of the differences to what its blocks give.
        settings: Further keys of the section `distill`, e.g. ``batch_size``, ``lr``, ``select="loss"``.

    Returns:
        A model like `student` with the trained denoiser. Its attribute `history` is a DataFrame of the losses
        on test pictures by step, with what each term is of the loss and of its gradient.

    Raises:
        ConfigError: A setting is unknown or out of range.
        ModelError: The teacher is another network, or the data do not suit the models.
        DataError: The data cannot be read, or are fewer than a batch.
        TrainingError: The loss is not finite.
    """
    if steps is not None:
        usual = DistillParams()
        every, warmup = min(usual.validate_every, steps), min(usual.warmup_steps, steps // 4)
        settings = {"steps": steps, "validate_every": every, "warmup_steps": warmup} | settings
    params = section(DistillParams, "distill", settings)
    if params.select == "distance":
        raise ConfigError("distill: select: distance is for runs alone; use loss (on test pictures) or last")
    terms = {"task_weight": task_weight, "output_weight": output_weight, "feature_weight": feature_weight}
    weights = section(LossWeights, "distill", terms)
    pruned, dense = opened(student), opened(teacher)
    warn_of_unused("distill", params, settings, [pruned], more=["distill.students"])
    demand_dense(dense, "give the dense one as teacher")
    with prints_as_warnings(progress):
        dataset = dataset_of(data, dense)
        learner = copy.deepcopy(network_of(pruned))
        if isinstance(pruned, LatentDiffusion):
            device = device_of(dense)
            batches = ModelBatches(dense, dataset, params, seed, device, 1)
            trained: Any = train_student(learner, dense.unet, batches, params, weights, device)
            network: nn.Module = trained.network
        else:
            pipe = working_copy(with_denoiser(pruned, learner, ""))
            trained = distill_pipeline(pipe, working_copy(dense), dataset, params, weights, seed)
            network = network_of(trained.pipe)
    fast = with_denoiser(pruned, network, f"distilled-{name_of(dense)}")
    if not isinstance(pruned, LatentDiffusion):
        fast.register_modules(scheduler=trained.pipe.scheduler)  # it may be the teacher's
    fast.history = pd.DataFrame(trained.progress.validation)
    if out is not None:
        save(fast, out)
    return fast


def evaluate(
    models: Mapping[str, Model],
    reference: Data,
    *,
    prompts: Sequence[str] | None = None,
    num_images: int | None = None,
    num_reference: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    progress: bool = False,
    out: str | Path | None = None,
    cache: str | Path | None = None,
    **settings: Any,
) -> Result:
    """Compare models by the pictures that they make, and by what they cost; the first is the dense one.

    Args:
        models: By the name of their row. Times, and pictures one by one, are compared with the first's.
        reference: Real pictures: a packed data set, its file, or a folder of classes, see `distill`.
        prompts: For text-to-image: picture i is of prompt i, again and again.
        num_images: Pictures of each model; where this is not said, at most half of the train pictures.
        num_reference: Train pictures that they are compared with; where this is not said, at most the rest.
        steps: Of each pipeline's own scheduler, or of DDIM.
        seed: Names the noise, which is the same for all.
        progress: Show how far it is.
        out: JSON file for the figures, their protocol beside it.
        cache: Folder to keep what is computed of the reference in.
        settings: Further keys of the section `evaluate`, e.g. ``extractors``, ``latency_repeats=None``.

    Raises:
        ConfigError: A setting is unknown or out of range, or prompts are missing or out of place.
        ModelError: A model cannot be used, or makes pictures of another size.
        DataError: The data cannot be read, or are too few.
    """
    if not isinstance(models, Mapping) or not models or REAL_ROW in models:
        raise ConfigError(f"evaluate: models: give at least one by its name, and none the name {REAL_ROW!r}")
    demand_positive("evaluate", num_images=num_images, num_reference=num_reference)
    first = next(iter(models))
    with prints_as_warnings(progress):
        dense = opened(models[first])
        dataset = dataset_of(reference, dense)
        usual, there = EvaluateParams(), len(dataset.train)
        if num_images is None:
            num_images = min(usual.num_images, there // 2)
        if num_reference is None:
            num_reference = min(usual.num_reference, max(2, there - num_images))
        sizes: dict[str, Any] = {"num_images": num_images, "num_reference": num_reference}
        params = section(EvaluateParams, "evaluate", settings, **sizes, sampler=sampler_of(steps))
        at_hand = {name: dense if name == first else opened(model) for name, model in models.items()}
        warn_of_unused("evaluate", params, settings, at_hand.values())
        keep = None if cache is None else Path(cache)
        saved = {name: Path(model) for name, model in models.items() if isinstance(model, str | Path)}
        result = compare(at_hand, dataset, params, prompts, seed, keep, saved)
    if out is not None:
        result.save(out)
    return result


def compare(
    models: Mapping[str, Any],
    dataset: ImageDataset,
    params: EvaluateParams,
    prompts: Sequence[str] | None = None,
    seed: int = 0,
    cache: Path | None = None,
    folders: Mapping[str, Path] | None = None,
) -> Result:
    """What `evaluate` does, with the whole section of parameters; it says what it does.

    Args:
        models: By the name of their row, in memory.
        dataset: Real pictures.
        params: The section `evaluate`.
        prompts: For text-to-image.
        seed: Names the noise.
        cache: Folder to keep what is computed of the reference in.
        folders: Of the models that are saved: they get the size of their weights on disk.
    """
    makers = {}
    for name, model in models.items():
        makers[name] = generator_for(model, prompts, params.sampler, params.precision)
        meet_data(makers[name], name, dataset)
    warn_of_other_training(models)
    pipes = {name: maker for name, maker in makers.items() if isinstance(maker, LatentPipeline)}
    if len(pipes) == len(makers) and CLASSIFIER not in params.extractors:
        # A pipeline's pictures are not asked to be of a class: as an extractor or not at all.
        params = params.model_copy(update={"classifier": None})
    place = device_of(next(iter(models.values())))
    real = EvaluationReference.of(dataset, params, place, cache)
    samples: dict[str, torch.Tensor] = {}
    metrics, protocol = Evaluator(real, params, seed, place).compare(
        makers,
        {name: _on_bench(maker, name, params, seed) for name, maker in makers.items()},
        {name: folder / part_of(models[name]) for name, folder in (folders or {}).items()},
        lambda name, images: samples.update({name: images[:NUM_KEPT].clone()}),
        **({} if len(pipes) == len(makers) else {"sampler": params.sampler.model_dump()}),
        pipelines={name: pipe.describe() | {"rows_per_latent": pipe.copies} for name, pipe in pipes.items()},
    )
    return Result(metrics, protocol, samples)


def _on_bench(
    maker: LatentPipeline | ModelGenerator, name: str, params: EvaluateParams, seed: int
) -> Denoiser:
    if isinstance(maker, LatentPipeline):
        return pipeline_denoiser(maker, name, seed, precision=params.precision)
    return model_denoiser(maker.model, params.sampler, seed, precision=params.precision)


def sample(
    model: Model,
    num: int = 16,
    *,
    prompts: Sequence[str] | None = None,
    seed: int = 0,
    steps: int = 50,
    batch_size: int | None = None,
    progress: bool = False,
) -> "list[Image]":
    """Make pictures; picture i depends on (seed, i) alone, so that those of two models can be compared.

    Args:
        model: It is left as it is.
        num: How many.
        prompts: For text-to-image: picture i is of prompt i, again and again.
        seed: Names the noise.
        steps: Of the pipeline's own scheduler, or of DDIM.
        batch_size: Pictures at a time; None: as many as mostly fit.
        progress: Say what is worth saying.

    Returns:
        PIL images, in colour; of a model of sounds grey spectrograms.

    Raises:
        ConfigError: Prompts are missing or out of place, or a number is below 1.
        ModelError: The model cannot be used, or what it makes is not finite.
    """
    from torchvision.transforms.functional import to_pil_image

    demand_positive("sample", num=num, batch_size=batch_size)
    with prints_as_warnings(progress):
        images = make_pictures(opened(model), num, prompts, seed, steps, batch_size)
    return [to_pil_image(image) for image in images]


def make_pictures(
    model: Any,
    num: int,
    prompts: Sequence[str] | None = None,
    seed: int = 0,
    steps: int = 50,
    batch_size: int | None = None,
) -> torch.Tensor:
    """What `sample` does, as a tensor, uint8 (num, 3, H, W), of sounds (num, 1, H, W)."""
    sampler = section(SamplerParams, "sample", {}, kind="ddim", steps=steps)
    maker = generator_for(model, prompts, sampler)
    usual = BATCH_SIZE if isinstance(maker, ModelGenerator) else PIPELINE_BATCH_SIZE
    return sample_from(maker, num, seed, usual if batch_size is None else batch_size)
