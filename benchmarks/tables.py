"""Writes the tables of README.md and of docs/ anew, from what the benchmarks left in CSV.

    python benchmarks/tables.py

Each table stands under a comment that names its file and columns; a test holds them together.
"""

import csv
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
# A table whose file is not there yet stays as it is.
_TABLE = re.compile(r"<!-- (\S+\.csv): (.+?) -->\n(?:\|.*\n)*")


def table(path: str, columns: list[str]) -> str:
    """Some columns of a CSV file as a Markdown table; the first is text, the others numbers."""
    with open(ROOT / path, newline="") as file:
        headers, *rows = csv.reader(file)
    places = [headers.index(column) for column in columns]
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1)]
    lines += [[row[place] for place in places] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def with_tables(text: str) -> str:
    """The README with every table as its CSV file has it."""

    def filled(found: re.Match[str]) -> str:
        if not (ROOT / found[1]).exists():
            return found[0]
        return f"<!-- {found[1]}: {found[2]} -->\n{table(found[1], found[2].split(', '))}"

    return _TABLE.sub(filled, text)


if __name__ == "__main__":
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        page.write_text(with_tables(page.read_text()))
