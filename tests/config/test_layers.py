"""Defaults < what a file extends < the file < the command line, and what every preset comes to."""

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from tiny import ROOT

from pelap.cli import main
from pelap.config import SamplerParams, TextConditioning, UNet2DConditionParams
from pelap.config.load import DEFAULTS, load_params, merge, parse_overrides, parse_params, resolved
from pelap.config.yaml import read_yaml
from pelap.core.errors import ConfigError

KEPT = Path(__file__).with_name("presets.json")
"""All values of every preset; ``python tests/config/test_layers.py`` writes those of now."""
PRESETS = {path.stem: path for path in sorted((ROOT / "presets").rglob("*.yaml"))}


def values(path: Path) -> Any:
    return json.loads(json.dumps(resolved(path), sort_keys=True))


def flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {path: value}
    return {key: leaf for name in value for key, leaf in flat(value[name], f"{path}.{name}").items()}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_comes_to_what_it_came_to(name: str) -> None:
    load_params(PRESETS[name])
    assert flat(values(PRESETS[name])) == flat(json.loads(KEPT.read_text())[name])


def test_presets_say_only_what_differs() -> None:
    assert sum(len(path.read_text().splitlines()) for path in PRESETS.values()) <= 500


def test_the_default_run_gives_every_key() -> None:
    """`dvc exp run -S` changes only keys that are there."""
    raw = read_yaml(ROOT / "params.yaml")
    assert flat(resolved(ROOT / "params.yaml")).keys() - flat(raw).keys() == set()


def overlay(folder: Path, **files: Any) -> Path:
    """Parameter files; the path of the last."""
    for name, raw in files.items():
        with (folder / f"{name}.yaml").open("w") as file:
            YAML().dump(raw, file)
    return folder / f"{name}.yaml"


def test_a_file_may_be_partial_and_each_layer_has_the_last_word_on_its_keys(tmp_path: Path) -> None:
    base = {"train": {"lr": 0.01, "epochs": 3}, "score": {"variant": "own"}, "variants": {"own": {}}}
    own = {"sparsity_key": "seed", "gate": "none"}
    path = overlay(
        tmp_path, base=base, top={"extends": "base.yaml", "train": {"lr": 0.02}, "variants": {"own": own}}
    )
    params = load_params(path, overrides={"train.epochs": 5, "distill.quality.num_images": 7})
    assert (params.train.lr, params.train.epochs, params.train.batch_size) == (0.02, 5, 64)
    assert list(params.variants) == ["own"]
    assert params.distill.quality is not None
    assert (params.distill.quality.num_images, params.distill.quality.num_reference) == (7, 4000)
    assert values(path)["train"] == DEFAULTS["train"] | {"lr": 0.02, "epochs": 3}
    dotted = overlay(tmp_path, a={"variants.pelap.mask_lr": 0.5, "train": {"epochs": 2}})
    variants = load_params(dotted, "train").variants
    assert list(variants) == ["baseline", "pelap", "invariant"]
    assert variants["pelap"].mask_lr == 0.5


@pytest.mark.parametrize(
    ("base", "over", "expected"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}, {"a": {"b": 1, "c": 3}}),
        ({"a": {"b": 1}}, {"a": None}, {"a": None}),
        ({"variants": {"x": {}}}, {"variants": {"y": {}}}, {"variants": {"y": {}}}),
        ({"prune": {"methods": {"x": {}}}}, {"prune": {"methods": {}}}, {"prune": {"methods": {}}}),
        (
            {"prune": {"time_reduction": 0.3, "num_params": None}},
            {"prune": {"num_params": 5}},
            {"prune": {"time_reduction": None, "num_params": 5, "num_operators": None}},
        ),
        (
            {"vae": {"kind": "pelap", "width": 8}},
            {"vae": {"kind": "autoencoder_kl", "source": "x"}},
            {"vae": {"kind": "autoencoder_kl", "source": "x"}},
        ),
        (
            {"unet": {"kind": "unet2d", "channels": [8]}},
            {"unet": {"kind": "light", "width": 8}},
            {"unet": {"kind": "light", "width": 8, "stem": False}},
        ),
        (
            {"sampler": {"kind": "ddim", "steps": 5}},
            {"sampler": {"kind": "ddpm"}},
            {"sampler": {"kind": "ddpm", "steps": 5}},
        ),
    ],
    ids=str,
)
def test_layers_merge(base: Any, over: Any, expected: Any) -> None:
    before = json.dumps(base)
    assert merge(base, over) == expected
    assert json.dumps(base) == before


def test_the_command_line_reaches_into_tables_and_exchanges_kinds() -> None:
    words = [
        "variants.pelap.normalise=before_mask", "unet.kind=unet2d_condition", "conditioning={kind: text}",
        "prune.num_operators=3", "evaluate.sampler.kind=ddpm", "train.lr=1e-4", "score.criteria=[taylor]",
    ]  # fmt: skip
    text = [f"variants.{name}.unet.kind=unet2d_condition" for name in ("baseline", "invariant")]
    params = parse_params({}, "p", overrides=parse_overrides([*words, *text]))
    assert list(params.variants) == ["baseline", "pelap", "invariant"]
    assert params.variants["pelap"].normalise == "before_mask"
    assert (params.unet, params.conditioning) == (UNet2DConditionParams(), TextConditioning())
    assert params.prune.amounts_of(params.prune.methods["ld-pruner"]) == (3,)
    assert params.evaluate.sampler == SamplerParams(kind="ddpm", steps=20)
    assert (params.train.lr, params.score.criteria) == (0.0001, ("taylor",))
    whole = parse_params(
        {}, "p", overrides=parse_overrides(["variants={only: {sparsity_key: seed}}", "score.variant=only"])
    )
    assert list(whole.variants) == ["only"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("train.lrr=3", "p with --set: train.lrr: unknown key"),
        ("trian.lr=3", "trian: unknown key"),
        ("seed.x=3", "seed: input should be a valid integer"),
        ("train.lr=-1", "train.lr: input should be greater than 0 (it is -1)"),
        ("train.lr", "--set train.lr: expected KEY=VALUE"),
        ("=3", "--set =3: expected KEY=VALUE"),
        ("train.lr=[", "--set train.lr: not valid YAML"),
        ("score.variant=best", "score.variant: 'best' is not a variant"),
        ("train.at_once=2", "--set: names of version 0.1: train.at_once is parallel_variants; give those"),
    ],
)
def test_the_command_line_is_checked_like_the_file(word: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_params({}, "p", overrides=parse_overrides([word]))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": {"extends": "nowhere.yaml"}}, "nowhere.yaml: no such file; correct extends of "),
        (
            {"b": {"train": {"at_once": 2}}, "a": {"extends": "b.yaml"}},
            "b.yaml: names of version 0.1: train.",
        ),
        ({"a": {"extends": "a.yaml"}}, "a.yaml: extends: a.yaml extends this file"),
        ({"a": {"extends": "b.yaml"}, "b": {"extends": "a.yaml"}}, "extends this file"),
        ({"a": {"extends": "a\0b"}}, "a.yaml: extends: expected the path of a parameter file"),
        ({"a": {"extends": ["b.yaml"]}}, "a.yaml: extends: expected the path of a parameter file"),
        ({"b": {"lr": 3}, "a": {"extends": "b.yaml"}}, "a.yaml: lr: unknown key"),
        ({"b": [], "a": {"extends": "b.yaml"}}, "b.yaml: expected a mapping"),
        ({"a": {"train": None}}, "a.yaml: train: "),
        ({"a": {"variants.pelap.gat": "topk"}}, "a.yaml: variants.pelap.gat: unknown key"),
    ],
    ids=str,
)
def test_a_file_that_extends_wrongly_is_refused(files: dict[str, Any], message: str, tmp_path: Path) -> None:
    overlay(tmp_path, **files)
    with pytest.raises(ConfigError) as caught:
        load_params(tmp_path / "a.yaml")
    assert message in str(caught.value)


def test_params_prints_a_file_whole_with_the_comments_of_the_default_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = str(PRESETS["text"])
    monkeypatch.chdir(tmp_path)
    assert main(["params", preset, "--set", "train.epochs=7", "score.num_latents=8"]) == 0
    printed = capsys.readouterr().out
    expected = parse_params(
        resolved(PRESETS["text"]), "p", overrides={"train.epochs": 7, "score.num_latents": 8}
    )
    (tmp_path / "bare.yaml").write_text(printed)
    assert load_params(tmp_path / "bare.yaml") == expected
    assert "&" not in printed
    default = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(default)
    assert main(["params", preset, "--out", "params.yaml"]) == 0
    written = (tmp_path / "params.yaml").read_text()
    assert load_params(tmp_path / "params.yaml") == load_params(PRESETS["text"])
    assert "epochs: 12" in written
    assert "# epochs of the autoencoder alone" in written
    assert main(["params", "params.yaml", "--set", "train.lr=0"]) == 2
    assert "params.yaml: train.lr: input should be greater than 0" in capsys.readouterr().err
    assert main(["params", "params.yaml", "--upgrade", "--set", "train.lr=0.1"]) == 2
    assert "--set: does not go with --upgrade" in capsys.readouterr().err


if __name__ == "__main__":
    lines = [f"{json.dumps(name)}: {json.dumps(values(path))}" for name, path in PRESETS.items()]
    KEPT.write_text("{\n" + ",\n".join(lines) + "\n}\n")
