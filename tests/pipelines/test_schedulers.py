"""Every scheduler of diffusers with its common options: pictures, or one line that names it."""

import inspect
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DPMSolverMultistepScheduler, SchedulerMixin, UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.utils import logging
from tiny_pipelines import PROMPTS, same, tiny_stable_diffusion, tiny_stable_diffusion_3
from torch import nn

from pelap.core.errors import ModelError, PelapError
from pelap.core.rng import noise
from pelap.data.dataset import all_equal
from pelap.diffusion.sampler import PURPOSE, sample_from
from pelap.pipelines.latent import LatentPipeline

MOST = 6  # steps that the schedulers were made for
OPTIONS: dict[str, tuple[Any, ...]] = {
    "algorithm_type": ("dpmsolver", "sde-dpmsolver", "sde-dpmsolver++"),
    "beta_schedule": ("scaled_linear", "squaredcos_cap_v2"),
    "clip_sample": (False,),
    "corrector_order": (0, 1),
    "disable_corrector": ([0],),
    "euler_at_final": (True,),
    "final_sigmas_type": ("sigma_min",),
    "interpolation_type": ("log_linear",),
    "invert_sigmas": (True,),
    "lower_order_final": (False,),
    "predict_x0": (False,),
    "prediction_type": ("sample", "v_prediction", "flow_prediction"),
    "predictor_order": (1, 3),
    "rescale_betas_zero_snr": (True,),
    "set_alpha_to_one": (False,),
    "shift": (3.0,),
    "sigma_schedule": ("exponential",),
    "skip_prk_steps": (True,),
    "solver_order": (1, 3),
    "solver_type": ("heun", "bh1"),
    "steps_offset": (1,),
    "stochastic_sampling": (True,),
    "thresholding": (True,),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "timestep_type": ("continuous",),
    "use_beta_sigmas": (True,),
    "use_dynamic_shifting": (True,),
    "use_exponential_sigmas": (True,),
    "use_flow_sigmas": (True,),
    "use_karras_sigmas": (True,),
    "use_lu_lambdas": (True,),
    "variance_type": ("fixed_large", "learned_range"),
}
SCHEDULERS = sorted(
    name
    for name in dir(diffusers)
    if name.endswith("Scheduler") and issubclass(getattr(diffusers, name), SchedulerMixin)
)
WORKING = {
    "CMStochasticIterativeScheduler", "CogVideoXDDIMScheduler", "DDIMParallelScheduler", "DDIMScheduler",
    "DDPMParallelScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "EDMDPMSolverMultistepScheduler", "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "IPNDMScheduler",
    "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LCMScheduler", "LMSDiscreteScheduler",
    "PNDMScheduler", "SASolverScheduler", "TCDScheduler", "UnCLIPScheduler", "UniPCMultistepScheduler",
}  # fmt: skip
"""What makes pictures from noise in as many steps as a user mostly takes."""
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    # diffusers with NumPy 2.
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),
]


class Light(UNet2DModel):
    """Fast, and no more than a convolution that knows the time."""

    def __init__(self) -> None:
        blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
        super().__init__(
            sample_size=4, block_out_channels=(2,), norm_num_groups=1, attention_head_dim=2, **blocks
        )
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, **_: Any) -> UNet2DOutput:
        return UNet2DOutput(sample=torch.tanh(self.layer(sample)) + 0.1 * timestep.sin())


def made_with(name: str) -> Iterator[Any]:
    """The scheduler as it is by default, and with each option; none of what its class itself refuses."""
    logging.set_verbosity_error()
    kind = getattr(diffusers, name)
    known = inspect.signature(kind).parameters
    base: dict[str, Any] = {"num_train_timesteps": MOST} if "num_train_timesteps" in known else {}
    base |= {"original_inference_steps": MOST} if "original_inference_steps" in known else {}
    one_by_one = [{key: value} for key, values in OPTIONS.items() if key in known for value in values]
    for options in ({}, *one_by_one):
        try:
            scheduler = kind(**(base | options))
        except (TypeError, ValueError, NotImplementedError, ImportError):
            continue
        yield scheduler


def with_scheduler(scheduler: Any) -> DDIMPipeline:
    pipe = DDIMPipeline(Light(), DDIMScheduler())
    pipe.register_modules(scheduler=scheduler)  # the call itself makes another of it
    return pipe


def attempt(pipe: Any, steps: int, prompts: list[str] | None = None) -> tuple[LatentPipeline, Any] | str:
    """A pipeline and two pictures of it, or what the user is told."""
    try:
        pipeline = LatentPipeline(pipe, steps, prompts)
        return pipeline, sample_from(pipeline, 2, seed=0)
    except PelapError as error:
        return str(error)


def assert_no_chance(pipeline: LatentPipeline) -> None:
    """The same latents at a second call and in another batch."""
    start = noise(pipeline.latent_shape, 0, PURPOSE, range(2))
    together = pipeline.denoise(start, [0, 1], 0)
    assert same(pipeline.denoise(start[1:], [1], 0), together[1:]), pipeline.name


def assert_told(message: str, scheduler: Any) -> None:
    assert type(scheduler).__name__ in message, message
    assert "\n" not in message


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_makes_pictures_or_is_told_of(name: str) -> None:
    succeeded = False
    for scheduler in made_with(name):
        pipe = with_scheduler(scheduler)
        for steps in (1, 3, MOST):
            made = attempt(pipe, steps)
            if isinstance(made, str):
                assert_told(made, scheduler)
            elif name == "IPNDMScheduler" and steps == 1:
                assert all_equal(made[1])  # it leaves zeros, whatever the noise was
            else:
                succeeded = True
                assert not all_equal(made[1]), made[0].name
                assert_no_chance(made[0])
    assert succeeded == (name in WORKING)


@pytest.mark.parametrize("name", sorted(WORKING))
def test_a_run_that_was_interrupted_leaves_nothing_for_the_next(name: str) -> None:
    pipeline = LatentPipeline(with_scheduler(next(made_with(name))), 4)
    start, calls = noise(pipeline.latent_shape, 0, PURPOSE, range(2)), []

    def stop(*_: Any) -> None:
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt

    before = pipeline.denoise(start, [0, 1], 0)
    handle = pipeline.denoiser.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        pipeline.denoise(start, [0, 1], 0)
    handle.remove()
    assert same(pipeline.denoise(start, [0, 1], 0), before)


FLOW = {"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"}
TEXT = [
    (tiny_stable_diffusion, WORKING - {"PNDMScheduler", "UnCLIPScheduler"}),
    (tiny_stable_diffusion_3, FLOW),
]


@pytest.mark.slow
@pytest.mark.parametrize(("build", "working"), TEXT)
def test_every_scheduler_of_a_text_pipeline_makes_latents_or_is_told_of(
    build: Callable[[], Any], working: set[str]
) -> None:
    pipe, succeeded = build(), set()
    for name in SCHEDULERS:
        for scheduler in made_with(name) if name.startswith("FlowMatch") else islice(made_with(name), 1):
            pipe.register_modules(scheduler=scheduler)
            made = attempt(pipe, 3, PROMPTS)
            if isinstance(made, str):
                assert_told(made, scheduler)
            else:
                succeeded.add(name)
                assert_no_chance(made[0])
    assert succeeded >= working


def test_a_failure_at_the_last_step_names_scheduler_options_and_steps() -> None:
    scheduler = DPMSolverMultistepScheduler(num_train_timesteps=MOST, timestep_spacing="leading")
    pipeline = LatentPipeline(with_scheduler(scheduler), MOST)  # its first step is well
    with pytest.raises(ModelError) as caught:
        sample_from(pipeline, 1, seed=0)
    text = str(caught.value)
    named = "DPMSolverMultistepScheduler(num_train_timesteps=6, timestep_spacing=leading) at 6 steps"
    assert named in text
    assert "IndexError" in text
    assert "\n" not in text


@pytest.mark.parametrize("kind", ["DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler"])
def test_a_scheduler_from_pictures_to_noise_is_refused(kind: str) -> None:
    with pytest.raises(ModelError, match=f"{kind}, which goes from pictures to noise"):
        LatentPipeline(with_scheduler(getattr(diffusers, kind)()), 2)


def test_memory_that_ends_is_not_taken_for_a_broken_pipeline() -> None:
    pipeline = LatentPipeline(with_scheduler(DDIMScheduler()), 2)

    def stop(*_: Any) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    pipeline.denoiser.register_forward_pre_hook(stop)
    with pytest.raises(RuntimeError, match="allocate"):
        sample_from(pipeline, 1, seed=0)
