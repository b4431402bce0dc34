"""distill, for a diffusers pipeline: bring the pruned denoiser back with the dense one as teacher."""

from pathlib import Path

import pandas as pd
import torch
from torch import nn

from pelap import io
from pelap.data.dataset import ImageDataset, load_dataset
from pelap.errors import ConfigError, ModelError
from pelap.loading import load_pipeline, pipeline_plan, save_pipeline
from pelap.params import Params
from pelap.paths import packed_dataset
from pelap.pruning.plan import Plan, fingerprint
from pelap.stages.piped import demand_pictures_of
from pelap.training.checkpoint import drop_checkpoint, weights_digest
from pelap.training.distill import distill
from pelap.training.pipeline_batches import PipelineBatches


def distill_pipeline(
    params: Params, pruned: Path, teacher: Path, data: Path, out: Path, device: torch.device
) -> None:
    """Fine-tune a pruned pipeline's denoiser into a new folder, with the losses in ``<out>.history.csv``.

    Interrupted, it goes on from the state beside `out` when it is called with the same inputs again.

    Args:
        params: `dataset`, `seed` and the section `distill` are read.
        pruned: Folder of the pruned pipeline.
        teacher: Folder of the dense one that it was made from.
        data: Folder of the packed data sets. The caption of a picture is the name of its class.
        out: New folder.
        device: Where to compute.

    Raises:
        ConfigError: `out` holds something.
        ModelError: A folder is no pipeline that can be used, `pruned` is not pruned, `teacher` is, or is
            another network, or the data do not suit them.
        DataError: The data set is not there or smaller than a batch.
        TrainingError: The loss is not finite.
    """
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"--out {out}: is not empty; name a new folder, so that nothing is mixed or lost")
    with io.exclusive(out):
        plan = _demand_plan(pruned, teacher)
        dense = load_pipeline(teacher, device)
        dataset = load_dataset(packed_dataset(data, params.dataset))
        batches = PipelineBatches(dense, dataset, params.distill, params.seed)
        demand_pictures_of(batches.pipeline, teacher, dataset)
        part, taught_by = batches.pipeline.part, batches.pipeline.denoiser
        pipe = load_pipeline(pruned, device)
        student = _demand_origin(plan, pruned, pipe.components.get(part), teacher, taught_by)
        checkpoint = _checkpoint(params, student, taught_by, plan, dataset, out)
        network, progress = distill(student, taught_by, batches, params.distill, device, checkpoint)
        setattr(pipe, part, network)
        history = pd.DataFrame(progress.history)
        io.write_csv(out.with_name(f"{out.name}.history.csv"), history)
        save_pipeline(pipe, out, plan)
        drop_checkpoint(checkpoint)
    first, last = history["output"].iloc[0], history["output"].iloc[-1]
    print(f"difference to the teacher {first:.4g} -> {last:.4g} in {progress.step} steps; pipeline in {out}")


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
    if type(student) is not type(dense) or plan.network not in ("", fingerprint(dense)):
        raise ModelError(
            f"{teacher}: its {type(dense).__name__} is not the network that {pruned} was pruned from; give "
            "that one's pipeline as --teacher"
        )
    return student


def _checkpoint(
    params: Params, student: nn.Module, dense: nn.Module, plan: Plan, dataset: ImageDataset, out: Path
) -> Path:
    """Where the resume state is: other weights, data or numbers have another one."""
    configuration = [
        [weights_digest(network) for network in (student, dense)],
        plan.to_json(),
        params.distill.model_dump(),
        params.seed,
        [dataset.checksum, *dataset.class_names],
    ]
    return out.with_name(f".{out.name}.resume-{io.digest(configuration)}")
