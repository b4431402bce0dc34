"""A key knows all that numbers depend on, and nothing else."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from tiny import tiny_dataset, tiny_params
from tiny_pipelines import unet2d

from pelap.core.keys import _sources, key


def mended_by_hand() -> DDIMScheduler:
    scheduler = DDIMScheduler()
    scheduler.alphas_cumprod = scheduler.alphas_cumprod * 0.5
    return scheduler


OTHERS: dict[str, tuple[Callable[[], Any], list[Callable[[], Any]]]] = {
    "scheduler": (
        DDIMScheduler,
        [
            lambda: DDIMScheduler(prediction_type="v_prediction"),
            lambda: DDIMScheduler(beta_end=0.012),
            lambda: DDIMScheduler(timestep_spacing="trailing"),
            EulerDiscreteScheduler,
            mended_by_hand,
        ],
    ),
    "network": (lambda: unet2d(3), [lambda: unet2d(3).double(), lambda: unet2d(3, act_fn="gelu")]),
    "section": (lambda: tiny_params().distill, [lambda: tiny_params(distill__lr=3e-4).distill]),
    "data": (
        tiny_dataset,
        [
            lambda: replace(tiny_dataset(), class_names=("odd", "even")),
            lambda: tiny_dataset(num_test=17),
            lambda: tiny_dataset(side=8),
        ],
    ),
    "tensor": (lambda: torch.zeros(4), [lambda: torch.zeros(2, 2), lambda: torch.zeros(4).double()]),
    "plain": (
        lambda: [1, {"a": None}],
        [lambda: [1.5, {"a": None}], lambda: [1, {"a": 0}], lambda: [{"a": None}, 1]],
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_equal_values_have_equal_keys_and_others_have_others(kind: str) -> None:
    make, others = OTHERS[kind]
    names = []
    for each in (make, make, *others):
        torch.manual_seed(0)
        names.append(key(it=each()).name)
    assert names[0] == names[1]
    assert len(set(names)) == len(others) + 1


def test_the_parts_that_differ_are_named() -> None:
    mine = key(seed=0, data="a", code="b")
    assert mine.differences(key(seed=0, data="a", code="b").parts) == []
    assert mine.differences(key(seed=1, data="a", more="c").parts) == ["seed", "code", "more"]


def test_what_has_no_known_value_is_no_part_of_a_key() -> None:
    with pytest.raises(TypeError, match="object"):
        key(it=object())


def test_files_count_with_their_content(tmp_path: Path) -> None:
    folder, linked = tmp_path / "folder", tmp_path / "elsewhere"
    folder.mkdir()
    linked.mkdir()
    names = []
    for text in ("a", "b"):
        (folder / "file").write_text(text)
        names.append([key(it=path).name for path in (folder / "file", folder, tmp_path / "none")])
    assert [a == b for a, b in zip(*names, strict=True)] == [False, False, True]
    (folder / "link").symlink_to(linked)
    alone = key(it=folder).name
    (linked / "more").write_text("c")
    assert key(it=folder).name != alone


SOURCES = {
    "work.py": "import asked, json, torch\nfrom parts import shapes\nfrom parts.colours import red\n",
    "parts/__init__.py": "",
    "parts/shapes.py": "from . import sizes\n",
    "parts/sizes.py": "def side():\n    import deep\n    return deep.SIDE\n",
    "parts/colours.py": "red = 1\n",
    "parts/unused.py": "x = 1\n",
    "asked.py": "from importlib import import_module\nname = import_module(f'rooms.{1}')\n",
    "rooms/__init__.py": "",
    "rooms/attic.py": "",
    "deep.py": '"""Words."""\nfrom plain import other, helper\nSIDE = 1  # a side\n',
    "plain/helper.py": "def help_out(): ...\n",  # in a folder that says nothing of being a package
    "plain/other.py": "",
}


EDITS = [
    ("work.py", SOURCES["work.py"] + "x = 1\n", True),
    ("parts/__init__.py", "x = 1\n", True),
    ("parts/colours.py", "red = 2\n", True),
    ("plain/helper.py", "help_out = None\n", True),
    ("plain/other.py", "x = 1\n", True),
    ("deep.py", SOURCES["deep.py"].replace("1", "2"), True),  # three imports away, inside a function
    ("deep.py", SOURCES["deep.py"].replace("Words", "Others").replace("  # a side", ""), False),
    ("rooms/attic.py", "x = 1\n", True),  # of a package that is imported by a computed name
    ("parts/unused.py", "x = 2\n", False),
]
ASK = """
import json, sys
from pathlib import Path
from pelap.core.keys import code_of
for file, text, _ in json.loads(sys.argv[1]):
    before, written = code_of("work"), Path(file).read_text()
    Path(file).write_text(text)
    print(code_of("work") != before)
    Path(file).write_text(written)
"""


def test_code_counts_with_all_that_it_imports(tmp_path: Path) -> None:
    for name, source in SOURCES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    command = [sys.executable, "-B", "-c", ASK, json.dumps(EDITS)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(changes) for *_, changes in EDITS]


def test_the_code_of_a_stage_is_all_of_the_package_that_it_imports() -> None:
    found = _sources("pelap.stages.train").keys()
    assert {
        "pelap.training.joint",
        "pelap.models.mask",
        "pelap.diffusion.loss",
        "torch",
        "diffusers",
    } <= found
    assert not {name for name in found if name.startswith(("pelap.report", "pelap.evaluation", "json"))}
