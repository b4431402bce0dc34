"""A command ends with one line, whatever ends it: signals at any moment, full disks, what libraries say."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from refusals import refusal
from tiny import ROOT
from tiny_pipelines import tiny_ddim

from pelap.commands.ending import end_of
from pelap.core import terminal
from pelap.core.errors import LONGEST, DataError

AGAIN = "pelap: interrupted; run the same command again\n"
ONE_LINE = {AGAIN, "pelap: interrupted; the same command starts again\n"}
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
both = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


def python(code: str, *argv: str, stdout: int = subprocess.PIPE) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONUNBUFFERED", None)
    options = {"stderr": subprocess.PIPE, "text": True, "cwd": ROOT, "check": False}
    return subprocess.run([sys.executable, "-c", code, *argv], stdout=stdout, env=environment, **options)


@both
def test_a_signal_at_any_moment_of_the_start_is_one_line(number: signal.Signals) -> None:
    """Raised by ourselves before each Python function that is called from our first line on."""
    code = """
import os, signal, sys
import pelap.__main__ as entry
sys.argv, at, number = ["pelap", "bogus"], int(sys.argv[1]), int(sys.argv[2])
seen = 0
def raised(frame, event, argument):
    global seen
    seen += event == "call"
    if event == "call" and seen == at:
        sys.setprofile(None)
        signal.raise_signal(number)
listen = entry._listen
def listen_then_count():
    listen()
    sys.setprofile(raised)
entry._listen = listen_then_count
sys.exit(entry.main())
"""
    for at in (1, 2, 5, 20, 100, 400, 1000, 4000):
        ended = python(code, str(at), str(int(number)))
        assert ended.stderr in ONE_LINE, (at, ended.stderr)
        assert ended.returncode == STATUS[number]


SWALLOWED = """
import signal, sys, time
import pelap.__main__ as entry
import pelap.cli
class Part:
    def __del__(self):
        signal.raise_signal(int(sys.argv[1]))
        time.sleep(0)
def run():
    Part()
    for _ in range(300):
        time.sleep(0.01)
    return 0
pelap.cli.main = run
sys.exit(entry.main())
"""


@both
def test_a_signal_in_a_destructor_is_not_lost(number: signal.Signals) -> None:
    ended = python(SWALLOWED, str(int(number)))
    assert (ended.returncode, ended.stderr) == (STATUS[number], AGAIN)


def test_a_signal_within_an_import_ends_at_once(tmp_path: Path) -> None:
    """What an import raises may be swallowed by the module that imports."""
    (tmp_path / "optional.py").write_text("import signal; signal.raise_signal(signal.SIGINT)")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import pelap.__main__ as entry
import pelap.cli
def run():
    try:
        import optional
    except BaseException:
        print("goes on")
    return 0
pelap.cli.main = run
sys.exit(entry.main())
"""
    ended = python(code)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", AGAIN)


def test_what_the_caller_ignores_stays_ignored() -> None:
    code = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
import pelap.__main__ as entry
import pelap.cli
pelap.cli.main = lambda: signal.raise_signal(signal.SIGINT) or 7
sys.exit(entry.main())
"""
    assert python(code).returncode == 7


def test_a_pipeline_that_is_refused_is_one_line_without_those_of_diffusers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Diffusers logs that it finds no weights, through a handler that it made when it was imported."""
    tiny_ddim().save_pretrained(tmp_path / "p")
    (tmp_path / "p" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (handler,) = (
        each for each in logging.getLogger("diffusers").handlers if type(each) is logging.StreamHandler
    )
    monkeypatch.setattr(handler, "stream", sys.stderr)
    words = ["sample", "--model", tmp_path / "p", "--num", 1, "--steps", 2, "--out", tmp_path / "o"]
    refusal(capsys, *words)
    assert handler.stream is sys.stderr


def warned(then: Callable[[], None]) -> Callable[[], int]:
    def run() -> int:
        print("a library's line", file=sys.stderr)
        then()
        return 0

    return run


def refuse() -> None:
    raise DataError("f: is no file; give another")


def work() -> None:
    with terminal.progress("work", 1) as report:
        report(1)


@pytest.mark.parametrize(
    ("then", "said"),
    [
        (refuse, "pelap: error: f: is no file; give another\n"),
        (work, "a library's line\nwork: 1/1\n"),
        (lambda: None, "a library's line\n"),
        (
            lambda: (work(), refuse())[0],
            "a library's line\nwork: 1/1\npelap: error: f: is no file; give another\n",
        ),
    ],
)
def test_lines_of_libraries_wait_until_work_begins(
    then: Callable[[], None], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = sys.stderr
    end_of(warned(then), resumes=False)
    assert capsys.readouterr().err == said
    assert sys.stderr is stream


@pytest.mark.parametrize("working", [False, True])
def test_what_a_library_quotes_at_length_is_shortened(
    working: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> int:
        if working:
            work()
        sys.stderr.write(f"a library's line {'x' * 5000} its end\n")
        sys.stderr.write(f"a bar \x1b[2K{'-' * 600}\n")
        return 0

    end_of(run, resumes=False)
    line, bar = capsys.readouterr().err.splitlines()[-2:]
    assert line.startswith("a library's line xxx")
    assert line.endswith("xxx its end")
    assert len(line) <= LONGEST
    assert ("\x1b" in bar) == working  # a bar is of work; before it, nothing moves the cursor


def test_a_defect_shows_what_libraries_said(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise AssertionError

    with pytest.raises(AssertionError):
        end_of(warned(fail), resumes=False)
    assert capsys.readouterr().err == "a library's line\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no file that is always full")
@pytest.mark.parametrize("words", [["params", "params.yaml"], ["--help"]])
def test_output_to_a_full_disk_is_one_line(words: list[str]) -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        ended = python(
            "import sys; from pelap.cli import main; sys.exit(main(sys.argv[1:]))",
            *words,
            stdout=full.fileno(),
        )
    assert ended.returncode == 2
    assert (
        ended.stderr
        == "pelap: error: No space left on device; check the path and the space left, then run again\n"
    )
