"""One HTML page for a record: its sections, one after the other."""

import importlib.resources
import platform
from collections.abc import Callable
from typing import Any

from tfdwd import __version__, reporting
from tfdwd.benchmarking import BenchmarkReport
from tfdwd.errors import Error
from tfdwd.outcome import Compression
from tfdwd.plans import Plan, Tradeoff
from tfdwd.report import charts
from tfdwd.report.elements import milliseconds, paragraph, parts, section, table, text


def page(record: Any, examples: str = "", command: str = "") -> str:
    """A record as one HTML file, which needs nothing else.

    Args:
      record: a `tfdwd.Compression`, `Plan`, `Tradeoff` or `BenchmarkReport`.
      examples: HTML of `examples_of`.
      command: that made it.

    Raises:
      tfdwd.Error: no such record.

    Example:
      >>> with open("plan.html", "w") as file:  # doctest: +SKIP
      ...     file.write(page(plan))
    """
    kinds: dict[type, Callable[[Any], list[str]]] = {
        Compression: _of_compression, Plan: _of_plan, Tradeoff: _of_tradeoff,
        BenchmarkReport: _of_benchmark,
    }  # fmt: skip
    if type(record) not in kinds:
        raise Error(
            f"expected one of {', '.join(kind.__name__ for kind in kinds)}, got "
            f"{type(record).__name__}"
        )
    title = {Compression: "A network made faster", Plan: "A plan", Tradeoff: "What time costs",
             BenchmarkReport: "Networks timed side by side"}[type(record)]  # fmt: skip
    sections = kinds[type(record)](record)
    if examples:
        sections.append(section("What both answer", examples))
    made = f"tfdwd {__version__}, Python {platform.python_version()}, {platform.platform()}"
    about = f"<p>{text(made)}</p>" + (f"<pre>{text(command)}</pre>" if command else "")
    sections.append(section("How this was made", about))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_file('page.css')}</style></head><body><main><h1>{title}</h1>"
        f"{''.join(sections)}</main><script>{_file('page.js')}</script></body></html>\n"
    )


def _of_compression(result: Compression) -> list[str]:
    score = result.original_score.scores[0]
    own = result.student_score.scores[0]
    smaller = result.original.bytes / result.student.bytes
    figures = [
        (f"{result.speed_up:.2f}x", "as fast"),
        (f"{score.shown()} to {own.shown()}", own.title),
        (f"{smaller:.2f}x", "smaller"),
    ]
    boxes = "".join(f"<div><dt>{text(dt)}</dt><dd>{text(dd)}</dd></div>" for dd, dt in figures)
    summary, *lines = result._parts()
    noise = {layer.name: f"{layer.sqnr_db:.1f}" for layer in result.student.layers}
    return [
        f'<dl class="figures">{boxes}</dl>',
        section("Before and after", parts([summary, *lines])),
        *_of_plan(result.plan, noise),
        section("Fine-tuning", charts.curves(result.tuning)),
        *_of_benchmark(result.benchmark),
        section(
            "The files",
            "".join(parts(r._parts()) for r in (result.original, result.student)),
        ),
    ]


def _of_plan(plan: Plan, noise: dict[str, str] | None = None) -> list[str]:
    headers = [
        "layer",
        "stack",
        "MACs",
        "MACs after",
        "ms",
        "ms after",
        "predicted loss",
        "why kept",
    ]
    rows = [
        [
            *reporting.layer_cells(layer), milliseconds(layer.ms_before),
            milliseconds(layer.ms_after), f"{layer.error:.4f}", layer.reason,
        ]
        for layer in plan.layers
    ]  # fmt: skip
    if noise:
        headers.insert(7, "noise of int8, dB")
        for row in rows:
            row.insert(7, noise.get(row[0], ""))
    sections = []
    if plan.tried:
        tried = [
            [one.name, f"{one.ms:.3f}", f"{one.error:.4f}", f"{one.loss:.4f}",
             f"{one.agreement:.4f}"]
            for one in plan.tried
        ]  # fmt: skip
        names = ["student", "ms", "predicted loss", "measured loss", "agreement"]
        about = "<p>Whole students, timed and compared with the original on images held back.</p>"
        sections.append(
            section(
                "What was chosen, and over what",
                about + charts.front([plan]) + table(names, tried),
            )
        )
    sections.append(
        section(
            "Layer by layer",
            charts.layers(plan) + table(headers, rows) + paragraph(plan._parts()[-1]),
        )
    )
    return sections


def _of_tradeoff(curve: Tradeoff) -> list[str]:
    return [section("Accuracy against time", charts.front(curve.plans) + parts(curve._parts()))]


def _of_benchmark(report: BenchmarkReport) -> list[str]:
    return [section("Timed side by side", charts.bars(report) + parts(report._parts()))]


def _file(name: str) -> str:
    return (importlib.resources.files("tfdwd.report") / name).read_text()
