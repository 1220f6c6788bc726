"""Charts by matplotlib, as SVG that takes the colours of the page.

What a point or bar stands for is its title, which browsers show where the pointer rests; the page
has the figures in a table beside it.
"""

import io
import re
from collections.abc import Sequence
from typing import Any

from tfdwd import reporting
from tfdwd.benchmarking import BenchmarkReport
from tfdwd.outcome import Tuning
from tfdwd.plans import Plan
from tfdwd.report.elements import milliseconds, table, text

_INK = "#010203"  # stands for the page's own colour
_ORIGINAL, _STUDENT, _OTHER = "#8a8a8a", "#2a78c8", "#b98b2c"


def front(plans: Sequence[Plan]) -> str:
    """Agreement against time: the original, what was chosen, and over what."""
    first = plans[0]
    points = [(first.ms_before, 1.0, "original", _ORIGINAL, "*")]
    for plan in plans:
        points += [(one.ms, one.agreement, one.name, _OTHER, ".") for one in plan.tried]
    points += [(p.ms_after, p.agreement or 0.0, p.budget, _STUDENT, "o") for p in plans]
    figure, axes, titles = _figure(4)
    for number, (x, y, name, colour, mark) in enumerate(points):
        own = axes.plot([x], [y], mark, color=colour, markersize=9 if mark != "." else 7)
        own[0].set_gid(f"front{number}")
        titles[f"front{number}"] = f"{name}: {x:.3f} ms, agreement {y:.4f}"
    axes.set_xlim(left=0)
    axes.set_xlabel(f"ms, {first.threads} thread(s)")
    axes.set_ylabel("agreement with the original")
    about = "Agreement with the original against time: star the original, circles the plans"
    return _svg(figure, titles, about)


def layers(plan: Plan) -> str:
    """Time of each layer that was timed, before and after; empty where none was."""
    timed = [layer for layer in plan.layers if layer.ms_before is not None]
    if not timed:
        return ""
    figure, axes, titles = _figure(0.8 + 0.25 * len(timed))
    for place, layer in enumerate(timed):
        pairs = (
            ("before", layer.ms_before, 0.8, _ORIGINAL),
            ("after", layer.ms_after, 0.45, _STUDENT),
        )
        for which, ms, height, colour in pairs:
            [bar] = axes.barh([place], [ms], height=height, color=colour)
            bar.set_gid(f"layer{which}{place}")
            titles[f"layer{which}{place}"] = f"{layer.name} {which}: {milliseconds(ms)} ms"
    names = [reporting.printable(layer.name) for layer in timed]
    axes.set_yticks(range(len(timed)), [name.replace("$", r"\$") for name in names], fontsize=7)
    axes.invert_yaxis()
    axes.margins(y=0)
    axes.set_xlabel("ms, each layer alone: grey the original, blue the student")
    return _svg(figure, titles, "Time of each layer before and after; the table has the figures")


def curves(tuning: Tuning) -> str:
    """Losses over the epochs, and a table of what was measured before and after."""
    history = {n: v for n, v in tuning.history.items() if n != "val_agreement"}
    figure, axes, titles = _figure(3)
    for name, values in history.items():
        colour = _STUDENT if name.startswith("val_") else _ORIGINAL
        [line] = axes.plot(range(1, len(values) + 1), values, color=colour)
        line.set_gid(f"curve{name}")
        titles[f"curve{name}"] = f"{name}: {values[0]:.4f} to {values[-1]:.4f}"
    axes.set_yscale("log")
    axes.set_xlabel("epoch; grey the loss of training, blue that of images held back")
    rows = [
        [name, *(f"{values[name]:.4f}" for values in (tuning.before, tuning.after))]
        for name in tuning.before
    ]
    about = f"Loss over {len(next(iter(history.values())))} epochs; the table has the ends"
    return _svg(figure, titles, about) + table(["held back", "before", "after"], rows)


def bars(report: BenchmarkReport) -> str:
    """Median times, from the tenth to the ninetieth percentile."""
    figure, axes, titles = _figure(0.8 + 0.4 * len(report.timings))
    for place, timing in enumerate(report.timings):
        reach = [[timing.median_ms - timing.p10_ms], [timing.p90_ms - timing.median_ms]]
        colour = _STUDENT if place else _ORIGINAL
        [bar] = axes.barh([place], [timing.median_ms], xerr=reach, color=colour, ecolor=_INK)
        bar.set_gid(f"timing{place}")
        titles[f"timing{place}"] = f"{timing.name}: {timing.median_ms:.3f} ms"
    axes.set_yticks(
        range(len(report.timings)), [t.name.replace("$", r"\$") for t in report.timings]
    )
    axes.invert_yaxis()
    axes.set_xlabel("ms, from the tenth to the ninetieth percentile")
    return _svg(figure, titles, "Median time of each network; the table has the figures")


def _figure(height: float) -> tuple[Any, Any, dict[str, str]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("none")
    axes.tick_params(colors=_INK)
    for spine in axes.spines.values():
        spine.set_edgecolor(_INK)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(_INK)
    return figure, axes, {}


def _svg(figure: Any, titles: dict[str, str], about: str) -> str:
    """A figure as an element that has the colours of the page; parts show their titles."""
    import matplotlib

    sheet = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tfdwd"}):
        figure.savefig(sheet, format="svg", transparent=True, metadata={"Date": None})
    drawn = sheet.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace(_INK, "currentColor")
    own = next(iter(titles))  # ids are those of one chart among several of a page
    drawn = re.sub(r'( id="|"#|url\(#)', rf"\1{own}-", drawn)
    for name, title in titles.items():
        opened = f'<g id="{own}-{name}">'
        drawn = drawn.replace(opened, f"{opened}<title>{text(title)}</title>")
    drawn = drawn.replace("<svg ", f'<svg role="img" aria-label="{text(about)}" ', 1)
    return f"<figure>{drawn}</figure>"
