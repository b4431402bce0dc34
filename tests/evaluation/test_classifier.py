"""The classifier of a data set: what it learns, what is kept of it, and what is refused."""

import math
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


# --- what it learns ---------------------------------------------------------------------------------


def test_it_tells_the_classes_apart(trained: Classifier) -> None:
    test = dataset_of().test
    labels = trained.labels_of(test.images)
    assert labels.dtype == torch.int64
    assert trained.test_accuracy == (labels == test.labels).double().mean().item() > 0.9
    assert trained.num_test == 30


@pytest.mark.parametrize(("channels", "side"), [(1, 64), (3, 20)])
def test_pictures_of_other_shapes(channels: int, side: int) -> None:
    dataset = dataset_of(channels, side)
    state = torch.get_rng_state()
    classifier = trained_classifier(dataset, PARAMS, 0, CPU)
    assert torch.equal(torch.get_rng_state(), state)
    features = classifier(dataset.test.images)
    assert (features.shape, features.dtype) == ((30, 16), torch.float32)
    assert classifier.test_accuracy > 0.5


def test_first_layer_brings_large_pictures_down() -> None:
    for side, first in ((12, 12), (16, 16), (32, 16), (48, 24), (64, 16), (256, 16)):
        body, _ = classifier_module._network(1, side, 2, 2)
        assert body[0](torch.zeros(1, 1, side, side)).shape[-2:] == (first, first)  # type: ignore[index]


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
    assert reference.measure(dataset.test.images).metrics["fd_classifier"] >= 0
    described = reference.describe(30)["extractors"]["classifier"]
    assert described["sha256"] == trained.checksum
    assert (described["num_features"], described["input_size"]) == (16, None)


def test_rate_rises_and_falls_once() -> None:
    for steps in (1, 2, 30, 500):
        rates = [classifier_module._rate(step, steps) for step in range(steps)]
        top = rates.index(max(rates))
        assert max(rates) == 1
        assert rates[: top + 1] == sorted(rates[: top + 1])
        assert rates[top:] == sorted(rates[top:], reverse=True)
        assert all(rate > 0 for rate in rates)
    assert rates[0] < 0.05 > rates[-1]


@pytest.mark.parametrize("flip", [False, True])
def test_flips_only_where_they_are_asked_for(flip: bool) -> None:
    dataset, params = dataset_of(), PARAMS.model_copy(update={"horizontal_flip": flip})
    originals = {image.numpy().tobytes() for image in dataset.train.images}
    batch, _ = next(classifier_module._batches(dataset, params, 0, CPU))
    seen = [((image + 1) * 127.5).round().to(torch.uint8).contiguous() for image in batch]
    strange = [image for image in seen if image.numpy().tobytes() not in originals]
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


def test_kept_equals_fresh(trained: Classifier, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = trained_classifier(dataset_of(), PARAMS, 0, CPU)
    monkeypatch.setattr(classifier_module, "_train", lambda *_: pytest.fail("trained again"))
    kept = trained_classifier(dataset_of(), PARAMS, 0, CPU, cache)
    for other in (fresh, kept):
        assert other.checksum == trained.checksum
        assert (other.test_accuracy, other.num_test) == (trained.test_accuracy, trained.num_test)
    assert torch.equal(kept(dataset_of().test.images), trained(dataset_of().test.images))
    renamed = replace(dataset_of(), name="other", class_names=("a", "b", "c"))  # names do not count
    assert trained_classifier(renamed, PARAMS, 0, CPU, cache).checksum == trained.checksum


def nudged(dataset: ImageDataset, split: str, field: str) -> dict[str, Any]:
    """Another data set: one value is another."""
    values = getattr(getattr(dataset, split), field).clone()
    values.view(-1)[7] = 1 - values.view(-1)[7].clamp(max=1)
    return {"dataset": replace(dataset, **{split: replace(getattr(dataset, split), **{field: values})})}


DATA = dataset_of()


@pytest.mark.parametrize(
    "other",
    [
        nudged(DATA, "train", "images"),
        nudged(DATA, "train", "labels"),
        nudged(DATA, "test", "images"),
        {"dataset": replace(DATA, class_names=("a", "b", "c", "d"))},
        {"params": PARAMS.model_copy(update={"steps": 29})},
        {"seed": 1},
        {"code": "edited"},
    ],
    ids=["pixels", "labels", "test", "classes", "params", "seed", "code"],
)
def test_nothing_else_is_taken_for_it(
    other: dict[str, Any], trained: Classifier, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(list(cache.glob("*.safetensors")))
    if "code" in other:
        monkeypatch.setattr(classifier_module, "code_of", lambda module: other["code"])
    of = {"dataset": DATA, "params": PARAMS, "seed": 0} | other
    trained_classifier(of["dataset"], of["params"], of["seed"], CPU, cache)
    assert len(list(cache.glob("*.safetensors"))) == before + 1


# --- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", [dataset_of(1), dataset_of(3, 20)], ids=["grey", "larger"])
def test_other_pictures_are_refused(dataset: ImageDataset, trained: Classifier) -> None:
    for call in (trained, trained.labels_of):
        with pytest.raises(DataError, match="learnt from pictures of") as caught:
            call(dataset.test.images)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "lr", "kind", "says"),
    [
        (DATA, 1e30, TrainingError, r"step \d+: nan is no finite number; lower evaluate\.classifier\.lr"),
        (dataset_of(num_train=12), 0.1, DataError, r"classifier\.batch_size: 16 exceeds the 12 train"),
        (replace(DATA, class_names=("one",)), 0.1, ConfigError, "a single class"),
    ],
    ids=["loss", "few", "one class"],
)  # fmt: skip
def test_what_cannot_be_learnt_is_told(
    dataset: ImageDataset, lr: float, kind: type[Exception], says: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=says) as caught:
        trained_classifier(dataset, PARAMS.model_copy(update={"lr": lr}), 0, CPU, tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.safetensors"))
