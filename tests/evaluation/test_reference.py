"""What made pictures are compared with: figures, differences, their cache, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pelap.core.errors import ConfigError, DataError
from pelap.core.paths import REAL_ROW
from pelap.data.dataset import all_equal
from pelap.evaluation import reference as reference_module
from pelap.evaluation.features import check_images, metric_name
from pelap.evaluation.frechet import FeatureStatistics, frechet_distance, jackknife, standard_error
from pelap.evaluation.one_by_one import coverage, kid
from pelap.evaluation.reference import ImageMetrics, Reference, difference, differences, shares_recovered


class Means:
    """Mean colours of the four quarters: 12 features."""

    def __init__(self, name: str = "means", checksum: str = "abc", input_size: int | None = None) -> None:
        self.name, self.checksum, self.input_size = name, checksum, input_size
        self.seen: list[int] = []

    def __call__(self, images: Tensor) -> Tensor:
        check_images(images)
        self.seen.append(len(images))
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)


def pictures(num: int, seed: int = 0, size: int = 8, high: int = 256) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, high, (num, 3, size, size), generator=random, dtype=torch.uint8)


MADE = pictures(30, seed=1)
EQUAL = pictures(1, seed=1).repeat(20, 1, 1, 1)


def test_figures_are_those_of_the_features() -> None:
    real, made, extractor = pictures(120), pictures(90, seed=1, high=200), Means()
    reference, strata = Reference(real, [extractor]), torch.arange(90) % 10
    figures = reference.measure(made, strata=strata)
    x, y = extractor(made), extractor(real)
    statistics = FeatureStatistics.of(y)
    distance = frechet_distance(FeatureStatistics.of(x), statistics)
    assert figures.replicates == {"fd_means": pytest.approx(jackknife(x, statistics, strata), rel=1e-9)}
    expected = {
        "fd_means": pytest.approx(distance, rel=1e-9),
        "shift_means": pytest.approx(float((x.mean(0) - y.mean(0)).square().sum())),
        "fd_means_se": standard_error(figures.replicates["fd_means"]),
    }
    one_by_one = {metric_name(key, "means"): value for key, value in (kid(x, y) | coverage(x, y)).items()}
    assert figures.metrics == expected | one_by_one
    alone = reference.measure(made, only_frechet=True, strata=strata)
    assert (alone.metrics.keys(), alone.replicates) == (expected.keys(), figures.replicates)


def test_the_published_inception_gives_the_published_names() -> None:
    figures = Reference(pictures(30), [Means("inception-2015"), Means()]).measure(MADE)
    published = {"fid", "fid_se", "shift", "kid", "kid_std", "precision", "recall", "density", "coverage"}
    assert {name for name in figures.metrics if "means" not in name} == published
    assert list(figures.replicates) == ["fid", "fd_means"]


def test_what_compares_one_by_one_draws_its_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    real, made, extractor = pictures(57), pictures(33, seed=1), Means()
    monkeypatch.setattr(reference_module, "NUM_KEPT", 20)
    whole = Reference(real, [extractor]).measure(made)
    monkeypatch.setattr(reference_module, "_CHUNK", 8)
    extractor.seen.clear()
    figures = Reference(real, [extractor]).measure(made)
    assert max(extractor.seen) == 8
    assert figures.metrics == pytest.approx(whole.metrics, rel=1e-9)
    x, y = extractor(made), extractor(real)
    drawn, others = (reference_module._drawn(len(rows)) for rows in (x, y))
    assert drawn.sum() == others.sum() == 20
    assert not drawn[:20].all()  # the first ones may be of one class
    assert figures.metrics["kid_means"] == pytest.approx(kid(x[drawn], y[others])["kid"], rel=1e-9)
    assert figures.metrics["recall_means"] == coverage(x[drawn], y[others])["recall"]
    expected = frechet_distance(FeatureStatistics.of(x), FeatureStatistics.of(y))
    assert figures.metrics["fd_means"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("images", [pictures(2, seed=1), EQUAL], ids=["two", "equal"])
def test_few_and_equal_pictures_have_finite_figures(images: Tensor) -> None:
    figures = Reference(pictures(50), [Means()]).measure(images)
    json.dumps(figures.metrics, allow_nan=False)
    assert figures.metrics["fd_means"] > 0
    assert ("fd_means_se" in figures.metrics) == bool(figures.replicates["fd_means"]) == (len(images) > 2)
    assert figures.metrics.get("fd_means_se", 0) == pytest.approx(0, abs=1e-6)


# --- differences --------------------------------------------------------------------------------------


def at(value: float, *replicates: float) -> ImageMetrics:
    return ImageMetrics({"fd": value}, {"fd": replicates})


def test_every_row_is_against_all_others_but_itself() -> None:
    assert difference(at(7, 5, 7, 9), at(4, 4, 5, 6), "fd") == (3, pytest.approx(math.sqrt(2 / 3 * 2)))
    figures = {"a": at(1, 1, 1), "b": at(3, 2, 4), REAL_ROW: at(0, 0, 0)}
    table = differences(figures, ["b", "a"], ["a", "b"])
    assert list(table.columns) == ["model", "against", "metric", "difference", "se"]
    assert table.values.tolist() == [["b", "a", "fd", 2, 1.0], ["a", "b", "fd", -2, 1.0]]
    assert list(differences(figures, [], ["a"]).columns) == list(table.columns)


def recovered(pruned: ImageMetrics, tuned: ImageMetrics, dense: ImageMetrics) -> float | None:
    figures = {"dense": dense, "pruned": pruned, "tuned": tuned, REAL_ROW: at(0, 0, 0, 0)}
    assert shares_recovered(figures, {"tuned": "pruned"}, None, None) == {}
    found = shares_recovered(figures, {"tuned": "pruned"}, "dense", "dense").get("tuned", {})
    assert found.get("recovered") == found.get("recovered_as_long")
    return found.get("recovered")


@pytest.mark.parametrize(("tuned", "share"), [(6, 1.0), (8, 0.5), (10, 0.0), (12, -0.5), (5, 1.25)])
def test_share_that_was_recovered(tuned: float, share: float) -> None:
    assert recovered(at(10, 9, 10, 11), at(tuned, 1, 1, 1), at(6, 5, 6, 7)) == share


def test_error_of_a_share_is_how_far_it_scatters() -> None:
    """Over 400 draws of ten groups of pictures each, whose distances share some of their chance."""
    stream, found = np.random.default_rng(0), []
    for _ in range(400):
        shared, figures = stream.normal(0, 5, 10), {REAL_ROW: at(0, 0)}
        for name, value in {"dense": 100, "pruned": 150, "tuned": 110}.items():
            groups = value + shared + stream.normal(0, 4, 10)
            without = (groups.sum() - groups) / 9
            figures[name] = ImageMetrics({"fd": float(groups.mean())}, {"fd": tuple(without)})
        found.append(shares_recovered(figures, {"tuned": "pruned"}, "dense", None)["tuned"])
    shares, errors = (np.array([each[key] for each in found]) for key in ("recovered", "recovered_se"))
    assert shares.mean() == pytest.approx(0.8, abs=0.01)
    assert errors.mean() == pytest.approx(shares.std(), rel=0.1)


@pytest.mark.parametrize(("cost", "stated"), [(2.1, True), (1.99, False), (0, False), (-3, False)])
def test_a_share_of_what_chance_may_have_made_is_not_stated(cost: float, stated: bool) -> None:
    a = math.sqrt(0.75)  # replicates of the difference are -a, 0, a: its standard error is 1
    pruned, dense = at(5 + cost, 5 - a, 5, 5 + a), at(5, 5, 5, 5)
    assert (recovered(pruned, dense, dense) is not None) == stated
    assert recovered(at(9), at(5), at(4)) is None  # where there is no error


# --- cache ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [50, 8], ids=["moments", "rows"])
def test_the_reference_is_extracted_once(count: int, tmp_path: Path) -> None:
    real, first, second = pictures(count), Means(), Means()
    reference = Reference(real, [first], tmp_path / "cache")
    fresh = reference.measure(MADE)
    assert reference.measure(MADE) == fresh
    assert sorted(first.seen) == sorted([30, 30, count])
    again = Reference(real, [second], tmp_path / "cache").measure(MADE)
    assert second.seen == [30]
    assert again == fresh == Reference(real, [Means()]).measure(MADE)  # to the last digit
    (file,) = (tmp_path / "cache").glob("*.safetensors")
    assert file.name.startswith("fd_means-")


@pytest.mark.parametrize(
    ("real", "extractor", "code"),
    [
        (pictures(50, seed=7), Means(), ""),
        (pictures(51), Means(), ""),
        (pictures(50).reshape(50, 3, 4, 16), Means(), ""),
        (pictures(50), Means(name="others"), ""),
        (pictures(50), Means(checksum="abd"), ""),
        (pictures(50), Means(input_size=4), ""),
        (pictures(50), Means(), "pelap.evaluation.reference"),
        (pictures(50), Means(), __name__),
    ],
    ids=["pixels", "count", "shape", "name", "weights", "size", "code", "extractor's code"],
)
def test_nothing_else_is_taken_for_it(
    real: Tensor,
    extractor: Means,
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Reference(pictures(50), [Means()], tmp_path).measure(MADE)
    code_of = reference_module.code_of
    monkeypatch.setattr(reference_module, "code_of", lambda name: code if name == code else code_of(name))
    Reference(real, [extractor], tmp_path).measure(MADE.reshape(30, *real.shape[1:]))
    assert len(real) in extractor.seen
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    assert ("fd_means: made anew; kept is one of other code" in capsys.readouterr().err) == bool(code)


# --- what is said and refused -----------------------------------------------------------------------


def test_describe_says_what_figures_are_measured_with() -> None:
    described = Reference(pictures(50), [Means(input_size=4)]).describe(4)
    assert described == {
        "num_images": 4,
        "num_reference": 50,
        "extractors": {"means": {"metric": "fd_means", "input_size": 4, "num_features": 12, "sha256": "abc"}},
        "kid_subsets": 50,
        "kid_subset_size": 4,
        "neighbours": 3,
        "most_compared_one_by_one": 10_000,
        "jackknife_groups": 10,
    }
    many = Reference(pictures(50), [Means()]).describe(900)
    assert (many["kid_subset_size"], many["neighbours"]) == (50, 5)


@pytest.mark.parametrize(
    ("num_images", "num_reference", "limits", "notes"),
    [
        (13, 13, (40, 4), []),
        (12, 13, (40, 4), ["fd_means: 12 pictures and 13 reference pictures for 12 features"]),
        (13, 12, (40, 4), ["fd_means: 13 pictures and 12 reference pictures for 12 features"]),
        (21, 30, (40, 20), []),
        (20, 30, (40, 20), ["KID: a subset of 20 holds all of the smaller side"]),
        (40, 50, (40, 10), ["KID, precision, recall, density, coverage: of 40 of 50 reference pictures,"]),
        (41, 50, (40, 10), ["KID, precision, recall, density, coverage: of 40 of 41 pictures and 40 of 50"]),
    ],
)  # fmt: skip
def test_what_has_to_be_said_beside_figures(
    num_images: int, num_reference: int, limits: Any, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, limit in zip(("NUM_KEPT", "SUBSET_SIZE"), limits, strict=True):
        monkeypatch.setattr(reference_module, name, limit)
    said = Reference(pictures(num_reference), [Means()]).notes(num_images)
    assert [line[: len(note)] for line, note in zip(said, notes, strict=True)] == notes


class Broken(Means):
    def __call__(self, images: Tensor) -> Tensor:
        features = super().__call__(images)
        features[3] = float("nan")
        return features


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (pictures(9).float() / 127.5 - 1, r"expected uint8 pictures .*to_uint8 turns floats in \[-1, 1\]"),
        (pictures(1), "a single picture has no distance"),
        (pictures(9, size=16), "16x16 pixels, but the reference has 8x8"),
        (pictures(9)[:, :1], "8x8 pixels of one channel, but the reference has 8x8 pixels;"),
        (pictures(9)[:, :2], "expected uint8 pictures"),
        (pictures(0), "expected uint8 pictures"),
    ],
    ids=["floats", "one", "size", "grey", "channels", "none"],
)
def test_what_cannot_be_compared_is_refused(images: Tensor, message: str) -> None:
    extractor = Means()
    with pytest.raises(DataError, match=message) as caught:
        Reference(pictures(50), [extractor]).measure(images)
    assert "\n" not in str(caught.value)
    assert not extractor.seen  # before anything is computed


@pytest.mark.parametrize(
    ("images", "extractors", "kind", "message"),
    [
        (pictures(1), [Means()], DataError, "a single picture"),
        (pictures(9).float(), [Means()], DataError, "expected uint8"),
        (EQUAL, [Means()], DataError, "all 20 pictures are the same"),
        (pictures(9), [Means(), Means()], ConfigError, "both give fd_means; rename one"),
        (pictures(50), [Broken()], DataError, "features: NaN or infinite values in 1 of 50"),
    ],
    ids=["one", "floats", "equal", "two of one name", "no numbers"],
)
def test_what_is_no_reference_is_refused(
    images: Tensor, extractors: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        Reference(images, extractors).measure(pictures(9))


def test_one_value_makes_pictures_differ() -> None:
    almost = EQUAL.clone()
    almost[7, 0, 0, 0] ^= 1
    assert all_equal(EQUAL)
    assert not all_equal(almost)
