"""Closed latent channels are really gone, and the smaller model computes what the hard-masked one did.

Samples are compared in double precision: the sampler's first step divides by sqrt(alpha-bar), 1/157, and so
turns a network's rounding of 1e-6 into differences above 1e-5 whatever one compares.
"""

import copy
import dataclasses
import shutil
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import AutoencoderKL
from tiny import tiny_params
from torch import nn

from pelap.cli import main
from pelap.config import (
    DownloadParams,
    LightUNetParams,
    PhotoCrops,
    SamplerParams,
    UNet2DParams,
    UNetParams,
    VariantParams,
)
from pelap.core import files
from pelap.core.errors import ModelError
from pelap.core.paths import RunPaths, packed_dataset
from pelap.data.dataset import ImageDataset, save_dataset, to_float
from pelap.datasets.sources import build_dataset
from pelap.diffusion.loss import add_noise, alphas_cumprod
from pelap.diffusion.reverse import ReverseProcess, denoise, model_denoiser
from pelap.masking.channel_removal import closed_channels, cut_channels
from pelap.models.latent_diffusion import LatentDiffusion, ModelInfo, build_model
from pelap.models.light_unet import CutLightUNet
from pelap.models.vae import VAE, Autoencoder, PretrainedVAE, load_pretrained_vae
from pelap.pipelines.pipeline_io import load_model, save_model
from pelap.stages import distill, evaluate, prune, score, train
from pelap.stages.shared import Context
from pelap.surgery.apply import apply_plan
from pelap.surgery.operators import find_operators
from pelap.surgery.plan import complete_plan, plan_from_json
from pelap.training import variants
from pelap.training.trainer import Progress

CHANNELS = 6
CLOSED, OPEN = [1, 4], [0, 2, 3, 5]
THRESHOLD = 0.5
SAMPLER = SamplerParams(kind="ddim", steps=4)
CPU = torch.device("cpu")

UNETS: dict[str, UNetParams] = {
    "light": LightUNetParams(kind="light", width=8, stem=False),
    "stem": LightUNetParams(kind="light", width=8, stem=True),
    "unet2d": UNet2DParams(
        kind="unet2d",
        channels=(8, 16),
        layers_per_block=1,
        attention=(False, True),
        attention_head_dim=8,
        norm_num_groups=4,
    ),
}
GATES: dict[str, dict[str, Any]] = {
    "hard_concrete": {"gate": "hard_concrete", "adaptive": False},
    "topk": {"gate": "topk", "adaptive": False, "k": len(OPEN)},
    "sigmoid": {"gate": "sigmoid", "adaptive": False},
    "adaptive": {"gate": "sigmoid", "adaptive": True},
    "adaptive_topk": {"gate": "topk", "adaptive": True, "k": len(OPEN)},
}
HARD = GATES["hard_concrete"] | {"sparsity_key": "seed", "decoder_input": "masked"}
# A decoder of z loses what the closed channels told it.
DECODED = [("none", "unmasked"), ("none", "masked"), ("before_mask", "masked"), ("after_mask", "masked")]


def trained_like(
    unet: str = "light",
    gate: str = "hard_concrete",
    normalise: str = "none",
    decoder_input: str = "masked",
    vae: Autoencoder | None = None,
    side: int = 16,
    dataset: str = "photos",
) -> LatentDiffusion:
    """A model none of whose weights has a value that only a fresh one has, with CLOSED closed."""
    variant = VariantParams(
        sparsity_key="seed", decoder_input=decoder_input, normalise=normalise, **GATES[gate]
    )
    info = ModelInfo("v", variant, tiny_params().diffusion, side, dataset, 0, 0.0, 0.0)
    torch.manual_seed(0)
    vae = vae or VAE(width=8, latent_channels=CHANNELS)
    model = build_model(info, vae, UNETS[unet]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        set_logits(model, CLOSED)
        if model.normaliser is not None:
            model.normaliser.statistics.running_mean.normal_()
            model.normaliser.statistics.running_var.uniform_(0.5, 2.0)
    return model


def set_logits(model: LatentDiffusion, closed: Sequence[int]) -> None:
    mask = model.mask
    assert mask is not None
    logits = mask.layers[2].bias if mask.config.adaptive else mask.logits  # type: ignore[union-attr]
    with torch.no_grad():
        logits.copy_(torch.linspace(1.5, 2.5, CHANNELS))
        logits[list(closed)] = -6.0 if mask.config.gate != "sigmoid" else -2.0


@pytest.fixture(scope="module")
def photos() -> ImageDataset:
    """Crops of scikit-image's photographs."""
    crops = PhotoCrops(train_per_photo=16, test_per_photo=2, min_crop=48, max_crop=96)
    return build_dataset("photos", DownloadParams(image_size=16, photos=crops), 0, Path("nowhere"))


class Result(NamedTuple):
    mean: torch.Tensor
    logvar: torch.Tensor
    latents: torch.Tensor
    masks: torch.Tensor
    reconstructions: torch.Tensor
    predicted: torch.Tensor
    samples: torch.Tensor  # double
    pictures: torch.Tensor  # of the samples, double


class Given(NamedTuple):
    """Test pictures, and noise and time steps for them."""

    images: torch.Tensor
    noise: torch.Tensor
    steps: torch.Tensor

    def cut(self) -> "Given":
        return self._replace(noise=self.noise[:, OPEN])


def given(model: LatentDiffusion, dataset: ImageDataset) -> Given:
    images = to_float(dataset.test.images)
    noise = torch.randn(len(images), *model.latent_shape, generator=torch.Generator().manual_seed(1))
    return Given(images, noise, torch.arange(len(images)) * 999 // (len(images) - 1))


@torch.no_grad()
def hard_masked(model: LatentDiffusion, given: Given) -> Result:
    """The whole model with exact zeros in CLOSED, put there by hand; channels OPEN of all it gives."""

    def shut(latents: torch.Tensor) -> torch.Tensor:
        latents = latents.clone()
        latents[:, CLOSED] = 0.0
        return latents

    images, noise, steps = given
    variant = model.info.variant
    mean, logvar = model.vae.encode(images)
    latents = shut(model.normaliser(mean) if variant.normalise == "before_mask" else mean)  # type: ignore[misc]
    masks = model.mask(latents).values  # type: ignore[misc]
    masked = shut(latents * masks[:, :, None, None])
    decoded = model.vae.decode(masked if variant.decoder_input == "masked" else latents)
    if variant.normalise == "after_mask":
        masked = model.normaliser(masked)  # type: ignore[misc]
    noisy = shut(add_noise(masked, noise, steps, alphas_cumprod(model.info.diffusion)))
    predicted = model.unet(noisy, steps).sample
    double = copy.deepcopy(model).double()
    double.unet.register_forward_pre_hook(lambda _, args: (shut(args[0]), *args[1:]))
    process = ReverseProcess(model.info.diffusion, SAMPLER, CPU)
    samples = restored = process.run(double.unet, noise.double())
    if variant.normalise == "after_mask":
        restored = double.normaliser.restore(samples)  # type: ignore[union-attr]
    pictures = double.vae.decode(shut(restored))
    of_channels = (each[:, OPEN] for each in (mean, logvar, latents, masks))
    return Result(*of_channels, decoded, predicted[:, OPEN], samples[:, OPEN], pictures)


@torch.no_grad()
def as_it_is(model: LatentDiffusion, given: Given) -> Result:
    """What the project computes with a model."""
    images, noise, steps = given
    latents, mean, logvar = model.encode(images)
    gates = model.gates(latents)
    noisy = add_noise(model.unet_input(latents, gates), noise, steps, alphas_cumprod(model.info.diffusion))
    open_channels = model.open_channels(gates)
    noisy = noisy if open_channels is None else noisy * open_channels
    predicted = model.unet(noisy, steps).sample
    reconstructions = model.reconstruct(images)
    double = copy.deepcopy(model).double()
    samples = denoise(double, SAMPLER, noise.double())
    pictures = double.decode_sample(samples)
    return Result(mean, logvar, latents, gates.values, reconstructions, predicted, samples, pictures)


def assert_cut_is_hard_masked(model: LatentDiffusion, cut: LatentDiffusion, dataset: ImageDataset) -> None:
    about = given(model, dataset)
    expected, found = hard_masked(model, about), as_it_is(cut, about.cut())
    assert expected.predicted.std() > 0.01
    assert expected.pictures.std() > 0.01
    assert_close(found, expected)


def assert_close(found: Result, expected: Result, *names: str) -> None:
    for name in names or Result._fields:
        one, other = getattr(found, name), getattr(expected, name)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def file_sizes(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_size for path in folder.rglob("*.safetensors")}


@pytest.mark.parametrize(("normalise", "decoder_input"), DECODED)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("unet", UNETS)
def test_cut_equals_hard_masked_on_photographs(
    photos: ImageDataset, tmp_path: Path, unet: str, gate: str, normalise: str, decoder_input: str
) -> None:
    model = trained_like(unet, gate, normalise, decoder_input)
    closed = closed_channels(model, photos.train.images, 50, THRESHOLD)
    assert closed == CLOSED
    cut = cut_channels(model, closed)
    assert cut.latent_shape == (len(OPEN), 4, 4)
    assert_cut_is_hard_masked(model, cut, photos)
    save_model(model, tmp_path / "whole")
    save_model(cut, tmp_path / "cut")
    whole_sizes, sizes = file_sizes(tmp_path / "whole"), file_sizes(tmp_path / "cut")
    assert sizes.keys() == whole_sizes.keys()
    assert all(sizes[part] < whole_sizes[part] for part in sizes)
    loaded = load_model(tmp_path / "cut")
    assert loaded.info == cut.info
    assert loaded.info.cut_channels == tuple(CLOSED)
    before, after = (as_it_is(each, given(cut, photos)) for each in (cut, loaded))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_channel_that_topk_closes_on_some_pictures_is_still_closed_on_those(photos: ImageDataset) -> None:
    model = trained_like("unet2d", "adaptive_topk")
    mask = model.mask
    assert mask is not None
    mask.register_to_config(num_active=3)
    with torch.no_grad():
        # CLOSED apart, a matter of what the predictor makes of the picture without them.
        mask.layers[0].weight[:, CLOSED] = 0.0
        mask.layers[2].bias[OPEN] = 0.0
        mask.layers[2].weight.normal_()
        logits = mask.layers(model.encode(to_float(photos.train.images)).latents.mean(dim=(2, 3)))
        mask.layers[2].bias[OPEN] = -logits[:, OPEN].median(dim=0).values
        mask.layers[2].bias[CLOSED] -= 100.0
    assert closed_channels(model, photos.train.images, 50) == CLOSED
    assert 0 < hard_masked(model, given(model, photos)).masks.mean(dim=0).min() < 1
    assert_cut_is_hard_masked(model, cut_channels(model, CLOSED), photos)


@pytest.mark.parametrize("gate", ["hard_concrete", "topk"])
@pytest.mark.parametrize("unet", UNETS)
def test_static_hard_gate_is_equal_to_the_model_itself(photos: ImageDataset, unet: str, gate: str) -> None:
    model = trained_like(unet, gate, "before_mask")
    about = given(model, photos)
    whole, cut = as_it_is(model, about), as_it_is(cut_channels(model, CLOSED), about.cut())
    whole = whole._replace(predicted=whole.predicted[:, OPEN], samples=whole.samples[:, OPEN])
    assert_close(cut, whole, "predicted", "samples", "reconstructions", "pictures")


def test_norm_bias_of_a_closed_channel_is_kept_as_one_channel_of_ones() -> None:
    model = trained_like("light")
    cut = cut_channels(model, CLOSED)
    assert isinstance(cut.unet, CutLightUNet)
    assert cut.unet.block_in.conv1.weight.shape[1] == len(OPEN) + 1
    with torch.no_grad():
        model.unet.block_in.norm1.bias.zero_()  # type: ignore[union-attr, operator]
    plain = cut_channels(model, CLOSED)
    assert not isinstance(plain.unet, CutLightUNet)
    assert plain.unet.block_in.conv1.weight.shape[1] == len(OPEN)  # type: ignore[union-attr]


@pytest.mark.parametrize("unet", UNETS)
def test_cut_in_two_steps_is_cut_in_one(photos: ImageDataset, unet: str) -> None:
    model = trained_like(unet, "sigmoid", "after_mask")
    twice = cut_channels(cut_channels(model, [4]), [1])
    assert twice.info.cut_channels == tuple(CLOSED)
    assert_cut_is_hard_masked(model, twice, photos)


@pytest.mark.parametrize("unet", UNETS)
def test_nothing_closed_is_an_equal_model(photos: ImageDataset, unet: str) -> None:
    model = trained_like(unet, "adaptive", "before_mask")
    set_logits(model, [])
    assert closed_channels(model, photos.train.images, 50) == []
    cut = cut_channels(model, [])
    assert cut.info == model.info
    assert type(cut.unet) is type(model.unet)
    assert cut.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, cut.state_dict()[name]) for name, tensor in model.state_dict().items())
    variant = VariantParams(gate="none", sparsity_key="seed")
    model.info, model.mask = dataclasses.replace(model.info, variant=variant), None
    assert closed_channels(model, photos.train.images, 50) == []  # without a mask


def test_channel_open_on_a_single_picture_stays(photos: ImageDataset) -> None:
    model = trained_like("light", "adaptive")
    images = photos.train.images
    with torch.no_grad():
        means = model.encode(to_float(images)).latents.mean(dim=(2, 3))[:, 0]
        first, last = model.mask.layers[0], model.mask.layers[2]  # type: ignore[union-attr]
        first.weight.zero_()
        first.weight[0, 0] = 1.0
        first.bias.copy_(-means.sort().values[-2:].mean().expand(32))
        last.weight.zero_()
        last.weight[1, 0] = 1.0
        last.bias.fill_(2.0)
        # Above 0, for the picture of the largest mean alone, just where the first layer is.
        last.bias[1] = -1e-4 * (means.max() - means.sort().values[-2])
    open_pictures = (model.gates(model.encode(to_float(images)).latents).values[:, 1] > THRESHOLD).sum()
    assert open_pictures == 1
    assert closed_channels(model, images, 50) == []
    others = images[torch.arange(len(images)) != means.argmax()]
    assert closed_channels(model, others, 50) == [1]


def test_topk_asks_for_no_more_channels_than_are_left() -> None:
    cut = cut_channels(trained_like(gate="topk"), [0, 1, 2, 3])
    assert cut.info.variant.k == cut.mask.config.num_active == 2  # type: ignore[union-attr]


def test_all_closed_is_refused() -> None:
    with pytest.raises(ModelError, match="nothing would be left"):
        cut_channels(trained_like(), range(CHANNELS))


@pytest.mark.parametrize(
    ("unet", "operator"), [("unet2d", "mid_block.resnets.0.nonlinearity"), ("light", "block_mid.act1")]
)
def test_pruned_is_refused_even_where_no_tensor_is_missing(unet: str, operator: str) -> None:
    model = trained_like(unet)
    model.unet = apply_plan(model.unet, plan_from_json({"operators": [operator]}, "test"))
    with pytest.raises(ModelError, match="a pruned model cannot be cut"):
        cut_channels(model, CLOSED)


@pytest.mark.parametrize("unet", UNETS)
def test_cut_model_can_be_pruned(tmp_path: Path, unet: str) -> None:
    cut = cut_channels(trained_like(unet), CLOSED)
    denoiser = model_denoiser(cut, SAMPLER, 0)
    operators = find_operators(cut.unet, denoiser.forward(2))
    names = [operator.name for operator in operators if operator.parent is None][:3]
    plan = complete_plan(plan_from_json({"operators": names}, "test"), cut.unet, operators)
    pruned = apply_plan(cut.unet, plan)
    denoiser.forward(2, pruned)()
    cut.unet = pruned
    save_model(cut, tmp_path / "pruned", plan)
    loaded = load_model(tmp_path / "pruned")
    x = torch.randn(2, *cut.latent_shape)
    assert torch.equal(loaded.unet(x, 3).sample, cut.unet(x, 3).sample)


# A pretrained autoencoder


def autoencoder_kl(quant: bool, shift: float | None) -> PretrainedVAE:
    return PretrainedVAE(
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(4, 8, 8),
            latent_channels=CHANNELS,
            norm_num_groups=4,
            scaling_factor=0.7,
            shift_factor=shift,
            use_quant_conv=quant,
            use_post_quant_conv=quant,
        )
    )


@pytest.mark.parametrize(("quant", "shift"), [(True, None), (True, 0.3), (False, 0.3)])
def test_pretrained_autoencoder_is_cut(
    photos: ImageDataset, tmp_path: Path, quant: bool, shift: float | None
) -> None:
    model = trained_like("stem", "topk", vae=autoencoder_kl(quant, shift))
    cut = cut_channels(model, CLOSED)
    assert_cut_is_hard_masked(model, cut, photos)
    assert not any(parameter.requires_grad for parameter in cut.vae.parameters())
    twice = cut_channels(cut_channels(model, [1]), [3])
    for folder, what in ((tmp_path / "cut", cut), (tmp_path / "twice", twice)):
        save_model(what, folder)
        assert files.read_json(folder / "vae" / "kept_channels.json") == OPEN
        assert_cut_is_hard_masked(model, load_model(folder), photos)
    save_model(model, tmp_path / "whole")
    assert file_sizes(tmp_path / "cut")["vae"] < file_sizes(tmp_path / "whole")["vae"] or shift


@pytest.fixture
def cut_folder(tmp_path: Path) -> Path:
    """A model with a pretrained autoencoder that was cut."""
    save_model(cut_channels(trained_like(vae=autoencoder_kl(True, None)), CLOSED), tmp_path / "model")
    return tmp_path / "model"


def test_cut_pretrained_autoencoder_is_refused_by_plain_diffusers(cut_folder: Path) -> None:
    with pytest.raises(OSError, match="diffusion_pytorch_model"):
        AutoencoderKL.from_pretrained(cut_folder / "vae")
    with pytest.raises(ModelError, match="cannot be loaded as AutoencoderKL"):
        load_pretrained_vae(str(cut_folder / "vae"))


def test_a_whole_autoencoder_saved_over_a_cut_one_is_seen(cut_folder: Path) -> None:
    autoencoder_kl(True, None).vae.save_pretrained(cut_folder / "vae")
    for load in (load_model, lambda folder: load_pretrained_vae(str(folder / "vae"))):
        with pytest.raises(
            ModelError, match=r"vae: holds two networks, cut\.safetensors \(cut\) and diffusion"
        ):
            load(cut_folder)
    save_model(trained_like(vae=autoencoder_kl(True, None)), cut_folder)
    assert not (cut_folder / "vae" / "cut.safetensors").exists()
    assert load_pretrained_vae(str(cut_folder / "vae")) is not None


def test_damaged_list_of_kept_channels(cut_folder: Path) -> None:
    for kept in ([], [0, 0], [3, 2], [0, CHANNELS], [-1], "0", [0, "1"], None):
        files.write_json(cut_folder / "vae" / "kept_channels.json", kept)
        with pytest.raises(ModelError, match=r"kept_channels\.json: expected a rising list"):
            load_model(cut_folder)


# In the stages


@pytest.mark.parametrize(
    ("closed", "line", "left"),
    [
        (CLOSED, "cut 2 of 6 latent channels (1, 4)", 4),
        ([], "cut 0 of 6 latent channels: each is open on some train picture", 6),
        (range(CHANNELS), "all 6 latent channels are closed; nothing is cut", 6),
    ],
)
def test_train_cuts_a_variant_that_says_so(
    photos: ImageDataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    closed: Sequence[int],
    line: str,
    left: int,
) -> None:
    def training(model: LatentDiffusion, *args: object) -> Generator[None, None, tuple[nn.Module, Progress]]:
        yield
        set_logits(model, closed)
        return model.eval(), Progress(1, [{"step": 1}], [{"step": 1}])

    monkeypatch.setattr(variants, "joint_training", training)
    params = tiny_params(
        variants={"v": HARD | {"cut": True}},
        vae__latent_channels=CHANNELS,
        download__image_size=16,
        score__variant="v",
    )
    save_dataset(photos, packed_dataset(tmp_path / "data", params.dataset))
    context = Context(params, RunPaths(tmp_path / "run"), tmp_path / "data", CPU)
    train.run(context, "v")
    assert f"v: {line}" in capsys.readouterr().out
    assert load_model(context.paths.train("v").model).latent_shape[0] == left


def run_command(tmp_path: Path, model: LatentDiffusion, dataset: ImageDataset) -> int:
    save_model(model, tmp_path / "whole")
    save_dataset(dataset, packed_dataset(tmp_path / "data", dataset.name))
    paths = {"--model": "whole", "--data": "data", "--out": "cut"}
    argv = [word for option, name in paths.items() for word in (option, str(tmp_path / name))]
    return main(["remove-channels", *argv, "--device", "cpu"])


def test_command(photos: ImageDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = trained_like("unet2d", "sigmoid")
    assert run_command(tmp_path, model, photos) == 0
    out = capsys.readouterr().out
    assert out.startswith("cut 2 of 6 latent channels (1, 4); parameters ")
    assert "bytes on disk" in out
    assert out.count("\n") == 1
    assert_cut_is_hard_masked(model, load_model(tmp_path / "cut"), photos)
    shutil.rmtree(tmp_path / "cut")
    assert run_command(tmp_path, trained_like(decoder_input="unmasked"), photos) == 0
    assert "decoder_input: unmasked" in capsys.readouterr().out  # a warning


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda model, out: set_logits(model, range(CHANNELS)), "nothing would be left"),
        (lambda model, out: (out.mkdir(), (out / "mine").touch()), "is not empty"),
        (
            lambda model, out: setattr(model, "info", dataclasses.replace(model.info, image_size=32)),
            "at 32 pixels",
        ),
    ],
)
def test_command_refuses_in_one_line(
    photos: ImageDataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    break_it: Callable[[LatentDiffusion, Path], object],
    message: str,
) -> None:
    model = trained_like()
    break_it(model, tmp_path / "cut")
    assert run_command(tmp_path, model, photos) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "cut" / "config.json").exists()


@pytest.mark.slow
def test_cut_model_goes_through_score_prune_distill_and_evaluate(
    photos: ImageDataset, tmp_path: Path
) -> None:
    params = tiny_params(
        variants={"v": HARD},
        score__variant="v",
        prune={"time_reduction": None, "num_params": None, "num_operators": 3},
        evaluate__num_images=24,
        evaluate__num_reference=64,
    )
    paths = RunPaths(tmp_path / "run")
    save_dataset(photos, packed_dataset(tmp_path / "data", params.dataset))
    save_model(cut_channels(trained_like("light"), CLOSED), paths.train("v").model)
    context = Context(params, paths, tmp_path / "data", CPU)
    for stage in (score, prune, distill, evaluate):
        stage.run(context)
    students = [f"{name}-3" for name in ("pruned", "distilled", "output-only", "scratch")]
    assert set(files.read_metrics(paths.metrics)) == {"v", *students, "dense-finetuned", "real"}
    assert load_model(paths.distilled_model("distilled-3")).latent_shape == (len(OPEN), 4, 4)
