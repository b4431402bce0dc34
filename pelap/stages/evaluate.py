"""evaluate: quality and cost of every model, measured alike."""

from collections.abc import Iterable, Mapping
from typing import Any

from pelap.config import EvaluateParams, SamplerParams
from pelap.core import files
from pelap.core.errors import ConfigError, ModelError
from pelap.core.paths import reference_cache
from pelap.core.run_models import RunModels, cached_name, run_models
from pelap.diffusion.model_denoiser import model_denoiser
from pelap.diffusion.sampler import ModelGenerator
from pelap.evaluation.evaluator import Evaluator
from pelap.evaluation.image_metrics import differences, shares_recovered, with_metrics
from pelap.evaluation.reference import EvaluationReference
from pelap.models.deep_cache import DeepCache
from pelap.models.latent_diffusion import LatentDiffusion
from pelap.models.model_io import trained_model
from pelap.models.text_conditioner import UNKNOWN
from pelap.pipelines.model_io import load_model
from pelap.stages.shared import Context

NUM_SHOWN = 32
ANY_SAMPLER = SamplerParams(kind="ddim", steps=1)
"""Of which the first call of the network alone is taken, to be timed."""
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
        generators = {
            (name, count): _generator(rivals[name], params, count)
            for name, count in [*((name, steps) for name in models), *budget]
        }
        reference = EvaluationReference.of(dataset, params, context.device, reference_cache(context.data))
        evaluator = Evaluator(reference, params, seed, context.device)
        # Costs first: whether networks can be compiled is known before hours of sampling.
        denoisers = {
            name: model_denoiser(model, ANY_SAMPLER, seed, precision=params.precision)
            for name, model in models.items()
        }
        costs = evaluator.costs(denoisers, {name: row.folder / "unet" for name, row in known.rows.items()})
        times = evaluator.image_times(generators)
        save, save_grid = reference.modality.save, reference.modality.save_grid
        figures = evaluator.images(
            {name: generators[name, steps] for name in models},
            known.scored,
            known.derived,
            lambda name, images: save(images[:NUM_SHOWN], partial / "samples" / name),
        )
        decoded = evaluator.reconstructions(
            {name: model.reconstruct for name, model in models.items()},
            lambda name, images: save_grid(images[:NUM_SHOWN], partial / "reconstructions" / f"{name}.png"),
        )
        shares = shares_recovered(figures, known.tuned_from, known.scored)
        own_times = {name: times.get((name, steps), {}) for name in models}
        metrics = with_metrics(figures, decoded, costs.metrics, own_times, shares)
        files.write_json(partial / paths.metrics.name, metrics)
        files.write_csv(partial / paths.latencies.name, costs.latencies)
        table = evaluator.budget({entry: generators[entry] for entry in budget}, figures, times)
        files.write_csv(partial / paths.budget.name, table)
        against = [known.scored, *known.of_start("dense")] if known.scored else []
        files.write_csv(partial / paths.differences.name, differences(figures, known.derived, against))
        protocol = evaluator.protocol(
            figures,
            **describe(models, params),
            **known.describe(),
            num_reconstructions=min(params.num_reconstructions, len(dataset.test)),
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


def describe(models: Models, params: EvaluateParams) -> dict[str, Any]:
    """How the models sample and what they were asked for, for the protocol."""
    conditioners = [model.conditioner for model in models.values() if model.conditioner is not None]
    prompts = None
    if conditioners:
        labels = conditioners[0].labels_of_prompts(range(params.num_images))
        prompts = conditioners[0].describe() | {"num_judged": int((labels != UNKNOWN).sum())}
    return {
        **params.model_dump(mode="json", include={"sampler", "step_counts", "deepcache_intervals"}),
        "prompts": prompts,
        "rows_per_latent": max([1, *(conditioner.rows_per_latent for conditioner in conditioners)]),
        "ema_decay": {name: model.info.ema_decay for name, model in models.items()},
    }
