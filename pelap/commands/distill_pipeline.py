"""distill, for a diffusers pipeline: bring the pruned denoiser back with the dense one as teacher."""

from pathlib import Path

import pandas as pd
import torch

from pelap.config import DistillParams, LossWeights, Params
from pelap.core import files
from pelap.core.errors import ConfigError, ModelError
from pelap.core.paths import packed_dataset
from pelap.data.dataset import load_dataset
from pelap.distillation import pipeline_distillation as distillation
from pelap.distillation.pipeline_distillation import DistilledPipeline
from pelap.pipelines.pipeline_io import load_pipeline, pipeline_plan, save_pipeline
from pelap.surgery.plan import Plan


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
    files.demand_new(out)
    with files.exclusive(out):
        plan = _demand_plan(pruned, teacher)
        dense = load_pipeline(teacher, device)
        dataset = load_dataset(packed_dataset(data, params.dataset))
        pipe, resume_at = load_pipeline(pruned, device), out.with_name(f".{out.name}.resume")
        trained = distillation.distill_pipeline(
            pipe, dense, dataset, params.distill, weights, params.seed, resume_at
        )
        for name in ("history", "validation"):
            rows = pd.DataFrame(getattr(trained.progress, name))
            files.write_csv(out.with_name(f"{out.name}.{name}.csv"), rows)
        save_pipeline(trained.pipe, out, plan)
        if trained.state is not None:
            trained.state.drop()
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


def _show(trained: DistilledPipeline, steps: int, out: Path) -> None:
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
