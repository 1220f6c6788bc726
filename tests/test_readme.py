"""The README says what the committed results say."""

import re
import runpy


def test_the_tables_are_those_of_the_benchmarks(pytestconfig):
    text = (pytestconfig.rootpath / "README.md").read_text()
    tables = runpy.run_path(str(pytestconfig.rootpath / "benchmarks" / "tables.py"))
    assert tables["with_tables"](text) == text
    # Every table of figures stands under the name of its file.
    assert text.count("---:") and not re.search(r"(?<!-->\n)(?<!\|\n)^\|", text, re.MULTILINE)
