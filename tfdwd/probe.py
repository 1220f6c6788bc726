"""Random inputs, on which what should be equal is run and compared."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from tfdwd.differences import as_array
from tfdwd.graph import Call, Graph
from tfdwd.inference import at_inference

# Sizes for axes that a model leaves open; the first that the model runs at is used.
_SIZES = (32, 64, 96, 224)


def inputs(specs: Sequence[Any], images: int) -> Iterator[list[Any]]:
    """Candidates for a model's inputs, from the most useful to those that run in odd models.

    Args:
      specs: symbolic tensors of either Keras; an open batch becomes ``images``.
      images: how many.

    Yields:
      One array for each spec: floats around 0 that reach both ends of saturating functions, floats
      of the range of pixels, then 0 and 1 alone, which are also indices into any table; each for
      several sizes of open axes. Integers are from 0 to 255 among the pixels, else 0 and 1.
    """
    open_axes = any(size is None for spec in specs for size in spec.shape[1:])
    for size in _SIZES if open_axes else _SIZES[:1]:
        for kind in ("normal", "pixels", "binary"):
            random = np.random.default_rng(0)
            shapes = [
                (spec.shape[0] or images, *(axis or size for axis in spec.shape[1:]))
                for spec in specs
            ]
            yield [
                _random(random, shape, _dtype(spec), kind)
                for spec, shape in zip(specs, shapes, strict=True)
            ]


def _dtype(spec: Any) -> str:
    return spec.dtype if isinstance(spec.dtype, str) else spec.dtype.name


def _random(random: np.random.Generator, shape: tuple[int, ...], dtype: str, kind: str) -> Any:
    values: np.ndarray
    if dtype == "string":
        return random.choice(np.array(["a", "b 1", "2"], object), shape)
    if "float" in dtype and kind != "binary":
        values = random.normal(0, 2, shape) if kind == "normal" else random.uniform(0, 255, shape)
    else:
        values = random.integers(0, 256 if kind == "pixels" else 2, shape)
    return values.astype(as_array(keras.ops.zeros((), dtype)).dtype)


def walk(
    traced: Graph, tensors: Sequence[Any]
) -> Iterator[tuple[Call, dict[int, Any], dict[int, Any]]]:
    """Runs a graph as at inference, call by call; keeps a tensor only as long as it is read.

    Args:
      traced: the graph.
      tensors: its inputs.

    Yields:
      A call, what it read and what it wrote, by tensor number.
    """
    last = {number: index for index, call in enumerate(traced.calls) for number in call.inputs}
    values = dict(zip(traced.inputs, tensors, strict=True))
    layers = [c.operation for c in traced.calls if isinstance(c.operation, keras.Layer)]
    with unchanged(*layers):
        for index, call in enumerate(traced.calls):
            reads = {number: values[number] for number in call.inputs}
            results = at_inference(call.operation, *call.fill(reads))
            writes = dict(zip(call.outputs, results, strict=True))
            values.update(writes)
            yield call, reads, writes
            for number in reads:
                if last[number] == index:
                    del values[number]


def outputs(traced: Graph, tensors: Sequence[Any]) -> list[Any]:
    """The outputs of a graph as at inference."""
    values = dict(zip(traced.inputs, tensors, strict=True))
    for _, _, writes in walk(traced, tensors):
        values.update({number: writes[number] for number in writes if number in traced.outputs})
    return [values[number] for number in traced.outputs]


def example(traced: Graph) -> list[Any]:
    """The first random input that a graph runs on, one tensor each; none if there is none."""
    for arrays in inputs([traced.specs[number] for number in traced.inputs], images=1):
        tensors = [keras.ops.convert_to_tensor(array) for array in arrays]
        try:
            outputs(traced, tensors)
        except Exception:  # an index out of range, or a size that the model does not run at
            continue
        return tensors
    return []


@contextlib.contextmanager
def unchanged(*layers: keras.Layer) -> Iterator[None]:
    """Keeps the state that even inference changes, as that of a stateful RNN, or of seeds."""
    states = [
        (variable, as_array(variable))
        for outer in layers
        for layer in outer._flatten_layers()
        for variable in (
            *layer._non_trainable_variables,
            *(generator.state for generator in layer._seed_generators),
        )
    ]
    try:
        yield
    finally:
        for variable, value in states:
            variable.assign(value)
