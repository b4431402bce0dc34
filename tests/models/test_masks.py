"""Gates, what each loss may train through them, channels that are gone, and normalisation."""

from itertools import combinations
from typing import Any

import pytest
import torch
from tiny import set_logits, tiny_model

from pelap.config import ALL_LOSSES, SamplerParams, VariantParams
from pelap.diffusion.loss import add_noise_to, alphas_cumprod, noise_error
from pelap.diffusion.reverse import denoise
from pelap.models.latent_diffusion import LatentDiffusion
from pelap.models.mask import ImportanceMask, LatentNorm
from pelap.profiling.cost import count_params
from pelap.training.objective import draw_step_noise, joint_losses

GATES = ["sigmoid", "topk", "hard_concrete"]


def _mask(gate: str, adaptive: bool, k: int = 2) -> ImportanceMask:
    return ImportanceMask(gate=gate, adaptive=adaptive, num_active=k if gate == "topk" else None)


def _static(gate: str, logits: list[float], k: int = 2) -> ImportanceMask:
    mask = ImportanceMask(len(logits), gate, adaptive=False, num_active=k if gate == "topk" else None)
    mask.logits.data = torch.tensor(logits)
    return mask


def _varied(mask: ImportanceMask) -> ImportanceMask:
    """Weights with which an adaptive mask tells pictures apart, as training gives it."""
    if mask.config.adaptive:
        torch.nn.init.normal_(mask.layers[-1].weight)
    return mask


# --- gates ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adaptive", [True, False])
def test_sigmoid_mask_starts_at_sigmoid_of_three_whatever_the_latents(adaptive: bool) -> None:
    latents = torch.randn(5, 4, 8, 8) * torch.tensor([0.0, 1e-3, 1.0, 10.0, 1e3])[:, None, None, None]
    values, cost = _mask("sigmoid", adaptive)(latents)
    torch.testing.assert_close(values, torch.full((5, 4), 0.9525741))
    torch.testing.assert_close(cost, values, rtol=0, atol=0)


@pytest.mark.parametrize("gate", GATES)
def test_static_mask_is_one_for_all_pictures_and_an_adaptive_one_is_not(gate: str) -> None:
    latents = torch.randn(40, 4, 4, 4) * 5
    static, adaptive = _static(gate, [-1.0, 0.0, 1.0, 0.5]), _varied(_mask(gate, True))
    assert count_params(static) == 4
    assert len(static(latents).values.unique(dim=0)) == 1
    assert len(adaptive(latents).values.unique(dim=0)) > 1


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("adaptive", [True, False])
def test_topk_opens_exactly_k_channels_even_where_logits_tie(k: int, adaptive: bool) -> None:
    latents = torch.randn(50, 4, 4, 4) * 5
    for mask in (_mask("topk", adaptive, k), _varied(_mask("topk", adaptive, k))):
        values = mask(latents).values
        assert set(values.unique().tolist()) <= {0.0, 1.0}
        assert (values.sum(dim=1) == k).all()


def test_topk_opens_the_largest_and_learns_as_a_sigmoid_does() -> None:
    logits, weights = [0.3, -1.0, 2.0, 0.7], torch.tensor([1.0, -2.0, 3.0, 0.5])
    masks = {gate: _static(gate, logits) for gate in ("topk", "sigmoid")}
    for mask in masks.values():
        (mask(torch.zeros(3, 4, 2, 2)).values * weights).sum().backward()
    torch.testing.assert_close(masks["topk"].logits.grad, masks["sigmoid"].logits.grad)
    values, cost = masks["topk"](torch.zeros(1, 4, 2, 2))
    assert values.tolist() == [[0, 0, 1, 1]]
    assert float(cost.mean()) == 0.5  # whatever the logits: a penalty cannot move it
    assert not cost.requires_grad


def test_hard_concrete_without_noise_is_the_stretched_and_clamped_sigmoid() -> None:
    mask = _static("hard_concrete", [-10.0, -3.0, -1.0, 0.0, 1.0, 10.0])
    latents = torch.zeros(1, 6, 2, 2)
    values = mask(latents).values
    soft = torch.tensor([-1.0, 0.0, 1.0]).sigmoid() * 1.2 - 0.1
    assert values[0, [0, 1, 5]].tolist() == [0, 0, 1]
    torch.testing.assert_close(values[0, 2:5], soft)
    assert torch.equal(mask(latents).values, values)


def test_hard_concrete_costs_the_chance_of_being_open_and_has_the_mean_of_its_distribution() -> None:
    logits = torch.tensor([-4.0, -1.0, 0.0, 2.0])
    mask = _static("hard_concrete", logits.tolist())
    uniform = torch.rand(20_000, 4, generator=torch.Generator().manual_seed(0))
    values, cost = mask(torch.zeros(20_000, 4, 1, 1), uniform)
    assert (values.min().item(), values.max().item()) == (0, 1)
    torch.testing.assert_close((values > 0).float().mean(dim=0), cost[0], rtol=0, atol=0.01)
    # The mean is the integral of P(value > x) over 0..1, with the distribution function of the paper.
    x = (torch.arange(2000) + 0.5)[:, None] / 2000
    above = 1 - torch.sigmoid(2 / 3 * torch.logit((x + 0.1) / 1.2) - logits)
    torch.testing.assert_close(values.mean(dim=0), above.mean(dim=0), rtol=0, atol=0.01)
    torch.testing.assert_close(
        mask(torch.zeros(1, 4, 1, 1)).open_probability[0], cost[0]
    )  # noise changes no cost


def test_hard_concrete_learns_from_its_cost_where_it_is_shut_and_bears_any_uniform_number() -> None:
    mask = _static("hard_concrete", [-6.0, 0.0, 6.0])
    values, cost = mask(torch.zeros(2, 3, 1, 1), torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
    assert values.isfinite().all()
    cost.mean().backward()
    assert (mask.logits.grad > 0).all()


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("gate", GATES)
def test_until_it_starts_a_mask_is_one_and_learns_nothing(gate: str, adaptive: bool) -> None:
    mask = _varied(_mask(gate, adaptive))
    assert mask.selects == (
        gate != "sigmoid" and not adaptive
    )  # a static hard gate alone takes channels away
    latents, uniform = torch.randn(6, 4, 4, 4) * 5, torch.rand(6, 4)
    for closed in mask.parameters():
        closed.data -= 2.0
    mask.started.fill_(False)
    for noise in (None, uniform):
        values, cost = mask(latents, noise)
        assert torch.equal(values, torch.ones(6, 4))
        (values.sum() + cost.sum()).backward()
    assert not any(p.grad is not None and p.grad.any() for p in mask.parameters())
    assert "started" in mask.state_dict()  # a model that was kept before its mask started is saved as such
    mask.started.fill_(True)
    assert not torch.equal(mask(latents).values, torch.ones(6, 4))


@pytest.mark.parametrize("adaptive", [True, False])
def test_autocast_leaves_the_mask_its_digits(adaptive: bool) -> None:
    mask, latents = _varied(_mask("sigmoid", adaptive)), torch.randn(3, 4, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        values = mask(latents.bfloat16()).values
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, mask(latents.bfloat16().float()).values)


# --- what each loss trains --------------------------------------------------------------------------

SUBSETS = [names for size in range(4) for names in combinations(ALL_LOSSES, size)]
TERMS = {"reconstruction": "recon", "diffusion": "noise", "sparsity": "mean_mask"}
"""Of `joint_losses`; the sparsity of a sigmoid mask is its mean."""


def _reached(model: LatentDiffusion, part: torch.nn.Parameter) -> set[str]:
    """The losses whose gradient in a parameter is not zero."""
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    alphas = alphas_cumprod(model.info.diffusion)
    losses = joint_losses(model, images, draw_step_noise(model, 4, 0, "test", 0), 0.0, 1.0, alphas)
    found = set()
    for name, term in TERMS.items():
        if not losses[term].requires_grad:
            continue
        (gradient,) = torch.autograd.grad(losses[term], part, retain_graph=True, allow_unused=True)
        if gradient is not None and bool(gradient.any()):
            found.add(name)
    return found


@pytest.mark.parametrize("names", SUBSETS, ids=lambda names: "+".join(names) or "none")
@pytest.mark.parametrize(
    ("field", "adaptive"), [("encoder_losses", True), ("mask_losses", True), ("mask_losses", False)]
)
def test_a_loss_trains_a_part_exactly_where_it_is_named(
    field: str, adaptive: bool, names: tuple[str, ...]
) -> None:
    coupling = VariantParams(adaptive=adaptive, sparsity_key="lambda", decoder_input="masked")
    model = tiny_model(fields=coupling.model_copy(update={field: names}))
    assert model.mask is not None
    _varied(model.mask)
    encoder = model.vae.mean_head.weight
    mask = model.mask.layers[-1].bias if adaptive else model.mask.logits
    named, other = (encoder, mask) if field == "encoder_losses" else (mask, encoder)
    assert _reached(model, named) == set(names)
    # The penalty has no way to the encoder but through an adaptive mask that it trains.
    has_way = field == "encoder_losses" or (adaptive and "sparsity" in names)
    assert _reached(model, other) == set(ALL_LOSSES) - (set() if has_way else {"sparsity"})


def test_the_paper_trains_its_mask_by_all_but_the_reconstruction() -> None:
    model = tiny_model("pelap")
    assert model.mask is not None
    _varied(model.mask)
    assert _reached(model, model.mask.layers[-1].bias) == {"diffusion", "sparsity"}
    assert _reached(model, model.vae.mean_head.weight) == set(ALL_LOSSES)


HARD = {"gate": "hard_concrete", "adaptive": False, "sparsity_key": "seed"}
HARD |= {"decoder_input": "masked", "mask_losses": ["reconstruction"]}


def test_gates_are_sampled_for_the_losses_that_train_the_mask_alone() -> None:
    model = tiny_model(fields=VariantParams(**HARD))
    set_logits(model, 0.0)
    latents, uniform = torch.randn(64, 4, 4, 4), torch.rand(64, 4)
    without = model.gates(latents).values
    sampled = {loss: model.reached_by(loss, latents, uniform)[1].values for loss in ALL_LOSSES}
    torch.testing.assert_close(sampled["reconstruction"], model.gates(latents, uniform).values)
    assert sampled["reconstruction"].unique().numel() > 10
    assert torch.equal(sampled["diffusion"], without)
    assert torch.equal(sampled["sparsity"], without)


@pytest.mark.parametrize("training", [True, False])
def test_gates_are_sampled_in_training_alone(training: bool) -> None:
    model = tiny_model(fields=VariantParams(**HARD)).train(training)
    set_logits(model, 0.0)
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    random = draw_step_noise(model, 4, 0, "test", 0)
    other = random._replace(gates=1 - random.gates)
    alphas = alphas_cumprod(model.info.diffusion)
    first, second = (joint_losses(model, images, numbers, 0.0, 1.0, alphas) for numbers in (random, other))
    assert torch.equal(first["recon"], second["recon"]) is not training
    assert torch.equal(first["noise"], second["noise"])


# --- channels that are gone -------------------------------------------------------------------------

OPEN, CLOSED = [0, 2], [1, 3]
DDIM = SamplerParams(kind="ddim", steps=4)


def _half_closed(gate: str = "topk", **fields: Any) -> LatentDiffusion:
    """A static hard gate with channels 1 and 3 shut."""
    fields |= {"k": 2, "sparsity_key": "seed"} if gate == "topk" else {"sparsity_key": "lambda"}
    model = tiny_model(fields=VariantParams(gate=gate, adaptive=False, **fields))
    set_logits(model, 5.0, -9.0, 6.0, -8.0)
    return model


@pytest.mark.parametrize("gate", ["topk", "hard_concrete"])
def test_a_closed_channel_gets_no_noise(gate: str) -> None:
    model = _half_closed(gate)
    open_channels = model.open_channels()
    assert open_channels is not None
    assert open_channels.flatten().tolist() == [1, 0, 1, 0]
    latents, noise = torch.randn(3, 4, 4, 4), torch.randn(3, 4, 4, 4)
    steps, alphas = torch.tensor([0, 500, 999]), alphas_cumprod(model.info.diffusion)
    noisy = add_noise_to(model, latents, model.gates(latents), noise, steps, alphas)
    assert not noisy.latents[:, CLOSED].any()
    a = alphas[steps][:, None, None, None]
    expected = a.sqrt() * noisy.clean + (1 - a).sqrt() * noise
    torch.testing.assert_close(noisy.latents[:, OPEN], expected[:, OPEN])


def test_normalisation_after_the_mask_brings_no_closed_channel_back() -> None:
    model = _half_closed(normalise="after_mask", decoder_input="masked").train()
    latents = torch.randn(3, 4, 4, 4) + 7
    for _ in range(3):
        model.unet_input(latents, model.gates(latents))
    model.eval()
    alphas = alphas_cumprod(model.info.diffusion)
    gates, noise = model.gates(latents), torch.randn_like(latents)
    noisy = add_noise_to(model, latents, gates, noise, torch.zeros(3, dtype=torch.long), alphas)
    assert not noisy.clean[:, CLOSED].any()
    assert not noisy.latents[:, CLOSED].any()


def test_each_picture_has_the_support_of_its_own_sampled_gates() -> None:
    model = _half_closed("hard_concrete")
    set_logits(model, 0.0)
    latents, uniform = torch.randn(50, 4, 4, 4), torch.rand(50, 4)
    gates = model.gates(latents, uniform)
    open_channels = model.open_channels(gates)
    assert open_channels is not None
    assert torch.equal(open_channels[:, :, 0, 0] > 0, gates.values > 0)
    assert 0 < float(open_channels.mean()) < 1


@pytest.mark.parametrize(
    "fields",
    [
        {"gate": "none", "sparsity_key": "seed"},
        {"sparsity_key": "lambda"},
        {"adaptive": False, "sparsity_key": "lambda"},
        {"gate": "topk", "k": 2, "sparsity_key": "seed"},
        {"gate": "hard_concrete", "sparsity_key": "lambda"},
    ],
    ids=str,
)
def test_other_gates_leave_every_channel_there(fields: dict[str, Any]) -> None:
    model = tiny_model(fields=VariantParams(**fields))
    if model.mask is not None:
        set_logits(model, -50.0)
    latents, noise = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4)
    gates = model.gates(latents)
    assert model.open_channels() is None
    assert model.open_channels(gates) is None
    steps = torch.full((2,), 999)
    noisy = add_noise_to(model, latents, gates, noise, steps, alphas_cumprod(model.info.diffusion))
    assert noisy.open_channels is None
    assert (noisy.latents != 0).all()
    assert (denoise(model, DDIM, noise) != 0).all()


def test_the_noise_error_is_the_mean_over_the_channels_that_are_there() -> None:
    noise, predicted = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    supports = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    garbage = torch.where(supports[:, :, None, None] > 0, predicted, torch.full((), 1e6))
    errors = noise_error(garbage, noise, supports[:, :, None, None])
    squares = (predicted - noise).square().mean(dim=(2, 3))
    torch.testing.assert_close(errors[0], squares[0, [0, 2]].mean())
    torch.testing.assert_close(errors[1], squares[1, 3])
    assert float(errors[2]) == 0
    pairs = [tensor[:1].expand(3, -1, -1, -1) for tensor in (garbage, noise)]
    shared = noise_error(*pairs, supports[:1, :, None, None])  # one support for all pictures
    torch.testing.assert_close(shared, errors[0].expand(3))
    everywhere = noise_error(predicted, noise, None)
    torch.testing.assert_close(everywhere, squares.mean(dim=1))
    torch.testing.assert_close(noise_error(predicted, noise, torch.ones(1, 4, 1, 1)), everywhere)


def test_what_the_unet_says_of_a_closed_channel_changes_no_loss() -> None:
    model = _half_closed()
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    random, alphas = draw_step_noise(model, 4, 0, "test", 0), alphas_cumprod(model.info.diffusion)
    before = joint_losses(model, images, random, 0.001, 0.0, alphas)
    model.unet.conv_out.bias.data[CLOSED] += 100
    after = joint_losses(model, images, random, 0.001, 0.0, alphas)
    torch.testing.assert_close(after["loss"], before["loss"])
    model.unet.conv_out.bias.data[OPEN] += 100
    assert joint_losses(model, images, random, 0.001, 0.0, alphas)["noise"] > 1000


@pytest.mark.parametrize("kind", ["ddim", "ddpm"])
def test_a_sample_is_zero_in_closed_channels_and_the_noise_there_does_not_matter(kind: str) -> None:
    model = _half_closed()
    sampler = SamplerParams(kind=kind, steps=4)
    start = torch.randn(3, 4, 4, 4)
    other = start.clone()
    other[:, CLOSED] = 50 * torch.randn(3, 2, 4, 4)
    # ddpm draws noise of its own in each step, the same numbers both times.
    results = [
        denoise(model, sampler, noise, [torch.Generator().manual_seed(i) for i in range(3)])
        for noise in (start, other)
    ]
    assert not results[0][:, CLOSED].any()
    assert results[0][:, OPEN].any()
    assert torch.equal(results[0], results[1])


# --- normalisation ----------------------------------------------------------------------------------


def _spread(latents: torch.Tensor) -> torch.Tensor:
    return latents.std(dim=(0, 2, 3))


def test_normaliser_gives_unit_variance_in_training_and_by_stored_statistics_later() -> None:
    normaliser = LatentNorm()
    latents = torch.randn(64, 4, 8, 8) * torch.tensor([1e-3, 1.0, 5.0, 20.0])[None, :, None, None] + 3
    for _ in range(200):
        out = normaliser(latents)
    for result in (out, normaliser.eval()(latents)):
        torch.testing.assert_close(_spread(result), torch.ones(4), rtol=0.01, atol=0)
        torch.testing.assert_close(result.mean(dim=(0, 2, 3)), torch.zeros(4), rtol=0, atol=0.01)
    torch.testing.assert_close(normaliser.restore(result), latents, rtol=1e-4, atol=1e-4)


def test_before_the_mask_latents_have_unit_variance_and_the_mask_still_scales_them() -> None:
    model = tiny_model(fields=VariantParams(sparsity_key="lambda", normalise="before_mask")).train()
    latents = model.encode(torch.rand(32, 3, 16, 16) * 2 - 1).latents
    torch.testing.assert_close(_spread(latents), torch.ones(4), rtol=0.01, atol=0)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(4), rtol=0, atol=0.01)
    values = torch.tensor([1.0, 0.5, 0.1, 0.01])
    seen = model.unet_input(latents, model.gates(latents)._replace(values=values.expand(32, 4)))
    torch.testing.assert_close(_spread(seen), values, rtol=0.01, atol=0)


def test_after_the_mask_the_unet_sees_unit_variance_however_small_the_mask() -> None:
    model = tiny_model(fields=VariantParams(sparsity_key="lambda", normalise="after_mask")).train()
    set_logits(model, -6.9)  # a mask of 1e-3
    latents = torch.randn(64, 4, 4, 4)
    gates = model.gates(latents)
    torch.testing.assert_close(gates.values, torch.full((64, 4), 1e-3), rtol=0.01, atol=0)
    torch.testing.assert_close(_spread(model.unet_input(latents, gates)), torch.ones(4), rtol=0.01, atol=0)
    # The latents that the mask and the decoder see are the encoder's own.
    encoded = model.encode(torch.zeros(1, 3, 16, 16))
    assert torch.equal(encoded.latents, encoded.mean)


@pytest.mark.parametrize("normalise", ["none", "before_mask", "after_mask"])
def test_the_decoder_gets_samples_on_the_scale_that_it_was_trained_on(normalise: str) -> None:
    fields = VariantParams(sparsity_key="lambda", normalise=normalise, decoder_input="masked")
    model = tiny_model(fields=fields).train()
    images = torch.rand(16, 3, 16, 16) * 2 - 1
    for _ in range(5):  # statistics that are not those of the start
        latents = model.encode(images).latents
        model.unet_input(latents, model.gates(latents))
    model.eval()
    latents = model.encode(images).latents
    perfect = model.unet_input(latents, model.gates(latents))
    torch.testing.assert_close(model.decode_sample(perfect), model.reconstruct(images), rtol=1e-3, atol=1e-4)
