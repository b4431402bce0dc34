"""Pipelines and data that meet are compared by what they mean: names, noise levels, latents."""

import json
import string
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
)
from pipeline_pairs import (
    CPU,
    batches_of,
    distillation_params,
    dit_of_two_classes,
    save_data,
    save_pair,
    student_of,
)
from tiny import tiny_dataset
from tiny_pipelines import awake, same, tiny_ddim, tiny_stable_diffusion
from transformers import CLIPTokenizer

from pelap.api.models import generator_for, meet_data, warn_of_other_training
from pelap.commands.pipelines import distill_pipeline
from pelap.config import SamplerParams
from pelap.core.errors import ModelError
from pelap.core.part_io import labels_of_classes
from pelap.data.dataset import ImageDataset
from pelap.pipelines.agreement import class_numbers, differences_in_training
from pelap.pipelines.pipeline_io import load_pipeline, save_pipeline

# diffusers' Euler schedulers with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


def named(*names: str) -> DiffusionPipeline:
    dit = dit_of_two_classes()
    return DiTPipeline(dit.transformer, dit.vae, dit.scheduler, id2label=dict(enumerate(names)))


def data(*class_names: str) -> ImageDataset:
    plain = tiny_dataset(side=16)
    return ImageDataset("named", plain.train, plain.test, class_names, "", "")


@pytest.mark.parametrize(
    ("pipeline", "classes", "numbers"),
    [
        (("zebra", "ant"), ("ant", "zebra"), [1, 0]),
        (("zebra", "ant"), ("ant",), [1]),  # a part of what it knows
        (("tench, Tinca tinca", "ant"), ("ant", "Tench,_Tinca_tinca"), [1, 0]),
        (("zebra, striped horse", "Army_Ant"), ("army ant", "striped horse"), [1, 0]),
        (("caf\u00e9", "tea"), ("tea", unicodedata.normalize("NFD", "caf\u00e9")), [1, 0]),
        ((), ("1", "0"), [1, 0]),
        ((), ("001",), [1]),
        ((), ("even", "odd"), [0, 1]),
    ],
)
def test_classes_have_the_numbers_of_their_names(
    pipeline: tuple[str, ...],
    classes: tuple[str, ...],
    numbers: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    pipe = named(*pipeline) if pipeline else dit_of_two_classes()
    assert class_numbers(pipe, pipe.transformer, classes) == numbers
    said = capsys.readouterr().out
    assert ("by their order even" in said) == (classes == ("even", "odd"))


@pytest.mark.parametrize(
    ("pipeline", "classes", "words"),
    [
        (("zebra", "ant"), ("ant", "bee"), "no class called 'bee'"),
        (("crane", "crane"), ("crane",), "2 classes called 'crane'"),
        (("zebra", "ant"), ("0", "1"), "no class called '0'"),
        ((), ("a", "b", "c"), "2 classes, the data have 3"),
        ((), ("0", "2"), "the data 0 .0., 2 .2."),
        ((), ("1", "01"), "the data 1 .1., 01 .1."),
        (("tench, Tinca tinca", "ant"), ("tench", "tinca tinca"), "tench .0., tinca tinca .0."),
        (("a", "b", "c"), ("c",), "has the classes 0..1, the data c .2."),
    ],
)
def test_classes_without_a_certain_number_are_refused(
    pipeline: tuple[str, ...], classes: tuple[str, ...], words: str
) -> None:
    pipe = named(*pipeline) if pipeline else dit_of_two_classes()
    if pipeline == ("crane", "crane"):
        pipe.register_to_config(id2label={"0": "crane", "1": "crane"})  # as a folder has it
    with pytest.raises(ModelError, match=words) as caught:
        class_numbers(pipe, pipe.transformer, classes)
    assert "\n" not in str(caught.value)


def test_pictures_are_taught_under_the_number_of_their_class() -> None:
    pictures = data("ant", "zebra")
    for split in (pictures.train, pictures.test):  # the first pixel says the label
        split.images[:, :, 0, 0] = split.labels[:, None].to(torch.uint8) * 255
    batches = batches_of(named("zebra", "ant"), pictures, distill__horizontal_flip=False)
    seen: set[tuple[bool, int]] = set()
    original = batches._noisy

    def look(shown: torch.Tensor, labels: torch.Tensor, stream: torch.Generator) -> Any:
        batch = original(shown, labels, stream)
        bright = (shown[:, 0, 0, 0] > 0).tolist()
        seen.update(zip(bright, batch.conditions["class_labels"].tolist(), strict=True))
        return batch

    batches._noisy = look  # type: ignore[method-assign]
    for _ in zip(range(20), batches(0), strict=False):
        pass
    assert seen == {(False, 1), (True, 0), (False, 2), (True, 2)}


def test_schedulers_of_one_training_agree() -> None:
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    schedulers = (
        DDIMScheduler(**betas, clip_sample=False),
        DPMSolverMultistepScheduler(**betas),
        EulerDiscreteScheduler(**betas),
    )
    first, *others = (tiny_stable_diffusion(scheduler) for scheduler in schedulers)
    for other in others:
        other.vae = first.vae
        assert differences_in_training(other, first) == []


def other_encoder(pipe: DiffusionPipeline) -> None:
    awake(pipe.vae.encoder, seed=7)


def other_decoder(pipe: DiffusionPipeline) -> None:
    awake(pipe.vae.decoder, seed=7)


def other_scale(pipe: DiffusionPipeline) -> None:
    pipe.vae.register_to_config(scaling_factor=0.5)


def rounded(pipe: DiffusionPipeline) -> None:
    pipe.vae.half().float()


@pytest.mark.parametrize(
    ("change", "parts"),
    [(other_encoder, ["latents"]), (other_scale, ["latents"]), (other_decoder, []), (rounded, [])],
)
def test_parts_of_a_training_are_compared_by_what_they_do(
    change: Callable[[DiffusionPipeline], None], parts: list[str]
) -> None:
    pipes = []
    for _ in range(2):
        torch.manual_seed(0)
        pipes.append(tiny_stable_diffusion())
    pipe, other = pipes
    assert differences_in_training(other, pipe) == []
    change(other)
    assert differences_in_training(other, pipe) == parts


def test_names_are_compared_where_both_have_some() -> None:
    assert differences_in_training(tiny_ddim(), tiny_ddim()) == []
    assert differences_in_training(named("a", "b"), named("b", "a"))[-1:] == ["class names"]
    assert "class names" not in differences_in_training(dit_of_two_classes(), named("a", "b"))


@pytest.mark.parametrize(
    "scheduler", [{"prediction_type": "v_prediction"}, {"beta_end": 0.012}, {"num_train_timesteps": 500}]
)
def test_a_student_learns_and_is_saved_with_the_teachers_scheduler(
    tmp_path: Path, scheduler: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    dense, pruned = save_pair(tmp_path, "ddim")
    DDIMScheduler(**scheduler).save_pretrained(dense / "scheduler")
    params = distillation_params(distill__students=student_of(task_weight=1.0), distill__steps=3)
    store = save_data(tmp_path / "data", tiny_dataset(side=8))
    distill_pipeline(params, pruned, dense, store, tmp_path / "out", CPU)
    assert "with the teacher's scheduler" in capsys.readouterr().out
    config = load_pipeline(tmp_path / "out").scheduler.config
    assert {name: config[name] for name in scheduler} == scheduler


def test_a_student_of_other_latents_is_refused(tmp_path: Path) -> None:
    dense, pruned = save_pair(tmp_path, "stable_diffusion")
    pipe = load_pipeline(dense)
    other_encoder(pipe)
    save_pipeline(pipe, dense)
    store = save_data(tmp_path / "data", tiny_dataset(side=16))
    with pytest.raises(ModelError, match="has another latents than") as caught:
        distill_pipeline(distillation_params(), pruned, dense, store, tmp_path / "out", CPU)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def other_text_encoder(pipe: DiffusionPipeline) -> None:
    awake(pipe.text_encoder, seed=7)


def other_tokenizer(pipe: DiffusionPipeline) -> None:
    letters = [letter + end for letter in reversed(string.ascii_lowercase) for end in ("", "</w>")]
    words = ["<|startoftext|>", "<|endoftext|>", *letters]
    vocabulary = {word: number for number, word in enumerate(words)}
    pipe.tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16)


def in_half_precision(pipe: DiffusionPipeline) -> None:
    pipe.text_encoder.half().float()
    pipe.vae.half().float()


@pytest.mark.parametrize("change", [other_text_encoder, other_tokenizer, in_half_precision])
def test_captions_mean_the_same_to_teacher_and_student(
    tmp_path: Path, change: Callable[[DiffusionPipeline], None]
) -> None:
    dense, pruned = save_pair(tmp_path, "stable_diffusion")
    pipe = load_pipeline(dense)
    change(pipe)
    save_pipeline(pipe, dense)
    store = save_data(tmp_path / "data", tiny_dataset(side=16))
    params = distillation_params(distill__students=student_of(task_weight=1.0), distill__steps=3)
    if change is in_half_precision:
        distill_pipeline(params, pruned, dense, store, tmp_path / "out", CPU)
        return
    with pytest.raises(ModelError, match="another meaning of captions"):
        distill_pipeline(params, pruned, dense, store, tmp_path / "out", CPU)


def test_an_evaluation_asks_for_the_classes_of_the_data(tmp_path: Path) -> None:
    dense, _ = save_pair(tmp_path, "dit")
    index = dense / "model_index.json"
    index.write_text(index.read_text().rstrip("}\n ") + ', "id2label": {"0": "zebra", "1": "ant"}}')
    for names, classes in ((("ant", "zebra"), [1, 0]), (("ant",), [1])):
        maker = generator_for(load_pipeline(dense), None, SamplerParams(kind="ddim", steps=4))
        meet_data(maker, "dense", data(*names))
        assert list(maker.classes) == classes
    noise = torch.randn(2, *maker.latent_shape)
    of_ants = maker.denoise(noise, [0, 1], seed=0)
    maker.classes = [0, 1]
    asked = maker.denoise(noise, [0, 1], seed=0)
    assert same(of_ants[1:], asked[1:])
    assert not same(of_ants[:1], asked[:1])


def test_names_of_classes_stay_with_a_pipeline(tmp_path: Path) -> None:
    labels = {0: "crane", 1: "crane, bird"}
    pipe = named("zebra, striped horse", "ant")
    save_pipeline(pipe, tmp_path / "made")
    assert load_pipeline(tmp_path / "made").labels == pipe.labels
    index = tmp_path / "made" / "model_index.json"
    content = json.loads(index.read_text()) | {"id2label": labels}  # two of one name: diffusers keeps one
    index.write_text(json.dumps(content))
    save_pipeline(load_pipeline(tmp_path / "made"), tmp_path / "ours")
    load_pipeline(tmp_path / "made").save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        assert labels_of_classes(load_pipeline(tmp_path / folder)) == labels


def test_pipelines_of_other_trainings_are_told_of_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, pruned = save_pair(tmp_path, "ddim")
    warn_of_other_training({"dense": load_pipeline(dense), "pruned": load_pipeline(pruned)})
    assert "has another" not in capsys.readouterr().out
    DDIMScheduler(prediction_type="v_prediction").save_pretrained(pruned / "scheduler")
    warn_of_other_training({"dense": load_pipeline(dense), "pruned": load_pipeline(pruned)})
    assert "pruned has another prediction type than dense" in capsys.readouterr().out
