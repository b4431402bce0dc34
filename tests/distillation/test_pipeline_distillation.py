"""A stranger's pipeline is distilled, in memory and from folders into a folder."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from distillation import QUALITY
from interruption import cut_training, record_steps
from pipeline_pairs import (
    CPU,
    KINDS,
    REMOVED,
    dataset_for,
    denoiser,
    distillation_params,
    part_of,
    save_data,
    save_pair,
    student_of,
)
from tiny import tiny_dataset, tiny_params
from tiny_pipelines import PROMPTS, awake, tiny_ddim, tiny_stable_diffusion, unet2d

from pelap.commands.pipelines import distill_pipeline as distill_folders
from pelap.config import LossWeights
from pelap.core.errors import ConfigError, DataError, ModelError, PelapError
from pelap.core.terminal import hidden
from pelap.distillation import pipeline_distillation
from pelap.distillation.distill import distill
from pelap.distillation.pipeline_distillation import PipelineBatches, distill_pipeline
from pelap.pipelines.latent import LatentPipeline
from pelap.pipelines.pipeline_io import load_pipeline, pipeline_plan, save_pipeline
from pelap.surgery.apply import apply_plan, plan_kept, removed_operators
from pelap.surgery.plan import fingerprint, plan_from_json

# diffusers' Euler schedulers with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
each_kind = pytest.mark.parametrize("kind", KINDS)
Distill = Callable[..., Path]


@pytest.fixture
def distilled(tmp_path: Path) -> Distill:
    """Distils a pair of a kind, in the folders `dense` and `pruned`, into a folder of the name `out`."""

    def run(kind: str = "ddim", out: str = "out", **overrides: Any) -> Path:
        if not (tmp_path / "dense").exists():
            save_pair(tmp_path, kind)
            save_data(tmp_path / "data", dataset_for(kind))
        params = distillation_params(**{f"distill__{name}": value for name, value in overrides.items()})
        folders = (tmp_path / name for name in ("pruned", "dense", "data", out))
        distill_folders(params, *folders, CPU)
        return tmp_path / out

    return run


def rows_of(out: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(out.with_name(f"{out.name}.{name}.csv"))


@pytest.mark.parametrize("kind", ["ddim", "stable_diffusion"])
def test_a_pipeline_in_memory_learns_and_leaves_its_teacher_alone(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = KINDS[kind]()
    weights = copy.deepcopy(denoiser(teacher).state_dict())
    student = copy.copy(teacher)
    plan = plan_from_json({"operators": REMOVED["unet"]}, "test")
    student.unet = apply_plan(teacher.unet, plan)
    start = copy.deepcopy(student.unet.state_dict())
    params = distillation_params(distill__students=student_of(output_weight=1.0)).distill
    with hidden():
        trained = distill_pipeline(student, teacher, dataset_for(kind), params, params.students["one"])
    assert trained.pipe is student
    assert plan_kept(student.unet) == plan
    validation = trained.progress.validation
    assert validation[-1]["output"] < 0.9 * validation[0]["output"]
    assert any(not torch.equal(start[name], t) for name, t in student.unet.state_dict().items())
    assert all(torch.equal(weights[name], t) for name, t in denoiser(teacher).state_dict().items())
    assert all(parameter.requires_grad for parameter in teacher.unet.parameters())
    assert trained.state is None
    assert capsys.readouterr() == ("", "")


@each_kind
@pytest.mark.parametrize("weight", ["output_weight", "feature_weight"])
def test_distillation_brings_a_pruned_pipeline_closer_to_its_teacher(
    tmp_path: Path, distilled: Distill, kind: str, weight: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # Weights at random know nothing of the data, which would lead away from them.
    out = distilled(kind, students=student_of(**{weight: 1.0}))
    assert "difference to the teacher" in capsys.readouterr().out
    assert rows_of(out, "history")["step"].tolist() == list(range(1, 31))
    validation = rows_of(out, "validation")
    assert validation["step"].tolist() == [*range(0, 31, 3)]
    learnt = validation[weight.removesuffix("_weight")]
    assert learnt.iloc[-1] < 0.9 * learnt.iloc[0]
    dense, dataset = load_pipeline(tmp_path / "dense"), dataset_for(kind)
    unseen = next(PipelineBatches(dense, dataset, distillation_params().distill, 0)(1000))
    networks = [denoiser(pipe) for pipe in (dense, load_pipeline(tmp_path / "pruned"), load_pipeline(out))]
    with torch.no_grad():
        wanted, before, after = (unseen.predict(network) for network in networks)
    assert (after - wanted).square().mean() < 0.7 * (before - wanted).square().mean()
    assert pipeline_plan(out) == pipeline_plan(tmp_path / "pruned")
    assert set(removed_operators(networks[-1])) == set(REMOVED[part_of(dense)])
    pipeline = LatentPipeline(load_pipeline(out), 4, PROMPTS if kind == "stable_diffusion" else None)
    made = pipeline.decode(pipeline.denoise(torch.randn(2, *pipeline.latent_shape), [0, 1], 0))
    assert made.shape == (2, 3, *dataset.train.images.shape[-2:])
    assert not list(tmp_path.glob(".*resume*"))


@each_kind
def test_a_student_that_is_its_teacher_differs_in_nothing(tmp_path: Path, kind: str) -> None:
    teacher = KINDS[kind]()
    student = denoiser(copy.deepcopy(teacher)).train()
    params = distillation_params(distill__steps=3, distill__weight_decay=0.0).distill
    weights = LossWeights(task_weight=0.0, output_weight=1.0, feature_weight=1.0)
    batches = PipelineBatches(teacher, dataset_for(kind), params, 0)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    trained = distill(student, denoiser(teacher), batches, params, weights, CPU, tmp_path / "c")
    history = trained.progress.history
    assert [(row["output"], row["feature"]) for row in history] == [(0, 0)] * 3
    assert not any(name.endswith("_share") for row in trained.progress.validation for name in row)
    assert all(row["task"] > 0 for row in history)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.network.state_dict().items())


@each_kind
def test_every_term_has_its_share_at_every_validation(distilled: Distill, kind: str) -> None:
    out = distilled(
        kind, students=student_of(task_weight=1.0, output_weight=2.0, feature_weight=1.0), steps=3
    )
    validation = rows_of(out, "validation")
    for measure in ("loss", "gradient"):
        shares = validation[[f"{term}_{measure}_share" for term in ("task", "output", "feature")]]
        assert (shares > 0).all(axis=None)
        assert shares.sum(axis="columns").tolist() == pytest.approx([1.0, 1.0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stable_diffusion", "dit"])
def test_interrupted_distillation_ends_where_uninterrupted_does(
    tmp_path: Path, distilled: Distill, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    options = {"steps": 8, "ema_decay": 0.9}
    whole = distilled(kind, "whole", **options)
    with monkeypatch.context() as patch:
        cut_training(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            distilled(kind, "cut", **options)
    assert not (tmp_path / "cut").exists()
    assert len(list(tmp_path.glob(".cut.resume-*"))) == 1
    taken = record_steps(monkeypatch)
    resumed = distilled(kind, "cut", **options)
    assert taken == [5, 6, 7]
    one, other = (denoiser(load_pipeline(out)).state_dict() for out in (whole, resumed))
    assert all(torch.equal(other[name], tensor) for name, tensor in one.items())
    losses = [rows_of(out, "history")["loss"].tolist() for out in (whole, resumed)]
    assert losses[0] == losses[1]
    pd.testing.assert_frame_equal(*(rows_of(out, "validation") for out in (whole, resumed)), check_exact=True)
    assert not list(tmp_path.glob(".cut.resume-*"))


def test_the_first_student_that_starts_pruned_says_what_counts(
    distilled: Distill, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = {"start": "dense", "task_weight": 0.0, "output_weight": 5.0, "feature_weight": 5.0}
    one = student_of(task_weight=2.0)
    students = {"dense-finetuned": longer} | one | {"two": longer | {"start": "pruned"}}
    history = rows_of(distilled(students=students, steps=3), "history")
    assert history["loss"].tolist() == pytest.approx((2 * history["task"]).tolist())
    assert not {"output", "feature"} & set(history)
    said = capsys.readouterr().out
    assert "which is one student: dense-finetuned, two" in said
    assert "loss on test pictures" in said


def test_the_step_of_least_loss_on_test_pictures_can_be_kept(tmp_path: Path, distilled: Distill) -> None:
    # Steps as large as these lead away from anything.
    out = distilled(select="loss", lr=1.0, steps=6, lr_min=0.5)
    assert rows_of(out, "validation")["task"].idxmin() == 0
    kept, start = (load_pipeline(folder).unet for folder in (out, tmp_path / "pruned"))
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), start.parameters(), strict=True))


def test_state_of_other_weights_is_not_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = set()

    def stop(*arguments: Any, **options: Any) -> Any:
        folders.add(arguments[6])
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline_distillation, "distill", stop)
    data = save_data(tmp_path / "data", tiny_dataset(side=8))
    dense, pruned = save_pair(tmp_path, "ddim")

    def start(**overrides: Any) -> int:
        with pytest.raises(KeyboardInterrupt):
            distill_folders(tiny_params(**overrides), pruned, dense, data, tmp_path / "out", CPU)
        return len(folders)

    assert [start(), start(), start(seed=5), start(distill__lr=3e-4)] == [1, 1, 2, 3]
    pipe = tiny_ddim()
    awake(pipe.unet, seed=5)
    save_pipeline(pipe, dense)
    assert start() == 4
    DDIMScheduler(beta_end=0.012).save_pretrained(dense / "scheduler")
    assert start() == 5
    assert all(folder.parent == tmp_path and folder.name.startswith(".out.resume-") for folder in folders)


def test_distillation_refuses_what_does_not_fit(tmp_path: Path) -> None:
    dense, pruned = save_pair(tmp_path, "ddim")
    small = save_data(tmp_path / "small", tiny_dataset(side=8))
    large = save_data(tmp_path / "large", tiny_dataset(side=16))
    three = save_data(tmp_path / "three", replace(tiny_dataset(side=16), class_names=("a", "b", "c")))
    few = save_data(tmp_path / "few", tiny_dataset(num_train=4, side=8))
    other, edm, named_by = tmp_path / "other", tmp_path / "edm", tmp_path / "named"
    changed = tiny_ddim()
    changed.unet = unet2d(3, block_out_channels=(8, 24))
    save_pipeline(changed, other)
    named = tiny_ddim()
    bare = plan_from_json({"operators": ["mid_block.resnets.0"]}, "test")
    plan = replace(bare, network=fingerprint(named.unet))
    named.unet = apply_plan(named.unet, plan)
    save_pipeline(named, named_by, plan)
    strange = tiny_stable_diffusion()
    strange.scheduler = EulerDiscreteScheduler(
        timestep_type="continuous", prediction_type="v_prediction", steps_offset=1
    )
    save_pipeline(strange, edm)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    dit = save_pair(tmp_path / "dit", "dit")
    scratch = {"distill__students": {"one": student_of(task_weight=1.0)["one"] | {"start": "scratch"}}}
    distance = {"distill__select": "distance", "distill__quality": QUALITY}
    cases: list[tuple[Path, Path, Path, str, type[PelapError], str, dict[str, Any]]] = [
        (dense, dense, small, "out", ModelError, "dense: is not pruned", {}),
        (pruned, pruned, small, "out", ModelError, "is pruned itself", {}),
        (pruned, dense, large, "out", ModelError, "8x8 pixels, those of tiny have 16x16", {}),
        (named_by, other, small, "out", ModelError, "not the network that", {}),
        (pruned, dit[0], large, "out", ModelError, "not the network that", {}),
        (dit[1], dit[0], three, "out", ModelError, "was made for 2 classes, the data have 3", {}),
        (pruned, edm, large, "out", ModelError, "no known training", {}),
        (pruned, dense, few, "out", DataError, "batch_size", {}),
        (pruned, dense, small, "full", ConfigError, "is not empty", {}),
        (pruned, dense, tmp_path / "no", "out", DataError, "no such file", {}),
        (tmp_path / "no", dense, small, "out", ModelError, "no", {}),
        (pruned, dense, small, "out", ConfigError, "none has start: pruned", scratch),
        (pruned, dense, small, "out", ConfigError, "distill.select: distance", distance),
    ]
    for student, teacher, data, out, kind, words, overrides in cases:
        with pytest.raises(kind, match=words) as caught:
            distill_folders(tiny_params(**overrides), student, teacher, data, tmp_path / out, CPU)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
