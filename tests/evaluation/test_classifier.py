"""The classifier of a data set: what it learns, what is kept of it, and what is refused."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pelap.config import ClassifierParams
from pelap.core.errors import ConfigError, DataError, TrainingError
from pelap.data.dataset import ImageDataset, Split
from pelap.evaluation import classifier as classifier_module
from pelap.evaluation.classifier import Classifier, agreement, trained_classifier
from pelap.evaluation.reference import Reference

CPU = torch.device("cpu")
PARAMS = ClassifierParams(steps=30, batch_size=16, lr=0.01, width=4, horizontal_flip=False)


def stripes(num: int, channels: int, side: int, seed: int) -> Split:
    """Stripes that go up (0), across (1) or nowhere (2), under noise."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % 3
    wave = 60 * (torch.arange(side) // 2 % 2)
    drawn = torch.stack([wave[None, :].expand(side, side), wave[:, None].expand(side, side)])
    shown = torch.cat([drawn, torch.full((1, side, side), 30)])[labels]
    noise = torch.randint(0, 120, (num, channels, side, side), generator=random)
    return Split((noise + shown[:, None]).to(torch.uint8), labels)


def dataset_of(channels: int = 3, side: int = 16, num_train: int = 96) -> ImageDataset:
    train, test = stripes(num_train, channels, side, 0), stripes(30, channels, side, 1)
    return ImageDataset("stripes", train, test, ("up", "across", "none"), "made", "0" * 64)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def trained(cache: Path) -> Classifier:
    return trained_classifier(dataset_of(), PARAMS, 0, CPU, cache)


@pytest.fixture
def untrainable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training is an error: what is asked for has to be there."""
    monkeypatch.setattr(classifier_module, "_train", lambda *_: pytest.fail("trained again"))


# --- what it learns ---------------------------------------------------------------------------------


def test_it_tells_the_classes_apart(trained: Classifier) -> None:
    test = dataset_of().test
    labels = trained.labels_of(test.images)
    assert labels.dtype == torch.int64
    assert trained.test_accuracy == (labels == test.labels).double().mean().item() > 0.9
    assert trained.num_test == 30


@pytest.mark.parametrize(("channels", "side"), [(1, 64), (3, 20), (1, 32)])
def test_pictures_of_other_shapes(channels: int, side: int, tmp_path: Path) -> None:
    dataset = dataset_of(channels, side)
    classifier = trained_classifier(dataset, PARAMS, 0, CPU, tmp_path)
    features = classifier(dataset.test.images)
    assert (features.shape, features.dtype) == ((30, 16), torch.float32)
    assert features.isfinite().all()
    assert classifier.test_accuracy > 0.5


def test_first_layer_brings_large_pictures_down() -> None:
    for side, first in ((12, 12), (16, 16), (32, 16), (48, 24), (64, 16), (256, 16)):
        network = classifier_module._Network(1, side, 2, 2)
        assert network.body[0](torch.zeros(1, 1, side, side)).shape[-2:] == (first, first)


def test_its_features_do_not_depend_on_the_batch_or_on_the_caller(trained: Classifier) -> None:
    images = dataset_of().test.images
    together = trained(images)
    torch.testing.assert_close(torch.cat([trained(one) for one in images.split(7)]), together)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(trained(images), together)
        assert torch.equal(trained.labels_of(images), trained._head(together).argmax(1))
    assert not together.requires_grad


def test_as_an_extractor(trained: Classifier) -> None:
    dataset = dataset_of()
    reference = Reference(dataset.train.images, [trained])
    metrics = reference.measure(dataset.test.images).metrics
    assert metrics["fd_classifier"] >= 0
    described = reference.describe(30)["extractors"]["classifier"]
    assert described["sha256"] == trained.checksum
    assert (described["num_features"], described["input_size"]) == (16, None)


def test_training_leaves_random_numbers_alone(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    trained_classifier(dataset_of(), PARAMS, 0, CPU, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_rate_rises_and_falls_once() -> None:
    for steps in (1, 2, 30, 500):
        rates = [classifier_module._rate(step, steps) for step in range(steps)]
        top = rates.index(max(rates))
        assert max(rates) == 1
        assert rates[: top + 1] == sorted(rates[: top + 1])
        assert rates[top:] == sorted(rates[top:], reverse=True)
        assert all(rate > 0 for rate in rates)
    assert rates[0] < 0.05 > rates[-1]


def test_flips_only_where_they_are_asked_for() -> None:
    dataset = dataset_of()
    for flip in (False, True):
        batches = classifier_module._batches(
            dataset, PARAMS.model_copy(update={"horizontal_flip": flip}), 0, CPU
        )
        originals = {image.numpy().tobytes() for image in dataset.train.images}
        seen = [((image + 1) * 127.5).round().to(torch.uint8) for image in next(batches)[0]]
        strange = [image for image in seen if image.contiguous().numpy().tobytes() not in originals]
        assert bool(strange) == flip
        assert all(image.flip(-1).contiguous().numpy().tobytes() in originals for image in strange)


# --- agreement --------------------------------------------------------------------------------------


def test_agreement_counts_known_prompts_alone(trained: Classifier) -> None:
    images = dataset_of().test.images[:6]
    taken = trained.labels_of(images)
    asked = torch.stack([taken[0], taken[1], taken[2], (taken[3] + 1) % 3, *taken[4:]])
    asked[4:] = -1
    found = agreement(trained, images, asked)
    assert found["prompt_agreement"] == 0.75
    share = (3 + 2) / (4 + 4)  # two more of either kind
    assert found["prompt_agreement_se"] == pytest.approx(math.sqrt(share * (1 - share) / 8))
    assert agreement(trained, images, torch.full((6,), -1)) == {}


# --- what is kept -----------------------------------------------------------------------------------


def test_kept_equals_fresh(trained: Classifier, cache: Path, tmp_path: Path) -> None:
    fresh = trained_classifier(dataset_of(), PARAMS, 0, CPU, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier_module, "_train", lambda *_: pytest.fail("trained again"))
        kept = trained_classifier(dataset_of(), PARAMS, 0, CPU, cache)
    images = dataset_of().test.images
    for other in (fresh, kept):
        assert other.checksum == trained.checksum
        assert (other.test_accuracy, other.num_test) == (trained.test_accuracy, trained.num_test)
        assert torch.equal(other(images), trained(images))
        assert torch.equal(other.labels_of(images), trained.labels_of(images))


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def changed_split(split: Split, **fields: Any) -> Split:
    return replace(split, **{name: change(getattr(split, name).clone()) for name, change in fields.items()})


def nudged(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.view(-1)
    flat[7] = 1 - flat[7].clamp(max=1)
    return tensor


OTHERS: dict[str, Callable[[ImageDataset], tuple[ImageDataset, ClassifierParams, int]]] = {
    "pixels": lambda d: (replace(d, train=changed_split(d.train, images=nudged)), PARAMS, 0),
    "labels": lambda d: (replace(d, train=changed_split(d.train, labels=nudged)), PARAMS, 0),
    "test": lambda d: (replace(d, test=changed_split(d.test, images=nudged)), PARAMS, 0),
    "classes": lambda d: (replace(d, class_names=("a", "b", "c", "d")), PARAMS, 0),
    "params": lambda d: (d, PARAMS.model_copy(update={"steps": 29}), 0),
    "seed": lambda d: (d, PARAMS, 1),
    "code": lambda d: (d, PARAMS, 0),
}


@pytest.mark.parametrize("what", OTHERS)
def test_nothing_else_is_taken_for_it(
    what: str, trained: Classifier, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_in(cache)
    if what == "code":
        monkeypatch.setattr(classifier_module, "code_of", lambda module: "edited")
    trained_classifier(*OTHERS[what](dataset_of()), CPU, cache)
    assert len(files_in(cache)) == len(before) + 1


def test_names_do_not_count(trained: Classifier, cache: Path, untrainable: None) -> None:
    renamed = replace(dataset_of(), name="other", class_names=("a", "b", "c"))
    assert trained_classifier(renamed, PARAMS, 0, CPU, cache).checksum == trained.checksum


# --- what is refused --------------------------------------------------------------------------------


def one_line(caught: pytest.ExceptionInfo[Exception]) -> bool:
    return "\n" not in str(caught.value)


def test_other_pictures_are_refused(trained: Classifier) -> None:
    for images in (dataset_of(1).test.images, dataset_of(3, 20).test.images):
        for call in (trained, trained.labels_of):
            with pytest.raises(DataError, match="learnt from pictures of") as caught:
                call(images)
            assert one_line(caught)


def test_a_loss_that_is_no_number_is_told(tmp_path: Path) -> None:
    wild = PARAMS.model_copy(update={"lr": 1e30})
    with pytest.raises(
        TrainingError, match=r"loss at step \d+: nan is no finite number; lower evaluate\.classifier\.lr"
    ) as e:
        trained_classifier(dataset_of(), wild, 0, CPU, tmp_path)
    assert one_line(e)
    assert not files_in(tmp_path)


def test_what_cannot_be_learnt_is_told_before(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"evaluate\.classifier\.batch_size: 16 exceeds the 12 train"
    ) as caught:
        trained_classifier(dataset_of(num_train=12), PARAMS, 0, CPU, tmp_path)
    assert one_line(caught)
    alone = replace(dataset_of(), class_names=("one",))
    with pytest.raises(ConfigError, match="a single class"):
        trained_classifier(alone, PARAMS, 0, CPU, tmp_path)
    assert not files_in(tmp_path)
