"""Sounds without a recording: eight instruments by recipe, each drawn from a named random stream."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pelap.config import DownloadParams, SoundParams
from pelap.core.rng import generator
from pelap.data.dataset import ImageDataset, Split, make_split, pixel_checksum
from pelap.data.sounds import to_spectrograms

Wave = npt.NDArray[np.float64]

MAX_HARMONICS = 40
FADE_S = 0.01  # seconds over which a sound that the window cuts off fades out, so that no click marks the end
HIGHEST = 0.45
"""Highest frequency of a recipe as a share of the sample rate; tones above are left out or lowered."""


class Take:
    """A sound in the making: its length, and what its recipe draws from a stream, value by value."""

    def __init__(self, rate: int, num_samples: int, random: torch.Generator) -> None:
        self.rate, self.num_samples = rate, num_samples
        self.time: Wave = np.arange(num_samples) / rate  # seconds since the start of the window
        self.highest = HIGHEST * rate
        self._random = random

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self._random, dtype=torch.float64))

    def pitch(self, low: float, high: float) -> float:
        """A frequency in Hz, uniform in its logarithm: every octave is as likely."""
        return float(low * (high / low) ** self.uniform(0.0, 1.0))

    def count(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self._random))

    def noise(self, num_samples: int) -> Wave:
        """White noise, standard normal."""
        values: Wave = torch.randn(num_samples, generator=self._random, dtype=torch.float64).numpy()
        return values

    def start(self, latest: float) -> float:
        """Seconds at which a sound begins, up to `latest` of the window."""
        return self.uniform(0.0, latest) * self.num_samples / self.rate

    def attack(self, low: float, high: float) -> Wave:
        """Loudness: 0 until a start at 0 to 10 %, then in `low` to `high` seconds up to 1, half a cosine."""
        start, rise = self.start(0.1), self.uniform(low, high)
        return 0.5 - 0.5 * np.cos(np.pi * np.clip((self.time - start) / rise, 0.0, 1.0))

    def vibrato(self, pitch: float, speed: tuple[float, float], depth: tuple[float, float]) -> Wave:
        """A pitch that swings so many times a second by such a share of itself."""
        swings, share = self.uniform(*speed), self.uniform(*depth)
        return pitch * (1 + share * np.sin(2 * np.pi * swings * self.time))

    def phase(self, frequency: Wave) -> Wave:
        """Phase in radians of a tone whose frequency in Hz changes; 0 at the first sample."""
        turns: Wave = (np.cumsum(frequency) - frequency[0]) / self.rate
        return 2 * np.pi * turns

    def harmonics(self, frequency: Wave, weights: Wave) -> Wave:
        """Harmonics 1, 2, ... of a pitch with their weights; those that do not fit the rate are left out."""
        phase, wave = self.phase(frequency), np.zeros(len(frequency))
        for number, weight in enumerate(weights, start=1):
            if weight and number * frequency.max() <= self.highest:
                wave += weight * np.sin(number * phase)
        return wave


Recipe = Callable[[Take], Wave]  # one sound of any loudness


def build(name: str, download: DownloadParams, seed: int, data_dir: Path) -> ImageDataset:
    """Spectrograms of sounds by recipe, `image_size * hop_length` samples each; the label is the recipe.

    Sound i of a split and class depends on these and the seed alone: asking for more keeps the first ones.

    Raises:
        DataError: The spectrogram lacks room for so many bands.
    """
    params, image_size = download.sounds, download.image_size
    train = _sounds("train", params.train_per_class, params, image_size, seed)
    test = _sounds("test", params.test_per_class, params, image_size, seed)
    source = "sounds by the recipes of pelap.datasets.synthesis, log-mel spectrograms"
    return ImageDataset(name, train, test, tuple(RECIPES), source, pixel_checksum(train, test), params)


def synthesise(name: str, rate: int, num_samples: int, random: torch.Generator) -> torch.Tensor:
    """One sound of a recipe.

    Args:
        name: Key of `RECIPES`.
        rate: Samples a second.
        num_samples: Of the sound.
        random: Stream that everything is drawn from.

    Returns:
        float32 (num_samples,), mean 0, largest absolute value 1.
    """
    wave = RECIPES[name](Take(rate, num_samples, random))
    wave = wave - wave.mean()
    fade = min(max(round(FADE_S * rate), 1), num_samples)
    wave[-fade:] *= np.linspace(1.0, 0.0, fade)
    return torch.from_numpy((wave / np.abs(wave).max()).astype(np.float32))


def _sounds(split: str, count: int, params: SoundParams, image_size: int, seed: int) -> Split:
    """`count` sounds of each recipe."""
    images, labels, num_samples = [], [], image_size * params.hop_length
    for label, name in enumerate(RECIPES):
        streams = (generator(seed, f"sounds/{split}/{name}", i) for i in range(count))
        waves = [synthesise(name, params.sample_rate, num_samples, stream) for stream in streams]
        images += list(to_spectrograms(torch.stack(waves), params))
        labels += [label] * count
    return make_split(images, labels)


def pluck(take: Take) -> Wave:
    """A plucked string by Karplus and Strong (1983): noise of one period runs round an averaging loop.

    Pitch 110 to 660 Hz, loss 0.1 to 1 % a round, noise softened by a one-pole low pass of 0 to 0.7.
    """
    period = max(round(take.rate / take.pitch(110, 660) - 0.5), 2)
    kept = 1 - take.uniform(0.001, 0.01)
    burst = np.zeros(take.num_samples)
    length = min(period, take.num_samples)
    noise, pole = take.noise(length), take.uniform(0.0, 0.7)
    burst[:length] = _filtered([1 - pole], [1.0, -pole], noise)
    burst[:length] -= burst[:length].mean()  # the loop would keep a constant longer than any tone
    return _filtered([1.0], [1.0, *[0.0] * (period - 1), -kept / 2, -kept / 2], burst)


def bell(take: Take) -> Wave:
    """A struck bell: inharmonic partials that die away, the higher the sooner.

    Strike note 220 to 880 Hz; partials at the ratios of a church bell, each off by up to 1 % and of
    weight 0.3 to 1; the note falls by 60 dB in 0.8 to 3 s, a partial of r times its pitch r times as fast.
    """
    ratios = (0.5, 1.0, 1.183, 1.506, 2.0, 2.514, 2.662, 3.011, 4.166, 5.433, 6.796)
    pitch, fall = take.pitch(220, 880), np.log(1000) / take.uniform(0.8, 3.0)
    wave = np.zeros(take.num_samples)
    for ratio in ratios:
        frequency = pitch * ratio * (1 + take.uniform(-0.01, 0.01))
        weight, start = take.uniform(0.3, 1.0), take.uniform(0.0, 2 * np.pi)
        if frequency <= take.highest:
            tone = np.sin(2 * np.pi * frequency * take.time + start)
            wave += weight * np.exp(-fall * ratio * take.time) * tone
    return wave


def organ(take: Take) -> Wave:
    """An organ: a steady chord of pipes over one note.

    Pitch 110 to 440 Hz; pipes at 1, 2, 3, 4, 6 and 8 times that, weight 0.1 to 1 each; attack 10 to 40 ms;
    tremolo of 5 to 7 Hz, 0 to 20 % deep; silent before a start at 0 to 10 % of the window.
    """
    pitch, weights = take.pitch(110, 440), np.zeros(8)
    for pipe in (1, 2, 3, 4, 6, 8):
        weights[pipe - 1] = take.uniform(0.1, 1.0)
    tremolo = 1 + take.uniform(0.0, 0.2) * np.sin(2 * np.pi * take.uniform(5, 7) * take.time)
    return take.attack(0.01, 0.04) * tremolo * take.harmonics(np.full(take.num_samples, pitch), weights)


def flute(take: Take) -> Wave:
    """A flute: a nearly pure tone in a breath of noise.

    Pitch 330 to 1320 Hz, vibrato of 4 to 6 Hz and 0.2 to 0.8 %; second harmonic of 5 to 25 %, third of 2 to
    10 %; noise of 10 to 40 % through a resonance at the pitch; attack 50 to 150 ms, a start at 0 to 10 %.
    """
    pitch = take.pitch(330, 1320)
    weights = np.array([1.0, take.uniform(0.05, 0.25), take.uniform(0.02, 0.1)])
    tone = take.harmonics(take.vibrato(pitch, (4, 6), (0.002, 0.008)), weights)
    angle, radius = 2 * np.pi * min(pitch, take.highest) / take.rate, 0.9  # of the resonance's two poles
    poles = [1.0, -2 * radius * np.cos(angle), radius**2]
    breath = _filtered([1.0], poles, take.noise(take.num_samples))
    return take.attack(0.05, 0.15) * (tone + take.uniform(0.1, 0.4) / float(breath.std()) * breath)


def brass(take: Take) -> Wave:
    """A brass instrument after Risset (1966): the louder, the brighter.

    Pitch 110 to 440 Hz; 20 harmonics of weight 1/h**s, s 0.4 to 0.9; harmonic h follows the loudness to
    the power 1 + c(h-1), c 0.2 to 0.5; loudness rises in 60 to 250 ms, falls to 50 to 90 % by the end.
    """
    pitch = take.pitch(110, 440)
    slope, delay = take.uniform(0.4, 0.9), take.uniform(0.2, 0.5)
    loudness = take.attack(0.06, 0.25) * np.linspace(1.0, take.uniform(0.5, 0.9), take.num_samples)
    wave = np.zeros(take.num_samples)
    for h in range(1, 21):
        if h * pitch <= take.highest:
            tone = np.sin(2 * np.pi * h * pitch * take.time)
            wave += loudness ** (1 + delay * (h - 1)) * h**-slope * tone
    return wave


def bowed(take: Take) -> Wave:
    """A bowed string: all harmonics of a sawtooth, slow attack, vibrato.

    Pitch 130 to 660 Hz, vibrato of 5 to 7 Hz and 0.5 to 2 %; weight 1/h, up to a cut-off at 10 to 40
    harmonics; attack 80 to 250 ms after a start at 0 to 10 % of the window; noise of the bow 1 to 4 %.
    """
    pitch = take.pitch(130, 660)
    weights = 1.0 / np.arange(1, take.count(10, MAX_HARMONICS) + 1)
    frequency = take.vibrato(pitch, (5, 7), (0.005, 0.02))
    noise = take.uniform(0.01, 0.04) * take.noise(take.num_samples)
    return take.attack(0.08, 0.25) * (take.harmonics(frequency, weights) + noise)


def drum(take: Take) -> Wave:
    """A drum: a tone that falls in pitch, and a burst of noise.

    Pitch from 150 to 400 Hz towards 40 to 70 % of that, to 1/e of the way in 30 to 100 ms; 60 dB down in
    0.4 to 1.2 s; noise of 10 to 80 %, 60 dB down in 0.1 to 0.6 s; a start at 0 to 20 % of the window.
    """
    time = take.time - take.start(0.2)
    sounding, time = time >= 0, np.maximum(time, 0.0)
    high = take.pitch(150, 400)
    low = high * take.uniform(0.4, 0.7)
    frequency = low + (high - low) * np.exp(-time / take.uniform(0.03, 0.1))
    wave = np.sin(take.phase(frequency)) * np.exp(-np.log(1000) / take.uniform(0.4, 1.2) * time)
    fall = np.exp(-np.log(1000) / take.uniform(0.1, 0.6) * time)
    wave += take.uniform(0.1, 0.8) * take.noise(take.num_samples) * fall
    return np.where(sounding, wave, 0.0)


def bird(take: Take) -> Wave:
    """A bird: two to six short whistles that glide.

    Each in its own equal part of the window, 40 to 90 % of it long; from 1500 to 5000 Hz (at most 0.45 of
    the sample rate) to 0.6 to 1.6 times that; loudness 0.4 to 1, swelling and fading as half a sine.
    """
    count = take.count(2, 6)
    wave = np.zeros(take.num_samples)
    for part in np.array_split(np.arange(take.num_samples), count):
        length = max(round(take.uniform(0.4, 0.9) * len(part)), 1)
        start = take.pitch(1500, 5000)
        end = start * take.pitch(0.6, 1.6)
        glide = np.linspace(min(start, take.highest), min(end, take.highest), length)
        swell = take.uniform(0.4, 1.0) * np.sin(np.linspace(0.0, np.pi, length))
        wave[part[:length]] = swell * np.sin(take.phase(glide))
    return wave


RECIPES: dict[str, Recipe] = {
    recipe.__name__: recipe for recipe in (pluck, bell, organ, flute, brass, bowed, drum, bird)
}
"""Every recipe by the name of its class."""


def _filtered(ahead: Sequence[float], back: Sequence[float], wave: Wave) -> Wave:
    from scipy.signal import lfilter

    filtered: Wave = lfilter(ahead, back, wave)
    return filtered
