"""Distillation of a pruned diffusers pipeline: its denoiser learns from the dense one, in memory."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from pelap.config import DistillParams, LossWeights
from pelap.core.errors import ModelError
from pelap.core.keys import code_of
from pelap.core.resume import ResumeState
from pelap.data.dataset import ImageDataset
from pelap.distillation.distill import distill, training_key
from pelap.distillation.pipeline_batches import PipelineBatches, text_conditions
from pelap.pipelines import LatentPipeline
from pelap.pipelines.agreement import OF_SCHEDULER, demand_pictures_of, differences_in_training, mean_the_same
from pelap.surgery.apply import plan_kept
from pelap.surgery.plan import fingerprint
from pelap.training.trainer import Progress

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class DistilledPipeline(NamedTuple):
    """A pipeline that learnt, and how."""

    pipe: "DiffusionPipeline"
    progress: Progress  # logged losses, and held-out ones from step 0 on
    kept_step: int  # after how many steps the denoiser was as it is kept
    state: ResumeState | None  # to be dropped once the pipeline is saved


def distill_pipeline(
    student: "DiffusionPipeline",
    teacher: "DiffusionPipeline",
    dataset: ImageDataset,
    params: DistillParams,
    weights: LossWeights,
    seed: int = 0,
    resume_at: Path | None = None,
) -> DistilledPipeline:
    """Fine-tune a pruned pipeline's denoiser with the dense one as teacher, on the device where they are.

    Args:
        student: Pruned; its denoiser is trained in place. Where its scheduler says otherwise than the
            teacher's what is predicted or at which noise levels, it gets a copy of the teacher's, which is
            said.
        teacher: The dense pipeline that it was made from; its weights stay as they are.
        dataset: Pictures of the pipelines' size. The caption of a picture is the name of its class.
        params: The section `distill`; its `students` and `quality` are not looked at.
        weights: Of the terms of the loss.
        seed: Names every random number.
        resume_at: Where to keep the state of a training that is interrupted, as folders whose names begin
            so; the same call goes on from there. None: nothing is kept.

    Returns:
        The student, with the denoiser of the step to keep.

    Raises:
        ModelError: A pipeline cannot be used, the teacher is another network than the student was pruned
            from, they were trained for different things, or the data do not suit them.
        DataError: There are fewer pictures than a batch.
        TrainingError: The loss is not finite.
    """
    batches = PipelineBatches(teacher, dataset, params, seed)
    demand_pictures_of(batches.pipeline, _named(teacher), dataset)
    part, dense = batches.pipeline.part, batches.pipeline.denoiser
    network = _demand_origin(student, teacher, student.components.get(part), dense)
    _agree(student, teacher, batches)
    state = None
    if resume_at is not None:
        networks = {name: part for name, part in teacher.components.items() if isinstance(part, nn.Module)}
        taught_by: dict[str, Any] = {"teacher": networks, "scheduler": teacher.scheduler}
        taught_by["conditions"] = batches.conditions
        given = network, plan_kept(network), dataset, params, weights, seed
        made_of = training_key(*given, **taught_by, code=code_of(__name__))
        state = ResumeState(resume_at.parent, resume_at.name, made_of)
    checkpoint = None if state is None else state.folder
    if params.execution == "auto":  # a stranger's network may do what a graph of kernels cannot hold
        params = params.model_copy(update={"execution": "eager"})
    trained = distill(network, dense, batches, params, weights, batches.device, checkpoint)
    setattr(student, part, trained.network)
    return DistilledPipeline(student, trained.progress, trained.kept_step, state)


def _named(pipe: "DiffusionPipeline") -> str:
    """The folder that a pipeline came from, for messages; without one its class."""
    return pipe.config.get("_name_or_path") or type(pipe).__name__


def _demand_origin(
    student: "DiffusionPipeline", teacher: "DiffusionPipeline", network: nn.Module | None, dense: nn.Module
) -> nn.Module:
    """The student's denoiser; a plan may not say which network it was made for."""
    made_for = "" if network is None else getattr(plan_kept(network), "network", "")
    if not isinstance(network, type(dense)) or made_for not in ("", fingerprint(dense)):
        raise ModelError(
            f"{_named(teacher)}: its {type(dense).__name__} is not the network that {_named(student)} was "
            "pruned from; give that one's pipeline as --teacher"
        )
    return network


def _agree(student: "DiffusionPipeline", teacher: "DiffusionPipeline", batches: PipelineBatches) -> None:
    """Have a student's pipeline use it for what it is taught here; refuse one that can't."""
    differing = differences_in_training(student, teacher)
    others = [part for part in differing if part not in OF_SCHEDULER]
    captions = batches.pipeline.prompts
    if not others and captions:
        told = LatentPipeline(student, batches.pipeline.num_steps, captions)
        if not mean_the_same(batches.conditions, text_conditions(told, len(captions))):
            others = ["meaning of captions (tokenizer, text encoder or settings)"]
    if others:
        raise ModelError(
            f"{_named(student)}: has another {', '.join(others)} than {_named(teacher)}; give the pipeline "
            "that it was pruned from as --teacher"
        )
    if differing:
        student.register_modules(scheduler=copy.deepcopy(teacher.scheduler))
        print(
            f"warning: {_named(student)} has another {', '.join(differing)} than {_named(teacher)}: it "
            "learns, and will be saved, with the teacher's scheduler"
        )
