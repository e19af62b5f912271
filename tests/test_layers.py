"""Which package may import which: layers from the bottom up, as docs/architecture.md shows them. A stranger who knows
one layer then knows everything that it can depend on.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "omniprep"

LAYERS = (
    "child_process errors garbage lru modalities printable user_cache",
    "io progress",
    "rows",  # below the options, which check --columns by the names that rows may have
    "config bars",
    "packing observe",
    "media",
    "template",
    "shards",
    "families",
    "registry data",
    "adapters testing",
    "inspect",
    "report",
    "compiler",
    "verify",
    "export",
    "doctor",
    "train",
    "hub",
    "cli",
)
"""A package imports from itself and from layers above it in this list."""

RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer.split()}


def imported(source: Path) -> Iterator[str]:
    """First name below `omniprep` of every import in a file, those inside functions too."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""] if node.module != "omniprep" else [f"omniprep.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "omniprep" and len(parts) > 1:
                yield parts[1]


def violations() -> list[str]:
    """Imports that run upwards: "rows/sources.py imports compiler"."""
    found = []
    for source in sorted(PACKAGE.rglob("*.py")):
        where = source.relative_to(PACKAGE)
        package = where.parts[0].removesuffix(".py")
        if package in {"__init__", "__main__"}:
            continue
        for name in imported(source):
            if name in RANK and RANK[name] >= RANK[package] and name != package:
                found.append(f"{where} imports {name}")
    return found


def modules() -> dict[str, set[str]]:
    """Module -> modules of the package that it imports when it is loaded (not inside functions)."""
    graph: dict[str, set[str]] = {}
    known = {
        ".".join(("omniprep", *p.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for p in PACKAGE.rglob("*.py")
    }
    for source in PACKAGE.rglob("*.py"):
        name = ".".join(("omniprep", *source.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        graph[name] = set()
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    graph[name].add(full if full in known else node.module)
            elif isinstance(node, ast.Import):
                graph[name].update(alias.name for alias in node.names)
        graph[name] &= known - {name}
    return graph


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Sets of modules that import one another, each reachable from each."""
    reach = {name: {name} for name in graph}
    changed = True
    while changed:
        changed = False
        for name, targets in graph.items():
            more = set().union(*(reach[target] for target in targets)) if targets else set()
            if not more <= reach[name]:
                reach[name] |= more
                changed = True
    groups = {frozenset(other for other in reach[name] if name in reach[other]) for name in graph}
    return [set(group) for group in groups if len(group) > 1]


def test_every_package_has_a_layer() -> None:
    names = {p.relative_to(PACKAGE).parts[0].removesuffix(".py") for p in PACKAGE.rglob("*.py")}
    assert names - {"__init__", "__main__"} == set(RANK)


def test_no_import_runs_upwards() -> None:
    assert violations() == []


def test_no_modules_import_one_another() -> None:
    assert circles(modules()) == []


def test_no_module_is_longer_than_400_lines() -> None:
    long = {str(p): n for p in PACKAGE.rglob("*.py") if (n := len(p.read_text().splitlines())) > 400}
    assert long == {}
