"""What parameters name outside of a run is noticed when it changes."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from tiny import ROOT

from pelap.cli import main
from pelap.config.load import resolved
from pelap.config.yaml import read_yaml
from pelap.core import files
from pelap.core.paths import input_file
from pelap.datasets.sources import READING, inputs_of

RAW = read_yaml(ROOT / "params.yaml")
TEXT = resolved(ROOT / "presets" / "tasks" / "text.yaml")


def pictures(folder: Path) -> Path:
    for split in ("train", "test"):
        (folder / split / "a").mkdir(parents=True)
        (folder / split / "a" / "1.png").write_text("a picture")
    return folder


def mine(location: Path | str) -> dict[str, Any]:
    return {**RAW, "dataset": "mine", "download": {**RAW["download"], "folders": {"mine": str(location)}}}


def later(file: Path) -> None:
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))


def exchanged(file: Path) -> None:
    """Another file of the same size and time."""
    before = file.stat()
    while file.stat().st_ctime_ns == before.st_ctime_ns:  # the clock of a disk may be slow
        file.write_text("!" * before.st_size)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], Any]] = {
    "another picture": lambda folder: (folder / "train/a/2.png").write_text("x"),
    "one less": lambda folder: (folder / "train/a/1.png").unlink(),
    "another name": lambda folder: (folder / "train/a").rename(folder / "train/b"),
    "another size": lambda folder: (folder / "train/a/1.png").write_text("another picture"),
    "another time": lambda folder: later(folder / "train/a/1.png"),
    "another of its size and time": lambda folder: exchanged(folder / "train/a/1.png"),
}


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_folder_is_noticed(change: Callable[[Path], Any], linked: bool, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "mine")
    if linked:
        (tmp_path / "link").mkdir()
        for split in ("train", "test"):
            (tmp_path / "link" / split).symlink_to(folder / split, target_is_directory=True)
    raw = mine(tmp_path / ("link" if linked else "mine"))
    before = inputs_of("download", raw, tmp_path)
    assert set(before) == {"download.folders.mine"}
    assert inputs_of("download", raw, tmp_path) == before
    for name in (".DS_Store", "Thumbs.db", "grid.png"):  # nobody reads these
        (folder / "train/a" / name).write_text("x")
    assert inputs_of("download", raw, tmp_path) == before
    change(folder)
    assert inputs_of("download", raw, tmp_path) != before


def test_an_archive_is_found_and_noticed_where_downloads_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = mine("data/downloads/a.zip")
    nowhere = inputs_of("download", raw, tmp_path)
    assert nowhere == {"download.folders.mine": None}  # `download` says what is wrong, if it has to run
    (tmp_path / "a.zip").write_text("a zip")
    monkeypatch.setenv("PELAP_DATA_DIR", str(tmp_path))
    found = inputs_of("download", raw, tmp_path)
    assert found != nowhere
    later(tmp_path / "a.zip")
    assert inputs_of("download", raw, tmp_path) != found


def test_files_of_prompts_and_weights_are_noticed_by_their_content(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a cat")
    raw = {**TEXT, "conditioning": {**TEXT["conditioning"], "prompts": str(file)}}
    raw["evaluate"] = {**RAW["evaluate"], "inception_weights": str(file)}
    for stage, name in (("train", "conditioning.prompts"), ("evaluate", "evaluate.inception_weights")):
        file.write_text("a cat")
        before = inputs_of(stage, raw, tmp_path)
        assert set(before) == {name}
        later(file)
        assert inputs_of(stage, raw, tmp_path) == before
        file.write_text("a dog")
        assert inputs_of(stage, raw, tmp_path) != before


def test_autoencoders_of_other_variants_do_not_count(tmp_path: Path) -> None:
    source = {"kind": "autoencoder_kl", "source": str(tmp_path)}
    raw = {**RAW, "variants": {"a": {"sparsity_key": "seed", "vae": source}, "b": {"sparsity_key": "seed"}}}
    assert set(inputs_of("train", raw, tmp_path)) == {"variants.a.vae.source"}
    assert inputs_of("train", raw, tmp_path, "b") == {}
    assert set(inputs_of("train", raw, tmp_path, "a")) == {"variants.a.vae.source"}


def test_the_code_of_extractors_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    raw = {**RAW, "evaluate": {**RAW["evaluate"], "extractors": ["effnet-lite0", "extractor_of_mine:Mine"]}}
    found = []
    for number in (1, 2):
        (tmp_path / "extractor_of_mine.py").write_text(f"SIZE = {number}\n")
        (digest,) = inputs_of("evaluate", raw, tmp_path).values()
        found.append(digest)
    assert found[0] != found[1]
    (tmp_path / "extractor_of_mine.py").unlink()
    assert inputs_of("evaluate", raw, tmp_path) == {"extractor_of_mine": None}
    (tmp_path / "extractor_of_mine.py").write_text("SIZE = = 1")
    assert len(inputs_of("evaluate", raw, tmp_path)) == 1
    assert inputs_of("score", raw, tmp_path) == {}


def test_what_is_gone_is_as_it_was_seen_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """DVC runs some experiments in a copy of the project; archives are deleted once they are packed."""
    YAML().dump(mine(pictures(tmp_path / "mine")), tmp_path / "p.yaml")
    command, file = ["inputs", "--params", str(tmp_path / "p.yaml"), "--data", str(tmp_path)], "download"
    assert main(command) == 0
    assert [files.read_mapping(input_file(tmp_path, stage)) for stage in READING[1:]] == [{}, {}]
    before = files.read_mapping(input_file(tmp_path, file))
    (tmp_path / "mine").rename(tmp_path / "gone")
    assert capsys.readouterr().out == ""
    assert main(command) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("download.folders.mine: not to be seen from here; taken as it was seen last")
    assert files.read_mapping(input_file(tmp_path, file)) == before
    pictures(tmp_path / "mine")
    (tmp_path / "mine/train/a/1.png").write_text("others")
    assert main(command) == 0
    assert files.read_mapping(input_file(tmp_path, file)) != before


def test_wrong_parameters_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.yaml").write_text("dataset: nope\n")
    assert main(["inputs", "--params", str(tmp_path / "p.yaml"), "--data", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not input_file(tmp_path, "train").exists()
