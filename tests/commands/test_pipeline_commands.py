"""A stranger's pipeline folder is sampled and evaluated like a model of ours."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DiffusionPipeline, DPMSolverMultistepScheduler
from PIL import Image
from pipeline_pairs import CPU, KINDS, denoiser, dit_of_two_classes, save_data, save_pair
from refusals import refusal
from tiny import tiny_dataset, tiny_model, tiny_params
from tiny_pipelines import PROMPTS, tiny_ddim, tiny_dit, tiny_ldm, tiny_stable_diffusion, unet2d

import pelap
from pelap.api import models as api_models
from pelap.api import quality
from pelap.cli import main
from pelap.commands.models import sample
from pelap.commands.pipelines import evaluate_pipelines
from pelap.config import Params
from pelap.core import files, rng
from pelap.core.errors import ConfigError, DataError, ModelError, PelapError
from pelap.evaluation.features import EffNetLite0
from pelap.evaluation.frechet import FeatureStatistics, frechet_distance
from pelap.evaluation.image_quality import psnr
from pelap.pipelines.latent import LatentPipeline
from pelap.pipelines.pipeline_io import is_pipeline, load_model, load_pipeline, save_model, save_pipeline
from pelap.profiling.cost import count_macs, count_params

STEPS = 4
# diffusers' Euler schedulers with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


each_kind = pytest.mark.parametrize("kind", KINDS)


def pictures_in(folder: Path) -> torch.Tensor:
    """(N, 3, H, W) uint8."""
    files = sorted(folder.glob("0*.png"))
    return torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files])


# --- a folder that holds something already ---------------------------------------------------------

COMMANDS = {
    "prune": ["prune", "--pipeline", "dense", "--scores", "none.csv", "--params", "params.yaml"],
    "distill": ["distill", "--pipeline", "pruned", "--teacher", "dense", "--params", "params.yaml"],
    "cut": ["cut", "--model", "model"],
    "sample": ["sample", "--model", "dense", "--num", "1"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_writes_where_something_is(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "params.yaml").write_text("{}")
    monkeypatch.chdir(tmp_path)
    save_pair(tmp_path, "ddim")
    save_model(tiny_model(), tmp_path / "model")
    (tmp_path / "out").mkdir()
    for file, words in (("out/00000.png", "out: is not empty"), ("file", "file")):
        (tmp_path / file).write_text("mine")
        assert main([*COMMANDS[command], "--out", file.split("/")[0], "--device", "cpu"]) == 2
        assert words in capsys.readouterr().err
        assert (tmp_path / file).read_text() == "mine"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["00000.png"]


HELD: dict[str, Callable[[Path], object]] = {
    "pipeline": lambda folder: save_pipeline(tiny_ddim(), folder),
    "pruned pipeline": lambda folder: save_pair(folder.parent, "ddim")[1].rename(folder),
    "variant": lambda folder: tiny_ddim().save_pretrained(folder, variant="fp16"),
    "shards": lambda folder: tiny_ddim().save_pretrained(folder, max_shard_size="30KB"),
    "pickle": lambda folder: tiny_ddim().save_pretrained(folder, safe_serialization=False),
    "model": lambda folder: save_model(tiny_model(), folder),
}


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("writer", ["model", "pipeline"])
def test_what_is_saved_replaces_what_was_there(tmp_path: Path, writer: str, held: str) -> None:
    outs = [tmp_path / place / "out" for place in ("empty", "full")]
    for out in outs:
        out.parent.mkdir()
    HELD[held](outs[1])
    for out in outs:
        HELD[writer](out)
    names = [{str(path.relative_to(out)) for path in out.rglob("*")} for out in outs]
    assert names[0] == names[1]
    assert is_pipeline(outs[1]) == (writer == "pipeline")
    (load_model if writer == "model" else load_pipeline)(outs[1])


@pytest.mark.parametrize("writer", ["model", "pipeline"])
def test_pictures_are_not_replaced(tmp_path: Path, writer: str) -> None:
    (tmp_path / "00000.png").write_text("mine")
    with pytest.raises(ModelError, match="holds files that are no model's"):
        HELD[writer](tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["00000.png"]


# --- without a parameter file ------------------------------------------------------------------------

STAGE_CALLS = {
    "score": ("score_pipeline", ["--out", "s.csv"]),
    "prune": ("prune_pipeline", ["--out", "small", "--scores", "s.csv"]),
    "distill": ("distill_pipeline", ["--out", "fast", "--teacher", "dense"]),
    "evaluate": ("evaluate_pipelines", ["--out", "m.json"]),
}


@pytest.mark.parametrize("spelling", ["pipeline STAGE DIR", "STAGE --pipeline DIR"])
@pytest.mark.parametrize("stage", STAGE_CALLS)
def test_in_an_empty_folder_a_pipeline_has_the_defaults(
    stage: str,
    spelling: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, options = STAGE_CALLS[stage]
    seen: list[Any] = []
    monkeypatch.setattr(f"pelap.commands.pipelines.{name}", lambda params, *_: seen.append(params))
    monkeypatch.chdir(tmp_path)
    words = [*spelling.replace("STAGE", stage).replace("DIR", "my-sd").split(), *options, "--device", "cpu"]
    for given, seed in ([], Params().seed), (["--set", "seed=3"], 3):
        assert main([*words, *given]) == 0
        assert getattr(seen[-1], stage) == getattr(Params(), stage)
        assert seen[-1].seed == seed
        assert "no params.yaml here" in capsys.readouterr().out

    assert "the defaults with --set: seeds: unknown key" in refusal(capsys, *words, "--set", "seeds=3")
    assert "give those of today" in refusal(capsys, *words, "--set", "score.norm=affine")
    assert "params.yaml: no such file" in refusal(capsys, *words, "--params", "params.yaml")
    if stage != "evaluate":
        assert "params.yaml: no such file" in refusal(capsys, stage)  # a stage of a run
    Path("params.yaml").write_text("seed: 5\n")
    assert main(words) == 0
    assert seen[-1].seed == 5
    assert "no params.yaml" not in capsys.readouterr().out


# --- sample -----------------------------------------------------------------------------------------


def own_pictures(pipe: DiffusionPipeline, kind: str, seed: int, num: int, patch: pytest.MonkeyPatch) -> Any:
    """(N, H, W, 3) in 0..255 by the pipeline's own call."""
    pipe.set_progress_bar_config(disable=True)
    network = denoiser(pipe)
    shape = (network.config.in_channels, network.config.sample_size, network.config.sample_size)
    noise = rng.noise(shape, seed, "sample", range(num))
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
    monkeypatch.setattr(quality, "PIPELINE_BATCH_SIZE", 2)  # which changes nothing
    sample(tmp_path / "pipe", 5, 7, STEPS, tmp_path / "out", "cpu", prompts)
    assert "5 pictures and grid.png" in capsys.readouterr().out
    pictures = pictures_in(tmp_path / "out").permute(0, 2, 3, 1).float()
    assert pictures.std() > 20  # pictures worth comparing
    own = torch.from_numpy(own_pictures(pipe, kind, 7, 5, monkeypatch))
    assert (pictures - own).abs().max() < 1.5  # rounded to the next of 256, in other batches
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        assert grid.width > 5 * pictures.shape[2]


def test_pruned_pipelines_are_sampled_as_they_are(tmp_path: Path) -> None:
    for folder in save_pair(tmp_path, "ddim"):
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
    return files.read_metrics(out)  # type: ignore[return-value]


@pytest.mark.slow
def test_pipelines_are_evaluated_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = list(save_pair(tmp_path, "ddim"))
    metrics = evaluated(tmp_path, folders)
    assert list(metrics) == ["dense", "pruned", "real"]
    assert set(metrics["real"]) == QUALITY
    costs = {"params", "macs", "peak_memory_mib", "disk_mib"}
    times = {"latency_ms", "latency_iqr_ms", "latency_least_ms", "image_ms", "image_iqr_ms"}
    pairs = {"dense": set(), "pruned": {"psnr_to_dense"}}
    for name, folder in zip(("dense", "pruned"), folders, strict=True):
        network = pelap.load_pipeline(folder).unet
        assert set(metrics[name]) == QUALITY | costs | times | pairs[name]
        assert metrics[name]["params"] == count_params(network)
        (weights,) = (folder / "unet").glob("*.safetensors")
        assert metrics[name]["disk_mib"] == weights.stat().st_size / 2**20
        assert metrics[name]["image_ms"] > 0 < metrics[name]["latency_ms"]
    for cost in costs:
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
        noise = rng.noise(pipeline.latent_shape, 0, "sample", range(24))
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
    endless = {"evaluate__sampler": {"kind": "ddim", "steps": 2000}}
    cases: list[tuple[list[Path], dict[str, Any], type[PelapError], str]] = [
        ([dense, tmp_path / "other" / "dense"], {}, ConfigError, "has the name of"),
        ([tmp_path / "real"], {}, ConfigError, "row of real pictures"),
        ([pruned, tmp_path / "ldm"], {}, ModelError, "pictures of 16x16 pixels, those of tiny have 8x8"),
        ([dense], {"evaluate__num_images": 99}, DataError, "num_reference"),
        ([dense], endless, ConfigError, "2000"),
    ]
    for folders, overrides, kind, words in cases:
        with pytest.raises(kind, match=words) as caught:
            evaluated(tmp_path, folders, **overrides)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "figures.json").exists()


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
    with pytest.raises(ModelError, match="at 4 steps: latents: NaN or infinite values in 24 of 24"):
        evaluated(tmp_path, [tmp_path / "dense"])
    assert not (tmp_path / "figures.json").exists()


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


@pytest.mark.slow
def test_figures_are_made_at_the_precision_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, _ = save_pair(tmp_path, "ddim")
    passes: list[torch.dtype] = []
    opened = api_models.load_pipeline

    def watched(*arguments: Any) -> DiffusionPipeline:
        pipe = opened(*arguments)
        pipe.unet.mid_block.resnets[0].conv1.register_forward_hook(
            lambda module, args, output: passes.append(output.dtype)
        )
        return pipe

    monkeypatch.setattr(api_models, "load_pipeline", watched)
    for precision, kind in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        passes.clear()
        evaluated(tmp_path, [dense], evaluate__precision=precision)
        # MACs and memory are counted in the same passes, so that all of them are meant, but for the one that
        # asks whether the denoiser works at all.
        assert set(passes[1:]) == {kind}
        assert files.read_json(tmp_path / "figures.protocol.json")["precision"] == precision
