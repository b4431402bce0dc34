"""distill, for a diffusers pipeline: bring the pruned denoiser back with the dense one as teacher."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import nn

from pelap.config import DistillParams, LossWeights, Params
from pelap.core import files
from pelap.core.errors import ConfigError, ModelError
from pelap.core.keys import code_of, key
from pelap.core.paths import packed_dataset
from pelap.core.resume import ResumeState
from pelap.data.dataset import ImageDataset, load_dataset
from pelap.distillation.distill import Distilled, distill
from pelap.distillation.pipeline_batches import PipelineBatches, text_conditions
from pelap.pipelines import LatentPipeline
from pelap.pipelines.agreement import OF_SCHEDULER, differences_in_training, mean_the_same
from pelap.pipelines.opening import demand_pictures_of
from pelap.pipelines.pipeline_io import load_pipeline, pipeline_plan, save_pipeline
from pelap.surgery.plan import Plan, fingerprint

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def distill_pipeline(
    params: Params, pruned: Path, teacher: Path, data: Path, out: Path, device: torch.device
) -> None:
    """Fine-tune a pruned pipeline's denoiser into a new folder, with its losses beside it.

    ``<out>.history.csv`` holds those of training, ``<out>.validation.csv`` those of test pictures.
    Interrupted, it goes on from the state beside `out` when it is called with the same inputs again.

    Args:
        params: `dataset`, `seed` and the section `distill` are read. The weights of the losses are those of
            the first of its `students` that starts pruned; its `quality` is not looked at.
        pruned: Folder of the pruned pipeline.
        teacher: Folder of the dense one that it was made from.
        data: Folder of the packed data sets. The caption of a picture is the name of its class.
        out: New folder.
        device: Where to compute.

    Raises:
        ConfigError: `out` holds something, no student starts pruned, or the step to keep would be chosen by
            Frechet distance, which is not measured here.
        ModelError: A folder is no pipeline that can be used, `pruned` is not pruned, `teacher` is, or is
            another network, or the data do not suit them.
        DataError: The data set is not there or smaller than a batch.
        TrainingError: The loss is not finite.
    """
    weights = _weights(params.distill)
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"--out {out}: is not empty; name a new folder, so that nothing is mixed or lost")
    with files.exclusive(out):
        plan = _demand_plan(pruned, teacher)
        dense = load_pipeline(teacher, device)
        dataset = load_dataset(packed_dataset(data, params.dataset))
        batches = PipelineBatches(dense, dataset, params.distill, params.seed)
        demand_pictures_of(batches.pipeline, teacher, dataset)
        part, taught_by = batches.pipeline.part, batches.pipeline.denoiser
        pipe = load_pipeline(pruned, device)
        student = _demand_origin(plan, pruned, pipe.components.get(part), teacher, taught_by)
        _agree(pruned, pipe, teacher, dense, batches)
        state = _state(params, dense, batches, student, plan, dataset, out)
        trained = distill(student, taught_by, batches, _plain(params.distill), weights, device, state.folder)
        setattr(pipe, part, trained.network)
        history, validation = trained.progress.history, trained.progress.validation
        files.write_csv(out.with_name(f"{out.name}.history.csv"), pd.DataFrame(history))
        files.write_csv(out.with_name(f"{out.name}.validation.csv"), pd.DataFrame(validation))
        save_pipeline(pipe, out, plan)
        state.drop()
    _show(trained, params.distill.steps, out)


def _weights(params: DistillParams) -> LossWeights:
    """Of the student that a pruned pipeline is."""
    if params.select == "distance":
        raise ConfigError(
            "distill.select: distance is not measured for pipelines; use loss (on test pictures) or last"
        )
    starts_pruned = [student for student in params.students.values() if student.start == "pruned"]
    if not starts_pruned:
        raise ConfigError(
            "distill.students: none has start: pruned, which is what the denoiser of a pruned pipeline does; "
            "add one"
        )
    others = [name for name, student in params.students.items() if student is not starts_pruned[0]]
    if others:
        print(f"not trained for a pipeline, which is one student: {', '.join(others)}")
    return starts_pruned[0]


def _plain(params: DistillParams) -> DistillParams:
    """Nothing is recorded: a stranger's network may do what a graph of kernels cannot hold."""
    return params.model_copy(update={"execution": "eager"}) if params.execution == "auto" else params


def _show(trained: Distilled, steps: int, out: Path) -> None:
    rows = {row["step"]: row for row in trained.progress.validation}
    before, after = rows[0], rows[trained.kept_step]
    term, what = ("output", "difference to the teacher") if "output" in before else ("task", "loss")
    print(
        f"{what} on test pictures {before[term]:.4g} -> {after[term]:.4g} in {trained.kept_step} of {steps} "
        f"steps; pipeline in {out}"
    )


def _demand_plan(pruned: Path, teacher: Path) -> Plan:
    """The plan of the pruned pipeline."""
    plan = pipeline_plan(pruned)
    if plan is None:
        raise ModelError(
            f"{pruned}: is not pruned, or lost its plan.json; give a folder that `pelap prune` wrote"
        )
    if pipeline_plan(teacher) is not None:
        raise ModelError(f"{teacher}: is pruned itself; give the dense pipeline as --teacher")
    return plan


def _demand_origin(
    plan: Plan, pruned: Path, student: nn.Module | None, teacher: Path, dense: nn.Module
) -> nn.Module:
    """The student; refuses a teacher that is another network. A plan may not say what it was made for."""
    if not isinstance(student, type(dense)) or plan.network not in ("", fingerprint(dense)):
        raise ModelError(
            f"{teacher}: its {type(dense).__name__} is not the network that {pruned} was pruned from; give "
            "that one's pipeline as --teacher"
        )
    return student


def _agree(
    pruned: Path,
    pipe: "DiffusionPipeline",
    teacher: Path,
    dense: "DiffusionPipeline",
    batches: PipelineBatches,
) -> None:
    """Have a student's pipeline use it for what it is taught here; refuse one that can't.

    What is predicted, and at which noise levels, is up to the teacher's scheduler: if the student's says
    otherwise, it is replaced.
    """
    differing = differences_in_training(pipe, dense)
    others = [part for part in differing if part not in OF_SCHEDULER]
    if not others and not _told_the_same(pipe, batches):
        others = ["meaning of captions (tokenizer, text encoder or settings)"]
    if others:
        raise ModelError(
            f"{pruned}: has another {', '.join(others)} than {teacher}; give the pipeline that it was pruned "
            "from as --teacher"
        )
    if differing:
        pipe.register_modules(scheduler=copy.deepcopy(dense.scheduler))
        print(
            f"warning: {pruned} has another {', '.join(differing)} than {teacher}: it learns, and will be "
            "saved, with the teacher's scheduler"
        )


def _told_the_same(pipe: "DiffusionPipeline", batches: PipelineBatches) -> bool:
    captions = batches.pipeline.prompts
    if not captions:
        return True
    ours = text_conditions(LatentPipeline(pipe, batches.pipeline.num_steps, captions), len(captions))
    return mean_the_same(batches.conditions, ours)


def _state(
    params: Params,
    pipe: "DiffusionPipeline",
    batches: PipelineBatches,
    student: nn.Module,
    plan: Plan,
    data: ImageDataset,
    out: Path,
) -> ResumeState:
    """Of a training on what `pipe`, the teacher, makes of the data."""
    made_of = key(
        student=student,
        teacher={name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)},
        scheduler=pipe.scheduler,
        conditions=batches.conditions,
        plan=plan,
        training=params.distill.model_dump(exclude={"execution"}),
        seed=params.seed,
        data=data.key,
        code=code_of(__name__),
    )
    return ResumeState(out.parent, f".{out.name}.resume", made_of)
