"""What models and pipelines are compared by: their pictures, what they cost, and what both were made with."""

from collections.abc import Callable, Collection, Hashable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch
from torch import nn

from pelap.config import EvaluateParams
from pelap.core.device import environment
from pelap.core.errors import ConfigError, DataError, finite
from pelap.core.files import one_line
from pelap.core.graphs import WARMUP_CALLS, can_record
from pelap.core.part_io import weights_bytes
from pelap.core.progress import progress
from pelap.core.rng import noise
from pelap.data.dataset import ImageDataset
from pelap.diffusion.denoiser import Denoiser, said_if_some_are_left
from pelap.diffusion.sampler import ImageGenerator, in_turn, said_if_alike, sample_from
from pelap.evaluation.classifier import agreement, share
from pelap.evaluation.frechet import standard_error
from pelap.evaluation.image_quality import SSIM_SIDE, lpips, psnr, ssim
from pelap.evaluation.real import EvaluationReference
from pelap.evaluation.reference import REAL_ROW, ImageMetrics
from pelap.profiling.cost import count_macs, count_params, peak_memory_mib
from pelap.profiling.latency import Latency, compiled, measure_latency

LATENCY_COLUMNS = ("model", "batch_size", "mode", "median_ms", "iqr_ms", "repeats")
DIFFERENCE_COLUMNS = ("model", "against", "metric", "difference", "se")
CERTAIN = 2
"""Standard errors that a gap must exceed before shares of it are stated."""
_MIB = 2**20

Key = TypeVar("Key", bound=Hashable)
Metrics = dict[str, float]
Show = Callable[[str, torch.Tensor], None]
NOTHING_ASKED: Mapping[str, torch.Tensor] = {}


@dataclass(frozen=True)
class Pairs:
    """Rows whose pictures are compared one by one with those of another, made from the same noise."""

    dense: str | None
    others: Collection[str]


def measure_pictures(
    sources: Mapping[str, ImageGenerator],
    real: EvaluationReference,
    params: EvaluateParams,
    seed: int,
    pairs: Pairs,
    show: Show = lambda name, images: None,
    asked: Mapping[str, torch.Tensor] = NOTHING_ASKED,
) -> dict[str, ImageMetrics]:
    """Figures of every source's samples, and of the floor, by name; all are made from the same noise.

    Args:
        sources: What makes pictures, by name; the one that pairs are made with before its others.
        real: What they are compared with.
        params: The section `evaluate`.
        seed: Names the noise.
        pairs: What is compared picture by picture as well.
        show: Called with every name and its pictures (num_images, C, H, W) uint8.
        asked: By the name of a source that has prompts, the label (num_images,) that each picture is asked
            to be; `UNKNOWN` counts for nothing.
    """
    result, dense, strata = {}, None, in_turn(params.num_images, sources.values())
    with progress("evaluate samples", len(sources) + 1) as report:
        for done, (name, source) in enumerate(sources.items(), start=1):
            images = make_pictures(source, params, seed)
            show(name, images)
            heard = real.modality.rendered(images)
            figures = real.reference.measure(heard, params.only_frechet, strata)
            metrics = figures.metrics | _agreement(real, heard, asked.get(name))
            if name == pairs.dense:
                dense = images
            if name in pairs.others and dense is not None:
                metrics |= _to_dense(images, dense, real.lpips)
            left = said_if_some_are_left(name, params.num_images, source.num_asked, "evaluate.num_images")
            notes = (*said_if_alike(name, images), *left)
            result[name] = _checked(name, replace(figures, metrics=metrics, notes=notes))
            report(done, name)
        show(REAL_ROW, real.floor)
        result[REAL_ROW] = _floor(real, params, bool(asked))
        report(len(sources) + 1, REAL_ROW)
    return result


def make_pictures(source: ImageGenerator, params: EvaluateParams, seed: int) -> torch.Tensor:
    """Samples (num_images, C, H, W) uint8; picture i depends on (seed, i) alone."""
    return sample_from(source, params.num_images, seed, params.batch_size)


def measure_distance(
    source: ImageGenerator, real: EvaluationReference, params: EvaluateParams, seed: int
) -> ImageMetrics:
    """The Frechet distances of a source's samples alone; as those of `measure_pictures`."""
    images = make_pictures(source, params, seed)
    said_if_alike(source.name, images)
    asked = in_turn(params.num_images, [source])
    heard = real.modality.rendered(images)
    return _checked(source.name, real.reference.measure(heard, only_frechet=True, strata=asked))


def _checked(name: str, figures: ImageMetrics) -> ImageMetrics:
    for metric, value in figures.metrics.items():
        finite(value, f"{name}: {metric}", "look at its samples and at what measures them", DataError)
    return figures


def _agreement(real: EvaluationReference, images: torch.Tensor, asked: torch.Tensor | None) -> Metrics:
    """How many pictures are taken for what was asked for, where that can be said."""
    if real.classifier is None or asked is None:
        return {}
    return agreement(real.classifier, images, asked)


def _floor(real: EvaluationReference, params: EvaluateParams, prompted: bool) -> ImageMetrics:
    """The row of other real pictures, with what it alone has."""
    figures = real.reference.measure(real.floor, params.only_frechet, real.floor_labels)
    metrics, notes = (
        figures.metrics | _floor_alone(real, prompted),
        tuple(said_if_alike(REAL_ROW, real.floor)),
    )
    return _checked(REAL_ROW, replace(figures, metrics=metrics, notes=notes))


def _floor_alone(real: EvaluationReference, prompted: bool) -> Metrics:
    """What only the row of real pictures has.

    Beside agreements with prompts it is the accuracy on test pictures. Where samples are not perceived as
    they are made, distances of real ones that went the same way say what that alone costs.
    """
    metrics: Metrics = {}
    if real.classifier is not None and prompted:
        metrics |= share(real.classifier.test_accuracy, real.classifier.num_test)
    if not real.modality.lossless:
        vocoded = real.reference.measure(
            real.modality.rendered(real.floor), only_frechet=True, strata=real.floor_labels
        )
        metrics |= {f"{name}_vocoded": vocoded.metrics[name] for name in vocoded.replicates}
    return metrics


def _to_dense(images: torch.Tensor, dense: torch.Tensor, network: nn.Module | None) -> Metrics:
    metrics = {"psnr_to_dense": psnr(images, dense)}
    if min(images.shape[-2:]) >= SSIM_SIDE:
        metrics["ssim_to_dense"] = ssim(images, dense)
    if network is not None:
        metrics["lpips_to_dense"] = lpips(images, dense, network)
    return metrics


def main_metric(figures: Mapping[str, ImageMetrics]) -> str:
    """The Frechet distance of the first extractor, by its name."""
    return next(iter(figures[REAL_ROW].replicates))


def difference(one: ImageMetrics, other: ImageMetrics, metric: str) -> tuple[float, float]:
    """How much larger a Frechet distance is, and the standard error of that.

    Both are of pictures from the same noise, whose chances are the same in part: they are taken away
    together, group by group of the jackknife.
    """
    pairs = zip(one.replicates[metric], other.replicates[metric], strict=True)
    error = standard_error([mine - theirs for mine, theirs in pairs])
    return one.metrics[metric] - other.metrics[metric], error


def recovered(pruned: ImageMetrics, tuned: ImageMetrics, dense: ImageMetrics, metric: str) -> float | None:
    """Share of what pruning cost in a Frechet distance that fine-tuning brought back; 1 is all of it.

    None where pruning cost nothing that could be told from chance, at twice the standard error.
    """
    cost, error = difference(pruned, dense, metric)
    if not cost > CERTAIN * error:
        return None
    return difference(pruned, tuned, metric)[0] / cost


def differences(
    figures: Mapping[str, ImageMetrics], rows: Collection[str], against: Collection[str]
) -> pd.DataFrame:
    """The first Frechet distance of each of `rows`, less that of each of `against` other than itself."""
    metric = main_metric(figures)
    table = [
        (row, other, metric, *difference(figures[row], figures[other], metric))
        for row in rows
        for other in against
        if row != other
    ]
    return pd.DataFrame(table, columns=list(DIFFERENCE_COLUMNS))


def compare_costs(
    subjects: Mapping[str, Denoiser],
    weights: Mapping[str, Path],
    params: EvaluateParams,
    device: torch.device,
) -> tuple[dict[str, Metrics], pd.DataFrame]:
    """What one pass of each denoiser costs; all are timed in turns, so that they can be compared.

    Args:
        subjects: Denoisers by name.
        weights: Folders of their weights.
        params: The section `evaluate`.
        device: Where they are.

    Returns:
        Metrics by name, at the first of `latency_batch_sizes` (MACs: of one latent), and times at all of
        them. Both are empty where `latency_repeats` is None.

    Raises:
        ConfigError: `torch.compile` is asked for and fails.
    """
    if params.latency_repeats is None:
        return {}, pd.DataFrame(columns=list(LATENCY_COLUMNS))
    latencies = _latencies(subjects, params, params.latency_repeats, device)
    size = params.latency_batch_sizes[0]
    metrics = {}
    for name, denoiser in subjects.items():
        latency = latencies[name, size, "eager"]
        metrics[name] = {
            "latency_ms": latency.median_ms,
            "latency_iqr_ms": latency.iqr_ms,
            "latency_least_ms": latency.least_ms,
            "params": count_params(denoiser.network),
            "macs": count_macs(denoiser.network, denoiser.forward(1))[""],
            "peak_memory_mib": peak_memory_mib(denoiser.network, denoiser.forward(size), device),
            "disk_mib": disk_mib(weights[name]),
        }
    table = [(*key, latency.median_ms, latency.iqr_ms, latency.repeats) for key, latency in latencies.items()]
    return metrics, pd.DataFrame(table, columns=list(LATENCY_COLUMNS))


def _latencies(
    subjects: Mapping[str, Denoiser], params: EvaluateParams, repeats: int, device: torch.device
) -> dict[tuple[str, int, str], Latency]:
    """Time of one pass by name, batch size and mode."""
    networks = {"eager": {name: denoiser.network for name, denoiser in subjects.items()}}
    result: dict[tuple[str, int, str], Latency] = {}
    with ExitStack() as stack:
        if params.latency_compiled:
            networks["compiled"] = stack.enter_context(compiled(networks["eager"]))
        for size in params.latency_batch_sizes:
            passes = {
                (name, size, mode): subjects[name].forward(size, network)
                for mode, of_mode in networks.items()
                for name, network in of_mode.items()
            }
            for (name, _, mode), forward in passes.items():
                if mode == "compiled":
                    _translate(name, forward)
            result |= measure_latency(passes, device, repeats)
    return result


def _translate(name: str, forward: Callable[[], object]) -> None:
    """The first call, in which `torch.compile` works; compilers raise anything."""
    try:
        forward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ConfigError(
            f"evaluate: torch.compile fails on {name} ({type(error).__name__}: {one_line(error)}); set "
            "latency_compiled: false, or install what it asks for"
        ) from error


def disk_mib(folder: Path) -> float:
    """Size of a network's weights as saved in `folder`, in MiB; of several copies the one that is loaded."""
    return weights_bytes(folder) / _MIB


def time_images(
    sources: Mapping[Key, ImageGenerator], params: EvaluateParams, device: torch.device
) -> dict[Key, Metrics]:
    """Time of one picture, from noise to decoded pixels, in batches of the first of `latency_batch_sizes`.

    All are timed in turns. Nothing where `latency_repeats` is None.
    """
    if params.latency_repeats is None:
        return {}
    size = params.latency_batch_sizes[0]
    calls = {key: _sampling(source, size) for key, source in sources.items()}
    # One round of warm-up, as a call has many passes; where calls are recorded, until that is done.
    warmup = WARMUP_CALLS + 2 if can_record(device) else 1
    latencies = measure_latency(calls, device, params.sampler_repeats, warmup)
    return {
        key: {"image_ms": latency.median_ms / size, "image_iqr_ms": latency.iqr_ms / size}
        for key, latency in latencies.items()
    }


def _sampling(source: ImageGenerator, size: int) -> Callable[[], object]:
    start = noise(source.latent_shape, 0, "cost", range(size))

    def sample() -> object:
        with torch.no_grad():
            return source.decode(source.denoise(start, range(size), 0))

    return sample


def protocol_of_figures(
    dataset: ImageDataset,
    real: EvaluationReference,
    params: EvaluateParams,
    seed: int,
    device: torch.device,
    figures: Mapping[str, ImageMetrics],
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """What stands beside a table of figures, as a JSON object; `extra` is what only this table has."""
    said = [note for each in figures.values() for note in each.notes]
    return {
        "dataset": dataset.name,
        "dataset_checksum": dataset.checksum,
        "reference_split": "train",
        **real.describe(dataset, params),
        **extra,
        "latency_batch_sizes": list(params.latency_batch_sizes),
        "latency_compiled": params.latency_compiled,
        "latency_repeats": params.latency_repeats,
        "sampler_repeats": params.sampler_repeats,
        "seed": seed,
        "notes": [*real.notes(dataset, params), *said],
        **environment(device),
    }
