"""`import pelap`: calls on objects in memory; nothing printed or written, the dense model untouched."""

import copy
import dataclasses
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from pipeline_pairs import dit_of_two_classes
from tiny import tiny_dataset, tiny_model
from tiny_pipelines import PROMPTS, tiny_ddim, tiny_stable_diffusion
from torch import nn

import pelap
from pelap.api import PruningPlan, Result, Scores
from pelap.api.models import prints_as_warnings
from pelap.cli import main
from pelap.core.errors import ConfigError, DataError, ModelError, PlanError
from pelap.data.dataset import save_dataset
from pelap.pipelines.pipeline_io import save_model
from pelap.surgery.apply import removed_operators

BENCH: dict[str, Any] = {"num_latents": 4, "steps": 4, "latency_batch_size": 2, "latency_repeats": 3}
TRAINING: dict[str, Any] = {"steps": 3, "batch_size": 16, "num_validation": 8}
MEASURE: dict[str, Any] = {"num_images": 8, "num_reference": 32, "steps": 4, "latency_repeats": None}
SHORT: dict[str, Any] = {"steps": 2, "latency_repeats": None}
MODELS = {
    "pixels": (tiny_ddim, 8, None),
    "classes": (dit_of_two_classes, 16, None),
    "text": (tiny_stable_diffusion, 16, PROMPTS),
    "ours": (tiny_model, 16, None),
}


def network(model: Any) -> nn.Module:
    found: nn.Module = model.transformer if hasattr(model, "transformer") else model.unet
    return found


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    tensors, others = one.state_dict(), other.state_dict()
    return tensors.keys() == others.keys() and all(torch.equal(tensors[n], others[n]) for n in tensors)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_from_scores_to_a_faster_model_in_memory(
    tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    build, side, prompts = MODELS[kind]
    dense, data = build(), tiny_dataset(side=side)
    kept = {name: tensor.clone() for name, tensor in network(dense).state_dict().items()}
    scores = pelap.score(dense, prompts=prompts, **BENCH)
    plan = pelap.make_plan(scores, num_operators=2)
    small = pelap.prune(dense, plan)
    fast = pelap.distill(small, teacher=dense, data=data, **TRAINING)
    result = pelap.evaluate({"dense": dense, "fast": fast}, reference=data, prompts=prompts, **MEASURE)
    pictures = pelap.sample(fast, 2, prompts=prompts, steps=4)
    assert capfd.readouterr() == ("", "")
    assert not list((tmp_path / "here").iterdir())

    assert set(scores.table["operator"]) >= set(plan.operators) == set(removed_operators(network(small)))
    assert scores.protocol["num_latents"] == 4
    assert type(small) is type(fast) is type(dense)
    after = network(dense).state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in kept.items())
    assert not same_weights(network(small), network(fast))
    assert fast.history["step"].tolist() == [0, 3]
    assert list(result.table.index) == ["dense", "fast", "real"]
    assert {"fd_effnet_lite0", "psnr_to_dense"} <= set(result.table)
    assert "latency_ms" not in result.table
    assert result.protocol["dense"] == "dense"
    assert result.protocol["num_images"] == 8
    assert [(each.size, each.mode) for each in pictures] == [((side, side), "RGB")] * 2

    # The pipeline's own way of saving, and ours, give what is opened again.
    if kind != "ours":
        fast.save_pretrained(tmp_path / "fast")
    pelap.prune(dense, plan, out=tmp_path / "small")
    for name, model in {"fast": fast, "small": small}.items():
        if (tmp_path / name).exists():
            assert same_weights(network(pelap.load_pipeline(tmp_path / name)), network(model))


@pytest.fixture(scope="module")
def ddim() -> DiffusionPipeline:
    torch.manual_seed(0)
    return tiny_ddim()


@pytest.fixture(scope="module")
def scores(ddim: DiffusionPipeline) -> Scores:
    found: Scores = pelap.score(ddim, **BENCH)
    return found


@pytest.mark.slow
def test_a_plan_is_edited_saved_and_read(tmp_path: Path, ddim: DiffusionPipeline, scores: Scores) -> None:
    plan = pelap.make_plan(scores, num_operators=3)
    first, *others = plan.operators
    less = plan.without(first)
    assert less.operators == others
    assert less.plan.num_params == sum(less.table["params"]) == plan.plan.num_params - plan.table["params"][0]
    with pytest.raises(PlanError, match=r"'nowhere' is not in it"):
        plan.without("nowhere")
    less.save(tmp_path / "plan.json")
    small = pelap.prune(ddim, less)
    forms = (tmp_path / "plan.json", json.loads((tmp_path / "plan.json").read_text()), less.plan, others)
    for form in forms:
        again = pelap.prune(ddim, form, **({} if form in forms[:2] else BENCH))
        assert set(removed_operators(again.unet)) == set(others)
        assert same_weights(again.unet, small.unet)  # replacements are fitted to the same latents
    scores.save(tmp_path / "scores.csv")
    read = pelap.make_plan(tmp_path / "scores.csv", num_operators=3)
    assert read.operators == plan.operators
    assert (tmp_path / "scores.protocol.json").exists()


def test_the_time_is_measured_where_the_scores_know_their_model(
    scores: Scores, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = scores.table.assign(latency_share=0.05, replacement_share=0.0)  # as no clock on a busy machine
    scores = dataclasses.replace(scores, table=table)
    monkeypatch.setattr("pelap.pruning.pruner.Pruner.saved", lambda self, plan: 0.025 * len(plan.operators))
    believed = pelap.make_plan(table, time_reduction=0.2)
    timed = pelap.make_plan(scores, time_reduction=0.2)
    assert believed.measured_time_reduction is None
    assert believed.plan.time_reduction == pytest.approx(0.2)
    assert timed.plan.time_reduction == pytest.approx(0.4)
    assert timed.measured_time_reduction == pytest.approx(0.2)
    assert "% measured" in repr(timed)
    assert "% measured" not in repr(believed)


@pytest.mark.slow
def test_the_knapsack_is_what_chooses(scores: Scores) -> None:
    amount = int(scores.table["params"].max())
    plan, best, greedy = (
        sum(pelap.make_plan(scores, num_params=amount, **way).table["score"])
        for way in ({}, {"method": "knapsack"}, {"method": "lowest_first"})
    )
    assert plan == best < greedy * (1 - 1e-6)


@pytest.mark.slow
def test_what_is_given_is_worth_looking_at(scores: Scores, ddim: DiffusionPipeline) -> None:
    plan, data = pelap.make_plan(scores, num_operators=2), tiny_dataset(side=8)
    options = MEASURE | {"latency_repeats": 3, "sampler_repeats": 3, "latency_batch_sizes": [2]}
    result = pelap.evaluate({"dense": ddim, "also": ddim}, data, **options)
    words = (
        (scores, (scores.table["operator"].iloc[0], "rank correlation")),
        (plan, (*plan.operators, "plan of 2 operators")),
        (result, ("dense", "also", "real", "denoiser", "8 pictures of each model")),
    )
    assert "image_ms" in result.table
    for each, parts in words:
        text, page = repr(each), each._repr_html_()
        assert all(part in text for part in parts)
        assert page.count("<table") == 1
        assert all(len(line) <= 120 for line in text.splitlines())
        assert each.plot()._repr_png_().startswith(b"\x89PNG")
    assert all(len(line) <= 80 for line in repr(result).splitlines())
    assert result.samples["also"].shape == (8, 3, 8, 8)
    with pytest.raises(PlanError, match="make it from scores"):
        PruningPlan(plan.plan).plot()


def test_pictures_may_be_a_file_or_a_folder_of_classes(tmp_path: Path, ddim: DiffusionPipeline) -> None:
    save_dataset(data := tiny_dataset(side=8), tmp_path / "packed.safetensors")
    for split, pictures in (("train", data.train), ("test", data.test)):
        for index, (image, label) in enumerate(zip(pictures.images, pictures.labels, strict=True)):
            path = tmp_path / "pictures" / split / data.class_names[int(label)] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    tables = [
        pelap.evaluate({"dense": ddim}, where, num_images=4, num_reference=60, **SHORT).table
        for where in (data, tmp_path / "packed.safetensors", str(tmp_path / "pictures"))
    ]
    distances = [table["fd_effnet_lite0"]["dense"] for table in tables]
    assert distances[1] == pytest.approx(distances[0], rel=1e-3)
    assert distances[2] == pytest.approx(distances[0], rel=0.1)  # a folder has another order
    with pytest.raises(DataError, match="no such"):
        pelap.evaluate({"dense": ddim}, tmp_path / "nowhere", **SHORT)


@pytest.mark.slow
def test_models_are_given_by_their_folders_too(
    tmp_path: Path, ddim: DiffusionPipeline, scores: Scores
) -> None:
    ddim.save_pretrained(tmp_path / "dense")
    save_model(tiny_model(), tmp_path / "model")
    again = pelap.score(str(tmp_path / "dense"), **BENCH)
    columns = ["operator", "score", "params"]
    ours, theirs = (
        each.table[columns].sort_values("operator", ignore_index=True) for each in (again, scores)
    )
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-3)
    result = pelap.evaluate({"dense": tmp_path / "model"}, tiny_dataset(), num_images=4, **SHORT)
    assert result.protocol["sampler"] == {"kind": "ddim", "steps": 2}
    assert result.protocol["num_reference"] == 60  # all that is there
    small = pelap.prune(tmp_path / "dense", scores.table["operator"][:1].tolist(), **BENCH)
    small.save_pretrained(tmp_path / "small")
    with pytest.raises(ModelError, match=r"small: is pruned already; prune the dense one"):
        pelap.prune(tmp_path / "small", ["conv_act"], **BENCH)
    with pytest.raises(ModelError, match=r"small: is pruned already; give the dense one as teacher"):
        pelap.distill(small, tmp_path / "small", tiny_dataset(side=8), **TRAINING)


@pytest.mark.slow
def test_a_half_precision_pipeline_stays_one() -> None:
    pipe = tiny_ddim()
    pipe.unet.to(torch.bfloat16)
    pipe.scheduler.set_timesteps(7)
    small = pelap.prune(pipe, ["mid_block.resnets.0"], **BENCH)
    assert {weight.dtype for each in (pipe, small) for weight in each.unet.parameters()} == {torch.bfloat16}
    assert len(pipe.scheduler.timesteps) == 7
    assert not hasattr(pipe, "_progress_bar_config")


@pytest.mark.slow
def test_a_plan_is_not_applied_with_what_was_computed_for_other_weights(scores: Scores) -> None:
    pipe, plan = tiny_ddim(), pelap.make_plan(scores, num_operators=2)
    with torch.no_grad():
        pipe.unet.conv_in.weight.mul_(2)
    assert torch.equal(pelap.prune(pipe, plan).unet.conv_in.weight, pipe.unet.conv_in.weight)


def test_what_is_worth_saying_is_a_warning(ddim: DiffusionPipeline) -> None:
    other = tiny_ddim()
    other.scheduler.register_to_config(prediction_type="v_prediction")
    data = tiny_dataset(side=8)
    with pytest.warns(UserWarning, match="other has another prediction type than dense"):
        pelap.evaluate({"dense": ddim, "other": other}, data, num_images=4, num_reference=8, **SHORT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pelap.evaluate({"dense": ddim}, data, num_images=4, num_reference=8, **SHORT)


def test_a_warning_is_given_where_the_call_fails_too() -> None:
    def fails_with_a_word() -> None:
        with prints_as_warnings(progress=False):
            print("warning: look here")
            raise ModelError("as expected")

    with pytest.warns(UserWarning, match="look here"), pytest.raises(ModelError, match="as expected"):
        fails_with_a_word()


IDLE: dict[str, tuple[dict[str, Any], set[str]]] = {
    "score": ({"variant": "mine", "criteria": ()}, {"score.variant"}),
    "prune": ({"variant": "mine", "early_stop": 0.5}, {"score.variant", "score.early_stop"}),
    "distill": (
        {"students": {"mine": {"start": "pruned"}}, "quality": {"num_images": 4}},
        {"distill.students", "distill.quality"},
    ),
    "evaluate": (
        {"num_reconstructions": 4, "step_counts": (2,), "sampler_repeats": 4, **SHORT, "steps": None},
        {"evaluate.num_reconstructions", "evaluate.step_counts", "evaluate.sampler_repeats"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pixels", "ours"])
@pytest.mark.parametrize("call", IDLE)
def test_settings_that_a_call_has_no_use_for_are_named_once(call: str, kind: str) -> None:
    build, side, _ = MODELS[kind]
    (model, data), (idle, named) = (build(), tiny_dataset(side=side)), IDLE[call]
    bench = BENCH | {"steps": None, "sampler": {"kind": "ddim", "steps": 4}}
    calls: dict[str, Any] = {
        "score": lambda: pelap.score(model, **bench, **idle),
        "prune": lambda: pelap.prune(model, ["mid_block.resnets.0"], **bench, **idle),
        "distill": lambda: pelap.distill(copy.deepcopy(model), model, data, **TRAINING, **idle),
        "evaluate": lambda: pelap.evaluate(
            {"dense": model}, data, num_images=4, sampler=bench["sampler"], **idle
        ),
    }
    with pytest.warns(UserWarning, match="not used") as caught:
        calls[call]()
    (said,) = [each for each in caught if "not used" in str(each.message)]
    if kind == "pixels" and call != "distill":  # it has a scheduler of its own
        named = named | {"evaluate.sampler.kind" if call == "evaluate" else "score.sampler.kind"}
    assert set(str(said.message).removeprefix(f"{call}: not used by this call: ").split(", ")) == named
    assert said.filename == __file__


@pytest.mark.slow
def test_every_saved_model_has_its_size(tmp_path: Path, ddim: DiffusionPipeline) -> None:
    ddim.save_pretrained(tmp_path / "one")
    ddim.save_pretrained(tmp_path / "two")
    models = {"one": tmp_path / "one", "two": str(tmp_path / "two"), "memory": ddim}
    data = tiny_dataset(side=8)
    timed = {"latency_repeats": 3, "sampler_repeats": 3, "latency_batch_sizes": [2]}
    found = pelap.evaluate(models, data, num_images=4, num_reference=8, steps=2, **timed).metrics
    sizes = [found[name].get("disk_mib") for name in models]
    assert sizes[0] == sizes[1] is not None
    assert sizes[2] is None


@pytest.mark.slow
def test_progress_and_files_are_had_by_asking(
    tmp_path: Path, ddim: DiffusionPipeline, capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    pelap.score(ddim, progress=True, out=tmp_path / "scores.csv", **BENCH)
    assert "score DDIMPipeline: " in capfd.readouterr().err
    paths = {"out": tmp_path / "f.json", "cache": tmp_path / "c"}
    result: Result = pelap.evaluate({"dense": ddim}, tiny_dataset(side=8), num_images=4, **paths, **SHORT)
    assert json.loads((tmp_path / "f.json").read_text()) == result.metrics
    assert (tmp_path / "f.protocol.json").exists()
    assert list((tmp_path / "c").iterdir())
    # The command line takes up what a call wrote.
    ddim.save_pretrained(tmp_path / "dense")
    plan = pelap.make_plan(tmp_path / "scores.csv", num_operators=1)
    plan.save(tmp_path / "plan.json")
    options = ["--scores", "scores.csv", "--plan", "plan.json", "--out", "small", "--params", "p.yaml"]
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text("seed: 0\n")
    assert main(["pipeline", "prune", "dense", *options, "--device", "cpu"]) == 0
    assert removed_operators(pelap.load_pipeline("small").unet) == plan.operators


REFUSED: list[tuple[type[Exception], str, Any]] = [
    (ConfigError, "score: num_latent: unknown key", lambda p, s: pelap.score(p, num_latent=3)),
    (ConfigError, "score: num_latents: .*2", lambda p, s: pelap.score(p, num_latents=1)),
    (ConfigError, "steps: ", lambda p, s: pelap.score(p, **(BENCH | {"steps": 0}))),
    (ConfigError, "takes no text", lambda p, s: pelap.score(p, prompts=["rain"], **BENCH)),
    (ConfigError, "takes no text", lambda p, s: pelap.sample(tiny_model(), prompts=["rain"])),
    (ConfigError, "make_plan: .*selection", lambda p, s: pelap.make_plan(s, method="best")),
    (ConfigError, "exactly one of", lambda p, s: pelap.make_plan(s, num_params=3, num_operators=3)),
    (PlanError, "out of reach", lambda p, s: pelap.make_plan(s, num_params=10**9)),
    (PlanError, "no operator 'x'", lambda p, s: pelap.prune(p, ["x"], **BENCH)),
    (PlanError, "not a pruning plan", lambda p, s: pelap.prune(p, {"operators": 3})),
    (ConfigError, "none the name 'real'", lambda p, s: pelap.evaluate({"real": p}, tiny_dataset())),
    (ConfigError, "give at least one", lambda p, s: pelap.evaluate({}, tiny_dataset())),
    (ModelError, "dense: makes pictures of 8x8", lambda p, s: pelap.evaluate({"dense": p}, tiny_dataset())),
    (ModelError, "dense: makes pictures of 16",
     lambda p, s: pelap.evaluate({"dense": tiny_model()}, tiny_dataset(side=8))),
    (ConfigError, "distill: ", lambda p, s: pelap.distill(p, p, tiny_dataset(side=8), select="distance")),
    (ConfigError, "sample: num: at least 1", lambda p, s: pelap.sample(p, num=0)),
    (ConfigError, "sample: batch_size: at least 1", lambda p, s: pelap.sample(p, batch_size=0)),
    (ConfigError, "num_images: at least 1",
     lambda p, s: pelap.evaluate({"dense": p}, tiny_dataset(side=8), num_images=0)),
    (ConfigError, "num_reference: at least 1",
     lambda p, s: pelap.evaluate({"dense": p}, tiny_dataset(side=8), num_reference=0)),
    (ConfigError, "give at least one by its name", lambda p, s: pelap.evaluate(p, tiny_dataset(side=8))),
    (DataError, "correct the path", lambda p, s: pelap.make_plan("nowhere.csv")),
    (PlanError, "the table of scores lists", lambda p, s: pelap.prune(p, ["nowhere"], **BENCH)),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "words", "call"), REFUSED, ids=[words for _, words, _ in REFUSED])
def test_what_does_not_fit_is_refused_in_one_line(
    kind: type[Exception], words: str, call: Any, ddim: DiffusionPipeline, scores: Scores
) -> None:
    with pytest.raises(kind, match=words) as caught:
        call(ddim, scores)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_nothing_is_written_where_something_is(tmp_path: Path, ddim: DiffusionPipeline) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        pelap.prune(ddim, ["mid_block.resnets.0"], out=tmp_path, **BENCH)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_names_are_there_before_anything_is_imported() -> None:
    check = (
        "import pelap, sys; assert set(pelap.__all__) <= set(dir(pelap)); "
        "sys.exit(bool({'torch', 'diffusers', 'pelap.api'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
    for name in pelap.__all__:
        assert getattr(pelap, name)
    with pytest.raises(AttributeError, match="no attribute 'scores'"):
        pelap.scores  # noqa: B018
