"""Sounds as pictures and back: log-mel spectrograms, and the phases that Griffin and Lim's algorithm finds.

A sound of S bands and S frames has exactly ``S * hop_length`` samples. It is analysed between
``num_fft - hop_length`` samples of silence, half of them at each end, so that frame i is centred on
the middle of its own `hop_length` samples, i + 1/2 hops from the start.
"""

import warnings
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from pelap.config import SoundParams
from pelap.core.errors import DataError

TOP_DB = -5.0
"""Level of white, where a full-scale sine of one frequency is 0: about what it reaches in a narrow band."""
ITERATIONS = 16
"""Of Griffin and Lim's algorithm."""
UNMIXING_STEPS = 20
"""Of the way from bands to frequencies."""
PHASE_SEED = 0
"""Of the phases that it starts from; the same ones for every sound, whatever else is made with it."""
TINY = 1e-10
"""Of full scale: far below every level told apart, and not zero."""
BATCH_SIZE = 32
"""Sounds at a time; bounds memory."""

Floats = npt.NDArray[np.float32]


def to_spectrograms(sounds: torch.Tensor, params: SoundParams) -> torch.Tensor:
    """Log-mel spectrograms of sounds, each scaled to peak 1 first: loudness is no feature.

    Args:
        sounds: float32 (N, S * hop_length) of any scale; silence stays silent.
        params: How to analyse.

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

    A sound depends on its own spectrogram alone, not on what else is in the batch.

    Args:
        images: uint8 (N, 1, S, S) as from `to_spectrograms`.
        params: How they were made.

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
