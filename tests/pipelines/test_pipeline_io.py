"""Pipeline folders: a round trip changes nothing, pruned or not; nothing is ever filled in by chance."""

import copy
import importlib.util
import json
import pickle
import re
import shutil
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DiffusionPipeline,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    UNet2DModel,
)
from tiny_pipelines import BUILDERS, prompts_for, same, tiny_ddim, tiny_dit, tiny_stable_diffusion
from torch import nn

from pelap.core import files
from pelap.core.device import normalise_in_fp32
from pelap.core.errors import ModelError, PlanError
from pelap.core.part_io import WEIGHTS, network_files, weights_bytes
from pelap.pipelines.latent import LatentPipeline
from pelap.pipelines.pipeline_io import LIBRARIES, is_pipeline, load_pipeline, pipeline_plan, save_pipeline
from pelap.surgery.apply import PRUNED_WEIGHTS, apply_plan, removed_operators
from pelap.surgery.plan import Plan, plan_from_json
from pelap.surgery.replacements import Replacement

RESIDUAL = ["mid_block.resnets.0", "down_blocks.0.resnets.0.norm1"]
REMOVED = {
    "UNet2DModel": [*RESIDUAL, "down_blocks.1.attentions.0"],
    "UNet2DConditionModel": [*RESIDUAL, "down_blocks.1.attentions.0.transformer_blocks.0.attn2"],
    "SD3Transformer2DModel": ["transformer_blocks.0.ff"],
    "DiTTransformer2DModel": ["transformer_blocks.0.attn1", "transformer_blocks.1.ff"],
}
# diffusers' Euler schedulers with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


def part_of(pipe: DiffusionPipeline) -> str:
    return "transformer" if "transformer" in pipe.components else "unet"


def plan_for(pipe: DiffusionPipeline) -> Plan:
    return plan_from_json({"operators": REMOVED[type(getattr(pipe, part_of(pipe))).__name__]}, "test")


def prune(pipe: DiffusionPipeline) -> Plan:
    """Take a few operators out of a pipeline's denoiser."""
    plan, part = plan_for(pipe), part_of(pipe)
    setattr(pipe, part, apply_plan(getattr(pipe, part), plan))
    return plan


def save_pruned_ddim(folder: Path) -> None:
    pipe = tiny_ddim()
    save_pipeline(pipe, folder, prune(pipe))


def assert_same_pipeline(loaded: DiffusionPipeline, pipe: DiffusionPipeline, kind: str) -> None:
    assert type(loaded) is type(pipe)
    assert json.loads(loaded.scheduler.to_json_string()) == json.loads(pipe.scheduler.to_json_string())
    for name, part in pipe.components.items():
        other = loaded.components[name]
        assert type(other) is type(part)
        if isinstance(part, nn.Module):
            assert not any(module.training for module in other.modules())
            expected = dict(part.named_parameters()) | dict(part.named_buffers())
            found = dict(other.named_parameters()) | dict(other.named_buffers())
            assert found.keys() == expected.keys()
            for key, tensor in expected.items():
                assert torch.equal(found[key], tensor), f"{name}.{key}"
    made = [LatentPipeline(each, 3, prompts_for(kind)) for each in (pipe, loaded)]
    noise = torch.randn(2, *made[0].latent_shape)
    latents, again = (each.denoise(noise, [0, 1], seed=0) for each in made)
    # Equal weights that lie elsewhere in memory may round otherwise.
    assert same(again, latents)
    pictures, others = (each.decode(latents).int() for each in made)
    assert (others - pictures).abs().max() <= 1


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_round_trip_changes_nothing_pruned_or_not(tmp_path: Path, kind: str) -> None:
    pipe = BUILDERS[kind]()
    part, class_ = part_of(pipe), type(getattr(pipe, part_of(pipe)))
    save_pipeline(pipe, tmp_path / "dense")
    assert is_pipeline(tmp_path / "dense")
    assert pipeline_plan(tmp_path / "dense") is None
    assert_same_pipeline(load_pipeline(tmp_path / "dense"), pipe, kind)
    absent = {name: None for name, component in pipe.components.items() if component is None}
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "dense", **absent)) is type(pipe)

    plan = prune(pipe)
    save_pipeline(pipe, tmp_path / "pruned", plan)
    assert is_pipeline(tmp_path / "pruned")
    assert pipeline_plan(tmp_path / "pruned") == plan
    loaded = load_pipeline(tmp_path / "pruned")
    assert sorted(removed_operators(getattr(loaded, part))) == sorted(REMOVED[class_.__name__])
    assert_same_pipeline(loaded, pipe, kind)
    plain = (
        lambda: DiffusionPipeline.from_pretrained(tmp_path / "pruned", **absent),
        lambda: class_.from_pretrained(tmp_path / "pruned" / part),
        lambda: class_.from_pretrained(tmp_path / "pruned", subfolder=part),
    )
    for read in plain:
        with pytest.raises(OSError, match="diffusion_pytorch_model"):
            read()
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    assert {path.name for path in (tmp_path / "pruned" / part).iterdir()} == {"config.json", PRUNED_WEIGHTS}


@pytest.mark.parametrize("libraries", [LIBRARIES, ()], ids=["ours", "left to diffusers"])
def test_a_pickle_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, libraries: tuple[str, ...]
) -> None:
    monkeypatch.setattr("pelap.pipelines.pipeline_io.LIBRARIES", libraries)
    pipe = tiny_ddim()
    save_pipeline(pipe, tmp_path / "pipe")
    (tmp_path / "pipe" / "unet" / WEIGHTS).unlink()
    torch.save(pipe.unet.state_dict(), tmp_path / "pipe" / "unet" / "diffusion_pytorch_model.bin")
    assert DiffusionPipeline.from_pretrained(tmp_path / "pipe").unet is not None  # diffusers would
    with pytest.raises(ModelError, match=r"cannot be loaded .*safetensors"):
        load_pipeline(tmp_path / "pipe")


OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def test_weights_and_classes_with_the_names_that_they_once_had(tmp_path: Path) -> None:
    pipe = tiny_stable_diffusion()
    save_pipeline(pipe, tmp_path / "text")

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "attentions" in name]:
            old = name
            for new, before in OLD_NAMES.items():
                old = old.replace(new, before)
            tensors[old] = tensors.pop(name)
        assert any("proj_attn" in name for name in tensors)

    edit_tensors(tmp_path / "text" / "vae" / WEIGHTS, rename)
    loaded = load_pipeline(tmp_path / "text").vae.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in pipe.vae.state_dict().items())

    save_pipeline(tiny_dit(), tmp_path / "dit")
    edit_json(tmp_path / "dit" / "transformer" / "config.json", _class_name="Transformer2DModel")
    edit_json(tmp_path / "dit" / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    assert type(load_pipeline(tmp_path / "dit").transformer) is DiTTransformer2DModel


@pytest.mark.parametrize("pruned", [False, True])
def test_half_precision_weights_are_read_as_float32(tmp_path: Path, pruned: bool) -> None:
    pipe = tiny_stable_diffusion()
    plan = prune(pipe) if pruned else None
    save_pipeline(pipe.to(torch.bfloat16), tmp_path / "pipe", plan)
    loaded = load_pipeline(tmp_path / "pipe")
    for name in ("unet", "vae", "text_encoder"):
        assert same_network(getattr(loaded, name), getattr(pipe, name).float())
        assert {weight.dtype for weight in getattr(loaded, name).parameters()} == {torch.float32}


def test_the_whole_pipeline_goes_to_the_device(tmp_path: Path) -> None:
    save_pruned_ddim(tmp_path / "pipe")
    assert load_pipeline(tmp_path / "pipe", torch.device("meta")).unet.device.type == "meta"
    assert load_pipeline(tmp_path / "pipe").unet.device.type == "cpu"


def test_saving_replaces_the_folder_or_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pipeline(tiny_ddim(), tmp_path / "pipe")
    pipe = tiny_ddim()
    plan = prune(pipe)
    with monkeypatch.context() as patch:
        patch.setattr("pelap.surgery.apply.files.save_tensors", _fail)
        with pytest.raises(KeyboardInterrupt):
            save_pipeline(pipe, tmp_path / "pipe", plan)
    assert pipeline_plan(tmp_path / "pipe") is None
    assert not removed_operators(load_pipeline(tmp_path / "pipe").unet)
    save_pipeline(pipe, tmp_path / "pipe", plan)
    assert removed_operators(load_pipeline(tmp_path / "pipe").unet)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def _fail(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_pruned_pipeline_is_not_saved_without_its_plan(tmp_path: Path) -> None:
    pipe = tiny_ddim()
    prune(pipe)
    save_pipeline(pipe, tmp_path / "pipe")  # it knows its plan
    assert pipeline_plan(tmp_path / "pipe") == plan_for(tiny_ddim())
    with pytest.raises(PlanError, match="give the plan that it was pruned with"):
        save_pipeline(pipe, tmp_path / "pipe", plan_from_json({"operators": RESIDUAL}, "test"))
    pipe = tiny_ddim()
    pipe.unet.mid_block.resnets[0] = Replacement("x", [])
    with pytest.raises(AssertionError, match="saved with its plan"):
        save_pipeline(pipe, tmp_path / "pipe")


# A folder that holds something already

PLANS = {"a": RESIDUAL, "b": ["mid_block.resnets.0", "down_blocks.1.attentions.0"]}


def dense_pipe(seed: float) -> DiffusionPipeline:
    """Every seed has other weights, by more than half precision rounds off."""
    pipe = tiny_ddim()
    with torch.no_grad():
        for weight in pipe.unet.parameters():
            weight.add_(0.1 * seed)
    return pipe


def pruned_pipe(seed: float, plan: str) -> DiffusionPipeline:
    pipe = dense_pipe(seed)
    pipe.unet = apply_plan(pipe.unet, plan_from_json({"operators": PLANS[plan]}, "test"))
    return pipe


def _save_again(pipe: DiffusionPipeline, folder: Path, **options: Any) -> None:
    """As a user does who tuned a pruned pipeline."""
    elsewhere = folder.with_name("elsewhere")
    save_pipeline(pipe, elsewhere)
    load_pipeline(elsewhere).save_pretrained(folder, **options)


Make = tuple[Callable[[], DiffusionPipeline], Callable[[DiffusionPipeline, Path], Any]]


def plainly(**options: Any) -> Callable[[DiffusionPipeline, Path], Any]:
    return lambda pipe, folder: pipe.save_pretrained(folder, **options)


OURS: dict[str, Make] = {
    "dense, ours": (lambda: dense_pipe(1), save_pipeline),
    "pruned a": (lambda: pruned_pipe(2, "a"), save_pipeline),
    "pruned b": (lambda: pruned_pipe(3, "b"), plainly()),
    "pruned a again": (lambda: pruned_pipe(4, "a"), _save_again),
    "pruned b as a variant": (lambda: pruned_pipe(5, "b"), partial(_save_again, variant="fp16")),
}
THEIRS: dict[str, Make] = {
    "dense": (lambda: dense_pipe(6), plainly()),
    "variant": (lambda: dense_pipe(7), plainly(variant="fp16")),
    "shards": (lambda: dense_pipe(8), plainly(max_shard_size="60KB")),
    "more shards": (lambda: dense_pipe(9), plainly(max_shard_size="30KB")),
    "pickle": (lambda: dense_pipe(10), plainly(safe_serialization=False)),
}


def make(name: str, folder: Path) -> DiffusionPipeline:
    build, save = (OURS | THEIRS)[name]
    pipe = build()
    save(pipe, folder)
    return pipe


def same_network(network: nn.Module, expected: nn.Module) -> bool:
    tensors, others = network.state_dict(), expected.state_dict()
    return tensors.keys() == others.keys() and all(torch.equal(tensors[n], others[n]) for n in tensors)


@pytest.mark.parametrize("second", [*OURS, *THEIRS])
@pytest.mark.parametrize("first", [*OURS, *THEIRS])
def test_what_was_saved_last_is_loaded_or_the_folder_is_refused(
    tmp_path: Path, first: str, second: str
) -> None:
    folder = tmp_path / "pipe"
    make(first, folder)
    pipe = make(second, folder)
    refused = ""
    try:
        assert same_network(load_pipeline(folder).unet, pipe.unet)
    except ModelError as error:
        refused = str(error)
    assert "\n" not in refused
    if refused and second != "pickle":
        assert sum(f"{path.name} " in refused for path in (folder / "unet").iterdir()) >= 1
    if first == second and second != "pickle":
        assert not refused
    if second in OURS:
        assert not refused
        dense = {file.name for file in network_files(folder / "unet")} - {PRUNED_WEIGHTS, "plan.json"}
        assert bool(dense) == (second == "dense, ours")
        if second != "dense, ours":
            with pytest.raises(OSError, match="diffusion_pytorch_model"):
                DiffusionPipeline.from_pretrained(folder)


def test_a_description_of_another_pruning_does_not_stay(tmp_path: Path) -> None:
    def describe(partial: Path) -> None:
        (partial / "changes.csv").touch()
        (partial / "result.json").touch()

    save_pipeline(pruned_pipe(1, "a"), tmp_path / "pipe", write_more=describe)
    mine = pruned_pipe(2, "b")
    mine.unet.save_pretrained(tmp_path / "pipe" / "another-unet")
    assert (tmp_path / "pipe" / "plan.json").exists()
    mine.save_pretrained(tmp_path / "pipe")
    assert {path.name for path in (tmp_path / "pipe").iterdir() if path.is_file()} == {"model_index.json"}


def test_two_that_contradict_each_other_are_both_named(tmp_path: Path) -> None:
    folder, pruned, dense = tmp_path / "pipe", pruned_pipe(1, "a"), dense_pipe(2)

    def refused(*names: str) -> None:
        for read in (load_pipeline, pipeline_plan):
            with pytest.raises(ModelError, match=r"^[^\n]+ two [^\n]+$") as caught:
                read(folder)
        assert all(name in str(caught.value).removeprefix(f"{folder}") for name in names)

    save_pipeline(pruned, folder)
    dense.save_pretrained(folder)
    refused("model.safetensors (dense)", "pruned.safetensors")
    (folder / "unet" / PRUNED_WEIGHTS).unlink()
    refused("plan.json", "unet/diffusion_pytorch_model")
    (folder / "plan.json").unlink()
    assert pipeline_plan(folder) is None
    assert same_network(load_pipeline(folder).unet, dense.unet)
    save_pipeline(pruned, folder)
    plan = files.read_json(folder / "plan.json")
    files.write_json(folder / "unet" / "plan.json", plan)
    assert load_pipeline(folder) is not None
    files.write_json(folder / "unet" / "plan.json", plan | {"operators": PLANS["b"]})
    refused("plan.json", "unet/plan.json")


def test_weights_know_their_plan(tmp_path: Path) -> None:
    # Neither has weights: the tensors that are left are the same.
    names = ["mid_block.resnets.0.nonlinearity", "down_blocks.0.resnets.0.nonlinearity"]
    pipe = tiny_ddim()
    pipe.unet = apply_plan(pipe.unet, plan_from_json({"operators": names[:1]}, "test"))
    save_pipeline(pipe, tmp_path / "pipe")
    edit_json(tmp_path / "pipe" / "plan.json", operators=names[1:])
    with pytest.raises(PlanError, match=r"pruned\.safetensors: is of another plan"):
        load_pipeline(tmp_path / "pipe")
    # Those of before did not say it.
    weights = tmp_path / "pipe" / "unet" / PRUNED_WEIGHTS
    files.save_tensors(weights, files.load_tensors(weights)[0])
    assert removed_operators(load_pipeline(tmp_path / "pipe").unet) == names[1:]


def test_copies_of_one_network_are_no_contradiction(tmp_path: Path) -> None:
    pipe = tiny_stable_diffusion()
    pipe.save_pretrained(tmp_path / "pipe")
    pipe.save_pretrained(tmp_path / "pipe", safe_serialization=False)
    for variant, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        half = copy.deepcopy(pipe)
        for name in ("unet", "vae", "text_encoder"):
            getattr(half, name).to(dtype)
        half.save_pretrained(tmp_path / "pipe", variant=variant)
    with torch.no_grad():
        for weight in half.unet.parameters():
            weight.add_(1.0)
    half.unet.save_pretrained(tmp_path / "pipe" / "unet", variant="non_ema")
    assert same_network(load_pipeline(tmp_path / "pipe").unet, pipe.unet)
    half.unet.save_pretrained(tmp_path / "pipe" / "unet", variant="fp16", safe_serialization=False)
    with pytest.raises(ModelError, match=r"unet: holds two networks, .*model\.safetensors and .*fp16\.bin"):
        load_pipeline(tmp_path / "pipe")


def test_a_pickle_that_cannot_be_compared_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_ddim().save_pretrained(tmp_path / "pipe")
    (tmp_path / "pipe" / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(print))
    assert load_pipeline(tmp_path / "pipe") is not None
    assert "diffusion_pytorch_model.bin: not compared with" in capsys.readouterr().out


def test_a_list_of_shards_that_are_gone_is_named(tmp_path: Path) -> None:
    make("shards", tmp_path / "pipe")
    make("dense", tmp_path / "pipe")
    with pytest.raises(ModelError, match=r"index\.json names .*00001-of-.*not there"):
        load_pipeline(tmp_path / "pipe")
    (tmp_path / "pipe" / "unet" / f"{WEIGHTS}.index.json").unlink()
    assert load_pipeline(tmp_path / "pipe") is not None


def test_a_network_of_another_class_than_the_index_says_is_refused(tmp_path: Path) -> None:
    save_pipeline(tiny_ddim(), tmp_path / "pipe")
    tiny_stable_diffusion().unet.save_pretrained(tmp_path / "pipe" / "unet")
    with pytest.raises(ModelError, match=r"is a UNet2DConditionModel, and .* has UNet2DModel"):
        load_pipeline(tmp_path / "pipe")


def test_what_another_pipeline_left_is_not_looked_at(tmp_path: Path) -> None:
    tiny_dit().save_pretrained(tmp_path / "pipe")
    pruned_pipe(1, "b").save_pretrained(tmp_path / "pipe")
    tiny_dit().save_pretrained(tmp_path / "pipe")
    assert pipeline_plan(tmp_path / "pipe") is None
    assert type(load_pipeline(tmp_path / "pipe").transformer) is DiTTransformer2DModel


# Strangers' ways of writing


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}], ids=["one file", "shards"])
@pytest.mark.parametrize("variant", ["fp16", "bf16", "non_ema"])
def test_the_only_variant_is_loaded(tmp_path: Path, variant: str, options: dict[str, Any]) -> None:
    pipe = tiny_stable_diffusion()
    pipe.save_pretrained(tmp_path / "pipe", variant=variant, **options)
    assert all(variant in path.name for path in (tmp_path / "pipe").rglob("*.safetensors"))
    loaded = load_pipeline(tmp_path / "pipe")
    for name in ("unet", "vae", "text_encoder"):
        assert same_network(getattr(loaded, name), getattr(pipe, name))
    weights = list((tmp_path / "pipe" / "unet").glob("*.safetensors"))
    assert (len(weights) > 1) == bool(options)
    expected = sum(path.stat().st_size for path in weights)
    assert weights_bytes(tmp_path / "pipe" / "unet") == expected
    # Beside plain weights it is a copy of them, and counted once.
    pipe.save_pretrained(tmp_path / "pipe")
    assert same_network(load_pipeline(tmp_path / "pipe").unet, pipe.unet)
    plain = (tmp_path / "pipe" / "unet" / WEIGHTS).stat().st_size
    assert weights_bytes(tmp_path / "pipe" / "unet") == plain


def _old_name(text: str) -> str:
    return re.sub(r"\.fp16(-\d+-of-\d+)", r"\1.fp16", text).replace("index.fp16", "fp16.index")


@pytest.mark.filterwarnings("ignore:This serialization format is now deprecated:FutureWarning")
def test_the_name_that_shards_of_a_variant_once_had(tmp_path: Path) -> None:
    pipe = tiny_ddim()
    pipe.save_pretrained(tmp_path / "pipe", variant="fp16", max_shard_size="60KB")
    unet = tmp_path / "pipe" / "unet"
    for path in unet.glob("*.safetensors*"):
        path.rename(path.with_name(_old_name(path.name)))
    index = unet / f"{WEIGHTS}.fp16.index.json"
    index.write_text(_old_name(index.read_text()))
    assert same_network(load_pipeline(tmp_path / "pipe").unet, pipe.unet)


def test_parts_may_be_of_several_kinds(tmp_path: Path) -> None:
    pipe = tiny_stable_diffusion()
    pipe.save_pretrained(tmp_path / "pipe", variant="bf16")
    for name, options in {"unet": {"variant": "fp16"}, "vae": {}}.items():
        shutil.rmtree(tmp_path / "pipe" / name)
        getattr(pipe, name).save_pretrained(tmp_path / "pipe" / name, **options)
    loaded = load_pipeline(tmp_path / "pipe")
    for name in ("unet", "vae", "text_encoder"):
        assert same_network(getattr(loaded, name), getattr(pipe, name))


def test_several_variants_without_plain_weights_are_named(tmp_path: Path) -> None:
    for variant in ("fp16", "non_ema"):
        tiny_ddim().save_pretrained(tmp_path / "pipe", variant=variant)
    with pytest.raises(ModelError, match="unet: has the variants fp16, non_ema and no plain weights"):
        load_pipeline(tmp_path / "pipe")


# Other tools hold a pruned network


def _through_torch(network: Any) -> Any:
    file = BytesIO()
    torch.save(network, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


HANDED: dict[str, Callable[[Any], Any]] = {
    "torch.save": _through_torch,
    "pickle": lambda network: pickle.loads(pickle.dumps(network)),
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("how", HANDED)
@pytest.mark.parametrize("loaded", [True, False])
def test_a_pruned_network_is_handed_over_whole(tmp_path: Path, how: str, loaded: bool) -> None:
    pipe = pruned_pipe(1, "b")
    if loaded:
        save_pipeline(pipe, tmp_path / "pipe")
        pipe = load_pipeline(tmp_path / "pipe")
    normalise_in_fp32(pipe.unet)  # its hooks go along
    for other in (HANDED[how](pipe.unet), HANDED[how](pipe).unet):
        assert isinstance(other, UNet2DModel)
        assert type(other) is type(pipe.unet)
        assert type(other).__name__ == "UNet2DModel"
        assert same_network(other, pipe.unet)
        noise = torch.randn(1, 3, 8, 8)
        assert torch.equal(other(noise, 3).sample, pipe.unet(noise, 3).sample)
        DDIMPipeline(other, pipe.scheduler).save_pretrained(tmp_path / "again")
        assert pipeline_plan(tmp_path / "again") == plan_from_json({"operators": PLANS["b"]}, "test")
        assert same_network(load_pipeline(tmp_path / "again").unet, pipe.unet)


def test_nothing_is_bound_to_a_pruned_network(tmp_path: Path) -> None:
    pipe = pruned_pipe(1, "b")
    assert not [name for name, value in vars(pipe.unet).items() if callable(value)]
    twin = type(pipe.unet).from_config(pipe.unet.config)  # a dense one, however it is called for
    twin.save_pretrained(tmp_path / "dense")
    assert UNet2DModel.from_pretrained(tmp_path / "dense") is not None


@pytest.mark.parametrize(
    "options",
    [{"variant": "fp16"}, {"safe_serialization": False}, {"max_shard_size": "20KB"}, {"push_to_hub": True}],
    ids=str,
)
def test_an_option_that_a_pruned_network_cannot_follow_is_said(
    tmp_path: Path, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = pruned_pipe(1, "a")
    pipe.unet.save_pretrained(tmp_path / "pipe" / "unet", **options)
    assert f"unused: {next(iter(options))}" in capsys.readouterr().out
    if "push_to_hub" not in options:
        pipe.save_pretrained(tmp_path / "pipe", **options)
        assert f"unused: {next(iter(options))}" in capsys.readouterr().out
        assert same_network(load_pipeline(tmp_path / "pipe").unet, pipe.unet)
    pipe.unet.save_pretrained(tmp_path / "nothing", is_main_process=False)
    assert not (tmp_path / "nothing").exists()


def test_a_compiled_pruned_network_is_saved_as_such(tmp_path: Path) -> None:
    pipe = pruned_pipe(1, "a")
    pruned, pipe.unet = pipe.unet, torch.compile(pipe.unet)
    save_pipeline(pipe, tmp_path / "pipe", plan_from_json({"operators": PLANS["a"]}, "test"))
    assert same_network(load_pipeline(tmp_path / "pipe").unet, pruned)


def test_a_network_that_was_pruned_twice_is_saved_with_both_plans(tmp_path: Path) -> None:
    pipe = pruned_pipe(1, "a")
    pipe.unet = apply_plan(pipe.unet, plan_from_json({"operators": ["down_blocks.0.resnets.0"]}, "test"))
    save_pipeline(pipe, tmp_path / "pipe")
    assert removed_operators(load_pipeline(tmp_path / "pipe").unet) == removed_operators(pipe.unet)
    assert same_network(load_pipeline(tmp_path / "pipe").unet, pipe.unet)


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors, metadata = files.load_tensors(path)
    change(tensors)
    files.save_tensors(path, tensors, metadata)


@pytest.mark.parametrize(
    ("part", "tensor"),
    [("unet", "mid_block.resnets.0.conv1.weight"), ("vae", "decoder.conv_in.bias"),
     ("text_encoder", "layers.0.mlp.fc1.weight")],
)  # fmt: skip
def test_a_dense_part_that_lacks_a_tensor_is_refused(tmp_path: Path, part: str, tensor: str) -> None:
    save_pipeline(tiny_stable_diffusion(), tmp_path / "pipe")
    (path,) = (tmp_path / "pipe" / part).glob("*.safetensors")
    (name,) = (key for key in files.load_tensors(path)[0] if key.endswith(tensor))
    edit_tensors(path, lambda tensors: tensors.pop(name))
    # Plain diffusers warns, and goes on with random numbers.
    assert DiffusionPipeline.from_pretrained(tmp_path / "pipe") is not None
    with pytest.raises(ModelError, match=rf"{part}: lacks tensor .*{tensor}"):
        load_pipeline(tmp_path / "pipe")


def test_a_dense_denoiser_with_a_tensor_too_many_is_refused(tmp_path: Path) -> None:
    save_pipeline(tiny_ddim(), tmp_path / "pipe")
    path = tmp_path / "pipe" / "unet" / WEIGHTS
    edit_tensors(path, lambda tensors: tensors.update(extra=torch.zeros(1)))
    with pytest.raises(ModelError, match="unet: has the tensor extra"):
        load_pipeline(tmp_path / "pipe")


def overwrite(path: Path, value: Any) -> None:
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def edit_json(path: Path, **changes: Any) -> None:
    overwrite(path, files.read_json(path) | changes)


def spoil_tensors(**changes: Any) -> Callable[[Path], None]:
    """Set, or for None take away, tensors of the pruned denoiser."""

    def spoil(folder: Path) -> None:
        path = folder / "unet" / PRUNED_WEIGHTS
        tensors, metadata = files.load_tensors(path)
        tensors = {name: it for name, it in (tensors | changes).items() if it is not None}
        files.save_tensors(path, tensors, metadata)

    return spoil


def of_class(name: str | None) -> Callable[[Path], None]:
    return lambda f: edit_json(f / "unet/config.json", _class_name=name)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no_folder": (shutil.rmtree, "no such folder of a model or pipeline; correct the path"),
    "no_index": (lambda f: (f / "model_index.json").unlink(), "index.json: missing or damaged"),
    "bad_index": (lambda f: overwrite(f / "model_index.json", "{"), "missing or damaged"),
    "no_class": (lambda f: overwrite(f / "model_index.json", {}), "missing or damaged"),
    "odd_class": (lambda f: edit_json(f / "model_index.json", _class_name="No"), "a class of its own, No"),
    "no_scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "cannot be loaded"),
    "no_unet": (lambda f: shutil.rmtree(f / "unet"), "lacks its folder unet"),
    "no_config": (lambda f: (f / "unet/config.json").unlink(), r"config\.json: no such file"),
    "no_model": (of_class("DDIMScheduler"), "DDIMScheduler is no model of diffusers"),
    "unknown_model": (of_class("system"), "system is no model of diffusers"),
    "nameless_model": (of_class(None), "None is no model of diffusers"),
    "other_size": (
        lambda f: edit_json(f / "unet/config.json", block_out_channels=[8, 24]),
        "the configuration wants",
    ),
    "no_weights": (lambda f: (f / "unet" / PRUNED_WEIGHTS).unlink(), "no such file"),
    "less": (spoil_tensors(**{"conv_in.weight": None}), "lacks tensor conv_in.weight"),
    "more": (spoil_tensors(extra=torch.zeros(1)), "unknown tensor extra"),
    "another": (spoil_tensors(**{"conv_in.bias": torch.zeros(1)}), "conv_in.bias has shape"),
    "bad_plan": (lambda f: overwrite(f / "plan.json", "[]"), "not a pruning plan"),
    "other_plan": (lambda f: overwrite(f / "plan.json", {"operators": ["nowhere"]}), "no operator 'nowhere'"),
    "no_plan": (lambda f: (f / "plan.json").unlink(), "unet: cannot be loaded"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_folder_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    damage, message = DAMAGE[case]
    save_pruned_ddim(tmp_path / "pipe")
    damage(tmp_path / "pipe")
    with pytest.raises(
        PlanError if case in ("bad_plan", "other_plan") else ModelError, match=message
    ) as caught:
        load_pipeline(tmp_path / "pipe")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_text_needs_a_package_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pipeline(tiny_stable_diffusion(), tmp_path / "text")
    save_pipeline(tiny_ddim(), tmp_path / "plain")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *args: None if name == "transformers" else find(name, *args)
    )
    with pytest.raises(ModelError, match=r"pip install '\.\[text\]'"):
        load_pipeline(tmp_path / "text")
    assert load_pipeline(tmp_path / "plain") is not None


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize(
    ("spoilt", "words"),
    [
        (lambda weight: torch.full_like(weight, float("nan")), "NaN or infinite"),
        (lambda weight: weight > 0, "of another kind"),
        (lambda weight: weight.long(), "of another kind"),
    ],
    ids=["nan", "bool", "int64"],
)
def test_weights_that_are_no_numbers_are_refused(
    tmp_path: Path, part: str, spoilt: Callable[[torch.Tensor], torch.Tensor], words: str
) -> None:
    tiny_stable_diffusion().save_pretrained(tmp_path)
    (file,) = (tmp_path / part).glob("*.safetensors")
    tensors, _ = files.load_tensors(file)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    files.save_tensors(file, tensors | {name: spoilt(tensors[name])}, {"format": "pt"})
    with pytest.raises(ModelError, match=f"tensor {name}.*{words}") as caught:
        load_pipeline(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_save_that_fails_leaves_the_pruned_network_that_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "pipe"
    save_pruned_ddim(folder)
    before = load_pipeline(folder).unet.state_dict()
    pipe = tiny_ddim()
    pipe.unet = apply_plan(pipe.unet, plan_from_json({"operators": ["down_blocks.1.resnets.0"]}, "test"))
    first, second = list(pipe.unet.parameters())[:2]
    second.data = first.data.view(-1)[: second.numel()].view(second.shape)  # shared memory cannot be written
    with pytest.raises(RuntimeError, match="share memory"):
        pipe.save_pretrained(folder)
    after = load_pipeline(folder).unet.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("row", [0, 7])
def test_copies_are_compared_in_all_rows(tmp_path: Path, row: int) -> None:
    pipe = tiny_ddim()
    pipe.save_pretrained(tmp_path)
    pipe.unet.conv_in.weight.data[row] += 1
    pipe.unet.save_pretrained(tmp_path / "unet", variant="fp16")
    with pytest.raises(ModelError, match="holds two networks"):
        load_pipeline(tmp_path)


def test_a_scheduler_that_is_not_the_indexs_is_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_ddim().save_pretrained(tmp_path)
    load_pipeline(tmp_path)
    assert capsys.readouterr().out == ""
    EulerDiscreteScheduler(prediction_type="v_prediction").save_pretrained(tmp_path / "scheduler")
    load_pipeline(tmp_path)
    assert "is of EulerDiscreteScheduler, but DDIMPipeline makes a DDIMScheduler" in capsys.readouterr().out
