"""How long a network, its layers and its students take: measured here, or told by a table."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import keras
import numpy as np
from absl import logging

from tfdwd import benchmarking, conversion, factorize, graph, lite, rebuild
from tfdwd.errors import Error
from tfdwd.plans import Option
from tfdwd.timecache import TimeCache

# Rounds of timing a layer with its stacks; the next number where an interval is too wide, its upper
# end over its lower one.
_LAYER_ROUNDS, _WIDE_LAYER = (12, 24), 1.2
_NETWORK_ROUNDS = 20
# Where in memory LiteRT puts a network changes its time by a percent or two, and what shares the
# processor changes the speed-up of a small one by a tenth, for a second or less at a time. So a
# student is opened several times for a few rounds each, and those openings count in which the
# original was about as quick as ever: at least so many, and up to so many times as many openings
# where they are too few or too far apart. Opening a large one takes seconds: it gets fewer.
_STUDENT_ROUNDS, _WIDE_STUDENT, _AGAIN = 5, 1.05, 3
_OPENINGS, _COUNTED, _QUICK = 12, 4, 1.05
_FEW_OPENINGS, _LARGE_MS = 2, 50.0
_STUDENT_SECONDS = 3.0  # that the first rounds of a student take, about; a large one gets fewer
_RANDOM_IMAGES = 8  # for the ranges of a layer that is only timed


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A speed-up, measured side by side, with its 95 % interval."""

    speed_up: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """1 where nothing is left open."""
        return self.high / self.low


@runtime_checkable
class Times(Protocol):
    """Where a plan's times come from.

    Attributes:
      device, runtime: where, and by what they were measured.
      quantize, threads: how the network runs there, as for `tfdwd.plan`.
    """

    @property
    def device(self) -> str: ...

    @property
    def runtime(self) -> str: ...

    @property
    def quantize(self) -> str: ...

    @property
    def threads(self) -> int: ...

    def network(self) -> float:
        """Milliseconds of the whole original."""

    def layer(
        self, layer: keras.layers.Conv2D, shape: tuple[int, ...], options: Sequence[Option]
    ) -> tuple[float, dict[Option, Ratio]]:
        """Milliseconds of one call of a layer that reads ``shape``, and the stacks' speed-ups."""

    def student(self, chosen: Mapping[int, tuple[keras.layers.Conv2D, Option]]) -> Ratio | None:
        """The speed-up of a whole student, {id(layer): (layer, stack)}; None if nobody can tell."""


def geometry(layer: keras.layers.Conv2D, shape: tuple[int, ...]) -> str:
    """What the time of a convolution depends on, for inputs of a shape (batch, h, w, c)."""
    size = shape[1:] if shape[0] == 1 else shape
    return (
        f"{'x'.join(map(str, size))} -> {layer.filters}, taps {layer.kernel_size}, strides "
        f"{layer.strides}, dilation {layer.dilation_rate}, {layer.padding}"
    )


def shapes_read(
    traced: graph.Graph, layer: keras.layers.Layer, batch: int
) -> list[tuple[int, ...]]:
    """(batch, h, w, c) of what a layer reads at each call, for so many images at once.

    Inside of a TimeDistributed each step of each image is one of that batch.
    """
    rows = graph.rows_per_image(traced)
    reads = [call.inputs[0] for call in traced.calls if call.operation is layer]
    return [(batch * (rows[n] or 1), *traced.specs[n].shape[1:]) for n in reads]


def name_of(option: Option) -> str:
    """Of a stack, in caches and tables."""
    return f"{option.stack} {option.size}"


def all_calls(
    times: Times,
    layer: keras.layers.Conv2D,
    shapes: Sequence[tuple[int, ...]],
    options: Sequence[Option],
) -> tuple[float, dict[Option, Ratio]]:
    """Milliseconds of all calls of a layer together, and the stacks' speed-ups over all of them."""
    calls = [times.layer(layer, shape, options) for shape in shapes]
    kept = sum(ms for ms, _ in calls)
    return kept, {
        option: Ratio(
            *(
                kept / sum(ms / getattr(found[option], field) for ms, found in calls)
                for field in ("speed_up", "low", "high")
            )
        )
        for option in options
    }


class TimesHere:
    """Times on this machine's LiteRT. Those of layers are measured once: a `TimeCache` keeps them.

    Args:
      model: the original.
      sizes: of its inputs, with the batch.
      images: from which ranges are taken, an array for each input.
      quantize, threads: how it will run, as for `tfdwd.plan`.
      cache: the .json file; ~/.cache/tfdwd/latency.json if None.
    """

    def __init__(
        self,
        model: keras.Model,
        sizes: Sequence[tuple[int, ...]],
        images: Sequence[np.ndarray],
        *,
        quantize: str,
        threads: int,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        self._model, self._sizes, self._images = model, sizes, images
        self.quantize, self.threads = quantize, threads
        self._seen = TimeCache(cache)
        self.device = benchmarking.device()
        self.runtime = f"LiteRT {lite.runtime_version()}"
        self._content = conversion.checked(model, sizes, quantize, images)
        self._network_ms = self._timed()

    def network(self) -> float:
        return self._network_ms

    def _timed(self) -> float:
        report = benchmarking.benchmark(
            {"model": self._content}, threads=self.threads, rounds=_NETWORK_ROUNDS, warmup=1
        )
        if report.timings[0].noisy:
            logging.warning("the machine is noisy: trust the ratios, not the milliseconds")
        # What it takes when nothing else runs: layers are timed minutes later.
        return report.timings[0].p10_ms

    def layer(
        self, layer: keras.layers.Conv2D, shape: tuple[int, ...], options: Sequence[Option]
    ) -> tuple[float, dict[Option, Ratio]]:
        key = " | ".join(
            [self.device, self.runtime, self.quantize, str(self.threads), geometry(layer, shape)]
        )
        known = self._seen.times(key)
        names = [name_of(option) for option in options]
        # Times of earlier versions were halves of two runs, and people edit the cache.
        missing = [
            option
            for option, name in zip(options, names, strict=True)
            if not {"kept", name, f"{name} kept", f"{name} surely", f"{name} at most"} <= {*known}
        ]
        if missing:
            files = dict(layer_files(layer, shape, missing, self.quantize))
            kept_ms, ratios = self._beside(files, _LAYER_ROUNDS, _WIDE_LAYER)
            known["kept"] = kept_ms
            for name, ratio in ratios.items():
                known[name], known[f"{name} kept"] = kept_ms / ratio.speed_up, kept_ms
                known[f"{name} surely"], known[f"{name} at most"] = ratio.low, ratio.high
            self._seen.keep(key, known)
        return known["kept"], {
            option: Ratio(
                known[f"{name} kept"] / known[name],
                known[f"{name} surely"],
                known[f"{name} at most"],
            )
            for option, name in zip(options, names, strict=True)
        }

    def student(self, chosen: Mapping[int, tuple[keras.layers.Conv2D, Option]]) -> Ratio:
        stacks = {number: random_stack(layer, option) for number, (layer, option) in chosen.items()}
        student = conversion.convert(
            rebuild.rebuild(self._model, stacks), self._sizes, self.quantize, images=self._images
        )
        files = {"original": self._content, "student": student}
        small = self._network_ms < _LARGE_MS
        number, least = (_OPENINGS, _COUNTED) if small else (_FEW_OPENINGS, _FEW_OPENINGS)
        most = 1000 * _STUDENT_SECONDS / (2 * number * self._network_ms)
        rounds = max(3, min(_STUDENT_ROUNDS, round(most)))
        openings: list[tuple[float, Ratio]] = []
        for _ in range(_AGAIN):
            for _ in range(number):
                ms, found = self._beside(files, [rounds], 1)
                openings.append((ms, found["student"]))
            ratios, counted = quick(openings, self._network_ms, least)
            ratio = _mean(ratios)
            if counted >= least and ratio.width <= _WIDE_STUDENT:
                break
        return ratio

    def _beside(
        self, files: Mapping[str, bytes], all_rounds: Sequence[int], wide: float
    ) -> tuple[float, dict[str, Ratio]]:
        """Times the first file beside the others; again, for longer, what is left too open."""
        (first, content), *others = files.items()
        found: dict[str, Ratio] = {}
        kept_ms = np.inf
        for rounds in all_rounds:
            report = benchmarking.benchmark(
                {first: content, **dict(others)}, threads=self.threads, rounds=rounds, warmup=1
            )
            kept_ms = min(kept_ms, report.timings[0].p10_ms)
            for timing in report.timings[1:]:
                ratio = Ratio(timing.speed_up, timing.speed_up_low, timing.speed_up_high)
                known = found.get(timing.name)
                if known is None or ratio.width < known.width:
                    found[timing.name] = ratio
            others = [(name, file) for name, file in others if found[name].width > wide]
            if not others:
                break
        return float(kept_ms), found


def quick(
    openings: Sequence[tuple[float, Ratio]], known_ms: float, least: int
) -> tuple[list[Ratio], int]:
    """The speed-ups of those openings in which the original was about as quick as ever.

    Args:
      openings: milliseconds of the original in each, and the student's speed-up.
      known_ms: of the original, from before; infinite if unknown.
      least: so many of the quickest count, however slow.

    Returns:
      The speed-ups, and how many openings were quick: fewer than speed-ups on a busy machine.

    Example:
      >>> quick([(1.3, Ratio(2.7, 2.6, 2.8)), (1.0, Ratio(3.0, 2.9, 3.1))], np.inf, 1)
      ([Ratio(speed_up=3.0, low=2.9, high=3.1)], 1)
    """
    openings = sorted(openings, key=lambda one: one[0])
    most = _QUICK * min(openings[0][0], known_ms)
    counted = sum(ms <= most for ms, _ in openings)
    return [ratio for _, ratio in openings[: max(least, counted)]], counted


def _mean(ratios: Sequence[Ratio]) -> Ratio:
    """The geometric mean of independent measurements, and what is known of it."""
    logs = np.log([dataclasses.astuple(ratio) for ratio in ratios])
    middle, number = np.mean(logs[:, 0]), len(logs)
    between = 2 * np.std(logs[:, 0], ddof=1) / np.sqrt(number)
    low, high = (np.sqrt(np.sum((logs[:, i] - logs[:, 0]) ** 2)) / number for i in (1, 2))
    if number >= _COUNTED:  # how far apart they are says it all
        low = high = between
    ends = middle, middle - max(low, between), middle + max(high, between)
    return Ratio(*np.exp(ends).tolist())


def layer_files(
    layer: keras.layers.Conv2D, shape: tuple[int, ...], options: Sequence[Option], quantize: str
) -> Iterator[tuple[str, bytes]]:
    """A .tflite model of the layer alone, "kept", and one of each stack, with random weights."""
    source = np.random.default_rng(0)
    images = [source.normal(size=(max(_RANDOM_IMAGES, shape[0]), *shape[1:])).astype(np.float32)]
    config = {**layer.get_config(), "dtype": "float32", "activation": "relu", "use_bias": True}
    conv = keras.layers.Conv2D.from_config(config)
    x = keras.Input(shape[1:], name="x")
    answers = [conv(x)]
    for number, option in enumerate(options):
        stack = keras.Model(x, random_stack(conv, option)(x), name=f"stack_{number}")
        answers.append(stack(x))
    # One conversion for all: most of its time does not depend on what there is to convert.
    model = keras.Model(x, answers)
    content = conversion.convert(model, [shape], quantize, images=images)
    names = ["kept", *map(name_of, options)]
    yield from zip(names, lite.each_output(content), strict=True)


def random_stack(conv: keras.layers.Conv2D, option: Option) -> rebuild.Expansion:
    """A stack that runs as the one to be fitted will, with random weights of a sound scale."""
    c, q, n = conv.kernel.shape[2], int(np.prod(conv.kernel_size)), conv.filters
    r = option.size
    shapes = [(c, q, r), (c, r, n)] if option.stack == "separable" else [(c, r), (q, r), (r, n)]
    kind = factorize.Separable if option.stack == "separable" else factorize.Bottleneck
    source = np.random.default_rng(0)
    factors = [source.normal(size=s) / np.sqrt(np.prod(s[:-1])) for s in shapes]
    return rebuild.expand(conv, kind(*factors), np.zeros(n))


OPEN = 1.3  # width of an interval from which on it tells too little


def told_apart(
    measured: Sequence[tuple[float, int, Mapping[Option, Ratio]]], refuse: bool
) -> list[dict[Option, Ratio]]:
    """The speed-ups; where noise left one too open, what its MACs make likely.

    Args:
      measured: of each layer its milliseconds, its MACs, and its stacks' speed-ups.
      refuse: whether too much noise is an error, since the times decide.

    Returns:
      Of each layer its stacks' speed-ups.

    Raises:
      tfdwd.Error: of fewer than half of the stacks the speed-up could be told.
    """
    per_mac: dict[str, list[float]] = {}
    open_ = 0
    for _, macs, ratios in measured:
        for option, ratio in ratios.items():
            if ratio.width <= OPEN:
                cost = macs / option.macs / ratio.speed_up
                per_mac.setdefault(option.stack, []).append(cost)
            else:
                open_ += 1
    stacks = sum(len(ratios) for _, _, ratios in measured)
    if refuse and 2 * open_ > stacks:
        raise Error(
            f"the machine is too noisy to plan by time: {open_} of {stacks} stacks could not be "
            "told from the layers that they replace (their intervals are wider than "
            f"{100 * (OPEN - 1):.0f} %); stop other work on it, plan by macs=, or pass "
            "latency_table="
        )
    if open_:
        logging.warning(
            "noise left the times of %d of %d stacks open; they are judged by their MACs",
            open_,
            stacks,
        )

    def likely(option: Option, macs: int, ratio: Ratio) -> Ratio:
        if ratio.width <= OPEN or option.stack not in per_mac:
            return ratio
        speed_up = macs / option.macs / float(np.median(per_mac[option.stack]))
        return Ratio(speed_up, speed_up, speed_up)

    return [
        {option: likely(option, macs, ratio) for option, ratio in ratios.items()}
        for _, macs, ratios in measured
    ]
