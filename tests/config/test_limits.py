"""Parameter files that would take the machine's time or memory: one line, at once."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
from refusals import refusal

from pelap.config.load import DEFAULTS, parse_overrides, parse_params
from pelap.config.yaml import parse_yaml, read_yaml
from pelap.core.errors import LONGEST, ConfigError, DataError, brief
from pelap.core.terminal import visible

LEVELS = [(f"k{i}", ", ".join([f"*k{i - 1}" if i else "*a"] * 9)) for i in range(9)]  # 9 ** 9 values
BOMBS = {
    "levels": "x: " + "[" * 3000 + "]" * 3000,
    "a few levels": "x: " + "[" * 50 + "]" * 50,
    "aliases": "a: &a [x]\n" + "".join(f"{name}: &{name} [{nine}]\n" for name, nine in LEVELS),
    "merges": "a: &a {x: 1}\n" + "".join(f"{name}: &{name} {{<<: [{nine}]}}\n" for name, nine in LEVELS),
    "itself": "a: &a {b: *a}",
    "digits": f"seed: {'9' * 90}",
    "hexadecimal digits": f"seed: 0x{'f' * 9000}",
    "values": f"x: [{'1, ' * 30_000}]",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_document_without_end_is_refused(name: str) -> None:
    begun = time.monotonic()
    with pytest.raises(ConfigError, match=r"p\.yaml: "):
        parse_yaml(BOMBS[name], "p.yaml")
    assert time.monotonic() - begun < 30


def test_a_file_without_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large.yaml").touch()
    os.truncate(tmp_path / "large.yaml", 2**40)
    for place in (tmp_path / "pipe", tmp_path / "large.yaml", Path("/dev/zero")):
        with pytest.raises(DataError, match=str(place)):
            read_yaml(place)


def _numbers(section: Any, path: str = "") -> list[str]:
    """Dotted keys of all whole numbers."""
    if isinstance(section, dict):
        return [
            key for name, value in section.items() for key in _numbers(value, f"{path}.{name}".lstrip("."))
        ]
    return [path] if isinstance(section, int) and not isinstance(section, bool) else []


@pytest.mark.parametrize("value", ["1000000000000000000", "1" + "0" * 60, ".inf", ".nan", "0x" + "f" * 70])
def test_every_number_has_an_upper_end(value: str) -> None:
    keys = _numbers(DEFAULTS)
    assert {"train.epochs", "evaluate.num_images", "vae.width", "download.image_size"} <= {*keys}
    for key in {*keys} - {"seed"}:
        with pytest.raises(ConfigError, match=key.rpartition(".")[2]):
            parse_params({}, "params", overrides=parse_overrides([f"{key}={value}"]))


def test_numbers_of_the_command_line_have_one_too(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--num", "--seed", "--steps"):
        words = ["sample", "--model", "m", "--out", "o", option, 10**30]
        assert f"{option}: {10**30} is too large" in refusal(capsys, *words)


def test_a_message_is_a_line_that_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.yaml").write_text(f"dataset: {'x' * 100_000}\n")
    said = refusal(capsys, "train", "--params", tmp_path / "p.yaml", "--run", tmp_path / "r")
    assert "p.yaml: dataset: " in said
    long = brief("where: " + "x" * 3_000_000 + "; mend it so")
    assert max(len(said), len(long)) <= LONGEST + 1
    assert long.startswith("where: ")
    assert long.endswith("; mend it so")
    assert visible(brief("red \x1b[31m\nblue")) == r"red \x1b[31m blue"
