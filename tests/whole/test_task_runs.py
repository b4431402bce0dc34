"""Each task by the same eight stages: small in every number, whole in every stage."""

import json
import wave
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tiny import TEXT, UNET, tiny_raw

from pelap.commands.models import sample
from pelap.config.load import load_params
from pelap.config.rules import STAGES
from pelap.core.paths import RunPaths, reference_cache
from pelap.data.modality import GAP_S, NUM_PLAYED, modality_of
from pelap.diffusion.sampler import sample_images
from pelap.evaluation.classifier import trained_classifier
from pelap.evaluation.evaluation_reference import CLASSIFIER_SEED
from pelap.pipelines.pipeline_io import load_model
from pelap.stages.shared import Context

pytestmark = pytest.mark.slow

CLASSIFIER = {"steps": 30, "batch_size": 32, "lr": 0.003, "width": 8, "horizontal_flip": False}
SOUNDS = {
    "sample_rate": 8000,
    "num_fft": 512,
    "hop_length": 128,
    "range_db": 80.0,
    "train_per_class": 12,
    "test_per_class": 2,
}
DENSE = {"gate": "none", "sparsity_key": "seed", "normalise": "before_mask", "vae_training": "two_stage"}
COMMON: dict[str, Any] = {
    "variants": {"dense": DENSE},
    "score__variant": "dense",
    "evaluate__classifier": CLASSIFIER,
    "evaluate__only_frechet": True,
    "evaluate__latency_repeats": None,
}
TASKS: dict[str, dict[str, Any]] = {
    "text": {
        "conditioning": TEXT | {"num_tokens": 6},
        "unet": UNET,
        "download__image_size": 16,
        "evaluate__extractors": ["classifier"],
    },
    "audio": {
        "dataset": "sounds",
        "download__image_size": 32,
        "download__sounds": SOUNDS,
        "vae__downsampling": 8,
        "train__horizontal_flip": False,
        "distill__horizontal_flip": False,
        "evaluate__num_reference": 64,
        "evaluate__extractors": ["classifier", "effnet-lite0"],
    },
}


TASKS["text-to-audio"] = TASKS["audio"] | {"conditioning": TEXT, "unet": UNET}  # docs/tasks.md: a fourth


@pytest.fixture(scope="module", params=list(TASKS))
def context(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A finished run of a task."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "params.yaml").write_text(json.dumps(tiny_raw(**(COMMON | TASKS[request.param]))))
    params = load_params(folder / "params.yaml")
    context = Context(params, RunPaths(folder / "run"), folder / "data", torch.device("cpu"))
    for stage in STAGES:
        import_module(f"pelap.stages.{stage}").run(context)
    return context


def of_sounds(context: Context) -> bool:
    return context.params.dataset == "sounds"


def of_prompts(context: Context) -> bool:
    return context.params.conditioning.kind == "text"


def test_every_model_is_measured_with_its_task(context: Context) -> None:
    metrics = json.loads(context.paths.metrics.read_text())
    assert {"dense", "pruned-3000", "distilled-3000", "dense-finetuned", "real"} <= set(metrics)
    assert all(values["fd_classifier"] >= 0 for values in metrics.values())
    asked = {name for name, values in metrics.items() if "prompt_agreement" in values}
    assert asked == (set(metrics) if of_prompts(context) else set())
    heard = {name for name, values in metrics.items() if "fd_classifier_vocoded" in values}
    assert heard == ({"real"} if of_sounds(context) else set())
    protocol = json.loads(context.paths.evaluate_protocol.read_text())
    assert protocol["medium"] == ("sounds" if of_sounds(context) else "pictures")
    assert (protocol["prompts"] is None) != of_prompts(context)
    assert protocol["classifier"]["num_test"] == len(context.dataset().test)


def test_agreement_is_of_every_sample_with_its_own_prompt(context: Context) -> None:
    if not of_prompts(context):
        return
    params, dataset = context.params.evaluate, context.dataset()
    assert params.classifier is not None
    cache = reference_cache(context.data)
    classifier = trained_classifier(dataset, params.classifier, CLASSIFIER_SEED, context.device, cache)
    model = load_model(context.paths.train("dense").model)
    assert model.conditioner is not None
    made = sample_images(model, params.sampler, params.num_images, context.params.seed)
    taken = classifier.labels_of(modality_of(dataset.sound).rendered(made))
    asked = torch.arange(params.num_images) % len(dataset.class_names)  # classes take turns
    metrics = json.loads(context.paths.metrics.read_text())
    assert metrics["dense"]["prompt_agreement"] == pytest.approx((taken == asked).double().mean().item())
    assert metrics["real"]["prompt_agreement"] == pytest.approx(classifier.test_accuracy)


def test_pruning_cut_the_network_that_listens(context: Context) -> None:
    dense, pruned = (
        load_model(folder)
        for folder in (context.paths.train("dense").model, context.paths.pruned_model("3000"))
    )
    sizes = [sum(value.numel() for value in model.unet.parameters()) for model in (dense, pruned)]
    assert sizes[1] <= sizes[0] - 3000
    assert (pruned.conditioner is None) != of_prompts(context)
    if pruned.conditioner is not None and dense.conditioner is not None:
        before, after = (dict(model.conditioner.state_dict()) for model in (dense, pruned))
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_page_shows_or_plays_samples(context: Context) -> None:
    page = context.paths.report_page.read_text()
    assert ("<audio" in page) == of_sounds(context)
    assert ("prompt agreement" in page.lower()) == of_prompts(context)
    assert len(pd.read_csv(context.paths.scores)) > 20


def test_samples_can_be_made_anew(context: Context, tmp_path: Path) -> None:
    model = context.paths.distilled_model("distilled-3000")
    sample(model, 2, 0, 4, tmp_path / "out", "cpu")
    files = {file.name for file in (tmp_path / "out").iterdir()}
    pictures = {"00000.png", "00001.png", "grid.png"}
    assert files == pictures | ({"00000.wav", "00001.wav"} if of_sounds(context) else set())


def test_sounds_are_saved_to_be_played(context: Context) -> None:
    paths = context.paths
    if not of_sounds(context):
        assert not paths.samples_sound("dense").exists()
        return
    with wave.open(str(paths.samples_sound("dense"))) as file:
        seconds = file.getnframes() / file.getframerate()
        assert file.getframerate() == SOUNDS["sample_rate"]
    clip = 32 * SOUNDS["hop_length"] / SOUNDS["sample_rate"]
    assert seconds == pytest.approx(NUM_PLAYED * clip + (NUM_PLAYED - 1) * GAP_S, abs=1e-3)
