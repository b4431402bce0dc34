"""A key knows all that numbers depend on, and nothing else."""

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

from pelap.core.keys import code_of, key


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
    torch.manual_seed(0)
    value = key(it=make())
    torch.manual_seed(0)
    assert key(it=make()).name == value.name
    names = []
    for other in others:
        torch.manual_seed(0)
        names.append(key(it=other()).name)
    assert len({value.name, *names}) == len(others) + 1


def test_the_parts_that_differ_are_named() -> None:
    mine = key(seed=0, data="a", code="b")
    assert mine.differences(key(seed=0, data="a", code="b").parts) == []
    assert mine.differences(key(seed=1, data="a", more="c").parts) == ["seed", "code", "more"]


def test_what_has_no_known_value_is_no_part_of_a_key() -> None:
    with pytest.raises(TypeError, match="object"):
        key(it=object())


def test_files_count_with_their_content(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    file = tmp_path / "folder" / "file"
    file.write_text("a")
    before = [key(it=path).name for path in (file, tmp_path / "folder", tmp_path / "none")]
    file.write_text("b")
    after = [key(it=path).name for path in (file, tmp_path / "folder", tmp_path / "none")]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, False, True]
    linked = tmp_path / "elsewhere"
    linked.mkdir()
    (tmp_path / "folder" / "link").symlink_to(linked)
    alone = key(it=tmp_path / "folder").name
    (linked / "more").write_text("c")
    assert key(it=tmp_path / "folder").name != alone


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


@pytest.mark.parametrize(
    ("file", "text", "changes"),
    [
        ("work.py", SOURCES["work.py"] + "x = 1\n", True),
        ("parts/__init__.py", "x = 1\n", True),
        ("parts/colours.py", "red = 2\n", True),
        ("plain/helper.py", "help_out = None\n", True),
        ("plain/other.py", "x = 1\n", True),
        ("deep.py", SOURCES["deep.py"].replace("1", "2"), True),  # three imports away, inside a function
        ("deep.py", SOURCES["deep.py"].replace("Words", "Others").replace("  # a side", ""), False),
        ("rooms/attic.py", "x = 1\n", True),  # of a package that is imported by a computed name
        ("parts/unused.py", "x = 2\n", False),
    ],
)
def test_code_counts_with_all_that_it_imports(tmp_path: Path, file: str, text: str, changes: bool) -> None:
    for name, source in SOURCES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)

    def code() -> str:
        ask = "from pelap.core.keys import code_of; print(code_of('work'))"
        done = subprocess.run(
            [sys.executable, "-B", "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout

    before = code()
    (tmp_path / file).write_text(text)
    assert (code() != before) == changes


def test_the_code_of_a_stage_is_all_of_the_package_that_it_imports() -> None:
    from pelap.core.keys import _sources

    found = _sources("pelap.stages.train")
    assert {
        "pelap.training.joint",
        "pelap.models.mask",
        "pelap.models.schedule",
        "torch",
        "diffusers",
    } <= found.keys()
    assert not {name for name in found if name.startswith(("pelap.report", "pelap.evaluation", "json"))}
    assert code_of("pelap.stages.train") != code_of("pelap.stages.score")
