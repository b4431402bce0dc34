"""Losses on fixed tensors, and a loop that can be cut and goes on as if it had not been."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_dataset, tiny_model, tiny_params

import pelap.training.distill as distillation
from pelap.diffusion import add_noise, alphas_cumprod
from pelap.errors import TrainingError
from pelap.models.ldm import LatentDiffusion, apply_mask
from pelap.training import joint
from pelap.training.checkpoint import drop_checkpoint, load_checkpoint, save_checkpoint
from pelap.training.distill import FeatureTap, distill, distillation_losses, matched_blocks
from pelap.training.joint import draw, joint_losses, kl_divergence, learning_rate, train_jointly
from pelap.training.loop import Losses, Optimisation, Trainer, batches_from, cosine

CPU = torch.device("cpu")


def test_kl_of_fixed_tensors() -> None:
    assert float(kl_divergence(torch.zeros(3, 2), torch.zeros(3, 2))) == 0
    mean, logvar = torch.full((3, 2), 2.0), torch.full((3, 2), math.log(4.0))
    assert float(kl_divergence(mean, logvar)) == pytest.approx(0.5 * (4 + 4 - 1 - math.log(4)))


@pytest.mark.parametrize("variant", ["baseline", "pelap", "invariant"])
def test_loss_terms_are_the_definition(variant: str) -> None:
    model = tiny_model(variant, **{"lambda": 0.25})
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    random = draw(model, 4, 0, "test", 0)
    alphas = alphas_cumprod(model.info.diffusion)
    with torch.no_grad():
        losses = joint_losses(model, images, random, 0.001, alphas)
        mean, logvar = model.vae.encode(images)
        z = mean + (logvar / 2).exp() * random.posterior
        z = model.normaliser(z) if model.normaliser is not None else z
        m = model.importance(z)
        noisy = add_noise(apply_mask(z, m), random.noise, random.timesteps, alphas)
        noise = (model.unet(noisy, random.timesteps).sample - random.noise).square().mean()
        decoded = model.vae.decode(apply_mask(z, m) if variant == "invariant" else z)
        recon = (decoded - images).square().mean()
    torch.testing.assert_close(losses["noise"], noise)
    torch.testing.assert_close(losses["recon"], recon)
    torch.testing.assert_close(losses["mean_mask"], m.mean())
    strength = 0.0 if variant == "baseline" else 0.25
    torch.testing.assert_close(losses["loss"], recon + 0.001 * losses["kl"] + noise + strength * m.mean())


@pytest.mark.parametrize("variant", ["pelap", "invariant"])
def test_penalty_pulls_the_mask_down(variant: str) -> None:
    def bias_gradient(strength: float) -> torch.Tensor:
        model = tiny_model(variant, **{"lambda": strength})
        images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
        alphas = alphas_cumprod(model.info.diffusion)
        joint_losses(model, images, draw(model, 4, 0, "test", 0), 0.001, alphas)["loss"].backward()
        assert model.mask is not None
        return model.mask.layers[-1].bias.grad

    slope = 0.9525741 * (1 - 0.9525741) / 4  # of mean(m) in one of four logits, at the start
    pull = bias_gradient(10.0) - bias_gradient(0.0)
    torch.testing.assert_close(pull, torch.full((4,), 10 * slope), rtol=1e-3, atol=1e-6)


def test_a_step_is_clipped_adamw_at_the_scheduled_rate(tmp_path: Path) -> None:
    how = Optimisation(2, 1, lambda step: 0.1 * (step + 1), 0.1, 0.5, 0.9, "fp32", 1)
    start, target = torch.tensor([[3.0, -4.0]]), torch.tensor([[100.0, 0.0]])

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return (weight - target).square().sum()

    model = torch.nn.Linear(2, 1, bias=False)
    model.weight.data.copy_(start)
    trainer = Trainer(model, how, CPU, tmp_path / "c", "test")
    trainer.run(lambda step: {"loss": loss(model.weight)}, lambda step: None)

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
    torch.testing.assert_close(trainer.kept.weight.detach(), averages[-1])


def test_learning_rate_moves_by_epoch_in_the_paper_and_by_step_here() -> None:
    by_epoch = learning_rate(tiny_params(train__lr_update="epoch", train__epochs=4).train, 10)
    assert by_epoch(0) == by_epoch(9) > by_epoch(10) == by_epoch(19)
    by_step = learning_rate(tiny_params(train__epochs=4).train, 10)
    assert by_step(0) > by_step(1) > by_step(39)
    assert cosine(1.0, 0.1, 0.0) == 1.0
    assert cosine(1.0, 0.1, 1.0) == pytest.approx(0.1)


def test_batches_go_on_at_any_step() -> None:
    images = tiny_dataset(num_train=10).train.images
    whole = batches_from(images, 4, 0, "order", True, 0)
    first = [next(whole) for _ in range(7)]
    for start in (0, 1, 2, 5):
        rest = batches_from(images, 4, 0, "order", True, start)
        for expected in first[start:]:
            torch.testing.assert_close(next(rest), expected, rtol=0, atol=0)


def _train(checkpoint: Path, **overrides: object) -> tuple[LatentDiffusion, list[dict[str, float]]]:
    model = tiny_model("invariant", **overrides)
    params = tiny_params(**overrides).train
    kept, progress = train_jointly(model, tiny_dataset(), params, CPU, checkpoint)
    return kept, progress.history


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_interrupted_training_ends_where_uninterrupted_training_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema_decay: float
) -> None:
    options = {"train__ema_decay": ema_decay, "train__batch_size": 8, "train__select": "best"}
    expected, expected_history = _train(tmp_path / "whole", **options)
    step = Trainer._step

    def cut(self: Trainer, *args: object) -> None:
        if self.progress.step == 10:
            raise KeyboardInterrupt
        step(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr("pelap.training.loop.CHECKPOINT_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", cut)
        with pytest.raises(KeyboardInterrupt):
            _train(tmp_path / "cut", **options)
    resumed, history = _train(tmp_path / "cut", **options)
    assert [row["step"] for row in history] == [row["step"] for row in expected_history]
    assert history[-1]["loss"] == expected_history[-1]["loss"]
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, rtol=0, atol=0)


def test_same_seed_gives_the_same_weights_and_another_seed_does_not(tmp_path: Path) -> None:
    first, again = _train(tmp_path / "a")[0], _train(tmp_path / "b")[0]
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    other, _ = train_jointly(
        tiny_model("invariant", seed=1), tiny_dataset(), tiny_params().train, CPU, tmp_path / "c"
    )
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_moving_average_differs_from_the_last_weights_and_includes_statistics(tmp_path: Path) -> None:
    average, _ = _train(tmp_path / "a", train__ema_decay=0.9)
    last, _ = _train(tmp_path / "b", train__ema_decay=0.0)
    assert average.normaliser is not None
    assert last.normaliser is not None
    assert not torch.equal(average.vae.mean_head.weight, last.vae.mean_head.weight)
    stored = average.normaliser.statistics.running_var
    assert not torch.equal(stored, last.normaliser.statistics.running_var)
    assert not torch.equal(stored, torch.ones(4))


def test_infinite_loss_is_reported(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="not finite"):
        _train(tmp_path / "a", train__lr=1e30, train__batch_size=8)


def test_best_epoch_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("baseline")
    how = {"train__select": "best", "train__ema_decay": 0.0, "train__batch_size": 16}
    seen: list[torch.Tensor] = []
    real = Trainer.keep_current

    def keep(self: Trainer) -> None:
        real(self)
        seen.append(self.current.vae.mean_head.weight.detach().clone())  # type: ignore[union-attr]

    monkeypatch.setattr(Trainer, "keep_current", keep)
    scripted = iter([3.0, 1.0, 2.0])
    real_losses = joint.joint_losses

    def losses(model: LatentDiffusion, *args: Any) -> Losses:
        values = real_losses(model, *args)
        return values if model.training else values | {"loss": torch.tensor(next(scripted))}

    monkeypatch.setattr(joint, "joint_losses", losses)
    params = tiny_params(**how, train__epochs=3).train
    kept, progress = train_jointly(model, tiny_dataset(), params, CPU, tmp_path / "a")
    assert [row["loss"] for row in progress.validation] == [3, 1, 2]
    assert len(seen) == 2
    assert torch.equal(kept.vae.mean_head.weight, seen[-1])
    assert not torch.equal(model.vae.mean_head.weight, seen[-1])


def test_weights_that_diverge_in_the_last_step_are_not_kept(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="not finite"):
        _train(tmp_path / "a", train__lr=1e38, train__batch_size=64, train__epochs=1)


def test_broken_checkpoint_is_not_gone_on_from(tmp_path: Path) -> None:
    from pelap.training.loop import Progress

    model, empty = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    before = empty.weight.clone()
    save_checkpoint(tmp_path / "c", {"model": model}, Progress(step=3))
    assert load_checkpoint(tmp_path / "c", {"model": torch.nn.Linear(2, 2)}, Progress())
    assert not load_checkpoint(tmp_path / "c", {"model": torch.nn.Linear(3, 2)}, Progress())
    assert not load_checkpoint(tmp_path / "c", {"model": empty, "average": torch.nn.Linear(2, 2)}, Progress())
    assert torch.equal(empty.weight, before)
    (tmp_path / "c" / "progress.json").write_text("{")
    assert not load_checkpoint(tmp_path / "c", {"model": model}, Progress())
    drop_checkpoint(tmp_path / "c")
    assert not (tmp_path / "c").exists()


def _distillation(student: LatentDiffusion, teacher: LatentDiffusion) -> Losses:
    names = matched_blocks(student.unet, teacher.unet)
    x, e, t = torch.randn(4, 4, 4, 4), torch.randn(4, 4, 4, 4), torch.tensor([0, 5, 500, 999])
    with torch.no_grad(), FeatureTap(student.unet, names) as s, FeatureTap(teacher.unet, names) as u:
        predicted, target = student.unet(x, t).sample, teacher.unet(x, t).sample
        return distillation_losses(s, u, predicted, target, e, (1.0, 10.0, 100.0))


def test_a_student_equal_to_its_teacher_has_nothing_to_learn_from_it() -> None:
    model = tiny_model()
    losses = _distillation(model, tiny_model())
    assert float(losses["output"]) == float(losses["feature"]) == 0
    torch.testing.assert_close(losses["loss"], losses["task"])
    other = _distillation(tiny_model(seed=1), model)
    assert float(other["output"]) > 0
    expected = other["task"] + 10 * other["output"] + 100 * other["feature"]
    torch.testing.assert_close(other["loss"], expected)


@pytest.mark.parametrize("unet", ["unet2d", "light"])
def test_matched_blocks_cover_the_network(unet: str) -> None:
    overrides = {} if unet == "unet2d" else {"unet": {"kind": "light", "width": 8}}
    model = tiny_model(**overrides)
    names = matched_blocks(model.unet, model.unet)
    assert len(names) == (5 if unet == "unet2d" else 4)
    with FeatureTap(model.unet, names) as tap:
        model.unet(torch.randn(1, 4, 4, 4), 3)
    assert set(tap.features) == set(names)


def test_distillation_moves_the_student_alone(tmp_path: Path) -> None:
    teacher, student = tiny_model(), tiny_model(seed=1)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    vae_before = student.vae.mean_head.weight.clone()
    start = student.unet.conv_in.weight.clone()
    images = tiny_dataset().train.images
    unet, progress = distill(student, teacher, images, tiny_params().distill, 0, CPU, tmp_path / "d")
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert torch.equal(student.vae.mean_head.weight, vae_before)
    assert not torch.equal(unet.conv_in.weight, start)
    assert set(progress.history[0]) >= {"step", "loss", "task", "output", "feature", "lr"}


def test_distillation_uses_masked_latents_its_weights_and_a_warm_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tiny_model()
    seen: list[torch.Tensor] = []
    weights: list[tuple[float, ...]] = []
    real_noise, real_losses = distillation.add_noise, distillation.distillation_losses

    def noise(clean: torch.Tensor, *args: Any) -> torch.Tensor:
        seen.append(clean)
        return real_noise(clean, *args)

    def losses(*args: Any) -> Losses:
        weights.append(args[-1])
        return real_losses(*args)

    monkeypatch.setattr(distillation, "add_noise", noise)
    monkeypatch.setattr(distillation, "distillation_losses", losses)
    options = {"distill__task_weight": 2.0, "distill__output_weight": 3.0, "distill__feature_weight": 4.0}
    assert teacher.mask is not None
    torch.nn.init.constant_(teacher.mask.layers[-1].bias, -30.0)  # all channels closed
    params = tiny_params(**options, distill__log_every=1, distill__warmup_steps=3).distill
    _, progress = distill(tiny_model(seed=1), teacher, tiny_dataset().train.images, params, 0, CPU, tmp_path)
    assert max(float(clean.abs().max()) for clean in seen) < 1e-9
    assert set(weights) == {(2.0, 3.0, 4.0)}
    rates = [row["lr"] for row in progress.history]
    assert rates[:3] == pytest.approx([params.lr / 3, params.lr * 2 / 3, params.lr])
    assert rates[3:] == sorted(rates[3:], reverse=True)
