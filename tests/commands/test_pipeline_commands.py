"""A stranger's pipeline folder is sampled, evaluated and distilled like a model of ours."""

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)
from interruption import cut_training, record_steps
from PIL import Image
from pipeline_pairs import (
    CPU,
    KINDS,
    REMOVED,
    batches_of,
    dataset_for,
    denoiser,
    distillation_params,
    dit_of_two_classes,
    part_of,
    save_data,
    save_pair,
    student_of,
)
from tiny import tiny_dataset, tiny_model, tiny_params
from tiny_pipelines import (
    PROMPTS,
    awake,
    tiny_ddim,
    tiny_ddpm,
    tiny_dit,
    tiny_ldm,
    tiny_stable_diffusion,
    tiny_stable_diffusion_xl,
    unet2d,
)

import pelap
from pelap.cli import main
from pelap.commands import evaluate_pipelines as evaluate_stage
from pelap.commands import sample as sampling
from pelap.commands.distill_pipeline import distill_pipeline
from pelap.commands.evaluate_pipelines import evaluate_pipelines
from pelap.commands.sample import sample
from pelap.config import LossWeights
from pelap.core import files
from pelap.core import rng as seeding
from pelap.core.errors import ConfigError, DataError, ModelError, PelapError
from pelap.data.dataset import ImageDataset, to_float
from pelap.distillation import pipeline_batches
from pelap.distillation.distill import distill, matched_blocks
from pelap.distillation.pipeline_batches import PipelineBatches, encode
from pelap.evaluation.features import EffNetLite0
from pelap.evaluation.frechet import FeatureStatistics, frechet_distance
from pelap.evaluation.image_quality import psnr
from pelap.pipelines import LatentPipeline
from pelap.pipelines.model_io import load_model, save_model
from pelap.pipelines.pipeline_io import is_pipeline, load_pipeline, pipeline_plan, save_pipeline
from pelap.profiling.cost import count_macs, count_params
from pelap.surgery.apply import apply_plan, removed_operators
from pelap.surgery.operators import find_operators
from pelap.surgery.plan import complete_plan, plan_from_json

STEPS = 4
# diffusers' Euler schedulers with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


@pytest.fixture(autouse=True)
def _same_weights_in_every_run() -> None:
    torch.manual_seed(0)


"""Of the pictures; of all others 16."""
each_kind = pytest.mark.parametrize("kind", KINDS)


def pictures_in(folder: Path) -> torch.Tensor:
    """(N, 3, H, W) uint8."""
    files = sorted(folder.glob("0*.png"))
    return torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files])


# --- a folder that holds something already ---------------------------------------------------------

HELD: dict[str, Callable[[Path], object]] = {
    "dense pipeline": lambda folder: save_pipeline(tiny_ddim(), folder),
    "pruned pipeline": lambda folder: save_pair(folder.parent, "ddim")[1].rename(folder),
    "variant": lambda folder: tiny_ddim().save_pretrained(folder, variant="fp16"),
    "shards": lambda folder: tiny_ddim().save_pretrained(folder, max_shard_size="30KB"),
    "pickle": lambda folder: tiny_ddim().save_pretrained(folder, safe_serialization=False),
    "model": lambda folder: save_model(tiny_model(), folder),
    "pictures": lambda folder: (folder.mkdir(), Image.new("RGB", (2, 2)).save(folder / "00000.png")),
    "a file": lambda folder: folder.write_text("mine"),
}
COMMANDS = {
    "prune": ["prune", "--pipeline", "dense", "--scores", "none.csv"],
    "distill": ["distill", "--pipeline", "pruned", "--teacher", "dense"],
    "cut": ["cut", "--model", "model"],
    "sample": ["sample", "--model", "dense", "--num", "1"],
}


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_writes_where_something_is(
    tmp_path: Path,
    command: str,
    held: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    params = Path("params.yaml").resolve()
    monkeypatch.chdir(tmp_path)
    save_pair(tmp_path, "ddim")
    save_model(tiny_model(), tmp_path / "model")
    (tmp_path / "other").mkdir()
    HELD[held](tmp_path / "other" / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "other").rglob("*") if path.is_file()}
    options = ["--params", str(params)] if command in ("prune", "distill") else []
    assert main([*COMMANDS[command], "--out", "other/out", "--device", "cpu", *options]) == 2
    said = capsys.readouterr().err
    assert "other/out" in said
    assert held == "a file" or "is not empty" in said
    after = {path: path.read_bytes() for path in (tmp_path / "other").rglob("*") if path.is_file()}
    assert {path: text for path, text in after.items() if not path.name.endswith(".lock")} == before


WRITERS: dict[str, Callable[[Path], object]] = {
    "save_model": lambda folder: save_model(tiny_model(), folder),
    "save_pipeline": lambda folder: save_pipeline(tiny_ddim(), folder),
}


@pytest.mark.parametrize("held", [held for held in HELD if held not in ("a file", "pictures")])
@pytest.mark.parametrize("writer", ["save_model", "save_pipeline"])
def test_what_is_saved_replaces_what_was_there(tmp_path: Path, writer: str, held: str) -> None:
    for place in ("empty", "full"):
        (tmp_path / place).mkdir()
    HELD[held](tmp_path / "full" / "out")
    for place in ("empty", "full"):
        WRITERS[writer](tmp_path / place / "out")
    outs = [tmp_path / place / "out" for place in ("empty", "full")]
    names = [{str(path.relative_to(out)) for path in out.rglob("*")} for out in outs]
    assert names[0] == names[1]
    assert is_pipeline(tmp_path / "full" / "out") == (writer == "save_pipeline")
    (load_model if writer == "save_model" else load_pipeline)(tmp_path / "full" / "out")


@pytest.mark.parametrize("writer", ["save_model", "save_pipeline"])
def test_pictures_are_not_replaced(tmp_path: Path, writer: str) -> None:
    HELD["pictures"](tmp_path / "out")
    before = sorted(path.name for path in (tmp_path / "out").rglob("*"))
    with pytest.raises(ModelError, match="holds files that are no model's"):
        WRITERS[writer](tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == before


# --- sample -----------------------------------------------------------------------------------------


def own_pictures(pipe: DiffusionPipeline, kind: str, seed: int, num: int, patch: pytest.MonkeyPatch) -> Any:
    """(N, H, W, 3) in 0..255 by the pipeline's own call."""
    pipe.set_progress_bar_config(disable=True)
    network = denoiser(pipe)
    shape = (network.config.in_channels, network.config.sample_size, network.config.sample_size)
    noise = seeding.noise(shape, seed, "sample", range(num))
    options: dict[str, Any] = {"num_inference_steps": STEPS, "output_type": "np"}
    if kind == "stable_diffusion":
        prompts = [PROMPTS[i % len(PROMPTS)] for i in range(num)]
        return pipe(prompt=prompts, latents=noise, **options).images * 255
    call = {"class_labels": [*range(num)]} if kind == "dit" else {"batch_size": num}
    patch.setattr(sys.modules[type(pipe).__module__], "randn_tensor", lambda *_, **__: noise.clone())
    return pipe(**call, **options).images * 255


@each_kind
def test_pictures_are_those_of_the_pipelines_own_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = tiny_dit() if kind == "dit" else KINDS[kind]()  # whose own call knows no other number of classes
    save_pipeline(pipe, tmp_path / "pipe")
    prompts = None
    if kind == "stable_diffusion":
        prompts = tmp_path / "prompts.txt"
        prompts.write_text("\n".join(PROMPTS))
    monkeypatch.setattr(sampling, "PIPELINE_BATCH_SIZE", 2)  # which changes nothing
    sample(tmp_path / "pipe", 5, 7, STEPS, tmp_path / "out", "cpu", prompts)
    assert "5 pictures and grid.png" in capsys.readouterr().out
    pictures = pictures_in(tmp_path / "out").permute(0, 2, 3, 1).float()
    assert pictures.std() > 20  # pictures worth comparing
    own = torch.from_numpy(own_pictures(pipe, kind, 7, 5, monkeypatch))
    assert (pictures - own).abs().max() < 1.5  # rounded to the next of 256, in other batches
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        assert grid.width > 5 * pictures.shape[2]


def test_pruned_pipelines_are_sampled_too(tmp_path: Path) -> None:
    dense, pruned = save_pair(tmp_path, "ddim")
    for folder in (dense, pruned):
        sample(folder, 2, 0, STEPS, tmp_path / f"{folder.name} pictures", "cpu")
    one, other = (pictures_in(tmp_path / f"{name} pictures") for name in ("dense", "pruned"))
    assert one.shape == other.shape == (2, 3, 8, 8)
    assert not torch.equal(one, other)


def test_prompts_are_for_text_to_image_alone(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("rain")
    save_model(tiny_model(), tmp_path / "model")
    save_pipeline(tiny_ddim(), tmp_path / "ddim")
    save_pipeline(tiny_stable_diffusion(), tmp_path / "text")
    for folder, given in (("model", prompts), ("ddim", prompts), ("text", None)):
        with pytest.raises(ConfigError, match="prompts"):
            sample(tmp_path / folder, 1, 0, STEPS, tmp_path / "out", "cpu", given)
    sample(tmp_path / "model", 1, 0, STEPS, tmp_path / "out", "cpu")


# --- evaluate ---------------------------------------------------------------------------------------


QUALITY = {"fd_effnet_lite0", "fd_effnet_lite0_se", "kid_effnet_lite0", "kid_effnet_lite0_std"} | {
    f"{name}_effnet_lite0" for name in ("precision", "recall", "density", "coverage", "shift")
}


def evaluated(tmp_path: Path, folders: list[Path], **overrides: Any) -> dict[str, dict[str, float]]:
    data = save_data(tmp_path / "data", tiny_dataset(num_train=100, side=8))
    out = tmp_path / "figures.json"
    evaluate_pipelines(tiny_params(**overrides), folders, data, out, CPU, None)
    metrics = files.read_metrics(out)
    assert metrics is not None
    return metrics  # type: ignore[return-value]


def test_pipelines_are_evaluated_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = list(save_pair(tmp_path, "ddim"))
    metrics = evaluated(tmp_path, folders)
    assert list(metrics) == ["dense", "pruned", "real"]
    assert set(metrics["real"]) == QUALITY
    costs = {
        "latency_ms",
        "latency_iqr_ms",
        "latency_least_ms",
        "params",
        "macs",
        "peak_memory_mib",
        "disk_mib",
    }
    costs |= {"image_ms", "image_iqr_ms"}
    pairs = {"dense": set(), "pruned": {"psnr_to_dense"}}
    for name, folder in zip(("dense", "pruned"), folders, strict=True):
        network = pelap.load_pipeline(folder).unet
        assert set(metrics[name]) == QUALITY | costs | pairs[name]
        assert metrics[name]["params"] == count_params(network)
        (weights,) = (folder / "unet").glob("*.safetensors")
        assert metrics[name]["disk_mib"] == weights.stat().st_size / 2**20
        assert metrics[name]["image_ms"] > 0 < metrics[name]["latency_ms"]
    for cost in ("params", "macs", "peak_memory_mib", "disk_mib"):
        assert metrics["pruned"][cost] < metrics["dense"][cost]
    printed = capsys.readouterr().out
    assert "UNet" not in printed
    assert all(len(line) <= 80 for line in printed.splitlines() if str(tmp_path) not in line)
    assert all(name in printed for name in ("dense", "pruned", "real", "denoiser"))


def test_distances_are_of_the_pipelines_own_samples(tmp_path: Path) -> None:
    dense, pruned = save_pair(tmp_path, "ddim")
    metrics = evaluated(tmp_path, [dense, pruned], evaluate__latency_repeats=None, evaluate__batch_size=7)
    assert set(metrics["dense"]) == QUALITY

    def pictures_of(folder: Path) -> torch.Tensor:
        pipeline = LatentPipeline(pelap.load_pipeline(folder), 4)
        noise = seeding.noise(pipeline.latent_shape, 0, "sample", range(24))
        return pipeline.decode(pipeline.denoise(noise, range(24), 0))

    images = pictures_of(dense)
    train, extractor = tiny_dataset(num_train=100, side=8).train.images, EffNetLite0(CPU)

    def distance(pictures: torch.Tensor) -> float:
        both = (FeatureStatistics.of(extractor(some)) for some in (pictures, train[:64]))
        return frechet_distance(*both)

    assert metrics["dense"]["fd_effnet_lite0"] == pytest.approx(distance(images), rel=1e-3)
    assert metrics["pruned"]["psnr_to_dense"] == pytest.approx(psnr(pictures_of(pruned), images), abs=0.05)
    assert metrics["real"]["fd_effnet_lite0"] == pytest.approx(distance(train[64:88]), rel=1e-6)


def test_figures_have_their_protocol_beside_them(tmp_path: Path) -> None:
    pipe = tiny_ddim()
    pipe.scheduler = DDIMScheduler(timestep_spacing="trailing")
    save_pipeline(pipe, tmp_path / "mine")
    evaluated(tmp_path, [tmp_path / "mine"], evaluate__sampler={"kind": "ddim", "steps": 5})
    protocol = json.loads((tmp_path / "figures.protocol.json").read_text())
    mine = protocol["pipelines"]["mine"]
    assert (mine["scheduler"], mine["timestep_spacing"], mine["steps"]) == ("DDIMScheduler", "trailing", 5)
    assert mine["rows_per_latent"] == 1
    assert (protocol["num_reference"], protocol["num_images"]) == (64, 24)
    assert {"dataset_checksum", "extractors", "latency_batch_sizes", "seed", "device"} <= set(protocol)
    assert protocol["dense"] == "mine"
    assert [(row["model"], row["batch_size"]) for row in protocol["latencies"]] == [("mine", 4), ("mine", 1)]


def test_a_pass_of_a_guided_pipeline_has_both_rows(tmp_path: Path) -> None:
    save_pipeline(dit_of_two_classes(), tmp_path / "dit")
    data = save_data(tmp_path / "data", tiny_dataset(num_train=100, side=16))
    out = tmp_path / "f.json"
    params = tiny_params(evaluate__latency_batch_sizes=[3], evaluate__num_images=2)
    evaluate_pipelines(params, [tmp_path / "dit"], data, out, CPU, None)
    pipe = pelap.load_pipeline(tmp_path / "dit")
    x, t, y = torch.zeros(2, 4, 8, 8), torch.tensor([3, 3]), torch.tensor([0, 2])
    network = pipe.transformer
    one = count_macs(network, lambda: network(x, timestep=t, class_labels=y))[""]
    assert files.read_metrics(out)["dit"]["macs"] == one


def test_evaluation_refuses_what_does_not_fit(tmp_path: Path) -> None:
    dense, pruned = save_pair(tmp_path, "ddim")
    save_pipeline(tiny_ldm(), tmp_path / "ldm")
    other = tmp_path / "other" / "dense"
    cases: list[tuple[list[Path], dict[str, Any], type[PelapError], str]] = [
        ([dense, other], {}, ConfigError, "has the name of"),
        ([tmp_path / "real"], {}, ConfigError, "row of real pictures"),
        ([pruned, tmp_path / "ldm"], {}, ModelError, "pictures of 16x16 pixels, those of tiny have 8x8"),
        ([dense], {"evaluate__num_images": 99}, DataError, "num_reference"),
        ([dense], {"evaluate__sampler": {"kind": "ddim", "steps": 2000}}, ConfigError, "2000"),
    ]
    for folders, overrides, kind, words in cases:
        with pytest.raises(kind, match=words) as caught:
            evaluated(tmp_path, folders, **overrides)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "figures.json").exists()


# --- what is learnt from ----------------------------------------------------------------------------


SCHEDULERS = {
    "ddpm": DDPMScheduler(beta_schedule="scaled_linear"),
    "ddim": DDIMScheduler(rescale_betas_zero_snr=True),
    "pndm": PNDMScheduler(num_train_timesteps=50),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_noise_is_added_as_the_scheduler_does(name: str) -> None:
    pipe, dataset = tiny_ddpm(), tiny_dataset(side=8)
    pipe.scheduler = scheduler = SCHEDULERS[name]
    seen = []
    for step, batch in zip(range(4), batches_of(pipe, dataset)(0), strict=False):
        stream = seeding.generator(0, "distill-step", step)
        torch.randn(16, 3, 8, 8, generator=stream)  # a posterior's, were there an encoder
        noise = torch.randn(16, 3, 8, 8, generator=stream)
        assert torch.equal(batch.target, noise)
        # Whole again, the noise taken off, they are pictures of the data.
        a = scheduler.alphas_cumprod[batch.timesteps][:, None, None, None]
        zeros = torch.zeros_like(noise)
        clean = (batch.latents - scheduler.add_noise(zeros, noise, batch.timesteps)) / a.sqrt()
        clear = (a > 0.01).flatten()
        pictures = to_float(dataset.train.images)
        pictures = torch.cat([pictures, pictures.flip(-1)])
        nearest = (clean[:, None] - pictures).abs().amax(dim=(2, 3, 4)).amin(dim=1)
        assert nearest[clear].max() < 1e-4
        seen.append(batch.timesteps)
    times = torch.cat(seen)
    assert times.max() < scheduler.config.num_train_timesteps
    assert times.max() > 0.8 * scheduler.config.num_train_timesteps


def test_schedulers_that_scale_give_what_their_denoiser_sees() -> None:
    scheduler = EulerDiscreteScheduler(steps_offset=1, beta_schedule="scaled_linear")
    batch = next(batches_of(tiny_stable_diffusion(scheduler))(3))
    ddpm = DDPMScheduler(steps_offset=1, clip_sample=False, beta_schedule="scaled_linear")
    torch.manual_seed(0)  # the same networks
    torch.testing.assert_close(batch.latents, next(batches_of(tiny_stable_diffusion(ddpm))(3)).latents)
    scheduler.set_timesteps(1000)
    clean, noise, time = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), scheduler.timesteps[400]
    noisy = scheduler.add_noise(clean, noise, time[None])
    seen = scheduler.scale_model_input(noisy, time)
    expected = ddpm.add_noise(clean, noise, time[None].long())
    torch.testing.assert_close(seen, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_target_is_what_the_denoiser_predicts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_ddpm(prediction_type=kind)
    clean = torch.randn(16, 3, 8, 8)
    monkeypatch.setattr(pipeline_batches, "encode", lambda *_: clean)
    batch = next(batches_of(pipe, tiny_dataset(side=8))(0))
    stream = seeding.generator(0, "distill-step", 0)
    _, noise = (torch.randn(16, 3, 8, 8, generator=stream) for _ in range(2))
    velocity = pipe.scheduler.get_velocity(clean, noise, batch.timesteps)
    expected = {"epsilon": noise, "sample": clean, "v_prediction": velocity}[kind]
    torch.testing.assert_close(batch.target, expected)


@pytest.mark.parametrize("build", [tiny_ldm, tiny_stable_diffusion, tiny_stable_diffusion_xl, tiny_dit])
@torch.no_grad()
def test_latents_are_what_the_decoder_takes(build: Any) -> None:
    pipe = build()
    autoencoder = getattr(pipe, "vqvae", None) or pipe.vae
    if hasattr(autoencoder.config, "shift_factor"):
        autoencoder.register_to_config(shift_factor=0.3)
    pictures = to_float(tiny_dataset(side=16).train.images[:4])
    prompts = PROMPTS if hasattr(pipe, "encode_prompt") else None
    pipeline = LatentPipeline(pipe, STEPS, prompts)
    noise = torch.randn(4, *pipeline.latent_shape)
    encoded = autoencoder.encode(pictures)
    if hasattr(encoded, "latent_dist"):
        inside = encoded.latent_dist.mean + encoded.latent_dist.logvar.exp().sqrt() * noise
    else:
        inside = encoded.latents
    latents = encode(pipe, pictures, noise)
    assert not torch.allclose(latents, inside, rtol=0.1)  # something was scaled
    expected = ((autoencoder.decode(inside).sample.clamp(-1, 1) + 1) * 127.5).round()
    assert (pipeline.decode(latents) - expected).abs().max() <= 1


def test_pixels_of_one_colour_are_learnt_as_grey() -> None:
    pipe = tiny_ddim()
    pipe.unet = unet2d(1)
    pictures = torch.rand(2, 3, 8, 8)
    grey = encode(pipe, pictures, torch.zeros(2, 1, 8, 8))
    torch.testing.assert_close(grey, pictures.mean(1, keepdim=True))
    batch = next(batches_of(pipe, tiny_dataset(side=8))(0))
    assert batch.predict(pipe.unet).shape == batch.target.shape == (16, 1, 8, 8)


def labels_of(batches: PipelineBatches, step: int) -> torch.Tensor:
    """Labels of a batch, 2 where there is none, by another way than the batch's own."""
    size = batches.params.batch_size
    order = torch.cat(
        [
            torch.randperm(64, generator=seeding.generator(0, "distill-order", epoch))[: 64 // size * size]
            for epoch in range(20)
        ]
    )
    labels = order[step * size : (step + 1) * size] % 2  # tiny_dataset takes turns
    stream = seeding.generator(0, "distill-step", step)
    shape = (size, *batches.pipeline.latent_shape)
    for _ in range(2):
        torch.randn(shape, generator=stream)
    torch.randint(1000, (size,), generator=stream)
    return torch.where(torch.rand(size, generator=stream) < 0.1, 2, labels)


@pytest.mark.parametrize("build", [tiny_stable_diffusion, tiny_stable_diffusion_xl])
@torch.no_grad()
def test_captions_are_the_names_of_classes(build: Any) -> None:
    pipe, plain = build(), tiny_dataset(side=16)
    dataset = ImageDataset("x", plain.train, plain.test, ("red_cat", "two dogs"), "", "")
    batches = batches_of(pipe, dataset, distill__batch_size=32)
    assert batches.pipeline.prompts == ("red cat", "two dogs")
    one_by_one = [
        pipe.encode_prompt(prompt=text, device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=True)
        for text in batches.pipeline.prompts
    ]
    table = torch.cat([encoding[0] for encoding in one_by_one] + [one_by_one[0][1]])  # the last: for none
    seen = []
    for step, batch in zip(range(4), batches(0), strict=False):
        labels = labels_of(batches, step)
        torch.testing.assert_close(batch.conditions["encoder_hidden_states"], table[labels])
        if build is tiny_stable_diffusion_xl:
            pooled = torch.cat([encoding[2] for encoding in one_by_one] + [one_by_one[0][3]])
            added = batch.conditions["added_cond_kwargs"]
            torch.testing.assert_close(added["text_embeds"], pooled[labels])
            assert added["time_ids"].shape == (32, 6)
        assert batch.predict(pipe.unet).shape == batch.target.shape
        seen.append(labels)
    assert set(torch.cat(seen).tolist()) == {0, 1, 2}
    assert not torch.allclose(table[0], table[1])


def test_classes_are_given_by_their_labels_and_some_by_none() -> None:
    batches = batches_of(dit_of_two_classes())
    labels = []
    for step, batch in zip(range(60), batches(0), strict=False):
        assert torch.equal(batch.conditions["class_labels"], labels_of(batches, step))
        labels.append(batch.conditions["class_labels"])
    share = (torch.cat(labels) == 2).float().mean()
    assert 0.06 < share < 0.14
    unconditional = next(batches_of(tiny_ddim(), tiny_dataset(side=8))(0))
    assert not unconditional.conditions


class Unguided(StableDiffusionPipeline):
    def __call__(
        self, prompt: Any = None, latents: Any = None, output_type: str = "pil", **options: Any
    ) -> Any:
        options |= {"latents": latents, "output_type": output_type}
        return super().__call__(prompt=prompt, guidance_scale=1.0, **options)


def test_without_guidance_every_item_has_its_caption() -> None:
    pipe = tiny_stable_diffusion()
    pipe.__class__ = Unguided
    batches = batches_of(pipe)
    assert batches.pipeline.copies == 1
    captions = batches.conditions["encoder_hidden_states"]
    assert len(captions) == 2
    for _, batch in zip(range(5), batches(0), strict=False):
        given = batch.conditions["encoder_hidden_states"][:, None]
        assert (given == captions).flatten(2).all(dim=2).any(dim=1).all()


def test_batches_go_on_at_any_step() -> None:
    batches = batches_of(dit_of_two_classes())
    first = [batch for _, batch in zip(range(7), batches(0), strict=False)]
    for start in range(7):
        again = next(batches(start))
        assert torch.equal(again.latents, first[start].latents)
        assert torch.equal(again.conditions["class_labels"], first[start].conditions["class_labels"])


@pytest.mark.parametrize("build", [tiny_stable_diffusion, dit_of_two_classes])
def test_held_out_batches_are_of_test_pictures_and_the_same_at_every_call(build: Any) -> None:
    pipe, dataset = build(), tiny_dataset(side=16)
    other = ImageDataset("x", dataset.train, tiny_dataset(side=16, num_train=9).train, ("a", "b"), "", "")
    one, two = (
        batches_of(pipe, each, distill__num_validation=9, distill__batch_size=4) for each in (dataset, other)
    )
    calls = [list(batches.held_out()) for batches in (one, one, two)]
    assert [[len(batch.latents) for batch in batches] for batches in calls] == [[4, 4, 1]] * 3
    for first, again, elsewhere in zip(*calls, strict=True):
        assert torch.equal(first.latents, again.latents)
        assert torch.equal(first.target, again.target)
        assert torch.equal(first.target, elsewhere.target)
        assert not torch.equal(first.latents, elsewhere.latents)
        assert first.predict(denoiser(pipe)).shape == first.target.shape
    assert not torch.equal(calls[0][0].target, calls[0][1].target)
    assert not torch.equal(calls[0][0].target, next(one(0)).target)


def test_variance_channels_do_not_count() -> None:
    pipe = dit_of_two_classes()
    batch = next(batches_of(pipe)(0))
    whole = pipe.transformer(batch.latents, timestep=batch.timesteps, **batch.conditions).sample
    assert whole.shape[1] == 8
    torch.testing.assert_close(batch.predict(pipe.transformer), whole[:, :4])


def test_blocks_that_are_gone_are_not_compared() -> None:
    unet, transformer = tiny_stable_diffusion().unet, dit_of_two_classes().transformer
    five = ["down_blocks.0", "down_blocks.1", "up_blocks.0", "up_blocks.1", "mid_block"]
    assert matched_blocks(unet, unet) == five
    assert matched_blocks(transformer, transformer) == ["transformer_blocks.0", "transformer_blocks.1"]
    for network, gone in ((unet, "mid_block"), (transformer, "transformer_blocks.1")):
        pruned = apply_plan(network, plan_from_json({"operators": [gone]}, "test"))
        left = matched_blocks(network, network)
        left.remove(gone)
        assert matched_blocks(pruned, network) == left
        within = {"mid_block": "mid_block.resnets.0", "transformer_blocks.1": "transformer_blocks.1.ff"}[gone]
        pruned = apply_plan(network, plan_from_json({"operators": [within]}, "test"))
        assert gone in matched_blocks(pruned, network)


# --- distil -----------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("weight", ["output_weight", "feature_weight"])
def test_distillation_brings_a_pruned_pipeline_closer_to_its_teacher(
    tmp_path: Path, kind: str, weight: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, pruned = save_pair(tmp_path, kind)
    dataset = dataset_for(kind)
    data, out = save_data(tmp_path / "data", dataset), tmp_path / "distilled"
    # Weights at random know nothing of the data, which would lead away from them.
    params = distillation_params(distill__students=student_of(**{weight: 1.0}))
    distill_pipeline(params, pruned, dense, data, out, CPU)
    assert "difference to the teacher" in capsys.readouterr().out
    history = pd.read_csv(tmp_path / "distilled.history.csv")
    assert history["step"].tolist() == list(range(1, 31))
    validation = pd.read_csv(tmp_path / "distilled.validation.csv")
    assert validation["step"].tolist() == [*range(0, 31, 3)]
    learnt = validation[weight.removesuffix("_weight")]
    assert learnt.iloc[-1] < 0.9 * learnt.iloc[0]
    batches = PipelineBatches(pelap.load_pipeline(dense), dataset, params.distill, 0)
    unseen = next(batches(1000))
    with torch.no_grad():
        teacher_prediction = unseen.predict(batches.pipeline.denoiser)
        before, after = (
            float(
                (unseen.predict(denoiser(pelap.load_pipeline(folder))) - teacher_prediction).square().mean()
            )
            for folder in (pruned, out)
        )
    assert after < 0.7 * before
    assert pipeline_plan(out) == pipeline_plan(pruned)
    gone = removed_operators(denoiser(pelap.load_pipeline(out)))
    assert set(gone) == set(REMOVED[part_of(batches.pipeline.pipe)])
    prompts = PROMPTS if kind == "stable_diffusion" else None
    pipeline = LatentPipeline(pelap.load_pipeline(out), STEPS, prompts)
    made = pipeline.decode(pipeline.denoise(torch.randn(2, *pipeline.latent_shape), [0, 1], 0))
    assert made.shape == (2, 3, *dataset.train.images.shape[-2:])
    assert not list(tmp_path.glob(".*resume*"))


@each_kind
def test_a_student_that_is_its_teacher_differs_in_nothing(tmp_path: Path, kind: str) -> None:
    teacher = KINDS[kind]()
    student = copy.deepcopy(teacher)
    params = distillation_params(distill__steps=3, distill__weight_decay=0.0)
    weights = LossWeights(task_weight=0.0, output_weight=1.0, feature_weight=1.0)
    batches = PipelineBatches(teacher, dataset_for(kind), params.distill, 0)
    before = {name: tensor.clone() for name, tensor in denoiser(student).state_dict().items()}
    trained = distill(
        denoiser(student).train(), denoiser(teacher), batches, params.distill, weights, CPU, tmp_path / "c"
    )
    history = trained.progress.history
    assert [(row["output"], row["feature"]) for row in history] == [(0, 0)] * 3
    assert all(row["task"] > 0 for row in history)
    for name, tensor in trained.network.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("kind", ["stable_diffusion", "dit"])
def test_interrupted_distillation_ends_where_uninterrupted_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    dense, pruned = save_pair(tmp_path, kind)
    data = save_data(tmp_path / "data", dataset_for(kind))
    params = distillation_params(distill__steps=8, distill__ema_decay=0.9)
    distill_pipeline(params, pruned, dense, data, tmp_path / "whole", CPU)
    with monkeypatch.context() as patch:
        cut_training(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            distill_pipeline(params, pruned, dense, data, tmp_path / "cut", CPU)
    assert not (tmp_path / "cut").exists()
    assert len(list(tmp_path.glob(".cut.resume-*"))) == 1
    taken = record_steps(monkeypatch)
    distill_pipeline(params, pruned, dense, data, tmp_path / "cut", CPU)
    assert taken == [5, 6, 7]
    whole, resumed = (denoiser(pelap.load_pipeline(tmp_path / name)) for name in ("whole", "cut"))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor)
    losses = [pd.read_csv(tmp_path / f"{name}.history.csv")["loss"].tolist() for name in ("whole", "cut")]
    assert losses[0] == losses[1]
    assert not list(tmp_path.glob(".cut.resume-*"))


def test_the_moving_average_is_what_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []

    def note(*arguments: Any, **options: Any) -> Any:
        kept.append((arguments[0], distill(*arguments, **options)))
        return kept[0][1]

    monkeypatch.setattr("pelap.distillation.pipeline_distillation.distill", note)
    dense, pruned = save_pair(tmp_path, "ddim")
    data = save_data(tmp_path / "data", tiny_dataset(side=8))
    params = distillation_params(distill__steps=4, distill__ema_decay=0.9)
    distill_pipeline(params, pruned, dense, data, tmp_path / "out", CPU)
    last, trained = kept[0]
    saved = pelap.load_pipeline(tmp_path / "out").unet
    assert torch.equal(saved.conv_in.weight, trained.network.conv_in.weight)
    assert not torch.equal(saved.conv_in.weight, last.conv_in.weight)


def test_the_first_student_that_starts_pruned_says_what_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, pruned = save_pair(tmp_path, "ddim")
    data = save_data(tmp_path / "data", tiny_dataset(side=8))
    longer = {"start": "dense", "task_weight": 0.0, "output_weight": 5.0, "feature_weight": 5.0}
    students = (
        {"dense-finetuned": longer} | student_of(task_weight=2.0) | {"two": longer | {"start": "pruned"}}
    )
    params = distillation_params(distill__students=students, distill__steps=3)
    distill_pipeline(params, pruned, dense, data, tmp_path / "out", CPU)
    history = pd.read_csv(tmp_path / "out.history.csv")
    assert history["loss"].tolist() == pytest.approx((2 * history["task"]).tolist())
    assert not {"output", "feature"} & set(history)
    assert "loss on test pictures" in capsys.readouterr().out


def test_the_step_of_least_loss_on_test_pictures_can_be_kept(tmp_path: Path) -> None:
    dense, pruned = save_pair(tmp_path, "ddim")
    data = save_data(tmp_path / "data", tiny_dataset(side=8))
    # Steps as large as these lead away from anything.
    params = distillation_params(
        distill__select="loss", distill__lr=1.0, distill__steps=6, distill__lr_min=0.5
    )
    distill_pipeline(params, pruned, dense, data, tmp_path / "out", CPU)
    validation = pd.read_csv(tmp_path / "out.validation.csv")
    assert validation["task"].idxmin() == 0
    kept, start = (pelap.load_pipeline(tmp_path / name).unet for name in ("out", "pruned"))
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), start.parameters(), strict=True))


def test_state_of_other_weights_is_not_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = set()

    def stop(*arguments: Any, **options: Any) -> Any:
        folders.add(arguments[6])
        raise KeyboardInterrupt

    monkeypatch.setattr("pelap.distillation.pipeline_distillation.distill", stop)
    data = save_data(tmp_path / "data", tiny_dataset(side=8))
    dense, pruned = save_pair(tmp_path, "ddim")

    def start(**overrides: Any) -> None:
        with pytest.raises(KeyboardInterrupt):
            distill_pipeline(tiny_params(**overrides), pruned, dense, data, tmp_path / "out", CPU)

    start()
    start()
    assert len(folders) == 1
    start(seed=5)
    start(distill__lr=3e-4)
    pipe = tiny_ddim()
    awake(pipe.unet, seed=5)
    save_pipeline(pipe, dense)
    start()
    assert len(folders) == 4
    DDIMScheduler(beta_end=0.012).save_pretrained(dense / "scheduler")
    start()
    assert len(folders) == 5
    assert all(folder.parent == tmp_path and folder.name.startswith(".out.resume-") for folder in folders)


def test_distillation_refuses_what_does_not_fit(tmp_path: Path) -> None:
    dense, pruned = save_pair(tmp_path, "ddim")
    small = save_data(tmp_path / "small", tiny_dataset(side=8))
    large = save_data(tmp_path / "large", tiny_dataset(side=16))
    three = tiny_dataset(side=16)
    three = ImageDataset("three", three.train, three.test, ("a", "b", "c"), "", "")
    more = save_data(tmp_path / "three", three)
    few = save_data(tmp_path / "few", tiny_dataset(num_train=4, side=8))
    other, edm = tmp_path / "other", tmp_path / "edm"
    changed = tiny_ddim()
    changed.unet = unet2d(3, block_out_channels=(8, 24))
    save_pipeline(changed, other)
    named = tiny_ddim()
    plan = plan_from_json({"operators": ["mid_block.resnets.0"]}, "test")
    operators = find_operators(named.unet, lambda: named.unet(torch.randn(3, 3, 8, 8), 3))
    plan = complete_plan(plan, named.unet, operators)
    named.unet = apply_plan(named.unet, plan)
    save_pipeline(named, tmp_path / "named", plan)
    strange = tiny_stable_diffusion()
    strange.scheduler = EulerDiscreteScheduler(
        timestep_type="continuous", prediction_type="v_prediction", steps_offset=1
    )
    save_pipeline(strange, edm)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    dit = save_pair(tmp_path / "dit", "dit")
    cases: list[tuple[Path, Path, Path, str, type[PelapError], str]] = [
        (dense, dense, small, "out", ModelError, "dense: is not pruned"),
        (pruned, pruned, small, "out", ModelError, "is pruned itself"),
        (pruned, dense, large, "out", ModelError, "8x8 pixels, those of tiny have 16x16"),
        (tmp_path / "named", other, small, "out", ModelError, "not the network that"),
        (pruned, dit[0], large, "out", ModelError, "not the network that"),
        (dit[1], dit[0], more, "out", ModelError, "was made for 2 classes, the data have 3"),
        (pruned, edm, large, "out", ModelError, "no known training"),
        (pruned, dense, few, "out", DataError, "batch_size"),
        (pruned, dense, small, "full", ConfigError, "is not empty"),
        (pruned, dense, tmp_path / "no", "out", DataError, "no such file"),
        (tmp_path / "no", dense, small, "out", ModelError, "no"),
    ]
    for student, teacher, data, out, kind, words in cases:
        with pytest.raises(kind, match=words) as caught:
            distill_pipeline(tiny_params(), student, teacher, data, tmp_path / out, CPU)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    scratch = {"one": student_of(task_weight=1.0)["one"] | {"start": "scratch"}}
    quality = {"num_images": 4, "num_reference": 8, "sampler": {"kind": "ddim", "steps": 2}}
    for overrides, words in (
        ({"distill__students": scratch}, "none has start: pruned"),
        ({"distill__select": "distance", "distill__quality": quality}, "distill.select: distance"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            distill_pipeline(tiny_params(**overrides), pruned, dense, small, tmp_path / "out", CPU)
        assert "\n" not in str(caught.value)


def test_nothing_is_written_of_pictures_that_are_no_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Without bounds on what it predicts at each step the first time steps blow it up.
    pipe = DDPMPipeline(unet2d(3), DPMSolverMultistepScheduler(num_train_timesteps=STEPS))
    pipe.save_pretrained(tmp_path / "dense")
    command = ["sample", "--model", str(tmp_path / "dense"), "--num", "2", "--steps", str(STEPS)]
    assert main([*command, "--out", str(tmp_path / "made"), "--device", "cpu"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "DPMSolverMultistepScheduler(num_train_timesteps=4) at 4 steps: latents: NaN" in error
    assert not (tmp_path / "made").exists()


def test_pictures_that_are_all_the_same_are_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = tiny_ldm()
    for weight in pipe.vqvae.decoder.conv_out.parameters():
        torch.nn.init.zeros_(weight)
    pipe.save_pretrained(tmp_path / "dense")
    sample(tmp_path / "dense", 3, 0, STEPS, tmp_path / "many", "cpu")
    assert "warning: " in (said := capsys.readouterr().out)
    assert "dense: all 3 pictures are the same" in said
    sample(tmp_path / "dense", 1, 0, STEPS, tmp_path / "one", "cpu")
    assert "warning" not in capsys.readouterr().out  # one is always the same as itself


def test_evaluation_refuses_pictures_that_are_no_numbers(tmp_path: Path) -> None:
    pipe = DDPMPipeline(unet2d(3), DPMSolverMultistepScheduler(num_train_timesteps=STEPS))
    pipe.save_pretrained(tmp_path / "dense")
    with pytest.raises(ModelError, match="at 4 steps: latents: NaN or infinite values in 24 of 24"):
        evaluated(tmp_path, [tmp_path / "dense"])
    assert not (tmp_path / "figures.json").exists()


def test_figures_are_made_at_the_precision_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, _ = save_pair(tmp_path, "ddim")
    passes: list[torch.dtype] = []
    opened = evaluate_stage.open_pipeline

    def watched(*arguments: Any) -> LatentPipeline:
        pipeline = opened(*arguments)
        pipeline.denoiser.mid_block.resnets[0].conv1.register_forward_hook(
            lambda module, args, output: passes.append(output.dtype)
        )
        return pipeline

    monkeypatch.setattr(evaluate_stage, "open_pipeline", watched)
    for precision, kind in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        passes.clear()
        evaluated(tmp_path, [dense], evaluate__precision=precision)
        # MACs and memory are counted in the same passes, so that all of them are meant.
        assert set(passes) == {kind}
        assert files.read_json(tmp_path / "figures.protocol.json")["precision"] == precision
