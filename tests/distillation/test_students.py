"""All students of a run: their starts, what is written of them, and a run that is interrupted."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from distillation import CPU, QUALITY, same, shaken, state_of
from interruption import SAVE_EVERY
from tiny import LIGHT, tiny_dataset, tiny_model, tiny_params
from torch import nn

from pelap.core import files
from pelap.core.errors import DataError, ModelError, PelapError, PlanError
from pelap.core.paths import RunPaths, reference_cache
from pelap.data.dataset import save_dataset
from pelap.diffusion.sampler import ImageGenerator, sample_from
from pelap.distillation import model_distillation
from pelap.distillation.batches import ModelBatches
from pelap.distillation.distill import DISTANCE, Distilled, distill
from pelap.distillation.objective import TERMS
from pelap.models.light_unet import CutLightUNet
from pelap.pipelines.pipeline_io import load_model, model_plan, save_model
from pelap.report.figures.training import distillation_curves
from pelap.stages import distill as stage
from pelap.stages.shared import Context
from pelap.surgery.apply import apply_plan, removed_operators
from pelap.surgery.operators import find_operators
from pelap.surgery.plan import Plan, complete_plan, plan_from_json
from pelap.training.trainer import Trainer

OPERATORS = {"7": ["mid_block.resnets.0"], "30": ["down_blocks.1.resnets.0", "up_blocks.1.resnets.1"]}
STUDENTS = {
    "distilled": {"start": "pruned", "task_weight": 1.0, "output_weight": 1.0, "feature_weight": 1.0},
    "scratch": {"start": "scratch", "task_weight": 1.0, "output_weight": 1.0, "feature_weight": 0.0},
    "dense-finetuned": {"start": "dense", "task_weight": 1.0, "output_weight": 0.0, "feature_weight": 0.0},
}
ROWS = ["distilled-7", "scratch-7", "distilled-30", "scratch-30", "dense-finetuned"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run after `prune`, with two plans."""
    root = tmp_path_factory.mktemp("prepared")
    paths = RunPaths(root / "run")
    teacher = tiny_model("baseline")
    shaken(teacher.unet)
    save_model(teacher, paths.train("baseline").model)
    paths.score.mkdir(parents=True)
    files.write_json(paths.score_protocol, {"variant": "baseline"})
    unet = teacher.unet
    found = find_operators(unet, lambda: unet(torch.randn(3, 4, 4, 4), 3))
    for name, operators in OPERATORS.items():
        plan = complete_plan(plan_from_json({"operators": operators}, "test"), unet, found)
        pruned = shaken(apply_plan(unet, plan), seed=1)
        save_model(teacher.with_unet(pruned, "pruned", 0.0), paths.pruned_model(name), plan)
    files.write_json(paths.prune_result, {name: {"num_operators": 1} for name in OPERATORS})
    save_dataset(tiny_dataset(), root / "data" / "photos.safetensors")
    return root


@pytest.fixture
def context_of(prepared: Path, tmp_path: Path) -> Callable[..., Context]:
    """From overrides of the parameters to a context on a copy of the prepared run."""

    def make(run: str = "run", **overrides: Any) -> Context:
        shutil.copytree(prepared / "run", tmp_path / run, dirs_exist_ok=True)
        options = {"students": STUDENTS, "log_every": 1, **overrides}
        named = {f"distill__{name}": value for name, value in options.items()}
        return Context(tiny_params(**named), RunPaths(tmp_path / run), prepared / "data", CPU)

    return make


def row_of(name: str) -> tuple[str, str | None]:
    """The student and the plan that a row is of."""
    return (name, None) if name in STUDENTS else tuple(name.rsplit("-", 1))  # type: ignore[return-value]


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_every_student_of_every_plan_is_trained_and_saved(
    context_of: Callable[..., Context], capsys: pytest.CaptureFixture[str]
) -> None:
    context = context_of()
    paths, before = context.paths, files_below(context.paths.root)
    stage.run(context)
    after = files_below(paths.root)
    assert {name: after[name] for name in before} == before  # the teacher's folder among them
    assert not (paths.root / ".resume").exists()
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed] == ROWS
    result = files.read_json(paths.distill_result)
    assert list(result) == ROWS
    for row, how in result.items():
        student, plan = row_of(row)
        assert how == {
            "student": student,
            "plan": plan,
            "steps": 6,
            "kept_step": 6,
            "select": "last",
            **STUDENTS[student],
        }
        folder = paths.distilled_model(row)
        model = load_model(folder)
        assert (model.info.name, model.info.ema_decay) == (row, context.params.distill.ema_decay)
        assert sorted(removed_operators(model.unet)) == sorted(OPERATORS[plan] if plan else [])
        if plan:
            assert model_plan(folder) == model_plan(paths.pruned_model(plan))
    history, validation = pd.read_csv(paths.distill_history), pd.read_csv(paths.distill_validation)
    assert list(history) == ["student", "step", "loss", "task", "output", "feature", "lr", "images_per_s"]
    shares = [f"{term}_{kind}_share" for kind in ("loss", "gradient") for term in TERMS]
    assert list(validation) == ["student", "step", "task", "output", "feature", *shares]
    for kind in ("loss", "gradient"):
        sums = validation[[f"{term}_{kind}_share" for term in TERMS]].sum(axis="columns")
        assert sums.tolist() == pytest.approx([1.0] * len(validation))
    for table, steps in ((history, [1, 2, 3, 4, 5, 6]), (validation, [0, 3, 6])):
        assert list(dict.fromkeys(table["student"])) == ROWS
        for row, lines in table.groupby("student"):
            assert lines["step"].tolist() == steps
            assert lines["task"].notna().all()
            how = STUDENTS[row_of(str(row))[0]]
            for term in ("output", "feature"):
                assert lines[term].notna().all() == lines[term].notna().any() == bool(how[f"{term}_weight"])


def starts_of(context: Context, patch: pytest.MonkeyPatch) -> dict[str, nn.Module]:
    """The students of a run before their first step, by row."""
    starts: dict[str, nn.Module] = {}
    announced: list[int] = []

    def noting(student: nn.Module, *args: Any) -> Distilled:
        starts[args[-1].removeprefix("distill ")] = copy.deepcopy(student)
        return distill(student, *args)

    def batches(*args: Any) -> ModelBatches:
        announced.append(args[-1])
        return ModelBatches(*args)

    patch.setattr(model_distillation, "distill", noting)
    patch.setattr(model_distillation, "ModelBatches", batches)
    stage.run(context)
    assert announced == [len(starts)]
    return starts


def test_students_start_as_they_should(
    context_of: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The second one would see what the first one did to a teacher that it was not a copy of.
    context = context_of(students=STUDENTS | {"again": STUDENTS["dense-finetuned"]}, steps=3)
    starts = starts_of(context, monkeypatch)
    teacher = load_model(context.paths.train("baseline").model).unet
    for name in ("dense-finetuned", "again"):
        assert same(state_of(starts[name]), state_of(teacher))
    for plan in OPERATORS:
        pruned = load_model(context.paths.pruned_model(plan)).unet
        assert same(state_of(starts[f"distilled-{plan}"]), state_of(pruned))
        fresh, dense = state_of(starts[f"scratch-{plan}"]), state_of(teacher)
        for name, tensor in state_of(pruned).items():
            assert fresh[name].shape == tensor.shape
            assert not torch.isclose(fresh[name], tensor).all()
            if name in dense:
                assert not torch.isclose(fresh[name], dense[name]).all()
        norms = [m for m in starts[f"scratch-{plan}"].modules() if isinstance(m, nn.GroupNorm)]
        assert norms
        assert all(bool((norm.weight == 1).all()) for norm in norms)


@pytest.mark.parametrize("kind", ["unet2d", "light", "cut"])
def test_any_unet_can_be_had_anew(kind: str) -> None:
    options = {} if kind == "unet2d" else LIGHT
    dense = CutLightUNet(in_channels=3, width=8) if kind == "cut" else tiny_model(**options).unet
    fresh = model_distillation.reinitialised(dense, Plan(()), 0)
    assert type(fresh) is type(dense)
    shapes = [{name: tensor.shape for name, tensor in each.state_dict().items()} for each in (fresh, dense)]
    assert shapes[0] == shapes[1]
    assert not same(state_of(fresh), state_of(dense))


def test_fresh_weights_are_the_same_for_the_same_seed_and_move_no_other_number() -> None:
    dense = tiny_model().unet
    plan = plan_from_json({"operators": OPERATORS["30"]}, "test")
    made = []
    for outside, seed in ((1, 0), (2, 0), (1, 5)):
        torch.manual_seed(outside)
        made.append(state_of(model_distillation.reinitialised(dense, plan, seed)))
        after = torch.rand(3)
        torch.manual_seed(outside)
        assert torch.equal(after, torch.rand(3))
    assert same(made[0], made[1])
    assert not same(made[0], made[2])


@pytest.mark.slow
def test_a_run_that_was_cut_goes_on_with_the_student_it_was_at(
    context_of: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.run(context_of("whole"))
    context = context_of("cut")
    old = context.paths.distill / "of an earlier run.txt"
    old.parent.mkdir()
    old.touch()
    step = Trainer._step
    with monkeypatch.context() as patch:

        def cut(self: Trainer, *args: Any) -> Any:
            if (self.label, self.progress.step) == ("distill distilled-30", 4):
                raise KeyboardInterrupt
            return step(self, *args)

        patch.setattr(SAVE_EVERY, -1.0)
        patch.setattr(Trainer, "_step", cut)
        with pytest.raises(KeyboardInterrupt):
            stage.run(context)
    assert files_below(context.paths.distill) == {old.name: b""}
    taken: list[tuple[str, int]] = []

    def note(self: Trainer, *args: Any) -> Any:
        taken.append((self.label.removeprefix("distill "), self.progress.step))
        return step(self, *args)

    monkeypatch.setattr(Trainer, "_step", note)
    stage.run(context)
    rest = [("distilled-30", 4), ("distilled-30", 5)]
    assert taken == rest + [(row, i) for row in ("scratch-30", "dense-finetuned") for i in range(6)]
    assert not (context.paths.root / ".resume").exists()
    whole, resumed = (files_below(context.paths.root.parent / run / "distill") for run in ("whole", "cut"))
    assert whole.keys() == resumed.keys()
    timed = {"history.csv", "digests.json"}  # images a second, and what says so
    assert all(whole[name] == resumed[name] for name in whole if name not in timed)
    tables = [
        pd.read_csv(context.paths.root.parent / run / "distill" / "history.csv").drop(columns="images_per_s")
        for run in ("whole", "cut")
    ]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_state_of_another_training_is_not_gone_on_from(
    context_of: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []

    def stop(*args: Any) -> Distilled:
        seen.append(args[6])
        raise KeyboardInterrupt

    monkeypatch.setattr(model_distillation, "distill", stop)

    def start(context: Context) -> None:
        with pytest.raises(KeyboardInterrupt):
            stage.run(context)

    start(context_of())
    # Other students are no reason to start this one anew.
    start(context_of(students={"distilled": STUDENTS["distilled"]}))
    assert len(set(seen)) == 1
    start(context_of(lr=3e-4))
    start(context_of(students={"distilled": STUDENTS["distilled"] | {"feature_weight": 0.5}}))
    for folder in (
        RunPaths(seen[0].parents[1]).train("baseline").model,
        RunPaths(seen[0].parents[1]).pruned_model("7"),
    ):
        context = context_of()
        plan = model_plan(folder) if folder.name == "7" else None
        model = load_model(folder)
        shaken(model.unet, seed=3)
        save_model(model, folder, plan)
        start(context)
    assert len(set(seen)) == 5


def test_quality_is_measured_on_the_way_and_can_choose(
    context_of: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []

    def sample(source: ImageGenerator, num: int, seed: int) -> torch.Tensor:
        seeds.append(seed)
        return sample_from(source, num, seed)

    monkeypatch.setattr(model_distillation, "sample_from", sample)
    context = context_of(quality=QUALITY, select="distance")
    stage.run(context)
    validation = pd.read_csv(context.paths.distill_validation)
    assert validation[DISTANCE].notna().all()
    for row, how in files.read_json(context.paths.distill_result).items():
        lines = validation[validation["student"] == row].set_index("step")
        assert how["kept_step"] == lines[DISTANCE].idxmin()
    assert len(seeds) == 3 * len(ROWS)
    assert len(set(seeds)) == 1
    assert seeds[0] != context.params.seed  # of the evaluation's noise
    assert reference_cache(context.data).is_dir()


def test_what_is_missing_or_does_not_fit_is_told_in_a_line(context_of: Callable[..., Context]) -> None:
    def no_result(paths: RunPaths) -> None:
        paths.prune_result.unlink()

    def no_plan(paths: RunPaths) -> None:
        files.write_json(paths.prune_result, {})

    def no_model(paths: RunPaths) -> None:
        shutil.rmtree(paths.pruned_model("30"))

    def not_pruned(paths: RunPaths) -> None:
        save_model(load_model(paths.train("baseline").model), paths.pruned_model("7"))

    def no_teacher(paths: RunPaths) -> None:
        shutil.rmtree(paths.train("baseline").model)

    def other_teacher(paths: RunPaths) -> None:
        save_model(tiny_model("baseline", **LIGHT), paths.train("baseline").model)

    cases: list[tuple[Callable[[RunPaths], None], type[PelapError], str, dict[str, Any]]] = [
        (no_result, DataError, "prune/result.json: no such file", {}),
        (no_plan, DataError, "names no plan", {}),
        (no_model, ModelError, "models/30: no such model folder; run `pelap prune`", {}),
        (not_pruned, PlanError, "plan.json", {}),
        (no_teacher, ModelError, "no such model folder", {}),
        # Without one that starts from scratch, which would be told of it by the plan itself.
        (other_teacher, PlanError, "was made for the network", {"students": {"one": STUDENTS["distilled"]}}),
        (lambda paths: None, DataError, "num_reference", {"quality": QUALITY | {"num_reference": 65}}),
        (lambda paths: None, DataError, "batch_size", {"batch_size": 65}),
    ]
    for index, (damage, kind, words, overrides) in enumerate(cases):
        context = context_of(f"run{index}", **overrides)
        damage(context.paths)
        with pytest.raises(kind, match=words) as caught:
            stage.run(context)
        assert "\n" not in str(caught.value)
        assert not context.paths.distill.exists()


def test_a_term_that_no_student_has_gets_no_panel() -> None:
    history = pd.DataFrame({"student": ["a", "a"], "step": [1, 2], "task": [2.0, 1.0], "output": [0.5, 0.4]})
    for table in (history, history.assign(feature=float("nan"))):
        titles = [axis.get_title(loc="left") for axis in distillation_curves(table, ["a"]).axes]
        assert [title.split(":")[0] for title in titles] == ["Task", "Output"]
    assert len(distillation_curves(history[:0], ["a"]).axes) == 1
