"""evaluate: quality and cost of every model, measured alike."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pelap.config import SamplerParams
from pelap.core import files
from pelap.core.device import uses_bf16
from pelap.core.errors import ConfigError, DataError, ModelError, finite
from pelap.core.paths import RunPaths, reference_cache
from pelap.data.dataset import ImageDataset, Split, to_float, to_uint8
from pelap.data.modality import Modality
from pelap.diffusion.model_denoiser import model_denoiser
from pelap.diffusion.sampler import ModelGenerator
from pelap.evaluation.comparison import (
    Metrics,
    Pairs,
    compare_costs,
    differences,
    main_metric,
    measure_distance,
    measure_pictures,
    protocol_of_figures,
    recovered,
    time_images,
)
from pelap.evaluation.image_quality import psnr, ssim
from pelap.evaluation.real import EvaluationReference, real_pictures
from pelap.evaluation.reference import REAL_ROW, ImageMetrics
from pelap.models.deep_cache import DeepCache
from pelap.models.latent_diffusion import LatentDiffusion
from pelap.models.model_io import trained_model
from pelap.models.text_conditioner import UNKNOWN
from pelap.pipelines.model_io import load_model
from pelap.stages.shared import Context

NUM_SHOWN = 32

Models = Mapping[str, LatentDiffusion]
Entry = tuple[str, int]
"""A row of the table of budgets: a model and its number of sampling steps."""


@dataclass(frozen=True)
class Row:
    """A model of the table."""

    folder: Path
    start: str | None = None
    """What its UNet is, or was before it was trained further; None for a variant."""
    plan: str | None = None
    """That it was pruned by."""
    tuned: bool = False
    """Whether `distill` trained it."""


@dataclass(frozen=True)
class Table:
    """All models of the table, and the variant that the others come from; None where there are none."""

    rows: dict[str, Row]
    scored: str | None

    def of_start(self, start: str) -> list[str]:
        """Names of the rows that started so."""
        return [name for name, row in self.rows.items() if row.start == start]

    @property
    def derived(self) -> list[str]:
        """Names of all rows but the variants."""
        return [name for name, row in self.rows.items() if row.start is not None]


def run(context: Context) -> None:
    """Write one object a model into `metrics.json`, tables, and what they were measured with beside it."""
    params, paths = context.params.evaluate, context.paths
    with files.exclusive(paths.evaluate):
        dataset = context.dataset()
        table = _table(context)
        models = {
            name: trained_model(row.folder, dataset, context.device, load_model)
            for name, row in table.rows.items()
        }
        rivals = models | _cached(context, table, models)
        real = real_pictures(dataset, params, reference_cache(context.data), context.device)
        with files.atomic_dir(paths.evaluate) as partial:
            # Costs first: whether networks can be compiled is known before hours of sampling.
            costs, latencies = _costs(context, table, models)
            times = _image_times(context, table, rivals)
            figures = _figures(context, table, models, real, partial)
            qualities = _reconstructions(context, models, dataset.test, real.modality, partial)
            steps = params.sampler.steps
            metrics = {
                name: (
                    figures[name].metrics
                    | qualities.get(name, {})
                    | costs.get(name, {})
                    | times.get((name, steps), {})
                    | _recovered(table, name, figures)
                )
                for name in figures
            }
            files.write_json(partial / paths.metrics.name, metrics)
            files.write_csv(partial / paths.latencies.name, latencies)
            files.write_csv(
                partial / paths.budget.name, _budget(context, table, rivals, real, figures, times)
            )
            against = [table.scored, *table.of_start("dense")] if table.scored else []
            files.write_csv(partial / paths.differences.name, differences(figures, table.derived, against))
            protocol = _protocol(context, table, models, dataset, real, figures)
            files.write_json(partial / paths.evaluate_protocol.name, protocol)


def _table(context: Context) -> Table:
    """The variants, the networks that were pruned, and those that were trained further."""
    paths, variants = context.paths, context.params.variants
    rows = {name: Row(paths.train(name).model) for name in variants}
    if context.params.evaluate.models == "variants":
        return Table(rows, None)
    scored = files.read_mapping(paths.score_protocol, ["variant"])["variant"]
    if scored not in rows:
        raise ConfigError(
            f"variants: lacks {scored}, which {paths.score_protocol} says was scored; add it, or score again"
        )
    plans = list(files.read_mapping(paths.prune_result))
    rows |= {f"pruned-{plan}": Row(paths.pruned_model(plan), "pruned", plan) for plan in plans}
    return Table(rows | _students(paths, plans), scored)


def _students(paths: RunPaths, plans: Collection[str]) -> dict[str, Row]:
    try:
        students = {
            name: Row(paths.distilled_model(name), entry["start"], entry["plan"], tuned=True)
            for name, entry in files.read_mapping(paths.distill_result).items()
        }
    except (KeyError, TypeError) as error:
        raise DataError(f"{paths.distill_result}: no usable {files.one_line(error)}; distill again") from None
    for name, row in students.items():
        if row.start != "dense" and row.plan not in plans:
            raise DataError(
                f"{paths.distill_result}: {name} is of plan {row.plan}, {paths.prune_result} has "
                f"{', '.join(plans)}; distill again"
            )
    return students


def _cached(context: Context, table: Table, models: Models) -> dict[str, LatentDiffusion]:
    """The scored variant with each interval of `deepcache_intervals`, by the row's name."""
    if table.scored is None:
        return {}
    dense, result = models[table.scored], {}
    for interval in context.params.evaluate.deepcache_intervals:
        name = f"cached-{interval}"
        if name in table.rows:
            raise ConfigError(
                f"evaluate.deepcache_intervals: {name} is the name of a model already; call the variant or "
                "student something else"
            )
        try:
            unet = DeepCache(dense.unet, interval)
        except ModelError as error:
            raise ConfigError(
                f"evaluate.deepcache_intervals: {table.scored} cannot be cached ({error}); or set it to []"
            ) from None
        result[name] = dense.with_unet(unet, name, dense.info.ema_decay)
    return result


def _source(context: Context, model: LatentDiffusion, num_steps: int | None = None) -> ModelGenerator:
    params = context.params.evaluate
    steps = {"steps": num_steps or params.sampler.steps}
    # Times beside those of cached features, which cannot be recorded, have to be of plain runs too.
    record = not params.deepcache_intervals
    return ModelGenerator(model, params.sampler.model_copy(update=steps), params.precision, record)


def _figures(
    context: Context, table: Table, models: Models, real: EvaluationReference, folder: Path
) -> dict[str, ImageMetrics]:
    """What samples of every model say, whose first ones are shown in `folder`."""
    params = context.params.evaluate

    def show(name: str, images: torch.Tensor) -> None:
        path = _inside(folder, context, context.paths.samples(name))
        real.modality.save(images[:NUM_SHOWN], path.with_name(path.name.removesuffix(path.suffix)))
        if name in sources:
            sources[name].forget()

    sources = {name: _source(context, model) for name, model in models.items()}
    pairs = Pairs(table.scored, table.derived)
    asked = {
        name: model.conditioner.labels_of_prompts(range(params.num_images))
        for name, model in models.items()
        if model.conditioner is not None
    }
    return measure_pictures(sources, real, params, context.params.seed, pairs, show, asked)


def _inside(folder: Path, context: Context, path: Path) -> Path:
    """Where a file of this stage lies while the stage's folder is still being filled."""
    return folder / path.relative_to(context.paths.evaluate)


@torch.no_grad()
def _reconstructions(
    context: Context, models: Models, test: Split, modality: Modality, folder: Path
) -> dict[str, Metrics]:
    """PSNR and SSIM of test pictures through each autoencoder, the way its variant decodes."""
    params = context.params.evaluate
    originals = test.images[: params.num_reconstructions]
    modality.save_grid(
        originals[:NUM_SHOWN], _inside(folder, context, context.paths.reconstructions(REAL_ROW))
    )
    result = {}
    for name, model in models.items():
        batches = originals.to(context.device).split(params.batch_size)
        made = torch.cat([model.reconstruct(to_float(batch)) for batch in batches]).cpu()
        decoded = to_uint8(finite(made, f"{name}: reconstructions", "train its autoencoder again"))
        modality.save_grid(decoded[:NUM_SHOWN], _inside(folder, context, context.paths.reconstructions(name)))
        result[name] = {"psnr": psnr(decoded, originals), "ssim": ssim(decoded, originals)}
    return result


def _costs(context: Context, table: Table, models: Models) -> tuple[dict[str, Metrics], pd.DataFrame]:
    """What one pass of each UNet costs."""
    # Any sampler: only the first call of the network is taken from its run.
    sampler = SamplerParams(kind="ddim", steps=1)
    seed, precision = context.params.seed, context.params.evaluate.precision
    subjects = {
        name: model_denoiser(model, sampler, seed, precision=precision) for name, model in models.items()
    }
    weights = {name: row.folder / "unet" for name, row in table.rows.items()}
    return compare_costs(subjects, weights, context.params.evaluate, context.device)


def _image_times(context: Context, table: Table, models: Models) -> dict[Entry, Metrics]:
    """Time of one picture of every model, and of all rows of the table of budgets."""
    steps = context.params.evaluate.sampler.steps
    entries = dict.fromkeys([*((name, steps) for name in models), *_entries(context, table)])
    sources = {entry: _source(context, models[entry[0]], entry[1]) for entry in entries}
    return time_images(sources, context.params.evaluate, context.device)


def _entries(context: Context, table: Table) -> list[Entry]:
    """What can be had for less time.

    That is the scored variant, and what was trained on from it, in fewer steps; the scored variant whose
    steps share deep features; and every network that was pruned.
    """
    if table.scored is None:
        return []
    params = context.params.evaluate
    every = sorted({params.sampler.steps, *params.step_counts}, reverse=True)
    cached = [f"cached-{interval}" for interval in params.deepcache_intervals]
    return [
        *((table.scored, steps) for steps in every),
        *((name, params.sampler.steps) for name in cached),
        *((name, steps) for name in table.of_start("dense") for steps in every),
        *((name, params.sampler.steps) for name in table.of_start("pruned")),
    ]


def _budget(
    context: Context,
    table: Table,
    models: Models,
    real: EvaluationReference,
    figures: Mapping[str, ImageMetrics],
    times: Mapping[Entry, Metrics],
) -> pd.DataFrame:
    """Quality against time per picture."""
    params, metric, rows = context.params.evaluate, main_metric(figures), []
    for name, steps in _entries(context, table):
        known = figures.get(name)
        if known is None or steps != params.sampler.steps:
            source = _source(context, models[name], steps)
            known = measure_distance(source, real, params, context.params.seed)
        quality = {key: known.metrics.get(key) for key in (metric, f"{metric}_se")}
        rows.append({"model": name, "steps": steps, **times.get((name, steps), {}), **quality})
    columns = ["model", "steps", "image_ms", "image_iqr_ms", metric, f"{metric}_se"]
    return pd.DataFrame(rows, columns=columns)


def _recovered(table: Table, name: str, figures: Mapping[str, ImageMetrics]) -> Metrics:
    row = table.rows.get(name)
    if row is None or not row.tuned or row.start != "pruned":
        return {}
    assert table.scored is not None, "students come from the scored variant"
    pruned, dense = figures[f"pruned-{row.plan}"], figures[table.scored]
    share = recovered(pruned, figures[name], dense, main_metric(figures))
    return {} if share is None else {"recovered": share}


def _prompts(models: Models, num_images: int) -> dict[str, Any] | None:
    """What samples of every model were asked to be, and for how many of them the class is known."""
    for model in models.values():
        if (conditioner := model.conditioner) is not None:
            asked = conditioner.labels_of_prompts(range(num_images))
            return conditioner.describe() | {"num_judged": int((asked != UNKNOWN).sum())}
    return None


def _protocol(
    context: Context,
    table: Table,
    models: Models,
    dataset: ImageDataset,
    real: EvaluationReference,
    figures: Mapping[str, ImageMetrics],
) -> dict[str, Any]:
    params = context.params.evaluate
    extra = {
        "sampler": params.sampler.model_dump(),
        "prompts": _prompts(models, params.num_images),
        "rows_per_latent": max(
            1 if model.conditioner is None else model.conditioner.rows_per_latent for model in models.values()
        ),
        "precision": "bf16" if uses_bf16(context.device, params.precision) else "fp32",
        "step_counts": list(params.step_counts),
        "deepcache_intervals": list(params.deepcache_intervals),
        "ema_decay": {name: model.info.ema_decay for name, model in models.items()},
        "scored_variant": table.scored,
        "plans": [row.plan for row in table.rows.values() if row.start == "pruned" and not row.tuned],
        "students": {name: row.start for name, row in table.rows.items() if row.tuned},
        "dense_students": table.of_start("dense"),
        "num_reconstructions": min(params.num_reconstructions, len(dataset.test)),
    }
    return protocol_of_figures(dataset, real, params, context.params.seed, context.device, figures, extra)
