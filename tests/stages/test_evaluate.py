"""The stage that measures every model: rows, pairs, budgets and costs of a small run made by hand."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import LIGHT, tiny_dataset, tiny_model, tiny_params
from torch import nn

from pelap.config import SamplerParams, SoundParams
from pelap.core import files
from pelap.core.errors import ConfigError, DataError, ModelError, PelapError
from pelap.core.paths import RunPaths, packed_dataset
from pelap.data.dataset import save_dataset, to_float
from pelap.data.modality import modality_of
from pelap.diffusion.sampler import ModelGenerator, sample_images
from pelap.evaluation import comparison as figures
from pelap.evaluation.comparison import (
    Pairs,
    difference,
    disk_mib,
    measure_pictures,
    recovered,
)
from pelap.evaluation.features import make_extractor
from pelap.evaluation.image_quality import psnr, ssim
from pelap.evaluation.real import real_pictures
from pelap.evaluation.reference import ImageMetrics, Reference
from pelap.models.deep_cache import DeepCache
from pelap.models.latent_diffusion import LatentDiffusion
from pelap.models.text_conditioner import TextConditioner
from pelap.pipelines.model_io import load_model, save_model
from pelap.profiling.cost import count_macs, count_params
from pelap.profiling.latency import Latency
from pelap.stages import evaluate
from pelap.stages.shared import Context
from pelap.surgery.apply import apply_plan
from pelap.surgery.plan import plan_from_json

CPU = torch.device("cpu")
PLAN = {"operators": ["mid_block.resnets.0", "down_blocks.1.resnets.0"]}
SCORED, PRUNED, TUNED, SCRATCH, TWIN = "invariant", "pruned-9", "distilled-9", "scratch-9", "dense-finetuned"
ROWS = ("baseline", SCORED, PRUNED, TUNED, SCRATCH, TWIN, "real")
MODELS, DERIVED = ROWS[:-1], ROWS[2:-1]
METRIC, STEPS, FEWER = "fd_coarse", 4, 2
CACHED = "cached-2"
COSTS = {"latency_ms", "latency_iqr_ms", "latency_least_ms", "params", "macs", "peak_memory_mib", "disk_mib"}
QUALITY = {METRIC, f"{METRIC}_se", "kid_coarse", "kid_coarse_std"} | {
    f"{name}_coarse" for name in ("precision", "recall", "density", "coverage", "shift")
}


class Coarse(nn.Module):
    """A few features that take no time."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(images.float() / 255, 8).flatten(1)


def params_of(**overrides: Any) -> Any:
    variants = {name: tiny_params().variants[name].model_dump() for name in ("baseline", SCORED)}
    own = {
        "variants": variants,
        "evaluate__extractors": ["test_evaluate:Coarse"],
        "evaluate__deepcache_intervals": [2],
    }
    return tiny_params(**(own | overrides))


def with_unet(model: LatentDiffusion, unet: nn.Module, name: str) -> LatentDiffusion:
    return model.with_unet(unet, name, 0.9)


def pruned_unet(model: LatentDiffusion, seed: int | None = None) -> nn.Module:
    unet = apply_plan(model.unet, plan_from_json(PLAN, "test"))
    if seed is not None:
        torch.manual_seed(seed)
        with torch.no_grad():
            for weight in unet.parameters():
                weight.add_(0.05 * torch.randn_like(weight))
    return unet


def write_run(root: Path, num_train: int = 100) -> Context:
    """What the stages before leave; the dense student is the scored variant once more."""
    paths, data = RunPaths(root / "run"), root / "data"
    save_dataset(tiny_dataset(num_train), packed_dataset(data, "photos"))
    scored, plan = tiny_model(SCORED, seed=1), plan_from_json(PLAN, "test")
    save_model(tiny_model("baseline"), paths.train("baseline").model)
    save_model(scored, paths.train(SCORED).model)
    save_model(with_unet(scored, pruned_unet(scored), "pruned"), paths.pruned_model("9"), plan)
    for seed, name in enumerate((TUNED, SCRATCH)):
        save_model(with_unet(scored, pruned_unet(scored, seed), name), paths.distilled_model(name), plan)
    save_model(with_unet(scored, scored.unet, TWIN), paths.distilled_model(TWIN))
    files.write_json(paths.score_protocol, {"variant": SCORED})
    files.write_json(paths.prune_result, {"9": {"num_operators": 2}})
    students = {
        TUNED: {"student": "distilled", "start": "pruned", "plan": "9"},
        SCRATCH: {"student": "scratch", "start": "scratch", "plan": "9"},
        TWIN: {"student": "dense-finetuned", "start": "dense", "plan": None},
    }
    files.write_json(paths.distill_result, students)
    return Context(params_of(), paths, data, CPU)


def again(context: Context, **overrides: Any) -> Context:
    """The same run with other parameters."""
    return Context(params_of(**overrides), context.paths, context.data, context.device)


def elsewhere(context: Context, root: Path, **overrides: Any) -> Context:
    """The same models in another run, with other parameters."""
    for stage in ("train", "score", "prune", "distill"):
        (root / stage).symlink_to(context.paths.root / stage)
    return Context(params_of(**overrides), RunPaths(root), context.data, context.device)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A run that has been evaluated."""
    context = write_run(tmp_path_factory.mktemp("run"))
    evaluate.run(context)
    return context


@pytest.fixture(scope="module")
def metrics(context: Context) -> Mapping[str, Any]:
    return files.read_metrics(context.paths.metrics)


def folder_of(context: Context, name: str) -> Path:
    paths = context.paths
    if name == PRUNED:
        return paths.pruned_model("9")
    return paths.train(name).model if name in ("baseline", SCORED) else paths.distilled_model(name)


def samples_of(context: Context, name: str, steps: int = STEPS) -> torch.Tensor:
    model = load_model(folder_of(context, name))
    return sample_images(model, SamplerParams(kind="ddim", steps=steps), 24, 0, batch_size=24)


def reference_of(context: Context) -> Reference:
    return Reference(context.dataset().train.images[:64], [make_extractor("test_evaluate:Coarse", CPU)])


# --- rows -------------------------------------------------------------------------------------------


def test_every_model_has_a_row_with_its_figures(metrics: Mapping[str, Any]) -> None:
    assert tuple(metrics) == ROWS
    assert set(metrics["real"]) == QUALITY
    own = QUALITY | COSTS | {"psnr", "ssim", "image_ms", "image_iqr_ms"}
    pairs = {"psnr_to_dense", "ssim_to_dense"}
    for name in MODELS:
        assert set(metrics[name]) - {"recovered"} == own | (pairs if name in DERIVED else set()), name
    assert all("recovered" not in metrics[name] for name in ROWS if name != TUNED)


def test_samples_of_all_rows_come_from_the_same_noise(context: Context, metrics: Mapping[str, Any]) -> None:
    reference, dense = reference_of(context), samples_of(context, SCORED)
    for name in MODELS:
        images = samples_of(context, name)
        assert metrics[name][METRIC] == pytest.approx(reference.measure(images).metrics[METRIC], rel=1e-2)
        if name in DERIVED:
            assert metrics[name]["psnr_to_dense"] == pytest.approx(psnr(images, dense), abs=0.1)
            assert metrics[name]["ssim_to_dense"] == pytest.approx(ssim(images, dense), abs=0.01)
    floor = context.dataset().train.images[64:88]
    labels = context.dataset().train.labels[64 : 64 + len(floor)]
    for name, value in reference.measure(floor, strata=labels).metrics.items():
        assert metrics["real"][name] == pytest.approx(value, rel=1e-6)


def test_the_same_network_has_the_same_figures(context: Context, metrics: Mapping[str, Any]) -> None:
    for key in QUALITY | {"psnr", "ssim", "params", "macs", "disk_mib"}:
        assert metrics[TWIN][key] == metrics[SCORED][key], key
    assert metrics[TWIN]["psnr_to_dense"] > 75
    assert metrics[TWIN]["ssim_to_dense"] == pytest.approx(1)
    assert metrics[PRUNED]["psnr_to_dense"] < 60
    table = files.read_csv(context.paths.differences).set_index(["model", "against"])
    assert tuple(table.loc[(TWIN, SCORED), ["difference", "se"]]) == (0, 0)


def picture_in(path: Path) -> Any:
    """(H, W, 3) of a PNG."""
    with Image.open(path) as image:
        return np.array(image).astype(int)


def test_pictures_are_shown(context: Context) -> None:
    for name in ROWS:
        for path, rows in ((context.paths.samples(name), 3), (context.paths.reconstructions(name), 2)):
            assert picture_in(path).shape == (rows * 18 + 2, 8 * 18 + 2, 3)
    shown = picture_in(context.paths.samples(PRUNED))[2:18, 2:18]
    first = samples_of(context, PRUNED)[0].permute(1, 2, 0).numpy()
    assert np.abs(shown - first).max() <= 1


# --- differences and what was recovered -------------------------------------------------------------


def test_differences_are_against_the_dense_models(context: Context, metrics: Mapping[str, Any]) -> None:
    table = files.read_csv(context.paths.differences)
    assert list(table.columns) == ["model", "against", "metric", "difference", "se"]
    pairs = [(row, other) for row in DERIVED for other in (SCORED, TWIN) if row != other]
    assert list(zip(table["model"], table["against"], strict=True)) == pairs
    assert set(table["metric"]) == {METRIC}
    for row in table.itertuples():
        assert row.difference == metrics[row.model][METRIC] - metrics[row.against][METRIC]
    # From the same noise: what they share by chance falls out.
    of_pruned = table[(table["model"] == PRUNED) & (table["against"] == SCORED)]["se"].item()
    alone = math.hypot(*(metrics[name][f"{METRIC}_se"] for name in (PRUNED, SCORED)))
    assert 0 < of_pruned < alone


def figures_at(value: float, *replicates: float) -> ImageMetrics:
    return ImageMetrics({METRIC: value}, {METRIC: replicates})


def test_difference_and_its_error_by_hand() -> None:
    one, other = figures_at(7, 5, 7, 9), figures_at(4, 4, 5, 6)
    value, error = difference(one, other, METRIC)
    assert value == 3
    assert error == pytest.approx(math.sqrt(2 / 3 * 2))  # of 1, 2, 3


def test_share_that_was_recovered() -> None:
    pruned, dense = figures_at(10, 9, 10, 11), figures_at(6, 5, 6, 7)
    for tuned, share in ((6, 1.0), (8, 0.5), (10, 0.0), (12, -0.5), (5, 1.25)):
        assert recovered(pruned, figures_at(tuned, 1, 1, 1), dense, METRIC) == share


@pytest.mark.parametrize(
    ("cost", "stated"), [(2.1, True), (1.99, False), (1.0, False), (0, False), (-3, False)]
)
def test_a_share_of_what_chance_may_have_made_is_not_stated(cost: float, stated: bool) -> None:
    # Replicates of the difference are -a, 0, a: its standard error is 1.
    a = math.sqrt(0.75)
    pruned, dense = figures_at(5 + cost, 5 - a, 5, 5 + a), figures_at(5, 5, 5, 5)
    assert difference(pruned, dense, METRIC)[1] == pytest.approx(1)
    share = recovered(pruned, figures_at(5, 5, 5, 5), dense, METRIC)
    assert (share is not None) == stated


def test_nothing_is_recovered_where_there_is_no_error() -> None:
    assert recovered(figures_at(9), figures_at(5), figures_at(4), METRIC) is None


def test_recovered_is_of_the_plans_own_pruned_row(context: Context) -> None:
    table = evaluate._table(context)
    rows = {SCORED: figures_at(1, 1, 1), PRUNED: figures_at(5, 5, 5)}
    rows |= {name: figures_at(2, 2, 2) for name in (TUNED, SCRATCH, TWIN, "baseline", "real")}
    assert evaluate._recovered(table, TUNED, rows) == {"recovered": 0.75}
    for name in ROWS:
        assert name == TUNED or evaluate._recovered(table, name, rows) == {}


# --- budgets and costs ------------------------------------------------------------------------------


def test_budget_is_quality_against_time(context: Context, metrics: Mapping[str, Any]) -> None:
    table = files.read_csv(context.paths.budget)
    assert list(table.columns) == ["model", "steps", "image_ms", "image_iqr_ms", METRIC, f"{METRIC}_se"]
    entries = [
        (SCORED, STEPS), (SCORED, FEWER), (CACHED, STEPS), (TWIN, STEPS), (TWIN, FEWER), (PRUNED, STEPS),
        (TUNED, STEPS),
    ]  # fmt: skip
    assert list(zip(table["model"], table["steps"], strict=True)) == entries
    assert CACHED not in metrics
    for row in table[(table["steps"] == STEPS) & (table["model"] != CACHED)].to_dict("records"):
        for key in ("image_ms", "image_iqr_ms", METRIC, f"{METRIC}_se"):
            assert row[key] == metrics[row["model"]][key]
    fewer = table.iloc[1]
    expected = reference_of(context).measure(samples_of(context, SCORED, FEWER)).metrics
    assert fewer[METRIC] == pytest.approx(expected[METRIC], rel=1e-2)
    assert fewer[METRIC] != metrics[SCORED][METRIC]
    assert fewer["image_ms"] > 0
    assert table.iloc[4][METRIC] == fewer[METRIC]  # the same network


def test_budget_has_the_dense_model_with_shared_features(
    context: Context, metrics: Mapping[str, Any], tmp_path: Path
) -> None:
    row = files.read_csv(context.paths.budget).set_index("model").loc[CACHED]
    model = load_model(folder_of(context, SCORED))
    cached = with_unet(model, DeepCache(model.unet, 2), CACHED)
    images = sample_images(cached, SamplerParams(kind="ddim", steps=STEPS), 24, 0, batch_size=24)
    assert row[METRIC] == pytest.approx(reference_of(context).measure(images).metrics[METRIC], rel=1e-2)
    assert row[METRIC] != metrics[SCORED][METRIC]
    assert row["image_ms"] > 0
    assert files.read_json(context.paths.evaluate_protocol)["deepcache_intervals"] == [2]


def test_what_cannot_be_cached_is_told_before_sampling(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "real_pictures", None)
    table = evaluate._table(context)
    light = {SCORED: tiny_model(**LIGHT)}
    with pytest.raises(
        ConfigError, match=r"evaluate\.deepcache_intervals: invariant cannot .* LightUNet .*\[\]"
    ):
        evaluate._cached(context, table, light)
    assert evaluate._cached(again(context, evaluate__deepcache_intervals=[]), table, light) == {}
    taken = evaluate.Table(dict(table.rows) | {CACHED: table.rows[TWIN]}, SCORED)
    with pytest.raises(ConfigError, match="cached-2 is the name of a model already"):
        evaluate._cached(context, taken, light)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_reaches_the_sampler_and_the_timed_passes(
    context: Context, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = again(context, evaluate__precision=precision)
    models = {SCORED: load_model(folder_of(context, SCORED))}
    table = evaluate.Table({SCORED: evaluate._table(context).rows[SCORED]}, SCORED)
    timed: dict[str, Any] = {}
    monkeypatch.setattr(evaluate, "compare_costs", lambda subjects, *_: timed.update(subjects))
    evaluate._costs(other, table, models)
    wanted = torch.bfloat16 if precision == "bf16" else torch.float32
    assert timed[SCORED].forward(2)().sample.dtype == wanted
    assert evaluate._source(other, models[SCORED]).precision == precision
    real = real_pictures(context.dataset(), other.params.evaluate, context.data / "cache", CPU)
    assert evaluate._protocol(other, table, models, context.dataset(), real, {})["precision"] == precision


def test_only_the_distance_is_measured_where_that_is_asked_for(
    context: Context, metrics: Mapping[str, Any]
) -> None:
    params = again(context, evaluate__only_frechet=True, evaluate__num_images=24).params.evaluate
    real = real_pictures(context.dataset(), params, context.data / "cache", CPU)
    model = load_model(folder_of(context, SCORED))
    source = ModelGenerator(model, SamplerParams(kind="ddim", steps=STEPS))
    found = measure_pictures({SCORED: source}, real, params, 0, Pairs(None, []))
    one_by_one = {name for name in QUALITY if name.startswith(("kid", "precision", "recall", "d", "c"))}
    assert all(set(row.metrics) == QUALITY - one_by_one for row in found.values())
    assert found["real"].metrics[METRIC] == pytest.approx(metrics["real"][METRIC], rel=1e-6)


def test_latencies_at_all_batch_sizes(context: Context, metrics: Mapping[str, Any]) -> None:
    table = files.read_csv(context.paths.latencies)
    assert list(table.columns) == ["model", "batch_size", "mode", "median_ms", "iqr_ms", "repeats"]
    assert set(zip(table["model"], table["batch_size"], strict=True)) == {
        (m, b) for m in MODELS for b in (4, 1)
    }
    assert len(table) == 2 * len(MODELS)
    assert (set(table["mode"]), set(table["repeats"])) == ({"eager"}, {3})
    for row in table[table["batch_size"] == 4].itertuples():
        assert (row.median_ms, row.iqr_ms) == tuple(
            metrics[row.model][f"latency_{k}ms"] for k in ("", "iqr_")
        )


def test_counts_are_of_one_latent_and_of_the_saved_file(context: Context, metrics: Mapping[str, Any]) -> None:
    for name in (SCORED, PRUNED):
        folder = folder_of(context, name)
        model = load_model(folder)
        latent = torch.zeros(1, *model.latent_shape)
        assert metrics[name]["macs"] == count_macs(model.unet, lambda net=model.unet, x=latent: net(x, 3))[""]
        assert metrics[name]["params"] == count_params(model.unet)
        (file,) = (folder / "unet").glob("*.safetensors")
        assert metrics[name]["disk_mib"] == file.stat().st_size / 2**20
    assert metrics[PRUNED]["disk_mib"] < metrics[SCORED]["disk_mib"]


def test_size_on_disk_is_of_one_copy_of_the_weights(tmp_path: Path) -> None:
    for name, size in {
        "m-00001-of-00002.safetensors": 3,
        "m-00002-of-00002.safetensors": 2,
        "config.json": 9,
    }.items():
        (tmp_path / name).write_bytes(bytes(size * 2**20))
    assert disk_mib(tmp_path) == 5
    (tmp_path / "m.fp16.safetensors").write_bytes(bytes(2**20))
    (tmp_path / "m.bin").write_bytes(bytes(2**20))
    assert disk_mib(tmp_path) == 5
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    assert disk_mib(tmp_path) == 1


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


def test_all_models_are_timed_in_turns(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns()
    monkeypatch.setattr(figures, "measure_latency", turns)
    context = again(context, evaluate__sampler_repeats=5)
    table = evaluate._table(context)
    models = {name: load_model(folder_of(context, name)) for name in MODELS}
    evaluate._costs(context, table, models)
    times = evaluate._image_times(context, table, models | evaluate._cached(context, table, models))
    passes, images = turns.together[:2], turns.together[2:]
    assert passes == [([(name, size, "eager") for name in MODELS], 3) for size in (4, 1)]
    rows = [*((name, STEPS) for name in (*MODELS, CACHED)), (SCORED, FEWER), (TWIN, FEWER)]
    assert images == [(rows, 5)]
    assert times[SCORED, STEPS] == {"image_ms": 2.0, "image_iqr_ms": 1.0}  # of one of the four pictures
    pictures = turns.results[SCORED, FEWER]
    assert (pictures.shape, pictures.dtype) == ((4, 3, 16, 16), torch.uint8)


def test_time_of_an_image_is_that_of_the_whole_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class ImageGenerator(ModelGenerator):
        def denoise(self, *arguments: Any) -> torch.Tensor:
            assert not torch.is_grad_enabled()
            calls.append("denoise")
            return super().denoise(*arguments)

        def decode(self, *arguments: Any) -> torch.Tensor:
            calls.append("decode")
            return super().decode(*arguments)

    monkeypatch.setattr(figures, "measure_latency", Turns())
    figures.time_images(
        {"a": ImageGenerator(tiny_model(), tiny_params().evaluate.sampler)}, params_of().evaluate, CPU
    )
    assert calls == ["denoise", "decode"]


def test_without_repeats_there_is_quality_alone(context: Context, tmp_path: Path) -> None:
    other = elsewhere(context, tmp_path, evaluate__latency_repeats=None, evaluate__batch_size=7)
    evaluate.run(other)
    paths = other.paths
    metrics, before = files.read_metrics(paths.metrics), files.read_metrics(context.paths.metrics)
    for name, row in metrics.items():
        assert not (COSTS | {"image_ms", "image_iqr_ms"}) & set(row)
        for key, value in row.items():  # in batches of another size
            assert value == pytest.approx(before[name][key], rel=0.02, abs=0.02), (name, key)
    budget = files.read_csv(paths.budget)
    assert list(budget.columns) == list(files.read_csv(context.paths.budget).columns)
    assert budget[["image_ms", "image_iqr_ms"]].isna().all(axis=None)
    assert budget[METRIC].notna().all()
    assert len(files.read_csv(paths.latencies, figures.LATENCY_COLUMNS)) == 0


def compile_with(monkeypatch: pytest.MonkeyPatch, translate: Callable[..., Any]) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: translate)


def test_compiled_networks_are_timed_beside_the_others(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def translated(x: torch.Tensor, t: object) -> None:
        calls.append(len(x))

    compile_with(monkeypatch, translated)
    context = again(context, evaluate__latency_compiled=True)
    models = {name: load_model(folder_of(context, name)) for name in (SCORED, PRUNED)}
    metrics, latencies = evaluate._costs(context, evaluate._table(context), models)
    expected = {(m, b, mode) for m in models for b in (4, 1) for mode in ("eager", "compiled")}
    assert set(zip(latencies["model"], latencies["batch_size"], latencies["mode"], strict=True)) == expected
    assert calls.count(4) == calls.count(1) == len(models) * (1 + 3 + 3)
    eager = latencies[(latencies["model"] == PRUNED) & (latencies["mode"] == "eager")]
    assert metrics[PRUNED]["latency_ms"] == eager["median_ms"].iloc[0]


def test_failing_compilers_are_one_line(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("InvalidCxxCompiler: no C++ compiler\nand a page more")

    compile_with(monkeypatch, fail)
    with pytest.raises(ConfigError, match="latency_compiled: false") as caught:
        evaluate.run(again(context, evaluate__latency_compiled=True))
    assert "\n" not in str(caught.value)
    assert "baseline" in str(caught.value)
    assert context.paths.metrics.exists()

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    compile_with(monkeypatch, full)
    with pytest.raises(torch.OutOfMemoryError):
        evaluate.run(again(context, evaluate__latency_compiled=True))


# --- what stands beside, and what cannot be --------------------------------------------------------


def test_protocol_says_what_figures_are(context: Context) -> None:
    protocol = files.read_mapping(context.paths.evaluate_protocol)
    assert (protocol["num_images"], protocol["num_reference"]) == (24, 64)
    assert protocol["sampler"] == {"kind": "ddim", "steps": STEPS}
    assert protocol["scored_variant"] == SCORED
    assert protocol["dense_students"] == [TWIN]
    assert protocol["plans"] == ["9"]
    assert protocol["students"] == {TUNED: "pruned", SCRATCH: "scratch", TWIN: "dense"}
    assert protocol["ema_decay"] == {name: 0.9 if name in DERIVED else 0.0 for name in MODELS}
    assert protocol["dataset_checksum"] == context.dataset().checksum
    assert set(protocol["extractors"]) == {"coarse"}
    assert {"torchmetrics", "torch-fidelity", "torch"} <= set(protocol["versions"])
    assert [note.partition(":")[0] for note in protocol["notes"]] == ["KID"]  # 24 pictures are few
    assert re.fullmatch(r"[0-9a-z.-]+", protocol["git_revision"])
    assert {"seed", "device", "git_revision", "latency_batch_sizes", "dataset"} <= set(protocol)


def test_notes_say_where_pictures_are_few(context: Context) -> None:
    params = params_of(evaluate__num_images=10).evaluate
    real = real_pictures(context.dataset(), params, context.data / "cache", CPU)
    notes = figures.protocol_of_figures(context.dataset(), real, params, 0, CPU, {}, {})["notes"]
    assert any("10 pictures" in note for note in notes)


def test_the_reference_is_computed_once(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    forward = Coarse.forward

    def count(self: Coarse, images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Coarse, "forward", count)
    options = {"evaluate__models": "variants", "evaluate__latency_repeats": None}
    evaluate.run(elsewhere(context, tmp_path, **options))
    assert sum(seen) == 3 * 24  # two variants and the floor


def test_variants_alone(context: Context, tmp_path: Path) -> None:
    other = elsewhere(context, tmp_path, evaluate__models="variants")
    for stage in ("score", "prune", "distill"):
        (tmp_path / stage).unlink()  # none of which is needed
    evaluate.run(other)
    paths = other.paths
    metrics = files.read_metrics(paths.metrics)
    assert list(metrics) == ["baseline", SCORED, "real"]
    assert "image_ms" in metrics[SCORED]
    assert "psnr_to_dense" not in metrics[SCORED]
    assert files.read_mapping(paths.evaluate_protocol)["scored_variant"] is None
    for table in (paths.budget, paths.differences):
        assert len(files.read_csv(table, ["model"])) == 0


def test_equal_pictures_are_told_of_and_measured(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    models = {"good": tiny_model(seed=1), "dead": tiny_model(seed=1)}
    for weight in models["dead"].vae.parameters():
        nn.init.zeros_(weight)
    params = params_of().evaluate
    real = real_pictures(context.dataset(), params, context.data / "cache", CPU)
    sources = {name: ModelGenerator(model, params.sampler) for name, model in models.items()}
    result = measure_pictures(sources, real, params, 0, Pairs("good", ["dead"]))
    warned = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(warned) == 1
    assert "dead" in warned[0]
    notes = figures.protocol_of_figures(context.dataset(), real, params, 0, CPU, result, {})["notes"]
    assert any(note.startswith("dead: all 24 pictures are the same") for note in notes)
    assert set(result["dead"].metrics) == QUALITY | {"psnr_to_dense", "ssim_to_dense"}
    assert all(math.isfinite(value) for value in result["dead"].metrics.values())


def other_json(name: str, value: Any) -> Callable[[RunPaths], None]:
    return lambda paths: files.write_json(getattr(paths, name), value)


BROKEN: dict[str, tuple[Callable[[RunPaths], None], type[PelapError], str]] = {
    "scored": (other_json("score_protocol", {"variant": "pelap"}), ConfigError, "lacks pelap"),
    "plan": (other_json("prune_result", {"8": {}}), DataError, "is of plan 9"),
    "result": (other_json("distill_result", {"a": {"plan": "9"}}), DataError, "'start'"),
    "none": (lambda paths: paths.distill_result.unlink(), DataError, "no such file"),
    "missing": (other_json("prune_result", {"9": {}, "10": {}}), ModelError, "10: no such model"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_runs_that_do_not_fit_together_are_refused(context: Context, tmp_path: Path, what: str) -> None:
    paths = RunPaths(tmp_path)
    for folder in ("train", "prune/models", "distill/models"):
        (tmp_path / folder).parent.mkdir(exist_ok=True)
        (tmp_path / folder).symlink_to(context.paths.root / folder)
    for name in ("score_protocol", "prune_result", "distill_result"):
        files.write_json(getattr(paths, name), files.read_json(getattr(context.paths, name)))
    change, kind, words = BROKEN[what]
    change(paths)
    with pytest.raises(kind, match=words) as caught:
        evaluate.run(Context(context.params, paths, context.data, CPU))
    assert "\n" not in str(caught.value)
    assert not paths.metrics.exists()


def test_too_few_pictures_are_told_of(context: Context) -> None:
    with pytest.raises(DataError, match="num_reference"):
        evaluate.run(again(context, evaluate__num_images=99))


# --- prompts and sounds -----------------------------------------------------------------------------


class Given:
    """A source of pictures that are there already."""

    name = "given"
    latent_shape, num_asked = (1, 2, 2), 1

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def denoise(self, noise: torch.Tensor, indices: Any, seed: int) -> torch.Tensor:
        return torch.tensor(list(indices))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.images[latents]

    def paint(self, latents: torch.Tensor) -> torch.Tensor:
        return to_float(self.decode(latents))


CLASSIFIER = {"steps": 2, "batch_size": 8, "lr": 0.01, "width": 4, "horizontal_flip": False}
SOUND = {
    "sample_rate": 8000, "num_fft": 256, "hop_length": 64, "range_db": 60.0, "train_per_class": 8,
    "test_per_class": 8,
}  # fmt: skip


class Halved:
    """A medium that halves what it is given."""

    noun, num_channels, lossless = "sounds", 1, False

    def rendered(self, images: torch.Tensor) -> torch.Tensor:
        return images // 2


def test_agreement_is_of_what_was_asked_for(tmp_path: Path) -> None:
    params = params_of(evaluate__classifier=CLASSIFIER, evaluate__extractors=["classifier"]).evaluate
    dataset = tiny_dataset(100)
    real = real_pictures(dataset, params, tmp_path, CPU)
    assert real.classifier is not None
    sources = {name: Given(tiny_dataset(num).train.images) for num, name in ((30, "asked"), (30, "unasked"))}
    asked = real.classifier.labels_of(sources["asked"].images[:24])
    asked[:6], asked[6:12] = 1 - asked[:6], -1
    found = measure_pictures(sources, real, params, 0, Pairs(None, []), asked={"asked": asked})
    assert found["asked"].metrics["prompt_agreement"] == pytest.approx(12 / 18)
    assert "prompt_agreement" not in found["unasked"].metrics
    assert found["real"].metrics["prompt_agreement"] == real.classifier.test_accuracy
    assert figures.main_metric(found) == "fd_classifier"
    none_asked = measure_pictures(sources, real, params, 0, Pairs(None, []))
    assert all("prompt_agreement" not in row.metrics for row in none_asked.values())
    protocol = figures.protocol_of_figures(dataset, real, params, 0, CPU, found, {})
    assert protocol["classifier"] == {
        "test_accuracy": real.classifier.test_accuracy, "num_test": 16, "steps": 2, "width": 4,
        "sha256": real.classifier.checksum,
    }  # fmt: skip
    assert (protocol["medium"], protocol["sound"]) == ("pictures", None)
    assert any(note.startswith("fd_classifier: features of a small") for note in protocol["notes"])
    again = real_pictures(dataset, params, tmp_path, CPU).classifier  # whatever the seed of the run
    assert again is not None
    assert again.checksum == real.classifier.checksum


def test_samples_are_measured_as_they_are_heard(tmp_path: Path) -> None:
    params = params_of().evaluate
    dataset = tiny_dataset(100)
    grey = [replace(split, images=split.images[:, :1]) for split in (dataset.train, dataset.test)]
    dataset = replace(dataset, train=grey[0], test=grey[1], sound=SoundParams(**SOUND))
    real = replace(real_pictures(dataset, params, tmp_path, CPU), modality=Halved())
    made = tiny_dataset(60).test.images[:, :1].repeat(2, 1, 1, 1)[:24]
    made = torch.cat([made, made])[:24].clone()
    shown: dict[str, torch.Tensor] = {}
    found = measure_pictures(
        {"a": Given(made), "b": Given(made)}, real, params, 0, Pairs("a", ["b"]), shown.__setitem__
    )
    assert torch.equal(shown["a"], made)  # what the model made, not what is heard of it
    expected = real.reference.measure(made // 2).metrics[METRIC]
    assert found["a"].metrics[METRIC] == pytest.approx(expected)
    assert figures.measure_distance(Given(made), real, params, 0).metrics[METRIC] == pytest.approx(expected)
    floor = found["real"].metrics
    assert floor[METRIC] == pytest.approx(real.reference.measure(real.floor).metrics[METRIC])
    vocoded = real.reference.measure(real.floor // 2).metrics[METRIC]
    assert floor[f"{METRIC}_vocoded"] == pytest.approx(vocoded) != floor[METRIC]
    assert f"{METRIC}_vocoded" not in found["a"].metrics
    assert not found["a"].notes
    protocol = figures.protocol_of_figures(dataset, real, params, 0, CPU, found, {})
    assert protocol["medium"] == "sounds"
    assert protocol["sound"] == {
        key: SOUND[key] for key in ("sample_rate", "num_fft", "hop_length", "range_db")
    }
    assert any("Griffin-Lim" in note for note in protocol["notes"])


def test_pictures_are_grouped_by_what_they_were_asked_to_be(tmp_path: Path) -> None:
    params, dataset = params_of().evaluate, tiny_dataset(100)
    real = real_pictures(dataset, params, tmp_path, CPU)
    made = tiny_dataset(60).train.images[:24]
    sources = {"a": Given(made), "b": Given(made)}
    sources["a"].num_asked, sources["b"].num_asked = 2, 3
    found = measure_pictures(sources, real, params, 0, Pairs(None, []))
    # Six in turn for both: what they are compared by has to leave out the same pictures of each.
    expected = real.reference.measure(made, strata=torch.arange(24) % 6).replicates
    assert found["a"].replicates == found["b"].replicates == expected
    alone = figures.measure_distance(sources["b"], real, params, 0).replicates
    assert alone == real.reference.measure(made, strata=torch.arange(24) % 3).replicates


def test_prompts_that_nothing_is_asked_of_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = params_of().evaluate
    real = real_pictures(tiny_dataset(100), params, tmp_path, CPU)
    source = Given(tiny_dataset(60).train.images[:24])
    for source.num_asked in (24, 25):
        found = measure_pictures({"a": source}, real, params, 0, Pairs(None, []))
    (note,) = found["a"].notes
    assert note.startswith("a: 24 items ask for the first of 25 prompts or classes alone")
    assert capsys.readouterr().out.count(note) == 1


def test_prompts_are_told() -> None:
    class Conditioned:
        conditioner = TextConditioner([f"c{i}" for i in range(10)], ["a {}"], guidance_scale=3.0)

    told = evaluate._prompts({"plain": tiny_model(), "told": Conditioned()}, 20)  # type: ignore[dict-item]
    assert told is not None
    assert told.pop("digest")
    assert told == {
        "number": 10,
        "guidance_scale": 3.0,
        "first": [f"a c{i}" for i in range(8)],
        "num_judged": 20,
    }
    assert evaluate._prompts({"plain": tiny_model()}, 20) is None


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_model_whose_pictures_are_no_numbers_is_refused(
    context: Context, tmp_path: Path, part: str
) -> None:
    model = tiny_model("baseline")
    nn.init.constant_([*getattr(model, part).parameters()][-1], math.nan)
    params = params_of().evaluate
    source = ModelGenerator(model, params.sampler)
    what = "latents" if part == "unet" else "pictures"
    with pytest.raises(ModelError, match=f"baseline: {what}: NaN or infinite values in 24 of 24"):
        figures.measure_distance(source, None, params, 0)  # type: ignore[arg-type]
    if part == "vae":
        with pytest.raises(ModelError, match="baseline: reconstructions: NaN or infinite values in 16"):
            evaluate._reconstructions(
                context, {"baseline": model}, context.dataset().test, modality_of(None), tmp_path
            )
