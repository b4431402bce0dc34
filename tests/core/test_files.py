"""What appears under its final name is complete, and nothing is lost."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from pelap.core import files
from pelap.core.errors import BusyError, DataError, PelapError
from pelap.core.replacing import is_folder, swap


def test_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path, folder = tmp_path / "a.json", tmp_path / "out"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, {"a": float("nan")})
    with pytest.raises(RuntimeError), files.atomic_path(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert files.read_json(path) == {"a": 1}
    with files.atomic_dir(folder) as partial:
        (partial / "one").touch()
    with pytest.raises(RuntimeError), files.atomic_dir(folder) as partial:
        (partial / "two").touch()
        raise RuntimeError
    assert sorted(str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*")) == [
        "a.json",
        "out",
        "out/one",
    ]


HOLD = "import sys; from pathlib import Path; from pelap.core import files\n"
HOLD += "with files.exclusive(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def test_second_process_in_one_folder_is_refused(tmp_path: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "out")], text=True, **pipes) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match="another pelap process"), files.exclusive(tmp_path / "out"):
            pass
        other.communicate("")
    with files.exclusive(tmp_path / "out"):
        pass


def test_tables_survive_exactly(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    table = pd.DataFrame({"name": ["a", "b"], "value": [0.1, 1 / 3]})
    files.write_csv(path, table)
    pd.testing.assert_frame_equal(files.read_csv(path), table, check_exact=True)
    names = {"class_name": ["NA", "001", "25"], "plan": ["25", "12.5", "007"], "value": [float("nan"), 1, 2]}
    files.write_csv(path, pd.DataFrame(names))
    read = files.read_csv(path)
    assert all(read[name].tolist() == names[name] for name in ("class_name", "plan"))
    assert read["value"].isna().tolist() == [True, False, False]
    with pytest.raises(DataError, match="lacks the columns score"):
        files.read_csv(path, ["value", "score"])


def test_files_have_the_mode_that_others_expect(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        files.save_tensors(tmp_path / "t.safetensors", {"x": torch.zeros(1)})
        with files.atomic_dir(tmp_path / "model") as partial:
            save_file({"x": torch.zeros(1)}, partial / "t.safetensors")
    finally:
        os.umask(umask)
    for path in (tmp_path / "t.safetensors", tmp_path / "model" / "t.safetensors"):
        assert path.stat().st_mode & 0o777 == 0o640


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    expected = pytest.raises(PelapError, match=r"out: cannot be written \(No space left")
    with expected, files.atomic_dir(tmp_path / "out"):
        raise SafetensorError("No space left on device")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("read", [files.read_json, files.read_csv, files.load_tensors])
def test_missing_and_broken_files_are_named_in_one_line(tmp_path: Path, read: object) -> None:
    path = tmp_path / "file"
    with pytest.raises(DataError, match="no such file"):
        read(path)  # type: ignore[operator]
    path.write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(DataError) as caught:
        read(path)  # type: ignore[operator]
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_word_among_numbers_is_named_with_its_place(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    for content, said in {
        "a,b\n1,2\n3,word\n": "row 2, column b: 'word' is not a number",
        "a,b\n1,2\n3,True\n": "row 2, column b: 'True' is not a number",
        "a,b\n1,True\n2,2\n3,False\n": "row 2, column b: '2' is not true or false",
        "a,demanded\n1,x\n2,y\n": "row 1, column demanded: 'x' is not a number",
    }.items():
        table.write_text(content)
        with pytest.raises(DataError, match=said):
            files.read_csv(table, ["demanded"] if "demanded" in content else [])
    table.write_text("operator,note,paper,b\nNA,x,near 0,\n001,y,1,2\n")
    assert files.read_csv(table)["b"].sum() == 2


@pytest.mark.parametrize(
    "content", ['{"a": NaN}', '{"a": -Infinity}', "[" * 100_000, '{"a": %s}' % ("9" * 5000)]
)
def test_json_that_is_none_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "file.json").write_text(content)
    with pytest.raises(DataError, match=r"file\.json: not valid JSON") as caught:
        files.read_json(tmp_path / "file.json")
    assert "\n" not in str(caught.value)


def test_unwritable_folder_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PelapError, match="cannot write here"):
        files.check_writable(tmp_path / "file" / "below")


def test_equal_tensors_are_equal_bytes(tmp_path: Path) -> None:
    """The library writes metadata in the order of a table that it seeds by chance."""
    metadata = {name: f'{name} "caf\u00e9"\n\u0001' for name in "hgfedcba"}
    tensors = {"b": torch.arange(4), "a": torch.randn(3, 2).T}
    written = set()
    for index in range(8):
        path = tmp_path / f"{index}.safetensors"
        files.save_tensors(path, tensors, metadata)
        written.add(path.read_bytes())
        loaded, found = files.load_tensors(path)
        assert found == metadata
        assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert len(written) == 1
    files.save_tensors(path, {"a": torch.ones(1)})
    assert files.load_tensors(path) == ({"a": torch.ones(1)}, {})


def test_a_folder_behind_a_link_is_replaced_and_a_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "disk" / "model").mkdir(parents=True)
    (tmp_path / "disk" / "model" / "old").touch()
    (tmp_path / "model").symlink_to(tmp_path / "disk" / "model")
    for name in ("new", "newer"):
        with files.atomic_dir(tmp_path / "model") as partial:
            (partial / name).touch()
        assert (tmp_path / "model").is_symlink()
        assert [path.name for path in (tmp_path / "disk" / "model").iterdir()] == [name]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(PelapError, match="file: is a file"), files.atomic_dir(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "model", "file"}


REPLACE = """
import os, signal, sys
from pathlib import Path
from pelap.core import files, replacing
can_swap, kill_at, final = sys.argv[1] == "True", int(sys.argv[2]), Path(sys.argv[3])
steps = 0
def step(do):
    def counted(*args, **options):
        global steps
        if steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        steps += 1
        return do(*args, **options)
    return counted
os.replace = step(os.replace)
replacing.swap = step(replacing.swap) if can_swap else lambda *args: False
files.shutil.rmtree = step(files.shutil.rmtree)
with files.atomic_dir(final) as partial:
    for name in ("a.json", "b.json"):
        (partial / name).write_text('{"is": "new"}')
"""


@pytest.mark.parametrize("can_swap", [True, False])
def test_killed_between_any_two_steps_a_folder_is_there_and_whole(tmp_path: Path, can_swap: bool) -> None:
    """With two renames for want of one that exchanges, the next reader puts it back."""
    if can_swap and not swappable(tmp_path):
        pytest.skip("this file system cannot exchange names")
    final, seen = tmp_path / "run" / "out", []
    for kill_at in range(9):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        final.mkdir(parents=True)
        for name in ("a.json", "b.json"):
            (final / name).write_text('{"is": "old"}')
        words = [sys.executable, "-c", REPLACE, str(can_swap), str(kill_at), str(final)]
        ended = subprocess.run(words, check=False).returncode
        missing = not final.exists()
        assert not (missing and can_swap)
        found = [files.read_json(final / name)["is"] for name in ("a.json", "b.json")]
        assert len({*found}) == 1
        seen.append((found[0], missing))
        with files.atomic_dir(final) as partial:
            (partial / "c").touch()
        assert [path.name for path in (tmp_path / "run").rglob("*")] == ["out", "c"]
        if ended == 0:
            break
    assert ended == 0
    assert seen[0] == ("old", False)
    assert seen[-1] == ("new", False)
    assert can_swap or ("old", True) in seen


def swappable(folder: Path) -> bool:
    for name in ("one", "other"):
        (folder / name).mkdir()
    return swap(folder / "one", folder / "other")


def test_names_are_exchanged(tmp_path: Path) -> None:
    if not swappable(tmp_path):
        pytest.skip("this file system cannot exchange names")
    (tmp_path / "one" / "in").touch()
    assert swap(tmp_path / "one", tmp_path / "other")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("in")] == ["other/in"]
    assert not swap(tmp_path / "one", tmp_path / "nowhere")


def test_whoever_looks_for_a_folder_finds_what_a_killed_command_moved_aside(tmp_path: Path) -> None:
    for look in (is_folder, lambda path: files.read_json(path / "in" / "a.json")):
        (tmp_path / ".out.old" / "in").mkdir(parents=True)
        files.write_json(tmp_path / ".out.old" / "in" / "a.json", 1)
        assert look(tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        shutil.rmtree(tmp_path / "out")
    assert not is_folder(tmp_path / "out")
