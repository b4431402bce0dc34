"""The calls themselves: load, score, plan, prune, distil, evaluate, sample.

A model is a diffusers pipeline, a model of this project (`LatentDiffusion`), or the folder of either. Nothing
is printed or written unless `progress` or `out` says so; warnings are Python's. Whatever a call has no name for
is a key of its section of `params.yaml`, with the same default (`pelap.config`).
"""

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
    denoiser_for,
    device_of,
    generator_for,
    is_of,
    load_pipeline,
    meet_data,
    name_of,
    network_of,
    opened,
    sampler_of,
    save,
    section,
    told,
    warn_of_other_training,
    with_denoiser,
    working_copy,
)
from pelap.api.results import PruningPlan, Result, Scores, read_plan
from pelap.config import DistillParams, EvaluateParams, LossWeights, PruneParams, SamplerParams, ScoreParams
from pelap.core import files
from pelap.core.errors import ConfigError
from pelap.data.dataset import ImageDataset
from pelap.diffusion.model_denoiser import model_denoiser
from pelap.diffusion.sampler import ModelGenerator, sample_from
from pelap.distillation.distill import distill as train_student
from pelap.distillation.model_batches import ModelBatches
from pelap.distillation.pipeline_distillation import distill_pipeline
from pelap.evaluation.evaluation_reference import EvaluationReference
from pelap.evaluation.evaluator import Evaluator
from pelap.evaluation.image_metrics import REAL_ROW
from pelap.models.latent_diffusion import LatentDiffusion
from pelap.pipelines import LatentPipeline
from pelap.pipelines.pipeline_denoiser import pipeline_denoiser
from pelap.pruning.pruner import Pruner
from pelap.pruning.selection import make_plan as choose_operators
from pelap.pruning.selection import plan_of
from pelap.surgery.plan import Plan

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["distill", "evaluate", "load_pipeline", "make_plan", "prune", "sample", "score"]

BATCH_SIZE = 8
"""Pictures of a pipeline at a time: it may be a thousand times larger than our models."""
NUM_KEPT = 8
"""Pictures of every model that a `Result` keeps to show."""


def score(
    model: Model,
    *,
    prompts: Sequence[str] | None = None,
    num_latents: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    progress: bool = False,
    out: str | Path | None = None,
    **settings: Any,
) -> Scores:
    """Score every operator of a model's denoiser: how much latents change without it, and what it costs.

    Args:
        model: It is left as it is.
        prompts: For text-to-image: latents of each seed go through them, from the first again after the last.
        num_latents: How many are compared; more make scores more certain.
        steps: Of the pipeline's own scheduler, or of DDIM.
        seed: Names all random numbers.
        progress: Show how far it is.
        out: CSV file for the table, its protocol beside it.
        settings: Further keys of the section `score`, e.g. ``batch_size``, ``num_seeds``, ``early_stop``.

    Raises:
        ConfigError: A setting is unknown or out of range, or prompts are missing or out of place.
        ModelError: The model cannot be used, or gives other latents the next time.
    """
    sampler = sampler_of(steps)
    params = section(ScoreParams, "score", num_latents=num_latents, sampler=sampler, **settings)
    with told(progress):
        pruner = Pruner(denoiser_for(opened(model), prompts, params, seed), params, seed)
        found = pruner.score()
    scores = Scores(found.table, found.protocol, tuple(prompts or ()), pruner)
    if out is not None:
        scores.save(out)
    return scores


def make_plan(
    scores: Scores | pd.DataFrame | str | Path,
    *,
    time_reduction: float | None = None,
    num_params: int | None = None,
    num_operators: int | None = None,
    method: str = "knapsack",
    criterion: str = "score",
    iterative_step: float | None = None,
    max_measurements: int | None = None,
    progress: bool = False,
) -> PruningPlan:
    """Choose operators to remove, for one of the three targets.

    A time is measured by the clock where the scores know their model, as those of `score` do; of a table alone
    the sum of the operators' times is believed, and a plan mostly saves less than that.

    Args:
        scores: Of `score`, or a table, or its CSV file.
        time_reduction: Share of the denoiser's time to save, 0..1.
        num_params: Parameters to remove.
        num_operators: Operators to remove.
        method: ``knapsack`` (the set of least importance that saves enough, the best at equal time in
            docs/choosing.md), ``lowest_first`` (LD-Pruner's) or ``per_ms``.
        criterion: ``score``, a formula of it, or a column of the table.
        iterative_step: Share of the time after whose removal the rest is scored again; None: never.
        max_measurements: Plans to time at most.
        progress: Show how far it is.

    Raises:
        ConfigError: A setting is out of range.
        PlanError: The target is out of reach.
    """
    if not isinstance(scores, Scores):
        scores = Scores(scores if isinstance(scores, pd.DataFrame) else files.read_csv(Path(scores)), {})
    amounts = {"time_reduction": time_reduction, "num_params": num_params, "num_operators": num_operators}
    given: dict[str, Any] = {name: [value] for name, value in amounts.items() if value is not None}
    if given:
        given = dict.fromkeys(amounts) | given
    if max_measurements is not None:
        given["max_measurements"] = max_measurements
    way = {"criterion": criterion, "selection": method, "iterative_step": iterative_step}
    params = section(PruneParams, "make_plan", keep_none=True, methods={"plan": way}, **given)
    (wanted,) = params.plans.values()
    with told(progress):
        if scores.pruner is None:
            how = criterion, wanted.method.selection
            plan = choose_operators(scores.table, params.target, wanted.amount, *how)
            return PruningPlan(plan_of(scores.table, plan), scores)
        (plan,) = scores.pruner.plans(scores.table, params).values()
        return PruningPlan(plan, scores, scores.pruner.saved(plan))


def prune(
    model: Model,
    plan: PruningPlan | Plan | Mapping[str, Any] | Sequence[str] | str | Path,
    *,
    prompts: Sequence[str] | None = None,
    steps: int | None = None,
    seed: int | None = None,
    progress: bool = False,
    out: str | Path | None = None,
    **settings: Any,
) -> Any:
    """Take a plan's operators out of a copy of a model's denoiser.

    Replacements are fitted to what the denoiser is given while it samples; how it does is as in the scores that
    the plan was made from, unless said otherwise.

    Args:
        model: It is left as it is.
        plan: Of `make_plan`; or its file, such an object as that holds, or the names of operators.
        prompts: For text-to-image.
        steps: Of the pipeline's own scheduler, or of DDIM.
        seed: Names all random numbers.
        progress: Show how far it is.
        out: New folder to save it to.
        settings: Further keys of the section `score`.

    Returns:
        A pipeline (or model) of the same class, which shares all but the denoiser and the scheduler with
        `model`. Its `save_pretrained` works, and `load_pipeline` opens what that wrote.

    Raises:
        PlanError: The plan is another model's, or leaves latents that are not finite.
        ModelError: The model is pruned already, or cannot be used.
    """
    dense, made = opened(model), read_plan(plan)
    demand_dense(dense, "prune the dense one with one plan that has all operators")
    changed = bool(settings) or any(each is not None for each in (prompts, steps, seed))
    with told(progress):
        pruner = None if made.scores is None or changed else made.scores.pruner
        if pruner is None or not is_of(pruner.denoiser, dense):
            how = {name: value for name, value in made.how.items() if name in ScoreParams.model_fields}
            sampler = {"sampler": sampler_of(steps)} if steps is not None else {}
            params = section(ScoreParams, "prune", **(how | settings | sampler))
            at = made.how.get("seed", 0) if seed is None else seed
            asked = prompts or made.how.get("prompts") or None
            pruner = Pruner(denoiser_for(dense, asked, params, at), params, at)
        pruned = pruner.apply(made.plan, None if made.scores is None else made.scores.table)
    small = with_denoiser(dense, pruned.network, f"pruned-{name_of(dense)}")
    if out is not None:
        save(small, out)
    return small


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
        teacher: The dense model that it was made from; so is this.
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
        on test pictures by step.

    Raises:
        ConfigError: A setting is unknown or out of range.
        ModelError: The teacher is another network, or the data do not suit the models.
        DataError: The data cannot be read, or are fewer than a batch.
        TrainingError: The loss is not finite.
    """
    if steps is not None:
        usual = DistillParams()
        short = {
            "steps": steps,
            "validate_every": min(usual.validate_every, steps),
            "warmup_steps": min(usual.warmup_steps, steps // 4),
        }
        settings = short | settings
    params = section(DistillParams, "distill", **settings)
    if params.select == "distance":
        raise ConfigError("distill: select: distance is for runs alone; use loss (on test pictures) or last")
    terms = {"task_weight": task_weight, "output_weight": output_weight, "feature_weight": feature_weight}
    weights = section(LossWeights, "distill", **terms)
    pruned, dense = opened(student), opened(teacher)
    demand_dense(dense, "give the dense one as teacher")
    with told(progress):
        dataset = dataset_of(data, dense)
        learner = copy.deepcopy(network_of(pruned))
        if isinstance(pruned, LatentDiffusion):
            batches, device = (
                ModelBatches(dense, dataset, params, seed, device_of(dense), 1),
                device_of(dense),
            )
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
    if not models or REAL_ROW in models:
        raise ConfigError(f"evaluate: models: give at least one, and none the name {REAL_ROW!r}")
    at_hand = {name: opened(model) for name, model in models.items()}
    first = next(iter(at_hand))
    with told(progress):
        dataset = dataset_of(reference, at_hand[first])
        params = _evaluate_params(dataset, num_images, num_reference, steps, settings)
        makers = {
            name: generator_for(model, prompts, params.sampler, params.precision)
            for name, model in at_hand.items()
        }
        for name, maker in makers.items():
            meet_data(maker, name, dataset)
        warn_of_other_training(at_hand)
        device = device_of(at_hand[first])
        real = EvaluationReference.of(dataset, params, device, None if cache is None else Path(cache))
        evaluator, samples = Evaluator(real, params, seed, device), dict[str, torch.Tensor]()

        def keep(name: str, images: torch.Tensor) -> None:
            samples[name] = images[:NUM_KEPT].clone()

        metrics, protocol = evaluator.compare(
            makers,
            {name: _on_bench(maker, name, params, seed) for name, maker in makers.items()},
            show=keep,
            pipelines={
                name: maker.describe() | {"rows_per_latent": maker.copies}
                for name, maker in makers.items()
                if isinstance(maker, LatentPipeline)
            },
        )
    result = Result(metrics, protocol, samples)
    if out is not None:
        result.save(out)
    return result


def _evaluate_params(
    dataset: ImageDataset,
    num_images: int | None,
    num_reference: int | None,
    steps: int | None,
    settings: Mapping[str, Any],
) -> EvaluateParams:
    usual, there = EvaluateParams(), len(dataset.train)
    num_images = num_images or min(usual.num_images, there // 2)
    num_reference = num_reference or min(usual.num_reference, max(2, there - num_images))
    sizes = {"num_images": num_images, "num_reference": num_reference}
    return section(EvaluateParams, "evaluate", **sizes, sampler=sampler_of(steps), **settings)


def _on_bench(maker: LatentPipeline | ModelGenerator, name: str, params: EvaluateParams, seed: int) -> Any:
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
    batch_size: int = BATCH_SIZE,
    progress: bool = False,
) -> "list[Image]":
    """Make pictures; picture i depends on (seed, i) alone, so that those of two models can be compared.

    Args:
        model: It is left as it is.
        num: How many.
        prompts: For text-to-image: picture i is of prompt i, again and again.
        seed: Names the noise.
        steps: Of the pipeline's own scheduler, or of DDIM.
        batch_size: Pictures at a time.
        progress: Say what is worth saying.

    Returns:
        PIL images, in colour; of a model of sounds grey spectrograms.

    Raises:
        ConfigError: Prompts are missing or out of place.
        ModelError: The model cannot be used, or what it makes is not finite.
    """
    from torchvision.transforms.functional import to_pil_image

    sampler = section(SamplerParams, "sample", kind="ddim", steps=steps)
    with told(progress):
        images = sample_from(generator_for(opened(model), prompts, sampler), num, seed, batch_size)
    return [to_pil_image(image) for image in images]
