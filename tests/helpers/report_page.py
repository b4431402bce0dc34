"""Reading the page of a run back, for tests."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from synthetic_run import VARIANTS

from pelap.core.paths import RunPaths
from pelap.report.data import RunData, read_run


class Page(HTMLParser):
    """Attributes, identifiers and all text of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.feed(source.split("<style>")[0] + source.split("</style>")[1])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())

    def sources(self, tag: str) -> list[str]:
        return [value for found, name, value in self.attributes if (found, name) == (tag, "src")]

    def table(self, name: str) -> dict[str, list[str]]:
        """Cells by row."""
        text = self.source[self.source.index(f'<table id="{name}">') :].split("</table>")[0]
        rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', text, re.DOTALL)
        return {
            re.sub(r"<.*?>", "", row).strip(): re.findall(r"<td>(.*?)</td>", cells, re.DOTALL)
            for row, cells in rows
        }


def context(paths: RunPaths, variants: tuple[str, ...] = VARIANTS) -> Any:
    params = SimpleNamespace(dataset="photos", seed=0, variants=dict.fromkeys(variants))
    return SimpleNamespace(params=params, paths=paths)


def load(paths: RunPaths, variants: tuple[str, ...] = VARIANTS) -> RunData:
    return read_run("photos", 0, variants, paths)


def page_of(paths: RunPaths) -> Page:
    return Page(paths.report_page.read_text(encoding="utf-8"))


def without_report(paths: RunPaths, target: Path) -> RunPaths:
    """A copy of the inputs, to damage."""
    shutil.copytree(paths.root, target, ignore=shutil.ignore_patterns("report", ".*"))
    return RunPaths(target)
