"""Which errors of a convolution's response matter to the network's outputs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdwd import workers
from tfdwd.execution import response, run_call
from tfdwd.graph import Graph

IMAGES = 128  # at most, and at most a quarter of all: each costs three runs of the network
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
    factor), with labels drawn from the network's own prediction, so none are needed. An output
    that is no softmax gets random cotangents in units of its own spread instead. Summed over the
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
      {id(convolution): (n, n) positive semidefinite, float64}.

    Source: Martens and Grosse 2015, "Optimizing Neural Networks with Kronecker-factored
    Approximate Curvature", arXiv 1503.05671, section 3.
    """
    places = {id(conv): place for place, conv in enumerate(convs)}

    def squares(tensors: Sequence[tf.Tensor], seeds: tf.Tensor) -> list[tf.Tensor]:
        values = dict(zip(graph.inputs, tensors, strict=True))
        responses = []
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            for call in graph.calls:
                conv = call.operation
                if id(conv) not in places:
                    values.update(run_call(call, conv, values))
                    continue
                y = response(conv, values[call.inputs[0]])
                tape.watch(y)
                responses.append((places[id(conv)], y))
                values[call.outputs[0]] = conv.activation(y)
            score = tf.add_n([_score(graph, n, values[n], seeds) for n in graph.outputs])
        gradients = tape.gradient(score, [y for _, y in responses])
        found = [tf.zeros((conv.filters, conv.filters)) for conv in convs]
        for (place, _), gradient in zip(responses, gradients, strict=True):
            if gradient is not None:  # None where no output depends on the response
                rows = tf.reshape(gradient, (-1, gradient.shape[-1]))
                found[place] += tf.matmul(rows, rows, transpose_a=True)
        return found

    signature = [tf.TensorSpec(specs[n].shape, specs[n].dtype) for n in graph.inputs]
    compiled = tf.function(squares, [signature, tf.TensorSpec((2,), tf.int32)], autograph=False)
    sums = [np.zeros((conv.filters, conv.filters)) for conv in convs]
    used, share = 0, -(-min(IMAGES, -(-images // 4)) // workers.count())
    for number, arrays in enumerate(_first_images(batches, share)):
        seeds = tf.constant([seed, number * workers.count() + workers.index()])
        found = compiled([tf.constant(array) for array in arrays], seeds)
        used += len(arrays[0])
        for total, square in zip(sums, found, strict=True):
            total += square.numpy()
    whole, *sums = workers.add_up([np.array(used), *sums])
    return {id(conv): total / whole for conv, total in zip(convs, sums, strict=True)}


def _first_images(
    batches: Iterable[Sequence[np.ndarray]], images: int
) -> Iterator[list[np.ndarray]]:
    for arrays in batches:
        for first in range(0, len(arrays[0]), _BATCH):
            if images <= 0:
                return
            part = [array[first : min(first + _BATCH, first + images)] for array in arrays]
            images -= len(part[0])
            yield part


def _score(graph: Graph, number: int, output: Any, seeds: tf.Tensor) -> tf.Tensor:
    """The log-likelihood of drawn labels, or the product with random cotangents."""
    output = tf.cast(output, tf.float32)
    random = tf.random.stateless_uniform(tf.shape(output), seeds + number, 1e-6, 1.0)
    if _is_softmax(graph, number):
        logarithm = tf.math.log(output + 1e-20)
        # Gumbel's trick: the largest is a draw from the prediction.
        label = tf.argmax(logarithm - tf.math.log(-tf.math.log(random)), axis=-1)
        classes = tf.shape(output)[-1]
        return tf.reduce_sum(logarithm * tf.one_hot(label, classes))
    spread = tf.stop_gradient(tf.math.reduce_std(output)) + 1e-12
    return tf.reduce_sum((random - 0.5) * output / spread)


def _is_softmax(graph: Graph, number: int) -> bool:
    operations = [call.operation for call in graph.calls if number in call.outputs]
    return any(
        isinstance(operation, keras.layers.Softmax)
        or getattr(operation, "activation", None) is keras.activations.softmax
        for operation in operations
    )


def with_identity(square: np.ndarray) -> np.ndarray:
    """A Fisher metric (n, n) plus the identity, both of the trace n: positive definite.

    Some directions get no gradient from so few images.
    """
    identity, trace = np.eye(len(square)), np.trace(square)
    return identity + square * (len(square) / trace) if trace > 0 else identity
