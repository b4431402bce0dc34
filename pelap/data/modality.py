"""What the pictures of a data set are to a viewer or listener: pictures, or sounds by their spectrograms."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from pelap.config import SoundParams
from pelap.data.pictures import save_grid
from pelap.data.sounds import to_sounds, to_spectrograms, write_wav

NUM_PLAYED = 6  # sounds in a WAV file
GAP_S = 0.15  # seconds of silence between two of them
PLAYED_PEAK = 0.9  # largest absolute value in a WAV file: some players clip what is near 1


class Modality:
    """How the pictures of a data set, uint8 (N, C, S, S), are seen or heard: colour pictures as they are."""

    noun: ClassVar[str] = "pictures"  # of several of them
    num_channels: ClassVar[int] = 3  # C
    lossless: ClassVar[bool] = True  # whether they are perceived as they are

    def rendered(self, images: torch.Tensor) -> torch.Tensor:
        """The pictures as they reach a viewer or listener, shape, type and device as before."""
        return images

    def save_grid(self, images: torch.Tensor, path: Path) -> None:
        """Write them as one PNG, row by row, atomically; one alone gets no border."""
        save_grid(images, path)

    def save(self, images: torch.Tensor, stem: Path) -> None:
        """Write what can be looked at and listened to, under `stem` and a suffix for each, atomically."""
        self.save_grid(images, _with_suffix(stem, ".png"))


@dataclass(frozen=True)
class Sounds(Modality):
    """Spectrograms: heard through Griffin and Lim's algorithm, saved as a PNG in colour and as a WAV."""

    params: SoundParams
    noun: ClassVar[str] = "sounds"
    num_channels: ClassVar[int] = 1
    lossless: ClassVar[bool] = False

    def rendered(self, images: torch.Tensor) -> torch.Tensor:
        """Spectrograms of what is heard: no sound has just the spectrogram that a network makes up."""
        return to_spectrograms(to_sounds(images, self.params), self.params).to(images.device)

    def save_grid(self, images: torch.Tensor, path: Path) -> None:
        save_grid(coloured(images), path)

    def save(self, images: torch.Tensor, stem: Path) -> None:
        super().save(images, stem)
        played = one_after_the_other(to_sounds(images[:NUM_PLAYED], self.params), self.params.sample_rate)
        write_wav(_with_suffix(stem, ".wav"), played, self.params.sample_rate)


def modality_of(sound: SoundParams | None) -> Modality:
    """The medium of a data set or model by how its pictures came from sounds; None where they did not."""
    return Modality() if sound is None else Sounds(sound)


def coloured(images: torch.Tensor) -> torch.Tensor:
    """Spectrograms uint8 (N, 1, H, W) in matplotlib's colours "magma", uint8 (N, 3, H, W) on the CPU."""
    from matplotlib import colormaps

    colours = torch.from_numpy(colormaps["magma"](range(256), bytes=True)[:, :3])  # (256, 3)
    return colours[images[:, 0].cpu().long()].permute(0, 3, 1, 2)


def one_after_the_other(sounds: torch.Tensor, rate: int) -> torch.Tensor:
    """Sounds (N, samples) as one, `GAP_S` of silence between two, scaled to `PLAYED_PEAK`; silence stays."""
    gap = torch.zeros(len(sounds), round(GAP_S * rate))
    played = torch.cat([sounds, gap], dim=1).flatten()[: -gap.shape[1]]
    return played * (PLAYED_PEAK / played.abs().max().clamp(min=1e-9))


def _with_suffix(stem: Path, suffix: str) -> Path:
    """`Path.with_suffix` would cut a name like ``tuned-0.35`` at its dot."""
    return stem.with_name(stem.name + suffix)
