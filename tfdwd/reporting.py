"""Text tables, JSON, files that are written whole or not at all, and progress bars.

Imports nothing heavy, so that `benchmarking` runs on a board without TensorFlow.
"""

import contextlib
import dataclasses
import html
import json
import os
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from tfdwd.errors import Error

if TYPE_CHECKING:
    import keras
    import matplotlib.figure

Record = TypeVar("Record")

# What a report shows: lines of text, and tables as (headers, rows).
Parts = Sequence[str | tuple[Sequence[str], Sequence[Sequence[object]]]]


class Saved:
    """A dataclass that goes to JSON and back."""

    def to_json(self) -> str:
        """The record as JSON; `from_json` reads it back."""
        return to_json(self)

    @classmethod
    def from_json(cls: type[Record], text: str) -> Record:
        """Reads what `to_json` wrote.

        Raises:
          tfdwd.Error: the text is something else.
        """
        return from_json(cls, text)


class Report(Saved):
    """A dataclass that shows itself, as text where it is printed and as HTML in notebooks."""

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
      rows: cells, written with `str`; as many in each row as there are headers.

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
    lines = [list(headers), *([str(cell) for cell in row] for row in rows)]
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
    return "\n".join(part if isinstance(part, str) else table(*part) for part in parts)


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
    """Draws times as bars: those of a benchmark's models, or of a plan's layers before and after.

    Args:
      report: a `tfdwd.BenchmarkReport` (bars from the tenth to the ninetieth percentile are drawn
        too) or a `tfdwd.Plan` (layers that were not timed are left out).

    Returns:
      A matplotlib figure, which notebooks show by themselves.

    Example:
      >>> plot(tfdwd.plan(model, images, latency=0.5)).savefig("plan.png")  # doctest: +SKIP
    """
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    pyplot.close(figure)  # or notebooks would show it twice
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


def layer_cells(layer: Any) -> tuple[str, str, str, str]:
    """Name, stack, MACs before and after of a convolution's record, for a table."""
    stack = f"{layer.stack} {layer.rank or layer.width}" if layer.replaced else "kept"
    return layer.name, stack, f"{layer.macs_before:,}", f"{layer.macs_after:,}"


def to_json(record: Any) -> str:
    """Writes a dataclass as JSON, dataclasses inside it included.

    Args:
      record: a dataclass whose fields are numbers, strings, booleans, None, and tuples, dicts and
        dataclasses of those.

    Returns:
      Indented JSON with a newline at the end; `from_json` reads it back.

    Example:
      >>> to_json(dataclasses.make_dataclass("Size", ["kib"])(3))
      '{\\n  "kib": 3\\n}\\n'
    """
    return json.dumps(dataclasses.asdict(record), indent=2) + "\n"


def from_json(kind: type[Record], text: str) -> Record:
    """Reads back what `to_json` wrote.

    Args:
      kind: the dataclass to make.
      text: JSON.

    Returns:
      A `kind`, equal to the one written.

    Raises:
      tfdwd.Error: the text is no JSON, or its fields are not those of `kind`.

    Example:
      >>> Size = dataclasses.make_dataclass("Size", [("kib", int)])
      >>> from_json(Size, to_json(Size(3)))
      Size(kib=3)
    """
    try:
        return _read(kind, json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Error(
            f"expected the JSON of a {kind.__name__}, got something else: {error}"
        ) from error


def _read(kind: Any, value: Any) -> Any:
    """The inverse of `dataclasses.asdict` and JSON: `value` as the type `kind`."""
    arguments = typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: _read(hints[name], item) for name, item in value.items()})  # type: ignore[operator]
    if isinstance(kind, types.UnionType) and value is not None:
        return _read(next(option for option in arguments if option is not type(None)), value)
    if typing.get_origin(kind) is tuple:
        each = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        return tuple(_read(item_kind, item) for item_kind, item in zip(each, value, strict=True))
    if typing.get_origin(kind) is dict:
        return {key: _read(arguments[1], item) for key, item in value.items()}
    return value


def write_whole(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Writes a file whole or not at all: readers see the old file or the new one.

    Args:
      path: the file, in a folder that exists; replaced if it is there.
      content: text is written as UTF-8.

    Raises:
      tfdwd.Error: the folder does not exist, or the file cannot be written.

    Example:
      >>> write_whole("/tmp/table.txt", "layer  MACs")
    """
    with _put_in_place(Path(path)) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def save_model(model: "keras.Model", path: str | os.PathLike[str]) -> None:
    """Saves a Keras model as a .keras file, whole or not at all.

    Args:
      model: any Keras 3 model.
      path: the file, ending in .keras, in a folder that exists; replaced if it is there.

    Raises:
      tfdwd.Error: another ending, the folder does not exist, or the file cannot be written.

    Example:
      >>> import keras
      >>> model = keras.Sequential([keras.Input((4,)), keras.layers.ReLU()])
      >>> save_model(model, "/tmp/model.keras")
    """
    path = Path(path)
    if path.suffix != ".keras":
        raise Error(f"expected a path that ends in .keras, got {path}")
    with _put_in_place(path) as temporary:
        model.save(temporary)


@contextlib.contextmanager
def _put_in_place(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`, renamed to it at the end, removed on any failure."""
    if not path.parent.is_dir():
        raise Error(f"cannot write {path}: its folder does not exist; create it first")
    if path.is_dir():
        raise Error(f"cannot write {path}: it is a folder; name a file")
    temporary = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise Error(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def progress(work: Iterable[Any] | int, description: str) -> tqdm:
    """Makes a progress bar on standard error, silent where that is no terminal.

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
        disable=None,
    )
