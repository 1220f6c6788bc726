"""Times from other devices: what to measure there, and the table that comes back."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import keras
import numpy as np

from tfdwd import (
    bridge,
    candidates,
    checks,
    conversion,
    files,
    graph,
    records,
    reporting,
)
from tfdwd.batches import first
from tfdwd.errors import Error
from tfdwd.logs import Run
from tfdwd.logs import read as read_log
from tfdwd.plans import Option
from tfdwd.records import Positive, PositiveAmount
from tfdwd.shapes import InputShape
from tfdwd.timecache import LayerTimes, check_complete
from tfdwd.times import Ratio, geometry, layer_files, name_of, shapes_read

_NETWORK = "network.tflite"
_MANIFEST = "manifest.json"
# What is in a folder before its manifest: files of ours, whole or not.
_LEFT = re.compile(
    r"\.?(network|\d{3}-[a-z]+(-\d+)?)(-\d+\.part)?\.tflite|\.manifest-\d+\.part\.json"
)


@dataclasses.dataclass(frozen=True)
class LatencyTable(records.Record):
    """What the layers of one network, and their stacks, take on some device.

    Attributes:
      device: where it was measured.
      runtime: what measured it.
      quantize, threads: how they ran.
      network_ms: milliseconds of the whole network.
      layers: for each geometry of a layer its `LayerTimes`.
    """

    device: str
    runtime: str
    quantize: str
    threads: Positive
    network_ms: PositiveAmount
    layers: dict[str, LayerTimes]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_complete(self.layers, "layers")

    def network(self) -> float:
        """Milliseconds of the whole network."""
        return self.network_ms

    def layer(
        self, layer: keras.layers.Conv2D, shape: tuple[int, ...], options: Sequence[Option]
    ) -> tuple[float, dict[Option, Ratio]]:
        """As `tfdwd.times.Times` has it.

        Raises:
          tfdwd.Error: the table is of another network.
        """
        found = self.layers.get(geometry(layer, shape), {})
        names = {option: name_of(option) for option in options}
        if not all(name in found for name in names.values()):
            raise Error(
                f"layer {layer.name!r}: expected a latency table with {geometry(layer, shape)} and "
                f"its stacks, got one of {len(self.layers)} other layers; write the micro-models "
                "of this model and measure those"
            )
        ratios = {}
        for option, name in names.items():
            ratio, low = found["kept"] / found[name], found[f"{name} surely"]
            ratios[option] = Ratio(ratio, min(low, ratio), max(ratio**2 / low, ratio))
        return found["kept"], ratios

    def student(self, chosen: Mapping[int, tuple[keras.layers.Conv2D, Option]]) -> None:
        """No student has run there."""


@dataclasses.dataclass(frozen=True)
class _Manifest(records.Record):
    """What the micro-models are: for each file the geometry of a layer, and "kept" or a stack."""

    quantize: str
    models: dict[str, tuple[str, str]]

    def __post_init__(self) -> None:
        super().__post_init__()
        kept = {key for key, name in self.models.values() if name == "kept"}
        for file, (key, _) in self.models.items():
            if key not in kept:
                raise Error(f'models[{file!r}]: no model of the same layer is "kept"')


def write_micro_models(
    model: keras.Model,
    folder: str | os.PathLike[str],
    *,
    quantize: str = "none",
    data: Any = None,
    input_shape: InputShape | None = None,
) -> int:
    """Writes what a plan times as .tflite files, to be timed on another device.

    Args:
      model: a Functional or Sequential model. Sizes that it leaves open are those of the data, or
        of ``input_shape``.
      folder: a new or empty folder; it gets ``network.tflite``, a file for each layer and each of
        its stacks, random weights in them, and at last ``manifest.json``.
      quantize: the precision that will be deployed, as for `tfdwd.export`.
      data: images, which int8 takes ranges from.
      input_shape: as for `tfdwd.export`.

    Returns:
      How many .tflite files there are.

    Raises:
      tfdwd.Error: the folder holds something, or as `tfdwd.export`.

    Example:
      >>> write_micro_models(model, "micro")  # doctest: +SKIP
      61
    """
    folder = checks.path("folder", folder)
    conversion.check_quantize(quantize)
    with _filled(folder):
        return _write_micro_models(model, folder, quantize, data, input_shape)


def _write_micro_models(
    model: keras.Model, folder: Path, quantize: str, data: Any, input_shape: InputShape | None
) -> int:
    conversion.check_backend()
    model = bridge.to_keras3(model)
    conversion.check_convertible(model)
    images = None if data is None else first(model, data, conversion.RANGE_IMAGES)
    conversion.check_enough(images, quantize)
    sizes = conversion.file_shapes(model, input_shape, images)
    traced = graph.at_sizes(graph.trace(model), [size[1:] for size in sizes])
    convs = {
        id(conv.layer): conv for conv in candidates.find_convolutions(traced) if not conv.obstacle
    }
    calls = {
        geometry(conv.layer, shape): (conv, shape)
        for conv in convs.values()
        for shape in shapes_read(traced, conv.layer, sizes[0][0])
    }
    conversion.export(
        model, folder / _NETWORK, quantize=quantize, data=images, input_shape=input_shape
    )
    manifest: dict[str, tuple[str, str]] = {}
    for number, (key, (conv, shape)) in enumerate(
        reporting.progress(calls.items(), "micro-models")
    ):
        options = candidates.options(conv)
        for name, content in layer_files(conv.layer, shape, options, quantize):
            file = f"{number:03d}-{name.replace(' ', '-')}.tflite"
            files.write_whole(folder / file, content)
            manifest[file] = key, name
    files.write_whole(folder / _MANIFEST, _Manifest(quantize, manifest).to_json())
    return len(manifest) + 1


@contextlib.contextmanager
def _filled(folder: Path) -> Iterator[None]:
    """Makes the folder where there is none; after any failure it is as it was.

    Raises:
      tfdwd.Error: as `_clear`, or it cannot be made.
    """
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        _clear(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Error(f"folder: cannot make {folder}: {error.strerror or error}") from error
    try:
        yield
    except BaseException:
        _clear(folder)
        for path in made:  # the innermost first
            path.rmdir()
        raise


def _clear(folder: Path) -> None:
    """Removes what an interrupted run left, which has no manifest; refuses all else.

    Raises:
      tfdwd.Error: the folder is a file, or holds something else.
    """
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if folder.is_file() or not all(map(_LEFT.fullmatch, names)):
        what = "a file" if folder.is_file() else "one that holds something"
        raise Error(f"{folder}: expected a new or an empty folder, got {what}")
    for name in names:
        (folder / name).unlink()


def read_latency_table(
    folder: str | os.PathLike[str], logs: Sequence[str | os.PathLike[str]], device: str
) -> LatencyTable:
    """Puts together what a tool measured for the files that `write_micro_models` wrote.

    Args:
      folder: with the manifest.
      logs: what the tool printed, in one file or in many; see `tfdwd.logs.read`. Of two runs of
        one file the later counts.
      device: where it was measured, for the plan.

    Returns:
      The table for `tfdwd.plan`.

    Raises:
      tfdwd.Error: no manifest, a log that is none, a file that no log has a result for, or logs of
        several tools or numbers of threads.
    """
    path = checks.path("folder", folder) / _MANIFEST
    if isinstance(logs, str | os.PathLike) or not isinstance(logs, Iterable):
        raise Error(f"logs: expected a list of files, got {logs!r}")
    if not isinstance(device, str):
        raise Error(f"device: expected its name as text, got {device!r}")
    if not os.path.isfile(path):
        raise Error(
            f"{folder}: expected a folder that tfdwd's micro-models were written to, with its "
            f"{_MANIFEST}; there is none"
        )
    try:
        manifest = _Manifest.from_json(files.read_text(path))
    except Error as error:
        raise Error(f"{path}: {error}") from error
    models = {PurePosixPath(file).stem: entry for file, entry in manifest.models.items()}
    found: dict[str, Run] = {}
    for log in logs:
        content = files.read_bytes(log)
        try:
            runs = read_log(content.decode("utf-8-sig", errors="replace"))
        except Error as error:
            raise Error(f"{log}: {error}") from error
        found.update({PurePosixPath(run.model).stem: run for run in runs})
    names = [PurePosixPath(_NETWORK).stem, *models]
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
    layers: dict[str, LayerTimes] = {}
    kept = {key: found[file] for file, (key, name) in models.items() if name == "kept"}
    for file, (key, name) in models.items():
        run, times = found[file], layers.setdefault(key, {})
        times[name] = run.ms
        if name != "kept":
            times[f"{name} surely"] = _lowest_speed_up(kept[key], run)
    [(tool, threads)] = ways
    return LatencyTable(
        device=device,
        runtime=tool,
        quantize=manifest.quantize,
        threads=threads,
        network_ms=found[names[0]].ms,
        layers=layers,
    )


def _lowest_speed_up(kept: Run, stack: Run) -> float:
    """The speed-up if the difference were two of its standard errors less."""
    return kept.ms / (stack.ms + 2 * float(np.hypot(kept.error_ms, stack.error_ms)))
