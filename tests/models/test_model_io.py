"""Model folders: a round trip changes nothing, a damaged folder is refused in one line."""

import copy
import json
import math
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from tiny import LIGHT, TEXT, UNET, set_logits, tiny_model
from tiny_pipelines import tiny_ddim

from pelap.config import TextConditioning, UNet2DConditionParams, VariantParams
from pelap.core import files
from pelap.core.errors import ModelError, PlanError
from pelap.core.part_io import save_part
from pelap.models.latent_diffusion import LatentDiffusion, build_unet
from pelap.models.text_conditioner import build_conditioner
from pelap.pipelines.pipeline_io import is_pipeline, load_model, load_pipeline, save_model, save_pipeline
from pelap.surgery.apply import apply_plan
from pelap.surgery.plan import Plan, load_plan, plan_from_json

PLAN, OTHER = (
    plan_from_json({"operators": [name, "down_blocks.0.resnets.0.norm1"]}, "test")
    for name in ("mid_block.attentions.0", "mid_block.resnets.0")
)


def _same(model: LatentDiffusion, other: LatentDiffusion) -> None:
    assert other.info == model.info
    assert model.state_dict().keys() == other.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


WIDE_VAE = {"kind": "pelap", "width": 8, "latent_channels": 6}
HARD, SEED, LAMBDA = {"gate": "hard_concrete"}, {"sparsity_key": "seed"}, {"sparsity_key": "lambda"}
COUPLINGS: list[dict[str, Any]] = [
    {"gate": "none", **SEED, "encoder_losses": ["reconstruction"]},
    {"gate": "none", **SEED, "normalise": "before_mask", "unet": LIGHT["unet"]},
    {**LAMBDA, "normalise": "after_mask", "decoder_input": "masked", "vae_training": "two_stage"},
    {"gate": "topk", "k": 2, "adaptive": False, **SEED, "mask_lr": 0.01, "start_epoch": 1},
    {**HARD, **SEED, "sparsity_weight": 0.5, "schedule": "cosine", "warmup_epochs": 2},
    {**HARD, "adaptive": False, **LAMBDA, "vae": WIDE_VAE, "unet": LIGHT["unet"] | {"stem": True}},
]


@pytest.mark.parametrize("coupling", COUPLINGS, ids=range(len(COUPLINGS)))
def test_every_coupling_survives_a_round_trip(tmp_path: Path, coupling: dict[str, Any]) -> None:
    model = tiny_model(fields=VariantParams(**coupling))
    latents = torch.randn(3, *model.latent_shape)
    if model.mask is not None:
        set_logits(model, *torch.linspace(-4, 4, model.latent_shape[0]).tolist())
    if model.normaliser is not None:
        model.train()
        model.unet_input(model.encode(torch.rand(4, 3, 16, 16)).latents, model.gates(latents[:1]))
        model.eval()
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    _same(model, loaded)
    assert not loaded.training
    assert {path.suffix for path in (tmp_path / "model").rglob("*.*")} == {".json", ".safetensors"}
    assert torch.equal(loaded.gates(latents).values, model.gates(latents).values)
    open_channels, expected = loaded.open_channels(), model.open_channels()
    assert (open_channels is None) == (expected is None)
    assert open_channels is None or torch.equal(open_channels, expected)
    assert torch.equal(loaded.decode_sample(latents), model.decode_sample(latents))


def test_a_mask_that_has_not_started_is_still_open_when_it_is_read_again(tmp_path: Path) -> None:
    model = tiny_model("pelap")
    assert model.mask is not None
    model.mask.started.fill_(False)
    save_model(model, tmp_path / "model")
    latents = torch.randn(2, 4, 4, 4)
    assert torch.equal(load_model(tmp_path / "model").gates(latents).values, torch.ones(2, 4))


def test_a_model_of_the_first_format_is_refused(tmp_path: Path) -> None:
    # As the version before wrote it: a variant with other fields.
    variant = {"mask": "sigmoid", "sparsity_key": "lambda", "detach": [], "normalise": False}
    save_model(tiny_model("pelap"), tmp_path / "model")
    config = files.read_json(tmp_path / "model" / "config.json")
    config["info"]["variant"] = variant
    for number, message in ((1, "not a PeLAP model of format 3"), (2, "variant|unknown key")):
        files.write_json(tmp_path / "model" / "config.json", config | {"pelap_format": number})
        with pytest.raises(ModelError, match=message) as caught:
            load_model(tmp_path / "model")
        assert "\n" not in str(caught.value)


def test_pruned_round_trip_and_what_plain_diffusers_makes_of_it(tmp_path: Path) -> None:
    model, x = tiny_model(), torch.randn(2, 4, 4, 4)
    save_model(model, tmp_path / "dense")
    plain = UNet2DModel.from_pretrained(tmp_path / "dense" / "unet")
    assert torch.equal(plain(x, 3).sample, model.unet(x, 3).sample)
    model.unet = apply_plan(model.unet, PLAN)
    save_model(model, tmp_path / "pruned", PLAN)
    loaded = load_model(tmp_path / "pruned")
    _same(model, loaded)
    assert torch.equal(loaded.unet(x, 3).sample, model.unet(x, 3).sample)
    with pytest.raises(OSError, match=r"diffusion_pytorch_model"):
        UNet2DModel.from_pretrained(tmp_path / "pruned" / "unet")


WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    "file", ["config.json", "vae/config.json", WEIGHTS, "unet/config.json", "mask/config.json"]
)
def test_missing_file_is_named(tmp_path: Path, file: str) -> None:
    save_model(tiny_model(), tmp_path / "model")
    (tmp_path / "model" / file).unlink()
    with pytest.raises(ModelError, match=file.replace(".", r"\.")) as caught:
        load_model(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_wrong_shaped_lacking_surplus_and_truncated_tensors(tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path / "model")
    path = tmp_path / "model" / WEIGHTS
    tensors, _ = files.load_tensors(path)
    name = "mean_head.weight"
    cases = {
        r"mean_head\.weight has shape \(1,\)": tensors | {name: torch.zeros(1)},
        "lacks tensor": {key: value for key, value in tensors.items() if key != name},
        "unknown tensor extra": tensors | {"extra": torch.zeros(1)},
        r"mean_head\.weight: NaN or infinite": tensors | {name: tensors[name].clone().fill_(math.inf)},
        r"mean_head\.weight holds numbers of another kind .* \(whole\)": {name: tensors[name].long()},
        r"mean_head\.weight holds numbers of another kind .* \(bool\)": {name: tensors[name] > 0},
        r"mean_head\.weight holds numbers of another kind .* \(complex\)": {name: tensors[name] * 1j},
    }
    for message, broken in cases.items():
        files.save_tensors(path, tensors | broken if len(broken) == 1 else broken)
        with pytest.raises(ModelError, match=message):
            load_model(tmp_path / "model")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ModelError, match="not a complete safetensors file"):
        load_model(tmp_path / "model")


WRONG_SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("vae", {"downsampling": [None]}),
    ("vae", {"downsampling": "x"}),
    ("vae", {"width": 10**9}),
    ("vae", {"width": 10**5}),
    ("unet", {"time_embedding_type": {}}),
    ("unet", {"act_fn": [None]}),
    ("unet", {"freq_shift": "["}),
    ("unet", {"mid_block_scale_factor": [None]}),
    ("unet", {"mid_block_scale_factor": 1e12}),
    ("unet", {"norm_eps": -1}),
    ("unet", {"layers_per_block": 10**5}),
    ("unet", {"center_input_sample": "x"}),
    ("unet", {"norm_eps": True}),
    ("unet", {"_class_name": [1, 2]}),
    ("mask", {"gate": 3, "adaptive": []}),
    ("mask", {"gate": "topk", "num_active": 10**6}),
    ("normaliser", {"latent_channels": {}}),
    ("conditioner", {"heads": 0}),
    ("conditioner", {"templates": [None]}),
    ("conditioner", {"class_names": {}}),
]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with every part."""
    fields = {"gate": "hard_concrete", "sparsity_key": "lambda", "normalise": "before_mask"}
    model = tiny_model("invariant", fields=fields)
    unet = build_unet(UNet2DConditionParams(**UNET), *model.latent_shape[:2], TEXT["width"])
    conditioner = build_conditioner(TextConditioning(**TEXT), ["cat", "dog"], None)
    whole = LatentDiffusion(model.info, model.vae, unet, model.mask, model.normaliser, conditioner)
    save_model(whole.eval(), tmp_path_factory.mktemp("told") / "model")
    return tmp_path_factory.getbasetemp() / "told0/model"


@pytest.mark.parametrize(("part", "change"), WRONG_SETTINGS, ids=str)
def test_settings_that_no_network_was_made_with_are_one_line(
    told: Path, tmp_path: Path, part: str, change: dict[str, Any]
) -> None:
    """Whatever a constructor or a first call makes of them, and however large a network they describe."""
    shutil.copytree(told, tmp_path / "model")
    config = tmp_path / "model" / part / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(ModelError) as caught:
        load_model(tmp_path / "model")
    assert str(config.parent) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("image_size", 10**9), ("image_size", 0), ("sound", {}), ("variant", "["), ("seed", "x")],
)
def test_a_description_that_is_none_is_one_line(told: Path, tmp_path: Path, key: str, value: Any) -> None:
    shutil.copytree(told, tmp_path / "model")
    config = files.read_json(tmp_path / "model/config.json")
    files.write_json(tmp_path / "model/config.json", config | {"info": config["info"] | {key: value}})
    with pytest.raises(ModelError, match=r"model/config\.json: ") as caught:
        load_model(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_a_statistic_that_is_not_finite_is_refused(told: Path, tmp_path: Path) -> None:
    """No parameter, but latents go through it."""
    shutil.copytree(told, tmp_path / "model")
    path = tmp_path / "model/normaliser/diffusion_pytorch_model.safetensors"
    tensors, _ = files.load_tensors(path)
    tensors["statistics.running_var"][0] = math.nan
    files.save_tensors(path, tensors)
    with pytest.raises(ModelError, match=r"running_var: NaN"):
        load_model(tmp_path / "model")


def test_not_a_model_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model folder"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(ModelError, match="not a PeLAP model"):
        load_model(tmp_path)


def test_plan_in_a_model_folder_that_names_an_unknown_operator(tmp_path: Path) -> None:
    model = tiny_model()
    model.unet = apply_plan(model.unet, PLAN)
    save_model(model, tmp_path / "model", PLAN)
    files.write_json(tmp_path / "model" / "unet" / "plan.json", {"operators": ["nowhere"]})
    with pytest.raises(PlanError, match="no operator 'nowhere'"):
        load_model(tmp_path / "model")
    with pytest.raises(PlanError, match="no such file"):
        load_plan(tmp_path / "plan.json")


# A folder that holds something already


def with_plan(plan: Plan | None, shift: float) -> LatentDiffusion:
    """Every shift is another network."""
    model = tiny_model()
    with torch.no_grad():
        for weight in model.unet.parameters():
            weight.add_(shift)
    if plan is not None:
        model.unet = apply_plan(model.unet, plan)
    return model


NETWORKS: dict[str, Callable[[], LatentDiffusion]] = {
    "dense": lambda: with_plan(None, 0.1),
    "dense otherwise": lambda: with_plan(None, 0.4),
    "pruned": lambda: with_plan(PLAN, 0.2),
    "pruned otherwise": lambda: with_plan(OTHER, 0.3),
}
WRITERS: dict[str, Callable[[LatentDiffusion, Path], None]] = {
    "save_model": lambda model, folder: save_model(model, folder),
    "save_part": lambda model, folder: save_part(model.unet, folder / "unet"),
    "save_pretrained": lambda model, folder: model.unet.save_pretrained(folder / "unet"),
    "in shards": lambda model, folder: model.unet.save_pretrained(folder / "unet", max_shard_size="60KB"),
    "a variant": lambda model, folder: model.unet.save_pretrained(folder / "unet", variant="fp16"),
    "a pickle": lambda model, folder: model.unet.save_pretrained(folder / "unet", safe_serialization=False),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(
    ("first", "second"),
    [("dense", "dense otherwise"), ("dense", "pruned"), ("pruned", "dense"), ("pruned", "pruned otherwise")],
)
def test_what_was_saved_last_is_loaded_or_the_folder_is_refused(
    tmp_path: Path, first: str, second: str, writer: str
) -> None:
    save_model(NETWORKS[first](), tmp_path / "model")
    model = NETWORKS[second]()
    WRITERS[writer](model, tmp_path / "model")
    is_dense, by_us = second.startswith("dense"), writer in ("save_model", "save_part")
    refused = is_dense and not by_us and (first == "pruned" or writer != "save_pretrained")
    if refused:
        with pytest.raises(ModelError, match=r"unet: holds two networks, \S+ .*and \S+ ") as caught:
            load_model(tmp_path / "model")
        assert "\n" not in str(caught.value)
        return
    if writer != "save_model":  # on purpose
        with pytest.raises(ModelError, match=r"is missing; make it again|is not the file that was left here"):
            load_model(tmp_path / "model")
        (tmp_path / "model" / "digests.json").unlink()
    loaded = load_model(tmp_path / "model").unet
    assert loaded.state_dict().keys() == model.unet.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], t) for name, t in model.unet.state_dict().items())
    if not is_dense:
        with pytest.raises(OSError, match="diffusion_pytorch_model"):
            UNet2DModel.from_pretrained(tmp_path / "model" / "unet")


def test_a_pipeline_that_was_saved_over_a_model_is_not_taken_for_it(tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path / "model")
    tiny_ddim().save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match=r"two networks, a model .* and a pipeline"):
        load_model(tmp_path / "model")
    assert is_pipeline(tmp_path / "model")
    assert load_pipeline(tmp_path / "model").unet.config.in_channels == 3
    save_model(tiny_model(), tmp_path / "model")
    assert load_model(tmp_path / "model") is not None


def test_a_whole_pruned_model_is_handed_over(tmp_path: Path) -> None:
    save_model(with_plan(PLAN, 0.0), tmp_path / "model")
    model = load_model(tmp_path / "model")
    file = BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (torch.load(file, weights_only=False), copy.deepcopy(model)):
        _same(model, other)
        save_model(other, tmp_path / "again")
        _same(model, load_model(tmp_path / "again"))


def test_files_of_the_users_own_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine" / "sub").mkdir(parents=True)
    (tmp_path / "mine" / "sub" / "photo.png").touch()
    folder = tmp_path / "mine"
    for save in (lambda: save_model(tiny_model(), folder), lambda: save_pipeline(tiny_ddim(), folder)):
        with pytest.raises(ModelError, match="holds files that are no model's"):
            save()
    assert (tmp_path / "mine" / "sub" / "photo.png").exists()
    save_model(tiny_model(), tmp_path / "model")
    save_pipeline(tiny_ddim(), tmp_path / "model")  # a model's is replaced
    assert not (tmp_path / "model" / "vae").exists()
