"""Every key of the parameters is used by each command that takes it, or said to be of no use there."""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from ruamel.yaml import YAML
from tiny import tiny_dataset, tiny_raw
from tiny_pipelines import tiny_ddim

from pelap.cli import main
from pelap.commands.pipelines import distill_pipeline, evaluate_pipelines, prune_pipeline, score_pipeline
from pelap.config import Params, Section
from pelap.config.load import PIPELINE_KEYS, STAGE_KEYS, parse_params
from pelap.config.rules import unused_by_pipeline, unused_by_run
from pelap.core import files
from pelap.core.paths import RunPaths
from pelap.data.dataset import save_dataset
from pelap.stages.shared import Context

CPU = torch.device("cpu")
STUDENT = {"start": "pruned", "task_weight": 1.0, "output_weight": 1.0, "feature_weight": 1.0}
ASKED = {
    "dataset": "photos",
    "score__criteria": ["magnitude"],
    "score__early_stop": 0.9,
    "prune": {
        "time_reduction": 0.06,
        "num_params": None,
        "num_operators": None,
        "methods": {"greedy": {"criterion": "score", "selection": "lowest_first", "iterative_step": 0.04}},
        "max_measurements": 0,
        "single_operator_plans": 0,
    },
    "distill__students": {"distilled": STUDENT | {"skip": ["other"]}},
    "distill__quality": {"num_images": 4, "num_reference": 8, "sampler": {"kind": "ddim", "steps": 4}},
    "evaluate__deepcache_intervals": [2],
    "evaluate__classifier": {"steps": 1, "batch_size": 4, "lr": 0.1, "width": 2, "horizontal_flip": False},
}
"""Parameters that ask for something by every key."""


class Reads:
    """Which keys of parameters are read while it watches."""

    def __init__(self, params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
        self.keys: set[str] = set()
        self._places = {id(each): (each, path, set[str]()) for path, each in sections(params)}
        copy = Section.model_copy
        reads = self

        def note(section: Section, name: str) -> Any:
            place = reads._places.get(id(section))
            if place is not None and name in type(section).model_fields and name not in place[2]:
                reads.keys.add(f"{place[1]}{name}")
            return object.__getattribute__(section, name)

        def noted(section: Section, *, update: Mapping[str, Any] | None = None, **_: Any) -> Section:
            made = copy(section, update=update)
            place = reads._places.get(id(section))
            if place is not None:  # with other values, these are read no more
                reads._places[id(made)] = (made, place[1], {*place[2], *(update or ())})
            return made

        monkeypatch.setattr(Section, "__getattribute__", note)
        monkeypatch.setattr(Section, "model_copy", noted)


def sections(value: Any, path: str = "") -> Iterator[tuple[str, Section]]:
    """All sections with the beginnings of their keys."""
    if isinstance(value, Section):
        yield path, value
        for name in type(value).model_fields:
            if name in vars(value):
                yield from sections(vars(value)[name], f"{path}{name}.")
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from sections(inner, f"{path}{name}.")


def leaves(params: Params) -> set[str]:
    """All keys that are given, hold no section and ask for something."""
    found = dict(sections(params))
    keys = {
        f"{path}{name}"
        for path, section in found.items()
        for name, value in vars(section).items()
        if name in section.model_fields_set and value is not None and value is not False and value != ()
        # What tells one kind of section from another is read with the file.
        if len(get_args(type(section).model_fields[name].annotation)) != 1
    }
    return {key for key in keys if not any(path.startswith(f"{key}.") for path in found)}


def unread(params: Params, run: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Keys that a command does not look at."""
    keys = leaves(params)
    with monkeypatch.context() as patch:
        reads = Reads(params, patch)
        run()
    return keys - reads.keys


def covered_by(said: Sequence[str], params: Params) -> set[str]:
    """The keys that a list of keys and sections speaks of."""
    return {key for key in leaves(params) if any(f"{key}.".startswith(f"{each}.") for each in said)}


def asked(stage: str, **overrides: Any) -> Params:
    raw = tiny_raw(**(ASKED | overrides))
    keys = PIPELINE_KEYS[stage]
    return parse_params({key: raw[key] for key in keys}, "asked", demanded=keys)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline, data that suit it, its scores with and without their protocol, a plan and what it makes."""
    folder = tmp_path_factory.mktemp("settings")
    tiny_ddim().save_pretrained(folder / "dense")
    save_dataset(tiny_dataset(num_train=100, side=8), folder / "photos.safetensors")
    score_pipeline(asked("score"), folder / "dense", folder / "scores.csv", CPU)
    (folder / "bare.csv").write_bytes((folder / "scores.csv").read_bytes())
    files.write_json(folder / "plan.json", {"operators": ["mid_block.resnets.0"]})
    prune(folder, asked("prune"), "scores.csv", folder / "plan.json", "pruned")
    return folder


def prune(folder: Path, params: Params, scores: str, plan: Path | None, out: str) -> None:
    prune_pipeline(params, folder / "dense", folder / scores, folder / out, CPU, plan_file=plan)


COMMANDS: dict[str, tuple[str, Callable[[Path, Params], None], dict[str, bool]]] = {
    "score": ("score", lambda at, params: score_pipeline(params, at / "dense", at / "again.csv", CPU), {}),
    "prune": ("prune", lambda at, params: prune(at, params, "bare.csv", None, "a"), {}),
    "scored": ("prune", lambda at, params: prune(at, params, "scores.csv", None, "b"), {"scored": True}),
    "planned": (
        "prune",
        lambda at, params: prune(at, params, "bare.csv", at / "plan.json", "c"),
        {"planned": True},
    ),
    "distill": (
        "distill",
        lambda at, params: distill_pipeline(params, at / "pruned", at / "dense", at, at / "tuned", CPU),
        {},
    ),
    "evaluate": (
        "evaluate",
        lambda at, params: evaluate_pipelines(params, [at / "dense"], at, at / "figures.json", CPU, None),
        {},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_that_a_pipeline_has_no_use_for_is_said(
    folder: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, run, given = COMMANDS[command]
    params = asked(stage)
    said = unused_by_pipeline(stage, params, **given)
    assert unread(params, lambda: run(folder, params), monkeypatch) == covered_by(said, params)


RUN_ASKED = ASKED | {
    "evaluate__deepcache_intervals": [],
    "train__execution": "eager",
    "train__parallel_variants": 2,
    "variants": {
        "pelap": {"sparsity_key": "lambda"},
        "first": {"sparsity_key": "lambda", "vae_training": "two_stage"},
    },
    "score__variant": "first",
    "distill__students": {"distilled": STUDENT},
}
NAMES_ALONE = ("collapse", "evaluate", "report")
"""Stages that take from `variants` whom to look at; how each was trained is in its model's folder."""


@pytest.mark.slow
def test_every_key_of_a_run_is_used_by_its_stages_or_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_dataset(tiny_dataset(num_train=100), tmp_path / "photos.safetensors")
    raw = tiny_raw(**RUN_ASKED)
    for stage in [stage for stage in STAGE_KEYS if stage != "download"]:
        params = parse_params({key: raw[key] for key in STAGE_KEYS[stage]}, "asked", stage)
        context = Context(params, RunPaths(tmp_path / "run"), tmp_path, CPU)
        run = partial(importlib.import_module(f"pelap.stages.{stage}").run, context)
        of_training = covered_by(["variants"], params) if stage in NAMES_ALONE else set()
        missed = unread(params, run, monkeypatch) - of_training
        assert missed == covered_by(unused_by_run(stage, params), params), stage


def said_by(stage: str, variant: str | None = None, planned: bool = False, **overrides: Any) -> list[str]:
    raw = tiny_raw(**overrides)
    params = parse_params({key: raw[key] for key in STAGE_KEYS[stage]}, "asked", stage)
    return unused_by_run(stage, params, planned, variant)


def test_what_depends_on_other_keys_is_said_where_it_is_idle() -> None:
    first = {"first": {"sparsity_key": "seed", "vae_training": "two_stage"}}
    assert said_by("train", variants=first, train__parallel_variants=1) == ["lambda"]
    idle = ["lambda", "train.parallel_variants"]
    assert said_by("train", variants=first, train__parallel_variants=2) == idle
    idle.insert(1, "train.vae_epochs")
    assert said_by("train", variant="baseline", train__parallel_variants=2) == idle
    assert said_by("prune") == ["prune.max_measurements"]  # the tiny target is a number of parameters
    share = {"time_reduction": 0.3, "num_params": None, "num_operators": None}
    assert said_by("prune", prune=share) == []
    assert said_by("prune", planned=True) == ["prune"]
    assert said_by("evaluate") == []
    alone = said_by("evaluate", evaluate__models="variants", evaluate__lpips_weights="a.pth")
    assert alone == ["evaluate.step_counts", "evaluate.lpips_weights"]
    untimed = said_by("evaluate", evaluate__latency_repeats=None, evaluate__inception_weights="a.pth")
    timing = ["evaluate.latency_batch_sizes", "evaluate.sampler_repeats"]
    assert untimed == ["evaluate.inception_weights", *timing]
    params = asked("evaluate", evaluate__extractors=["classifier"])
    assert "evaluate.classifier" not in unused_by_pipeline("evaluate", params)


def test_what_is_not_used_is_printed_with_the_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replaced = ("commands.pipelines.score_pipeline", "commands.pipelines.prune_pipeline")
    for name in (*replaced, "stages.prune.run", "stages.report.run"):
        monkeypatch.setattr(f"pelap.{name}", lambda *_: None)
    with (tmp_path / "params.yaml").open("w") as file:
        YAML().dump(tiny_raw(prune__single_operator_plans=0), file)
    (tmp_path / "scores.protocol.json").write_text("{}")
    monkeypatch.chdir(tmp_path)

    def printed(*words: str) -> str:
        assert main(words) == 0
        return capsys.readouterr().out

    assert printed("report", "--run", "run") == ""
    assert printed("report", "--set", "seed=3", "train.lr=0.1") == "not used by report: --set train.lr\n"
    assert printed("report", "--data", "there", "--device", "cpu") == "not used by report: --data, --device\n"
    assert printed("prune", "--plan", "mine.json") == "not used by prune: prune\n"
    on_pipeline = ("--pipeline", "dense", "--out", "out", "--device", "cpu")
    said = "not used for a pipeline: --run, --data, score.variant, score.sampler.kind\n"
    assert printed("score", *on_pipeline, "--run", "mine", "--data", "there") == said
    pruned = printed("prune", *on_pipeline, "--scores", "scores.csv", "--plan", "mine.json")
    assert pruned == "not used for a pipeline: seed, score, prune\n"
