"""Losses on fixed tensors, and a loop that can be cut and goes on as if it had not been."""

from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from interruption import cut_training, record_steps
from tiny import set_logits, tiny_dataset, tiny_model, tiny_params
from torch._inductor.exc import InvalidCxxCompiler
from training_cases import train_jointly

from pelap.config import VariantParams
from pelap.core.errors import TrainingError
from pelap.core.keys import ResumeState, key
from pelap.diffusion.loss import add_noise, alphas_cumprod
from pelap.models.latent_diffusion import LatentDiffusion, apply_mask
from pelap.training import joint
from pelap.training.checkpoint import load_checkpoint, save_checkpoint
from pelap.training.objective import autoencoder_losses, draw_step_noise, joint_losses
from pelap.training.parallel import train_alone
from pelap.training.trainer import Losses, Optimisation, Progress, Trainer

CPU = torch.device("cpu")


COUPLINGS = {
    "baseline": VariantParams(gate="none", sparsity_key="seed"),
    "paper": VariantParams(sparsity_key="lambda"),
    "masked": VariantParams(sparsity_key="lambda", normalise="before_mask", decoder_input="masked"),
    "after": VariantParams(sparsity_key="lambda", normalise="after_mask"),
    "static": VariantParams(
        gate="hard_concrete", adaptive=False, sparsity_key="lambda", decoder_input="masked"
    ),
}


def _pictures() -> torch.Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_loss_terms_are_the_definition(coupling: str) -> None:
    fields = COUPLINGS[coupling]
    model = tiny_model(fields=fields)
    if model.mask is not None:
        set_logits(model, 2.0, 0.5, 1.0, 0.0)
    images, random = _pictures(), draw_step_noise(model, 4, 0, "test", 0)
    alphas = alphas_cumprod(model.info.diffusion)
    with torch.no_grad():
        losses = joint_losses(model, images, random, 0.001, 0.25, alphas)
        mean, logvar = model.vae.encode(images)
        z = mean + (logvar / 2).exp() * random.posterior
        z = model.normaliser(z) if fields.normalise == "before_mask" else z
        m, cost = model.gates(z)
        clean = apply_mask(z, m)
        clean = model.normaliser(clean) if fields.normalise == "after_mask" else clean
        noisy = add_noise(clean, random.noise, random.timesteps, alphas)
        noise = (model.unet(noisy, random.timesteps).sample - random.noise).square().mean()
        decoded = model.vae.decode(apply_mask(z, m) if fields.decoder_input == "masked" else z)
        recon = (decoded - images).square().mean()
        normal = torch.distributions.Normal
        kl = torch.distributions.kl_divergence(normal(mean, (logvar / 2).exp()), normal(0.0, 1.0)).mean()
    torch.testing.assert_close(losses["noise"], noise)
    torch.testing.assert_close(losses["recon"], recon)
    torch.testing.assert_close(losses["kl"], kl)
    torch.testing.assert_close(losses["mean_mask"], m.mean())
    torch.testing.assert_close(losses["loss"], recon + 0.001 * kl + noise + 0.25 * cost.mean())


def test_the_autoencoder_alone_has_no_other_loss() -> None:
    model = tiny_model(fields=COUPLINGS["masked"])
    images, random = _pictures(), draw_step_noise(model, 4, 0, "test", 0)
    alphas = alphas_cumprod(model.info.diffusion)
    assert model.mask is not None
    model.mask.started.fill_(False)  # joint training with an open mask decodes the same latents
    expected = joint_losses(model, images, random, 0.5, 0.0, alphas)
    losses = autoencoder_losses(model, images, random, 0.5, 0.0)
    torch.testing.assert_close(losses["recon"], expected["recon"])
    torch.testing.assert_close(losses["loss"], expected["recon"] + 0.5 * expected["kl"])
    losses["loss"].backward()
    assert all(p.grad is None for part in (model.unet, model.mask) for p in part.parameters())
    assert all(p.grad is not None for p in model.vae.parameters())


def test_a_mask_that_is_trained_with_the_autoencoder_is_pulled_down_there() -> None:
    """Its decoder sees z*m, and the penalty has its weight."""
    fields = VariantParams(
        sparsity_key="seed",
        gate="hard_concrete",
        adaptive=False,
        decoder_input="masked",
        normalise="before_mask",
        mask_losses=("reconstruction", "sparsity"),
        vae_training="two_stage",
    )
    model = tiny_model(fields=fields)
    images, random = _pictures(), draw_step_noise(model, 4, 0, "test", 0)
    assert model.mask is not None
    losses = autoencoder_losses(model, images, random, 0.5, 0.25)
    cost = model.mask(torch.zeros(4, *model.latent_shape), random.gates).open_probability.mean()
    torch.testing.assert_close(losses["loss"], losses["recon"] + 0.5 * losses["kl"] + 0.25 * cost)
    losses["loss"].backward()
    assert all(p.grad is not None for part in (model.vae, model.mask) for p in part.parameters())
    with torch.no_grad():
        set_logits(model, -9.0)
        closed = autoencoder_losses(model, images, random, 0.5, 0.25)
    assert closed["recon"] != losses["recon"]


@pytest.mark.parametrize(
    ("coupling", "slope"),
    [
        # Of the mean cost in one of four logits at 3: of sigmoid(3), and of P(open) = sigmoid(3 + 2/3 ln 11).
        ("paper", 0.9525741 * (1 - 0.9525741) / 4),
        ("masked", 0.9525741 * (1 - 0.9525741) / 4),
        ("static", 0.9900335 * (1 - 0.9900335) / 4),
    ],
)
def test_penalty_pulls_the_mask_down(coupling: str, slope: float) -> None:
    def gradient(strength: float) -> torch.Tensor:
        model = tiny_model(fields=COUPLINGS[coupling])
        alphas = alphas_cumprod(model.info.diffusion)
        random = draw_step_noise(model, 4, 0, "test", 0)
        joint_losses(model, _pictures(), random, 0.001, strength, alphas)["loss"].backward()
        assert model.mask is not None
        return model.mask.layers[-1].bias.grad if model.mask.config.adaptive else model.mask.logits.grad

    pull = gradient(10.0) - gradient(0.0)
    torch.testing.assert_close(pull, torch.full((4,), 10 * slope), rtol=1e-3, atol=1e-6)


def test_a_step_is_clipped_adamw_at_the_scheduled_rate() -> None:
    numbers = {"batch_size": 1, "weight_decay": 0.1, "grad_clip": 0.5, "ema_decay": 0.9, "log_every": 1}
    params = tiny_params(**{f"train__{name}": value for name, value in numbers.items()}).train
    how = Optimisation(2, lambda step: 0.1 * (step + 1), params)
    start, target = torch.tensor([[3.0, -4.0]]), torch.tensor([[100.0, 0.0]])

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return (weight - target).square().sum()

    model: Any = torch.nn.Linear(2, 1, bias=False)
    model.weight.data.copy_(start)
    model.register_buffer("statistics", torch.zeros(1))
    model.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def losses(_: torch.Tensor) -> Losses:
        for buffer in model.buffers():
            buffer.add_(1)
        return {"loss": loss(model.weight)}

    trainer = Trainer(model, how, CPU, None, "test")
    nothing = repeat(torch.zeros(()))
    train_alone(trainer.steps(nothing, lambda _: losses, lambda _: None))

    reference = torch.nn.Parameter(start.clone())
    optimiser = torch.optim.AdamW([reference], lr=0.1, weight_decay=0.1)
    averages: list[torch.Tensor] = []
    for step in range(2):
        optimiser.param_groups[0]["lr"] = 0.1 * (step + 1)
        optimiser.zero_grad()
        loss(reference).backward()
        torch.nn.utils.clip_grad_norm_([reference], 0.5)
        optimiser.step()
        now = reference.detach().clone()
        averages.append(now if not averages else averages[-1].lerp(now, 1 - min(0.9, 2 / 11)))
    torch.testing.assert_close(model.weight, reference)
    kept: Any = trainer.kept
    torch.testing.assert_close(kept.weight.detach(), averages[-1])
    assert 1 < float(kept.statistics) < 2  # averaged too
    assert int(kept.count) == 2


def _train(
    checkpoint: Path | None = None, fields: VariantParams = COUPLINGS["masked"], **overrides: object
) -> tuple[LatentDiffusion, list[dict[str, float]]]:
    model = tiny_model(fields=fields, **overrides)
    params = tiny_params(**overrides).train
    kept, progress = train_jointly(model, tiny_dataset(), params, CPU, checkpoint)
    return kept, progress.history


FIRST = VariantParams(
    sparsity_key="lambda",
    normalise="before_mask",
    decoder_input="masked",
    vae_training="two_stage",
    start_epoch=1,
)


@pytest.mark.parametrize(
    # 4 steps an epoch; FIRST trains its autoencoder for 4 steps, then without mask for 4.
    ("fields", "cut_at", "ema_decay"),
    [
        (COUPLINGS["masked"], 5, 0.0),
        (COUPLINGS["masked"], 5, 0.9),
        (FIRST, 2, 0.9),
        (FIRST, 4, 0.9),
        (FIRST, 6, 0.0),
        (FIRST, 9, 0.9),
    ],
    ids=["joint", "joint averaged", "vae alone", "boundary", "unmasked", "masked"],
)
def test_interrupted_training_ends_where_uninterrupted_training_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: VariantParams, cut_at: int, ema_decay: float
) -> None:
    options: dict[str, Any] = {
        "train__epochs": 3,  # 12 steps of 16 pictures: with a frozen autoencoder they are looked up
        "train__ema_decay": ema_decay,
        "train__batch_size": 16,
        "train__select": "best",
        "train__log_every": 1,
        "train__num_validation": 8,
    }
    expected, expected_history = _train(tmp_path / "whole", fields, **options)
    with monkeypatch.context() as patch:
        cut_training(patch, cut_at)
        with pytest.raises(KeyboardInterrupt):
            _train(tmp_path / "cut", fields, **options)
    with monkeypatch.context() as patch:
        taken = record_steps(patch)
        resumed, history = _train(tmp_path / "cut", fields, **options)
    assert taken == [*range(cut_at, len(expected_history))]
    assert [row["loss"] for row in history] == [row["loss"] for row in expected_history]
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, rtol=0, atol=0)


def test_the_seed_decides() -> None:
    fresh = tiny_model(seed=1, fields=COUPLINGS["masked"])
    other, _ = train_jointly(fresh, tiny_dataset(), tiny_params().train, CPU)
    first, again = (next(_train()[0].parameters()) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, next(other.parameters()))


@pytest.mark.parametrize(
    ("fields", "values", "kept_at"),
    [
        (COUPLINGS["baseline"], [3.0, 1.0, 2.0], 1),
        # None of the autoencoder alone, nor without its mask.
        (COUPLINGS["masked"].model_copy(update={"start_epoch": 1}), [0.0, 2.0, 1.0], 2),
        (FIRST, [0.0, 1.0, 3.0, 2.0], 3),
    ],
    ids=["joint", "start epoch", "vae first"],
)
def test_best_epoch_is_kept(
    monkeypatch: pytest.MonkeyPatch, fields: VariantParams, values: list[float], kept_at: int
) -> None:
    model = tiny_model(fields=fields)
    how = {"train__select": "best", "train__ema_decay": 0.0, "train__batch_size": 16}
    seen: list[torch.Tensor] = []
    scripted = iter(values)
    real_losses = joint.joint_losses

    def losses(model: LatentDiffusion, *args: Any) -> Losses:
        values = real_losses(model, *args)
        if model.training:
            return values
        seen.append(model.unet.conv_out.weight.detach().clone())
        return values | {"loss": torch.tensor(next(scripted))}

    monkeypatch.setattr(joint, "joint_losses", losses)
    params = tiny_params(**how, train__epochs=3).train
    kept, progress = train_jointly(model, tiny_dataset(), params, CPU)
    assert [row["loss"] for row in progress.validation] == values
    assert torch.equal(kept.unet.conv_out.weight, seen[kept_at])
    assert not torch.equal(seen[1], seen[2])


@pytest.mark.parametrize(
    "options",
    [{"lr": 1e30, "batch_size": 8}, {"lr": 1e38, "batch_size": 64, "epochs": 1}],
    ids=["loss", "weights after the last step"],
)
def test_a_training_that_diverges_is_told_of(options: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match="not finite"):
        _train(**{f"train__{name}": value for name, value in options.items()})


def test_broken_checkpoint_is_not_gone_on_from(tmp_path: Path) -> None:
    model, empty = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    before = empty.weight.clone()
    save_checkpoint(tmp_path / "c", {"model": model}, Progress(step=3))
    assert load_checkpoint(tmp_path / "c", {"model": torch.nn.Linear(2, 2)}, Progress())
    assert not load_checkpoint(tmp_path / "c", {"model": torch.nn.Linear(3, 2)}, Progress())
    for lacking in (torch.nn.Linear(2, 2), torch.optim.AdamW(empty.parameters())):
        assert not load_checkpoint(tmp_path / "c", {"model": empty, "lacking": lacking}, Progress())
    assert torch.equal(empty.weight, before)
    (tmp_path / "c" / "progress.json").write_text("{")
    assert not load_checkpoint(tmp_path / "c", {"model": model}, Progress())


def test_work_that_starts_anew_says_what_is_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def begin(label: str = "train-a", **parts: Any) -> ResumeState:
        return ResumeState(tmp_path / "resume", label, key(**parts))

    first = begin(lr=1, data=2, code=3)
    assert begin(lr=5, data=2, code=3).folder != first.folder  # nothing was saved: nothing is said
    save_checkpoint(begin(lr=1, data=2, code=3).folder, {"model": torch.nn.Linear(2, 2)}, Progress())
    assert begin(lr=1, data=2, code=3).folder == first.folder
    begin("train-a-b", lr=1, data=2, code=3)  # other work, whose name begins alike
    assert capsys.readouterr().out == ""
    other = begin(lr=1, data=4, code=6)
    assert other.folder != first.folder
    assert capsys.readouterr().out == (
        "train-a: starts anew; the run that was interrupted has another data, code\n"
    )
    begin("train-a-b", lr=1).drop()
    assert first.folder.is_dir()
    other.drop()  # the state of other parameters goes too
    assert not (tmp_path / "resume").exists()


def test_compiled_training_translates_the_losses_of_each_phase_once(monkeypatch: pytest.MonkeyPatch) -> None:
    translated: list[Any] = []

    def translate(losses: Any, dynamic: bool) -> Any:
        assert not dynamic
        translated.append(losses)
        return losses

    monkeypatch.setattr(torch, "compile", translate)
    _, history = _train(fields=FIRST, train__execution="compiled", train__batch_size=16)
    assert len(translated) == 2  # the autoencoder alone, and what follows
    _, expected = _train(fields=FIRST, train__execution="eager", train__batch_size=16)
    assert len(translated) == 2
    assert [row["loss"] for row in history] == [row["loss"] for row in expected]


def test_where_nothing_can_be_compiled_steps_run_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(losses: Any, dynamic: bool) -> Any:
        def translated(inputs: Any) -> Any:
            losses(inputs)
            raise InvalidCxxCompiler

        return translated

    monkeypatch.setattr(torch, "compile", fails)
    _, history = _train(fields=FIRST, train__execution="compiled", train__batch_size=16)
    said = capsys.readouterr().out
    assert said.count("steps run as they are: torch.compile fails here (No working C++ compiler found") == 1
    _, expected = _train(fields=FIRST, train__execution="eager", train__batch_size=16)
    assert [row["loss"] for row in history] == [row["loss"] for row in expected]
