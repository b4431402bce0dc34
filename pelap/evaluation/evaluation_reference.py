"""What models are compared with: real pictures or sounds of their data set, and the instruments for it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pelap.config import EvaluateParams
from pelap.core.errors import DataError
from pelap.core.paths import REAL_ROW
from pelap.data.dataset import ImageDataset
from pelap.data.modality import Modality, modality_of
from pelap.evaluation.classifier import Classifier, trained_classifier
from pelap.evaluation.features import CLASSIFIER, make_extractor, metric_name
from pelap.evaluation.image_quality import load_lpips, lpips
from pelap.evaluation.reference import Reference

CLASSIFIER_SEED = 0  # for every seed of a run: all that learn from one data set are measured by one network


@dataclass(frozen=True)
class EvaluationReference:
    """The real pictures or sounds that samples are compared with, and the instruments for it."""

    dataset: ImageDataset
    reference: Reference  # of train pictures
    floor: Tensor  # (num_images, C, H, W) uint8: other train pictures, for the row `REAL_ROW`
    floor_labels: Tensor  # (num_images,) int64
    lpips: nn.Module | None  # where its weights are given
    modality: Modality  # how samples reach a viewer or listener, which is how they are measured
    classifier: Classifier | None  # where parameters have one

    @classmethod
    def of(
        cls, dataset: ImageDataset, params: EvaluateParams, device: torch.device, cache: Path | None = None
    ) -> "EvaluationReference":
        """The first `num_reference` train pictures are the reference, the `num_images` after them the floor.

        Args:
            dataset: Where they are from.
            params: The section `evaluate`.
            device: Where features are computed.
            cache: Folder to keep what is computed of the reference, and the classifier.

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
        network = classifier = None
        if params.lpips_weights is not None:
            network = load_lpips(Path(params.lpips_weights), device)
            lpips(images[:1], images[:1], network)  # pictures too small for it are told of before any is made
        if params.classifier is not None:
            classifier = trained_classifier(dataset, params.classifier, CLASSIFIER_SEED, device, cache)
        extractors = [
            classifier
            if name == CLASSIFIER and classifier is not None
            else make_extractor(name, device, params.inception_weights)
            for name in params.extractors
        ]
        floor = slice(params.num_reference, wanted)
        return cls(
            dataset=dataset,
            reference=Reference(images[: params.num_reference], extractors, cache),
            floor=images[floor],
            floor_labels=dataset.train.labels[floor],
            lpips=network,
            modality=modality_of(dataset.sound),
            classifier=classifier,
        )

    def describe(self, params: EvaluateParams) -> dict[str, Any]:
        """What figures are of and measured with, as a JSON object."""
        dataset, classifier = self.dataset, None
        if self.classifier is not None and params.classifier is not None:
            classifier = {
                "test_accuracy": self.classifier.test_accuracy,
                "num_test": self.classifier.num_test,
                **params.classifier.model_dump(include={"steps", "width"}),
                "sha256": self.classifier.checksum,
            }
        analysis = {"sample_rate", "num_fft", "hop_length", "range_db"}
        return {
            "dataset": dataset.name,
            "dataset_checksum": dataset.checksum,
            "reference_split": "train",
            **self.reference.describe(params.num_images),
            "medium": self.modality.noun,
            "sound": None if dataset.sound is None else dataset.sound.model_dump(include=analysis),
            "classifier": classifier,
            "lpips": self.lpips is not None,
        }

    def notes(self, params: EvaluateParams) -> list[str]:
        """What has to be said beside figures."""
        lines = self.reference.notes(params.num_images)
        if CLASSIFIER in params.extractors:
            lines.append(
                f"{metric_name('fd', CLASSIFIER)}: features of a small network that learnt from the train "
                f"{self.modality.noun}, the reference and the row {REAL_ROW} among them; neither FID nor "
                "FAD, compare it only among models of this data set"
            )
        if self.dataset.sound is not None:
            lines.append(
                "sounds: samples are measured as heard, as spectrograms of what Griffin-Lim makes of them; "
                f"the row {REAL_ROW} is not, its distances after Griffin-Lim end in _vocoded"
            )
        return lines
