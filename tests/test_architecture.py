"""ARCHITECTURE.md, read as rules: each module is on one floor, imports go down, in no circle."""

import ast
import functools
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tfdwd"


def floors():
    """{module: number of its floor}, 0 at the top."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")][2:]
    return {
        module.strip(): number for number, row in enumerate(rows) for module in row[2].split(",")
    }


def files():
    """{file: its module or package at the top of tfdwd}."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        top = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if top != "__init__":
            found[path] = top
    return found


def imported(path):
    """Names of the modules of tfdwd that a file imports, anywhere but for type checkers."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "tfdwd":
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tfdwd."):
            yield node.module.split(".")[1]


@functools.cache
def graph():
    """{module: the others that it imports}."""
    found = {}
    for path, module in files().items():
        others = {name for name in imported(path) if name in set(files().values())}
        found.setdefault(module, set()).update(others - {module})
    return found


def test_each_module_is_on_one_floor():
    assert sorted(floors()) == sorted(set(files().values()))


def test_imports_go_down_in_no_circle():
    level = floors()
    up = [
        (module, other)
        for module, others in graph().items()
        for other in others
        if level[other] < level[module]
    ]
    assert not up
    # Not even inside of functions do two modules import each other.
    graphlib.TopologicalSorter(graph()).prepare()


def reached(module):
    found, todo = set(), [module]
    while todo:
        for other in graph()[todo.pop()] - found:
            found.add(other)
            todo.append(other)
    return found


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("decomposition", {"lite", "conversion", "benchmarking", "times"}),
        ("factorize", {"graph", "rebuild", "execution", "calibration"}),
        ("choice", {"graph", "lite", "execution"}),
    ],
)
def test_walls(module, never):
    assert not reached(module) & never


def test_each_module_says_its_job_in_its_first_line():
    for path in PACKAGE.rglob("*.py"):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        first = text.splitlines()[0] if text else ""
        assert len(first) > 15 and first[-1] in ".:", path
