"""How Sphinx builds the documentation: `make docs`.

Sphinx, because it imports the package, so that the reference has what Python itself sees, and since
it is alive: mkdocs-material is in maintenance mode since November 2025. The pages are Markdown
(MyST), so that they read as well on GitHub.
"""

import re

import tfdwd

project, author = "tfdwd", "the authors of tfdwd"
version = release = tfdwd.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"tfdwd {version}"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
default_role = "literal"  # docstrings have `names` in single backquotes
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say types and shapes; signatures with both are unreadable

_LINK = re.compile(r"(?<!!)(\[[^]]*\])\(\.\./")  # but for pictures


def _outside(app, page, source):
    """Links out of docs/, which GitHub follows as they stand, lead to GitHub."""
    source[0] = _LINK.sub(r"\1(https://github.com/tfdwd/tfdwd/blob/main/", source[0])


def setup(app):
    app.connect("source-read", _outside)
