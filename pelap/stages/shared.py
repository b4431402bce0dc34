"""What the stages share."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pelap.config import DownloadParams, Params, SoundParams
from pelap.config.rules import backwards
from pelap.core.errors import ConfigError, ModelError
from pelap.core.paths import RunPaths, packed_dataset
from pelap.data.dataset import ImageDataset, load_dataset, made_by
from pelap.models.latent_diffusion import LatentDiffusion
from pelap.models.model_io import load_model


@dataclass(frozen=True)
class Context:
    """Checked parameters, where to read and write, and what to compute on."""

    params: Params
    paths: RunPaths
    data: Path
    device: torch.device

    def dataset(self) -> ImageDataset:
        """The packed data set that `download` made; what it was made by otherwise than now is said.

        Raises:
            DataError: It is missing or damaged.
            ConfigError: It holds sounds, and the parameters mirror pictures.
        """
        path = packed_dataset(self.data, self.params.dataset)
        dataset = load_dataset(path)
        self._compare(path, dataset)
        problems = backwards(self.params) if dataset.sound is not None else []
        if problems:
            raise ConfigError("; ".join(problems))
        return dataset

    def _compare(self, path: Path, dataset: ImageDataset) -> None:
        """Say where the parameters, if they have that section, would make another data set."""
        download: DownloadParams | None = getattr(self.params, "download", None)
        if download is None or not dataset.made_by:
            return
        differing = made_by(self.params.dataset, download, self.params.seed).differences(dataset.made_by)
        if differing:
            print(
                f"warning: {path} was made with another {', '.join(differing)} than the parameters have now; "
                "run `pelap download`, unless that is what you want"
            )


def trained_model(
    context: Context,
    folder: Path,
    dataset: ImageDataset,
    load: Callable[[Path, torch.device], LatentDiffusion] = load_model,
) -> LatentDiffusion:
    """A model that was trained on pictures like these.

    Args:
        context: Where to compute.
        folder: The model's.
        dataset: The pictures.
        load: From the folder; unless given, of models that are not pruned.

    Raises:
        ModelError: It was trained on another data set or at another size, or cannot be loaded.
    """
    model = load(folder, context.device)
    demand_trained_on(model, folder, dataset)
    return model


def demand_trained_on(model: LatentDiffusion, folder: Path, dataset: ImageDataset) -> None:
    """Refuse a model, from `folder`, that was trained on other pictures.

    Another draw, or version, of the same data set is said on the terminal.

    Raises:
        ModelError: It was trained on another data set, at another size, or with prompts of other classes.
    """
    trained_on = (model.info.dataset, model.info.image_size)
    given = (dataset.name, dataset.train.images.shape[-1])
    if trained_on != given:
        raise ModelError(
            f"{folder}: was trained on {trained_on[0]} at {trained_on[1]} pixels, the data "
            f"are {given[0]} at {given[1]}; train again, or give another --data or --run"
        )
    if _analysis(model.info.sound) != _analysis(dataset.sound):
        raise ModelError(
            f"{folder}: was trained on sounds analysed by {_analysis(model.info.sound)}, the data by "
            f"{_analysis(dataset.sound)}; train again, or download with the former download.sounds"
        )
    conditioner = model.conditioner
    if conditioner is not None and tuple(conditioner.config.class_names) != dataset.class_names:
        raise ModelError(
            f"{folder}: was trained with prompts of the classes {', '.join(conditioner.config.class_names)}, "
            f"the data have {', '.join(dataset.class_names)}; train again"
        )
    if model.info.data not in ("", dataset.key.name):
        print(
            f"warning: {folder} was trained on other pictures, labels or names of classes than the packed "
            f"{dataset.name} has now; train again, unless that is what you want"
        )


def _analysis(sound: SoundParams | None) -> dict[str, float] | None:
    """What decides how a spectrogram looks; not how many there are."""
    return None if sound is None else sound.model_dump(exclude={"train_per_class", "test_per_class"})
