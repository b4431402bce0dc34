"""What version 0.1 wrote is read, and its parameter files are refused with today's names."""

import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file
from tiny import ROOT, raw_params, tiny_raw

from pelap.cli import main
from pelap.config.load import DEFAULTS, load_params, load_pipeline_params, parse_params
from pelap.config.upgrade import rename, renamed_steps
from pelap.core import files
from pelap.core.errors import ConfigError, PlanError
from pelap.pipelines.pipeline_io import load_model, load_pipeline, save_model
from pelap.surgery.plan import load_plan

OLD = ROOT / "tests" / "data_of_0_1"
EXPECTED = load_file(OLD / "expected.safetensors")
MODELS = {"model": OLD / "run" / "train" / "first" / "model", "pruned_model": OLD / "run/prune/models/9"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of work with a run, a pipeline and its scores of 0.1, and parameters of today."""
    shutil.copytree(OLD / "run", tmp_path / "results" / "default")
    shutil.copytree(OLD / "dense", tmp_path / "dense")
    with (tmp_path / "params.yaml").open("w") as file:
        YAML().dump(tiny_raw(), file)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_model_gives_what_it_gave(name: str, tmp_path: Path) -> None:
    model = load_model(MODELS[name])
    info, variant = model.info, model.info.variant
    assert (info.sparsity_weight, variant.sparsity_weight, variant.sparsity_key) == (0.01, 0.01, "seed")
    assert (variant.decoder_input, variant.vae_training) == ("masked", "two_stage")
    for each in (model, _saved(model, tmp_path)):
        output = each.unet(EXPECTED["latents"], EXPECTED["timesteps"]).sample
        torch.testing.assert_close(output, EXPECTED[name])
        pictures = each.decode_sample(EXPECTED["latents"])
        torch.testing.assert_close(pictures, EXPECTED[f"{name}.pictures"])


def _saved(model: Any, folder: Path) -> Any:
    """The same by way of a folder of today."""
    save_model(model, folder / "again")
    config = files.read_json(folder / "again" / "config.json")
    assert config["pelap_format"] == 3
    assert {"strength", "penalty", "decode_from"}.isdisjoint({*config["info"], *config["info"]["variant"]})
    return load_model(folder / "again")


@pytest.mark.parametrize("name", ["dense", "pruned"])
@torch.no_grad()
def test_a_pipeline_gives_what_it_gave(name: str) -> None:
    unet = load_pipeline(OLD / name).unet
    torch.testing.assert_close(unet(EXPECTED["images"], EXPECTED["timesteps"]).sample, EXPECTED[name])


def test_weights_of_another_plan_of_0_1_are_still_told_apart(tmp_path: Path) -> None:
    folder = shutil.copytree(OLD / "pruned", tmp_path / "pruned")
    plan = files.read_json(folder / "plan.json")
    first = plan["operators"][0]
    assert first["replacement"] == "regroup"
    first["in_channels"] = 8
    files.write_json(folder / "plan.json", plan)
    with pytest.raises(PlanError, match="another plan"):
        load_pipeline(folder)


@pytest.mark.parametrize(
    ("file", "steps"),
    [("run/prune/plans/9.json", {"affine", "identity"}), ("pruned/plan.json", {"channel_pool", "identity"})],
)
def test_a_plan_has_the_names_of_today(file: str, steps: set[str]) -> None:
    plan = load_plan(OLD / file)
    assert {entry.replacement.name for entry in plan.operators if entry.replacement} == steps
    assert plan.to_json()["format"] == 3
    assert renamed_steps("avg_pool+regroup") == "avg_pool+channel_pool"


@pytest.mark.slow
def test_scores_of_a_run_are_pruned_by_with_and_without_the_plan(here: Path) -> None:
    run = here / "results" / "default"
    asked = ("--set", "prune={num_operators: 9, max_measurements: 0}")
    for number, plan in enumerate([asked, ("--plan", str(OLD / "run/prune/plans/9.json"))]):
        shutil.rmtree(run / "prune")
        assert main(["prune", "--device", "cpu", *plan]) == 0, number
        written, before = load_plan(run / "prune/plans/9.json"), load_plan(OLD / "run/prune/plans/9.json")
        assert written.operators == before.operators
    unet = load_model(run / "prune/models/9").unet
    with torch.no_grad():
        output = unet(EXPECTED["latents"], EXPECTED["timesteps"]).sample
    torch.testing.assert_close(output, EXPECTED["pruned_model"], rtol=1e-3, atol=1e-4)


def test_scores_of_a_pipeline_are_pruned_by(here: Path) -> None:
    scored = ("--pipeline", "dense", "--scores", str(OLD / "scores.csv"), "--device", "cpu")
    assert main(["prune", *scored, "--plan", str(OLD / "pruned/plan.json"), "--out", "small"]) == 0
    with torch.no_grad():
        output = load_pipeline(here / "small").unet(EXPECTED["images"], EXPECTED["timesteps"]).sample
    torch.testing.assert_close(output, EXPECTED["pruned"])


OLD_KEYS: list[tuple[dict[str, Any], str]] = [
    ({"train__at_once": 2}, "train.at_once is parallel_variants"),
    ({"variants__pelap": {"strength": "lambda"}}, "variants.pelap.strength is sparsity_key"),
    ({"variants__pelap__penalty": 0.1}, "variants.pelap.penalty is sparsity_weight"),
    ({"variants__pelap__decode_from": "z*m"}, "variants.pelap.decode_from is decoder_input"),
    ({"variants__pelap__vae_training": "first"}, "variants.pelap.vae_training: first is two_stage"),
    ({"score__norm": "scale_shift"}, "score.norm is norm_replacement"),
    ({"score__norm_replacement": "scale_shift"}, "score.norm_replacement: scale_shift is affine"),
    ({"score__start": "fitted"}, "score.start is replacement_init"),
    ({"prune__trials": 2}, "prune.trials is max_measurements"),
    ({"prune__singles": 2}, "prune.singles is single_operator_plans"),
    ({"prune__methods__ld-pruner__rescore": 0.1}, "prune.methods.ld-pruner.rescore is iterative_step"),
    ({"prune__methods__ld-pruner__selection": "ratio"}, "prune.methods.ld-pruner.selection: ratio is per_ms"),
    ({"evaluate__dense_steps": [5]}, "evaluate.dense_steps is step_counts"),
    ({"evaluate__cache_intervals": [2]}, "evaluate.cache_intervals is deepcache_intervals"),
]


@pytest.mark.parametrize(("overrides", "expected"), OLD_KEYS, ids=[message for _, message in OLD_KEYS])
def test_an_old_name_is_refused_with_that_of_today(
    overrides: dict[str, Any], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = raw_params(**overrides)
    with pytest.raises(ConfigError, match=r"^here: names of version 0\.1: ") as caught:
        parse_params(raw, "here")
    assert expected in str(caught.value)
    _write(Path("mine.yaml"), raw)
    with pytest.raises(ConfigError) as caught:
        load_params(Path("mine.yaml"))
    mend = "`pelap params mine.yaml --upgrade --out mine.yaml`"
    assert f"mine.yaml: names of version 0.1: {expected}; {mend} writes it" in str(caught.value)
    assert "\n" not in str(caught.value)
    rename(raw)
    assert expected.rpartition(" is ")[2] in str(raw)


def _write(path: Path, raw: Any) -> None:
    with path.open("w") as file:
        YAML().dump(raw, file)


def test_dotted_keys_are_renamed_too(tmp_path: Path) -> None:
    old = "train.at_once: 2  # both\nscore.num_resamples: 3\nvariants.pelap: {decode_from: z}\nseed: 1\n"
    new = "train.parallel_variants: 2 # both\nvariants.pelap: {decoder_input: unmasked}\nseed: 1\n"
    file = tmp_path / "mine.yaml"
    file.write_text(old)
    with pytest.raises(ConfigError, match=r"train\.at_once is parallel_variants; .*num_resamples is no more"):
        load_params(file)
    assert main(["params", str(file), "--upgrade", "--out", str(file)]) == 0
    assert file.read_text() == new
    assert load_params(file).train.parallel_variants == 2


def test_a_pipeline_looks_at_old_names_of_its_own_keys_alone(tmp_path: Path) -> None:
    _write(tmp_path / "mine.yaml", {"train": {"at_once": 2}})
    load_pipeline_params(tmp_path / "mine.yaml", "score")


def test_the_file_of_0_1_is_written_anew_with_its_comments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "old.yaml"
    shutil.copy(OLD / "params.yaml", file)
    assert main(["train", "--params", str(file)]) == 2
    said = capsys.readouterr().err  # of a long line the middle is left out
    assert "train.at_once is parallel_variants" in said
    assert "writes it with those of today" in said
    with pytest.raises(ConfigError, match="decode_from is decoder_input"):
        load_params(file)
    assert main(["params", str(file), "--upgrade"]) == 0
    written = capsys.readouterr().out
    new = YAML(typ="safe", pure=True).load(StringIO(written))
    students = {
        name.replace("longer", "dense-finetuned"): it for name, it in new["distill"]["students"].items()
    }
    new["distill"]["students"] = students
    assert new == DEFAULTS  # which have not changed since
    assert "# variants that train together, when all of them are asked for" in written
    assert "# of projections and scales: fitted (least squares)" in written
    assert file.read_text() == (OLD / "params.yaml").read_text()
    assert main(["params", str(file), "--upgrade", "--out", str(file)]) == 0
    load_params(file)
    assert file.read_text() == written


def test_a_file_of_today_stays_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["params", str(ROOT / "params.yaml"), "--upgrade"]) == 0
    assert capsys.readouterr().out == (ROOT / "params.yaml").read_text()
