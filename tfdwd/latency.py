"""Times of single layers, and of the stacks that could take their places, here or elsewhere."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import keras
import numpy as np

from tfdwd import (
    benchmarking,
    bridge,
    candidates,
    conversion,
    factorize,
    graph,
    lite,
    logs,
    rebuild,
    reporting,
)
from tfdwd.candidates import Option
from tfdwd.errors import Error

_ROUNDS = 9  # of timing, for each layer with its stacks
_RANDOM_IMAGES = 8  # for the ranges of a layer that is only timed
_NETWORK = "network.tflite"
_MANIFEST = "manifest.json"

# Of one layer, {"kept": ms, "separable 1": ms, "separable 1 surely": lowest likely speed-up, ...}.
Times = dict[str, float]
Source = Callable[[keras.layers.Conv2D, tuple[int, ...], Sequence[Option]], Times]


def geometry(layer: keras.layers.Conv2D, shape: tuple[int, ...]) -> str:
    """What the time of a convolution depends on, for inputs of a shape (h, w, c)."""
    return (
        f"{'x'.join(map(str, shape))} -> {layer.filters}, taps {layer.kernel_size}, strides "
        f"{layer.strides}, dilation {layer.dilation_rate}, {layer.padding}"
    )


def _name(option: Option) -> str:
    return f"{option.stack} {option.size}"


def timed(
    source: Source,
    layer: keras.layers.Conv2D,
    shapes: Sequence[tuple[int, ...]],
    options: Sequence[Option],
) -> tuple[float, dict[Option, tuple[float, bool]]]:
    """All calls of a layer together.

    Args:
      source: gives the times of one call.
      layer: the convolution.
      shapes: (h, w, c) of the input at each call.
      options: stacks.

    Returns:
      Milliseconds of the convolution; of each stack, with whether it was measured to be faster.
    """
    calls = [source(layer, shape, options) for shape in shapes]
    kept = sum(times["kept"] for times in calls)
    return kept, {
        option: (
            ms := sum(times[_name(option)] for times in calls),
            ms < kept and all(times[f"{_name(option)} surely"] > 1 for times in calls),
        )
        for option in options
    }


def measured_here(
    quantize: str, threads: int, cache: str | os.PathLike[str] | None = None
) -> Source:
    """Times layers on this machine's LiteRT, once: they are kept in a file.

    Args:
      quantize, threads: how they will run.
      cache: the .json file; ~/.cache/tfdwd/latency.json if None.

    Raises:
      tfdwd.Error: the file holds something else.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    path = root / "tfdwd" / "latency.json" if cache is None else Path(cache)
    seen: dict[str, Times] = {}
    if path.is_file():
        try:
            seen = json.loads(path.read_text())
        except ValueError as error:
            raise Error(
                f"{path}: expected a cache of measured times, got no JSON; delete it"
            ) from error
    where = f"{benchmarking.device()} | LiteRT {lite.runtime_version()} | {quantize} | {threads}"

    def measure(
        layer: keras.layers.Conv2D, shape: tuple[int, ...], options: Sequence[Option]
    ) -> Times:
        times = seen.setdefault(f"{where} | {geometry(layer, shape)}", {})
        missing = [option for option in options if _name(option) not in times]
        if missing:
            files = dict(_files(layer, shape, missing, quantize))
            report = benchmarking.benchmark(files, threads=threads, rounds=_ROUNDS)
            # The network and its layers are timed minutes apart: the low percentile is what they
            # take when nothing else runs.
            times["kept"] = report.timings[0].p10_ms
            for timing in report.timings[1:]:
                times[timing.name] = timing.p10_ms
                times[f"{timing.name} surely"] = timing.speed_up_low
            path.parent.mkdir(parents=True, exist_ok=True)
            reporting.write_whole(path, json.dumps(seen, indent=1))
        return times

    return measure


def _files(
    layer: keras.layers.Conv2D, shape: tuple[int, ...], options: Sequence[Option], quantize: str
) -> Iterator[tuple[str, bytes]]:
    """A .tflite model of the layer alone, and one of each stack, with random weights."""
    source = np.random.default_rng(0)
    images = [source.normal(size=(_RANDOM_IMAGES, *shape)).astype(np.float32)]
    config = {**layer.get_config(), "dtype": "float32", "activation": "relu", "use_bias": True}
    conv = keras.layers.Conv2D.from_config(config)
    x = keras.Input(shape, name="x")
    yield "kept", conversion.convert(keras.Model(x, conv(x)), quantize, False, images)
    for option in options:
        model = keras.Model(x, random_stack(conv, option)(x))
        yield _name(option), conversion.convert(model, quantize, False, images)


def random_stack(conv: keras.layers.Conv2D, option: Option) -> rebuild.Expansion:
    """A stack that runs as the one to be fitted will, with random weights of a sound scale."""
    c, q, n = conv.kernel.shape[2], int(np.prod(conv.kernel_size)), conv.filters
    r = option.size
    shapes = [(c, q, r), (c, r, n)] if option.stack == "separable" else [(c, r), (q, r), (r, n)]
    kind = factorize.Separable if option.stack == "separable" else factorize.Bottleneck
    source = np.random.default_rng(0)
    factors = [source.normal(size=s) / np.sqrt(np.prod(s[:-1])) for s in shapes]
    return rebuild.expand(conv, kind(*factors), np.zeros(n))


# ---------------------------------------------------------------------- other devices


@dataclasses.dataclass(frozen=True)
class LatencyTable(reporting.Saved):
    """What the layers of one network, and their stacks, take on some device.

    Attributes:
      device: where it was measured.
      runtime: what measured it.
      quantize, threads: how they ran.
      network_ms: milliseconds of the whole network.
      layers: for each geometry of a layer its `Times`.
    """

    device: str
    runtime: str
    quantize: str
    threads: int
    network_ms: float
    layers: dict[str, dict[str, float]]

    def times(
        self, layer: keras.layers.Conv2D, shape: tuple[int, ...], options: Sequence[Option]
    ) -> Times:
        """The times of one layer; a `Source`.

        Raises:
          tfdwd.Error: the table is of another network.
        """
        found = self.layers.get(geometry(layer, shape), {})
        if not all(_name(option) in found for option in options):
            raise Error(
                f"layer {layer.name!r}: expected a latency table with {geometry(layer, shape)} and "
                f"its stacks, got one of {len(self.layers)} other layers; write the micro-models "
                "of this model and measure those"
            )
        return found


def write_micro_models(
    model: keras.Model,
    folder: str | os.PathLike[str],
    *,
    quantize: str = "none",
    data: Any = None,
) -> int:
    """Writes what a plan times as .tflite files, to be timed on another device.

    Args:
      model: a Functional or Sequential model of fixed input sizes.
      folder: a new or empty folder; it gets ``network.tflite``, a file for each layer and each of
        its stacks, random weights in them, and at last ``manifest.json``.
      quantize: the precision that will be deployed, as for `tfdwd.export`.
      data: images, which int8 takes ranges from.

    Returns:
      How many .tflite files there are.

    Raises:
      tfdwd.Error: the folder holds something, or as `tfdwd.export`.

    Example:
      >>> write_micro_models(model, "micro")  # doctest: +SKIP
      61
    """
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise Error(f"{folder}: expected a new or an empty folder, got one that holds something")
    model = bridge.to_keras3(model)
    traced = graph.trace(model)
    folder.mkdir(parents=True, exist_ok=True)
    conversion.export(model, folder / _NETWORK, quantize=quantize, data=data)
    manifest: dict[str, list[str]] = {}
    convs = {
        id(conv.layer): conv for conv in candidates.find_convolutions(traced) if not conv.obstacle
    }
    calls = {
        geometry(call.operation, traced.specs[call.inputs[0]].shape[1:]): call
        for call in traced.calls
        if id(call.operation) in convs
    }
    for number, (key, call) in enumerate(reporting.progress(calls.items(), "micro-models")):
        shape = traced.specs[call.inputs[0]].shape[1:]
        options = candidates.options(convs[id(call.operation)])
        for name, content in _files(call.operation, shape, options, quantize):
            file = f"{number:03d}-{name.replace(' ', '-')}.tflite"
            reporting.write_whole(folder / file, content)
            manifest[file] = [key, name]
    whole = json.dumps({"quantize": quantize, "models": manifest}, indent=1)
    reporting.write_whole(folder / _MANIFEST, whole)
    return len(manifest) + 1


def read_latency_table(
    folder: str | os.PathLike[str], logs_: Sequence[str | os.PathLike[str]], device: str
) -> LatencyTable:
    """Puts together what a tool measured for the files that `write_micro_models` wrote.

    Args:
      folder: with the manifest.
      logs_: what the tool printed, in one file or in many; see `tfdwd.logs.read`. Of two runs of
        one file the later counts.
      device: where it was measured, for the plan.

    Returns:
      The table for `tfdwd.plan`.

    Raises:
      tfdwd.Error: no manifest, a log that is none, a file that no log has a result for, or logs of
        several tools or numbers of threads.
    """
    path = Path(folder) / _MANIFEST
    try:
        manifest = json.loads(path.read_text())
        files = {
            PurePosixPath(file).stem: tuple(entry) for file, entry in manifest["models"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Error(
            f"{folder}: expected a folder that tfdwd's micro-models were written to, with its "
            f"{_MANIFEST}; there is none"
        ) from error
    found: dict[str, logs.Run] = {}
    for log in logs_:
        try:
            runs = logs.read(Path(log).read_text(errors="replace"))
        except OSError as error:
            raise Error(f"{log}: cannot be read: {error.strerror}") from error
        except Error as error:
            raise Error(f"{log}: {error}") from error
        found.update({PurePosixPath(run.model).stem: run for run in runs})
    names = [PurePosixPath(_NETWORK).stem, *files]
    missing = [name for name in names if name not in found]
    if missing:
        raise Error(
            f"the logs have no result for {len(missing)} of {len(names)} files, such as "
            f"{missing[0]}.tflite; run the tool for those, too"
        )
    ways = sorted({(found[name].tool, found[name].threads) for name in names})
    if len(ways) > 1:
        raise Error(
            "expected logs of one tool with one number of threads, got "
            + " and ".join(f"{tool} with {threads}" for tool, threads in ways)
        )
    layers: dict[str, Times] = {}
    kept = {key: found[file] for file, (key, name) in files.items() if name == "kept"}
    for file, (key, name) in files.items():
        run, times = found[file], layers.setdefault(key, {})
        times[name] = run.ms
        if name != "kept":
            times[f"{name} surely"] = _lowest_speed_up(kept[key], run)
    return LatencyTable(
        device, ways[0][0], manifest["quantize"], ways[0][1], found[names[0]].ms, layers
    )


def _lowest_speed_up(kept: logs.Run, stack: logs.Run) -> float:
    """The speed-up if the difference were two of its standard errors less."""
    return kept.ms / (stack.ms + 2 * float(np.hypot(kept.error_ms, stack.error_ms)))
