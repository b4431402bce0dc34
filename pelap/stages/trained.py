"""Models that earlier stages left, together with the data that a stage wants to use them on."""

from pathlib import Path

from pelap.data.dataset import ImageDataset
from pelap.errors import ModelError
from pelap.loading import load_model
from pelap.models.ldm import LatentDiffusion
from pelap.params import SoundParams
from pelap.stages.context import Context


def trained_model(context: Context, folder: Path, dataset: ImageDataset) -> LatentDiffusion:
    """A model that was trained on pictures like these.

    Raises:
        ModelError: It was trained on another data set or at another size, or cannot be loaded.
    """
    model = load_model(folder, context.device)
    demand_trained_on(model, folder, dataset)
    return model


def demand_trained_on(model: LatentDiffusion, folder: Path, dataset: ImageDataset) -> None:
    """Refuse a model, from `folder`, that was trained on other pictures.

    Raises:
        ModelError: It was trained on another data set or at another size.
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


def _analysis(sound: SoundParams | None) -> dict[str, float] | None:
    """What decides how a spectrogram looks; not how many there are."""
    return None if sound is None else sound.model_dump(exclude={"train_per_class", "test_per_class"})
