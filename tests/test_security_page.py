"""docs/security.md is a table of promises: each names tests that exist; and the promise of report.html itself."""

import ast
import copy
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from synthetic import make_dataset

from omniprep.data.dataset import PackedDataset
from omniprep.report.page import collect, page

PAGE = (ROOT / "docs" / "security.md").read_text()
NAMED = re.findall(r"`(tests/\w+\.py)::(\w+)`", PAGE)


def promises() -> list[list[str]]:
    """The rows of all tables that have a column "test": threat, promise, test."""
    rows, inside = [], False
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells == ["threat", "promise", "test"]:
            inside = True
        elif not cells:
            inside = False
        elif inside and set("".join(cells)) != {"-", " "} and set("".join(cells)) != {"-"}:
            rows.append(cells)
    return rows


def test_each_promise_names_a_test() -> None:
    rows = promises()
    assert len(rows) > 25 and all(len(row) == 3 and all(row) for row in rows)
    assert not [row[0] for row in rows if not re.search(r"`tests/\w+\.py::\w+`", row[2])]


@pytest.mark.parametrize(("path", "name"), sorted(set(NAMED)))
def test_named_tests_exist_and_run(path: str, name: str) -> None:
    functions = {
        node.name: node for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)
    }
    assert name in functions, f"{path} has no test {name}"
    marks = [ast.unparse(mark) for mark in functions[name].decorator_list]
    assert not [mark for mark in marks if re.search(r"mark\.(skip|xfail)\b", mark)], f"{name} does not run"


class Found(HTMLParser):
    """Elements and attributes of a page that run or load something."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


MARKUP = (
    "<script>alert(1)</script>", "</script><script>alert(2)</script>", '"><img src=x onerror=alert(3)>', "<!--", "--><b onclick=x>",
    "]]>", "$\\frac{a}{b}$", "javascript:alert(4)", "<iframe src=//evil>", "%%APP%%", "%%DATA%%", "\u2028alert(5)", "&lt;script&gt;",
)  # fmt: skip


@pytest.mark.parametrize("text", MARKUP)
def test_a_report_holds_no_markup_of_others(text: str, tmp_path: Path) -> None:
    """With one text wherever its maker chooses one: the elements of the page are those of an innocent dataset."""
    make_dataset(tmp_path / "data", 30)
    manifest = tmp_path / "data" / "manifest.json"
    counts = '{"rows": {"read": 30, "packed": 28, "rejected": 2}, "tokens": 9, "bins": 1}'
    manifest.write_text(manifest.read_text().replace('"format": 1', f'"format": 1, "counts": {counts}, "fill": 0.5', 1))
    (tmp_path / "data" / "rejected.jsonl").write_text("")
    data = collect(PackedDataset(tmp_path / "data"), None, shown=1)

    def elements(facts: dict[str, Any]) -> list[tuple[str, dict[str, str | None]]]:
        found = Found()
        made = page(facts)
        found.feed(made)
        assert "default-src 'none'" in made
        return [(tag, attrs) for tag, attrs in found.elements if tag in ("script", "iframe", "img", "object", "link", "base", "meta", "b")
                or any(name.startswith("on") or str(value).startswith("javascript:") for name, value in attrs.items())]  # fmt: skip

    hostile = copy.deepcopy(data)
    hostile |= {"name": text, "family": text, "model": text, "versions": {text: text}, "config": {text: text}}
    hostile["sources"] = [{**entry, "source": text} for entry in hostile["sources"]]
    hostile["rejects"] = {"codes": [{"code": text, "count": 1, "doc": text}], "examples": [
        {"source": text, "line": 1, "code": text, "message": text, "row": text}]}  # fmt: skip
    hostile["inputs"] = [{"source": text, "bytes": 1}]
    for entry in hostile["browser"]:
        for row in entry["rows"]:
            row["source"] = text
            for piece in row.get("pieces", []):
                if isinstance(piece, dict) and "text" in piece:
                    piece["text"] = text
    assert elements(hostile) == elements(data)
