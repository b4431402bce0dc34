"""Distillation of a run's students: networks of one teacher, a model of this project, on the same batches."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from pelap.config import DistillParams, QualityParams, StudentParams
from pelap.core.errors import DataError
from pelap.core.keys import ResumeState, code_of
from pelap.core.rng import generator
from pelap.data.dataset import ImageDataset
from pelap.data.modality import modality_of
from pelap.diffusion.sampler import ModelGenerator, in_turn, said_if_alike, sample_from
from pelap.distillation.batches import KEPT_BYTES, ModelBatches, SharedBatches
from pelap.distillation.distill import Distilled, Quality, distill, training_key
from pelap.distillation.objective import TERMS
from pelap.evaluation.features import make_extractor
from pelap.evaluation.reference import Reference
from pelap.models.latent_diffusion import LatentDiffusion
from pelap.surgery.apply import apply_plan
from pelap.surgery.plan import Plan

EXTRACTOR = "effnet-lite0"
# Always there; `output` and `feature` are empty for a student without a teacher, `feature` for one that gives
# it no weight too. The shares of a term that a student gives no weight are empty.
COLUMNS = {
    "history": ["student", "step", "loss", *TERMS, "lr", "images_per_s"],
    "validation": [
        *("student", "step", *TERMS),
        *(f"{term}_{kind}_share" for kind in ("loss", "gradient") for term in TERMS),
    ],
}


class ModelDistillation:
    """What the students of a teacher have in common: batches and measure of quality.

    Args:
        teacher: The dense model; its weights stay as they are.
        dataset: What it was trained on.
        params: The section `distill`.
        seed: Names every random number.
        device: Where to compute.
        num_students: How many will be trained.
        reference_cache: Folder for statistics of the pictures that quality is measured against.

    Raises:
        DataError: There are fewer pictures than quality is measured against.
    """

    def __init__(
        self,
        teacher: LatentDiffusion,
        dataset: ImageDataset,
        params: DistillParams,
        seed: int,
        device: torch.device,
        num_students: int,
        reference_cache: Path,
    ) -> None:
        self.teacher = teacher
        self.dataset = dataset
        self.params = params
        self.seed = seed
        self.device = device
        self.quality = None
        if params.quality is not None:
            self.quality = _quality(params.quality, teacher, dataset, seed, device, reference_cache)
        batches = ModelBatches(teacher, dataset, params, seed, device, num_students)
        limit = KEPT_BYTES if num_students > 1 else 0  # a single student comes by each batch once
        self.batches = SharedBatches(batches, limit)

    def train(
        self, row: str, student: nn.Module, how: StudentParams, plan: Plan | None, resume: Path
    ) -> tuple[Distilled, ResumeState]:
        """Train a student in place.

        Args:
            row: Its name.
            student: The network before its first step.
            how: What it learns from.
            plan: How it was pruned; None: it was not.
            resume: Folder of states, one of which an interrupted training goes on from.

        Returns:
            What it became, and the state to drop once that is saved.

        Raises:
            TrainingError: The loss is not finite, or there is none.
            DataError: Fewer pictures than one batch.
        """
        given = (student, plan, self.dataset, self.params, how, self.seed)
        taught_by: dict[str, Any] = {"teacher": self.teacher, "diffusion": self.teacher.info.diffusion}
        made_of = training_key(*given, **taught_by, code=code_of(__name__))
        state = ResumeState(resume, f"distill-{row}", made_of)
        kept = state.folder, self.quality, f"distill {row}"
        dense, params = self.teacher.unet, self.params
        return distill(student, dense, self.batches, params, how, self.device, *kept), state


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


def _quality(
    params: QualityParams,
    teacher: LatentDiffusion,
    dataset: ImageDataset,
    seed: int,
    device: torch.device,
    cache: Path,
) -> Quality:
    """The Frechet distance of what a UNet makes with the teacher's other parts.

    Its seed is another than that of the evaluation: a step that was chosen by the noise it is tested on would
    look better than it is.
    """
    real = dataset.train.images
    if params.num_reference > len(real):
        raise DataError(
            f"distill.quality.num_reference: {params.num_reference} exceeds the {len(real)} train pictures "
            f"of {dataset.name}; lower it"
        )
    reference = Reference(real[: params.num_reference], [make_extractor(EXTRACTOR, device)], cache=cache)
    modality = modality_of(dataset.sound)
    of_quality = generator(seed, "distill-quality").initial_seed()

    def measure(network: nn.Module) -> Mapping[str, float]:
        model = teacher.with_unet(network, "student", 0.0)
        source = ModelGenerator(model, params.sampler, record=False)  # for so few batches it does not pay
        pictures = sample_from(source, params.num_images, of_quality)
        said_if_alike("distill.quality", pictures)
        asked = in_turn(params.num_images, [source])
        return reference.measure(modality.rendered(pictures), only_frechet=True, strata=asked).metrics

    return measure


def progress_table(trained: Mapping[str, Distilled], name: str) -> pd.DataFrame:
    """The ``history`` or the ``validation`` of all students, below each other under their names."""
    rows = [{"student": row} | line for row in trained for line in getattr(trained[row].progress, name)]
    table, first = pd.DataFrame(rows), COLUMNS[name]
    return table.reindex(columns=[*first, *(column for column in table if column not in first)])
