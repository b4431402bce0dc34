"""The command line: frozen options, quick help, one line for whatever a user gets wrong."""

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ROOT

from pelap.cli import STAGES, _respelled, build_parser, main
from pelap.config.rules import STAGES as CONFIG_STAGES

COMMON = {"--run", "--params", "--set", "--data", "--device", "--help"}
OPTIONS = {
    **dict.fromkeys(STAGES, COMMON),
    "train": COMMON | {"--variant"},
    "score": COMMON | {"--save-latents"},
    "prune": COMMON | {"--plan"},
    "sample": {"--model", "--num", "--seed", "--steps", "--out", "--prompts", "--device", "--help"},
    "remove-channels": {"--model", "--data", "--out", "--device", "--help"},
    "cut": {"--model", "--data", "--out", "--device", "--help"},
    "inputs": {"--params", "--set", "--data", "--help"},
    "params": {"--set", "--upgrade", "--out", "--help"},
    "show": {"--run", "--help"},
    "compare": {"--sweep", "--cells", "--help"},
    "study": {"--root", "--cells", "--help"},
    "choosing": {"--root", "--cells", "--help"},
    "tasks": {"--root", "--cells", "--help"},
    "paper": {"--study", "--root", "--data", "--dataset", "--minutes", "--device", "--help"},
    "pipeline": {"--help"},
}
OPTIONS["evaluate --samples"] = COMMON | {
    *("--samples", "--reference", "--out", "--extractor", "--inception-weights", "--paired")
}
OF_PIPELINE = {
    "score": COMMON | {"--out", "--prompts", "--save-latents"},
    "prune": COMMON | {"--scores", "--out", "--prompts", "--plan"},
    "distill": COMMON | {"--teacher", "--out"},
    "evaluate": COMMON | {"--out", "--prompts"},
}


def commands_of(parser: Any) -> dict[str, Any]:
    return dict(parser._subparsers._group_actions[0].choices)


def options_of(commands: dict[str, Any]) -> dict[str, set[str]]:
    return {
        name: {option for action in parser._actions for option in action.option_strings if option != "-h"}
        for name, parser in commands.items()
    }


def test_options_are_frozen() -> None:
    commands = commands_of(build_parser())
    assert options_of(commands) == OPTIONS
    assert options_of(commands_of(commands["pipeline"])) == OF_PIPELINE


def test_help_has_every_command_once() -> None:
    listed = [line for line in build_parser().format_help().splitlines() if line.startswith("  ")]
    for name in OPTIONS.keys() - {"cut", "pipeline"} | {f"pipeline {stage}" for stage in OF_PIPELINE}:
        others = 1 if name == "evaluate" else 0  # the one with --samples
        assert sum(line.startswith(f"  {name} ") for line in listed) == 1 + others, name


def test_stages_are_the_eight() -> None:
    assert tuple(STAGES) == CONFIG_STAGES
    for stage in STAGES:
        assert (ROOT / "pelap" / "stages" / f"{stage}.py").exists()


@pytest.mark.parametrize(
    ("what", "heavy"),
    [
        ("cli.build_parser().format_help()", ["torch", "diffusers", "pandas", "pydantic", "rich"]),
        (
            f"cli.main(['show', '--run', {str(ROOT / 'results' / 'default')!r}])",
            ["torch", "scipy", "matplotlib"],
        ),
    ],
    ids=["help", "show"],
)
def test_nobody_waits_for_what_a_quick_command_does_not_need(what: str, heavy: list[str]) -> None:
    code = f"import sys; from pelap import cli; {what}; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_help_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    parser = build_parser()
    commands = commands_of(parser)
    for each in (parser, *commands.values(), *commands_of(commands["pipeline"]).values()):
        assert max(len(line) for line in each.format_help().splitlines()) <= 80


@pytest.mark.parametrize("rest", [["--set", "seed=1"], []], ids=str)
@pytest.mark.parametrize("spelling", [["--pipeline", "a"], ["--pipeline=a"]], ids=str)
@pytest.mark.parametrize("stage", OF_PIPELINE)
def test_pipelines_have_commands_of_their_own(stage: str, spelling: list[str], rest: list[str]) -> None:
    options = ["--device", "cpu"]
    assert _respelled([stage, *options, *spelling, *rest]) == ["pipeline", stage, "a", *options, *rest]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["score", "--run", "a"], ["score", "--run", "a"]),
        (["evaluate", "--pipeline", "a", "b", "--paired"], ["pipeline", "evaluate", "a", "b", "--paired"]),
        (["evaluate", "--paired", "--samples", "a"], ["evaluate --samples", "--samples", "a", "--paired"]),
        (["evaluate", "--samples", "--help"], ["evaluate --samples", "--help"]),
        (["pipeline", "score", "a"], ["pipeline", "score", "a"]),
        ([], []),
    ],
    ids=str,
)
def test_modes_of_a_stage_are_told_by_their_options(words: list[str], expected: list[str]) -> None:
    assert _respelled(words) == expected


def _fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("pelap: error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "download"])
def test_a_stage_without_its_input_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    run = ["--run", str(tmp_path / "run"), "--data", str(tmp_path / "data")]
    error = _fails(capsys, stage, *run, "--params", str(ROOT / "params.yaml"), "--device", "cpu")
    assert "no such" in error
    assert not [p for p in (tmp_path / "run").rglob("*") if p.is_file() and not p.name.endswith(".lock")]


REFUSED = [
    ("train --params bad.yaml", "bad.yaml: train.epochs: input should be a valid integer"),
    ("train --variant best", "use one of baseline, pelap, invariant"),
    ("train --device cuda" if not torch.cuda.is_available() else "train --device tpu", "--device"),
    ("show --run bad.yaml", "bad.yaml/evaluate/metrics.json: Not a directory; check the path"),
    ("report --run bad.yaml/run", "bad.yaml/run: cannot write here"),
    ("sample --model m --out o --num 0", "argument --num: 0 is not positive; see pelap sample --help"),
    ("sample --model m --out o --num -1", "argument --num: "),
    ("sample --model m --out o --num x", "argument --num: 'x' is no whole number; see"),
    ("sample --model nowhere --out o --device cpu", "folder of a model or pipeline; correct the path"),
    ("sample --out o", "are required: --model; see pelap sample --help"),
    ("paper --minutes -1", "argument --minutes: -1.0 is no number of minutes"),
    ("paper --minutes x", "argument --minutes: 'x' is no number; see pelap paper --help"),
    ("paper --study none", "none: no such file; give a study file with --study"),
    ("params none", "none: no such file; give the path of a parameter file"),
    ("params none --upgrade", "none: no such file; give the path of a parameter file"),
    ("params params.yaml --out .", "--out .: is a folder; name a file"),
    ("paper --minutes inf", "argument --minutes: inf is no number of minutes"),
    ("evaluate --samples a", "are required: --reference, --out; see pelap evaluate --samples --help"),
    ("evaluate --samples a --reference b", "are required: --out; see pelap"),
    ("evaluate --samples a --pipeline p --out f", "give one of them"),
    ("evaluate --samples a --reference b --out f --prompts p", "--prompts: goes with --pipeline DIR"),
    ("evaluate --pipeline p --out f --paired", "--paired: goes with --samples DIR"),
    ("evaluate --reference b --out f", "--reference: goes with --samples DIR; add that, or leave this out"),
    ("evaluate --out f", "--out: goes with --pipeline DIR"),
    ("score --out f", "--out: goes with --pipeline DIR"),
    ("prune --pipeline p", "are required: --scores, --out; see pelap pipeline prune --help"),
    ("score --plan f", "--plan: unknown; see pelap score --help"),
    ("report junk", "junk: unknown; see pelap report --help"),
    ("pipeline", "are required: STAGE; see pelap pipeline --help"),
    ("bogus", "error: bogus: no such command; see pelap --help\n"),
    ("--verbose bogus --run r", "error: bogus: no such command; see pelap --help\n"),
    ("", "are required: COMMAND; see pelap --help"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED)
def test_what_is_wrong_is_one_line_before_anything_is_written(
    words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text("train: {epochs: many}")
    (tmp_path / "params.yaml").write_text("{}")
    assert said in _fails(capsys, *words.split())
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"bad.yaml", "params.yaml"}


FULL = OSError(errno.ENOSPC, "No space left on device", "there")
ENDS: list[tuple[str, BaseException, int, str]] = [
    ("download", FULL, 2, "there: No space left on device; check the path and the space left"),
    ("train", RuntimeError("CUDA out of memory."), 2, "out of memory; lower batch_size"),
    (
        "train",
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB of "
            "which 811.19 MiB is free. Process 7 has 78.31 GiB memory in use."
        ),
        2,
        "out of memory (2.50 GiB wanted, 811.19 MiB free); lower batch_size",
    ),
    ("download", KeyboardInterrupt(), 130, "starts again"),
    ("train", KeyboardInterrupt(), 130, "goes on from the last checkpoint"),
]


@pytest.mark.parametrize(("stage", "error", "status", "said"), ENDS)
def test_an_end_that_nobody_wants_is_one_line_too(
    stage: str,
    error: BaseException,
    status: int,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(f"pelap.stages.{stage}.run", fail)
    argv = [stage, "--run", str(tmp_path), "--params", str(ROOT / "params.yaml"), "--device", "cpu"]
    assert main(argv) == status
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1
