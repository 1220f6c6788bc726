"""report.html: one file that shows a record, its charts and tables, without a network.

`pages` puts the sections of each kind of record together, of `charts`, `examples` and the tables of
`elements`; page.css and page.js go into each page.
"""

from tfdwd.report.examples import examples_of
from tfdwd.report.pages import page

__all__ = ["examples_of", "page"]
