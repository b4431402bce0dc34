"""score and prune on a stranger's diffusers pipeline, from the command line."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from diffusers import DDIMScheduler
from ruamel.yaml import YAML
from tiny import tiny_params, tiny_raw
from tiny_pipelines import BUILDERS, prompts_for, same, tiny_stable_diffusion

import pelap
from pelap.cli import main
from pelap.core import files
from pelap.core.keys import Key, key
from pelap.pipelines.latent import LatentPipeline, pipeline_denoiser
from pelap.pipelines.pipeline_io import load_pipeline
from pelap.scoring.scorer import Scorer
from pelap.scoring.statistic import change_of
from pelap.surgery.apply import apply_plan, removed_operators
from pelap.surgery.plan import Plan, load_plan, plan_from_json

# Schedulers and tokenizers of other people's packages.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
STEPS, NUM_LATENTS = 3, 4
ITEMS, SEEDS = (0, 0, 1, 1), (0, 1, 0, 1)
"""What each latent is: two seeds in turns, each going through the prompts from the first."""
KINDS = ("ddim", "ldm", "stable_diffusion", "dit")


def write_params(folder: Path, **overrides: Any) -> Path:
    quick = {
        "score__num_latents": NUM_LATENTS,
        "score__num_seeds": 2,
        "score__sampler": {"kind": "ddim", "steps": STEPS},
        "score__batch_size": 16,
        "score__latency_batch_size": 2,
        "prune": {"num_operators": 3},
    }
    raw = tiny_raw(**(quick | overrides))
    # What a pipeline does not need may be missing.
    YAML().dump({key: raw[key] for key in ("seed", "score", "prune")}, folder / "params.yaml")
    return folder / "params.yaml"


def options(paths: dict[str, Path]) -> list[str]:
    return [text for name, path in paths.items() for text in (f"--{name}", str(path))]


class Case:
    """A pipeline folder with the command lines for it."""

    def __init__(self, kind: str, root: Path) -> None:
        self.kind, self.root = kind, root
        self.folder, self.scores, self.small = root / "dense", root / "scores.csv", root / "small"
        self.latents = root / "latents.safetensors"
        self.params = write_params(root)
        BUILDERS[kind]().save_pretrained(self.folder, safe_serialization=True)
        prompts = prompts_for(kind)
        self.prompts: list[str] = []
        if prompts:
            (root / "prompts.txt").write_text("\n".join(prompts))
            self.prompts = ["--prompts", str(root / "prompts.txt")]

    def score(self, *more: str, out: Path | None = None) -> int:
        where = {"pipeline": self.folder, "params": self.params, "out": out or self.scores}
        return main(["score", "--device", "cpu", *options(where), *self.prompts, *more])

    def prune(self, *more: str, **paths: Path) -> int:
        where = {"pipeline": self.folder, "scores": self.scores, "params": self.params, "out": self.small}
        return main(["prune", "--device", "cpu", *options(where | paths), *self.prompts, *more])

    def pipeline(self) -> LatentPipeline:
        return LatentPipeline(load_pipeline(self.folder), STEPS, prompts_for(self.kind))


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    scored = Case(request.param, tmp_path_factory.mktemp(request.param))
    assert scored.score("--save-latents", str(scored.latents)) == 0
    assert scored.prune() == 0
    return scored


@pytest.mark.slow
def test_a_score_can_be_repeated_from_the_saved_latents(case: Case) -> None:
    tensors, about = files.load_tensors(case.latents)
    assert tensors.keys() == {"noise", "original"}
    assert len(tensors["noise"]) == NUM_LATENTS
    assert (about["steps"], about["seed"], about["num_seeds"]) == (str(STEPS), "0", "2")
    assert about["spacing"] == case.pipeline().describe()["timestep_spacing"]
    latents = case.pipeline().denoise(tensors["noise"], ITEMS, SEEDS)
    assert same(latents, tensors["original"])
    table = files.read_csv(case.scores)
    shape_kept = table[table["replacement"].isin(["identity", "residual"])]
    for row in shape_kept.iloc[[0, len(shape_kept) // 2]].itertuples():
        pipeline = case.pipeline()
        pipeline.denoiser = apply_plan(pipeline.denoiser, plan_from_json({"operators": [row.operator]}, ""))
        modified = pipeline.denoise(tensors["noise"], ITEMS, SEEDS)
        avg, std = change_of(tensors["original"], modified).parts.tolist()
        assert (row.avg_dist, row.std_dist) == pytest.approx((avg, std), rel=1e-3, abs=1e-3)
        assert row.score == pytest.approx(row.avg_dist + row.std_dist)


def test_table_and_protocol_say_what_the_scores_come_from(case: Case) -> None:
    protocol = files.read_mapping(case.root / "scores.protocol.json")
    assert protocol["pipeline"] == type(case.pipeline().pipe).__name__
    assert (protocol["steps"], protocol["num_latents"], protocol["seed"]) == (STEPS, NUM_LATENTS, 0)
    assert -1 <= protocol["rank_correlation"] <= 1
    table = files.read_csv(case.scores).set_index("operator")
    assert protocol["num_rows"] == NUM_LATENTS * len(table)
    assert (table.loc[table["replacement"] == "identity", "replacement_share"] == 0).all()
    assert (table.loc[table["replacement_params"] > 0, "replacement_share"] > 0).all()
    assert list(table.columns[:3]) == ["kind", "replacement", "avg_dist"]
    assert not [path for path in case.root.iterdir() if "resume" in path.name]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "num_asked"), [("ddim", 0), ("stable_diffusion", 3), ("dit", 1000)])
def test_prompts_and_classes_that_no_latent_asks_for_are_told(
    kind: str, num_asked: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Case(kind, tmp_path).score() == 0
    said = (
        f"dense: 2 items ask for the first of {num_asked} prompts or classes alone; raise score.num_latents"
    )
    assert (said in capsys.readouterr().out) == bool(num_asked)


def test_pruned_pipeline_is_the_dense_one_without_the_operators_of_its_plan(case: Case) -> None:
    plan, table = load_plan(case.small / "plan.json"), files.read_csv(case.scores)
    assert len(plan.operators) == 3
    assert set(removal.operator for removal in plan.operators) <= set(table["operator"])
    pipe = pelap.load_pipeline(case.small)
    pruned = LatentPipeline(pipe, STEPS, prompts_for(case.kind))
    assert sorted(removed_operators(pruned.denoiser)) == sorted(r.operator for r in plan.operators)
    dense = case.pipeline()
    replacements = {r.operator: pruned.denoiser.get_submodule(r.operator) for r in plan.operators}
    dense.denoiser = apply_plan(dense.denoiser, plan, replacements)  # type: ignore[arg-type]
    noise = files.load_tensors(case.latents)[0]["noise"]
    latents = pruned.denoise(noise, range(NUM_LATENTS), seed=0)
    assert same(latents, dense.denoise(noise, range(NUM_LATENTS), seed=0))
    pictures = pruned.decode(latents)
    assert pictures.dtype == torch.uint8
    assert pictures.shape[:2] == (NUM_LATENTS, 3)


def test_listing_adds_up(case: Case) -> None:
    changes = files.read_csv(case.small / "changes.csv").set_index("operator")
    whole, plan = changes.iloc[0], load_plan(case.small / "plan.json")
    assert whole["params_before"] - whole["params_after"] == plan.num_params
    replaced = changes.loc[[removal.operator for removal in plan.operators]]
    saved = (replaced["params_before"] - replaced["params_after"]).sum()
    assert saved == plan.num_params
    dense, small = (load_pipeline(folder) for folder in (case.folder, case.small))
    for pipe, column in ((dense, "params_before"), (small, "params_after")):
        denoiser = LatentPipeline(pipe, STEPS, prompts_for(case.kind)).denoiser
        assert whole[column] == sum(parameter.numel() for parameter in denoiser.parameters())
    inside = [n for n in changes.index if any(n.startswith(f"{r.operator}.") for r in plan.operators)]
    assert all(changes.loc[inside, "params_after"] == 0)
    kept = changes[changes["action"] == "kept"]
    assert (kept["params_before"] == kept["params_after"]).all() or len(kept) < len(changes)


@pytest.fixture(scope="module")
def ddim(tmp_path_factory: pytest.TempPathFactory) -> Case:
    scored = Case("ddim", tmp_path_factory.mktemp("bad"))
    assert scored.score() == 0
    return scored


def without_times(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns=["latency_ms", "latency_share", "replacement_share"]).sort_values(
        "operator", ignore_index=True
    )


@pytest.mark.slow
def test_an_interrupted_scoring_goes_on_where_it_was(ddim: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    out, denoise, rows = ddim.root / "again.csv", LatentPipeline.denoise, list[int]()

    def counted(self: LatentPipeline, noise: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        rows.append(len(noise))
        if 150 < sum(rows) < 10_000:
            raise KeyboardInterrupt
        return denoise(self, noise, *args, **kwargs)

    monkeypatch.setattr(LatentPipeline, "denoise", counted)
    assert ddim.score(out=out) == 130
    assert not out.exists()
    rows[:] = [10_000]  # not again
    assert ddim.score(out=out) == 0
    num_operators = len(files.read_csv(ddim.scores))
    assert sum(rows[1:]) < num_operators * NUM_LATENTS - 50  # without what was done before
    again, whole = without_times(files.read_csv(out)), without_times(files.read_csv(ddim.scores))
    pd.testing.assert_frame_equal(again, whole, rtol=1e-4)


def test_other_prompts_do_not_go_on_from_these() -> None:
    """A prompt changes the latents as much as a weight does."""
    pipe = BUILDERS["stable_diffusion"]()
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter, std=0.1)

    def key_of(*prompts: str, **score: Any) -> Key:
        denoiser = pipeline_denoiser(LatentPipeline(pipe, STEPS, list(prompts)), "sd", 0, 2)
        return key(**Scorer(denoiser, tiny_params(**score).score, 0).state_parts)

    prompts = ("a cat", "snow")
    keys = [key_of(*prompts), key_of("a cat", "rain")]
    assert key_of(*prompts) == keys[0]
    keys.append(key_of(*prompts, score__early_stop=0.3))  # latents are kept in the order that it draws
    pipe.tokenizer.model_max_length = 8
    keys.append(key_of(*prompts))
    torch.nn.init.zeros_(next(pipe.text_encoder.parameters()))
    keys.append(key_of(*prompts))
    assert len({each.name for each in keys}) == len(keys)


def test_a_loaded_pruned_pipeline_can_be_saved_again(case: Case, tmp_path: Path) -> None:
    pelap.load_pipeline(case.small).save_pretrained(tmp_path / "again")
    first, again = (load_pipeline(folder) for folder in (case.small, tmp_path / "again"))
    part = LatentPipeline(first, STEPS, prompts_for(case.kind)).part
    tensors = getattr(again, part).state_dict()
    for name, tensor in getattr(first, part).state_dict().items():
        assert torch.equal(tensor, tensors[name])
    with pytest.raises(OSError, match="diffusion_pytorch_model"):
        type(first).from_pretrained(tmp_path / "again")


@pytest.mark.slow
def test_an_interrupted_pruning_leaves_nothing(ddim: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    out = ddim.root / "interrupted"
    with monkeypatch.context() as patch:
        patch.setattr("pelap.stages.prune.files.write_csv", interrupt)
        assert ddim.prune(out=out) == 130
    assert not out.exists()
    assert ddim.prune(out=out) == 0


def test_weights_in_half_precision_alone_are_read(ddim: Case, tmp_path: Path) -> None:
    ddim.pipeline().pipe.save_pretrained(tmp_path / "half", variant="fp16")
    pipe, whole = load_pipeline(tmp_path / "half"), ddim.pipeline().denoiser
    assert all(tensor.dtype == torch.float32 for tensor in pipe.unet.parameters())
    for ours, theirs in zip(pipe.unet.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)


def test_rank_correlation_of_operators_that_do_not_matter(tmp_path: Path) -> None:
    """Where no operator changes anything, there is no order, and no NaN in the protocol."""
    case = Case("ddim", tmp_path)
    pipe = load_pipeline(case.folder)
    for parameter in pipe.unet.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    pipe.save_pretrained(case.folder)
    assert case.score() == 0
    assert files.read_mapping(tmp_path / "scores.protocol.json")["rank_correlation"] is None


def fails(capsys: pytest.CaptureFixture[str], status: int) -> str:
    assert status == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("pelap: error: ")
    return error


def test_what_is_wrong_is_one_line(ddim: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "headless").mkdir()
    index = {"_class_name": "DiffusionPipeline", "scheduler": ["diffusers", "DDIMScheduler"]}
    (tmp_path / "headless" / "model_index.json").write_text(json.dumps(index))
    tiny_stable_diffusion().save_pretrained(tmp_path / "text")
    (tmp_path / "cat.txt").write_text("a cat")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "half.yaml").write_text("seed: 0\nprune: {nums: 3}\ntrain: not looked at\n")
    table = files.read_csv(ddim.scores)
    files.write_csv(tmp_path / "params.csv", table.assign(params=table["params"] + 1))
    files.write_csv(tmp_path / "names.csv", table.assign(operator="x." + table["operator"]))
    own, params, out = {"pipeline": ddim.folder}, {"params": ddim.params}, {"out": tmp_path / "out"}
    scored, files_out = {"scores": ddim.scores}, {"out": tmp_path / "out.csv"}
    for stage, paths, words in (
        ("score", files_out | {"pipeline": tmp_path / "nowhere"}, "nowhere"),
        ("score", files_out | {"pipeline": tmp_path / "headless"}, "neither a unet nor a transformer"),
        ("score", own | files_out | {"prompts": tmp_path / "cat.txt"}, "takes no text"),
        ("score", files_out | {"pipeline": tmp_path / "text"}, "give a list, or --prompts FILE"),
        (
            "score",
            files_out | {"pipeline": tmp_path / "text", "prompts": tmp_path / "empty.txt"},
            "holds no prompt",
        ),
        ("prune", own | scored | out | {"params": tmp_path / "half.yaml"}, "prune.nums: unknown key"),
        ("prune", own | out | {"scores": tmp_path / "params.csv"}, "another model's"),
        ("prune", own | out | {"scores": tmp_path / "names.csv"}, "another model's"),
    ):
        assert words in fails(capsys, main([stage, "--device", "cpu", *options(params | paths)]))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.slow
def test_scores_of_another_sampling_or_of_other_weights(
    ddim: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = ddim.pipeline().pipe
    pipe.unet.conv_out.bias.data += 0.1
    pipe.save_pretrained(tmp_path / "tuned")
    assert ddim.prune(pipeline=tmp_path / "tuned", out=tmp_path / "a") == 0
    assert "made with other weights than tuned has now" in capsys.readouterr().out
    DDIMScheduler(prediction_type="v_prediction").save_pretrained(tmp_path / "tuned" / "scheduler")
    error = fails(capsys, ddim.prune(pipeline=tmp_path / "tuned", out=tmp_path / "b"))
    assert "made with another scheduler_config than tuned has now" in error
    assert not (tmp_path / "b").exists()
    files.write_csv(tmp_path / "alone.csv", files.read_csv(ddim.scores))
    assert ddim.prune(scores=tmp_path / "alone.csv", out=tmp_path / "c") == 0
    assert "warning: no " in capsys.readouterr().out


def test_targets_out_of_reach_say_how_far_it_goes(
    ddim: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = write_params(tmp_path, prune={"num_params": 10**9})
    error = fails(capsys, ddim.prune(params=params))
    assert "out of reach" in error
    assert "at most" in error


def test_a_pipeline_is_not_ranked_by_the_loss_of_its_training(
    ddim: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    criteria = ["random", "magnitude", "output_error", "block_similarity"]
    monkeypatch.setattr(ddim, "params", write_params(tmp_path, score__criteria=["taylor", *criteria]))
    error = fails(capsys, ddim.score(out=tmp_path / "taylor.csv"))
    assert "score.criteria: taylor needs the loss of training" in error
    assert not (tmp_path / "taylor.csv").exists()
    write_params(tmp_path, score__criteria=criteria)
    assert ddim.score(out=tmp_path / "others.csv") == 0
    table = files.read_csv(tmp_path / "others.csv")
    assert table["output_error"].notna().all()
    assert set(table["operator"]) == set(files.read_csv(ddim.scores)["operator"])


def test_a_folder_takes_one_plan(ddim: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    way = {"criterion": "avg", "selection": "lowest_first"}
    for several in ({"methods": {"a": way, "b": way | {"criterion": "std"}}}, {"single_operator_plans": 2}):
        params = write_params(tmp_path, prune={"num_operators": 2} | several)
        error = fails(capsys, ddim.prune(out=tmp_path / "none", params=params))
        assert "one for each --out folder" in error
        assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_plans(ddim: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def prune(plan: Any, out: Path) -> int:
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        return ddim.prune("--plan", str(tmp_path / "plan.json"), out=out)

    assert "'nowhere'" in fails(capsys, prune({"operators": ["nowhere"]}, tmp_path / "a"))
    other = {"operators": ["mid_block.attentions.0"], "network": "UNet2DModel-0123456789ab"}
    assert "was made for the network" in fails(capsys, prune(other, tmp_path / "a"))
    assert prune({"operators": []}, tmp_path / "empty") == 0
    dense, same_again = ddim.pipeline().denoiser, load_pipeline(tmp_path / "empty").unet
    tensors = same_again.state_dict()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in dense.state_dict().items())
    mine = {"operators": [{"operator": "mid_block.resnets.0.norm1", "replacement": "affine"}]}
    assert prune(mine, tmp_path / "mine") == 0
    saved: Plan = load_plan(tmp_path / "mine" / "plan.json")
    assert saved.operators[0].replacement is not None
    assert saved.operators[0].replacement.in_channels == 16
    assert saved.num_params == 0  # a scale and a shift have as many as the norm
    assert "is not empty" in fails(capsys, prune(mine, tmp_path / "mine"))
    wrong = {"operators": [{"operator": "down_blocks.0.downsamplers.0", "replacement": "identity"}]}
    assert "cannot be replaced by identity; use avg_pool" in fails(capsys, prune(wrong, tmp_path / "a"))
    twice = ddim.prune(pipeline=tmp_path / "mine", out=tmp_path / "a")
    assert "is pruned already" in fails(capsys, twice)
