"""README.md and docs/ say what the committed results say, and link to what is there."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_are_those_of_the_benchmarks(page: Path) -> None:
    tables = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
    text = page.read_text()
    assert tables["with_tables"](text) == text


def test_every_table_of_figures_stands_under_the_name_of_its_file() -> None:
    for page in ROOT / "README.md", ROOT / "docs/results.md":
        text = page.read_text()
        tables = re.findall(r"(<!-- \S+ .* -->\n)?\|.*\n\| ---.*---:", text)
        assert tables and all(tables), page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_what_is_there(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        path, _, heading = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            names = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]
            assert heading in names, target
