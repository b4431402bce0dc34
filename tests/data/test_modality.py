"""Pictures and sounds as they are seen, heard and saved."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile

from pelap.config import SoundParams
from pelap.data.modality import (
    GAP_S,
    NUM_PLAYED,
    PLAYED_PEAK,
    coloured,
    modality_of,
    one_after_the_other,
)
from pelap.data.sounds import to_sounds, to_spectrograms

SOUND = SoundParams(
    sample_rate=8000, num_fft=512, hop_length=128, range_db=80.0, train_per_class=1, test_per_class=1
)
SIZE = 16
WINDOW = SIZE * SOUND.hop_length


def spectrograms(count: int) -> torch.Tensor:
    time = torch.arange(WINDOW) / SOUND.sample_rate
    tones = [torch.sin(2 * torch.pi * (300 + 150 * i) * time) for i in range(count)]
    return to_spectrograms(torch.stack(tones), SOUND)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_pictures_are_seen_and_saved_as_they_are(tmp_path: Path) -> None:
    modality, images = modality_of(None), torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    assert (modality.noun, modality.num_channels) == ("pictures", 3)
    assert torch.equal(modality.rendered(images), images)
    modality.save(images, tmp_path / "tuned-0.35")
    assert names(tmp_path) == ["tuned-0.35.png"]
    modality.save(images[:1], tmp_path / "one")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "one.png")), images[0].permute(1, 2, 0).numpy())


def test_sounds_are_perceived_through_the_way_back() -> None:
    modality, images = modality_of(SOUND), spectrograms(3)
    assert (modality.noun, modality.num_channels) == ("sounds", 1)
    heard = modality.rendered(images)
    assert heard.dtype == torch.uint8
    assert heard.shape == images.shape
    assert torch.equal(heard, to_spectrograms(to_sounds(images, SOUND), SOUND))
    # Transforms of several frames are taken at once, which may round otherwise: to the next level.
    assert (modality.rendered(images[1:2]).int() - heard[1:2].int()).abs().max() <= 1
    noise = torch.randint(0, 256, images.shape, dtype=torch.uint8)
    kept, lost = ((modality.rendered(it).float() - it.float()).abs().mean() for it in (images, noise))
    assert lost > 3 * kept  # no sound has just any picture


def test_sounds_are_saved_to_look_at_and_to_listen_to(tmp_path: Path) -> None:
    modality, images = modality_of(SOUND), spectrograms(NUM_PLAYED + 2)
    modality.save(images, tmp_path / "tuned-0.35")
    assert names(tmp_path) == ["tuned-0.35.png", "tuned-0.35.wav"]
    rate, values = wavfile.read(tmp_path / "tuned-0.35.wav")
    gap = round(GAP_S * rate)
    assert rate == SOUND.sample_rate
    assert values.shape == (NUM_PLAYED * WINDOW + (NUM_PLAYED - 1) * gap,)
    assert np.abs(values).max() == round(PLAYED_PEAK * 32767)
    for i in range(NUM_PLAYED):
        start = i * (WINDOW + gap)
        sound = values[start : start + WINDOW]
        assert np.abs(sound).max() > 20000
        pitch = np.abs(np.fft.rfft(sound)).argmax() * rate / WINDOW
        assert abs(pitch - (300 + 150 * i)) < 75  # nearer than to any other's
        assert not values[start + WINDOW : start + WINDOW + gap].any()
    modality.save(images[:1], tmp_path / "one")
    assert wavfile.read(tmp_path / "one.wav")[1].shape == (WINDOW,)


def test_spectrograms_have_magmas_colours(tmp_path: Path) -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    colours = coloured(levels)
    assert colours.shape == (1, 3, 16, 16)
    assert colours.dtype == torch.uint8
    assert colours[0, :, 0, 0].tolist() == [0, 0, 3]
    assert colours[0, :, -1, -1].tolist() == [251, 252, 191]
    modality_of(SOUND).save_grid(levels, tmp_path / "one.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "one.png")), colours[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("count", [1, 3])
def test_silence_can_be_played(count: int) -> None:
    played = one_after_the_other(torch.zeros(count, 10), 100)
    assert played.tolist() == [0.0] * (10 * count + 15 * (count - 1))
