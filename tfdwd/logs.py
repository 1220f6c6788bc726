"""Reads what benchmark tools print for .tflite files: TensorFlow's, LiteRT's and tfdwd's own."""

import dataclasses
import math
import re
from collections.abc import Iterator

from tfdwd import benchmarking
from tfdwd.errors import Error
from tfdwd.records import Amount, Count, Positive, PositiveAmount, Record

_NUMBER = r"([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)"
_MODEL = re.compile(r"(?:\bGraph: \[(.+)\]|benchmark_litert_model: Model: +(.+))$")
_LOADED = re.compile(r"\bLoad(?:ed model|ing model from:) (.+)$")
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
# The tables of operators. Android's log puts a prefix before each line.
_PREFIX = re.compile(r"^(?:[\d-]+ [\d:.]+ +\d+ +\d+ [VDIWEF] [^:]*|[VDIWEF]/[^(]*\([ \d]*\)): ?")
_COLUMN = re.compile(r"\[([^]]+)\]")
_CELL = r"\s+(-?[\d.]+(?:[eE][+-]?\d+)?|-?nan|-?inf)%?"
_NODES = re.compile(r"Number of nodes executed: (\d{1,9})\b")
_TOTAL = re.compile(rf"Timings \(microseconds\): count=.*\b(?:avg|curr)={_NUMBER}")
_MOST_CALLS = 10**9
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


@dataclasses.dataclass(frozen=True)
class OperatorTime(Record):
    """How long one operator of a model takes, as a profiler tells it.

    Attributes:
      type: LiteRT's, such as "CONV_2D"; a delegate's has its own words, such as
        "Delegate/Convolution (NHWC, F32) IGEMM".
      name: as the log has it, such as "[relu/Relu;conv/Conv2D]:3" or "[Delegate]:0".
      first_ms: the first call, in milliseconds.
      average_ms: mean of all calls.
      calls: in one run.
      tensors: that it writes; empty where that is not known.
      layer: of Keras that these belong to; empty where that is not known.
    """

    type: str
    name: str
    first_ms: Amount
    average_ms: Amount
    calls: Count
    tensors: tuple[str, ...] = ()
    layer: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calls > _MOST_CALLS or not math.isfinite(self.ms):
            raise Error(f"calls: expected fewer, got {self.calls!r:.20} of {self.average_ms} ms")

    @property
    def ms(self) -> float:
        """Of all calls in one run, in milliseconds."""
        return self.average_ms * self.calls


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


def read_operators(text: str) -> tuple[str, float, tuple[OperatorTime, ...]]:
    """Finds the times of the operators in the log of one run.

    Args:
      text: what TensorFlow's ``benchmark_model --enable_op_profiling=true`` printed, old or new, or
        LiteRT's ``benchmark_model --use_profiler=true``, which profiles the last run only, in whole
        microseconds; with or without Android's prefixes. What happens inside of loops and of
        delegates that have a table of their own is left out: the table of the model holds it as one
        operator.

    Returns:
      The model's path (empty if it is not said), the time of one run in milliseconds as the
      profiler adds it up, and the operators in order of execution.

    Raises:
      tfdwd.Error: no such table, several, or one that does not come to its end.

    Example:
      >>> log = '''==== Run Order ====
      ... [node type]  [start] [first] [avg ms] [%] [cdf%] [mem KB] [times called] [Name]
      ... SOFTMAX 0.000 0.002 0.001 100.000% 100.000% 0.000 1 [probabilities]:0
      ... Number of nodes executed: 1
      ... Timings (microseconds): count=50 first=2 curr=1 min=1 max=2 avg=1.1 std=0'''
      >>> read_operators(log)[2][0].average_ms
      0.001

    Source of the formats: tensorflow/core/util/stats_calculator.cc,
    litert/runtime/profiler_summarizer.cc.
    """
    lines = [_PREFIX.sub("", line) for line in text.splitlines()]
    starts = _run_orders(lines)
    if len(starts) != 1:
        raise Error(
            "expected the log of one run of benchmark_model with --enable_op_profiling=true "
            f"(LiteRT's: --use_profiler=true), got {len(starts) or 'no'} tables of operators"
        )
    [start] = starts
    operators = tuple(_rows(lines[start + 1 :]))
    nodes = next((int(hit[1]) for hit in map(_NODES.search, lines[start:]) if hit), None)
    total = next((float(hit[1]) for hit in map(_TOTAL.search, lines[start:]) if hit), None)
    if nodes is None or total is None or nodes != len(operators):
        raise Error(
            f"expected a table of {nodes or 'all'} operators and their sum, got {len(operators)} "
            f"operators{' and no sum' if total is None else ''}: the log is cut"
        )
    named = [hit[1] or hit[2] for hit in map(_MODEL.search, lines) if hit]
    named += [hit[1] for hit in map(_LOADED.search, lines) if hit]
    return (named[0] if named else ""), total / 1000, operators


def _run_orders(lines: list[str]) -> list[int]:
    """The lines at which tables begin that are of a whole run of the model."""
    found, inside = [], False
    for number, line in enumerate(lines):
        if "Profiling Info for" in line:
            inside = "Initialization" in line
        elif "Delegate internal:" in line or "Subgraph (index" in line:
            inside = True
        elif "= Run Order =" in line and not inside:
            found.append(number)
    return found


def _rows(lines: list[str]) -> Iterator[OperatorTime]:
    """The rows of a table, which ends at the next title."""
    row, columns = None, []
    for line in lines:
        if "====" in line or _NODES.search(line):
            return
        if "[node type]" in line:
            # Not all versions have the same columns.
            columns = _COLUMN.findall(line)[1:-1]
            row = re.compile(rf"\s*(\S.*?){_CELL * len(columns)}\s+(\S.*?)\s*")
        elif row is not None and (hit := row.fullmatch(line)):
            kind, *cells, name = hit.groups()
            told = dict(zip(columns, cells, strict=True))
            try:
                first, average = float(told["first"]), float(told["avg ms"])
                yield OperatorTime(kind, name, first, average, int(told["times called"]))
            except (KeyError, ValueError) as error:
                raise Error(f"the log's operator {name} makes no sense: {error}") from error


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
