"""Times .tflite files on LiteRT, side by side, so that a ratio between them means something.

Needs only NumPy, ai-edge-litert and msgspec (and TensorFlow where a Keras model is to be timed).
"""

import csv
import dataclasses
import datetime
import io
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdwd import checks, children, lite, reporting
from tfdwd.conditions import Conditions, Watch
from tfdwd.errors import Error
from tfdwd.records import Amount, Count, Positive, PositiveAmount, Record, dumps
from tfdwd.shapes import InputShape

if TYPE_CHECKING:
    import keras

# One sample is the mean of as many runs as take this long. Many short samples tell more in the same
# time than few long ones: what else the machine does spoils only those that it meets.
_SAMPLE_SECONDS = 0.005
_RESAMPLES = 2000
_ROUNDING = 1e-9  # relative, of what is computed again from the samples
_NOISY = 1.25  # p90 over p10 from which on a machine is called noisy
_OF_SAMPLES = ("median_ms", "p10_ms", "p90_ms", "speed_up", "speed_up_low", "speed_up_high")
MOST_THREADS = 512
_ROOT = Path("/")  # of what Linux tells of the machine


@dataclass(frozen=True)
class Timing(Record):
    """How long one model takes for one run.

    Attributes:
      name: as given to `benchmark`.
      bytes: size of the .tflite file.
      median_ms: median of the rounds, in milliseconds.
      p10_ms: tenth percentile of the rounds.
      p90_ms: ninetieth percentile of the rounds.
      speed_up: time of the first model over the time of this one: the median of the rounds' ratios.
      speed_up_low: lower end of the 95 % bootstrap interval of `speed_up`.
      speed_up_high: upper end of it.
      load_ms: from the file to a model that is ready to run, in a new process; None if not asked
        for.
      first_ms: the first run there.
      peak_kib: the most memory that loading and running took there; None where the system does not
        tell.
      samples_ms: every sample, one for each round; empty in reports of earlier versions.
      fully_accelerated: whether the accelerator ran every operator; None without an accelerator.
    """

    name: str
    bytes: Count
    median_ms: PositiveAmount
    p10_ms: PositiveAmount
    p90_ms: PositiveAmount
    speed_up: PositiveAmount
    speed_up_low: PositiveAmount
    speed_up_high: PositiveAmount
    load_ms: Amount | None = None
    first_ms: Amount | None = None
    peak_kib: Amount | None = None
    samples_ms: tuple[PositiveAmount, ...] = ()
    fully_accelerated: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.p10_ms <= self.median_ms <= self.p90_ms:
            raise Error(f"timings of {self.name!r} out of order: {self}")
        if not self.speed_up_low <= self.speed_up <= self.speed_up_high:
            raise Error(f"speed-up of {self.name!r} outside of its interval: {self}")

    @property
    def noisy(self) -> bool:
        """Whether the rounds differ too much to make much of a small difference."""
        return self.p90_ms > _NOISY * self.p10_ms


@dataclass(frozen=True)
class BenchmarkReport(reporting.Report):
    """Timings of several models from one run of `benchmark`. Prints as a table.

    Attributes:
      timings: one per model, in the order given.
      device: the board or the CPU.
      threads: that LiteRT was given.
      xnnpack: whether LiteRT was left to use XNNPACK, as it does by default.
      rounds: samples of each model.
      runtime: what ran them, with its version.
      date: when, in UTC, ISO 8601.
      conditions: governor, clock and heat meanwhile; None where the system does not tell, and on
        phones.
      accelerator: that LiteRT's CompiledModel was given; None where its Interpreter ran the models.

    Raises:
      tfdwd.Error: the medians, percentiles and intervals are not those of the samples.
    """

    timings: tuple[Timing, ...]
    device: str
    threads: Positive
    rounds: Positive
    runtime: str
    date: str
    xnnpack: bool = True
    conditions: Conditions | None = None
    accelerator: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for timing in self.timings:
            if timing.samples_ms:
                self._check_samples(timing)

    def _check_samples(self, timing: Timing) -> None:
        first = self.timings[0].samples_ms
        if not len(timing.samples_ms) == len(first) == self.rounds:
            raise Error(
                f"timings of {timing.name!r}: expected {self.rounds} samples_ms, one for each "
                f"round, for it and the first model, got {len(timing.samples_ms)} and {len(first)}"
            )
        pair = (np.array(samples) / 1000 for samples in (timing.samples_ms, first))
        with np.errstate(all="ignore"):  # a Timing refuses what is not finite
            again = timing_of(timing.name, timing.bytes, *pair)
        for field in _OF_SAMPLES:
            told, computed = getattr(timing, field), getattr(again, field)
            if not math.isclose(told, computed, rel_tol=_ROUNDING):
                raise Error(
                    f"timings of {timing.name!r}: expected {field}={computed}, computed again from "
                    f"samples_ms, got {told}"
                )

    def _parts(self) -> reporting.Parts:
        rows: list[tuple[str, ...]] = [
            (
                timing.name,
                f"{timing.bytes / 1024:.1f}",
                f"{timing.median_ms:.3f}",
                f"{timing.p10_ms:.3f}..{timing.p90_ms:.3f}",
                f"{timing.speed_up:.2f}x",
                f"{timing.speed_up_low:.2f}..{timing.speed_up_high:.2f}",
            )
            for timing in self.timings
        ]
        headers = ["model", "KiB", "median ms", "p10..p90 ms", "speed-up", "95 % interval"]
        if all(timing.load_ms is not None for timing in self.timings):
            headers += ["load ms", "first ms", "peak MiB"]
            rows = [
                (
                    *row,
                    f"{timing.load_ms:.2f}",
                    f"{timing.first_ms:.3f}",
                    "-" if timing.peak_kib is None else f"{timing.peak_kib / 1024:.1f}",
                )
                for row, timing in zip(rows, self.timings, strict=True)
            ]
        if self.accelerator is not None:
            headers.append("fully accelerated")
            rows = [
                (*row, "yes" if timing.fully_accelerated else "no")
                for row, timing in zip(rows, self.timings, strict=True)
            ]
        plural = "" if self.threads == 1 else "s"
        parts: list[Any] = [
            (headers, rows),
            f"{self.device}, {self.threads} thread{plural}, {self.rounds} rounds, "
            f"{self.runtime}{self._way()}, {self.date}",
        ]
        if self.conditions is not None:
            parts += self.conditions._parts()
        for timing in self.timings[1:]:
            if timing.speed_up_low <= 1 <= timing.speed_up_high:
                parts.append(f"{timing.name}: faster or slower cannot be told from the noise")
        if noisy := [timing.name for timing in self.timings if timing.noisy]:
            parts.append(
                f"a noisy machine: p90 is over {_NOISY:.2f} times p10 for {', '.join(noisy)}; "
                "trust the interval of the ratio, not the milliseconds"
            )
        return parts

    def _way(self) -> str:
        """How the runtime ran the models, where that is not as usual."""
        if self.accelerator is not None:
            return f" CompiledModel on {self.accelerator}"
        return "" if self.xnnpack else " without XNNPACK"

    def to_json(self) -> str:
        """The report as JSON; `from_json` reads it back.

        Without `conditions` and `accelerator` where there are none: the JSON that the Android app
        writes, too.
        """
        fields = dataclasses.asdict(self)
        for name in ("conditions", "accelerator"):
            if fields[name] is None:
                del fields[name]
        if self.accelerator is None:
            for timing in fields["timings"]:
                del timing["fully_accelerated"]
        return dumps(fields)

    def to_csv(self) -> str:
        """One line per model, with the device, threads, runtime, date and conditions on each.

        The samples are in the JSON only.
        """
        sheet = io.StringIO()
        names = [field.name for field in dataclasses.fields(Timing)]
        fields = [name for name in names if name != "samples_ms"]
        about = ["device", "threads", "xnnpack", "accelerator", "rounds", "runtime", "date"]
        seen = {field.name: "" for field in dataclasses.fields(Conditions)}
        if self.conditions is not None:
            seen.update(dataclasses.asdict(self.conditions))
            seen["governors"] = " ".join(self.conditions.governors)
        writer = csv.writer(sheet, lineterminator="\n")
        writer.writerow([*fields, *about, *seen])
        for timing in self.timings:
            own = [getattr(timing, field) for field in fields]
            writer.writerow([*own, *(getattr(self, field) for field in about), *seen.values()])
        return sheet.getvalue()


def benchmark(
    models: Mapping[str, "str | os.PathLike[str] | bytes | keras.Model"],
    *,
    threads: int = 1,
    xnnpack: bool = True,
    rounds: int = 30,
    warmup: int = 3,
    startup: bool = False,
    input_shape: InputShape | None = None,
    accelerator: str | None = None,
) -> BenchmarkReport:
    """Times models on LiteRT, interleaved.

    The rounds go A B C, C B A, A B C and so on, so that a machine that gets slower or faster
    meanwhile does so for all; the speed-up is taken within each round. Inputs are random, of a
    fixed seed. Only the run itself is timed, not the copying of inputs and outputs. Between the
    samples the machine's governor, clock, temperature and throttling are looked at.

    Args:
      models: name to .tflite file, or to its content, or to a Keras model, which is converted first
        (in float32). The first is the one that the others are compared with.
      threads: that LiteRT may use.
      xnnpack: whether LiteRT may use XNNPACK, as it does by default.
      rounds: samples of each model. Each sample is the mean over runs of 5 ms or more.
      warmup: runs of each model before anything is timed.
      startup: also measure loading, the first run and peak memory, in a new process for each model.
      input_shape: at which sizes to run the Keras models that leave them open, as for
        `tfdwd.export`.
      accelerator: None runs the models with LiteRT's Interpreter. "cpu", "gpu" or "npu" run them
        with its CompiledModel, timed by the wall clock; the CPU runs what a GPU or NPU cannot, and
        the report says so. Where it does, the time to load has a first try without the CPU in it.
        "gpu" and "npu" were not tried on a device that has one.

    Returns:
      The timings, with every sample.

    Raises:
      tfdwd.Error: no model, a file that LiteRT cannot open, a number below 1, or there is no such
        accelerator here.

    Example:
      >>> print(benchmark({"original": "model.tflite", "student": "student.tflite"}))
    """
    check(models, threads, rounds=rounds, warmup=warmup)
    checks.switches(xnnpack=xnnpack, startup=startup)
    _check_accelerator(accelerator, xnnpack)
    contents = {name: content_of(model, input_shape) for name, model in models.items()}
    opened = [_opened(content, threads, xnnpack, accelerator) for content in contents.values()]
    clock = _clock(threads) if accelerator is None else time.perf_counter
    for model in opened:
        model.load(_random_inputs(model))
        _seconds_per_run(model, warmup, clock)
    runs = [_runs_per_sample(model, clock) for model in opened]
    seconds = np.zeros((rounds, len(opened)))
    watch = Watch(_ROOT)
    for number, index in interleaved(rounds, len(opened)):
        seconds[number, index] = _seconds_per_run(opened[index], runs[index], clock)
        watch.look()
    return BenchmarkReport(
        timings=tuple(
            dataclasses.replace(
                timing_of(name, len(content), seconds[:, index], seconds[:, 0]),
                fully_accelerated=opened[index].fully_accelerated,
                **(_startup(content, threads, xnnpack, accelerator) if startup else {}),
            )
            for index, (name, content) in enumerate(contents.items())
        ),
        device=device(),
        threads=threads,
        rounds=rounds,
        runtime=f"LiteRT {lite.runtime_version()}",
        xnnpack=xnnpack,
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        conditions=watch.conditions(),
        accelerator=accelerator,
    )


def check(models: Mapping[str, Any], threads: int, **counts: int) -> None:
    """Refuses no models, more threads than any machine has, and counts below 1."""
    if not isinstance(models, Mapping) or not models:
        raise Error(
            "models: expected at least one model to time, as a dict of name to model, got "
            + (repr(models) if not models else type(models).__name__)
        )
    if strange := [name for name in models if not isinstance(name, str)]:
        raise Error(f"models: expected names that are text, got {strange[0]!r}")
    checks.whole("threads", threads, 1, MOST_THREADS)
    for name, number in counts.items():
        checks.whole(name, number, 1)


def _check_accelerator(accelerator: Any, xnnpack: bool) -> None:
    if accelerator is None:
        return
    checks.choice("accelerator", accelerator, lite.ACCELERATORS)
    if not xnnpack:
        raise Error("xnnpack=False: expected accelerator=None: CompiledModel always has XNNPACK")


def _opened(
    source: lite.Source, threads: int, xnnpack: bool, accelerator: str | None
) -> lite.Model | lite.CompiledModel:
    if accelerator is None:
        return lite.Model(source, threads, xnnpack=xnnpack)
    return lite.CompiledModel(source, threads, accelerator)


def interleaved(rounds: int, models: int) -> Iterator[tuple[int, int]]:
    """The order A B C, C B A, A B C and so on, as (round, model), with a progress bar."""
    with reporting.progress(rounds * models, "timing") as bar:
        for number in range(rounds):
            order = range(models)
            for index in order if number % 2 == 0 else reversed(order):
                yield number, index
                bar.update()


def content_of(
    model: "str | os.PathLike[str] | bytes | keras.Model", input_shape: InputShape | None = None
) -> bytes:
    """A .tflite model as bytes; a Keras model is converted.

    Args:
      model: as for `benchmark`.
      input_shape: of a Keras model that leaves sizes open.

    Raises:
      tfdwd.Error: no such file, or as `tfdwd.export`.
    """
    if isinstance(model, bytes):
        return model
    if isinstance(model, (str, os.PathLike)):
        return lite.content_of(model)
    from tfdwd import conversion

    conversion.check_convertible(model)
    return conversion.convert(model, conversion.file_shapes(model, input_shape))


def _random_inputs(model: lite.Model | lite.CompiledModel) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [_random(generator, tensor) for tensor in model.inputs]


def _random(generator: np.random.Generator, tensor: lite.Tensor) -> np.ndarray:
    if tensor.scale:  # The whole range is in use.
        limits = np.iinfo(tensor.dtype)
        held = generator.integers(limits.min, limits.max, tensor.shape, tensor.dtype, endpoint=True)
        return tensor.real(held)
    if tensor.dtype.kind in "biu":  # Indices: 0 and 1 are in every table that is looked up.
        return generator.integers(0, 2, tensor.shape).astype(tensor.dtype)
    return generator.random(tensor.shape).astype(tensor.dtype)


def _clock(threads: int) -> Callable[[], float]:
    """The clock to time so many threads by, in seconds."""
    # LiteRT runs one thread's work in the thread that calls it. Windows counts in ticks of 16 ms.
    if threads == 1 and time.get_clock_info("thread_time").resolution < 1e-5:
        return time.thread_time
    return time.perf_counter


def _seconds_per_run(
    model: lite.Model | lite.CompiledModel, runs: int, clock: Callable[[], float]
) -> float:
    start = clock()
    for _ in range(runs):
        model.invoke()
    return (clock() - start) / runs


def _runs_per_sample(model: lite.Model | lite.CompiledModel, clock: Callable[[], float]) -> int:
    """As many runs as last long enough; more are tried until they do."""
    runs = 1
    while (seconds := _seconds_per_run(model, runs, clock)) * runs < _SAMPLE_SECONDS / 2:
        runs *= 2
    return math.ceil(_SAMPLE_SECONDS / seconds)


def _startup(
    content: bytes, threads: int, xnnpack: bool, accelerator: str | None
) -> dict[str, Any]:
    """What `_print_startup` prints in a process that has opened no model yet."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        path.write_bytes(content)
        arguments = [str(path), str(threads), "1" if xnnpack else "", accelerator or ""]
        done = children.run("tfdwd.benchmarking", "_print_startup", arguments)
    if done.returncode:
        raise Error(f"the process that measures a model's start failed: {done.stderr[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _print_startup(path: str, threads: str, xnnpack: str, accelerator: str) -> None:
    before = _memory_kib("VmRSS", reset_peak=True)
    start = time.perf_counter()
    model = _opened(path, int(threads), bool(xnnpack), accelerator or None)
    loaded = time.perf_counter()
    model.load(_random_inputs(model))
    ready = time.perf_counter()
    model.invoke()
    done = time.perf_counter()
    peak = _memory_kib("VmHWM")
    found = {
        "load_ms": 1000 * (loaded - start),
        "first_ms": 1000 * (done - ready),
        "peak_kib": None if peak is None or before is None else max(peak - before, 0.0),
    }
    print(json.dumps(found))


def _memory_kib(field: str, reset_peak: bool = False) -> float | None:
    """A field of Linux's account of this process; None elsewhere."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    if reset_peak:
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:  # not allowed in some containers: the peak then is that since the start
            return None
    lines = [line.split() for line in status.read_text().splitlines()]
    return next((float(line[1]) for line in lines if line and line[0] == f"{field}:"), None)


def timing_of(name: str, size: int, seconds: np.ndarray, first: np.ndarray) -> Timing:
    """Sums up rounds.

    Args:
      name, size: of the model, the size in bytes.
      seconds: (rounds,) for one run.
      first: the same of the model that it is compared with.
    """
    ms = seconds * 1000
    p10, median, p90 = np.percentile(ms, (10, 50, 90))
    ratios = first / seconds
    drawn = np.random.default_rng(0).choice(ratios, (_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    speed_up = float(np.median(ratios))
    return Timing(
        name=name,
        bytes=size,
        median_ms=float(median),
        p10_ms=float(p10),
        p90_ms=float(p90),
        speed_up=speed_up,
        # The median itself is in the interval but for rounding and very few rounds.
        speed_up_low=min(float(low), speed_up),
        speed_up_high=max(float(high), speed_up),
        samples_ms=tuple(ms.tolist()),
    )


def device() -> str:
    """The board where it has a name, else the CPU."""
    board = Path("/proc/device-tree/model")
    if board.is_file():
        return board.read_text().rstrip("\0\n")
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
