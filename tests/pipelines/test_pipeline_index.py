"""A stranger's pipeline folder: no code of it runs, and what its settings break is told in one line."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import PROMPTS, tiny_ddim, tiny_stable_diffusion

from pelap.core.errors import ModelError
from pelap.pipelines.latent import LatentPipeline
from pelap.pipelines.pipeline_io import load_pipeline, save_pipeline


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


MINE = ["mine", "DDIMScheduler"]
FOREIGN: dict[str, tuple[dict[str, Any], str, str]] = {
    # what the index says, the file with code, and why it is refused
    "class": ({"_class_name": MINE}, "mine.py", "is of a class of its own"),
    "class that loads other folders": (
        {"_class_name": "KandinskyCombinedPipeline"},
        "mine.py",
        "class of its own",
    ),
    "class of Python": ({"_class_name": "system"}, "mine.py", "is of a class of its own"),
    "part": ({"scheduler": MINE}, "scheduler/mine.py", "is of mine, and code that comes with a"),
    "part beside the index": ({"scheduler": MINE}, "mine.py", "is of mine, and code"),
    "module that is installed": ({"scheduler": ["mine_installed", "DDIMScheduler"]}, "mine.py", "and code"),
    "module of diffusers": ({"scheduler": ["diffusers.utils", "DDIMScheduler"]}, "mine.py", "and code"),
    "under a known name": ({}, "scheduler/diffusers.py", "diffusers.py: code that comes with a folder"),
    "beside the weights": ({}, "unet/unet.py", "unet.py: code that comes with a folder"),
    "part of no pipeline": ({"_x": MINE}, "_x/mine.py", "is no part of a pipeline"),
    "part elsewhere": ({"../x": ["diffusers", "DDIMScheduler"]}, "mine.py", "is no part of a pipeline"),
    "of three": ({"scheduler": [*MINE, "mine"]}, "mine.py", "is no part of a pipeline"),
    "another pipeline": ({"scheduler": ["diffusers", "DDIMPipeline"]}, "mine.py", "is no network, scheduler"),
    "function": ({"scheduler": ["diffusers", "logging"]}, "mine.py", "is no network, scheduler"),
    "class that asks": ({"scheduler": ["transformers", "AutoModel"]}, "mine.py", "is no network, scheduler"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_code_in_a_folder_is_not_run(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change, place, said = FOREIGN[case]
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w').close()\nfrom diffusers import *\n"
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine_installed.py").write_text(code)
    save_pipeline(tiny_ddim(), tmp_path / "pipe")
    (tmp_path / "pipe" / place).parent.mkdir(exist_ok=True)
    (tmp_path / "pipe" / place).write_text(code)
    edit_json(tmp_path / "pipe/model_index.json", **change)
    with pytest.raises(ModelError, match=said) as caught:
        load_pipeline(tmp_path / "pipe")
    assert "\n" not in str(caught.value)
    assert not ran.exists()
    assert "mine_installed" not in sys.modules


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("text_encoder/config.json", {"auto_map": {"AutoModel": "mine.Mine"}}),
        ("text_encoder/config.json", {"_attn_implementation": "somebody/kernel"}),
        ("tokenizer/tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["mine.Mine", None]}}),
        ("unet/config.json", {"trust_remote_code": True}),
    ],
)
def test_settings_that_ask_for_code_are_refused(tmp_path: Path, file: str, change: dict[str, Any]) -> None:
    save_pipeline(tiny_stable_diffusion(), tmp_path / "pipe")
    edit_json(tmp_path / "pipe" / file, **change)
    with pytest.raises(ModelError, match=f"{file}: {next(iter(change))}: asks for code"):
        load_pipeline(tmp_path / "pipe")


WRONG_SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("unet/config.json", {"norm_eps": -1e-5}),
    ("unet/config.json", {"norm_eps": 2.0}),
    ("unet/config.json", {"mid_block_scale_factor": 1e12}),
    ("unet/config.json", {"block_out_channels": [8, 10**9]}),
    ("unet/config.json", {"block_out_channels": [8, 10**30]}),
    ("unet/config.json", {"layers_per_block": 100_000}),
    ("unet/config.json", {"sample_size": 10**6}),
    ("unet/config.json", {"sample_size": "../x"}),
    ("unet/config.json", {"act_fn": [None]}),
    ("unet/config.json", {"time_embedding_type": {}}),
    ("unet/config.json", {"freq_shift": "["}),
    ("vae/config.json", {"scaling_factor": 1e12}),
    ("vae/config.json", {"scaling_factor": 0}),
    ("vae/config.json", {"shift_factor": -1e12}),
    ("vae/config.json", {"latents_std": [1e12, 1.0, 1.0, 1.0]}),
    ("vae/config.json", {"mid_block_add_attention": False}),
    ("scheduler/scheduler_config.json", {"beta_end": 7}),
    ("scheduler/scheduler_config.json", {"beta_start": -0.1}),
    ("scheduler/scheduler_config.json", {"trained_betas": [0.1, -0.1]}),
    ("scheduler/scheduler_config.json", {"trained_betas": {}}),
    ("scheduler/scheduler_config.json", {"prediction_type": [None]}),
    ("scheduler/scheduler_config.json", {"timestep_spacing": "x"}),
    ("text_encoder/config.json", {"layer_norm_eps": 1e12}),
    ("text_encoder/config.json", {"hidden_act": {}}),
]


@pytest.mark.parametrize(("file", "change"), WRONG_SETTINGS, ids=str)
def test_settings_that_no_network_was_made_with_are_one_line(
    tmp_path: Path, file: str, change: dict[str, Any]
) -> None:
    """Whatever the libraries make of them: an error of any type, or pictures of nothing."""
    save_pipeline(tiny_stable_diffusion(), tmp_path / "pipe")
    edit_json(tmp_path / "pipe" / file, **change)
    with pytest.raises(ModelError) as caught:
        LatentPipeline(load_pipeline(tmp_path / "pipe"), 2, PROMPTS).denoise(torch.zeros(1, 4, 8, 8), [0], 0)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "pipe") in str(caught.value)


def test_a_setting_that_is_no_number_of_json_is_refused(tmp_path: Path) -> None:
    save_pipeline(tiny_ddim(), tmp_path / "pipe")
    config = tmp_path / "pipe/unet/config.json"
    for number in ("NaN", "-Infinity", "1e999"):
        config.write_text(re.sub(r'"norm_eps": [^,]+', f'"norm_eps": {number}', config.read_text()))
        with pytest.raises(ModelError, match=r"config\.json: .*(NaN|Infinity|inf)"):
            load_pipeline(tmp_path / "pipe")
