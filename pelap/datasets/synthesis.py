"""Sounds without a recording: eight instruments by recipe, each drawn from a named random stream."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from pelap.config import SoundParams
from pelap.core.rng import generator
from pelap.data.dataset import ImageDataset, Split, make_split, pixel_checksum
from pelap.data.sounds import to_spectrograms

Wave = npt.NDArray[np.float64]

MAX_HARMONICS = 40
FADE_S = 0.01
"""Seconds over which a sound that the window cuts off fades out, so that no click marks the end."""
HIGHEST = 0.45
"""Highest frequency of a recipe as a share of the sample rate; tones above are left out or lowered."""


class Draw:
    """What a recipe draws, one value after the other, from one stream."""

    def __init__(self, random: torch.Generator) -> None:
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


Recipe = Callable[[int, int, Draw], Wave]
"""(sample rate, number of samples, draws) -> one sound of any loudness."""


def build_sounds(params: SoundParams, image_size: int, seed: int) -> ImageDataset:
    """Spectrograms of sounds by recipe, `image_size * hop_length` samples each; the label is the recipe.

    Sound i of a split and class depends on these and the seed alone: asking for more keeps the first ones.

    Raises:
        DataError: The spectrogram lacks room for so many bands.
    """
    train = _sounds("train", params.train_per_class, params, image_size, seed)
    test = _sounds("test", params.test_per_class, params, image_size, seed)
    names = tuple(RECIPES)
    source = "sounds by the recipes of pelap.datasets.synthesis, log-mel spectrograms"
    return ImageDataset("sounds", train, test, names, source, pixel_checksum(train, test), params)


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
    wave = RECIPES[name](rate, num_samples, Draw(random))
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


def pluck(rate: int, num_samples: int, draw: Draw) -> Wave:
    """A plucked string by Karplus and Strong (1983): noise of one period runs round an averaging loop.

    Pitch 110 to 660 Hz, loss 0.1 to 1 % a round, noise softened by a one-pole low pass of 0 to 0.7.
    """
    period = max(round(rate / draw.pitch(110, 660) - 0.5), 2)
    kept = 1 - draw.uniform(0.001, 0.01)
    burst = np.zeros(num_samples)
    length = min(period, num_samples)
    burst[:length] = _low_pass(draw.noise(length), draw.uniform(0.0, 0.7))
    burst[:length] -= burst[:length].mean()  # the loop would keep a constant longer than any tone
    return _filtered([1.0], [1.0, *[0.0] * (period - 1), -kept / 2, -kept / 2], burst)


def bell(rate: int, num_samples: int, draw: Draw) -> Wave:
    """A struck bell: inharmonic partials that die away, the higher the sooner.

    Strike note 220 to 880 Hz; partials at the ratios of a church bell, each off by up to 1 % and of
    weight 0.3 to 1; the note falls by 60 dB in 0.8 to 3 s, a partial of r times its pitch r times as fast.
    """
    ratios = (0.5, 1.0, 1.183, 1.506, 2.0, 2.514, 2.662, 3.011, 4.166, 5.433, 6.796)
    time, pitch = _time(rate, num_samples), draw.pitch(220, 880)
    fall = np.log(1000) / draw.uniform(0.8, 3.0)
    wave = np.zeros(num_samples)
    for ratio in ratios:
        frequency = pitch * ratio * (1 + draw.uniform(-0.01, 0.01))
        weight, start = draw.uniform(0.3, 1.0), draw.uniform(0.0, 2 * np.pi)
        if frequency <= HIGHEST * rate:
            wave += weight * np.exp(-fall * ratio * time) * np.sin(2 * np.pi * frequency * time + start)
    return wave


def organ(rate: int, num_samples: int, draw: Draw) -> Wave:
    """An organ: a steady chord of pipes over one note.

    Pitch 110 to 440 Hz; pipes at 1, 2, 3, 4, 6 and 8 times that, weight 0.1 to 1 each; attack 10 to 40 ms;
    tremolo of 5 to 7 Hz, 0 to 20 % deep; silent before a start at 0 to 10 % of the window.
    """
    time, pitch = _time(rate, num_samples), draw.pitch(110, 440)
    weights = np.zeros(8)
    for pipe in (1, 2, 3, 4, 6, 8):
        weights[pipe - 1] = draw.uniform(0.1, 1.0)
    tremolo = 1 + draw.uniform(0.0, 0.2) * np.sin(2 * np.pi * draw.uniform(5, 7) * time)
    attack = _attack(time, draw.uniform(0.0, 0.1) * num_samples / rate, draw.uniform(0.01, 0.04))
    return attack * tremolo * _harmonics(np.full(num_samples, pitch), weights, rate)


def flute(rate: int, num_samples: int, draw: Draw) -> Wave:
    """A flute: a nearly pure tone in a breath of noise.

    Pitch 330 to 1320 Hz, vibrato of 4 to 6 Hz and 0.2 to 0.8 %; second harmonic of 5 to 25 %, third of 2 to
    10 %; noise of 10 to 40 % through a resonance at the pitch; attack 50 to 150 ms, a start at 0 to 10 %.
    """
    time, pitch = _time(rate, num_samples), draw.pitch(330, 1320)
    weights = np.array([1.0, draw.uniform(0.05, 0.25), draw.uniform(0.02, 0.1)])
    tone = _harmonics(_vibrato(time, pitch, draw.uniform(4, 6), draw.uniform(0.002, 0.008)), weights, rate)
    breath = _resonant(draw.noise(num_samples), min(pitch, HIGHEST * rate), 0.9, rate)
    attack = _attack(time, draw.uniform(0.0, 0.1) * num_samples / rate, draw.uniform(0.05, 0.15))
    return attack * (tone + draw.uniform(0.1, 0.4) / float(breath.std()) * breath)


def brass(rate: int, num_samples: int, draw: Draw) -> Wave:
    """A brass instrument after Risset (1966): the louder, the brighter.

    Pitch 110 to 440 Hz; 20 harmonics of weight 1/h**s, s 0.4 to 0.9; harmonic h follows the loudness to
    the power 1 + c(h-1), c 0.2 to 0.5; loudness rises in 60 to 250 ms, falls to 50 to 90 % by the end.
    """
    time, pitch = _time(rate, num_samples), draw.pitch(110, 440)
    slope, delay = draw.uniform(0.4, 0.9), draw.uniform(0.2, 0.5)
    loudness = _attack(time, draw.uniform(0.0, 0.1) * num_samples / rate, draw.uniform(0.06, 0.25))
    loudness *= np.linspace(1.0, draw.uniform(0.5, 0.9), num_samples)
    wave = np.zeros(num_samples)
    for h in range(1, 21):
        if h * pitch <= HIGHEST * rate:
            wave += loudness ** (1 + delay * (h - 1)) * h**-slope * np.sin(2 * np.pi * h * pitch * time)
    return wave


def bowed(rate: int, num_samples: int, draw: Draw) -> Wave:
    """A bowed string: all harmonics of a sawtooth, slow attack, vibrato.

    Pitch 130 to 660 Hz, vibrato of 5 to 7 Hz and 0.5 to 2 %; weight 1/h, up to a cut-off at 10 to 40
    harmonics; attack 80 to 250 ms after a start at 0 to 10 % of the window; noise of the bow 1 to 4 %.
    """
    time, pitch = _time(rate, num_samples), draw.pitch(130, 660)
    weights = 1.0 / np.arange(1, draw.count(10, MAX_HARMONICS) + 1)
    frequency = _vibrato(time, pitch, draw.uniform(5, 7), draw.uniform(0.005, 0.02))
    noise = draw.uniform(0.01, 0.04) * draw.noise(num_samples)
    attack = _attack(time, draw.uniform(0.0, 0.1) * num_samples / rate, draw.uniform(0.08, 0.25))
    return attack * (_harmonics(frequency, weights, rate) + noise)


def drum(rate: int, num_samples: int, draw: Draw) -> Wave:
    """A drum: a tone that falls in pitch, and a burst of noise.

    Pitch from 150 to 400 Hz towards 40 to 70 % of that, to 1/e of the way in 30 to 100 ms; 60 dB down in
    0.4 to 1.2 s; noise of 10 to 80 %, 60 dB down in 0.1 to 0.6 s; a start at 0 to 20 % of the window.
    """
    time = _time(rate, num_samples) - draw.uniform(0.0, 0.2) * num_samples / rate
    sounding, time = time >= 0, np.maximum(time, 0.0)
    high = draw.pitch(150, 400)
    low = high * draw.uniform(0.4, 0.7)
    frequency = low + (high - low) * np.exp(-time / draw.uniform(0.03, 0.1))
    wave = np.sin(_phase(frequency, rate)) * np.exp(-np.log(1000) / draw.uniform(0.4, 1.2) * time)
    fall = np.exp(-np.log(1000) / draw.uniform(0.1, 0.6) * time)
    wave += draw.uniform(0.1, 0.8) * draw.noise(num_samples) * fall
    return np.where(sounding, wave, 0.0)


def bird(rate: int, num_samples: int, draw: Draw) -> Wave:
    """A bird: two to six short whistles that glide.

    Each in its own equal part of the window, 40 to 90 % of it long; from 1500 to 5000 Hz (at most 0.45 of
    the sample rate) to 0.6 to 1.6 times that; loudness 0.4 to 1, swelling and fading as half a sine.
    """
    count = draw.count(2, 6)
    wave = np.zeros(num_samples)
    for part in np.array_split(np.arange(num_samples), count):
        length = max(round(draw.uniform(0.4, 0.9) * len(part)), 1)
        start = draw.pitch(1500, 5000)
        end = start * draw.pitch(0.6, 1.6)
        glide = np.linspace(min(start, HIGHEST * rate), min(end, HIGHEST * rate), length)
        swell = draw.uniform(0.4, 1.0) * np.sin(np.linspace(0.0, np.pi, length))
        wave[part[:length]] = swell * np.sin(_phase(glide, rate))
    return wave


RECIPES: dict[str, Recipe] = {
    recipe.__name__: recipe for recipe in (pluck, bell, organ, flute, brass, bowed, drum, bird)
}
"""Every recipe by the name of its class."""


def _time(rate: int, num_samples: int) -> Wave:
    """Seconds since the start of the window."""
    return np.arange(num_samples) / rate


def _phase(frequency: Wave, rate: int) -> Wave:
    """Phase in radians of a tone whose frequency in Hz changes; 0 at the first sample."""
    turns: Wave = (np.cumsum(frequency) - frequency[0]) / rate
    return 2 * np.pi * turns


def _vibrato(time: Wave, pitch: float, speed: float, depth: float) -> Wave:
    """A pitch that swings `speed` times a second by `depth`, its share."""
    return pitch * (1 + depth * np.sin(2 * np.pi * speed * time))


def _harmonics(frequency: Wave, weights: Wave, rate: int) -> Wave:
    """Harmonics 1, 2, ... of a pitch with their weights; those that do not fit the rate are left out."""
    phase, wave = _phase(frequency, rate), np.zeros(len(frequency))
    for number, weight in enumerate(weights, start=1):
        if weight and number * frequency.max() <= HIGHEST * rate:
            wave += weight * np.sin(number * phase)
    return wave


def _attack(time: Wave, start: float, rise: float) -> Wave:
    """Loudness: 0 until `start`, then up to 1 in `rise` seconds along half a cosine."""
    return 0.5 - 0.5 * np.cos(np.pi * np.clip((time - start) / rise, 0.0, 1.0))


def _low_pass(wave: Wave, pole: float) -> Wave:
    return _filtered([1 - pole], [1.0, -pole], wave)


def _resonant(wave: Wave, frequency: float, radius: float, rate: int) -> Wave:
    """Two poles of a radius below 1 at a frequency in Hz."""
    angle = 2 * np.pi * frequency / rate
    return _filtered([1.0], [1.0, -2 * radius * np.cos(angle), radius**2], wave)


def _filtered(ahead: Sequence[float], back: Sequence[float], wave: Wave) -> Wave:
    from scipy.signal import lfilter

    filtered: Wave = lfilter(ahead, back, wave)
    return filtered
