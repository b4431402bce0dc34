"""Prompts: tokens, what pictures and samples are told, guidance, and models that listen."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TEXT, UNET, tiny_dataset, tiny_raw
from training_cases import observe, train_jointly

from pelap.commands.models import sample
from pelap.config import DiffusionParams, SamplerParams, TextConditioning, VariantParams
from pelap.config.load import parse_params
from pelap.core.errors import ConfigError, DataError, ModelError
from pelap.data.dataset import ImageDataset
from pelap.diffusion.reverse import ReverseProcess, denoise, model_denoiser
from pelap.diffusion.sampler import ModelGenerator, sample_images
from pelap.distillation.batches import ModelBatches
from pelap.models.latent_diffusion import LatentDiffusion, ModelInfo, build_model, build_vae
from pelap.models.model_io import demand_trained_on
from pelap.models.text_conditioner import PADDING, UNKNOWN, Guidance, TextConditioner, build_conditioner
from pelap.pipelines.pipeline_io import load_model, save_model
from pelap.scoring.score import LatentStore
from pelap.scoring.scorer import Scorer
from pelap.training import joint, objective
from pelap.training.objective import denoising_losses

NAMES = ("even", "odd")
DDIM = SamplerParams(kind="ddim", steps=4)
CPU = torch.device("cpu")


def told_raw(**overrides: Any) -> dict[str, Any]:
    return tiny_raw(**({"conditioning": TEXT, "unet": UNET} | overrides))


def told_params(**overrides: Any) -> Any:
    return parse_params(told_raw(**overrides), "tiny")


def conditioner(**fields: Any) -> TextConditioner:
    torch.manual_seed(0)
    return build_conditioner(TextConditioning(**(TEXT | fields)), NAMES, None).eval()


def told_model(**fields: Any) -> LatentDiffusion:
    """A fresh model with a conditioner, whose cross-attention says something."""
    params = told_params()
    variant = VariantParams(
        gate="none", sparsity_key="seed", normalise="before_mask", vae_training="two_stage"
    )
    info = ModelInfo("dense", variant, params.diffusion, 16, "tiny", 0, 0.0, 0.0)
    told = conditioner(**fields)
    return build_model(info, build_vae(params.vae), params.unet, told).eval()


def told_of(model: LatentDiffusion) -> TextConditioner:
    assert model.conditioner is not None
    return model.conditioner


# Tokens


def test_a_prompt_is_words_in_lower_case_without_punctuation() -> None:
    told = TextConditioner(["stereo_motorcycle", "coffee"], ["a photo of {}!"])
    tokens = told.tokens(["A photo, of COFFEE", "a photo of stereo motorcycle"])
    assert tokens.shape == (2, 8)
    assert (tokens[0] != PADDING).sum() == 4
    assert (tokens[1] != PADDING).sum() == 5
    assert torch.equal(tokens[0, :3], tokens[1, :3])
    assert len({int(token) for token in tokens.unique()}) == 6 + 1  # six words, and padding
    assert not torch.equal(told.tokens(["photo coffee"]), told.tokens(["coffee photo"]))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a dog", "prompt 'a dog': 'dog' is not in the model's vocabulary; use words of a, even, odd"),
        ("a a a a a", "has 5 words; use 1 to 4"),
        ("...", "has 0 words; use 1 to 4"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_refused(prompt: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        conditioner().tokens(["even", prompt])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# What pictures and samples are told


def test_training_draws_templates_and_leaves_the_share_without_prompt() -> None:
    told, labels = conditioner(), torch.arange(4000) % 2
    drawn = told.drawn_for(labels, torch.Generator().manual_seed(0))
    silent = (drawn == PADDING).all(dim=1)
    assert silent.float().mean().item() == pytest.approx(0.25, abs=0.03)
    for label, name in enumerate(NAMES):
        given = {tuple(row) for row in drawn[(labels == label) & ~silent].tolist()}
        assert given == {tuple(row) for row in told.tokens([f"a {name}", name]).tolist()}
    first, again, other = (told.drawn_for(labels, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    always = conditioner(dropout=0.0, guidance_scale=1.0).drawn_for(labels, torch.Generator().manual_seed(0))
    assert (always != PADDING).any(dim=1).all()


def test_samples_take_turns_in_classes_and_know_what_they_are_asked_for() -> None:
    told = conditioner()
    assert told.prompts == ("a even", "a odd", "even", "odd")
    assert told.labels_of_prompts(range(6)).tolist() == [0, 1, 0, 1, 0, 1]
    assert torch.equal(told.of_items([5, 0]), told.tokens(["a odd", "a even"]))
    assert torch.equal(told.of_labels(torch.tensor([1, 0])), told.tokens(["a odd", "a even"]))  # held out
    told.set_prompts(["odd", "even odd", "a"])
    assert torch.equal(told.of_items([3]), told.tokens(["odd"]))
    assert told.labels_of_prompts(range(4)).tolist() == [1, UNKNOWN, UNKNOWN, 1]
    with pytest.raises(DataError, match="'cat' is not in"):
        told.set_prompts(["cat"])
    assert told.prompts == ("odd", "even odd", "a")


def test_classes_whose_names_are_parts_of_others_are_told_apart() -> None:
    told = TextConditioner(["cat", "black cat", "photo", "cattle"], ["a photo of {}", "{}"])
    assert told.labels_of_prompts(range(8)).tolist() == [0, 1, 2, 3] * 2  # by templates: known without a look
    told.set_prompts(["black cat", "a cat", "photo of photo", "black cat of cat photo", "cattle"])
    assert told.labels_of_prompts(range(5)).tolist() == [1, 0, 2, UNKNOWN, 3]


# Guidance


class Told(torch.nn.Module):
    """Predicts what it is told."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, encoder_hidden_states: torch.Tensor) -> Any:
        self.rows = len(x)
        value = encoder_hidden_states.mean(dim=(1, 2))[:, None, None, None]
        return type("Output", (), {"sample": value.expand_as(x)})()


def steps_of(guidance: Guidance) -> tuple[torch.Tensor, int]:
    """Where one step from zero leads, and the rows that the network was given."""
    network = Told()
    diffusion = DiffusionParams(num_train_timesteps=10, beta_start=0.01, beta_end=0.02)
    one = SamplerParams(kind="ddim", steps=1)
    process = ReverseProcess(diffusion, one, CPU)
    return process.run(network, torch.zeros(2, 1, 2, 2), guidance=guidance), network.rows


def test_guidance_goes_from_the_prediction_without_prompt_through_the_one_with_it() -> None:
    told, untold = torch.full((2, 4, 8), 0.3), torch.full((2, 4, 8), 0.1)
    both = {"encoder_hidden_states": torch.cat([told, untold])}
    guided, rows = steps_of(Guidance(both, 2.0))
    expected, alone = steps_of(Guidance({"encoder_hidden_states": torch.full((2, 4, 8), 0.5)}, 1.0))
    torch.testing.assert_close(guided, expected)
    assert (rows, alone) == (4, 2)


def test_guidance_of_a_model_has_prompts_first_and_none_after_them() -> None:
    model = told_model()
    guidance, told = model.guidance([1, 2]), told_of(model)
    assert guidance is not None
    with torch.no_grad():
        expected = told(torch.cat([told.tokens(["a odd", "even"]), told.no_prompt(2)]))
    torch.testing.assert_close(guidance.conditions["encoder_hidden_states"], expected)
    assert guidance.scale == 3.0
    unguided = told_model(guidance_scale=1.0).guidance([0, 1])
    assert unguided is not None
    assert len(unguided.conditions["encoder_hidden_states"]) == 2  # nothing is computed twice


def test_a_sample_follows_its_prompt_and_not_its_batch() -> None:
    model = told_model()
    source, noise = ModelGenerator(model, DDIM), torch.randn(4, *model.latent_shape)
    assert source.num_asked == len(told_of(model).prompts) > 1
    together = source.denoise(noise, range(4), 0)
    # Guidance and few steps make rounding larger.
    torch.testing.assert_close(source.denoise(noise[2:3], [2], 0), together[2:3], rtol=0, atol=1e-3)
    assert not torch.allclose(source.denoise(noise[2:3], [3], 0), together[2:3], atol=1e-2)
    torch.testing.assert_close(denoise(model, DDIM, noise), together, rtol=0, atol=1e-3)


def test_stochastic_samplers_are_guided_too() -> None:
    model = told_model()
    source = ModelGenerator(model, SamplerParams(kind="ddpm", steps=4))
    noise = torch.randn(1, *model.latent_shape)
    one, other = (source.denoise(noise, [0], 0) for _ in range(2))
    assert torch.equal(one, other)
    told_of(model).set_prompts(["odd"])
    assert not torch.allclose(source.denoise(noise, [0], 0), one, atol=1e-4)


# Models


def test_a_saved_model_makes_the_same(tmp_path: Path) -> None:
    model = told_model()
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert told_of(loaded).prompts == told_of(model).prompts
    assert told_of(model.with_unet(model.unet, "pruned", 0.0)) is told_of(model)
    assert torch.equal(sample_images(loaded, DDIM, 5, 0), sample_images(model, DDIM, 5, 0))


def shuffled_dataset() -> ImageDataset:
    """Whose labels do not take turns, so that no wrong order gives them by chance."""
    dataset = tiny_dataset()
    labels = torch.randint(2, (len(dataset.train),), generator=torch.Generator().manual_seed(5))
    return replace(dataset, train=replace(dataset.train, labels=labels))


def test_training_teaches_the_text_encoder_prompts_of_the_pictures_own_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, dataset = told_model(dropout=0.0, guidance_scale=1.0, templates=["{}"]), shuffled_dataset()
    given: list[tuple[torch.Tensor, torch.Tensor]] = []
    gather_batch = joint.gather_batch

    def seen(images: torch.Tensor, indices: joint.BatchIndices) -> torch.Tensor:
        given.append((indices.indices, torch.empty(0)))
        return gather_batch(images, indices)

    def losses(
        model: LatentDiffusion, latents: torch.Tensor, random: objective.StepNoise, *others: Any
    ) -> Any:
        if len(random.tokens) == 32 and given and not len(given[-1][1]):
            given[-1] = (given[-1][0], random.tokens)
        return denoising_losses(model, latents, random, *others)

    monkeypatch.setattr(joint, "gather_batch", seen)
    monkeypatch.setattr(objective, "denoising_losses", losses)
    before = {name: value.clone() for name, value in told_of(model).named_parameters()}
    train_jointly(model, dataset, told_params().train, CPU, tmp_path / "resume")
    learnt = dict(told_of(model).named_parameters())
    assert all(not torch.equal(before[name], learnt[name]) for name in before)  # with the UNet
    trained_on = [(items, tokens) for items, tokens in given if len(tokens)]
    assert len(trained_on) >= 2
    for items, tokens in trained_on:
        assert torch.equal(tokens, told_of(model).of_labels(dataset.train.labels[items]))


def test_students_are_given_the_prompts_of_their_own_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    model, dataset = told_model(dropout=0.0, guidance_scale=1.0, templates=["{}"]), shuffled_dataset()
    batches = ModelBatches(model, dataset, told_params().distill, 0, CPU)
    indices: list[torch.Tensor] = []
    posteriors = batches.posteriors

    def noted(chosen: Any) -> Any:
        indices.append(chosen.indices)
        return posteriors(chosen)

    monkeypatch.setattr(batches, "posteriors", noted)
    batch, held_out = next(iter(batches(0))), next(iter(batches.held_out()))
    assert batch.predict(model.unet).shape == batch.target.shape
    labels = ((batch, dataset.train.labels[indices[0]]), (held_out, dataset.test.labels[:8]))
    for found, expected in labels:
        with torch.no_grad():
            states = told_of(model)(told_of(model).of_labels(expected))
        torch.testing.assert_close(found.conditions["encoder_hidden_states"], states)


def test_collapse_is_observed_with_the_prompts_of_the_labels() -> None:
    model, test = told_model(), tiny_dataset().test
    told, mistaken = (
        observe(model, test.images, 0, 16, labels=labels) for labels in (test.labels, 1 - test.labels)
    )
    assert not torch.allclose(told.noise_errors, mistaken.noise_errors)
    torch.testing.assert_close(told.unet_inputs, mistaken.unet_inputs)


def test_operators_of_cross_attention_are_found_and_seeds_share_prompts() -> None:
    model, odd = told_model(), told_model()
    told_of(odd).set_prompts(["odd"])
    denoiser = model_denoiser(model, DDIM, seed=0, num_seeds=2)
    names = [operator.name for operator in Scorer(denoiser, told_params().score, 0).operators]
    assert any(name.endswith("attn2") for name in names)
    start = torch.randn(1, *model.latent_shape).expand(4, -1, -1, -1)
    latents = denoiser.denoise(start, range(4))
    others = (model_denoiser(told_model(guidance_scale=5.0), DDIM, seed=0), model_denoiser(odd, DDIM, seed=0))
    assert all(denoiser.protocol != other.protocol for other in others)  # prompts and guidance are part of it
    torch.testing.assert_close(latents[0], latents[1])  # item 0 of either seed: the first prompt
    assert not torch.allclose(latents[1], latents[2], atol=1e-4)
    assert denoiser.task_loss is not None
    loss = denoiser.task_loss(latents, range(len(latents)), torch.Generator().manual_seed(0))
    assert loss.isfinite()


@pytest.mark.slow
def test_operators_of_a_guided_model_have_the_same_scores_together_as_alone(tmp_path: Path) -> None:
    model, params = told_model(), told_params().score
    denoiser = model_denoiser(model, DDIM, seed=0)
    found = Scorer(denoiser, params, 0).operators
    operators = [operator for operator in found if "down_blocks.1" in operator.name][:12]

    def scores(rows: int) -> Any:
        scorer = Scorer(denoiser, params.model_copy(update={"batch_size": rows}), 0)
        replacements = Scorer(denoiser, params, 0).fit(operators)
        table = scorer.score_these(operators, replacements, LatentStore(tmp_path / str(rows))).table
        return table.set_index("operator").loc[[operator.name for operator in operators], "score"]

    alone, together = scores(4), scores(48)
    assert (alone > 0).any()
    assert together.to_numpy() == pytest.approx(alone.to_numpy(), rel=1e-3, abs=1e-4)


# Parameters and the command


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"unet__kind": "unet2d"}, "its UNet takes no prompts; use unet.kind unet2d_condition"),
        ({"conditioning": {"kind": "none"}}, "unet2d_condition needs prompts; use conditioning.kind text"),
        ({"conditioning__templates": ["no place"]}, "a template has one {}"),
        ({"conditioning__width": 15}, "width 15 is not a multiple of heads 2"),
        ({"conditioning__dropout": 0.0}, "give dropout above 0, or guidance_scale: 1"),
    ],
)
def test_conditioning_that_makes_no_sense_is_refused(overrides: dict[str, Any], message: str) -> None:
    raw = told_raw()
    for key, value in overrides.items():
        section, _, last = key.partition("__")
        raw[section] = raw[section] | {last: value} if last else value
    with pytest.raises(ConfigError) as error:
        parse_params(raw, "tiny")
    assert message in str(error.value)


def test_samples_are_made_of_a_file_of_prompts(tmp_path: Path) -> None:
    model, prompts = told_model(), tmp_path / "prompts.txt"
    save_model(model, tmp_path / "model")
    prompts.write_text("odd\n")
    sample(tmp_path / "model", 2, 0, 4, tmp_path / "odd", "cpu", prompts)
    sample(tmp_path / "model", 2, 0, 4, tmp_path / "own", "cpu")
    first = [(tmp_path / folder / "00000.png").read_bytes() for folder in ("odd", "own")]
    assert first[0] != first[1]


def test_a_file_of_prompts_with_a_strange_word_is_refused(tmp_path: Path) -> None:
    save_model(told_model(), tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("even\na cat\n")
    with pytest.raises(DataError, match="'cat' is not in the model's vocabulary"):
        sample(tmp_path / "model", 1, 0, 4, tmp_path / "out", "cpu", tmp_path / "prompts.txt")
    assert not (tmp_path / "out").exists()


def test_a_model_meets_the_classes_and_pictures_that_it_learnt_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, learnt = told_model(), tiny_dataset()
    model.info = replace(model.info, data=learnt.key.name)
    demand_trained_on(model, tmp_path, learnt)
    demand_trained_on(model, tmp_path, replace(learnt, source="elsewhere", checksum="1" * 64))
    assert capsys.readouterr().out == ""
    demand_trained_on(model, tmp_path, tiny_dataset(num_train=63))
    assert "was trained on other pictures" in capsys.readouterr().out
    with pytest.raises(ModelError, match="prompts of the classes even, odd, the data have odd, even"):
        demand_trained_on(model, tmp_path, replace(learnt, class_names=("odd", "even")))
    model.info = replace(model.info, data="")  # of an older version
    demand_trained_on(model, tmp_path, tiny_dataset(num_train=63))
    assert capsys.readouterr().out == ""
