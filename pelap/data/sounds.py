"""Sounds: WAV files, log-mel spectrograms, and the way back."""

import warnings
from functools import lru_cache
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
from pelap.data.entries import Remark, unsaid

Samples = npt.NDArray[np.float64]

LOUDEST = 1e6  # times full scale that a float may be: what is above is no sound
SILENCE = 0.001  # peak, as a share of full scale (-60 dB), below which a sound counts as silent


def read_wav(
    data: bytes, name: str, params: SoundParams, image_size: int, remark: Remark = unsaid
) -> torch.Tensor:
    """The windows of a WAV file that sound, one after the other from its start.

    Channels are averaged and the mean is taken away; what is left after the last whole window is dropped,
    and what is left out is told to `remark`. `name` is that of the file, of PCM of any width or floats.

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


TOP_DB = -5.0  # of white, a full-scale sine of one frequency being 0: about what it reaches in a narrow band
ITERATIONS = 16  # of Griffin and Lim's algorithm
UNMIXING_STEPS = 20  # of the way from bands to frequencies
PHASE_SEED = 0  # of the phases that it starts from, for every sound, whatever else is made with it
TINY = 1e-10  # of full scale: far below every level told apart, and not zero
BATCH_SIZE = 32  # sounds at a time; bounds memory

Floats = npt.NDArray[np.float32]


def to_spectrograms(sounds: torch.Tensor, params: SoundParams) -> torch.Tensor:
    """Log-mel spectrograms of sounds, each scaled to peak 1 first: loudness is no feature.

    The sounds are float32 (N, S * hop_length) of any scale; silence stays silent.

    Returns:
        uint8 (N, 1, S, S): bands, highest at the top, by frames; 0 to 255 is evenly `TOP_DB` - `range_db`
        or less to `TOP_DB` or more.

    Raises:
        DataError: The frames are too short to tell S bands apart.
    """
    size = sounds.shape[-1] // params.hop_length
    bank = _bank(params.sample_rate, params.num_fft, size)
    pictures = [_analysed(batch.cpu().numpy(), params, bank) for batch in sounds.split(BATCH_SIZE)]
    return torch.from_numpy(np.concatenate(pictures)).flip(1).unsqueeze(1)


def to_sounds(images: torch.Tensor, params: SoundParams) -> torch.Tensor:
    """Sounds that have these spectrograms, as nearly as `ITERATIONS` rounds of Griffin and Lim's get.

    A sound depends on its own spectrogram alone, not on what else is in the batch (N, 1, S, S).

    Returns:
        float32 (N, S * hop_length) on the CPU, of peak 1; a black picture is silence.

    Raises:
        DataError: The frames are too short to tell S bands apart.
    """
    bank = _bank(params.sample_rate, params.num_fft, images.shape[-1])
    levels = images.squeeze(1).flip(1).cpu().numpy()  # (N, S, S), lowest band first
    return torch.from_numpy(np.stack([_sound(level, params, bank) for level in levels]))


def _analysed(sounds: Floats, params: SoundParams, bank: Floats) -> npt.NDArray[np.uint8]:
    """(N, samples) -> (N, S, S), lowest band first."""
    import librosa

    margins = _margins(params)
    padded = np.pad(_of_peak_1(sounds), ((0, 0), margins))
    waves = librosa.stft(padded, n_fft=params.num_fft, hop_length=params.hop_length, center=False)
    mel = bank @ (np.abs(waves) / _full_scale(params))  # (N, S, S)
    level_db = 20 * np.log10(np.maximum(mel, TINY)) - TOP_DB
    scaled: Floats = np.clip(1 + level_db / params.range_db, 0.0, 1.0) * 255
    return np.round(scaled).astype(np.uint8)


def _sound(level: npt.NDArray[np.uint8], params: SoundParams, bank: Floats) -> Floats:
    """(S, S), lowest band first -> (samples,)."""
    import librosa

    level_db = (level.astype(np.float32) / 255 - 1) * params.range_db + TOP_DB
    mel = np.where(level > 0, 10 ** (level_db / 20), 0.0).astype(np.float32)
    wave = librosa.griffinlim(
        _unmixed(mel, bank) * _full_scale(params),
        n_iter=ITERATIONS,
        hop_length=params.hop_length,
        n_fft=params.num_fft,
        center=False,
        random_state=PHASE_SEED,
    )
    left, right = _margins(params)
    return _of_peak_1(wave[left : len(wave) - right])


def _unmixed(mel: Floats, bank: Floats) -> Floats:
    """Strengths of the frequencies (F, S), none negative, whose bands are `mel` (S, S).

    Multiplicative steps after Lee and Seung (2001) towards the least Kullback-Leibler divergence: that
    weighs a quiet band by its own level, where least squares would fill it from its loud neighbours.
    """
    shares = bank / np.maximum(bank.sum(axis=0), TINY)
    strengths = bank.T @ mel
    for _ in range(UNMIXING_STEPS):
        strengths *= shares.T @ (mel / np.maximum(bank @ strengths, TINY))
    return strengths


def _margins(params: SoundParams) -> tuple[int, int]:
    """Samples of silence before and after a sound."""
    both = params.num_fft - params.hop_length
    return both // 2, both - both // 2


def _full_scale(params: SoundParams) -> float:
    """Strength of a sine of amplitude 1 in the Fourier transform: half the sum of Hann's window."""
    return params.num_fft / 4


def _of_peak_1(sounds: Floats) -> Floats:
    """Silence stays silent."""
    scaled: Floats = sounds / np.maximum(np.abs(sounds).max(axis=-1, keepdims=True), TINY)
    return scaled


@lru_cache(maxsize=4)
def _bank(sample_rate: int, num_fft: int, size: int) -> Floats:
    """Mel filters (size, num_fft / 2 + 1), rows sum to 1: a band is the weighted mean of its frequencies.

    Raises:
        DataError: A band is narrower than the distance of two frequencies, and empty.
    """
    import librosa

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that bands are empty, which is said below
        bank = librosa.filters.mel(sr=sample_rate, n_fft=num_fft, n_mels=size, norm=None)
    sums = bank.sum(axis=1, keepdims=True)
    if not sums.all():
        raise DataError(
            f"download.sounds.num_fft: {num_fft} samples at {sample_rate} Hz are too few to tell "
            f"{size} bands apart; use {2 * num_fft}, or a smaller download.image_size"
        )
    filters: Floats = bank / sums
    return filters
