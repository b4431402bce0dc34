"""The real pictures or sounds that what models make is compared with, and the instruments for it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pelap.config import EvaluateParams
from pelap.core.errors import DataError
from pelap.data.dataset import ImageDataset
from pelap.data.modality import Modality, modality_of
from pelap.evaluation.classifier import Classifier, trained_classifier
from pelap.evaluation.features import CLASSIFIER, Extractor, make_extractor, metric_name
from pelap.evaluation.image_quality import load_lpips, lpips
from pelap.evaluation.reference import REAL_ROW, Reference

CLASSIFIER_SEED = 0
"""The same for every seed of a run: all that learn from one data set are measured by one network."""


@dataclass(frozen=True)
class EvaluationReference:
    """Real train pictures, or sounds by their spectrograms."""

    reference: Reference
    """What samples are compared with."""
    floor: torch.Tensor  # (num_images, C, H, W) uint8
    """Others, for the row `REAL_ROW`: what no model can be expected to go below."""
    floor_labels: torch.Tensor  # (num_images,) int64
    lpips: nn.Module | None
    """Where its weights are given."""
    modality: Modality
    """How samples reach a viewer or listener, which is how they are measured."""
    classifier: Classifier | None
    """Where parameters have one."""

    def describe(self, dataset: ImageDataset, params: EvaluateParams) -> dict[str, Any]:
        """What the figures are of and measured with, as a JSON object."""
        sound = dataset.sound
        classifier = None
        if self.classifier is not None and params.classifier is not None:
            classifier = {
                "test_accuracy": self.classifier.test_accuracy,
                "num_test": self.classifier.num_test,
                "steps": params.classifier.steps,
                "width": params.classifier.width,
                "sha256": self.classifier.checksum,
            }
        keys = {"sample_rate", "num_fft", "hop_length", "range_db"}
        return {
            **self.reference.describe(params.num_images),
            "medium": self.modality.noun,
            "sound": None if sound is None else sound.model_dump(include=keys),
            "classifier": classifier,
            "lpips": self.lpips is not None,
        }

    def notes(self, dataset: ImageDataset, params: EvaluateParams) -> list[str]:
        """What has to be said beside the figures."""
        lines = self.reference.notes(params.num_images)
        if CLASSIFIER in params.extractors:
            lines.append(
                f"{metric_name('fd', CLASSIFIER)}: features of a small network that learnt from the train "
                f"{self.modality.noun}, the reference and the row {REAL_ROW} among them; neither FID nor "
                "FAD, compare it only among models of this data set"
            )
        if dataset.sound is not None:
            lines.append(
                "sounds: samples are measured as heard, as spectrograms of what Griffin-Lim makes of them; "
                f"the row {REAL_ROW} is not, its distances after Griffin-Lim end in _vocoded"
            )
        return lines


def real_pictures(
    dataset: ImageDataset, params: EvaluateParams, cache: Path, device: torch.device
) -> EvaluationReference:
    """The first `num_reference` train pictures are the reference, the `num_images` after them the floor.

    Args:
        dataset: Where they are from.
        params: The section `evaluate`.
        cache: Folder for what is computed of the reference, and for the classifier.
        device: Where features are computed.

    Raises:
        DataError: There are fewer pictures than that, or than a batch of the classifier.
        ConfigError: An extractor is unknown, or there is nothing for a classifier to tell apart.
        ModelError: Weights of an extractor, or those of LPIPS, cannot be used.
        TrainingError: The classifier cannot be trained.
    """
    images, wanted = dataset.train.images, params.num_reference + params.num_images
    if wanted > len(images):
        raise DataError(
            f"evaluate: num_reference + num_images is {wanted}, but there are {len(images)} train "
            "pictures to take the reference and the floor from; lower one of them"
        )
    network = None
    if params.lpips_weights is not None:
        network = load_lpips(Path(params.lpips_weights), device)
        lpips(images[:1], images[:1], network)  # pictures too small for it are told of before any is made
    classifier = None
    if params.classifier is not None:
        classifier = trained_classifier(dataset, params.classifier, CLASSIFIER_SEED, device, cache)
    known: dict[str, Extractor] = {} if classifier is None else {CLASSIFIER: classifier}
    extractors = [
        known[name] if name in known else make_extractor(name, device, params.inception_weights)
        for name in params.extractors
    ]
    reference = Reference(images[: params.num_reference], extractors, cache)
    floor = slice(params.num_reference, wanted)
    labels = dataset.train.labels[floor]
    return EvaluationReference(
        reference, images[floor], labels, network, modality_of(dataset.sound), classifier
    )
