"""Damaged and hostile inputs that other suites do not have: one line, exit status 2, nothing executed."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refusal
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from tiny import ROOT, tiny_dataset, tiny_model, tiny_raw
from tiny_pipelines import tiny_ddim

from pelap.commands.paper import time_limit
from pelap.data.dataset import save_dataset
from pelap.pipelines.pipeline_io import save_model


def params_file(folder: Path, **overrides: Any) -> Path:
    path = folder / "params.yaml"
    with path.open("w") as file:
        YAML(typ="safe", pure=True).dump(tiny_raw(**overrides), file)
    return path


def test_deep_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.yaml").write_text("x: " + "[" * 3000 + "]" * 3000 + "\n")
    refusal(capsys, "train", "--params", tmp_path / "p.yaml", "--run", tmp_path / "r")


def test_equal_data_sets_are_equal_files(tmp_path: Path) -> None:
    for number in range(4):
        save_dataset(tiny_dataset(), tmp_path / str(number))
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


DAMAGED = [
    ("vae", "downsampling", [None]),
    ("vae", "downsampling", "x"),
    ("unet", "time_embedding_type", {}),
    ("unet", "act_fn", [None]),
    ("unet", "freq_shift", "["),
    ("unet", "mid_block_scale_factor", [None]),
]


@pytest.mark.parametrize(("part", "name", "value"), DAMAGED)
def test_a_damaged_configuration_of_a_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str, name: str, value: Any
) -> None:
    save_model(tiny_model(), tmp_path / "m")
    file = tmp_path / "m" / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    words = ["sample", "--model", tmp_path / "m", "--num", 1, "--steps", 2, "--out", tmp_path / "o"]
    refusal(capsys, *words)


@pytest.mark.parametrize("how", ["nan", "bool", "int64"])
def test_weights_that_are_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str) -> None:
    tiny_ddim().save_pretrained(tmp_path / "p")
    file = tmp_path / "p" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors, name = load_file(file), "mid_block.resnets.0.conv1.weight"
    weight = tensors[name]
    damaged = {"nan": torch.full_like(weight, float("nan")), "bool": weight > 0, "int64": weight.long()}
    tensors[name] = damaged[how]
    save_file(tensors, file, metadata={"format": "pt"})
    words = ["sample", "--model", tmp_path / "p", "--num", 1, "--steps", 2, "--out", tmp_path / "o"]
    refusal(capsys, *words)


def own_data(folder: Path, source: Path) -> list[object]:
    params = params_file(folder, dataset="mine", download__folders={"mine": str(source)})
    return ["download", "--params", params, "--run", folder / "r", "--data", folder / "d"]


def test_a_tar_with_a_link_to_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        link = tarfile.TarInfo("train/a/l.png")
        link.type, link.linkname = tarfile.SYMTYPE, "l.png"
        archive.addfile(link, io.BytesIO())
    refusal(capsys, *own_data(tmp_path, tmp_path / "x.tar"))


def test_a_pipe_that_is_called_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To read it would take for ever."""
    (tmp_path / "c" / "train" / "a").mkdir(parents=True)
    os.mkfifo(tmp_path / "c" / "train" / "a" / "z.png")
    with time_limit(0.5, time.monotonic()):
        refusal(capsys, *own_data(tmp_path, tmp_path / "c"))


def test_a_damaged_protocol_of_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r" / "score").mkdir(parents=True)
    score = tiny_raw()["score"] | {"variant": "../x"}
    (tmp_path / "r" / "score" / "protocol.json").write_text(json.dumps({"seed": 0, **score}))
    words = ["prune", "--params", params_file(tmp_path), "--run", tmp_path / "r", "--data", tmp_path]
    refusal(capsys, *words)


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant", ["pelap; touch RAN #", "a' ; touch RAN; '", "$(touch RAN)", "`touch RAN`", "a\ntouch RAN"]
)
def test_a_variants_name_is_no_command(tmp_path: Path, variant: str) -> None:
    for name in ("dvc.yaml", ".dvc", ".dvcignore", ".git", "pelap"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    text = (ROOT / "params.yaml").read_text()
    changed = text.replace(
        "  pelap: {sparsity_key: lambda}", f"  {json.dumps(variant)}: {{sparsity_key: lambda}}"
    )
    assert changed != text
    (tmp_path / "params.yaml").write_text(changed)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pelap").write_text("#!/bin/sh\nprintf '%s\\n' \"$@\" > given\nexit 2\n")
    (tmp_path / "bin" / "pelap").chmod(0o755)
    (tmp_path / "data" / "inputs").mkdir(parents=True)
    for name in ("digits.safetensors", "inputs/train.json"):
        (tmp_path / "data" / name).touch()
    path = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    words, environment = ["dvc", "repro", "-s", f"train@{variant}"], os.environ | {"PATH": path}
    subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert not (tmp_path / "RAN").exists()
    assert (tmp_path / "given").read_text() == f"train\n--variant={variant}\n"
