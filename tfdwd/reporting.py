"""What people see: text and HTML tables, plots, progress bars.

Imports nothing heavy, so that `benchmarking` runs on a board without TensorFlow.
"""

import html
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from tfdwd.errors import Error
from tfdwd.records import Record

if TYPE_CHECKING:
    import matplotlib.figure

# What a report shows: lines of text, and tables as (headers, rows).
Parts = Sequence[str | tuple[Sequence[str], Sequence[Sequence[object]]]]


class Report(Record):
    """A record that shows itself, as text where it is printed and as HTML in notebooks."""

    def _parts(self) -> Parts:
        raise NotImplementedError

    def __str__(self) -> str:
        return as_text(self._parts())

    def _repr_html_(self) -> str:
        return as_html(self._parts())


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lays out a text table: the first column to the left, the others to the right.

    Args:
      headers: one per column.
      rows: cells, written with `str` and `printable`; as many in each row as there are headers.

    Returns:
      The lines of the table, without a newline at the end.

    Raises:
      tfdwd.Error: a row has more or fewer cells than there are headers.

    Example:
      >>> print(table(["layer", "MACs"], [["conv", 1200], ["dense", 64]]))
      layer  MACs
      -----  ----
      conv   1200
      dense    64
    """
    lines = [list(headers), *([printable(str(cell)) for cell in row] for row in rows)]
    for line in lines:
        if len(line) != len(headers):
            raise Error(f"a table of {len(headers)} columns got a row of {len(line)} cells: {line}")
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(_aligned(line, widths) for line in lines)


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    rest = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
    return "  ".join([first, *rest]).rstrip()


def as_text(parts: Parts) -> str:
    """Lays out the parts of a report one below the other.

    Example:
      >>> print(as_text([(["layer", "MACs"], [["conv", 1200]]), "1 layer"]))
      layer  MACs
      -----  ----
      conv   1200
      1 layer
    """
    return "\n".join(
        "\n".join(map(printable, part.split("\n"))) if isinstance(part, str) else table(*part)
        for part in parts
    )


def printable(text: str) -> str:
    """Escapes what would command a terminal, such as control characters in a layer's name.

    Example:
      >>> print(printable("conv \x1b[2J é"))
      conv \\x1b[2J é
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def as_html(parts: Parts) -> str:
    """The same as HTML, for notebooks.

    Example:
      >>> as_html([(["layer"], [["a < b"]]), "1 layer"])
      '<table><tr><th>layer</th></tr><tr><td>a &lt; b</td></tr></table><p>1 layer</p>'
    """

    def row(cells: Sequence[object], tag: str) -> str:
        inner = "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells)
        return f"<tr>{inner}</tr>"

    def one(part: str | tuple[Sequence[str], Sequence[Sequence[object]]]) -> str:
        if isinstance(part, str):
            return f"<p>{html.escape(part)}</p>"
        headers, rows = part
        return f"<table>{row(headers, 'th')}{''.join(row(cells, 'td') for cells in rows)}</table>"

    return "".join(map(one, parts))


def plot(report: Any) -> "matplotlib.figure.Figure":
    """Draws times: of a benchmark's models, of a plan's layers, or what a tradeoff's plans cost.

    Args:
      report: a `tfdwd.BenchmarkReport` (bars from the tenth to the ninetieth percentile are drawn
        too), a `tfdwd.Plan` (layers that were not timed are left out), or a `tfdwd.Tradeoff`
        (agreement with the original against time, the other students that were tried beside).

    Returns:
      A matplotlib figure, which notebooks show by themselves.

    Example:
      >>> plot(tfdwd.plan(model, images, latency=0.5)).savefig("plan.png")  # doctest: +SKIP
    """
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    pyplot.close(figure)  # or notebooks would show it twice
    if hasattr(report, "plans"):
        _draw_tradeoff(axes, report.plans)
        return figure
    if hasattr(report, "timings"):
        names = [timing.name for timing in report.timings]
        middle = [timing.median_ms for timing in report.timings]
        below = [timing.median_ms - timing.p10_ms for timing in report.timings]
        above = [timing.p90_ms - timing.median_ms for timing in report.timings]
        axes.barh(names, middle, xerr=[below, above], capsize=3)
        axes.set_xlabel(f"ms, {report.threads} thread(s), {report.device}")
    else:
        timed = [layer for layer in report.layers if layer.ms_before is not None]
        names = [layer.name for layer in timed]
        axes.barh(names, [layer.ms_before for layer in timed], color="lightgrey", label="original")
        axes.barh(names, [layer.ms_after for layer in timed], height=0.4, label="planned")
        axes.legend()
        axes.set_xlabel(f"ms alone, {report.threads} thread(s), {report.device}")
    axes.invert_yaxis()
    return figure


def _draw_tradeoff(axes: Any, plans: Sequence[Any]) -> None:
    first = plans[0]
    others = {(one.ms, one.agreement) for plan in plans for one in plan.tried}
    axes.scatter(*zip(*sorted(others), strict=True), color="lightgrey", label="tried")
    line = [(plan.ms_after, plan.agreement) for plan in plans]
    axes.plot(*zip(*line, strict=True), "o-", label="planned")
    axes.plot([first.ms_before], [1.0], "k*", label="original")
    axes.set_xlabel(f"ms, {first.threads} thread(s), {first.device}")
    axes.set_ylabel("agreement with the original")
    axes.legend()


def layer_cells(layer: Any) -> tuple[str, str, str, str]:
    """Name, stack, MACs before and after of a convolution's record, for a table."""
    stack = f"{layer.stack} {layer.rank or layer.width}" if layer.replaced else "kept"
    return layer.name, stack, f"{layer.macs_before:,}", f"{layer.macs_after:,}"


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    return shell is not None and hasattr(shell.get_ipython(), "kernel")


def progress(work: Iterable[Any] | int, description: str) -> tqdm:
    """Makes a progress bar on standard error, silent where that is no terminal or notebook.

    Args:
      work: what to go through, or the number of steps of a bar that is moved with ``update``.
      description: stands before the bar.

    Returns:
      A tqdm bar: iterate over it, or use it as a context manager and call ``update``.

    Example:
      >>> sum(progress([1, 2, 3], "adding"))
      6
    """
    counted = isinstance(work, int)
    return tqdm(
        None if counted else work,
        total=work if counted else None,
        desc=description,
        leave=False,
        disable=False if _in_notebook() else None,
    )
