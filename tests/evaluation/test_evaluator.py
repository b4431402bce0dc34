"""The evaluator on pictures that are there already, and on networks that take no time."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_dataset, tiny_model, tiny_params
from torch import nn

from pelap.config import SamplerParams, SoundParams
from pelap.core.errors import ConfigError, DataError, ModelError
from pelap.data.dataset import ImageDataset, to_float
from pelap.diffusion.reverse import model_denoiser
from pelap.diffusion.sampler import ModelGenerator
from pelap.evaluation import evaluator as evaluator_module
from pelap.evaluation.evaluation_reference import EvaluationReference
from pelap.evaluation.evaluator import LATENCY_COLUMNS, Evaluator
from pelap.evaluation.reference import main_metric
from pelap.models.text_conditioner import UNKNOWN
from pelap.profiling.latency import Latency

CPU = torch.device("cpu")
METRIC = "fd_coarse"
FRECHET = {METRIC, f"{METRIC}_se", "shift_coarse"}
QUALITY = FRECHET | {
    f"{name}_coarse" for name in ("kid", "precision", "recall", "density", "coverage")
} | {"kid_coarse_std"}  # fmt: skip
SAMPLER = SamplerParams(kind="ddim", steps=4)
CLASSIFIER = {"steps": 2, "batch_size": 8, "lr": 0.01, "width": 4, "horizontal_flip": False}
SOUND = {"sample_rate": 8000, "num_fft": 256, "hop_length": 64, "range_db": 60.0}
MADE = tiny_dataset(60).train.images[:24]


class Coarse(nn.Module):
    """A few features that take no time."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(images.float() / 255, 8).flatten(1)


class Given:
    """Pictures that are there already, in the place of a generator."""

    name, latent_shape = "given", (1, 2, 2)

    def __init__(
        self, images: torch.Tensor = MADE, num_asked: int = 1, labels: torch.Tensor | None = None
    ) -> None:
        self.images, self.num_asked, self._labels = images, num_asked, labels
        self.calls: list[str] = []

    def labels(self, num: int) -> torch.Tensor | None:
        return self._labels

    def denoise(self, noise: torch.Tensor, indices: Any, seed: int) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        self.calls.append("denoise")
        return torch.tensor(list(indices))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        self.calls.append("decode")
        return self.images[latents]

    def paint(self, latents: torch.Tensor) -> torch.Tensor:
        return to_float(self.decode(latents))

    def forget(self) -> None:
        self.calls.append("forget")


def evaluator_of(dataset: ImageDataset | None = None, cache: Path | None = None, **options: Any) -> Evaluator:
    """Of 24 pictures against 64."""
    own = {f"evaluate__{key}": value for key, value in options.items()}
    params = tiny_params(**({"evaluate__extractors": ["test_evaluator:Coarse"]} | own)).evaluate
    reference = EvaluationReference.of(dataset or tiny_dataset(100), params, CPU, cache)
    return Evaluator(reference, params, 0, CPU)


# --- pictures ---------------------------------------------------------------------------------------


def test_figures_are_those_of_the_reference() -> None:
    evaluator = evaluator_of()
    reference, floor = evaluator.reference.reference, evaluator.reference.floor
    shown: dict[str, torch.Tensor] = {}
    other = Given(MADE.flip(0))
    found = evaluator.images({"a": Given(), "b": other}, "a", ["b"], shown.__setitem__)
    assert list(found) == ["a", "b", "real"]
    assert found["a"].metrics == reference.measure(MADE, strata=torch.zeros(24)).metrics
    assert set(found["a"].metrics) == QUALITY
    assert set(found["b"].metrics) == QUALITY | {"psnr_to_dense", "ssim_to_dense"}
    dataset = tiny_dataset(100)
    assert torch.equal(floor, dataset.train.images[64:88])
    expected = reference.measure(floor, strata=dataset.train.labels[64:88])
    assert found["real"].metrics == expected.metrics
    assert main_metric(found) == METRIC
    assert all(torch.equal(shown[key], images) for key, images in
               {"a": MADE, "b": MADE.flip(0), "real": floor}.items())  # fmt: skip
    assert evaluator.distance(other).metrics == {name: found["b"].metrics[name] for name in FRECHET}
    assert other.calls.count("forget") == 2
    short = evaluator_of(only_frechet=True).images({"a": Given()})
    assert all(set(row.metrics) == FRECHET for row in short.values())


def test_equal_pictures_and_prompts_left_over_are_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    evaluator = evaluator_of()
    dead, one_more = Given(MADE[:1].repeat(24, 1, 1, 1)), Given(num_asked=25)
    result = evaluator.images({"good": Given(num_asked=24), "dead": dead, "more": one_more}, "good", ["dead"])
    assert all(math.isfinite(value) for value in result["dead"].metrics.values())
    assert {name: len(figures.notes) for name, figures in result.items()} == {
        "good": 0, "dead": 1, "more": 1, "real": 0,
    }  # fmt: skip
    printed, notes = capsys.readouterr().out, evaluator.protocol(result)["notes"]
    for note in (
        "dead: all 24 pictures are the same",
        "more: 24 items ask for the first of 25 prompts or classes alone",
    ):
        assert printed.count(note) == sum(line.startswith(note) for line in notes) == 1


def test_agreement_is_of_what_was_asked_for(tmp_path: Path) -> None:
    options = {"classifier": CLASSIFIER, "extractors": ["classifier"]}
    evaluator = evaluator_of(cache=tmp_path, **options)
    classifier = evaluator.reference.classifier
    assert classifier is not None
    asked = classifier.labels_of(MADE)
    asked[:6], asked[6:12] = 1 - asked[:6], UNKNOWN
    found = evaluator.images({"asked": Given(labels=asked), "unasked": Given()})
    assert found["asked"].metrics["prompt_agreement"] == pytest.approx(12 / 18)
    assert "prompt_agreement" not in found["unasked"].metrics
    assert found["real"].metrics["prompt_agreement"] == classifier.test_accuracy
    assert main_metric(found) == "fd_classifier"
    assert all("prompt_agreement" not in row.metrics for row in evaluator.images({"a": Given()}).values())
    protocol = evaluator.protocol(found)
    said = {"steps": 2, "width": 4, "sha256": classifier.checksum}
    assert protocol["classifier"] == {"test_accuracy": classifier.test_accuracy, "num_test": 16, **said}
    assert (protocol["medium"], protocol["sound"]) == ("pictures", None)
    assert any(note.startswith("fd_classifier: features of a small") for note in protocol["notes"])


class Halved:
    """A modality that halves what it is given."""

    noun, num_channels, lossless = "sounds", 1, False

    def rendered(self, images: torch.Tensor) -> torch.Tensor:
        return images // 2


def test_samples_are_measured_as_they_are_heard() -> None:
    dataset = tiny_dataset(100)
    grey = [replace(split, images=split.images[:, :1]) for split in (dataset.train, dataset.test)]
    sound = SoundParams(**SOUND, train_per_class=8, test_per_class=8)
    evaluator = evaluator_of(replace(dataset, train=grey[0], test=grey[1], sound=sound))
    real = replace(evaluator.reference, modality=Halved())
    evaluator = replace(evaluator, reference=real)
    made = Given(MADE[:, :1])
    shown: dict[str, torch.Tensor] = {}
    found = evaluator.images({"a": made, "b": made}, "a", ["b"], shown.__setitem__)
    assert torch.equal(shown["a"], made.images)  # what the model made, not what is heard of it
    expected = real.reference.measure(made.images // 2).metrics[METRIC]
    assert found["a"].metrics[METRIC] == evaluator.distance(made).metrics[METRIC] == pytest.approx(expected)
    floor = found["real"].metrics
    assert floor[METRIC] == pytest.approx(real.reference.measure(real.floor).metrics[METRIC])
    vocoded = real.reference.measure(real.floor // 2).metrics[METRIC]
    assert floor[f"{METRIC}_vocoded"] == pytest.approx(vocoded) != floor[METRIC]
    assert f"{METRIC}_vocoded" not in found["a"].metrics
    assert not found["a"].notes
    protocol = evaluator.protocol(found)
    assert (protocol["medium"], protocol["sound"]) == ("sounds", SOUND)
    assert any("Griffin-Lim" in note for note in protocol["notes"])


def test_pictures_are_grouped_by_what_they_were_asked_to_be() -> None:
    evaluator = evaluator_of()
    measure = evaluator.reference.reference.measure
    generators = {"a": Given(num_asked=2), "b": Given(num_asked=3)}
    found = evaluator.images(generators)
    # Six in turn for both: what they are compared by has to leave out the same pictures of each.
    expected = measure(MADE, strata=torch.arange(24) % 6).replicates
    assert found["a"].replicates == found["b"].replicates == expected
    alone = measure(MADE, strata=torch.arange(24) % 3).replicates
    assert evaluator.distance(generators["b"]).replicates == alone


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_model_whose_pictures_are_no_numbers_is_refused(part: str) -> None:
    model, evaluator = tiny_model("baseline"), evaluator_of()
    nn.init.constant_([*getattr(model, part).parameters()][-1], math.nan)
    what = "latents" if part == "unet" else "pictures"
    with pytest.raises(ModelError, match=f"baseline: {what}: NaN or infinite values in 24 of 24"):
        evaluator.distance(ModelGenerator(model, SAMPLER))
    if part == "vae":
        with pytest.raises(ModelError, match="baseline: reconstructions: NaN or infinite values in 16"):
            evaluator.reconstructions({"baseline": model.reconstruct})


def test_few_pictures_are_told_of() -> None:
    with pytest.raises(DataError, match=r"num_reference \+ num_images is 163, but there are 100 train"):
        evaluator_of(num_images=99)
    assert any("10 pictures" in note for note in evaluator_of(num_images=10).protocol({})["notes"])


# --- costs ------------------------------------------------------------------------------------------


class Turns:
    """In the place of `measure_latency`: what was timed together."""

    def __init__(self) -> None:
        self.together: list[tuple[list[Any], int]] = []

    def __call__(
        self, functions: Mapping[Any, Callable[[], object]], device: Any, repeats: int, warmup: int = 3
    ) -> Any:
        assert warmup > 0
        self.together.append((list(functions), repeats))
        self.results = {key: function() for key, function in functions.items()}
        return {key: Latency(8.0, 4.0, 7.0, repeats) for key in functions}


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    turns = Turns()
    monkeypatch.setattr(evaluator_module, "measure_latency", turns)
    return turns


def denoisers(*names: str, precision: str = "fp32") -> dict[str, Any]:
    return {name: model_denoiser(tiny_model(), SAMPLER, 0, precision=precision) for name in names}


def test_all_are_timed_in_turns(turns: Turns, tmp_path: Path) -> None:
    evaluator = evaluator_of(sampler_repeats=5)
    (tmp_path / "m.safetensors").write_bytes(bytes(2**20))
    metrics, latencies = evaluator.costs(denoisers("a", "b"), {"a": tmp_path})
    keys = [(name, size, "eager") for size in (4, 1) for name in "ab"]
    assert turns.together == [(keys[:2], 3), (keys[2:], 3)]
    assert latencies.values.tolist() == [[*key, 8.0, 4.0, 3] for key in keys]
    assert (metrics["a"].pop("disk_mib"), metrics["a"]) == (1, metrics["b"])
    generators = {("a", 4): Given(), ("a", 2): Given()}
    times = evaluator.image_times(generators)
    assert turns.together[2:] == [(list(generators), 5)]
    assert times["a", 2] == {"image_ms": 2.0, "image_iqr_ms": 1.0}  # of one of the four pictures
    assert torch.equal(turns.results["a", 2], MADE[:4])
    assert generators["a", 2].calls == ["denoise", "decode", "forget"]  # the whole sampler


def test_nothing_is_timed_without_repeats() -> None:
    evaluator = evaluator_of(latency_repeats=None)
    metrics, latencies = evaluator.costs(denoisers("a"))
    assert (metrics, list(latencies.columns), len(latencies)) == ({}, list(LATENCY_COLUMNS), 0)
    assert evaluator.image_times({"a": Given()}) == {}


def test_budget_samples_what_is_not_known_yet() -> None:
    evaluator = evaluator_of()
    generators = {("a", 4): Given(), ("a", 2): Given(MADE.flip(1)), ("cached", 4): Given(MADE.flip(2))}
    figures = evaluator.images({"a": generators["a", 4]})
    generators["a", 4].calls.clear()
    table = evaluator.budget(generators, figures, {("a", 2): {"image_ms": 2.0, "image_iqr_ms": 1.0}})
    assert [generator.calls.count("forget") for generator in generators.values()] == [0, 1, 1]
    assert list(table.columns) == ["model", "steps", "image_ms", "image_iqr_ms", METRIC, f"{METRIC}_se"]
    assert list(zip(table["model"], table["steps"], strict=True)) == list(generators)
    assert table["image_ms"].fillna(0).tolist() == [0, 2, 0]
    for row, generator in zip(table.to_dict("records"), generators.values(), strict=True):
        expected = evaluator.distance(generator).metrics
        assert (row[METRIC], row[f"{METRIC}_se"]) == (expected[METRIC], expected[f"{METRIC}_se"])


def compile_with(monkeypatch: pytest.MonkeyPatch, translate: Callable[..., Any]) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: translate)


def test_compiled_networks_are_timed_beside_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    compile_with(monkeypatch, lambda x, t: calls.append(len(x)))
    metrics, latencies = evaluator_of(latency_compiled=True).costs(denoisers("a", "b"))
    expected = {(name, size, mode) for name in "ab" for size in (4, 1) for mode in ("eager", "compiled")}
    assert set(zip(latencies["model"], latencies["batch_size"], latencies["mode"], strict=True)) == expected
    assert calls.count(4) == calls.count(1) == 2 * (1 + 3 + 3)
    eager = latencies[(latencies["model"] == "b") & (latencies["mode"] == "eager")]
    assert metrics["b"]["latency_ms"] == eager["median_ms"].iloc[0]


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (RuntimeError("no C++ compiler\nand a page more"), ConfigError,
         r"torch.compile fails on a \(RuntimeError: no C\+\+ compiler.*latency_compiled: false"),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError, "CUDA"),
    ],
)  # fmt: skip
def test_failing_compilers_are_one_line(
    error: Exception, kind: type[Exception], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    compile_with(monkeypatch, fail)
    with pytest.raises(kind, match=says) as caught:
        evaluator_of(latency_compiled=True).costs(denoisers("a"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("precision", "kind"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_precision_is_that_of_the_timed_passes(precision: str, kind: torch.dtype, turns: Turns) -> None:
    evaluator = evaluator_of(precision=precision, latency_batch_sizes=[2])
    evaluator.costs(denoisers("a", precision=precision))
    assert turns.results["a", 2, "eager"].sample.dtype == kind
    assert evaluator.protocol({})["precision"] == precision
