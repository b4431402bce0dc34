"""The command line: frozen options, quick help, one line for whatever a user gets wrong."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import ROOT

from pelap.cli import STAGES, build_parser, main
from pelap.config.rules import STAGES as CONFIG_STAGES

COMMON = {"--run", "--params", "--data", "--device", "--help"}
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
    "cut": {"--model", "--data", "--out", "--device", "--help"},
    "inputs": {"--params", "--data", "--help"},
    "show": {"--run", "--help"},
    "compare": {"--sweep", "--cells", "--help"},
    "study": {"--root", "--cells", "--help"},
    "choosing": {"--root", "--cells", "--help"},
    "tasks": {"--root", "--cells", "--help"},
    "paper": {"--study", "--root", "--data", "--dataset", "--minutes", "--device", "--help"},
}


def test_options_are_frozen() -> None:
    commands = build_parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    found = {
        name: {option for action in parser._actions for option in action.option_strings if option != "-h"}
        for name, parser in commands.items()  # type: ignore[union-attr]
    }
    assert found == OPTIONS


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
    commands = parser._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    for command in (parser, *commands.values()):  # type: ignore[union-attr]
        assert max(len(line) for line in command.format_help().splitlines()) <= 80


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
