"""docs/robustness.md: each line of its table names tests that are there, each kind has a line."""

import ast
import re

import pytest


@pytest.fixture(scope="module")
def rows(pytestconfig: pytest.Config) -> list[list[str]]:
    text = (pytestconfig.rootpath / "docs/robustness.md").read_text()
    table = re.search(r"^\| kind \|.*\n\| ---.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in table[1].splitlines()
    ]


def test_every_line_names_tests_that_exist(rows: list[list[str]], pytestconfig) -> None:
    names = {
        path.name: {
            node.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef)
        }
        for path in (pytestconfig.rootpath / "tests").glob("test_*.py")
    }
    for kind, situation, result, tests in rows:
        assert kind and situation and result
        found = re.findall(r"`(test_\w+\.py)::(test_\w+)`", tests)
        assert found, situation
        for file, name in found:
            assert name in names[file], f"{situation}: no {name} in {file}"
