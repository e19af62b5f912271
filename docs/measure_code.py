"""The numbers of docs/architecture.md about the code: `python docs/measure_code.py FOLDER`, a folder of Python files.

Of another version: `git archive COMMIT omniprep | tar -x -C /tmp/before`, then `python docs/measure_code.py
/tmp/before/omniprep`. Comment lines are lines with nothing but a comment. Local names are those that functions assign.
Arguments are counted without self and cls.
"""

import ast
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    """All functions of a module, methods and nested ones too."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def argument_count(function: Function) -> int:
    """Named arguments without self and cls."""
    given = function.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def local_names(function: Function) -> set[str]:
    """Names that a function assigns."""
    stored = (node for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    return {node.id for node in stored}


def measure(folder: Path) -> dict[str, str]:
    """The numbers of a folder, by what they are called in the page."""
    texts = {path: path.read_text() for path in sorted(folder.rglob("*.py"))}
    lines = {path: text.splitlines() for path, text in texts.items()}
    found = [(path, function) for path, text in texts.items() for function in functions(ast.parse(text))]
    lengths = [len(part) for part in lines.values()]
    comments = sum(line.lstrip().startswith("#") for part in lines.values() for line in part)
    names = [len(name) for _, function in found for name in local_names(function)]
    path, longest = max(found, key=lambda entry: argument_count(entry[1]))
    owner = next(
        (f"{node.name}." for node in ast.walk(ast.parse(texts[path])) if isinstance(node, ast.ClassDef)
         and any(isinstance(part, Function) and part.lineno == longest.lineno for part in node.body)), ""
    )  # fmt: skip
    return {
        "files": f"{len(lengths)}",
        "lines": f"{sum(lengths):,}",
        "median file": f"{statistics.median(lengths):g}",
        "longest file": f"{max(lengths)}",
        "comment lines": f"{100 * comments / sum(lengths):.1f} %",
        "mean local name": f"{statistics.mean(names):.1f}",
        "longest argument list": f"{argument_count(longest)} ({owner}{longest.name})",
        "functions of more than 6 arguments": f"{sum(argument_count(function) > 6 for _, function in found)}",
    }


if __name__ == "__main__":
    for name, value in measure(Path(sys.argv[1])).items():
        print(f"{name}: {value}")
