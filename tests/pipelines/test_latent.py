"""Latents from a diffusers pipeline: what its own call gives, item by item, from noise of our own."""

import copy
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
)
from tiny_pipelines import (
    BUILDERS,
    PROMPTS,
    SIDE,
    autoencoder,
    prompts_for,
    same,
    tiny_ddim,
    tiny_ddpm,
    tiny_dit,
    tiny_ldm,
    tiny_stable_diffusion,
    unet2d,
)
from torch import nn

from pelap.core import digests, files
from pelap.core.errors import ConfigError, ModelError
from pelap.core.rng import generator
from pelap.diffusion.sampler import sample_from
from pelap.pipelines.latent import LatentPipeline, stack

STEPS = 4
KINDS = pytest.mark.parametrize("kind", BUILDERS)
# diffusers' Euler schedulers with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


def latent_pipeline(kind: str, steps: int = STEPS) -> LatentPipeline:
    return LatentPipeline(BUILDERS[kind](), steps, prompts_for(kind))


def noise_for(pipeline: LatentPipeline, num: int) -> torch.Tensor:
    return torch.randn(num, *pipeline.latent_shape)


def own_pictures(
    pipe: DiffusionPipeline, noise: torch.Tensor, monkeypatch: pytest.MonkeyPatch, **call: Any
) -> torch.Tensor:
    """(B, 3, H, W) in 0..255 as the pipeline's own call makes them, from `noise` where it draws its own."""
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[type(pipe).__module__], "randn_tensor", lambda *_, **__: noise.clone())
        pictures = pipe(num_inference_steps=STEPS, output_type="np", **call).images
    return torch.from_numpy(pictures).permute(0, 3, 1, 2) * 255


def assert_same_pictures(pictures: torch.Tensor, own: torch.Tensor) -> None:
    assert pictures.dtype == torch.uint8
    assert pictures.shape == own.shape
    assert pictures.float().std() > 20  # pictures worth comparing
    assert (pictures - own).abs().max() < 0.6  # rounded to the next of 256


DIFFERENT_FROM_DEFAULT = {
    "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",
    "clip_sample_range": 0.7,
    "beta_schedule": "scaled_linear",
}


def with_scheduler(pipe: DiffusionPipeline, scheduler: SchedulerMixin) -> DiffusionPipeline:
    pipe.scheduler = scheduler
    return pipe


OWN: dict[str, Callable[[], DiffusionPipeline]] = {
    "ddim": tiny_ddim,
    "ddim, other settings": lambda: with_scheduler(tiny_ddim(), DDIMScheduler(**DIFFERENT_FROM_DEFAULT)),
    "ddpm": tiny_ddpm,
    "ddpm, other settings": lambda: tiny_ddpm(**DIFFERENT_FROM_DEFAULT),
    "ddpm with a variance": lambda: ddpm_with(
        unet=unet2d(3, out_channels=6), scheduler=DDPMScheduler(variance_type="learned_range")
    ),
    "ldm": tiny_ldm,
    "ldm, Euler": lambda: with_scheduler(tiny_ldm(), EulerDiscreteScheduler()),
    "ldm, LMS": lambda: with_scheduler(tiny_ldm(), LMSDiscreteScheduler()),
    "dit": tiny_dit,
}


@pytest.mark.parametrize("name", OWN)
def test_pictures_are_the_pipelines_own(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pipe, items = OWN[name](), [4, 999, 1001]
    pipeline = LatentPipeline(pipe, STEPS)
    noise, call = noise_for(pipeline, 3), {"batch_size": 3}
    if name == "dit":
        call = {"class_labels": [4, 999, 1]}
    if name.startswith("ddpm"):
        call["generator"] = [generator(5, "step", i) for i in items]
    own = own_pictures(pipe, noise, monkeypatch, **call)
    assert_same_pictures(pipeline.decode(pipeline.denoise(noise, items, seed=5)), own)


TEXT_SCHEDULERS = [
    (PNDMScheduler, {"skip_prk_steps": True, "steps_offset": 1}),
    (DDIMScheduler, {"clip_sample": False, "steps_offset": 1}),
    (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++", "steps_offset": 1}),
    (EulerAncestralDiscreteScheduler, {"steps_offset": 1}),
]


@pytest.mark.parametrize(("scheduler", "settings"), TEXT_SCHEDULERS)
def test_stable_diffusion_is_the_pipelines_own(
    scheduler: type[SchedulerMixin], settings: dict[str, Any]
) -> None:
    pipe = tiny_stable_diffusion(scheduler(**settings))
    noise, items = torch.randn(3, 4, SIDE, SIDE), [1, 5, 0]

    def own(output_type: str) -> Any:
        generators = [generator(9, "step", i) for i in items]
        text = [PROMPTS[1], PROMPTS[2], PROMPTS[0]]
        options = {"num_inference_steps": STEPS, "generator": generators, "output_type": output_type}
        return pipe(text, latents=noise, **options).images

    expected, pictures = own("latent"), torch.from_numpy(own("np")).permute(0, 3, 1, 2) * 255
    pipeline = LatentPipeline(pipe, STEPS, PROMPTS)
    latents = pipeline.denoise(noise, items, seed=9)
    assert same(latents, expected)
    assert_same_pictures(pipeline.decode(expected), pictures)


@pytest.mark.parametrize("kind", ["stable_diffusion_xl", "stable_diffusion_3"])
def test_later_text_pipelines_are_their_own(kind: str) -> None:
    pipe = BUILDERS[kind]()
    noise = torch.randn(3, 4, SIDE, SIDE)
    options = {"num_inference_steps": STEPS, "latents": noise}
    expected = pipe(PROMPTS, output_type="latent", **options).images
    pictures = torch.from_numpy(pipe(PROMPTS, output_type="np", **options).images).permute(0, 3, 1, 2) * 255
    pipeline = LatentPipeline(pipe, STEPS, PROMPTS)
    assert same(pipeline.denoise(noise, [0, 1, 2], seed=0), expected)
    assert_same_pictures(pipeline.decode(expected), pictures)


@KINDS
def test_a_row_does_not_depend_on_its_batch(kind: str) -> None:
    pipeline = latent_pipeline(kind)
    noise, items = noise_for(pipeline, 4), [5, 2, 1001, 0]
    together = pipeline.denoise(noise, items, seed=3)
    for row, item in enumerate(items):
        assert same(pipeline.denoise(noise[row : row + 1], [item], seed=3), together[row : row + 1])
    order = [2, 0, 3, 1]
    assert same(pipeline.denoise(noise[order], [items[row] for row in order], seed=3), together[order])


@KINDS
def test_the_same_call_gives_the_same_bits_in_silence_and_leaves_its_noise_alone(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    pipeline = latent_pipeline(kind)
    noise = noise_for(pipeline, 2)
    before = noise.clone()
    first = pipeline.denoise(noise, [0, 1], seed=3)
    pipeline.decode(first)
    assert capfd.readouterr() == ("", "")
    torch.manual_seed(99)  # nothing is drawn from the global stream
    assert torch.equal(pipeline.denoise(noise, [0, 1], seed=3), first)
    assert torch.equal(noise, before)
    assert first.dtype == torch.float32
    assert not first.requires_grad
    assert not same(first, noise)


class StochasticDDIM(DDIMPipeline):
    def __call__(self, eta: float = 1.0) -> Any:
        raise NotImplementedError


def test_eta_is_the_default_of_the_pipelines_call() -> None:
    plain, stochastic = (kind(**tiny_ddim().components) for kind in (DDIMPipeline, StochasticDDIM))
    noise = torch.randn(1, 3, SIDE, SIDE).expand(2, -1, -1, -1)
    for pipe, alike in ((plain, True), (stochastic, False)):
        first, second = LatentPipeline(pipe, STEPS).denoise(noise, [0, 1], seed=0)
        assert same(second, first) == alike


@pytest.mark.parametrize(
    ("kind", "copies", "asked"),
    [("ddpm", 1, 1), ("stable_diffusion", 2, 3), ("stable_diffusion_3", 2, 3), ("dit", 2, 1000)],
)
def test_copies_are_what_the_denoiser_sees_one_whole_batch_after_the_other(
    kind: str, copies: int, asked: int
) -> None:
    pipeline = latent_pipeline(kind)
    assert pipeline.num_asked == asked
    seen: list[torch.Tensor] = []

    def note(_: nn.Module, args: Sequence[torch.Tensor], kwargs: dict[str, torch.Tensor]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    handle = pipeline.denoiser.register_forward_pre_hook(note, with_kwargs=True)
    noise = noise_for(pipeline, 3)
    pipeline.denoise(noise, [0, 1, 2], seed=0)
    handle.remove()
    assert pipeline.copies == copies
    for batch in seen:
        assert batch.shape == (3 * copies, *pipeline.latent_shape)
        assert all(torch.equal(part, batch[:3]) for part in batch.chunk(copies))


# All encode the empty prompt too, but for the XL, which takes zeros for it.
@pytest.mark.parametrize(
    ("kind", "texts"), [("stable_diffusion", 2), ("stable_diffusion_xl", 1), ("stable_diffusion_3", 2)]
)
def test_every_prompt_is_encoded_once(kind: str, texts: int) -> None:
    pipe = BUILDERS[kind]()
    encoded: list[int] = []
    pipe.text_encoder.register_forward_hook(lambda _, args, __: encoded.append(len(args[0])))
    pipeline = LatentPipeline(pipe, STEPS, PROMPTS)
    noise = noise_for(pipeline, 5)
    pipeline.denoise(noise, range(5), seed=0)
    assert encoded == [1] * len(PROMPTS) * texts
    pipeline.denoise(noise[:2], [7, 1], seed=1)
    assert len(encoded) == len(PROMPTS) * texts
    assert "encode_prompt" not in vars(pipe)  # the pipeline itself is as it was


@pytest.mark.parametrize("kind", ["ldm", "stable_diffusion_3"])
def test_everything_is_float32_and_in_evaluation_mode(kind: str) -> None:
    pipe = BUILDERS[kind]()
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    for part in parts:
        part.to(torch.bfloat16).train()
    LatentPipeline(pipe, STEPS, prompts_for(kind))
    for part in parts:
        assert not any(module.training for module in part.modules())
        assert {weight.dtype for weight in part.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", ["ldm", "stable_diffusion", "dit"])  # one for each way to be run
def test_another_denoiser_takes_the_place_of_the_first(kind: str) -> None:
    pipeline = latent_pipeline(kind)
    noise = noise_for(pipeline, 2)
    dense, first = pipeline.denoiser, pipeline.denoise(noise, [0, 1], seed=0)
    other = copy.deepcopy(dense).train()
    with torch.no_grad():
        next(other.parameters()).mul_(0.5)
    pipeline.denoiser = other
    assert pipeline.pipe.components[pipeline.part] is other
    assert not other.training
    assert not same(pipeline.denoise(noise, [0, 1], seed=0), first)
    pipeline.denoiser = dense
    assert torch.equal(pipeline.denoise(noise, [0, 1], seed=0), first)


def test_a_settings_description_can_be_written_as_json(tmp_path: Path) -> None:
    pipe = tiny_stable_diffusion(DPMSolverMultistepScheduler(timestep_spacing="trailing", steps_offset=1))
    described = LatentPipeline(pipe, 5, PROMPTS).describe()
    files.write_json(tmp_path / "protocol.json", described)  # has no infinity, which this scheduler has
    assert files.read_json(tmp_path / "protocol.json") == described
    assert described.pop("scheduler_config")["lambda_min_clipped"] == "-inf"
    options = described.pop("options_digest")
    pipe.tokenizer.model_max_length = 8
    assert LatentPipeline(pipe, 5, PROMPTS).describe()["options_digest"] != options
    assert described == {
        "pipeline": "StableDiffusionPipeline",
        "denoiser": "UNet2DConditionModel",
        "scheduler": "DPMSolverMultistepScheduler",
        "steps": 5,
        "timestep_spacing": "trailing",
        "first_timestep": 999.0,
        "last_timestep": 199.0,
        "guidance_scale": 7.5,
        "num_prompts": 3,
        "prompts_digest": digests.digest(PROMPTS),
        "classes_digest": None,
    }


@pytest.mark.parametrize("kind", ["ddpm", "dit"])
def test_the_description_has_the_time_steps_that_are_used(kind: str) -> None:
    pipeline = latent_pipeline(kind)
    seen: list[float] = []

    def note(_: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        seen.append(float((kwargs["timestep"] if "timestep" in kwargs else args[1]).flatten()[0]))

    pipeline.denoiser.register_forward_pre_hook(note, with_kwargs=True)
    pipeline.denoise(noise_for(pipeline, 1), [0], seed=0)
    described = pipeline.describe()
    assert len(seen) == described["steps"] == STEPS
    assert [described["first_timestep"], described["last_timestep"]] == [seen[0], seen[-1]]
    assert described["guidance_scale"] == (4.0 if kind == "dit" else None)


@pytest.mark.parametrize(("channels", "fits"), [(1, True), (2, False), (3, True)])
def test_pictures_have_three_colours(channels: int, fits: bool) -> None:
    pipe = tiny_ddpm()
    pipe.unet = unet2d(channels, sample_size=(SIDE, 2 * SIDE))
    pipeline = LatentPipeline(pipe, STEPS)
    assert pipeline.latent_shape == (channels, SIDE, 2 * SIDE)
    latents = pipeline.denoise(noise_for(pipeline, 2), [0, 1], seed=0)
    if not fits:
        with pytest.raises(ModelError, match="makes pictures of 2 channels"):
            pipeline.decode(latents)
        return
    pictures = pipeline.decode(latents)
    assert pictures.shape == (2, 3, SIDE, 2 * SIDE)
    assert (channels == 1) == torch.equal(pictures[:, 0], pictures[:, 1])


class DecoderOnly(DiffusionPipeline):
    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.register_modules(vae=vae)


class WithoutDenoising(StableDiffusionPipeline):
    def __call__(self, prompt: Any = None, latents: Any = None, output_type: str = "", **_: Any) -> Any:
        return (latents,)


class WithOneCall(StableDiffusionPipeline):
    """Gives what `result` makes of the denoiser's output."""

    result: Any = None

    def __call__(self, prompt: Any = None, latents: Any = None, output_type: str = "", **_: Any) -> Any:
        self.scheduler.set_timesteps(STEPS)
        embeds, _ = self.encode_prompt(prompt, latents.device, 1, False)
        # As some pipelines do that have two text encoders.
        self.other_embeds = self.encode_prompt(prompt, latents.device, 1, True, negative_prompt=["rain"])[1]
        return (self.result(self.unet(latents, 5, encoder_hidden_states=embeds).sample),)


def as_another(kind: type[DiffusionPipeline]) -> DiffusionPipeline:
    return kind(**tiny_stable_diffusion().components, requires_safety_checker=False)


def ddpm_with(**options: Any) -> DiffusionPipeline:
    pipe = tiny_ddpm()
    for name, value in options.items():
        setattr(pipe, name, value)
    return pipe


def odd(**attributes: Any) -> Any:
    scheduler = DDPMScheduler()
    scheduler.__class__ = type("Odd", (DDPMScheduler,), attributes)
    return scheduler


UNFIT = {
    "no_denoiser": (lambda: DecoderOnly(autoencoder()), "neither a unet nor a transformer; supported are"),
    "from_pictures": (lambda: as_another(StableDiffusionImg2ImgPipeline), "not supported; supported are"),
    "from_masks": (lambda: as_another(StableDiffusionInpaintPipeline), "not supported; supported are"),
    "perturbing": (lambda: as_another(StableDiffusionPAGPipeline), "not supported; supported are"),
    "inpainting": (lambda: tiny_stable_diffusion(in_channels=9), "takes 9 channels and gives 4"),
    "classes": (lambda: ddpm_with(unet=unet2d(3, num_class_embeds=5)), "of a kind that is not supported"),
    "no_size": (lambda: ddpm_with(unet=unet2d(3, sample_size=None)), "no in_channels and sample_size"),
    # As DPMSolverSDEScheduler has, whose package may be missing.
    "shared_noise": (lambda: ddpm_with(scheduler=odd(noise_sampler=None)), "one noise for a whole batch"),
    "no_step": (lambda: ddpm_with(scheduler=odd(scale_model_input=property())), "no usual step"),
    "few_steps": (
        lambda: tiny_stable_diffusion(LCMScheduler(original_inference_steps=2, steps_offset=1)),
        "its own call fails .*num_inference_steps",
    ),
    "deaf": (lambda: as_another(WithoutDenoising), "does not use its unet"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_unfit_pipelines_are_refused_in_one_line(case: str) -> None:
    build, message = UNFIT[case]
    pipe = build()
    prompts = PROMPTS if isinstance(pipe, StableDiffusionPipeline) else None
    with pytest.raises(ModelError, match=message) as caught:
        LatentPipeline(pipe, STEPS, prompts)
    assert str(caught.value).startswith(type(pipe).__name__)
    assert "\n" not in str(caught.value)
    denoiser = pipe.components.get("unet")
    assert denoiser is None or not denoiser._forward_pre_hooks
    assert "encode_prompt" not in vars(pipe)


@pytest.mark.parametrize("result", [lambda output: output.numpy(), lambda output: output[:, :1]])
def test_a_call_that_gives_no_latents_is_refused(result: Callable[[torch.Tensor], Any]) -> None:
    pipe = as_another(WithOneCall)
    pipe.result = result
    pipeline = LatentPipeline(pipe, STEPS, PROMPTS)
    with pytest.raises(ModelError, match="no latents of the shape of its noise"):
        pipeline.denoise(noise_for(pipeline, 1), [0], seed=0)


def test_a_prompt_that_is_encoded_in_two_ways_is_kept_in_both() -> None:
    pipe = as_another(WithOneCall)
    pipe.result = lambda output: output
    pipeline = LatentPipeline(pipe, STEPS, PROMPTS)
    noise = noise_for(pipeline, 1)
    expected = pipe.encode_prompt(["rain"], "cpu", 1, False)[0]
    for _ in range(2):
        pipeline.denoise(noise, [0], seed=0)
        assert torch.equal(pipe.other_embeds, expected)


@pytest.mark.parametrize(
    ("kind", "prompts", "steps", "message"),
    [
        ("ddim", PROMPTS, STEPS, "DDIMPipeline takes no text; leave them out"),
        ("dit", PROMPTS, STEPS, "DiTPipeline takes no text"),
        ("stable_diffusion", None, STEPS, "takes text; give a list, or --prompts FILE"),
        ("stable_diffusion", [], STEPS, "takes text; give a list, or --prompts FILE"),
        ("ddpm", None, 0, r"0 is not in 1\.\.1000 of the pipeline's DDPMScheduler"),
        ("ddpm", None, 1001, r"1001 is not in 1\.\.1000"),
    ],
)
def test_wrong_settings_are_refused(kind: str, prompts: list[str] | None, steps: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LatentPipeline(BUILDERS[kind](), steps, prompts)


def test_encodings_of_unlike_lengths_are_refused() -> None:
    with pytest.raises(ModelError, match="different lengths"):
        stack([(torch.zeros(1, 3, 2), None), (torch.zeros(1, 4, 2), None)])


def overflowing(pipe: DiffusionPipeline, index: int) -> None:
    """Let one item of every batch of more come out of the denoiser as NaN."""

    def spoil(module: nn.Module, args: Any, output: Any) -> Any:
        made = output[0] if isinstance(output, tuple) else output.sample
        if len(made) > index:
            made[index] = float("nan")
        return output

    part = getattr(pipe, "unet", None) or pipe.transformer
    part.register_forward_hook(spoil)


@pytest.mark.parametrize("kind", ["ddim", "ldm", "stable_diffusion", "dit"])
def test_latents_that_are_not_finite_make_no_pictures(kind: str) -> None:
    pipeline = latent_pipeline(kind)
    overflowing(pipeline.pipe, 1)
    # With guidance a latent has two rows, so that more are spoilt.
    with pytest.raises(ModelError, match=r"latents: NaN or infinite values in [23] of 5") as caught:
        sample_from(pipeline, 5, seed=0, batch_size=2)
    scheduler, message = type(pipeline.pipe.scheduler).__name__, str(caught.value)
    assert f"{type(pipeline.pipe).__name__} with {scheduler}(" in message
    assert f"at {STEPS} steps" in message
    assert "\n" not in message


@pytest.mark.parametrize("kind", ["ldm", "stable_diffusion", "dit"])
def test_pictures_that_are_not_finite_are_refused(kind: str) -> None:
    pipeline = latent_pipeline(kind)
    decoder = pipeline.pipe.components.get("vae") or pipeline.pipe.vqvae
    with torch.no_grad():
        decoder.decoder.conv_out.bias.fill_(float("inf"))
    with pytest.raises(ModelError, match="pictures: NaN or infinite values in 3 of 3"):
        sample_from(pipeline, 3, seed=0)
    with pytest.raises(ModelError, match="pictures: NaN or infinite"):
        pipeline.decode(noise_for(pipeline, 1))


def test_a_decoder_that_fails_is_told_of() -> None:
    pipeline = latent_pipeline("stable_diffusion")
    pipeline.pipe.vae.decoder.conv_in = nn.Conv2d(5, 16, 3)
    with pytest.raises(ModelError, match="its AutoencoderKL fails \\(RuntimeError"):
        pipeline.decode(noise_for(pipeline, 1))


@KINDS
def test_the_denoiser_alone_computes_in_bf16(kind: str) -> None:
    pipe = BUILDERS[kind]()
    plain = LatentPipeline(pipe, STEPS, prompts_for(kind))
    noise = noise_for(plain, 2)
    expected = plain.denoise(noise, [0, 1], seed=0)
    mixed = LatentPipeline(pipe, STEPS, prompts_for(kind), "bf16")
    inside, stepped = [], []
    layer = next(each for each in mixed.denoiser.modules() if isinstance(each, nn.Conv2d))
    layer.register_forward_hook(lambda module, args, output: inside.append(output.dtype))
    step = pipe.scheduler.step
    pipe.scheduler.step = lambda predicted, *args, **kwargs: (
        stepped.append((predicted.dtype, torch.is_autocast_enabled("cpu")))
        or step(predicted, *args, **kwargs)
    )
    pipe.scheduler.step.__signature__ = inspect.signature(step)
    latents = mixed.denoise(noise, [0, 1], seed=0)
    assert set(inside) == {torch.bfloat16}
    assert set(stepped) == {(torch.float32, False)}
    assert latents.dtype == torch.float32
    error = float((latents - expected).std() / expected.std())
    assert 1e-5 < error < 0.3
    assert "forward" not in vars(mixed.denoiser)
