"""distill: bring pruned UNets back with the dense one as teacher, and train what they are compared with."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import nn

from pelap.config import StudentParams
from pelap.core import files
from pelap.core.errors import DataError, ModelError
from pelap.core.keys import code_of, key
from pelap.core.paths import reference_cache
from pelap.core.resume import ResumeState
from pelap.core.rng import generator
from pelap.data.dataset import ImageDataset
from pelap.data.modality import modality_of
from pelap.diffusion.sampler import ModelGenerator, in_turn, said_if_alike, sample_from
from pelap.distillation.distill import Distilled, Quality, distill
from pelap.distillation.model_batches import ModelBatches
from pelap.distillation.shared_batches import KEPT_BYTES, SharedBatches
from pelap.evaluation.features import make_extractor
from pelap.evaluation.reference import Reference
from pelap.models.latent_diffusion import LatentDiffusion
from pelap.models.model_io import trained_model
from pelap.pipelines.model_io import load_model, model_plan, save_model
from pelap.stages.shared import Context
from pelap.surgery.apply import apply_plan
from pelap.surgery.plan import Plan, demand_network
from pelap.training.trainer import Progress

EXTRACTOR = "effnet-lite0"
HISTORY = ("student", "step", "loss", "task", "output", "feature", "lr", "images_per_s")
VALIDATION = ("student", "step", "task", "output", "feature")
"""Columns that are always there; `output` and `feature` are empty for a student without a teacher,
`feature` for one that gives it no weight too."""


def run(context: Context) -> None:
    """Train every student of the parameters for every plan, in turn and on the same batches.

    Interrupted, it goes on where it was: students that were done come back from their resume state. Results
    of an earlier run stay until all are done.

    Raises:
        DataError: There is no plan, or there are too few pictures.
        ModelError: A model is missing, or was trained on other data.
        PlanError: A model is not pruned, or its plan is for another network than the teacher.
        TrainingError: A loss is not finite.
    """
    paths = context.paths
    with files.exclusive(paths.distill):
        rows = context.params.distill.rows(_plans(paths.prune_result))
        distillation = _Distillation(context, num_students=len(rows))
        with files.atomic_dir(paths.distill) as partial:
            reports = {row: distillation.train(row, how, plan, partial) for row, (how, plan) in rows.items()}
            history = {row: report.progress.history for row, report in reports.items()}
            validation = {row: report.progress.validation for row, report in reports.items()}
            files.write_csv(partial / paths.distill_history.name, _table(history, HISTORY))
            files.write_csv(partial / paths.distill_validation.name, _table(validation, VALIDATION))
            result = {row: report.result for row, report in reports.items()}
            files.write_json(partial / paths.distill_result.name, result)
        for report in reports.values():
            report.state.drop()


def _plans(prune_result: Path) -> list[str]:
    """Names of the plans that `prune` made."""
    plans = list(files.read_mapping(prune_result))
    if not plans:
        raise DataError(f"{prune_result}: names no plan; run `pelap prune` again")
    return plans


class _Report(NamedTuple):
    """What is written about a student beside its model."""

    progress: Progress
    result: dict[str, Any]
    state: ResumeState


class _Distillation:
    """What the students of a run have in common: teacher, batches, measure of quality."""

    def __init__(self, context: Context, num_students: int) -> None:
        self.context = context
        self.params = context.params.distill
        self.seed = context.params.seed
        self.dataset = context.dataset()
        variant = files.read_mapping(context.paths.score_protocol, ["variant"])["variant"]
        self.teacher = trained_model(
            context.paths.train(variant).model, self.dataset, context.device, load_model
        )
        self.quality = _quality(context, self.teacher, self.dataset)
        batches = ModelBatches(
            self.teacher, self.dataset, self.params, self.seed, context.device, num_students
        )
        limit = KEPT_BYTES if num_students > 1 else 0  # a single student comes by each batch once
        self.batches = SharedBatches(batches, self.teacher.unet, self.params.precision, limit)

    def train(self, row: str, how: StudentParams, plan_name: str | None, folder: Path) -> _Report:
        """Train a student and save it below `folder`, which becomes that of the stage."""
        student, plan = self._student(how, plan_name)
        state = self._state(row, student, plan, how)
        trained = distill(
            student,
            self.teacher.unet,
            self.batches.seen_by(how),
            self.params,
            how,
            self.context.device,
            state.folder,
            self.quality,
            f"distill {row}",
        )
        paths = self.context.paths
        model = self.teacher.with_unet(trained.network, row, self.params.ema_decay)
        save_model(model, folder / paths.distilled_model(row).relative_to(paths.distill), plan)
        _show(row, trained, self.params.steps)
        return _Report(trained.progress, self._result(row, how, plan_name, trained.kept_step), state)

    def _student(self, how: StudentParams, plan_name: str | None) -> tuple[nn.Module, Plan | None]:
        """A network before its first step, with its plan; a dense one has none."""
        if plan_name is None:
            return copy.deepcopy(self.teacher.unet), None
        folder = self.context.paths.pruned_model(plan_name)
        if not folder.is_dir():
            raise ModelError(f"{folder}: no such model folder; run `pelap prune` again, it makes one a plan")
        plan = model_plan(folder)
        demand_network(plan, self.teacher.unet)
        if how.start == "scratch":
            return reinitialised(self.teacher.unet, plan, self.seed), plan
        return trained_model(folder, self.dataset, self.context.device, load_model).unet, plan

    def _state(self, row: str, student: nn.Module, plan: Plan | None, how: StudentParams) -> ResumeState:
        made_of = key(
            student=student,
            teacher=self.teacher,
            plan=plan,
            diffusion=self.teacher.info.diffusion,
            training=self.params.model_dump(exclude={"students", "execution"}),
            losses=how.model_dump(exclude={"skip"}),
            seed=self.seed,
            data=self.dataset.key,
            code=code_of(__name__),
        )
        return ResumeState(self.context.paths.resume, f"distill-{row}", made_of)

    def _result(self, row: str, how: StudentParams, plan_name: str | None, kept_step: int) -> dict[str, Any]:
        weights = how.model_dump(exclude={"skip"})
        return {
            "student": row.removesuffix(f"-{plan_name}"),
            "start": weights.pop("start"),
            "plan": plan_name,
            "steps": self.params.steps,
            "kept_step": kept_step,
            "select": self.params.select,
            **weights,
        }


def reinitialised(dense: nn.Module, plan: Plan, seed: int) -> nn.Module:
    """What a plan makes of a network like `dense`, all with fresh weights, the same for the same seed.

    The dense network is built anew and then cut: what a replacement keeps of its operator is fresh too.
    """
    config: Mapping[str, Any] = dense.config  # type: ignore[assignment]
    # Without diffusers' notes: a subclass may be down as built by defaults that it was not built by.
    given = {name: value for name, value in config.items() if not name.startswith("_")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, "distill-scratch").initial_seed())
        return apply_plan(type(dense)(**given), plan)


def _quality(context: Context, teacher: LatentDiffusion, dataset: ImageDataset) -> Quality | None:
    """The Frechet distance of what a UNet makes with the teacher's other parts.

    Its seed is another than that of the evaluation: a step that was chosen by the noise it is tested on would
    look better than it is.
    """
    params = context.params.distill.quality
    if params is None:
        return None
    real = dataset.train.images
    if params.num_reference > len(real):
        raise DataError(
            f"distill.quality.num_reference: {params.num_reference} exceeds the {len(real)} train pictures "
            f"of {dataset.name}; lower it"
        )
    extractor = make_extractor(EXTRACTOR, context.device)
    reference = Reference(real[: params.num_reference], [extractor], cache=reference_cache(context.data))
    modality = modality_of(dataset.sound)
    seed = generator(context.params.seed, "distill-quality").initial_seed()

    def measure(network: nn.Module) -> Mapping[str, float]:
        model = teacher.with_unet(network, "student", 0.0)
        source = ModelGenerator(model, params.sampler, record=False)  # for so few batches it does not pay
        pictures = sample_from(source, params.num_images, seed)
        said_if_alike("distill.quality", pictures)
        asked = in_turn(params.num_images, [source])
        return reference.measure(modality.rendered(pictures), only_frechet=True, strata=asked).metrics

    return measure


def _table(rows: Mapping[str, Sequence[Mapping[str, float]]], first: Sequence[str]) -> pd.DataFrame:
    """All rows under the names of their students."""
    table = pd.DataFrame([{"student": student} | dict(row) for student in rows for row in rows[student]])
    return table.reindex(columns=[*first, *(column for column in table if column not in first)])


def _show(row: str, trained: Distilled, steps: int) -> None:
    task = {line["step"]: line["task"] for line in trained.progress.validation}
    print(
        f"{row}: held-out task loss {task[0]:.4g} -> {task[trained.kept_step]:.4g}; "
        f"step {trained.kept_step} of {steps} is kept"
    )
