"""The command line: frozen options, quick help, one line for whatever a user gets wrong."""

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import ROOT

from pelap.cli import STAGES, build_parser, main
from pelap.config.rules import STAGES as CONFIG_STAGES

COMMON = {"--run", "--params", "--set", "--data", "--device", "--help"}
OPTIONS = {
    **dict.fromkeys(STAGES, COMMON),
    "train": COMMON | {"--variant"},
    "score": COMMON | {"--pipeline", "--out", "--prompts", "--save-latents"},
    "prune": COMMON | {"--pipeline", "--scores", "--out", "--prompts", "--plan"},
    "distill": COMMON | {"--pipeline", "--teacher", "--out"},
    "evaluate": COMMON
    | {"--pipeline", "--out", "--prompts"}
    | {"--samples", "--reference", "--extractor", "--inception-weights", "--paired"},
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
OF_PIPELINE = {
    "score": {"--out", "--prompts", "--save-latents"},
    "prune": {"--scores", "--out", "--prompts", "--plan"},
    "distill": {"--teacher", "--out", "--data"},
    "evaluate": {"--out", "--prompts", "--data"},
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
    common = {"--params", "--set", "--device", "--help"}
    expected = {stage: options | common for stage, options in OF_PIPELINE.items()}
    assert options_of(commands_of(commands["pipeline"])) == expected


def test_help_has_every_command_once() -> None:
    listed = [line for line in build_parser().format_help().splitlines() if line.startswith("  ")]
    for name in OPTIONS.keys() - {"cut", "pipeline"} | {f"pipeline {stage}" for stage in OF_PIPELINE}:
        assert sum(line.startswith(f"  {name} ") for line in listed) == (2 if name == "evaluate" else 1), name


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


@pytest.mark.parametrize("stage", OF_PIPELINE)
def test_pipelines_have_commands_of_their_own(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the old spelling, `pelap STAGE --pipeline DIR`, whose defaults are the same."""
    given = {"score": "", "prune": "--scores s", "distill": "--teacher t", "evaluate": ""}[stage]
    names = ["a", "b"] if stage == "evaluate" else ["a"]
    options = [*given.split(), "--out", "o", "--device", "cpu"]
    new = vars(build_parser().parse_args(["pipeline", stage, *names, *options]))
    old = vars(build_parser().parse_args([stage, "--pipeline", *names, *options]))
    assert {key: old[key] for key in new if key not in ("command", "call")} == {
        key: value for key, value in new.items() if key not in ("command", "call")
    }


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
def test_sample_needs_a_positive_number(num: str) -> None:
    with pytest.raises(SystemExit):
        main(["sample", "--model", "m", "--out", "o", "--num", num])
