"""Runs layers as at inference, whatever their defaults or the graph say."""

import contextlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
from keras.src.layers.preprocessing.image_preprocessing.base_image_preprocessing_layer import (
    BaseImagePreprocessingLayer,
)

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
    ``training=True``). What is random passes its input, too, where a user's ``call`` leaves no
    choice: in a dropout of the user, and in a layer of the user that holds a dropout.
    """
    if not isinstance(operation, keras.layers.Layer):
        return keras.tree.flatten(operation(*args, **kwargs))
    if _is_users_noise(operation):
        return keras.tree.flatten(_first(*args, **kwargs))
    with _noise_off(operation):
        return keras.tree.flatten(operation(*args, **{**kwargs, "training": False}))


def may_draw(model: keras.layers.Layer) -> bool:
    """Whether a layer inside with a ``call`` of the user may be random at ``training=False``."""
    return any(_is_users(layer) and any(_noise(layer)) for layer in model._flatten_layers())


def _is_users(layer: Any) -> bool:
    return not type(layer).__module__.startswith("keras.")


def _is_users_noise(operation: Any) -> bool:
    return _is_users(operation) and isinstance(operation, _NOISE)


def _noise(layer: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """What may be random of a layer and of those inside it."""
    for part in layer._flatten_layers():
        if isinstance(part, _NOISE) or (
            isinstance(part, BaseImagePreprocessingLayer) and not _is_users(part)
        ):
            yield part


@contextlib.contextmanager
def _noise_off(layer: keras.layers.Layer) -> Iterator[None]:
    """Holds what is random inside a layer to inference for a while, where the user calls it."""
    parts = list(_noise(layer)) if any(map(_is_users, layer._flatten_layers())) else []
    for part in parts:
        # Not by setattr, of which Keras keeps track.
        vars(part)["call"] = _first if _is_users_noise(part) else _held_to_inference(part.call)
    try:
        yield
    finally:
        for part in parts:
            del vars(part)["call"]


def _first(*args: Any, **kwargs: Any) -> Any:
    """The inputs of a call."""
    return args[0] if args else kwargs["inputs"]


def _held_to_inference(call: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(call)

    def run(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        return call(**{**given, "training": False})

    return run


@contextlib.contextmanager
def names_for_tensorflow(operations: Iterable[Any]) -> Iterator[None]:
    """Gives layers, and those inside, names that TensorFlow takes for scopes, for a while.

    Under JAX a layer may be called "conv 1" or "conv[0]"; TensorFlow runs it eagerly, but no graph
    of it can be made.
    """
    parts = [
        part
        for operation in operations
        for part in (
            [operation]
            if isinstance(operation, keras.layers.Layer)
            else getattr(operation, "layers", ())  # of a stack
        )
    ]
    layers = [layer for part in parts for layer in part._flatten_layers()]
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
