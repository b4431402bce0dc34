"""Distillation of a pruned diffusers pipeline: its denoiser learns from the dense one, in memory.

It is given what it was trained on, as far as that is known: the forward process is the scheduler's table of
alpha-bar, which all schedulers of one training share; what is to be predicted is its `prediction_type`.
"""

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.utils._pytree import tree_map

from pelap.config import DistillParams, LossWeights
from pelap.core.calls import capture_calls
from pelap.core.errors import ModelError, blamed_on, finite
from pelap.core.graphs import to_device
from pelap.core.keys import ResumeState, code_of
from pelap.core.rng import generator
from pelap.data.dataset import ImageDataset, Split, gather_batch, to_float
from pelap.diffusion.loss import add_noise
from pelap.distillation.batches import NoisyBatch
from pelap.distillation.distill import distill, training_key
from pelap.pipelines.agreement import (
    OF_SCHEDULER,
    class_numbers,
    demand_pictures_of,
    differences_in_training,
    mean_the_same,
)
from pelap.pipelines.kinds import refuse
from pelap.pipelines.latent import LatentPipeline
from pelap.surgery.apply import plan_kept
from pelap.surgery.plan import fingerprint
from pelap.training.trainer import Progress, indices_from

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

# Items that are given no caption or class. Classifier-free guidance needs the prediction for none as well as
# for one; a network that is fine-tuned without it forgets it. 10 % is what Stable Diffusion and DiT used.
UNCONDITIONAL_SHARE = 0.1
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
TRIAL_STEPS = 4  # of the scheduler, in the runs that end at the denoiser's first call


class DistilledPipeline(NamedTuple):
    """A pipeline that learnt, and how."""

    pipe: "DiffusionPipeline"
    progress: Progress  # logged losses, and held-out ones from step 0 on
    kept_step: int  # after how many steps the denoiser was as it is kept
    state: ResumeState | None  # to be dropped once the pipeline is saved


def distill_pipeline(
    student: "DiffusionPipeline",
    teacher: "DiffusionPipeline",
    dataset: ImageDataset,
    params: DistillParams,
    weights: LossWeights,
    seed: int = 0,
    resume_at: Path | None = None,
) -> DistilledPipeline:
    """Fine-tune a pruned pipeline's denoiser with the dense one as teacher, on the device where they are.

    Args:
        student: Pruned; its denoiser is trained in place. Where its scheduler says otherwise than the
            teacher's what is predicted or at which noise levels, it gets a copy of the teacher's, which is
            said.
        teacher: The dense pipeline that it was made from; its weights stay as they are.
        dataset: Pictures of the pipelines' size. The caption of a picture is the name of its class.
        params: The section `distill`; its `students` and `quality` are not looked at.
        weights: Of the terms of the loss.
        seed: Names every random number.
        resume_at: Where to keep the state of a training that is interrupted, as folders whose names begin
            so; the same call goes on from there. None: nothing is kept.

    Returns:
        The student, with the denoiser of the step to keep.

    Raises:
        ModelError: A pipeline cannot be used, the teacher is another network than the student was pruned
            from, they were trained for different things, or the data do not suit them.
        DataError: There are fewer pictures than a batch.
        TrainingError: The loss is not finite.
    """
    batches = PipelineBatches(teacher, dataset, params, seed)
    demand_pictures_of(batches.pipeline, _named(teacher), dataset)
    part, dense = batches.pipeline.part, batches.pipeline.denoiser
    network = _demand_origin(student, teacher, student.components.get(part), dense)
    _agree(student, teacher, batches)
    state = None
    if resume_at is not None:
        networks = {name: part for name, part in teacher.components.items() if isinstance(part, nn.Module)}
        taught_by: dict[str, Any] = {"teacher": networks, "scheduler": teacher.scheduler}
        taught_by["conditions"] = batches.conditions
        given = network, plan_kept(network), dataset, params, weights, seed
        made_of = training_key(*given, **taught_by, code=code_of(__name__))
        state = ResumeState(resume_at.parent, resume_at.name, made_of)
    checkpoint = None if state is None else state.folder
    if params.execution == "auto":  # a stranger's network may do what a graph of kernels cannot hold
        params = params.model_copy(update={"execution": "eager"})
    trained = distill(network, dense, batches, params, weights, batches.device, checkpoint)
    setattr(student, part, trained.network)
    return DistilledPipeline(student, trained.progress, trained.kept_step, state)


def _named(pipe: "DiffusionPipeline") -> str:
    """The folder that a pipeline came from, for messages; without one its class."""
    return pipe.config.get("_name_or_path") or type(pipe).__name__


def _demand_origin(
    student: "DiffusionPipeline", teacher: "DiffusionPipeline", network: nn.Module | None, dense: nn.Module
) -> nn.Module:
    """The student's denoiser; a plan may not say which network it was made for."""
    made_for = "" if network is None else getattr(plan_kept(network), "network", "")
    if not isinstance(network, type(dense)) or made_for not in ("", fingerprint(dense)):
        raise ModelError(
            f"{_named(teacher)}: its {type(dense).__name__} is not the network that {_named(student)} was "
            "pruned from; give that one's pipeline as --teacher"
        )
    return network


def _agree(student: "DiffusionPipeline", teacher: "DiffusionPipeline", batches: "PipelineBatches") -> None:
    """Have a student's pipeline use it for what it is taught here; refuse one that can't."""
    differing = differences_in_training(student, teacher)
    others = [part for part in differing if part not in OF_SCHEDULER]
    captions = batches.pipeline.prompts
    if not others and captions:
        told = LatentPipeline(student, batches.pipeline.num_steps, captions)
        if not mean_the_same(batches.conditions, text_conditions(told, len(captions))):
            others = ["meaning of captions (tokenizer, text encoder or settings)"]
    if others:
        raise ModelError(
            f"{_named(student)}: has another {', '.join(others)} than {_named(teacher)}; give the pipeline "
            "that it was pruned from as --teacher"
        )
    if differing:
        student.register_modules(scheduler=copy.deepcopy(teacher.scheduler))
        print(
            f"warning: {_named(student)} has another {', '.join(differing)} than {_named(teacher)}: it "
            "learns, and will be saved, with the teacher's scheduler"
        )


class PipelineBatches:
    """The `Batches` of a pipeline.

    Args:
        pipe: The teacher; all but its denoiser is used and stays as it is.
        dataset: Its train split is learnt from, the first pictures of its test split are held out. The
            caption of a picture is the name of its class.
        params: The section `distill`.
        seed: Names every random number.

    Attributes:
        pipeline: The teacher as a function from noise to latents.
        conditions: What its denoiser is given beside latents and time, by keyword; tensors have a row for
            every class, and with guidance one more for none.

    Raises:
        ModelError: The pipeline is of no kind that is supported, its training is not known well enough to be
            repeated, or the classes are not those of the data.
    """

    def __init__(
        self, pipe: "DiffusionPipeline", dataset: ImageDataset, params: DistillParams, seed: int
    ) -> None:
        self.params = params
        self.seed = seed
        takes_text = hasattr(pipe, "encode_prompt")
        captions = [name.replace("_", " ") for name in dataset.class_names] if takes_text else None
        most = pipe.scheduler.config.get("num_train_timesteps", TRIAL_STEPS)
        self.pipeline = LatentPipeline(pipe, min(TRIAL_STEPS, most), captions)
        self.device = self.pipeline.device
        self._prediction_type = _prediction_type(pipe)
        self._alphas = pipe.scheduler.alphas_cumprod.to(self.device, torch.float32)  # (T,)
        self._images = dataset.train.images.to(self.device)
        self._labels = dataset.train.labels.to(self.device)
        self._unseen = Split(*(each[: params.num_validation] for each in vars(dataset.test).values()))
        self.conditions = _conditions(self.pipeline, dataset)
        self._none = len(dataset.class_names) if self.pipeline.copies == 2 else None

    def __call__(self, step: int) -> Iterator[NoisyBatch]:
        """The batches from `step` on."""
        size, flip = self.params.batch_size, self.params.horizontal_flip
        indices = indices_from(len(self._images), size, self.seed, "distill-order", flip, step)
        for index, chosen in enumerate(indices, start=step):
            stream = generator(self.seed, "distill-step", index)
            chosen = to_device(chosen, self.device)
            yield self._noisy(gather_batch(self._images, chosen), self._labels[chosen.indices], stream)

    def held_out(self) -> Iterator[NoisyBatch]:
        """Test pictures, with the same noise at every call."""
        size = self.params.batch_size
        unseen = zip(self._unseen.images.split(size), self._unseen.labels.split(size), strict=True)
        for index, (images, labels) in enumerate(unseen):
            stream = generator(self.seed, "distill-validate", index)
            batch = self._noisy(to_float(images.to(self.device)), labels.to(self.device), stream)
            finite(batch.latents, "test pictures encoded", "mend the weights of the pipeline's autoencoder")
            yield batch

    def _noisy(self, pictures: torch.Tensor, labels: torch.Tensor, stream: torch.Generator) -> NoisyBatch:
        """A batch of pictures (B, 3, H, W) in [-1, 1] with labels (B,)."""
        shape = (len(pictures), *self.pipeline.latent_shape)
        posterior = torch.randn(shape, generator=stream).to(self.device)
        noise = torch.randn(shape, generator=stream).to(self.device)
        timesteps = torch.randint(len(self._alphas), shape[:1], generator=stream).to(self.device)
        without = (torch.rand(shape[:1], generator=stream) < UNCONDITIONAL_SHARE).to(self.device)
        if self._none is not None:
            labels = torch.where(without, self._none, labels)
        with blamed_on(f"{self.pipeline.name}: its encoder fails", "mend the folder"):
            clean = encode(self.pipeline.pipe, pictures, posterior)
        return NoisyBatch(
            latents=add_noise(clean, noise, timesteps, self._alphas),
            timesteps=timesteps,
            target=self._target(clean, noise, timesteps),
            conditions=tree_map(lambda rows: _rows(rows, labels), self.conditions),
        )

    def _target(self, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What the denoiser is to predict, (B, C, h, w)."""
        if self._prediction_type == "epsilon":
            return noise
        if self._prediction_type == "sample":
            return clean
        # v = sqrt(a) e - sqrt(1-a) z (Salimans and Ho, 2022).
        return add_noise(noise, -clean, timesteps, self._alphas)


def encode(pipe: "DiffusionPipeline", pictures: torch.Tensor, posterior_noise: torch.Tensor) -> torch.Tensor:
    """What the denoiser of a pipeline works on, for pictures (B, 3, H, W) in [-1, 1].

    Args:
        pipe: With a `vae` or `vqvae`; without, its denoiser works on pixels, of three colours or of one.
        pictures: On its device.
        posterior_noise: Standard normal (B, C, h, w), for autoencoders that give a distribution.

    Returns:
        (B, C, h, w), scaled as the denoiser knows it: what `LatentPipeline.decode` takes.
    """
    encoder = getattr(pipe, "vae", None) or getattr(pipe, "vqvae", None)
    if encoder is None:
        grey = posterior_noise.shape[1] == 1
        return pictures.mean(dim=1, keepdim=True) if grey else pictures
    encoded = encoder.encode(pictures)
    if not hasattr(encoded, "latent_dist"):
        return _scaled(encoded.latents, encoder.config)
    posterior = encoded.latent_dist
    return _scaled(posterior.mean + posterior.std * posterior_noise, encoder.config)


def _scaled(latents: torch.Tensor, config: Mapping[str, Any]) -> torch.Tensor:
    """Latents (B, C, h, w) of the encoder with this configuration, as the denoiser wants them."""
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        centred = latents - latents.new_tensor(mean)[:, None, None]
        latents = centred / latents.new_tensor(std)[:, None, None]
    else:
        latents = latents - float(config.get("shift_factor") or 0.0)
    return latents * float(config.get("scaling_factor", 1.0))


def _prediction_type(pipe: "DiffusionPipeline") -> str:
    """What the denoiser predicts, where the training can be repeated from the scheduler."""
    scheduler = pipe.scheduler
    kind: str = scheduler.config.get("prediction_type", "epsilon")
    discrete = scheduler.config.get("timestep_type", "discrete") == "discrete"
    if kind in PREDICTION_TYPES and discrete and hasattr(scheduler, "alphas_cumprod"):
        return kind
    return refuse(
        pipe,
        f"has a {type(scheduler).__name__} with prediction_type {kind}, which has no known training",
        "only discrete steps with alphas_cumprod, predicting " + ", ".join(PREDICTION_TYPES),
    )


def _conditions(pipeline: LatentPipeline, dataset: ImageDataset) -> dict[str, Any]:
    """What the denoiser is called with beside latents and time, by keyword.

    Returns:
        Trees whose tensors have a row for every class, and with guidance one more for none.
    """
    num_classes = len(dataset.class_names)
    if pipeline.prompts:
        return text_conditions(pipeline, num_classes)
    config: Any = pipeline.denoiser.config
    if "num_embeds_ada_norm" not in config:
        return {}
    numbers = class_numbers(pipeline.pipe, pipeline.denoiser, dataset.class_names)
    return {"class_labels": torch.tensor([*numbers, config.num_embeds_ada_norm], device=pipeline.device)}


def text_conditions(pipeline: LatentPipeline, num_classes: int) -> dict[str, Any]:
    """What the pipeline's own call gives its denoiser for every caption, of as many as there are classes.

    Encodings differ from pipeline to pipeline, and so does what goes with them (Stable Diffusion XL: pooled
    ones and sizes). With guidance there are rows for the empty prompt, then rows for the captions.
    """
    start = torch.zeros(num_classes, *pipeline.latent_shape)
    ((args, kwargs),) = capture_calls(
        pipeline.denoiser, lambda: pipeline.denoise(start, range(num_classes), seed=0), first_only=True
    )
    bound = inspect.signature(pipeline.denoiser.forward).bind(*args, **kwargs)
    (_, *given) = bound.arguments.items()  # latents first
    kept = {name: value for name, value in given if name not in ("timestep", "return_dict")}
    captions_then_none = [*range(-num_classes, 0), 0] if pipeline.copies == 2 else [*range(num_classes)]
    return tree_map(lambda rows: _rows(rows, captions_then_none), kept)  # type: ignore[no-any-return]


def _rows(value: Any, indices: torch.Tensor | Sequence[int]) -> Any:
    """Those rows of a tensor; what is no tensor is the same for all."""
    return value[indices] if isinstance(value, torch.Tensor) else value
