"""Model folders: a round trip changes nothing, a damaged folder is refused in one line."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from tiny import tiny_model

from pelap import io
from pelap.errors import ModelError, PlanError
from pelap.loading import load_model, load_plan, save_model
from pelap.models.ldm import LatentDiffusion
from pelap.pruning.plan import plan_from_json
from pelap.pruning.surgery import apply_plan

PLAN = plan_from_json({"operators": ["mid_block.attentions.0", "down_blocks.0.resnets.0.norm1"]}, "test")
LIGHT = {"unet": {"kind": "light", "width": 8}}


def _same(model: LatentDiffusion, other: LatentDiffusion) -> None:
    assert other.info == model.info
    assert model.state_dict().keys() == other.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize("variant", ["baseline", "pelap", "invariant"])
@pytest.mark.parametrize("options", [{}, LIGHT], ids=["unet2d", "light"])
def test_round_trip(tmp_path: Path, variant: str, options: dict[str, object]) -> None:
    model = tiny_model(variant, **options)
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    _same(model, loaded)
    assert not loaded.training


def test_pruned_round_trip(tmp_path: Path) -> None:
    model = tiny_model()
    x = torch.randn(2, 4, 4, 4)
    model.unet = apply_plan(model.unet, PLAN)
    save_model(model, tmp_path / "model", PLAN)
    loaded = load_model(tmp_path / "model")
    _same(model, loaded)
    assert torch.equal(loaded.unet(x, 3).sample, model.unet(x, 3).sample)


def test_plain_diffusers_reads_an_unpruned_unet_and_refuses_a_pruned_one(tmp_path: Path) -> None:
    model = tiny_model()
    save_model(model, tmp_path / "dense")
    x = torch.randn(2, 4, 4, 4)
    plain = UNet2DModel.from_pretrained(tmp_path / "dense" / "unet")
    assert torch.equal(plain(x, 3).sample, model.unet(x, 3).sample)
    model.unet = apply_plan(model.unet, PLAN)
    save_model(model, tmp_path / "pruned", PLAN)
    with pytest.raises(OSError, match=r"diffusion_pytorch_model"):
        UNet2DModel.from_pretrained(tmp_path / "pruned" / "unet")


def test_no_pickle_is_written(tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path / "model")
    suffixes = {path.suffix for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors"}


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


def test_truncated_weights(tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path / "model")
    path = tmp_path / "model" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ModelError, match="not a complete safetensors file"):
        load_model(tmp_path / "model")


def test_wrong_shaped_lacking_and_surplus_tensors(tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path / "model")
    path = tmp_path / "model" / WEIGHTS
    tensors, _ = io.load_tensors(path)
    name = "mean_head.weight"
    cases = {
        r"mean_head\.weight has shape \(1,\)": tensors | {name: torch.zeros(1)},
        "lacks tensor": {key: value for key, value in tensors.items() if key != name},
        "unknown tensor extra": tensors | {"extra": torch.zeros(1)},
    }
    for message, broken in cases.items():
        io.save_tensors(path, broken)
        with pytest.raises(ModelError, match=message):
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
    io.write_json(tmp_path / "model" / "unet" / "plan.json", {"operators": ["nowhere"]})
    with pytest.raises(PlanError, match="no operator 'nowhere'"):
        load_model(tmp_path / "model")
    with pytest.raises(PlanError, match="no such file"):
        load_plan(tmp_path / "plan.json")
