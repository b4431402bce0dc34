"""Sounds as WAV files."""

import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pelap.config import SoundParams
from pelap.core import files
from pelap.core.errors import DataError
from pelap.core.files import one_line
from pelap.data.remarks import Remark, unsaid

Samples = npt.NDArray[np.float64]

LOUDEST = 1e6
"""Times full scale that a float may be: what is above is no sound."""
SILENCE = 0.001
"""Peak, as a share of full scale (-60 dB), below which a sound counts as silent."""


def read_wav(
    data: bytes, name: str, params: SoundParams, image_size: int, remark: Remark = unsaid
) -> torch.Tensor:
    """The windows of a WAV file that sound, one after the other from its start.

    Channels are averaged and the mean is taken away; what is left after the last whole window is dropped.

    Args:
        data: Content of the file: PCM of any width, or floats.
        name: Names it in errors.
        params: With the sample rate that it must have.
        image_size: Frames of a window.
        remark: Called with what is left out of the sound.

    Returns:
        float32 (N, image_size * hop_length), full scale is 1; N at least 1.

    Raises:
        DataError: It is no WAV or cut short, has another rate, lasts less than a window, or is silent.
    """
    length = image_size * params.hop_length
    rate, samples = _decoded(data, name, remark)
    if rate != params.sample_rate:
        raise DataError(
            f"{name}: has {rate} samples a second, not {params.sample_rate}; resample it, or set "
            f"download.sounds.sample_rate to {rate}"
        )
    if len(samples) < length:
        raise DataError(
            f"{name}: {len(samples)} samples are shorter than one window of {length} (download.image_size x "
            "download.sounds.hop_length); remove it, or use a smaller hop_length"
        )
    whole = samples[: len(samples) // length * length] - samples.mean()
    windows = torch.from_numpy(whole.astype(np.float32)).view(-1, length)
    sounding = windows[windows.abs().amax(dim=1) >= SILENCE]
    if not len(sounding):
        raise DataError(
            f"{name}: is silent (no window reaches -60 dB of full scale); remove it, or make it louder"
        )
    if len(sounding) < len(windows):
        remark("sounds with silent windows, which are left out")
    if len(samples) % length:
        remark("sounds whose ends, shorter than a window, are left out")
    return sounding


def write_wav(path: Path, sounds: torch.Tensor, rate: int) -> None:
    """Write a sound (samples,) in [-1, 1] (clamped) as a mono WAV of 16 bits, atomically."""
    from scipy.io import wavfile

    samples = (sounds.float().clamp(-1.0, 1.0) * 32767).round().to(torch.int16)
    with files.atomic_path(path) as partial:
        wavfile.write(partial, rate, samples.cpu().numpy())


def _decoded(data: bytes, name: str, remark: Remark) -> tuple[int, Samples]:
    """Samples a second and (samples,), full scale is 1."""
    from scipy.io import wavfile

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks beside the sound
            warnings.filterwarnings("error", "Reached EOF")  # its header promises more than there is
            rate, samples = wavfile.read(BytesIO(data))
        values = _of_full_scale_1(samples)
    except Exception as error:  # scipy raises what comes: struct.error, UnboundLocalError, ...
        raise DataError(f"{name}: not a complete WAV file ({one_line(error)}); repair or remove it") from None
    if values.ndim == 1:
        return rate, values
    remark("sounds of several channels averaged")
    return rate, values.mean(axis=1)


def _of_full_scale_1(samples: npt.NDArray[Any]) -> Samples:
    """PCM of 8 bits has no sign; wider PCM fills its integers from the top; floats stay."""
    if samples.dtype.kind == "f":
        if not (np.abs(samples) < LOUDEST).all():  # NaN is not less than anything
            raise ValueError("some samples are no numbers, or far beyond full scale")
        return np.asarray(samples, dtype=np.float64)
    middle = 128 if samples.dtype == np.uint8 else 0
    full_scale = float(2 ** (8 * samples.dtype.itemsize - 1))
    return (np.asarray(samples, dtype=np.float64) - middle) / full_scale
