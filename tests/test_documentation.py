"""Python in README, docs and examples runs, with tiny pipelines in the place of what readers bring."""

import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import parts
import pytest
import torch
from tiny import ROOT
from tiny_pipelines import PROMPTS, tiny_stable_diffusion

import pelap
from pelap.report.tables import MINUS
from workflow import docs

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHOWN = [page for page in PAGES if BLOCK.search(page.read_text())]
FEW = {
    "score": {"num_latents": 4, "steps": 2, "latency_batch_size": 1, "latency_repeats": 3},
    "make_plan": {"time_reduction": None, "num_operators": 2},
    "distill": {"steps": 2, "batch_size": 8, "num_validation": 4},
    "evaluate": {"steps": 2, "num_images": 8, "num_reference": 16, "latency_repeats": None},
    "sample": {"steps": 2},
}
"""What is asked for instead: the calls are those shown, at a size of seconds."""
EXAMPLES = ROOT / "examples"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of `pelap` with settings for a test laid over those that are shown."""

    def lessened(name: str) -> Any:
        call = getattr(pelap, name)
        return lambda *args, **kwargs: call(*args, **(kwargs | FEW[name]))

    calls = {name: lessened(name) for name in FEW}
    for name, call in calls.items():
        monkeypatch.setattr(pelap, name, call, raising=False)


@pytest.fixture
def tiny_pipeline(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The examples' module, whose pipeline is hardly trained."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    sys.modules.pop("tiny_pipeline", None)
    module = __import__("tiny_pipeline")
    monkeypatch.setattr(module, "STEPS", 1)
    save = module.save_pictures
    monkeypatch.setattr(module, "save_pictures", lambda folder: save(folder, 32, 8))
    return module


@pytest.mark.slow
@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("page", SHOWN, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(
    page: Path, tmp_path: Path, tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One block after the other, as a reader would; beforehand there are pipelines, pictures and prompts."""
    monkeypatch.chdir(tmp_path)
    for name in ("my-sd", "my-sd-small"):
        tiny_stable_diffusion().save_pretrained(name)
    tiny_pipeline.save_pictures(Path("pictures"))
    names: dict[str, Any] = {"prompts": PROMPTS}
    for number, block in enumerate(BLOCK.findall(page.read_text()), start=1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)


def cells() -> list[dict[str, Any]]:
    notebook = json.loads((EXAMPLES / "prune_your_pipeline.ipynb").read_text())
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
@pytest.mark.usefixtures("few", "tiny_pipeline")
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells(), start=1):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert pelap.load_pipeline(tmp_path / "my-pipeline-fast") is not None


def test_the_notebook_keeps_what_a_run_gave() -> None:
    kinds = [set(output["data"]) for cell in cells() for output in cell["outputs"] if "data" in output]
    assert sum("text/html" in kind for kind in kinds) >= 3  # scores, plan, result
    assert any("image/png" in kind for kind in kinds)
    assert not [output for cell in cells() for output in cell["outputs"] if output["output_type"] == "error"]


@pytest.mark.slow
@pytest.mark.usefixtures("few", "tiny_pipeline")
def test_the_script_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "prune_your_pipeline.py"))
    assert "plan of 2 operators" in capsys.readouterr().out
    assert pelap.load_pipeline("my-pipeline-fast") is not None


def test_the_examples_pictures_are_of_two_classes(tiny_pipeline: Any) -> None:
    pictures, labels = tiny_pipeline.draw(6, seed=0)
    assert pictures.shape == (6, 3, 16, 16)
    assert labels.tolist() == [0, 1] * 3
    assert pictures.abs().max() <= 1
    assert torch.equal(tiny_pipeline.draw(6, seed=0)[0], pictures)


@pytest.mark.parametrize("page", docs.PAGES, ids=lambda page: page.stem)
def test_tables_and_marks_are_those_of_the_results(page: Path) -> None:
    """``python -m workflow.docs`` writes the tables."""
    assert docs.up_to_date(page) == page.read_text(encoding="utf-8")
    assert list(docs.wrong_marks(page)) == []


@pytest.fixture
def page_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Of a text a page, of which a file of two rows is the results."""
    monkeypatch.setattr(docs.results, "RESULTS", tmp_path)
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "rows.csv").write_text(
        "name,of,lost_mean,lost_std,verdict\n"
        'a,1,-1.46,2.98,worse\nb c,2,1234.5,0.1,"worse, by less than the margin"\n'
    )

    def write(text: str) -> Path:
        page = tmp_path / "page.md"
        page.write_text(text, encoding="utf-8")
        return page

    return write


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("+9.9 ± 9.9<!-- study/rows lost name=a -->", f"{MINUS}1.5 ± 3.0"),
        ("about 9.99<!-- study/rows lost_mean of=1 -->", f"about {MINUS}1.46"),
        ("+1 ± 1 %<!-- study/rows lost name=b+c of=2 -->", "+123,450 ± 10 %"),
        ("1.0<!-- study/rows lost_mean name=b+c -->", "1,234.5"),
    ],
)
def test_a_marked_number_is_made_anew(page_of: Callable[[str], Path], old: str, new: str) -> None:
    page = page_of(f"It is {old}, on average.")
    (mark,) = re.findall("<!--.*-->", old)
    assert docs.up_to_date(page) == f"It is {new}{mark}, on average."
    page.write_text(docs.up_to_date(page), encoding="utf-8")
    assert docs.up_to_date(page) == page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("worse<!-- study/rows verdict name=a -->", None),
        ("better<!-- study/rows verdict name=a -->", "better is worse in"),
        ("worse<!-- study/rows verdict name=a,b+c -->", "worse is worse, by less than the margin in"),
        ("worse, by less than the margin<!-- study/rows verdict name=b+c -->", None),
        ("fine<!-- study/rows verdict name=a -->", "1 marks are behind nothing"),
    ],
)
def test_a_marked_verdict_is_that_of_its_rows(
    page_of: Callable[[str], Path], text: str, wrong: str | None
) -> None:
    page = page_of(f"It is {text}.")
    problems = list(docs.wrong_marks(page))
    assert len(problems) == (wrong is not None)
    assert wrong is None or wrong in problems[0]
    assert docs.up_to_date(page) == page.read_text(encoding="utf-8")


@pytest.mark.parametrize("keys", ["name=d", "name=a,b+c", "verdict=worse of=2"])
def test_a_mark_of_no_row_is_refused(page_of: Callable[[str], Path], keys: str) -> None:
    with pytest.raises(ValueError, match=r"study/rows\.csv: 0 rows have"):
        docs.up_to_date(page_of(f"It is 1.5<!-- study/rows lost_mean {keys} -->."))


def test_a_table_is_made_anew(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- table: choosing_ways amount=35 methods=knapsack -->\nyesterday\n<!-- end -->\n")
    assert "knapsack of measured milliseconds | " in docs.up_to_date(page)
    assert "yesterday" not in docs.up_to_date(page)


@pytest.mark.parametrize(("num", "rows"), [(4096, 8), (32, 0)])
def test_the_table_of_what_a_score_sees(num: int, rows: int) -> None:
    """That of ``benchmarks/parts.py``, to its last digit; of 32 latents the page names two values."""
    made = parts.table(num, 0.3, 0)
    text = (ROOT / "docs" / "choosing.md").read_text()
    shown = re.findall(rf"^\| ({'|'.join(map(re.escape, made.index))}) \| (.*) \|$", text, re.MULTILINE)
    for name, cells in shown[:rows]:
        assert [float(cell) for cell in cells.split(" | ")] == pytest.approx(list(made.loc[name]), abs=0.011)
    noise = made.loc["noise added (more spread)"]
    assert rows in (0, len(shown))
    assert rows or f"score of {noise['avg+std']:.2f} instead of 0.40" in text
    assert rows or f"debiased score says {noise['avg+std, debiased']:.2f}" in text
