"""Parameters are checked before anything else, and every offending key is named at once."""

from pathlib import Path
from typing import Any

import pytest
from tiny import ROOT, raw_params, tiny_raw

from pelap import config
from pelap.config import STAGE_KEYS, STAGES, load_params, parse_params, read_yaml, select_keys
from pelap.data.photos import PHOTOGRAPHS
from pelap.errors import ConfigError
from pelap.models.light_unet import MAX_GROUPS
from pelap.models.vae import DOWNSAMPLING


def _message(**overrides: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_params(raw_params(**overrides), "params.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *sorted((ROOT / "presets").glob("*.yaml"))], ids=str)
def test_shipped_parameters_are_valid(path: Path) -> None:
    load_params(path)


def test_default_lambda() -> None:
    assert load_params(ROOT / "params.yaml").lambda_ == 0.001


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"trian": 3}, "trian: unknown key"),
        ({"train__lrr": 3}, "train.lrr: unknown key"),
        ({"train__lr": "fast"}, "train.lr: "),
        ({"train__lr": -1.0}, "train.lr: input should be greater than 0 (it is -1.0)"),
        ({"train__lr": float("inf")}, "train.lr: "),
        ({"train__lr": float("nan")}, "train.lr: "),
        ({"train__epochs": 2.5}, "train.epochs: "),
        ({"train__epochs": True}, "train.epochs: "),
        ({"seed": -1}, "seed: "),
        ({"lambda": -0.1}, "lambda: "),
        ({"dataset": "cifar11"}, "dataset: 'cifar11' is unknown; use one of photos, cifar10"),
        ({"score__variant": "best"}, "score.variant: 'best' is not a variant; use one of baseline"),
        ({"evaluate__sampler": {"kind": "ddim", "steps": 7}}, "evaluate.sampler.steps: 7 does not divide"),
        ({"prune__num_params": 5}, "prune: give exactly one of"),
        ({"prune__time_reduction": None}, "prune: give exactly one of"),
        ({"unet": {"kind": "dit"}}, "unet: "),
        ({"unet__channels": [30, 60, 60]}, "not a multiple of norm_num_groups"),
        ({"variants__pelap__mask": "none"}, "strength lambda needs a mask"),
        ({"variants__invariant__mask": "none"}, "decode_from z*m needs a mask"),
        ({"variants": {}}, "variants: "),
        ({"seed": 10**30}, "seed: "),
        ({"lambda_": 0.1}, "lambda_: unknown key"),
        ({"train__lr_min": 1.0}, "lr_min must not exceed lr"),
        ({"download__folders": {"photos": "x"}}, "download.folders.photos: is the name of a built-in"),
        ({"download__image_size": 20}, "unet: halves latents 2 times"),
        ({"unet": {"kind": "light", "width": 8}, "vae__latent_channels": 12}, "vae.latent_channels: "),
        ({"evaluate__num_reference": 8000}, "num_reference + num_images is 9500"),
        ({"download__photos__min_crop": 200}, "min_crop must not exceed max_crop"),
    ],
)
def test_bad_value_is_named(overrides: dict[str, Any], expected: str) -> None:
    assert expected in _message(**overrides)


def test_every_offending_key_is_named_in_one_message() -> None:
    message = _message(seed="x", train__lr=-1.0, evaluate__typo=1)
    assert all(key in message for key in ("seed", "train.lr", "evaluate.typo"))


def test_missing_key_is_named() -> None:
    raw = raw_params()
    del raw["distill"]["steps"]
    with pytest.raises(ConfigError, match=r"distill\.steps: missing"):
        parse_params(raw, "params.yaml")


@pytest.mark.parametrize("name", ["pruned", "distilled", "real"])
def test_variant_may_not_take_the_name_of_a_row(name: str) -> None:
    variants = raw_params()["variants"]
    assert f"variants.{name}" in _message(variants=variants | {name: variants["pelap"]})


def test_scientific_notation_is_a_number_and_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("a: 1e-3\n")
    assert read_yaml(path) == {"a": 0.001}
    path.write_text("a: 1\na: 2\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_yaml(path)
    with pytest.raises(ConfigError, match="no such file"):
        read_yaml(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        read_yaml(tmp_path)


@pytest.mark.parametrize("raw", [None, [], {("a",): 1}, {1: 2}])
def test_not_a_parameter_file(raw: object) -> None:
    with pytest.raises(ConfigError, match=r"expected a mapping"):
        parse_params(raw, "params.yaml")


def test_numbers_repeated_for_the_check_are_those_of_their_modules() -> None:
    assert len(PHOTOGRAPHS) == config.NUM_PHOTOGRAPHS
    assert (DOWNSAMPLING, MAX_GROUPS) == (config.DOWNSAMPLING, config.LIGHT_GROUPS)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_content_with_its_own_keys(stage: str) -> None:
    params = parse_params(select_keys(tiny_raw(), stage), "part", stage)
    with pytest.raises(ConfigError, match="missing"):
        parse_params({}, "part", stage)
    unused = next(key for key in ("vae", "prune") if key not in STAGE_KEYS[stage])
    assert not hasattr(params, unused)


def test_lambda_is_kept_from_variants_that_do_not_use_it() -> None:
    raw = raw_params(**{"lambda": 0.5})
    assert select_keys(raw, "train", "baseline")["lambda"] == 0
    assert select_keys(raw, "train", "pelap")["lambda"] == 0.5
    assert list(select_keys(raw, "train", "pelap")["variants"]) == ["pelap"]


def test_presets_have_the_keys_of_the_default() -> None:
    def keys(raw: dict[str, Any]) -> set[str]:
        free = ("unet", "variants", "folders")  # their keys depend on a kind or are names
        return {
            f"{key}.{sub}" if isinstance(value, dict) and key not in free else key
            for key, value in raw.items()
            for sub in (value if isinstance(value, dict) and key not in free else [""])
        }

    presets = sorted((ROOT / "presets").glob("*.yaml"))
    assert presets
    for path in presets:
        assert keys(read_yaml(path)) == keys(raw_params()), path.name


def test_paper_preset_is_the_paper() -> None:
    params = load_params(ROOT / "presets" / "pelap-a.yaml")
    assert params.dataset == "cifar10"
    assert params.seed == 42
    assert (params.vae.width, params.vae.latent_channels) == (64, 4)
    assert (params.unet.kind, params.unet.width) == ("light", 64)  # type: ignore[union-attr]
    train = params.train
    assert (train.epochs, train.batch_size, train.lr, train.lr_min) == (100, 128, 2e-4, 1e-5)
    assert (train.weight_decay, train.grad_clip, train.kl_weight) == (1e-4, 1.0, 0.001)
    assert (train.lr_update, train.select, train.ema_decay, train.horizontal_flip) == (
        "epoch",
        "best",
        0,
        True,
    )
    diffusion = params.diffusion
    assert (diffusion.num_train_timesteps, diffusion.beta_start, diffusion.beta_end) == (1000, 1e-4, 0.02)
    assert params.lambda_ == 0.01
