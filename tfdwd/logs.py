"""Reads what benchmark tools print for .tflite files: TensorFlow's, LiteRT's and tfdwd's own."""

import dataclasses
import re

from tfdwd import benchmarking
from tfdwd.errors import Error
from tfdwd.records import Amount, Positive, PositiveAmount, Record

_NUMBER = r"([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)"
_MODEL = re.compile(r"(?:\bGraph: \[(.+)\]|benchmark_litert_model: Model: +(.+))$")
_THREADS = re.compile(r"(?:[Nn]um threads|#threads used for CPU inference): +\[?(\d+)")
# What benchmark_model prints, in microseconds, and what the rest of its lines means here.
_COUNT = re.compile(rf"\b(\w+)={_NUMBER}")
_SUMMARY = re.compile(rf"Inference timings in us: Init: {_NUMBER}, First inference: {_NUMBER}")
_MEMORY = re.compile(rf"emory footprint.*overall={_NUMBER}")
# What litert-benchmark prints, in milliseconds to two places.
_RESULT = re.compile(
    rf"^(?:Inference|Warmup|Model) ?\(?(\w+)\)?: +{_NUMBER} ms(?: \((\d+) runs\))?"
)
_RESOLUTION_MS = 0.005
_90_PERCENT = 3.29  # standard deviations between the 5th and the 95th percentile


@dataclasses.dataclass(frozen=True)
class Run(Record):
    """What a tool found for one file.

    Attributes:
      tool: "benchmark_model", "litert-benchmark" or "tfdwd".
      model: the file's path where it ran, or its name in a report of tfdwd's own.
      ms: median of the runs, or their mean where the tool prints no median.
      error_ms: standard error of `ms`.
      threads: that the tool used.
      load_ms, first_ms: until it was ready to run, and the first run; None where it is not said.
      peak_kib: memory at the end over that at the start; None where it is not said.
    """

    tool: str
    model: str
    ms: PositiveAmount
    error_ms: Amount
    threads: Positive
    load_ms: Amount | None = None
    first_ms: Amount | None = None
    peak_kib: Amount | None = None


def read(text: str) -> list[Run]:
    """Finds all runs in a log.

    Args:
      text: the output of one run or of many of TensorFlow's ``benchmark_model``, old or new, with
        or without the prefixes of Android's log, or of LiteRT's ``litert-benchmark``; or the JSON
        of a `tfdwd.BenchmarkReport`.

    Returns:
      The runs, in their order.

    Raises:
      tfdwd.Error: no run in it, or one that did not come to its end; the message has the tool's
        own last words.

    Example:
      >>> log = '''Graph: [/data/local/tmp/a.tflite]
      ... count=50 first=1500 curr=1490 min=1480 max=1530 avg=1501.5 std=9
      ... Inference timings in us: Init: 855, First inference: 1600, Warmup (avg): 1550, ...'''
      >>> read(log)[0].ms
      1.5015

    Source of the formats: tensorflow/lite/tools/benchmark/README.md; litert-benchmark as in
    ai-edge-litert 2.3.
    """
    if text.lstrip().startswith("{"):
        return _own(text)
    pieces: list[list[str]] = [[]]
    for line in map(str.rstrip, text.splitlines()):
        begun = any(map(_MODEL.search, pieces[-1]))
        # benchmark_model tells the threads before it tells the model.
        if line.endswith("STARTING!") or (begun and _MODEL.search(line)):
            pieces.append([])
        pieces[-1].append(line)
    named = [(hit, lines) for lines in pieces for hit in map(_MODEL.search, lines) if hit]
    if not named:
        raise Error(
            "expected the output of benchmark_model or litert-benchmark, or the JSON of "
            f"tfdwd-benchmark, got {text.strip()[-200:]!r}"
        )
    found = []
    for hit, lines in named:
        model = hit[1] or hit[2]
        try:
            run = _run(model, lines)
        except Error as error:
            raise Error(f"the log's result for {model} makes no sense: {error}") from error
        if run is None:
            last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
            raise Error(f"the log has no result for {model}; the tool's last words: {last[:200]}")
        found.append(run)
    return found


def _own(text: str) -> list[Run]:
    report = benchmarking.BenchmarkReport.from_json(text)
    if not report.timings:
        raise Error("expected the JSON of a BenchmarkReport with timings, got one without")
    return [
        Run(
            "tfdwd",
            timing.name,
            timing.median_ms,
            # Of a normal distribution 80 % lie within 2.56 standard deviations.
            (timing.p90_ms - timing.p10_ms) / 2.56 / report.rounds**0.5,
            report.threads,
            timing.load_ms,
            timing.first_ms,
            timing.peak_kib,
        )
        for timing in report.timings
    ]


def _run(model: str, lines: list[str]) -> Run | None:
    """The result in the lines of one run; None if it has not come to its end."""
    threads = [int(found[1]) for found in map(_THREADS.search, lines) if found]
    summary = next(filter(None, map(_SUMMARY.search, lines)), None)
    results = {found[1]: found for found in map(_RESULT.search, lines) if found}
    # The last of such lines is of the runs that count, those before it of the warm-up.
    counts = [dict(_COUNT.findall(line)) for line in lines if " curr=" in line]
    if summary and counts:
        found = {name: float(value) / 1000 for name, value in counts[-1].items()}
        # Of a single run there is no average.
        ms = [found[name] for name in ("median", "avg", "curr") if name in found]
        memory = [float(hit[1]) for hit in map(_MEMORY.search, lines) if hit]
        return Run(
            "benchmark_model",
            model,
            ms[0] if ms else 0.0,
            _spread(found) / _root(counts[-1].get("count")),
            threads[-1] if threads else 1,
            float(summary[1]) / 1000,
            float(summary[2]) / 1000,
            1024 * memory[-1] if memory else None,
        )
    if "median" in results:
        found = {name: float(hit[2]) for name, hit in results.items()}
        runs = results["avg"][3] if "avg" in results else None
        return Run(
            "litert-benchmark",
            model,
            max(found["median"], _RESOLUTION_MS),  # it prints 0.00 for the smallest
            max(_spread(found) / _root(runs), _RESOLUTION_MS),
            threads[-1] if threads else 1,
            found.get("initialization"),
            found.get("first"),
        )
    return None


def _root(count: str | None) -> float:
    """The square root of how many runs there were; of one where it is not said."""
    if count is not None and float(count) < 1:
        raise Error(f"expected a count of runs of at least 1, got {count}")
    return float(count or 1) ** 0.5


def _spread(found: dict[str, float]) -> float:
    """Standard deviation; from percentiles where there are some, which a single outlier spares."""
    if "p5" in found and "p95" in found:
        return (found["p95"] - found["p5"]) / _90_PERCENT
    return found.get("std", 0.0)
