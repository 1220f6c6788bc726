"""Which errors of a convolution's response matter to the network's outputs."""

import functools
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfdwd import outputs, workers
from tfdwd.calibration._rows import response
from tfdwd.execution import run_call
from tfdwd.graph import Graph, own_batch
from tfdwd.inference import names_for_tensorflow

_IMAGES = 128  # at most, and at most a quarter of all: each costs three runs of the network
_BATCH = 8  # a gradient keeps all activations of its batch


def fisher_metrics(
    graph: Graph,
    batches: Iterable[Sequence[np.ndarray]],
    images: int,
    convs: Sequence[keras.layers.Conv2D],
    specs: Mapping[int, keras.KerasTensor],
    seed: int = 0,
) -> dict[int, np.ndarray]:
    """Finds how much an error in each direction of a response changes the network's outputs.

    The second moment of the gradient of the log-likelihood at the response (K-FAC's output
    factor), with labels drawn from the network's own prediction, so none are needed. Which outputs
    are probabilities is found on the first images; another output gets random cotangents in units
    of its own spread, and one of whole numbers has no gradient. Summed over the
    positions of an image: half the product with an error's second moment at one position is, to
    second order, what the error costs in log-likelihood.

    Args:
      graph: the network.
      batches: the images, as arrays in the order of the inputs; the first are used.
      images: how many there are in all, over all workers.
      convs: the convolutions whose responses are asked for.
      specs: the inputs' shapes and dtypes, by tensor number.
      seed: of labels and cotangents.

    Returns:
      {id(convolution): (n, n) positive semidefinite, float64}. It is zero where no gradient of the
      outputs reaches the response, since an operation behind it has none.

    Source: Martens and Grosse 2015, "Optimizing Neural Networks with Kronecker-factored
    Approximate Curvature", arXiv 1503.05671, section 3.
    """
    parts = _first_images(batches, images, own_batch(graph))
    first = next(parts)
    signature = [tf.TensorSpec(specs[n].shape, specs[n].dtype) for n in graph.inputs]
    with names_for_tensorflow(call.operation for call in graph.calls):
        run = tf.function(functools.partial(_outputs, graph), [signature], autograph=False)
        given = [tf.constant(array) for array in first]
        kinds = [_kind(output) for output in run.get_concrete_function()(given)]
        try:
            compiled = _compile(graph, convs, kinds, signature, set())
        except LookupError:  # some operation has no gradient
            deaf = _without_gradient(graph, signature)
            logging.info("no gradient: %s", ", ".join(sorted(graph.calls[n].path for n in deaf)))
            compiled = _compile(graph, convs, kinds, signature, deaf)
    sums = [np.zeros((conv.filters, conv.filters)) for conv in convs]
    used = 0
    for number, arrays in enumerate(itertools.chain([first], parts)):
        # For seeds within 32 bits the seed itself; NumPy takes any, TensorFlow does not.
        seeds = tf.constant([seed % (2**31 - 1), number * workers.count() + workers.index()])
        found = compiled([tf.constant(array) for array in arrays], seeds)
        used += len(arrays[0])
        for total, square in zip(sums, found, strict=True):
            total += square.numpy()
    whole, *sums = workers.add_up([np.array(used), *sums])
    return {id(conv): total / whole for conv, total in zip(convs, sums, strict=True)}


def _outputs(graph: Graph, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    values: dict[int, Any] = dict(zip(graph.inputs, tensors, strict=True))
    for call in graph.calls:
        values.update(run_call(call, call.operation, values))
    return [tf.convert_to_tensor(values[n]) for n in graph.outputs]


def _compile(
    graph: Graph,
    convs: Sequence[keras.layers.Conv2D],
    kinds: Sequence[str],
    signature: Sequence[tf.TensorSpec],
    deaf: Collection[int],
) -> Callable[..., list[tf.Tensor]]:
    """A function from images and seeds to each convolution's sum of gradients' squares, (n, n).

    Args:
      graph, convs, signature: the network, the convolutions, its inputs.
      kinds: of the outputs, `_kind`.
      deaf: numbers of the calls that no gradient passes.

    Raises:
      LookupError: an operation has no gradient.
    """
    places = {id(conv): place for place, conv in enumerate(convs)}

    def squares(tensors: Sequence[tf.Tensor], seeds: tf.Tensor) -> list[tf.Tensor]:
        values: dict[int, Any] = dict(zip(graph.inputs, tensors, strict=True))
        responses = []
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            for number, call in enumerate(graph.calls):
                conv = call.operation
                if number in deaf:
                    with tape.stop_recording():
                        values.update(run_call(call, conv, values))
                    continue
                if id(conv) not in places:
                    values.update(run_call(call, conv, values))
                    continue
                y = response(conv, values[call.inputs[0]])
                tape.watch(y)
                responses.append((places[id(conv)], y))
                values[call.outputs[0]] = conv.activation(y)
            scores = [
                _score(values[n], kind, seeds + n)
                for n, kind in zip(graph.outputs, kinds, strict=True)
                if kind != _WHOLE
            ]
            score = tf.add_n(scores) if scores else tf.constant(0.0)
        gradients = tape.gradient(score, [y for _, y in responses])
        found = [tf.zeros((conv.filters, conv.filters)) for conv in convs]
        for (place, _), gradient in zip(responses, gradients, strict=True):
            if gradient is not None:  # None where no output depends on the response
                rows = tf.reshape(gradient, (-1, gradient.shape[-1]))
                found[place] += tf.matmul(rows, rows, transpose_a=True)
        return found

    compiled = tf.function(squares, [signature, tf.TensorSpec((2,), tf.int32)], autograph=False)
    return compiled.get_concrete_function()


def _without_gradient(graph: Graph, signature: Sequence[tf.TensorSpec]) -> set[int]:
    """Numbers of the calls through which TensorFlow knows no gradient, each tried on its own."""
    found = set()

    def attempt(tensors: Sequence[tf.Tensor]) -> None:
        values: dict[int, Any] = dict(zip(graph.inputs, tensors, strict=True))
        for number, call in enumerate(graph.calls):
            sources = [values[n] for n in call.inputs if values[n].dtype.is_floating]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(sources)
                results = run_call(call, call.operation, values)
            targets = [y for y in results.values() if y.dtype.is_floating]
            try:
                tape.gradient(targets, sources)
            except Exception:  # whatever a gradient raises: none passes here
                found.add(number)
            values.update(results)

    tf.function(attempt, [signature], autograph=False).get_concrete_function()
    return found


def _first_images(
    batches: Iterable[Sequence[np.ndarray]], images: int, own_batch: int | None
) -> Iterator[list[np.ndarray]]:
    """Small batches of this worker's share of the images; whole ones if the network needs them."""
    share = -(-min(_IMAGES, -(-images // 4)) // workers.count())
    for arrays in batches:
        size = own_batch or _BATCH
        for first in range(0, len(arrays[0]), size):
            if share <= 0:
                return
            last = first + (own_batch or min(size, share))
            part = [array[first:last] for array in arrays]
            share -= len(part[0])
            yield part


_WHOLE = "whole numbers"


def _kind(output: tf.Tensor) -> str:
    """What an output is, by what it gave for some images; whole numbers have no gradient."""
    if not output.dtype.is_floating:
        return _WHOLE
    return outputs.kind_of(tf.cast(output, tf.float32).numpy())


def _score(output: tf.Tensor, kind: str, seeds: tf.Tensor) -> tf.Tensor:
    """The log-likelihood of drawn labels, or the product with random cotangents."""
    output = tf.cast(output, tf.float32)
    random = tf.random.stateless_uniform(tf.shape(output), seeds, 1e-6, 1.0)
    if kind == outputs.PROBABILITIES:
        logarithm = tf.math.log(output + 1e-20)
        # Gumbel's trick: the largest is a draw from the prediction.
        label = tf.argmax(logarithm - tf.math.log(-tf.math.log(random)), axis=-1)
        classes = tf.shape(output)[-1]
        return tf.reduce_sum(logarithm * tf.one_hot(label, classes))
    spread = tf.stop_gradient(tf.math.reduce_std(output)) + 1e-12
    return tf.reduce_sum((random - 0.5) * output / spread)


def with_identity(square: np.ndarray) -> np.ndarray:
    """A Fisher metric (n, n) plus the identity, both of the trace n: positive definite.

    Some directions get no gradient from so few images.
    """
    identity, trace = np.eye(len(square)), np.trace(square)
    return identity + square * (len(square) / trace) if trace > 0 else identity


def loss_metric(square: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """A metric (n, n) in which half of a response's squared error is a loss in nats.

    Args:
      square: the layer's Fisher metric.
      covariance: of its response, (n, n).

    Returns:
      The Fisher metric. Where no gradient reached the layer, so that it is zero, the one in which
      to lose the whole response costs half a nat.
    """
    if np.trace(square) > 0:
        return square
    return np.eye(len(square)) / max(float(np.trace(covariance)), 1e-30)
