"""Batch norms that see other inputs than they were trained on, behind replaced convolutions."""

import collections
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdwd import workers
from tfdwd.execution import run_call
from tfdwd.graph import Graph, trace

# Of 16 images the last bits of a stack decided whether the norms stayed as they were, which is
# points of accuracy; of 64 that is rare (benchmarks/steady.py).
NORM_IMAGES = 64


def reestimate_norms(
    model: keras.Model,
    student: keras.Model,
    batches: Iterable[Sequence[np.ndarray]],
    replaced: Sequence[str],
) -> list[str]:
    """Re-estimates the student's batch norms on images, and keeps that if it helps.

    A stack's own gain and bias are fitted when it is made. The norms elsewhere (behind a kept 1x1
    convolution, say) still hold the statistics of the original's inputs. Each gets the mean and
    variance with which its output comes closest, in least squares, to the original's. That stays
    only where it brings the outputs of the whole student closer to those of the original.

    Args:
      model: the original.
      student: its decomposed twin, whose norms are changed in place.
      batches: some images (of this worker), as arrays in the order of the inputs.
      replaced: paths of the convolutions that were replaced.

    Returns:
      Paths of the norms that were changed; empty if none was.

    Source: re-estimation of batch norm after compression, He et al., arXiv 1910.09455, section 4;
    the least-squares form is this project's.
    """
    graphs = trace(model), trace(student)
    paths = _drifted(graphs[0], set(replaced))
    if not paths:
        return []
    batches = list(batches)
    wanted, found, statistics = _compare(graphs, paths, batches)
    norms = {call.path: call.operation for call in graphs[1].calls if call.path in paths}
    before = {path: norm.get_weights() for path, norm in norms.items()}
    for path, norm in norms.items():
        _refit(norm, statistics[path])
    refitted = [_taps(graphs[1], (), _tensors(graphs[1], arrays))[0] for arrays in batches]
    if _output_error(refitted, wanted) < _output_error(found, wanted):
        return list(norms)
    for path, norm in norms.items():
        norm.set_weights(before[path])
    return []


def _drifted(graph: Graph, replaced: set[str]) -> list[str]:
    """Norms behind a replaced convolution, but not right behind it; those called once."""
    source = {n: call for call in graph.calls for n in call.outputs}
    behind: set[int] = set()
    found: list[str] = []
    paths = [call.path for call in graph.calls]
    for call in graph.calls:
        if call.path in replaced or any(n in behind for n in call.inputs):
            behind.update(call.outputs)
        if (
            isinstance(call.operation, keras.layers.BatchNormalization)
            and call.inputs[0] in behind
            and source[call.inputs[0]].path not in replaced
            and paths.count(call.path) == 1
        ):
            found.append(call.path)
    return found


def _compare(
    graphs: tuple[Graph, Graph], paths: Sequence[str], batches: Sequence[Sequence[np.ndarray]]
) -> tuple[list[list[np.ndarray]], list[list[np.ndarray]], dict[str, np.ndarray]]:
    """Both networks' outputs per batch; for each norm sums of (1, x, y, xx, xy) per channel.

    x is the student's input to the norm, y the original's.
    """
    wanted: list[list[np.ndarray]] = []
    found: list[list[np.ndarray]] = []
    sums: dict[str, Any] = dict.fromkeys(paths, 0.0)
    for arrays in batches:
        tensors = _tensors(graphs[0], arrays)
        (outputs, original), (own, student) = (_taps(graph, paths, tensors) for graph in graphs)
        wanted.append(outputs)
        found.append(own)
        for path, x, y in zip(paths, student, original, strict=True):
            x, y = (t.numpy().reshape(-1, t.shape[-1]) for t in (x, y))
            rows = np.full(x.shape[1], len(x), np.float64)
            products = [np.einsum("rc,rc->c", x, z, dtype=np.float64) for z in (x, y)]
            totals = [z.sum(0, dtype=np.float64) for z in (x, y)]
            sums[path] = sums[path] + np.array([rows, *totals, *products])
    return (
        wanted,
        found,
        dict(zip(paths, workers.add_up([sums[path] for path in paths]), strict=True)),
    )


def _taps(graph: Graph, paths: Sequence[str], tensors: Sequence[tf.Tensor]) -> Any:
    """The outputs of a network, and the inputs of the layers at some paths.

    Runs call by call: for so few images compiling would take longer.
    """
    values = dict(zip(graph.inputs, tensors, strict=True))
    read = itertools.chain(*(call.inputs for call in graph.calls), graph.outputs)
    readers = collections.Counter(read)
    taps = {}
    for call in graph.calls:
        if call.path in paths:
            taps[call.path] = tf.cast(values[call.inputs[0]], tf.float32)
        values.update(run_call(call, call.operation, values))
        readers.subtract(call.inputs)
        for n in call.inputs:
            if not readers[n]:
                values.pop(n, None)
    outputs = [values[n].numpy().astype(np.float64) for n in graph.outputs]
    return outputs, [taps[path] for path in paths]


def _output_error(
    found: Sequence[Sequence[np.ndarray]], wanted: Sequence[Sequence[np.ndarray]]
) -> float:
    """Mean over the outputs of their squared distance, in units of what is wanted."""
    squares = []
    for got, outputs in zip(zip(*found, strict=True), zip(*wanted, strict=True), strict=True):
        distance = sum(np.sum(np.square(a - b)) for a, b in zip(got, outputs, strict=True))
        squares.append((distance, sum(np.sum(np.square(b)) for b in outputs)))
    [[distances, powers]] = workers.add_up([np.array(squares).T])
    return float(np.mean(distances / (powers + 1e-300)))


def _tensors(graph: Graph, arrays: Sequence[np.ndarray]) -> list[tf.Tensor]:
    return [
        tf.cast(array, graph.specs[n].dtype) for array, n in zip(arrays, graph.inputs, strict=True)
    ]


def _refit(norm: keras.layers.BatchNormalization, sums: np.ndarray) -> None:
    """Sets mean and variance so that norm(x) is the best fit of the former norm(y).

    With y = gain * x + bias in least squares, (y - mean) / std = (x - m) / s for
    m = (mean - bias) / gain and s = std / gain.
    """
    rows, x, y, xx, xy = sums
    variance = xx / rows - (x / rows) ** 2
    covariance = xy / rows - x * y / rows**2
    gain = np.divide(covariance, variance, out=np.ones_like(x), where=variance > 1e-12)
    # A norm cannot turn a sign, and a channel that the student lost is not worth inflating.
    gain = np.clip(gain, 0.1, 10.0)
    bias = (y - gain * x) / rows
    mean, spread = (
        keras.ops.convert_to_numpy(v).astype(np.float64)
        for v in (norm.moving_mean, norm.moving_variance)
    )
    norm.moving_mean.assign((mean - bias) / gain)
    norm.moving_variance.assign(np.maximum((spread + norm.epsilon) / gain**2 - norm.epsilon, 1e-12))
