"""Risk: a page that walks a newcomer through files that are gone, or functions that have other names.

docs/architecture.md follows one row and one bin through the files of the package, and lists the layers.
"""

import ast
import re
from pathlib import Path

import pytest
from test_layers import LAYERS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
WALKS = ("One row, from the command line to its bytes", "One bin, from its bytes to the forward pass")


def table(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    section = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[2:]]


def quoted(text: str) -> list[str]:
    return re.findall("`([^`]+)`", text)


def defined(path: Path) -> set[str]:
    """Functions of a module, and methods as Class.method."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        names |= {node.name} if isinstance(node, ast.FunctionDef) else set()
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return names


@pytest.mark.parametrize("walk", WALKS)
def test_the_walks_name_at_most_eight_files_and_functions_that_they_hold(walk):
    rows = table(walk)
    files = [quoted(cells[0])[0] for cells in rows]
    assert 3 < len(files) <= 8 and len(set(files)) == len(files)
    for cells in rows:
        (file,) = quoted(cells[0])
        functions = quoted(cells[1])
        assert functions and set(functions) <= defined(ROOT / file), file


def test_other_files_and_classes_of_the_walks_exist():
    classes = {
        node.name
        for path in (ROOT / "omniprep").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }
    text = "".join(PAGE.split(f"## {walk}\n", 1)[1].split("\n## ", 1)[0] for walk in WALKS)
    named = re.findall(r"`([A-Z]\w+)`", text)
    assert len(named) > 10 and set(named) <= classes
    doors = re.findall(r"`(\w+(?:\.\w+)?)`(?: and `(\w+(?:\.\w+)?)`)?[\s]+\((\w+/[\w/]+\.py)\)", text)
    assert len(doors) >= 4
    for *functions, file in doors:
        assert set(filter(None, functions)) <= defined(ROOT / "omniprep" / file), file


def test_the_layers_are_those_that_the_imports_are_held_to():
    shown: dict[int, set[str]] = {}
    for number, package, *_ in table("Where things are"):
        shown.setdefault(int(number), set()).update(name.strip("/").removesuffix(".py") for name in quoted(package))
    assert [shown[number] for number in sorted(shown)] == [set(layer.split()) for layer in LAYERS]
