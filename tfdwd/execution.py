"""Running the calls of a graph on TensorFlow tensors."""

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tfdwd.graph import Call


def run_call(call: Call, operation: Any, values: Mapping[int, Any]) -> dict[int, Any]:
    """Runs ``operation`` (the call's own, or what replaces it); returns {tensor number: value}."""
    args, kwargs = call.fill(dict(values))
    return dict(zip(call.outputs, keras.tree.flatten(operation(*args, **kwargs)), strict=True))


def response(conv: keras.layers.Conv2D, x: tf.Tensor) -> tf.Tensor:
    """A convolution before its activation, (batch, h, w, n) float32."""
    y = conv.convolution_op(tf.cast(x, tf.float32), tf.cast(conv.kernel, tf.float32))
    return y if conv.bias is None else y + tf.cast(conv.bias, tf.float32)
