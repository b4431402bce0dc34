"""The command line: frozen options, quick help, one line for whatever a user gets wrong."""

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
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


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pelap.cli import build_parser; build_parser().format_help(); "
        "print([m for m in ('torch', 'diffusers', 'pandas', 'pydantic', 'rich') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


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


def test_bad_parameters_end_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = tmp_path / "p.yaml"
    params.write_text((ROOT / "params.yaml").read_text().replace("epochs: ", "epochs: many "))
    error = _fails(capsys, "train", "--params", str(params), "--run", str(tmp_path / "run"))
    assert "train.epochs" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "download"])
def test_a_stage_without_its_input_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    run = ["--run", str(tmp_path / "run"), "--data", str(tmp_path / "data")]
    error = _fails(capsys, stage, *run, "--params", str(ROOT / "params.yaml"), "--device", "cpu")
    assert "no such" in error
    assert not [p for p in (tmp_path / "run").rglob("*") if p.is_file() and not p.name.endswith(".lock")]


def test_unknown_variant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["train", "--variant", "best", "--run", str(tmp_path), "--params", str(ROOT / "params.yaml")]
    assert "use one of baseline, pelap, invariant" in _fails(capsys, *argv)


def test_full_disk_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "there")

    monkeypatch.setattr("pelap.stages.download.run", full)
    argv = ["download", "--run", str(tmp_path), "--params", str(ROOT / "params.yaml")]
    assert "there: No space left on device; check the path and the space left" in _fails(capsys, *argv)


def test_interruption_has_its_own_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pelap.stages.download.run", interrupt)
    argv = ["download", "--run", str(tmp_path), "--params", str(ROOT / "params.yaml")]
    assert main(argv) == 130
    assert "starts again" in capsys.readouterr().err
    monkeypatch.setattr("pelap.stages.train.run", interrupt)
    assert main(["train", *argv[1:]]) == 130
    assert "goes on from the last checkpoint" in capsys.readouterr().err


def test_sample_does_not_mix_pictures_with_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.png").touch()
    assert "is not empty" in _fails(capsys, "sample", "--model", "m", "--out", str(tmp_path))


def test_path_through_a_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert "check the path" in _fails(capsys, "show", "--run", str(tmp_path / "file"))


@pytest.mark.parametrize("num", ["0", "-1", "x"])
def test_sample_needs_a_positive_number(num: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "argument --num: " in _fails(capsys, "sample", "--model", "m", "--out", "o", "--num", num)
