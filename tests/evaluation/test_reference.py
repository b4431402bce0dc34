"""What made pictures are compared with: figures, their cache, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pelap.core.errors import ConfigError, DataError
from pelap.data.dataset import all_equal
from pelap.evaluation import reference as reference_module
from pelap.evaluation.features import check_images, metric_name
from pelap.evaluation.frechet import FeatureStatistics, frechet_distance, jackknife, standard_error
from pelap.evaluation.image_metrics import ImageMetrics
from pelap.evaluation.kid import kid
from pelap.evaluation.prdc import coverage
from pelap.evaluation.reference import Reference

FIGURES = {"kid", "kid_std", "precision", "recall", "density", "coverage"}


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


def test_figures_are_those_of_the_features() -> None:
    real, made, extractor = pictures(120), pictures(90, seed=1, high=200), Means()
    figures = Reference(real, [extractor]).measure(made)
    x, y = extractor(made), extractor(real)
    statistics = FeatureStatistics.of(y)
    assert figures.metrics.keys() == {
        "fd_means", "fd_means_se", "shift_means", "kid_means", "kid_means_std",
        "precision_means", "recall_means", "density_means", "coverage_means",
    }  # fmt: skip
    assert figures.metrics["fd_means"] == pytest.approx(
        frechet_distance(FeatureStatistics.of(x), statistics), rel=1e-9
    )
    assert figures.metrics["shift_means"] == pytest.approx(float((x.mean(0) - y.mean(0)).square().sum()))
    assert figures.replicates == {"fd_means": pytest.approx(jackknife(x, statistics), rel=1e-9)}
    assert figures.metrics["fd_means_se"] == standard_error(figures.replicates["fd_means"])
    for quantity, value in (kid(x, y) | coverage(x, y)).items():
        assert figures.metrics[metric_name(quantity, "means")] == value


def test_the_published_inception_gives_the_published_names() -> None:
    reference = Reference(pictures(30), [Means("inception-2015"), Means()])
    figures = reference.measure(pictures(30, seed=1))
    assert {"fid", "fid_se", *FIGURES, "fd_means"} <= figures.metrics.keys()
    assert list(figures.replicates) == ["fid", "fd_means"]


def test_the_frechet_distance_alone() -> None:
    reference = Reference(pictures(30), [Means()])
    short, full = (
        reference.measure(pictures(30, seed=1), only_frechet=True),
        reference.measure(pictures(30, seed=1)),
    )
    assert short.metrics == {name: full.metrics[name] for name in ("fd_means", "fd_means_se", "shift_means")}
    assert short.replicates == full.replicates


def test_pictures_are_given_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    real, made = pictures(57), pictures(33, seed=1)
    whole = Reference(real, [Means()]).measure(made)
    monkeypatch.setattr(reference_module, "_CHUNK", 8)
    extractor = Means()
    pieces = Reference(real, [extractor]).measure(made)
    assert max(extractor.seen) == 8
    assert pieces.metrics == pytest.approx(whole.metrics, rel=1e-9)


def test_what_compares_one_by_one_draws_its_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_module, "NUM_KEPT", 20)
    monkeypatch.setattr(reference_module, "_CHUNK", 8)
    real, made, extractor = pictures(57), pictures(33, seed=1), Means()
    figures = Reference(real, [extractor]).measure(made)
    x, y = extractor(made), extractor(real)
    drawn, others = (reference_module._drawn(len(rows)) for rows in (x, y))
    assert drawn.sum() == others.sum() == 20
    assert not drawn[:20].all()
    assert not others[:20].all()
    assert figures.metrics["kid_means"] == pytest.approx(kid(x[drawn], y[others])["kid"], rel=1e-9)
    assert figures.metrics["recall_means"] == coverage(x[drawn], y[others])["recall"]
    expected = frechet_distance(FeatureStatistics.of(x), FeatureStatistics.of(y))
    assert figures.metrics["fd_means"] == pytest.approx(expected, rel=1e-9)


def test_pictures_one_by_one_do_not_depend_on_names_of_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_module, "NUM_KEPT", 60)
    real = (
        pictures(90, high=20).view(3, 30, 3, 8, 8) + torch.tensor([0, 90, 180])[:, None, None, None, None]
    ).flatten(0, 1)
    real = real.to(torch.uint8)  # one class after the other
    made = real[::3]
    metrics = Reference(real, [Means()]).measure(made).metrics
    assert metrics["precision_means"] > 0.9  # each lies in the balls of its own class
    assert metrics["recall_means"] > 0.9


def test_the_number_that_was_drawn_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_module, "NUM_KEPT", 40)
    monkeypatch.setattr(reference_module, "SUBSET_SIZE", 10)
    reference = Reference(pictures(50), [Means()])
    assert reference.notes(40) == [
        "KID, precision, recall, density, coverage: of 40 of 50 reference pictures, drawn at random"
    ]
    (note,) = reference.notes(41)
    assert "of 40 of 41 pictures and 40 of 50 reference pictures" in note
    assert reference.describe(41)["most_compared_one_by_one"] == 40


def test_errors_are_those_of_what_was_asked_for_in_turn() -> None:
    real, extractor, asked = pictures(120), Means(), torch.arange(90) % 10
    made = pictures(90, seed=1, high=20) + (20 * asked[:, None, None, None]).to(torch.uint8)
    figures = Reference(real, [extractor]).measure(made, only_frechet=True, strata=asked)
    expected = jackknife(extractor(made), FeatureStatistics.of(extractor(real)), asked)
    assert figures.replicates["fd_means"] == pytest.approx(expected, rel=1e-9)


def test_two_pictures_have_a_distance_without_an_error() -> None:
    figures = Reference(pictures(30), [Means()]).measure(pictures(2, seed=1))
    assert figures.replicates == {"fd_means": ()}
    assert "fd_means_se" not in figures.metrics
    json.dumps(figures.metrics, allow_nan=False)


# --- cache ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [50, 8], ids=["moments", "rows"])
def test_the_reference_is_extracted_once(count: int, tmp_path: Path) -> None:
    real, made = pictures(count), pictures(30, seed=1)
    first, second = Means(), Means()
    fresh = Reference(real, [first], tmp_path / "cache").measure(made)
    again = Reference(real, [second], tmp_path / "cache").measure(made)
    assert sorted(first.seen) == sorted([30, count])
    assert second.seen == [30]
    assert again == fresh  # to the last digit
    assert Reference(real, [Means()]).measure(made) == fresh
    (file,) = (tmp_path / "cache").glob("*.safetensors")
    assert file.name.startswith("fd_means-")


def test_a_reference_extracts_once_for_all_that_it_measures() -> None:
    extractor = Means()
    reference = Reference(pictures(50), [extractor])
    for seed in (1, 2):
        reference.measure(pictures(30, seed=seed))
    assert sorted(extractor.seen) == [30, 30, 50]


@pytest.mark.parametrize(
    ("real", "extractor"),
    [
        (pictures(50, seed=7), Means()),
        (pictures(51), Means()),
        (pictures(50).flip(0), Means()),
        (pictures(50).reshape(50, 3, 4, 16), Means()),
        (pictures(50), Means(name="others")),
        (pictures(50), Means(checksum="abd")),
        (pictures(50), Means(input_size=4)),
    ],
    ids=["pixels", "count", "order", "shape", "name", "weights", "size"],
)
def test_nothing_else_is_taken_for_it(real: Tensor, extractor: Means, tmp_path: Path) -> None:
    Reference(pictures(50), [Means()], tmp_path).measure(pictures(30, seed=1))
    Reference(real, [extractor], tmp_path).measure(pictures(30, seed=1).reshape(30, *real.shape[1:]))
    assert len(real) in extractor.seen
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_features_of_other_code_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, made, code = pictures(50), pictures(30, seed=1), reference_module.code_of
    Reference(real, [Means()], tmp_path).measure(made)
    Reference(pictures(40), [Means()], tmp_path).measure(made)
    assert not capsys.readouterr().err  # of other pictures there may be features too
    for changed in ("pelap.evaluation.reference", __name__):

        def edited(module: str, changed: str = changed) -> str:
            return f"edited {changed}" if module == changed else code(module)

        monkeypatch.setattr(reference_module, "code_of", edited)
        extractor = Means()
        Reference(real, [extractor], tmp_path).measure(made)
        assert 50 in extractor.seen
        assert "fd_means: made anew; kept is one of other code" in capsys.readouterr().err


# --- what is said and refused -----------------------------------------------------------------------


def test_describe_says_what_figures_are_measured_with() -> None:
    described = Reference(pictures(50), [Means(input_size=4)]).describe(4)
    json.dumps(described, allow_nan=False)
    assert described["num_reference"] == 50
    assert described["extractors"] == {
        "means": {"metric": "fd_means", "input_size": 4, "num_features": 12, "sha256": "abc"}
    }
    assert described["jackknife_groups"] == 10
    assert (described["kid_subset_size"], described["neighbours"]) == (4, 3)
    many = Reference(pictures(50), [Means()]).describe(900)
    assert (many["kid_subset_size"], many["neighbours"]) == (50, 5)


@pytest.mark.parametrize(
    ("num_images", "num_reference", "said"), [(13, 13, False), (12, 13, True), (13, 12, True), (5, 5, True)]
)
def test_few_pictures_are_said_beside_the_figure(
    num_images: int, num_reference: int, said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pelap.evaluation.reference.SUBSET_SIZE", 4)
    notes = Reference(pictures(num_reference), [Means()]).notes(num_images)
    first = f"fd_means: {num_images} pictures and {num_reference} reference pictures for 12 features"
    assert [note.startswith(first) for note in notes] == [True] * said


def test_a_subset_that_is_the_whole_side_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pelap.evaluation.reference.SUBSET_SIZE", 20)
    reference = Reference(pictures(30), [Means()])
    assert not reference.notes(21)
    assert [note.partition(":")[0] for note in reference.notes(20)] == ["KID"]


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


def test_features_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(DataError, match="features: NaN or infinite values in 1 of 50") as caught:
        Reference(pictures(50), [Broken()]).measure(pictures(9))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("images", "kind", "message"),
    [
        (pictures(1), DataError, "a single picture"),
        (pictures(9).float(), DataError, "expected uint8"),
        (pictures(1, seed=1).repeat(20, 1, 1, 1), DataError, "all 20 pictures are the same"),
        (pictures(9), ConfigError, "both give fd_means; rename one"),
    ],
    ids=["one", "floats", "equal", "two of one name"],
)
def test_what_is_no_reference_is_refused(images: Tensor, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        Reference(images, [Means(), Means(checksum="other")])


def test_equal_pictures_have_figures_and_are_told() -> None:
    equal = pictures(1, seed=1).repeat(20, 1, 1, 1)
    almost = equal.clone()
    almost[7, 0, 0, 0] ^= 1
    assert all_equal(equal)
    assert not all_equal(almost)
    figures = Reference(pictures(50), [Means()]).measure(equal)
    assert isinstance(figures, ImageMetrics)
    json.dumps(figures.metrics, allow_nan=False)
    assert figures.metrics["fd_means"] > 0
    assert figures.metrics["fd_means_se"] == pytest.approx(0, abs=1e-6)
