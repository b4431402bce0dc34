"""evaluate: quality and cost of every model, measured alike."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from pelap.config import EvaluateParams, SamplerParams
from pelap.core import files
from pelap.core.errors import ConfigError, ModelError
from pelap.core.paths import reference_cache
from pelap.core.run_models import RunModels, cached_name, run_models
from pelap.diffusion.denoiser import Denoiser
from pelap.diffusion.model_denoiser import model_denoiser
from pelap.diffusion.sampler import ModelGenerator
from pelap.evaluation.evaluator import Evaluator
from pelap.evaluation.image_metrics import ImageMetrics, differences, main_metric, recovered
from pelap.evaluation.reference import EvaluationReference
from pelap.models.deep_cache import DeepCache
from pelap.models.latent_diffusion import LatentDiffusion
from pelap.models.model_io import trained_model
from pelap.models.text_conditioner import UNKNOWN
from pelap.pipelines.model_io import load_model
from pelap.stages.shared import Context

NUM_SHOWN = 32
Models = Mapping[str, LatentDiffusion]


def run(context: Context) -> None:
    """Write one object a model into `metrics.json`, tables, and what they were measured with beside it."""
    params, paths, seed = context.params.evaluate, context.paths, context.params.seed
    with files.exclusive(paths.evaluate), files.atomic_dir(paths.evaluate) as partial:
        dataset, steps = context.dataset(), params.sampler.steps
        known = run_models(paths, context.params.variants, params.models == "variants")
        models = {
            name: trained_model(row.folder, dataset, context.device, load_model)
            for name, row in known.rows.items()
        }
        rivals = models | cached(known, models, params.deepcache_intervals)
        budget = known.budget(steps, params.step_counts, params.deepcache_intervals)
        entries = dict.fromkeys([*((name, steps) for name in models), *budget])
        generators = {entry: _generator(rivals[entry[0]], params, entry[1]) for entry in entries}
        reference = EvaluationReference.of(dataset, params, context.device, reference_cache(context.data))
        evaluator = Evaluator(reference, params, seed, context.device)

        def show_samples(name: str, images: torch.Tensor) -> None:
            path = partial / paths.samples(name).relative_to(paths.evaluate)
            reference.modality.save(images[:NUM_SHOWN], path.parent / name)

        def show_reconstructions(name: str, images: torch.Tensor) -> None:
            path = partial / paths.reconstructions(name).relative_to(paths.evaluate)
            reference.modality.save_grid(images[:NUM_SHOWN], path)

        # Costs first: whether networks can be compiled is known before hours of sampling.
        costs = evaluator.costs(
            {name: _denoiser(model, params, seed) for name, model in models.items()},
            {name: row.folder / "unet" for name, row in known.rows.items()},
        )
        times = evaluator.image_times(generators)
        figures = evaluator.images(
            {name: generators[name, steps] for name in models}, known.scored, known.derived, show_samples
        )
        autoencoders = {name: model.reconstruct for name, model in models.items()}
        decoded = evaluator.reconstructions(autoencoders, show_reconstructions)
        shares = shares_recovered(known, figures)
        metrics = {
            name: measured.metrics
            | decoded.get(name, {})
            | costs.metrics.get(name, {})
            | times.get((name, steps), {})
            | shares.get(name, {})
            for name, measured in figures.items()
        }
        files.write_json(partial / paths.metrics.name, metrics)
        files.write_csv(partial / paths.latencies.name, costs.latencies)
        table = evaluator.budget({entry: generators[entry] for entry in budget}, figures, times)
        files.write_csv(partial / paths.budget.name, table)
        against = [known.scored, *known.of_start("dense")] if known.scored else []
        files.write_csv(partial / paths.differences.name, differences(figures, known.derived, against))
        num_reconstructions = min(params.num_reconstructions, len(dataset.test))
        protocol = evaluator.protocol(
            figures, **describe(known, models, params), num_reconstructions=num_reconstructions
        )
        files.write_json(partial / paths.evaluate_protocol.name, protocol)


def cached(known: RunModels, models: Models, intervals: Iterable[int]) -> dict[str, LatentDiffusion]:
    """The scored variant with each interval of `deepcache_intervals`, by name; nothing where none was."""
    result: dict[str, LatentDiffusion] = {}
    for interval in intervals if known.scored else ():
        name, dense = cached_name(interval), models[str(known.scored)]
        if name in known.rows:
            raise ConfigError(
                f"evaluate.deepcache_intervals: {name} is the name of a model already; call the variant or "
                "student something else"
            )
        try:
            result[name] = dense.with_unet(DeepCache(dense.unet, interval), name, dense.info.ema_decay)
        except ModelError as error:
            raise ConfigError(
                f"evaluate.deepcache_intervals: {known.scored} cannot be cached ({error}); or set it to []"
            ) from None
    return result


def _generator(model: LatentDiffusion, params: EvaluateParams, steps: int) -> ModelGenerator:
    sampler = params.sampler.model_copy(update={"steps": steps})
    # Times beside those of cached features, which cannot be recorded, have to be of plain runs too.
    return ModelGenerator(model, sampler, params.precision, record=not params.deepcache_intervals)


def _denoiser(model: LatentDiffusion, params: EvaluateParams, seed: int) -> Denoiser:
    # Any sampler: only the first call of the network is taken from its run.
    return model_denoiser(model, SamplerParams(kind="ddim", steps=1), seed, precision=params.precision)


def shares_recovered(known: RunModels, figures: Mapping[str, ImageMetrics]) -> dict[str, dict[str, float]]:
    """Of every network that was trained after pruning, what that brought back, where it can be told."""
    result = {}
    for name in known.of_start("pruned"):
        row = known.rows[name]
        if row.tuned:
            pruned, dense = figures[f"pruned-{row.plan}"], figures[str(known.scored)]
            share = recovered(pruned, figures[name], dense, main_metric(figures))
            result[name] = {} if share is None else {"recovered": share}
    return result


def describe(known: RunModels, models: Models, params: EvaluateParams) -> dict[str, Any]:
    """What the models are and were asked for, for the protocol."""
    conditioners = [model.conditioner for model in models.values() if model.conditioner is not None]
    prompts = None
    if conditioners:
        asked = conditioners[0].labels_of_prompts(range(params.num_images))
        prompts = conditioners[0].describe() | {"num_judged": int((asked != UNKNOWN).sum())}
    return {
        "sampler": params.sampler.model_dump(),
        "prompts": prompts,
        "rows_per_latent": max([1, *(conditioner.rows_per_latent for conditioner in conditioners)]),
        "step_counts": list(params.step_counts),
        "deepcache_intervals": list(params.deepcache_intervals),
        "ema_decay": {name: model.info.ema_decay for name, model in models.items()},
        "scored_variant": known.scored,
        "plans": [row.plan for row in known.rows.values() if row.start == "pruned" and not row.tuned],
        "students": {name: row.start for name, row in known.rows.items() if row.tuned},
        "dense_students": known.of_start("dense"),
    }
