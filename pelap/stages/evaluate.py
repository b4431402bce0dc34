"""evaluate: quality and cost of every model, measured alike."""

from pelap.config import SamplerParams
from pelap.core import files
from pelap.core.digests import demand_unchanged, result_dir
from pelap.core.paths import reference_cache, run_models
from pelap.diffusion.reverse import model_denoiser
from pelap.diffusion.sampler import ModelGenerator, cached_models, describe_models
from pelap.evaluation.evaluation_reference import EvaluationReference
from pelap.evaluation.evaluator import Evaluator
from pelap.evaluation.reference import differences, shares_recovered, with_metrics
from pelap.models.model_io import said_if_another, trained_model
from pelap.pipelines.pipeline_io import load_model
from pelap.stages.shared import Context

NUM_SHOWN = 32
ANY_SAMPLER = SamplerParams(kind="ddim", steps=1)  # the first call of the network alone is taken, and timed


def run(context: Context) -> None:
    """Write one object a model into `metrics.json`, tables, and what they were measured with beside it."""
    params, paths, seed = context.params.evaluate, context.paths, context.params.seed
    with files.exclusive(paths.evaluate), result_dir(paths.evaluate) as partial:
        dataset, steps = context.dataset(), params.sampler.steps
        known = run_models(paths, context.params.variants, params.models == "variants")
        models = {
            name: trained_model(row.folder, dataset, context.device, load_model)
            for name, row in known.rows.items()
        }
        for name, model in models.items():
            said_if_another(model, known.rows[name].folder, name)
        for made in (paths.score, paths.prune, paths.distill) if known.scored else ():
            demand_unchanged(made)
        dense = models[known.scored] if known.scored else None
        rivals = models | cached_models(dense, params.deepcache_intervals, models)
        budget = known.budget(steps, params.step_counts, params.deepcache_intervals)
        generators = {
            (name, count): ModelGenerator(
                rivals[name],
                params.sampler.model_copy(update={"steps": count}),
                params.precision,
                # Cached features cannot be recorded: times beside theirs have to be of plain runs too.
                record=not params.deepcache_intervals,
            )
            for name, count in [*((name, steps) for name in models), *budget]
        }
        reference = EvaluationReference.of(dataset, params, context.device, reference_cache(context.data))
        evaluator = Evaluator(reference, params, seed, context.device)
        # Costs first: whether networks can be compiled is known before hours of sampling.
        denoisers = {
            name: model_denoiser(model, ANY_SAMPLER, seed, precision=params.precision)
            for name, model in models.items()
        }
        weights = {name: row.folder / "unet" for name, row in known.rows.items()}
        costs, latencies = evaluator.costs(denoisers, weights)
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
        control = next(iter(known.of_start("dense")), None)
        shares = shares_recovered(figures, known.tuned_from, known.scored, control)
        own_times = {name: times.get((name, steps), {}) for name in models}
        metrics = with_metrics(figures, decoded, costs, own_times, shares)
        files.write_json(partial / paths.metrics.name, metrics)
        files.write_csv(partial / paths.latencies.name, latencies)
        table = evaluator.budget({entry: generators[entry] for entry in budget}, figures, times)
        files.write_csv(partial / paths.budget.name, table)
        against = [known.scored, *known.of_start("dense")] if known.scored else []
        files.write_csv(partial / paths.differences.name, differences(figures, known.derived, against))
        protocol = evaluator.protocol(
            figures,
            **params.model_dump(mode="json", include={"sampler", "step_counts", "deepcache_intervals"}),
            **describe_models(models, params.num_images),
            **known.describe(),
            num_reconstructions=min(params.num_reconstructions, len(dataset.test)),
        )
        files.write_json(partial / paths.evaluate_protocol.name, protocol)
