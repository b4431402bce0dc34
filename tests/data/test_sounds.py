"""Sounds: recipes, spectrograms and the way back, WAV files, folders of them; how data are seen and heard."""

import io as bytes_io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile
from tiny import SOUNDS, expect_error, tiny_download

from pelap.config import SoundParams
from pelap.core.rng import generator
from pelap.data import sounds as sounds_module
from pelap.data.dataset import ImageDataset
from pelap.data.entries import Remark, unsaid
from pelap.data.modality import GAP_S, NUM_PLAYED, PLAYED_PEAK, coloured, modality_of, one_after_the_other
from pelap.data.sounds import read_wav, to_sounds, to_spectrograms, write_wav
from pelap.datasets.sources import build_dataset
from pelap.datasets.synthesis import RECIPES, synthesise

SIZE = 32
WINDOW = SIZE * SOUNDS.hop_length  # 4096 samples, half a second
DB_PER_STEP = SOUNDS.range_db / 255


def changed(**changes: object) -> SoundParams:
    return SOUNDS.model_copy(update=changes)


def build(name: str = "sounds", sounds: SoundParams = SOUNDS, **folders: str) -> ImageDataset:
    params = tiny_download(image_size=SIZE, sounds=sounds, folders=folders)
    return build_dataset(name, params, 0, Path("nowhere"))


def real_sounds(per_recipe: int = 1) -> torch.Tensor:
    """(8 * per_recipe, WINDOW), the recipes one after the other."""
    rate = SOUNDS.sample_rate
    streams = [(name, generator(0, name, i)) for name in RECIPES for i in range(per_recipe)]
    return torch.stack([synthesise(name, rate, WINDOW, stream) for name, stream in streams])


def tone(frequency: float, num_samples: int = WINDOW, rate: int = SOUNDS.sample_rate) -> torch.Tensor:
    return 0.5 * torch.sin(2 * torch.pi * frequency * torch.arange(num_samples) / rate)


def wav(samples: torch.Tensor | np.ndarray, rate: int = SOUNDS.sample_rate) -> bytes:
    """A WAV file of 16 bits, or of what an array holds."""
    values = (samples * 32767).short().numpy() if isinstance(samples, torch.Tensor) else samples
    buffer = bytes_io.BytesIO()
    wavfile.write(buffer, rate, values)
    return buffer.getvalue()


def read(data: bytes, remark: Remark = unsaid) -> torch.Tensor:
    return read_wav(data, "it.wav", SOUNDS, SIZE, remark)


# --- recipes


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(
    ("rate", "num_samples", "offset"), [(16000, 16384, 0.02), (48000, 16384, 0.02), (4000, 192, 0.2)]
)
def test_every_recipe_sounds(name: str, rate: int, num_samples: int, offset: float) -> None:
    sounds = [synthesise(name, rate, num_samples, generator(0, name, i)) for i in range(8)]
    for sound in sounds:
        assert sound.shape == (num_samples,)
        assert sound.dtype == torch.float32
        assert sound.abs().max() == 1
        assert sound.mean().abs() < offset
        assert sound[-1] == 0  # no click at the end
    assert len({tuple(sound.tolist()) for sound in sounds}) == len(sounds)


@pytest.mark.parametrize("name", ["bell", "organ", "brass", "bird"])  # the others have noise everywhere
def test_nothing_of_a_recipe_is_folded_back(name: str) -> None:
    """At a rate that leaves no room, tones are left out: they do not return at another pitch."""
    for i in range(8):
        spectrum = np.abs(np.fft.rfft(synthesise(name, 4000, 8192, generator(0, name, i)).numpy()))
        assert spectrum[-len(spectrum) // 20 :].max() < 0.02 * spectrum.max()  # above 0.95 of what fits


def test_recipes_differ_in_their_spectrograms() -> None:
    """The nearest mean spectrum and loudness over time tells most of them."""
    pictures = to_spectrograms(real_sounds(8), SOUNDS).float().view(8, 8, SIZE, SIZE)
    features = torch.cat([pictures.mean(-1), pictures.mean(-2)], dim=-1)  # (class, item, 2 S)
    means = features[:, :4].mean(1)  # (8, 2 S)
    nearest = torch.cdist(features[:, 4:].reshape(-1, 2 * SIZE), means).argmin(1)
    assert (nearest == torch.arange(8).repeat_interleave(4)).float().mean() > 0.6


# --- spectrograms


def test_a_tone_lights_up_its_band_and_frames() -> None:
    sound = tone(1000)
    sound[: WINDOW // 2] = 0
    picture = to_spectrograms(sound[None], SOUNDS)[0, 0]
    rows = [to_spectrograms(tone(f)[None], SOUNDS)[0, 0, :, SIZE // 2].argmax() for f in (200, 1000, 3900)]
    assert rows[0] > rows[1] == picture[:, -4].argmax() > rows[2] == 0  # the highest band is at the top
    assert picture[:, : SIZE // 2 - 2].max() == 0
    assert picture[:, SIZE // 2 + 2 :].amax(0).min() > 200
    assert picture.shape == (SIZE, SIZE)


def test_levels_are_decibels_below_the_top() -> None:
    loud = tone(1000)
    quiet = loud.clone()
    quiet[WINDOW // 2 :] *= 0.01  # -40 dB
    picture = to_spectrograms(quiet[None], SOUNDS)[0, 0].float()
    fall = picture[:, 4].max() - picture[:, -4].max()
    assert abs(fall * DB_PER_STEP - 40) < 0.5
    assert 255 - to_spectrograms(loud[None], SOUNDS).max() < 6 / DB_PER_STEP
    faint, full = (to_spectrograms(sound[None], SOUNDS).int() for sound in (0.1 * loud, loud))
    assert (faint - full).abs().max() <= 1  # 0.1 times a float is rounded: a value may go to the next level


@pytest.mark.parametrize(("num_fft", "hop_length"), [(512, 128), (512, 100), (300, 125), (256, 128)])
def test_the_way_back_has_the_same_length(num_fft: int, hop_length: int) -> None:
    params, size = changed(num_fft=num_fft, hop_length=hop_length), 16
    sound = tone(440, size * hop_length)[None]
    pictures = to_spectrograms(sound, params)
    back = to_sounds(pictures, params)
    assert pictures.shape == (1, 1, size, size)
    assert back.shape == sound.shape
    assert back.dtype == torch.float32
    assert back.abs().max() == 1
    pitch = float(torch.fft.rfft(back[0]).abs().argmax()) * params.sample_rate / sound.shape[1]
    assert abs(pitch - 440) < 40


def test_sounds_survive_the_way_back() -> None:
    """Mean absolute error of the levels; the pictures themselves are far from one another."""
    pictures = to_spectrograms(real_sounds(2), SOUNDS)
    error = level_error(to_spectrograms(to_sounds(pictures, SOUNDS), SOUNDS), pictures)
    assert error.mean() < 2
    assert error.max() < 5
    assert level_error(pictures.roll(2, dims=0), pictures).mean() > 10


def level_error(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of the levels in dB of each item."""
    return (images.float() - others.float()).abs().mean(dim=(1, 2, 3)) * DB_PER_STEP


def test_a_sound_does_not_depend_on_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    sounds = real_sounds()
    pictures = to_spectrograms(sounds, SOUNDS)
    back = to_sounds(pictures, SOUNDS)
    torch.manual_seed(5)
    np.random.seed(5)
    assert torch.equal(to_sounds(pictures[[5, 3]], SOUNDS), back[[5, 3]])  # made one by one
    # Fourier transforms of several frames are taken at once, which may round otherwise: to the next level.
    monkeypatch.setattr(sounds_module, "BATCH_SIZE", 3)
    for found, rows in ((to_spectrograms(sounds[3:4], SOUNDS), [3]), (to_spectrograms(sounds, SOUNDS), ...)):
        assert (found.int() - pictures[rows].int()).abs().max() <= 1


def test_any_picture_can_be_heard() -> None:
    noise = torch.randint(0, 256, (2, 1, SIZE, SIZE), dtype=torch.uint8)
    white = torch.full((1, 1, SIZE, SIZE), 255, dtype=torch.uint8)
    back = to_sounds(torch.cat([noise, white]), SOUNDS)
    assert back.isfinite().all()
    assert back.abs().amax(1).tolist() == [1, 1, 1]


def test_too_many_bands_are_refused() -> None:
    params = changed(sample_rate=16000, num_fft=64, hop_length=32)
    expect_error(lambda: build(sounds=params), "num_fft", "64", "image_size")


# --- WAV files


@pytest.mark.parametrize("kind", ["u1", "i2", "i4", "i8", "f4", "f8"])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_width_holds_the_same(kind: str, channels: int) -> None:
    exact = tone(440).double().numpy()
    if kind == "u1":
        values = np.round(exact * 127 + 128).astype(kind)
    else:
        values = (exact * (1 if kind[0] == "f" else np.iinfo(kind).max)).astype(kind)
    if channels == 2:
        middle = 128 if kind == "u1" else 0
        values = np.stack([values, np.full_like(values, middle)], axis=1)  # the other side is silent
    sound = read(wav(values))
    assert sound.shape == (1, WINDOW)
    assert sound.dtype == torch.float32
    expected = torch.from_numpy(exact - exact.mean()) / channels
    assert (sound[0] - expected).abs().max() < (0.01 if kind == "u1" else 1e-4)


def test_24_bits_and_strange_chunks_are_read() -> None:
    values = (tone(440).double() * 2**23).int().numpy()
    data = values.astype("<i4").view("u1").reshape(-1, 4)[:, :3].tobytes()
    form = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 24000, 3, 24)
    body = b"WAVE" + form + b"odd " + struct.pack("<I", 4) + b"text"
    body += b"data" + struct.pack("<I", len(data)) + data
    sound = read(b"RIFF" + struct.pack("<I", len(body)) + body)
    assert (sound[0] - tone(440)).abs().max() < 1e-2
    assert sound.abs().max() < 0.51


def test_long_sounds_become_windows_and_silent_ones_are_left_out() -> None:
    parts = [tone(200), 0.0005 * tone(300), tone(400), 0.01 * tone(500), tone(600, 100)]
    windows = read(wav(torch.cat(parts)))
    assert windows.shape == (3, WINDOW)
    for window, part in zip(windows, (parts[0], parts[2], parts[3]), strict=True):
        assert (window - part).abs().max() < 1e-2


CUTS = (4, 12, 20, 36, 40, 44, 45, 100, 3000)


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (b"", ["not a complete WAV"]),
        (b"ID3 not a WAV", ["not a complete WAV"]),
        *((wav(tone(440))[:length], ["not a complete WAV", "repair"]) for length in (*CUTS, -2, -1)),
        (wav(np.full(WINDOW, np.nan, dtype=np.float32)), ["no numbers"]),
        (wav(tone(440), 44100), ["44100", "8000", "resample", "download.sounds.sample_rate"]),
        (wav(tone(440)[:-1]), ["4095 samples", "shorter than one window of 4096", "hop_length"]),
        (wav(torch.zeros(2 * WINDOW)), ["silent", "remove"]),
        (wav(np.full(WINDOW, 9000, dtype=np.int16)), ["silent"]),
        (wav(0.0005 * tone(440)), ["silent"]),
    ],
)
def test_each_fault_of_a_wav_is_named(data: bytes, parts: list[str]) -> None:
    expect_error(lambda: read(data), "it.wav: ", *parts)


def test_written_wavs_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "it.wav"
    sound = tone(440)
    write_wav(path, sound, SOUNDS.sample_rate)
    assert (read(path.read_bytes())[0] - sound).abs().max() < 1e-3
    assert [file.name for file in path.parent.iterdir()] == ["it.wav"]
    write_wav(path, 5 * sound, SOUNDS.sample_rate)  # clamped, not wrapped round
    rate, values = wavfile.read(path)
    assert rate == SOUNDS.sample_rate
    assert values.dtype == np.int16
    assert values.max() == 32767 == -values.min()


# --- seen, heard and saved


def tones(count: int) -> torch.Tensor:
    """Their spectrograms."""
    return to_spectrograms(torch.stack([tone(300 + 150 * i) for i in range(count)]), SOUNDS)


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
    modality, images = modality_of(SOUNDS), tones(3)
    assert (modality.noun, modality.num_channels) == ("sounds", 1)
    heard = modality.rendered(images)
    assert heard.dtype == torch.uint8
    assert heard.shape == images.shape
    assert torch.equal(heard, to_spectrograms(to_sounds(images, SOUNDS), SOUNDS))
    # Transforms of several frames are taken at once, which may round otherwise: to the next level.
    assert (modality.rendered(images[1:2]).int() - heard[1:2].int()).abs().max() <= 1
    noise = torch.randint(0, 256, images.shape, dtype=torch.uint8)
    kept, lost = ((modality.rendered(it).float() - it.float()).abs().mean() for it in (images, noise))
    assert lost > 3 * kept  # no sound has just any picture


def test_sounds_are_saved_to_look_at_and_to_listen_to(tmp_path: Path) -> None:
    modality, images = modality_of(SOUNDS), tones(NUM_PLAYED + 2)
    modality.save(images, tmp_path / "tuned-0.35")
    assert names(tmp_path) == ["tuned-0.35.png", "tuned-0.35.wav"]
    rate, values = wavfile.read(tmp_path / "tuned-0.35.wav")
    gap = round(GAP_S * rate)
    assert rate == SOUNDS.sample_rate
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
    modality_of(SOUNDS).save_grid(levels, tmp_path / "one.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "one.png")), colours[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("count", [1, 3])
def test_silence_stays_silent_and_can_be_played(count: int) -> None:
    black = to_spectrograms(torch.zeros(count, WINDOW), SOUNDS)
    assert black.max() == 0
    assert to_sounds(black, SOUNDS).abs().max() == 0
    played = one_after_the_other(torch.zeros(count, 10), 100)
    assert played.tolist() == [0.0] * (10 * count + 15 * (count - 1))


# --- folders


def folder(root: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def tree() -> dict[str, bytes]:
    return {
        "train/high/1.wav": wav(torch.cat([tone(2000), tone(2500), tone(3000)])),
        "train/low/1.WAV": wav(tone(200)),
        "train/low/2.wav": wav(tone(250)),
        "train/low/notes.txt": b"none",
        "test/high/1.wav": wav(tone(2100)),
        "test/low/1.wav": wav(tone(210)),
    }


def test_a_folder_of_wavs_is_a_data_set_of_sounds(tmp_path: Path) -> None:
    dataset = build("mine", mine=str(folder(tmp_path, tree())))
    assert dataset.sound == SOUNDS
    assert dataset.class_names == ("high", "low")
    assert dataset.train.labels.bincount().tolist() == [3, 2]
    assert sorted(dataset.test.labels.tolist()) == [0, 1]
    high = dataset.train.images[dataset.train.labels == 0]
    rising = high[:, 0].float().mean(2).argmax(1).argsort(descending=True)
    high = high[rising]
    expected = torch.stack([tone(frequency) for frequency in (2000, 2500, 3000)])
    difference = high.float() - to_spectrograms(expected, SOUNDS).float()
    assert difference.abs().mean() < 10  # cut at the windows


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"test/low/2.wav": wav(tone(200), 16000)}, ["test/low/2.wav", "16000"]),
        ({"test/low/2.wav": b"none"}, ["test/low/2.wav", "not a complete WAV"]),
        ({"test/middle/1.wav": wav(tone(200))}, ["train/ for 'middle'"]),
    ],
)
def test_each_fault_of_a_folder_is_named(change: dict[str, bytes], parts: list[str], tmp_path: Path) -> None:
    root = folder(tmp_path, tree() | change)
    expect_error(lambda: build("mine", mine=str(root)), str(root), *parts)


def test_pictures_and_sounds_do_not_mix(tmp_path: Path) -> None:
    buffer = bytes_io.BytesIO()
    Image.new("RGB", (40, 40)).save(buffer, "PNG")
    root = folder(tmp_path, tree() | {"train/low/3.png": buffer.getvalue()})
    expect_error(lambda: build("mine", mine=str(root)), str(root), "pictures and sounds", "3.png", "keep one")


def test_what_is_left_out_of_a_sound_is_said() -> None:
    heard: list[str] = []
    whole = tone(1000)  # of whole periods: its mean is 0, silence stays silent
    sound = torch.cat([whole, torch.zeros(WINDOW), torch.zeros(5)])
    read(wav(sound), heard.append)
    assert len(heard) == 2
    assert "silent windows" in heard[0]
    assert "ends" in heard[1]
    stereo = torch.stack([whole, whole], dim=1)
    read(wav(stereo), heard.append)
    assert "several channels" in heard[2]
    read(wav(whole), pytest.fail)
