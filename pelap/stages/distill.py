"""distill: bring pruned UNets back with the dense one as teacher, and train what they are compared with."""

import copy
from typing import Any

from torch import nn

from pelap.config import DistillParams, StudentParams
from pelap.core import files
from pelap.core.digests import demand_unchanged, result_dir
from pelap.core.errors import DataError, ModelError
from pelap.core.paths import reference_cache, scored_variant
from pelap.core.replacing import is_folder
from pelap.distillation.model_distillation import ModelDistillation, progress_table, reinitialised
from pelap.models.model_io import trained_model
from pelap.pipelines.pipeline_io import load_model, model_plan, save_model
from pelap.stages.shared import Context
from pelap.surgery.plan import Plan, demand_network


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
    paths, params, seed = context.paths, context.params.distill, context.params.seed
    with files.exclusive(paths.distill):
        plans = list(files.read_mappings(paths.prune_result))
        if not plans:
            raise DataError(f"{paths.prune_result}: names no plan; run `pelap prune` again")
        for made in (paths.score, paths.prune):
            demand_unchanged(made)
        rows = params.rows(plans)
        dataset, cache = context.dataset(), reference_cache(context.data)
        teacher = trained_model(paths.train(scored_variant(paths)).model, dataset, context.device, load_model)
        shared = ModelDistillation(teacher, dataset, params, seed, context.device, len(rows), cache)
        trained, states = {}, []
        with result_dir(paths.distill) as partial:
            for row, (how, plan_name) in rows.items():
                student, plan = _student(context, shared, how, plan_name)
                trained[row], state = shared.train(row, student, how, plan, paths.resume)
                states.append(state)
                model = teacher.with_unet(trained[row].network, row, params.ema_decay)
                save_model(model, partial / paths.distilled_model(row).relative_to(paths.distill), plan)
                task = {line["step"]: line["task"] for line in trained[row].progress.validation}
                kept = trained[row].kept_step
                losses = f"{task[0]:.4g} -> {task[kept]:.4g}"
                print(f"{row}: held-out task loss {losses}; step {kept} of {params.steps} is kept")
            files.write_csv(partial / paths.distill_history.name, progress_table(trained, "history"))
            files.write_csv(partial / paths.distill_validation.name, progress_table(trained, "validation"))
            result = {row: _result(row, *rows[row], params, trained[row].kept_step) for row in rows}
            files.write_json(partial / paths.distill_result.name, result)
        for state in states:
            state.drop()


def _student(
    context: Context, shared: ModelDistillation, how: StudentParams, plan_name: str | None
) -> tuple[nn.Module, Plan | None]:
    """A network before its first step, with its plan; a dense one has none."""
    dense = shared.teacher.unet
    if plan_name is None:
        return copy.deepcopy(dense), None
    folder = context.paths.pruned_model(plan_name)
    if not is_folder(folder):
        raise ModelError(f"{folder}: no such model folder; run `pelap prune` again, it makes one a plan")
    plan = model_plan(folder)
    demand_network(plan, dense)
    if how.start == "scratch":
        return reinitialised(dense, plan, shared.seed), plan
    return trained_model(folder, shared.dataset, shared.device, load_model).unet, plan


def _result(
    row: str, how: StudentParams, plan_name: str | None, params: DistillParams, kept_step: int
) -> dict[str, Any]:
    about = {"student": row.removesuffix(f"-{plan_name}"), "start": how.start, "plan": plan_name}
    steps = {"steps": params.steps, "kept_step": kept_step, "select": params.select}
    return about | steps | how.model_dump(exclude={"skip", "start"})
