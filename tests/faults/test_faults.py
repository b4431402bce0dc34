"""A few faults of every kind; `make test-faults` tries as many as one likes, with other seeds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def no_fault_shows(*words: str) -> None:
    """In an interpreter of its own, which forks: threads of other tests would not survive that."""
    run = [sys.executable, str(HERE), *words]
    ended = subprocess.run(
        run, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_a_few_on_the_first_stages() -> None:
    kinds = ("kill", "pair", "parameters", "artefacts", "hostile")
    no_fault_shows("--count", "3", "--only", *kinds, "--jobs", "download", "train", "collapse", "sample")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kill", "pair", "full_disk", "parameters", "artefacts", "hostile"])
def test_some_on_every_command(kind: str) -> None:
    no_fault_shows("--count", "5", "--seed", "5", "--only", kind)
