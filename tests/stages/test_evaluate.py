"""The stage that measures every model: rows, pairs, budgets and costs of a small run made by hand."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_dataset, tiny_model, tiny_params
from torch import nn

from pelap.config import SamplerParams
from pelap.core import files
from pelap.core.errors import ConfigError, DataError, ModelError, PelapError
from pelap.core.paths import RunPaths, packed_dataset, run_models
from pelap.data.dataset import save_dataset
from pelap.diffusion.sampler import sample_images
from pelap.evaluation.evaluator import LATENCY_COLUMNS
from pelap.evaluation.features import make_extractor
from pelap.evaluation.image_quality import psnr, ssim
from pelap.evaluation.reference import ImageMetrics, Reference, shares_recovered
from pelap.models.deep_cache import DeepCache
from pelap.models.latent_diffusion import LatentDiffusion
from pelap.pipelines.pipeline_io import load_model, save_model
from pelap.profiling.cost import count_macs, count_params
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
    measured = {"evaluate__extractors": ["test_evaluate:Coarse"], "evaluate__deepcache_intervals": [2]}
    return tiny_params(**({"variants": variants} | measured | overrides))


def pruned_unet(model: LatentDiffusion, seed: int | None = None) -> nn.Module:
    unet = apply_plan(model.unet, plan_from_json(PLAN, "test"))
    if seed is not None:
        torch.manual_seed(seed)
        with torch.no_grad():
            for weight in unet.parameters():
                weight.add_(0.05 * torch.randn_like(weight))
    return unet


def write_run(root: Path) -> Context:
    """What the stages before leave; the dense student is the scored variant once more."""
    paths, data = RunPaths(root / "run"), root / "data"
    save_dataset(tiny_dataset(100), packed_dataset(data, "photos"))
    scored, plan = tiny_model(SCORED, seed=1), plan_from_json(PLAN, "test")
    save_model(tiny_model("baseline"), paths.train("baseline").model)
    save_model(scored, paths.train(SCORED).model)
    save_model(scored.with_unet(pruned_unet(scored), "pruned", 0.9), paths.pruned_model("9"), plan)
    for seed, name in enumerate((TUNED, SCRATCH)):
        save_model(scored.with_unet(pruned_unet(scored, seed), name, 0.9), paths.distilled_model(name), plan)
    save_model(scored.with_unet(scored.unet, TWIN, 0.9), paths.distilled_model(TWIN))
    files.write_json(paths.score_protocol, {"variant": SCORED})
    files.write_json(paths.prune_result, {"9": {"num_operators": 2}})
    students = {
        TUNED: {"student": "distilled", "start": "pruned", "plan": "9"},
        SCRATCH: {"student": "scratch", "start": "scratch", "plan": "9"},
        TWIN: {"student": "dense-finetuned", "start": "dense", "plan": None},
    }
    files.write_json(paths.distill_result, students)
    return Context(params_of(), paths, data, CPU)


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


@pytest.mark.slow
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
    assert metrics[TWIN]["psnr_to_dense"] > 75 > 60 > metrics[PRUNED]["psnr_to_dense"]
    assert metrics[TWIN]["ssim_to_dense"] == pytest.approx(1)
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
    alone = np.hypot(*(metrics[name][f"{METRIC}_se"] for name in (PRUNED, SCORED)))
    assert 0 < of_pruned < alone


def test_recovered_is_of_the_plans_own_pruned_row(context: Context) -> None:
    def at(value: float) -> ImageMetrics:
        return ImageMetrics({METRIC: value}, {METRIC: (value, value)})

    figures = {name: at(2) for name in ROWS} | {SCORED: at(1), PRUNED: at(5)}
    models = run_models(context.paths, context.params.variants)
    assert models.tuned_from == {TUNED: PRUNED}
    found = shares_recovered(figures, models.tuned_from, SCORED, None)
    assert found == {TUNED: {"recovered": 0.75, "recovered_se": 0}}


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
    context: Context, metrics: Mapping[str, Any]
) -> None:
    row = files.read_csv(context.paths.budget).set_index("model").loc[CACHED]
    model = load_model(folder_of(context, SCORED))
    cached = model.with_unet(DeepCache(model.unet, 2), CACHED, 0.9)
    images = sample_images(cached, SamplerParams(kind="ddim", steps=STEPS), 24, 0, batch_size=24)
    assert row[METRIC] == pytest.approx(reference_of(context).measure(images).metrics[METRIC], rel=1e-2)
    assert row[METRIC] != metrics[SCORED][METRIC]
    assert row["image_ms"] > 0
    assert files.read_json(context.paths.evaluate_protocol)["deepcache_intervals"] == [2]


def test_latencies_at_all_batch_sizes(context: Context, metrics: Mapping[str, Any]) -> None:
    table = files.read_csv(context.paths.latencies)
    assert list(table.columns) == ["model", "batch_size", "mode", "median_ms", "iqr_ms", "repeats"]
    pairs = [*zip(table["model"], table["batch_size"], strict=True)]
    assert sorted(pairs) == sorted((model, size) for model in MODELS for size in (4, 1))
    assert (set(table["mode"]), set(table["repeats"])) == ({"eager"}, {3})
    for row in table[table["batch_size"] == 4].itertuples():
        own = metrics[row.model]
        assert (row.median_ms, row.iqr_ms) == (own["latency_ms"], own["latency_iqr_ms"])


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
    assert len(files.read_csv(paths.latencies, LATENCY_COLUMNS)) == 0


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


@pytest.mark.slow
def test_variants_alone_and_the_reference_computed_once(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    forward = Coarse.forward

    def count(self: Coarse, images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Coarse, "forward", count)
    other = elsewhere(context, tmp_path, evaluate__models="variants")
    for stage in ("score", "prune", "distill"):
        (tmp_path / stage).unlink()  # none of which is needed
    evaluate.run(other)
    assert sum(seen) == 3 * 24  # two variants and the floor
    paths = other.paths
    metrics = files.read_metrics(paths.metrics)
    assert list(metrics) == ["baseline", SCORED, "real"]
    assert "image_ms" in metrics[SCORED]
    assert "psnr_to_dense" not in metrics[SCORED]
    assert files.read_mapping(paths.evaluate_protocol)["scored_variant"] is None
    for table in (paths.budget, paths.differences):
        assert len(files.read_csv(table, ["model"])) == 0


def other_json(name: str, value: Any) -> Callable[[RunPaths], None]:
    return lambda paths: files.write_json(getattr(paths, name), value)


BROKEN: dict[str, tuple[Callable[[RunPaths], None], type[PelapError], str]] = {
    "scored": (other_json("score_protocol", {"variant": "pelap"}), ConfigError, "lacks pelap"),
    "plan": (other_json("prune_result", {"8": {}}), DataError, "is of plan 9"),
    "result": (other_json("distill_result", {"a": {"plan": "9"}}), DataError, "a: lacks start; distill"),
    "no mapping": (other_json("distill_result", {"a": 9}), DataError, "a: lacks a mapping"),
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
