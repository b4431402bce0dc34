"""A pretrained autoencoder of diffusers: its scale, that it stays as it is, and what is refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from tiny import tiny_dataset, tiny_model, tiny_params
from training_cases import train_jointly

from pelap.config import VariantParams
from pelap.core import files
from pelap.core.errors import ConfigError, ModelError
from pelap.core.paths import RunPaths, packed_dataset
from pelap.data.dataset import save_dataset
from pelap.models.vae import PretrainedVAE, load_pretrained_vae
from pelap.pipelines.pipeline_io import load_model, save_model
from pelap.stages import train
from pelap.stages.shared import Context
from pelap.training import variants

CPU = torch.device("cpu")
SCALE, SHIFT = 0.25, 0.125


def _autoencoder(levels: int = 2, **options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        **options,
    ).eval()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as diffusers writes it."""
    torch.manual_seed(1)
    folder: Path = tmp_path_factory.mktemp("pretrained") / "autoencoder"
    _autoencoder(scaling_factor=SCALE, shift_factor=SHIFT).save_pretrained(folder)
    return folder


def _fields(source: Path) -> VariantParams:
    vae = {"kind": "autoencoder_kl", "source": str(source)}
    return VariantParams(sparsity_key="lambda", decoder_input="masked", vae=vae, vae_training="frozen")


def _same(vae: PretrainedVAE, other: PretrainedVAE) -> None:
    for name, tensor in vae.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_it_is_read_from_its_folder_and_from_that_of_a_pipeline(source: Path, tmp_path: Path) -> None:
    vae = load_pretrained_vae(str(source))
    assert (vae.latent_channels, vae.downsampling) == (4, 2)
    _same(PretrainedVAE(AutoencoderKL.from_pretrained(source, low_cpu_mem_usage=False)), vae)
    shutil.copytree(source, tmp_path / "pipeline" / "vae")
    files.write_json(tmp_path / "pipeline" / "model_index.json", {"_class_name": "StableDiffusionPipeline"})
    _same(vae, load_pretrained_vae(str(tmp_path / "pipeline")))


@pytest.mark.parametrize(
    ("options", "shift", "scale"),
    [
        ({"scaling_factor": SCALE, "shift_factor": SHIFT}, SHIFT, SCALE),
        ({"scaling_factor": 0.5}, 0.0, 0.5),
        ({"scaling_factor": 0.5, "shift_factor": None}, 0.0, 0.5),
    ],
)
def test_latents_are_scaled_as_in_diffusers(options: dict[str, Any], shift: float, scale: float) -> None:
    plain = _autoencoder(**options)
    vae = PretrainedVAE(plain)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    posterior = plain.encode(images).latent_dist
    mean, logvar = vae.encode(images)
    assert mean.shape == (2, 4, 8, 8)
    # As diffusers' pipelines do with a sample of the posterior.
    noise = torch.randn_like(mean)
    z = posterior.mean + posterior.std * noise
    torch.testing.assert_close(mean + (logvar / 2).exp() * noise, (z - shift) * scale)
    torch.testing.assert_close(vae.decode((z - shift) * scale), plain.decode(z).sample)


def test_it_is_frozen_and_the_others_learn(source: Path, tmp_path: Path) -> None:
    options = {"train__batch_size": 16, "train__epochs": 1, "train__ema_decay": 0.9}
    model = tiny_model(fields=_fields(source), **options)
    assert model.latent_shape == (4, 8, 8)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept, _ = train_jointly(model, tiny_dataset(), tiny_params(**options).train, CPU, tmp_path / "c")
    for trained in (model, kept):
        moved = {
            name for name, tensor in trained.state_dict().items() if not torch.equal(tensor, start[name])
        }
        assert {name.split(".")[0] for name in moved} == {"unet", "mask"}
        assert all(p.grad is None and not p.requires_grad for p in trained.vae.parameters())


def test_it_survives_a_round_trip_without_its_source(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "moved")
    model = tiny_model(fields=_fields(tmp_path / "moved"))
    save_model(model, tmp_path / "model")
    shutil.rmtree(tmp_path / "moved")
    loaded = load_model(tmp_path / "model")
    assert loaded.info == model.info
    assert isinstance(loaded.vae, PretrainedVAE)
    assert isinstance(model.vae, PretrainedVAE)
    _same(model.vae, loaded.vae)
    assert not any(p.requires_grad for p in loaded.vae.parameters())
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(loaded.reconstruct(images), model.reconstruct(images))


@pytest.mark.parametrize(
    "options", [{"variant": "fp16"}, {"variant": "bf16", "max_shard_size": "20KB"}], ids=str
)
def test_its_only_variant_is_read(tmp_path: Path, options: dict[str, str]) -> None:
    vae = _autoencoder()
    vae.save_pretrained(tmp_path / "vae", **options)
    _same(PretrainedVAE(vae), load_pretrained_vae(str(tmp_path / "vae")))


def _refused(source: object) -> str:
    with pytest.raises(ModelError) as caught:
        load_pretrained_vae(str(source))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_of_another_network_is_refused(tmp_path: Path) -> None:
    tiny_model("baseline").unet.save_pretrained(tmp_path / "unet")
    assert "is a UNet2DModel, not an AutoencoderKL" in _refused(tmp_path / "unet")
    assert "config.json: no such file" in _refused(tmp_path)
    grey = AutoencoderKL(in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4)
    grey.save_pretrained(tmp_path / "grey")
    assert "is not for pictures of three colours" in _refused(tmp_path / "grey")


def test_damaged_weights_are_refused(source: Path, tmp_path: Path) -> None:
    # diffusers itself would fill the gap with random numbers.
    shutil.copytree(source, tmp_path / "lacking")
    path = tmp_path / "lacking" / "diffusion_pytorch_model.safetensors"
    tensors, _ = files.load_tensors(path)
    del tensors["decoder.conv_in.weight"]
    files.save_tensors(path, tensors, {"format": "pt"})
    assert "lacks tensor decoder.conv_in.weight" in _refused(tmp_path / "lacking")
    path.write_bytes(path.read_bytes()[:-8])
    assert str(tmp_path / "lacking") in _refused(tmp_path / "lacking")
    path.unlink()
    assert str(tmp_path / "lacking") in _refused(tmp_path / "lacking")


@pytest.mark.filterwarnings("ignore:.*local_dir_use_symlinks")
@pytest.mark.parametrize("name", ["nobody/nothing", "nobody/nothing/vae", "nothing"])
def test_a_name_that_the_hub_does_not_give_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = _refused(name)
    assert f"vae.source {name}: cannot be loaded" in message
    assert "give a diffusers folder, or a hub name with the network at hand" in message
    for path in ("/nowhere/at/all", "./nowhere", "~/nowhere"):  # not asked of the hub
        assert f"vae.source {path}: no such folder" in _refused(path)


def _context(tmp_path: Path) -> Context:
    """Two variants, the second with an autoencoder from the folder `vae`."""
    fields = _fields(tmp_path / "vae").model_dump(mode="json", exclude_unset=True)
    variants = {"baseline": {"gate": "none", "sparsity_key": "seed"}, "pelap": fields}
    params = tiny_params(variants=variants, score__variant="pelap")
    save_dataset(tiny_dataset(), packed_dataset(tmp_path, params.dataset))
    return Context(params, RunPaths(tmp_path / "run"), tmp_path, CPU)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (5, "the UNet halves latents 1 times, but those of 16 pixels have a side of 1"),
        (6, "pictures of 16 pixels are no multiple of the autoencoder's factor 32"),
    ],
)
def test_pictures_that_do_not_fit_are_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, levels: int, expected: str
) -> None:
    _autoencoder(levels).save_pretrained(tmp_path / "vae")
    monkeypatch.setattr(variants, "joint_training", lambda *args: pytest.fail("trained"))
    with pytest.raises(ConfigError) as caught:
        train.run(_context(tmp_path))
    assert f"variants.pelap: {expected}" in str(caught.value)
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_a_training_goes_on_with_the_autoencoder_that_it_began_with_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = []

    def stop(*arguments: Any) -> Any:
        folders.append(arguments[-1])
        raise KeyboardInterrupt

    monkeypatch.setattr(variants, "joint_training", stop)
    context = _context(tmp_path)
    for seed in (0, 0, 1):  # another one in the same place
        torch.manual_seed(seed)
        _autoencoder().save_pretrained(tmp_path / "vae")
        with pytest.raises(KeyboardInterrupt):
            train.run(context, "pelap")
    assert folders[0] == folders[1] != folders[2]
