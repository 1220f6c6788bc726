"""Runs layers as at inference, whatever their defaults or the graph say."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras

_NOISE = (
    keras.layers.Dropout,
    keras.layers.AlphaDropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
)


def at_inference(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Calls a layer or an operation as at inference; returns its outputs as a flat list.

    ``training=False`` also reaches the layers inside. It stands above the layer's own default
    (Random* layers are active by it) and above what the graph says (a dropout that is called with
    ``training=True``). A user's dropout or noise whose ``call`` leaves no choice passes its input.
    """
    if isinstance(operation, keras.layers.Layer):
        kwargs = {**kwargs, "training": False}
        if is_users_noise(operation):
            return keras.tree.flatten(args[0] if args else kwargs["inputs"])
    return keras.tree.flatten(operation(*args, **kwargs))


def is_users_noise(operation: Any) -> bool:
    """Whether it is a dropout or noise with a ``call`` of the user, which may leave no choice."""
    own = not type(operation).__module__.startswith("keras.")
    return own and isinstance(operation, _NOISE)


@contextlib.contextmanager
def names_for_tensorflow(operations: Iterable[Any]) -> Iterator[None]:
    """Gives layers, and those inside, names that TensorFlow takes for scopes, for a while.

    Under JAX a layer may be called "conv 1" or "conv[0]"; TensorFlow runs it eagerly, but no graph
    of it can be made.
    """
    layers = [
        layer
        for operation in operations
        for layer in (
            operation._flatten_layers()
            if isinstance(operation, keras.layers.Layer)
            else getattr(operation, "layers", ())  # of a stack
        )
    ]
    renamed = {
        id(layer): (layer, layer.name)
        for layer in layers
        if not re.fullmatch(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*", layer.name)
    }
    for layer, name in renamed.values():
        layer.name = "x" + re.sub(r"[^A-Za-z0-9_.]", "_", name)
    try:
        yield
    finally:
        for layer, name in renamed.values():
            layer.name = name


@contextlib.contextmanager
def plain_argmax() -> Iterator[None]:
    """Makes ``keras.ops.argmax`` and ``argmin`` one operator of TensorFlow, for a while.

    Keras tells -0.0 from 0.0 with bits of integers, which LiteRT has no operator for. Here the
    first of them is taken, as LiteRT does.
    """
    import tensorflow as tf
    from keras.src.backend.tensorflow import numpy as backend

    def plain(find: Any) -> Any:
        def run(x: Any, axis: int | None = None, keepdims: bool = False) -> Any:
            x = tf.convert_to_tensor(x)
            rank = x.shape.rank
            flat = tf.reshape(x, [-1]) if axis is None or not rank else x
            found = find(flat, axis=axis if rank and axis is not None else 0, output_type=tf.int32)
            if not keepdims:
                return found
            return tf.reshape(found, [1] * rank) if axis is None else tf.expand_dims(found, axis)

        return run

    kept = backend.argmax, backend.argmin
    backend.argmax, backend.argmin = plain(tf.argmax), plain(tf.argmin)
    try:
        yield
    finally:
        backend.argmax, backend.argmin = kept
