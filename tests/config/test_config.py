"""Parameters are checked before anything else, and every offending key is named at once."""

from pathlib import Path
from typing import Any

import pytest
from tiny import ROOT, raw_params, tiny_raw

from pelap.config import DiffusionParams, LightUNetParams, PelapVAEParams, VariantParams
from pelap.config.load import STAGE_KEYS, load_params, parse_params, select_keys
from pelap.config.rules import NUM_DIGITS, NUM_PHOTOGRAPHS, NUM_RECIPES, STAGES, latent_problem
from pelap.config.yaml import read_yaml
from pelap.core.errors import ConfigError
from pelap.datasets import digits
from pelap.datasets.photos import PHOTOGRAPHS
from pelap.datasets.synthesis import RECIPES

UNET = raw_params()["unet"]


def _message(**overrides: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_params(raw_params(**overrides), "params.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _pruned(**prune: Any) -> dict[str, Any]:
    """The section `prune` with one method, of which `method` gives fields, unless there are `methods`."""
    targets = {"time_reduction": None, "num_params": None, "num_operators": None}
    methods = {"a": {"criterion": "score", "selection": "lowest_first"} | prune.pop("method", {})}
    return {"prune": targets | {"methods": methods} | (prune or {"time_reduction": 0.3})}


STUDENT = raw_params()["distill"]["students"]["distilled"]
DENSE = raw_params()["distill"]["students"]["dense-finetuned"]
BAD: list[tuple[dict[str, Any], str]] = [
    ({"trian": 3}, "trian: unknown key"),
    ({"lambda_": 0.1}, "lambda_: unknown key"),
    ({"train__lrr": 3}, "train.lrr: unknown key"),
    ({"train__lr": "fast"}, "train.lr: "),
    ({"train__lr": -1.0}, "train.lr: input should be greater than 0 (it is -1.0)"),
    ({"train__lr": float("inf")}, "train.lr: "),
    ({"train__lr": float("nan")}, "train.lr: "),
    ({"train__epochs": 2.5}, "train.epochs: "),
    ({"train__epochs": True}, "train.epochs: "),
    ({"train__lr_min": 1.0}, "lr_min must not exceed lr"),
    ({"train__steps_per_epoch": 0}, "train.steps_per_epoch: "),
    ({"train__vae_epochs": 0}, "train.vae_epochs: "),
    ({"seed": -1}, "seed: "),
    ({"seed": 10**30}, "seed: "),
    ({"lambda": -0.1}, "lambda: "),
    ({"dataset": "cifar11"}, "dataset: 'cifar11' is unknown; use one of digits, photos, sounds, cifar10"),
    ({"download__folders": {"photos": "x"}}, "download.folders.photos: is the name of a built-in"),
    ({"download__photos__min_crop": 200}, "min_crop must not exceed max_crop"),
    ({"download__image_size": 20}, "halves latents 2 times, but those of 20 pixels have a side of 5"),
    ({"vae": {"kind": "autoencoder_kl"}}, "vae.autoencoder_kl.source: missing"),
    ({"vae": {"kind": "autoencoder_kl", "source": ""}}, "vae.autoencoder_kl.source: "),
    ({"unet": {"kind": "dit"}}, "unet: "),
    ({"unet": {"kind": ["light"]}}, "unet: "),
    ({"unet__channels": [30, 60, 60]}, "not a multiple of norm_num_groups"),
    ({"variants": {}}, "variants: "),
    ({"variants__pelap__mask": "none"}, "variants.pelap.mask: unknown key"),
    ({"variants__pelap__gate": "soft"}, "variants.pelap.gate: input should be 'none', 'sigmoid'"),
    ({"variants__pelap__encoder_losses": ["kl"]}, "variants.pelap.encoder_losses.0: input should be"),
    ({"collapse__scale_threshold": 1.0}, "collapse.scale_threshold: "),
    ({"score__variant": "best"}, "score.variant: 'best' is not a variant; use one of baseline"),
    (_pruned(time_reduction=[]), "prune.time_reduction"),
    (_pruned(time_reduction=[0.25, 1.5]), "prune.time_reduction.1"),
    (_pruned(time_reduction=[0.25, 0.25]), "names an amount twice"),
    (_pruned(time_reduction=None), "prune: give exactly one of"),
    (_pruned(time_reduction=0.3, num_params=5), "prune: give exactly one of"),
    (_pruned(method={"amounts": [0.5, 1.5]}), "shares of the time are at most 1"),
    (_pruned(method={"amounts": [0.5, 0.5]}), "a names an amount twice"),
    (_pruned(num_params=3, method={"amounts": [2.5]}), "num_params are whole numbers"),
    (_pruned(num_params=3, method={"iterative_step": 0.1}), "a.iterative_step is a share of the time"),
    (_pruned(method={"criterion": "random", "iterative_step": 0.1}), "goes with criterion: score"),
    (_pruned(method={"criterion": "avg", "iterative_step": 0.1}), "goes with criterion: score"),
    (_pruned(method={"criterion": "luck"}), "prune.methods.a.criterion"),
    (_pruned(method={"criterion": "taylor"}), "methods.a.criterion: taylor is not among score.criteria"),
    (_pruned(method={"selection": "luck"}), "prune.methods.a.selection"),
    (_pruned(time_reduction=0.3, methods={}), "prune.methods"),
    (_pruned(time_reduction=0.3, max_measurements=-1), "prune.max_measurements"),
    ({"distill__validate_every": 241}, "validate_every must not exceed steps"),
    ({"distill__select": "distance"}, "select distance needs quality"),
    ({"distill__students": {}}, "distill.students"),
    ({"distill__students": {"dense-finetuned": DENSE}}, "none starts from the pruned"),
    ({"distill__students": {"b": DENSE | {"task_weight": 0.0}}}, "students.b: all three weights are zero"),
    ({"distill__students": {"real": STUDENT}}, "distill.students.real: is the name of another row"),
    ({"distill__students": {"pruned": STUDENT}}, "distill.students.pruned: is the name of another row"),
    ({"evaluate__num_reference": 8000}, "num_reference + num_images is 9500"),
    ({"evaluate__sampler": {"kind": "ddim", "steps": 7}}, "evaluate.sampler.steps: 7 does not divide"),
    ({"evaluate__step_counts": [7]}, "evaluate.step_counts.0: 7 does not divide"),
    ({"evaluate__step_counts": [10, 10]}, "step_counts names something twice"),
]


@pytest.mark.parametrize(
    ("overrides", "expected"), BAD, ids=[f"{i} {text}" for i, (_, text) in enumerate(BAD)]
)
def test_bad_value_is_named(overrides: dict[str, Any], expected: str) -> None:
    assert expected in _message(**overrides)


# --- variants ---------------------------------------------------------------------------------------

LAMBDA, SEED = {"sparsity_key": "lambda"}, {"sparsity_key": "seed"}
NONE = SEED | {"gate": "none"}
TOPK = SEED | {"gate": "topk", "k": 2}
KL = {"kind": "autoencoder_kl", "source": "somewhere"}
VARIANTS: list[tuple[dict[str, Any], str]] = [
    # the gate and its channels
    (TOPK | {"k": 5}, "k is 5, but there are 4 latent channels"),
    (TOPK | {"k": 0}, "k: input should be greater than 0"),
    ({"gate": "topk", "sparsity_key": "seed"}, "belongs to gate topk; give both or neither"),
    ({"k": 2, "sparsity_key": "seed"}, "belongs to gate topk; give both or neither"),
    (LAMBDA | {"mask_lr": 0.0}, "mask_lr: input should be greater than 0"),
    # the penalty
    (TOPK | {"sparsity_key": "lambda"}, "a penalty changes nothing; use sparsity_key seed"),
    (TOPK | {"sparsity_weight": 0.1}, "a penalty changes nothing; use sparsity_key seed"),
    (SEED | {"sparsity_weight": -0.1}, "sparsity_weight: input should be greater than or equal to 0"),
    (LAMBDA | {"sparsity_weight": 0.1}, "sparsity_weight is for sparsity_key seed"),
    (LAMBDA | {"schedule": "linear"}, "warmup_epochs above 0 belong together"),
    (LAMBDA | {"warmup_epochs": 2}, "warmup_epochs above 0 belong together"),
    (SEED | {"schedule": "cosine", "warmup_epochs": 2}, "there is no penalty to warm up"),
    (
        LAMBDA | {"schedule": "linear", "warmup_epochs": 7},
        "warmup_epochs: ends after start_epoch + warmup_epochs = 7 epochs, training after 6",
    ),
    (
        LAMBDA | {"schedule": "linear", "warmup_epochs": 4, "start_epoch": 3},
        "warmup_epochs: ends after start_epoch + warmup_epochs = 7 epochs, training after 6",
    ),
    (LAMBDA | {"start_epoch": 6}, "start_epoch: 6 leaves none of the 6 train.epochs"),
    # nothing to learn from
    (LAMBDA | {"mask_losses": []}, "no loss is left to train the mask"),
    (LAMBDA | {"mask_losses": ["diffusion"]}, "the penalty does not reach the mask"),
    (SEED | {"sparsity_weight": 1.0, "mask_losses": ["diffusion"]}, "the penalty does not reach the mask"),
    (SEED | {"adaptive": False, "normalise": "after_mask"}, "no loss is left to train the mask"),
    (LAMBDA | {"mask_losses": ["reconstruction"]}, "no loss is left to train the mask"),
    (SEED | {"mask_losses": ["sparsity"]}, "no loss is left to train the mask"),
    # no mask at all
    ({"gate": "none", "sparsity_key": "lambda"}, "sparsity_key lambda needs a mask"),
    (NONE | {"decoder_input": "masked"}, "decoder_input masked needs a mask"),
    (NONE | {"normalise": "after_mask"}, "normalise after_mask needs a mask"),
    (NONE | {"adaptive": False}, "adaptive: there is no mask; leave it out"),
    (
        NONE | {"k": 2, "mask_lr": 0.1, "sparsity_weight": 0.1, "start_epoch": 1},
        "k, mask_lr, sparsity_weight, start_epoch: there is no mask",
    ),
    (NONE | {"mask_losses": ["diffusion"]}, "mask_losses: there is no mask"),
    (NONE | {"cut": True}, "cut: there is no mask"),
    (NONE | {"schedule": "linear", "warmup_epochs": 1}, "schedule, warmup_epochs: there is no mask"),
    # decoder and encoder
    (TOPK | {"cut": True}, "cut takes channels away that a decoder of z was trained on"),
    (
        LAMBDA | {"vae_training": "two_stage", "encoder_losses": ["reconstruction"]},
        "vae_training two_stage keeps every loss from the encoder; leave encoder_losses out",
    ),
    (
        LAMBDA | {"vae": KL, "vae_training": "frozen", "encoder_losses": ["diffusion"]},
        "vae_training frozen keeps every loss from the encoder; leave encoder_losses out",
    ),
    (LAMBDA | {"vae_training": "frozen"}, "frozen needs a pretrained vae"),
    (LAMBDA | {"vae": KL}, "vae_training joint, but a pretrained autoencoder_kl stays as it is"),
    (
        LAMBDA | {"vae": KL, "vae_training": "two_stage"},
        "vae_training two_stage, but a pretrained autoencoder_kl stays as it is",
    ),
    # a UNet of its own
    (
        LAMBDA | {"unet": UNET | {"channels": [32] * 5, "attention": [False] * 5}},
        "the UNet halves latents 4 times, but those of 32 pixels have a side of 8",
    ),
]


@pytest.mark.parametrize(("fields", "expected"), VARIANTS, ids=[message for _, message in VARIANTS])
def test_a_coupling_that_contradicts_itself_is_refused(fields: dict[str, Any], expected: str) -> None:
    message = _message(variants__pelap=fields, train__epochs=6)
    assert "variants.pelap" in message
    assert expected in message


@pytest.mark.parametrize(
    "fields",
    [
        TOPK | {"k": 4},
        TOPK | {"cut": True, "decoder_input": "masked", "adaptive": False},
        LAMBDA | {"schedule": "linear", "warmup_epochs": 4, "start_epoch": 2},
        LAMBDA | {"start_epoch": 5},
        LAMBDA | {"mask_losses": ["sparsity"]},
        SEED | {"sparsity_weight": 0.1, "mask_losses": ["sparsity"]},
        SEED | {"mask_losses": ["reconstruction"], "decoder_input": "masked"},
        SEED | {"schedule": "cosine", "warmup_epochs": 2, "sparsity_weight": 0.1},
        LAMBDA | {"vae": KL, "vae_training": "frozen"},
        NONE | {"encoder_losses": ["reconstruction"], "vae_training": "joint"},
        NONE | {"normalise": "before_mask", "vae_training": "two_stage"},
    ],
    ids=str,
)
def test_a_coupling_at_the_edge_is_allowed(fields: dict[str, Any]) -> None:
    params = parse_params(raw_params(variants__pelap=fields, train__epochs=6), "params.yaml")
    assert params.variants["pelap"] == VariantParams(**fields)


def test_a_penalty_of_lambda_zero_trains_no_mask() -> None:
    fields = {"sparsity_key": "lambda", "mask_losses": ["sparsity"]}
    message = _message(variants__pelap=fields, **{"lambda": 0.0})
    assert "variants.pelap: lambda is 0 and no other loss trains the mask" in message
    # A weight of its own does not depend on lambda.
    fields = {"sparsity_key": "seed", "sparsity_weight": 0.1, "mask_losses": ["sparsity"]}
    parse_params(raw_params(variants__pelap=fields, **{"lambda": 0.0}), "params.yaml")


def test_the_weight_of_the_penalty() -> None:
    assert VariantParams(sparsity_key="lambda").weight(0.25) == 0.25
    assert VariantParams(sparsity_key="seed", sparsity_weight=0.5).weight(0.25) == 0.5
    assert VariantParams(sparsity_key="seed").weight(0.25) == 0


def test_what_a_variant_leaves_out_is_as_in_the_paper() -> None:
    everything = ("diffusion", "reconstruction", "sparsity")
    mask = {"gate": "sigmoid", "adaptive": True, "schedule": "constant", "start_epoch": 0, "cut": False}
    coupling = {"normalise": "none", "decoder_input": "unmasked", "vae_training": "joint"}
    losses = {"encoder_losses": everything, "mask_losses": everything}
    paper = VariantParams(sparsity_key="lambda", **mask, **coupling, **losses)
    assert VariantParams(sparsity_key="lambda") == paper


@pytest.mark.parametrize(
    ("size", "factor", "channels", "expected"),
    [
        (32, 8, 4, None),
        (32, 4, 2, None),
        (36, 8, 4, "pictures of 36 pixels are no multiple of the autoencoder's factor 8"),
        (32, 16, 4, "the UNet halves latents 2 times, but those of 32 pixels have a side of 2"),
        (32, 8, 1, "k is 2, but there are 1 latent channels"),
    ],
)
def test_latents_of_a_pretrained_autoencoder_must_suit_mask_and_unet(
    size: int, factor: int, channels: int, expected: str | None
) -> None:
    params = parse_params(raw_params(), "params.yaml")
    found = latent_problem(VariantParams(**TOPK), params.unet, size, factor, channels)
    assert found is None if expected is None else expected in str(found)


# --- files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (_pruned(time_reduction=5), "prune.time_reduction.0: input should be less than 1 (it is 5)"),
        (
            _pruned(method={"criterion": "luck"}),
            "prune.methods.a.criterion: input should be one of 'score', 'score_debiased', 'avg+std', "
            "'avg', 'std', 'avg*std', 'random', 'magnitude', 'taylor', 'output_error', 'block_similarity' "
            "(it is 'luck')",
        ),
    ],
)
def test_a_key_has_one_fault(overrides: dict[str, Any], fault: str) -> None:
    assert _message(**overrides).endswith(f": {fault}")
    assert _message(**overrides).count(fault.partition(" ")[0].rstrip(":")) == 1


def test_every_offending_key_is_named_in_one_message() -> None:
    message = _message(seed="x", train__lr=-1.0, evaluate__typo=1)
    assert all(key in message for key in ("seed", "train.lr", "evaluate.typo"))


@pytest.mark.parametrize("name", ["real", "pruned-3", "distilled-3", "dense-finetuned"])
def test_variant_may_not_take_the_name_of_a_row(name: str) -> None:
    variants = raw_params()["variants"]
    prune = {"time_reduction": None, "num_params": None, "num_operators": [3, 5]}
    assert f"variants.{name}" in _message(variants=variants | {name: variants["pelap"]}, prune=prune)
    free = raw_params(variants=variants | {"pruned-4": variants["pelap"]}, prune=prune)
    assert "pruned-4" in parse_params(free, "p").variants


def _amounts(**prune: Any) -> dict[str, float]:
    """How much each plan removes, by its name."""
    plans = parse_params(raw_params(**_pruned(**prune)), "p").prune.plans
    return {name: wanted.amount for name, wanted in plans.items()}


def test_plans_are_called_by_percent_or_number_and_of_several_methods_by_these() -> None:
    assert _amounts(time_reduction=0.35) == _amounts(time_reduction=[0.35]) == {"35": 0.35}
    assert _amounts(time_reduction=[0.07, 0.125]) == {"7": 0.07, "12.5": 0.125}
    assert _amounts(num_params=[100000]) == {"100000": 100000}
    methods = {
        "avg": {"criterion": "avg", "selection": "lowest_first"},
        "greedy": {"criterion": "score", "selection": "per_ms", "iterative_step": 0.1, "amounts": [0.2, 0.5]},
    }
    expected = {"avg-35": 0.35, "greedy-20": 0.2, "greedy-50": 0.5}
    assert _amounts(time_reduction=0.35, methods=methods) == expected
    del methods["avg"]
    assert _amounts(time_reduction=0.35, methods=methods) == {"20": 0.2, "50": 0.5}


def test_no_two_rows_have_one_name() -> None:
    method = {"criterion": "score", "selection": "lowest_first"}
    for students, methods, row in (
        (("x", "x-b"), ("a", "b-a"), "x-b-a-25"),
        (("pruned-ld",), ("ld-pruner", "pruner"), "pruned-ld-pruner-25"),
    ):
        given = {"distill__students": dict.fromkeys(students, STUDENT)}
        message = _message(**given, prune__methods=dict.fromkeys(methods, method))
        assert f"rows: two would be called {row}" in message


def test_every_student_but_the_dense_is_trained_for_every_plan_that_it_does_not_skip() -> None:
    students = {"all": STUDENT, "some": STUDENT | {"skip": ["avg-*", "only-?"]}, "dense": DENSE}
    params = parse_params(raw_params(distill__students=students), "p")
    plans = ["avg-35", "score-35", "my-avg-35", "only-a", "only-ab"]
    rows = {name: plan for name, (_, plan) in params.distill.rows(plans).items()}
    skipping = {f"some-{plan}": plan for plan in ("score-35", "my-avg-35", "only-ab")}
    assert rows == {f"all-{plan}": plan for plan in plans} | skipping | {"dense": None}


def test_scientific_notation_is_a_number_and_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("a: 1e-3\n")
    assert read_yaml(path) == {"a": 0.001}
    path.write_text("a: 1\na: 2\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_yaml(path)
    with pytest.raises(ConfigError, match="no such file"):
        read_yaml(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        read_yaml(tmp_path)


@pytest.mark.parametrize("raw", [None, [], {("a",): 1}, {1: 2}])
def test_not_a_parameter_file(raw: object) -> None:
    with pytest.raises(ConfigError, match=r"expected a mapping"):
        parse_params(raw, "params.yaml")


def test_numbers_repeated_for_the_check_are_those_of_their_modules() -> None:
    assert digits.COUNTS["train"] == NUM_DIGITS
    assert len(PHOTOGRAPHS) == NUM_PHOTOGRAPHS
    assert len(RECIPES) == NUM_RECIPES


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_content_with_its_own_keys(stage: str) -> None:
    params = parse_params(select_keys(tiny_raw(), stage), "part", stage)
    assert vars(parse_params({}, "part", stage)).keys() == vars(params).keys()
    unused = next(key for key in ("vae", "prune") if key not in STAGE_KEYS[stage])
    assert not hasattr(params, unused)


def test_lambda_is_kept_from_variants_that_do_not_use_it() -> None:
    raw = raw_params(**{"lambda": 0.5})
    assert select_keys(raw, "train", "baseline")["lambda"] == 0
    assert select_keys(raw, "train", "pelap")["lambda"] == 0.5
    assert list(select_keys(raw, "train", "pelap")["variants"]) == ["pelap"]


def test_paper_preset_is_the_paper() -> None:
    params = load_params(ROOT / "presets" / "pelap-a.yaml")
    assert (params.dataset, params.seed, params.lambda_) == ("cifar10", 42, 0.01)
    assert params.vae == PelapVAEParams(width=64, latent_channels=4)
    assert params.unet == LightUNetParams(width=64, stem=False)
    assert params.variants["pelap"] == VariantParams(sparsity_key="lambda")
    assert params.diffusion == DiffusionParams(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02)
    train = params.train
    assert (train.epochs, train.batch_size, train.lr, train.lr_min) == (100, 128, 2e-4, 1e-5)
    assert (train.weight_decay, train.grad_clip, train.kl_weight) == (1e-4, 1.0, 0.001)
    assert (train.lr_update, train.select, train.ema_decay) == ("epoch", "best", 0)
    assert train.horizontal_flip


def test_an_autoencoder_that_cannot_be_trained_as_told_is_refused_with_the_keys_of_train_alone() -> None:
    raw = tiny_raw(
        variants={"own": {"sparsity_key": "lambda", "vae_training": "frozen"}}, score__variant="own"
    )
    with pytest.raises(ConfigError, match="vae_training frozen needs a pretrained vae"):
        parse_params(select_keys(raw, "train"), "test", "train")


@pytest.mark.parametrize("section", ["train", "distill", "evaluate.classifier"])
def test_sounds_are_not_mirrored(section: str) -> None:
    sections = ("train", "distill", "evaluate__classifier")
    flips = {f"{name}__horizontal_flip": name.replace("__", ".") == section for name in sections}
    classifier = {"steps": 1, "batch_size": 8, "lr": 0.1, "width": 8}
    raw = tiny_raw(dataset="sounds", evaluate__classifier=classifier, **flips)
    with pytest.raises(ConfigError) as caught:
        parse_params(raw, "tiny")
    assert (
        str(caught.value) == f"tiny: {section}.horizontal_flip: would turn sounds backwards; set it to false"
    )
