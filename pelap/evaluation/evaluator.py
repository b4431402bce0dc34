"""One measure for all models and pipelines: their pictures, what they cost, and what both were made with."""

from collections.abc import Callable, Collection, Hashable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch

from pelap.config import EvaluateParams
from pelap.core.device import environment, uses_bf16
from pelap.core.errors import ConfigError, DataError, finite
from pelap.core.files import one_line
from pelap.core.graphs import WARMUP_CALLS, can_record
from pelap.core.part_io import weights_bytes
from pelap.core.paths import REAL_ROW
from pelap.core.rng import noise
from pelap.core.terminal import progress
from pelap.data.dataset import to_float, to_uint8
from pelap.diffusion.denoiser import Denoiser, said_if_some_are_left
from pelap.diffusion.sampler import ImageGenerator, in_turn, said_if_alike, sample_from
from pelap.evaluation.classifier import agreement, share
from pelap.evaluation.evaluation_reference import EvaluationReference
from pelap.evaluation.image_quality import pair_metrics
from pelap.evaluation.reference import ImageMetrics, differences, main_metric, with_metrics
from pelap.profiling.cost import count_macs, count_params, peak_memory_mib
from pelap.profiling.latency import Latency, compiled, measure_latency

LATENCY_COLUMNS = ("model", "batch_size", "mode", "median_ms", "iqr_ms", "repeats")
NOTHING: Mapping[str, Any] = {}

Key = TypeVar("Key", bound=Hashable)
Entry = tuple[str, int]  # a model's name and its number of sampling steps
Metrics = dict[str, float]
Autoencoder = Callable[[torch.Tensor], torch.Tensor]
Show = Callable[[str, torch.Tensor], None]


@dataclass(frozen=True)
class Evaluator:
    """Measures models and pipelines, all the same way.

    Picture i of every generator depends on (seed, i) alone, so that pictures can be compared one by one.
    Networks are timed in turns; none is where `latency_repeats` is None.
    """

    reference: EvaluationReference
    params: EvaluateParams  # the section `evaluate`
    seed: int  # names the noise
    device: torch.device  # where networks are

    def images(
        self,
        generators: Mapping[str, ImageGenerator],
        dense: str | None = None,
        paired: Collection[str] = (),
        show: Show = lambda name, images: None,
    ) -> dict[str, ImageMetrics]:
        """Figures of every generator's samples, and of other real pictures (`REAL_ROW`), by name.

        Args:
            generators: By name.
            dense: The one that those of `paired`, which come after it, are compared with picture by picture.
            paired: See `dense`.
            show: Called with every name and its pictures (num_images, C, H, W) uint8.

        Raises:
            ModelError: Samples are not finite.
            DataError: Metrics are not, or pictures have another size than the reference's.
        """
        result, original, num = {}, None, self.params.num_images
        strata = in_turn(num, generators.values())
        labels = {name: generator.labels(num) for name, generator in generators.items()}
        with progress("evaluate samples", len(generators) + 1) as report:
            for done, (name, generator) in enumerate(generators.items(), start=1):
                images = self._sample(generator)
                show(name, images)
                if name == dense:
                    original = images
                figures = self._measure(name, images, self.params.only_frechet, strata, labels[name])
                if name in paired and original is not None:
                    pairs = pair_metrics(images, original, self.reference.lpips)
                    figures.metrics.update({f"{metric}_to_dense": value for metric, value in pairs.items()})
                left = said_if_some_are_left(name, num, generator.num_asked, "evaluate.num_images")
                result[name] = _checked(name, replace(figures, notes=(*figures.notes, *left)))
                report(done, name)
            show(REAL_ROW, self.reference.floor)
            result[REAL_ROW] = self._floor(prompted=any(asked is not None for asked in labels.values()))
            report(len(generators) + 1, REAL_ROW)
        return result

    def compare(
        self,
        generators: Mapping[str, ImageGenerator],
        denoisers: Mapping[str, Denoiser],
        weights: Mapping[str, Path] = NOTHING,
        show: Show = lambda name, images: None,
        **extra: Any,
    ) -> tuple[dict[str, Metrics], dict[str, Any]]:
        """All metrics by name, of the first, dense one and the others beside it, and their protocol.

        The protocol has the differences and latencies in it. For arguments see `images`, `costs`, `protocol`.
        """
        first, *others = generators
        figures = self.images(generators, first, others, show)
        costs, latencies = self.costs(denoisers, weights)
        metrics = with_metrics(figures, costs, self.image_times(generators))
        protocol = self.protocol(
            figures,
            **extra,
            dense=first,
            differences=differences(figures, others, [first]).to_dict("records"),
            latencies=latencies.to_dict("records"),
        )
        return metrics, protocol

    def distance(self, generator: ImageGenerator) -> ImageMetrics:
        """The Frechet distances of a generator's samples alone; as those of `images`."""
        strata = in_turn(self.params.num_images, [generator])
        return _checked(generator.name, self._measure(generator.name, self._sample(generator), True, strata))

    @torch.no_grad()
    def reconstructions(
        self, autoencoders: Mapping[str, Autoencoder], show: Show = lambda name, images: None
    ) -> dict[str, Metrics]:
        """PSNR and SSIM of `num_reconstructions` test pictures through each autoencoder.

        Args:
            autoencoders: By name, pictures (B, C, H, W) in [-1, 1] to what comes back.
            show: Called with `REAL_ROW` and the originals, and with every name and what came back, uint8.

        Raises:
            ModelError: That is not finite.
        """
        originals, result = self.reference.dataset.test.images[: self.params.num_reconstructions], {}
        show(REAL_ROW, originals)
        for name, reconstruct in autoencoders.items():
            batches = originals.to(self.device).split(self.params.batch_size)
            made = torch.cat([reconstruct(to_float(batch)) for batch in batches]).cpu()
            decoded = to_uint8(finite(made, f"{name}: reconstructions", "train its autoencoder again"))
            show(name, decoded)
            result[name] = pair_metrics(decoded, originals)
        return result

    def costs(
        self, denoisers: Mapping[str, Denoiser], weights: Mapping[str, Path] = NOTHING
    ) -> tuple[dict[str, Metrics], pd.DataFrame]:
        """What one pass of each denoiser costs.

        Args:
            denoisers: By name.
            weights: Folders of their weights, where they are saved.

        Returns:
            Metrics by name, at the first of `latency_batch_sizes` (MACs: of one latent), and a table of the
            times at all of them.

        Raises:
            ConfigError: `torch.compile` is asked for and fails.
        """
        if self.params.latency_repeats is None:
            return {}, pd.DataFrame(columns=list(LATENCY_COLUMNS))
        latencies = self._latencies(denoisers, self.params.latency_repeats)
        size = self.params.latency_batch_sizes[0]
        metrics = {}
        for name, denoiser in denoisers.items():
            latency, network = latencies[name, size, "eager"], denoiser.network
            metrics[name] = {
                "latency_ms": latency.median_ms,
                "latency_iqr_ms": latency.iqr_ms,
                "latency_least_ms": latency.least_ms,
                "params": count_params(network),
                "macs": count_macs(network, denoiser.forward(1))[""],
                "peak_memory_mib": peak_memory_mib(network, denoiser.forward(size), self.device),
            }
            if name in weights:
                metrics[name]["disk_mib"] = weights_bytes(weights[name]) / 2**20
        table = [(*key, time.median_ms, time.iqr_ms, time.repeats) for key, time in latencies.items()]
        return metrics, pd.DataFrame(table, columns=list(LATENCY_COLUMNS))

    def image_times(self, generators: Mapping[Key, ImageGenerator]) -> dict[Key, Metrics]:
        """Time of one picture from noise to pixels, in batches of the first of `latency_batch_sizes`."""
        if self.params.latency_repeats is None:
            return {}
        size = self.params.latency_batch_sizes[0]
        calls = {key: _sampling(generator, size) for key, generator in generators.items()}
        # One round of warm-up, as a call has many passes; where calls are recorded, until that is done.
        warmup = WARMUP_CALLS + 2 if can_record(self.device) else 1
        latencies = measure_latency(calls, self.device, self.params.sampler_repeats, warmup)
        for generator in generators.values():
            generator.forget()
        return {
            key: {"image_ms": latency.median_ms / size, "image_iqr_ms": latency.iqr_ms / size}
            for key, latency in latencies.items()
        }

    def protocol(self, figures: Mapping[str, ImageMetrics], **extra: Any) -> dict[str, Any]:
        """What stands beside a table of figures, as a JSON object; `extra` is what only this table has."""
        params, said = self.params, [note for each in figures.values() for note in each.notes]
        timing = {"latency_batch_sizes", "latency_compiled", "latency_repeats", "sampler_repeats"}
        return {
            **self.reference.describe(params),
            "precision": "bf16" if uses_bf16(self.device, params.precision) else "fp32",
            **extra,
            **params.model_dump(mode="json", include=timing),
            "seed": self.seed,
            "notes": [*self.reference.notes(params), *said],
            **environment(self.device),
        }

    def _sample(self, generator: ImageGenerator) -> torch.Tensor:
        images = sample_from(generator, self.params.num_images, self.seed, self.params.batch_size)
        generator.forget()
        return images

    def _measure(
        self,
        name: str,
        images: torch.Tensor,
        only_frechet: bool,
        strata: torch.Tensor,
        labels: torch.Tensor | None = None,
    ) -> ImageMetrics:
        """Figures of samples as they are seen or heard, and whether all are the same."""
        real, rendered = self.reference, self.reference.modality.rendered(images)
        figures = real.reference.measure(rendered, only_frechet, strata)
        if real.classifier is not None and labels is not None:
            figures.metrics.update(agreement(real.classifier, rendered, labels))
        return replace(figures, notes=tuple(said_if_alike(name, images)))

    def budget(
        self,
        generators: Mapping[Entry, ImageGenerator],
        figures: Mapping[str, ImageMetrics],
        times: Mapping[Entry, Metrics],
    ) -> pd.DataFrame:
        """Quality against time per picture, a row a model and number of steps.

        Args:
            generators: All rows; those that `figures` have at the sampler's own steps are not sampled again.
            figures: Of `images`.
            times: Of `image_times`.
        """
        metric, rows = main_metric(figures), []
        columns = ["model", "steps", "image_ms", "image_iqr_ms", metric, f"{metric}_se"]
        for (name, steps), generator in generators.items():
            known = figures.get(name) if steps == self.params.sampler.steps else None
            metrics = (known or self.distance(generator)).metrics
            rows.append({"model": name, "steps": steps, **times.get((name, steps), {}), **metrics})
        return pd.DataFrame(rows, columns=columns)

    def _floor(self, prompted: bool) -> ImageMetrics:
        """Figures of other real pictures, with what that row alone has.

        That is the accuracy on test pictures, beside agreements with prompts; and where samples are not
        perceived as they are made, distances of real ones that went the same way: what that alone costs.
        """
        real, floor, strata = self.reference, self.reference.floor, self.reference.floor_labels
        figures = real.reference.measure(floor, self.params.only_frechet, strata)
        if real.classifier is not None and prompted:
            figures.metrics.update(share(real.classifier.test_accuracy, real.classifier.num_test))
        if not real.modality.lossless:
            vocoded = real.reference.measure(real.modality.rendered(floor), only_frechet=True, strata=strata)
            figures.metrics.update({f"{name}_vocoded": vocoded.metrics[name] for name in vocoded.replicates})
        return _checked(REAL_ROW, replace(figures, notes=tuple(said_if_alike(REAL_ROW, floor))))

    def _latencies(
        self, denoisers: Mapping[str, Denoiser], repeats: int
    ) -> dict[tuple[str, int, str], Latency]:
        """Time of one pass by name, batch size and mode."""
        networks = {"eager": {name: denoiser.network for name, denoiser in denoisers.items()}}
        result: dict[tuple[str, int, str], Latency] = {}
        with ExitStack() as stack:
            if self.params.latency_compiled:
                networks["compiled"] = stack.enter_context(compiled(networks["eager"]))
            for size in self.params.latency_batch_sizes:
                passes = {
                    (name, size, mode): denoisers[name].forward(size, network)
                    for mode, of_mode in networks.items()
                    for name, network in of_mode.items()
                }
                for (name, _, mode), forward in passes.items():
                    if mode == "compiled":
                        _translate(name, forward)
                result |= measure_latency(passes, self.device, repeats)
        return result


def _checked(name: str, figures: ImageMetrics) -> ImageMetrics:
    for metric, value in figures.metrics.items():
        finite(value, f"{name}: {metric}", "look at its samples and at what measures them", DataError)
    return figures


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


def _sampling(generator: ImageGenerator, size: int) -> Callable[[], object]:
    start = noise(generator.latent_shape, 0, "cost", range(size))

    def sample() -> object:
        with torch.no_grad():
            return generator.decode(generator.denoise(start, range(size), 0))

    return sample
