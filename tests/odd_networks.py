"""Odd but legal networks: open sizes, fixed batches, several inputs and outputs, other dtypes.

Everything here is random but fixed. `OPEN` says at which sizes those run that leave sizes open.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from cases import randomised
from keras import layers, ops


def _conv(n: int, name: str, **options: Any) -> keras.layers.Conv2D:
    return layers.Conv2D(n, 3, padding="same", name=name, activation="relu", **options)


def _segmenter() -> keras.Model:
    image = keras.Input((None, None, 3), name="image")
    low = _conv(8, "down", strides=2)(image)
    up = layers.UpSampling2D(2, interpolation="bilinear")(_conv(8, "low")(low))
    both = layers.Concatenate()([up, _conv(6, "side")(image)])
    return keras.Model(image, layers.Conv2D(5, 1, activation="softmax", name="classes")(both))


def _two_views() -> keras.Model:
    colour = keras.Input((None, None, 3), name="colour")
    depth = keras.Input((None, None, 1), name="depth")
    both = layers.Concatenate()([_conv(6, "of_colour")(colour), _conv(4, "of_depth")(depth)])
    outputs = {
        "mask": layers.Conv2D(1, 1, activation="sigmoid", name="to_mask")(both),
        "height": layers.Conv2D(1, 1, name="to_height")(both),
    }
    return keras.Model({"depth": depth, "colour": colour}, outputs)


def _one_open_axis() -> keras.Model:
    image = keras.Input((16, None, 3), name="line")
    x = ops.max(_conv(6, "one")(image), axis=1)
    return keras.Model(image, layers.Dense(5, activation="softmax")(x))


def _signal() -> keras.Model:
    wave = keras.Input((None, 2), name="wave")
    x = layers.Conv1D(8, 5, strides=2, padding="causal", activation="relu")(wave)
    x = layers.SeparableConv1D(8, 3, padding="same")(x)
    return keras.Model(wave, layers.Dense(3)(layers.GlobalMaxPooling1D()(x)))


def _volume() -> keras.Model:
    scan = keras.Input((6, 8, 8, 1), name="scan")
    x = layers.Conv3D(4, 3, padding="same", activation="relu")(scan)
    x = layers.Conv3D(4, 3, strides=2, activation="relu")(x)
    return keras.Model(scan, layers.Dense(2)(layers.GlobalAveragePooling3D()(x)))


def _video() -> keras.Model:
    clip = keras.Input((4, 8, 8, 3), name="clip")
    frames = layers.TimeDistributed(_conv(6, "frame"))(clip)
    x = layers.TimeDistributed(layers.GlobalAveragePooling2D())(frames)
    return keras.Model(clip, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


def _unrolled() -> keras.Model:
    image = keras.Input((8, 8, 3), name="image")
    rows = layers.Reshape((4, 64))(_conv(4, "one")(image))
    both = layers.Concatenate()(
        [layers.LSTM(4, unroll=True)(rows), layers.GRU(4, unroll=True)(rows)]
    )
    return keras.Model(image, layers.Dense(3)(both))


def _words() -> keras.Model:
    image = keras.Input((8, 8, 3), name="image")
    words = keras.Input((5,), dtype="int32", name="words")
    meant = layers.GlobalAveragePooling1D()(layers.Embedding(10, 6)(words))
    seen = layers.GlobalAveragePooling2D()(_conv(6, "one")(image))
    return keras.Model([image, words], layers.Dot(1)([seen, meant]))


def _bytes() -> keras.Model:
    image = keras.Input((None, None, 3), dtype="uint8", name="bytes")
    x = layers.Rescaling(1 / 127.5, offset=-1)(image)
    x = layers.Resizing(8, 8)(x)
    return keras.Model(image, layers.Dense(4)(layers.Flatten()(_conv(4, "one")(x))))


def _gates() -> keras.Model:
    image = keras.Input((8, 8, 3), name="image")
    x = _conv(6, "one")(image)
    gated = ops.where(x > 0.3, x, 0.1 * x)
    chosen = ops.logical_and(x > 0.1, x < 0.9)
    return keras.Model(image, [gated, chosen, ops.cast(x > 0.5, "float32")])


def _mask() -> keras.Model:
    image = keras.Input((8, 8, 3), name="image")
    known = keras.Input((8, 8, 1), dtype="bool", name="known")
    return keras.Model([image, known], ops.where(known, _conv(6, "one")(image), 0.0))


class _Label(keras.layers.Layer):
    """The number of the class, int64."""

    def call(self, x: Any) -> Any:
        return tf.argmax(x, -1)

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(x.shape[:-1], "int64")


def _labels() -> keras.Model:
    image = keras.Input((None, None, 3), name="image")
    scores = layers.Conv2D(4, 3, padding="same", name="scores")(image)
    return keras.Model(image, _Label(name="label")(scores))


def _energy() -> keras.Model:
    image = keras.Input((8, 8, 3), name="image")
    return keras.Model(image, ops.mean(_conv(6, "one")(image)))


def _one_number() -> keras.Model:
    image = keras.Input((8, 8, 3), name="image")
    return keras.Model(image, ops.mean(_conv(6, "one")(image), axis=(1, 2, 3)))


def _constants() -> keras.Model:
    image = keras.Input((8, 8, 3), name="image")
    x = _conv(6, "one")(image)
    anchors = layers.Lambda(lambda _: tf.constant([[1.0, 2.0, 3.0]]), output_shape=(3,))(x)
    return keras.Model(image, [x, image, x, anchors])


def _super_resolution() -> keras.Model:
    image = keras.Input((None, None, 1), name="image")
    x = layers.Conv2D(4, 3, padding="same")(_conv(8, "one")(image))
    x = layers.Lambda(lambda y: tf.nn.depth_to_space(y, 2), output_shape=(None, None, 1))(x)
    return keras.Model(image, x + layers.UpSampling2D(2, interpolation="nearest")(image))


def _transposed() -> keras.Model:
    image = keras.Input((None, None, 3), name="image")
    x = layers.Conv2DTranspose(4, 3, strides=2, padding="same")(_conv(6, "one", strides=2)(image))
    return keras.Model(image, layers.Cropping2D(1)(layers.ZeroPadding2D(2)(x)))


def _dynamic_resize() -> keras.Model:
    image = keras.Input((None, None, 3), name="image")
    low = _conv(6, "one", strides=4)(image)
    up = layers.Lambda(
        lambda pair: tf.image.resize(pair[0], tf.shape(pair[1])[1:3]), output_shape=(None, None, 6)
    )([low, image])
    return keras.Model(image, up)


def _detector() -> keras.Model:
    image = keras.Input((32, 24, 3), name="image")
    maps = [x := _conv(8, "p3", strides=4)(image), _conv(8, "p4", strides=2)(x)]
    classes, boxes = _conv(2 * 4, "classes"), _conv(2 * 4, "boxes")
    outputs = {
        "classes": layers.Concatenate(1)([layers.Reshape((-1, 4))(classes(x)) for x in maps]),
        "boxes": layers.Concatenate(1)([layers.Reshape((-1, 4))(boxes(x)) for x in maps]),
    }
    outputs["classes"] = layers.Activation("sigmoid")(outputs["classes"])
    return keras.Model(image, outputs)


def _softmax_over_rows() -> keras.Model:
    image = keras.Input((8, 8, 3), name="image")
    return keras.Model(image, layers.Softmax(axis=1)(layers.Conv2D(4, 3, name="one")(image)))


def _attention() -> keras.Model:
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Reshape((16, 8))(_conv(8, "one", strides=2)(image))
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    return keras.Model(image, layers.Dense(3)(x[:, 0]))


def _batch_of_one() -> keras.Model:
    image = keras.Input(batch_shape=(1, 8, 8, 4), name="image")
    return keras.Model(image, layers.Dense(3)(layers.Flatten()(_conv(6, "one")(image))))


def _batch_of_four() -> keras.Model:
    image = keras.Input(batch_shape=(4, 8, 8, 4), name="image")
    return keras.Model(image, layers.Dense(3)(layers.Flatten()(_conv(6, "one")(image))))


def _pairs() -> keras.Model:
    """Needs all four images: each is compared with the one before it."""
    image = keras.Input(batch_shape=(4, 8, 8, 4), name="image")
    x = layers.GlobalAveragePooling2D()(_conv(6, "one")(image))
    before = ops.concatenate(ops.split(x, [3], axis=0)[::-1], axis=0)
    return keras.Model(image, layers.Dense(3)(before - x))


def _reshaped_batch() -> keras.Model:
    """Fails at any other number of images than four."""
    image = keras.Input(batch_shape=(4, 8, 8, 4), name="image")
    x = ops.reshape(_conv(6, "one")(image), (4, 8 * 8 * 6))
    return keras.Model(image, layers.Dense(3)(x))


def _nested_open() -> keras.Model:
    anywhere = keras.Input((None, None, 3))
    body = keras.Model(anywhere, _conv(6, "body_conv")(anywhere), name="body")
    image = keras.Input((None, None, 3), name="image")
    return keras.Model(image, layers.GlobalMaxPooling2D()(_conv(4, "head")(body(image))))


def _open_sequential() -> keras.Model:
    parts = [
        keras.Input((None, None, 3)),
        _conv(6, "one"),
        layers.BatchNormalization(),
        layers.ReLU(),
    ]
    return keras.Sequential([*parts, layers.GlobalAveragePooling2D(), layers.Dense(4)])


def _odd_names() -> keras.Model:
    inputs = [
        keras.Input((8, 8, 3), name=name)
        for name in ("self", "a picture [RGB]", "größe", "image-1", "image_1")
    ]
    x = [_conv(3, f"卷 ({number})")(image) for number, image in enumerate(inputs)]
    return keras.Model(inputs, {"the sum/all": layers.Add(name="sum of all")(x), "größe": x[0]})


def _same_names() -> keras.Model:
    first, second = keras.Input((8, 8, 3), name="a"), keras.Input((8, 8, 3), name="a_1")
    inner = [
        keras.Sequential([keras.Input((8, 8, 3)), _conv(3, "out")], name=name) for name in "xy"
    ]
    return keras.Model([first, second], [inner[0](first), inner[1](second), inner[0](second)])


def _preprocessed() -> keras.Model:
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0])(image)
    x = layers.GaussianNoise(0.5)(layers.RandomFlip()(layers.CenterCrop(6, 6)(x)))
    return keras.Model(image, layers.Dropout(0.5)(_conv(4, "one")(x)))


def _grouped() -> keras.Model:
    image = keras.Input((8, 8, 4), name="image")
    x = layers.DepthwiseConv2D(3, depth_multiplier=2)(layers.Conv2D(8, 3, groups=4)(image))
    return keras.Model(
        image, layers.GroupNormalization(4)(layers.SeparableConv2D(8, 3, padding="same")(x))
    )


def _loop() -> keras.Model:
    image = keras.Input((8, 8, 3), name="image")
    halved = layers.Lambda(
        lambda x: ops.fori_loop(0, 3, lambda _, y: y * 0.5, x), output_shape=(8, 8, 6)
    )
    return keras.Model(image, halved(_conv(6, "one")(image)))


def _without_convolutions() -> keras.Model:
    x = keras.Input((6,), name="x")
    return keras.Model(x, layers.Dense(2, activation="softmax")(layers.Dense(8, "tanh")(x)))


NETWORKS: dict[str, Callable[[], keras.Model]] = {
    "segmenter": _segmenter,
    "two views": _two_views,
    "one open axis": _one_open_axis,
    "signal": _signal,
    "volume": _volume,
    "video": _video,
    "unrolled": _unrolled,
    "words": _words,
    "bytes": _bytes,
    "gates": _gates,
    "mask": _mask,
    "labels": _labels,
    "energy": _energy,
    "one number": _one_number,
    "constants": _constants,
    "super-resolution": _super_resolution,
    "transposed": _transposed,
    "dynamic resize": _dynamic_resize,
    "detector": _detector,
    "softmax over rows": _softmax_over_rows,
    "attention": _attention,
    "batch of one": _batch_of_one,
    "batch of four": _batch_of_four,
    "pairs": _pairs,
    "reshaped batch": _reshaped_batch,
    "nested open": _nested_open,
    "open sequential": _open_sequential,
    "odd names": _odd_names,
    "same names": _same_names,
    "preprocessed": _preprocessed,
    "grouped": _grouped,
    "loop": _loop,
    "without convolutions": _without_convolutions,
}
OPEN: dict[str, list[tuple[int, ...]]] = {
    "segmenter": [(16, 12, 3)],
    "two views": [(12, 8, 3), (12, 8, 1)],
    "one open axis": [(16, 20, 3)],
    "signal": [(24, 2)],
    "bytes": [(10, 12, 3)],
    "labels": [(8, 6, 3)],
    "super-resolution": [(6, 8, 1)],
    "transposed": [(8, 12, 3)],
    "dynamic resize": [(16, 8, 3)],
    "nested open": [(10, 8, 3)],
    "open sequential": [(8, 8, 3)],
}


def network(name: str) -> keras.Model:
    """A fresh copy of one of NETWORKS with its fixed weights."""
    keras.utils.set_random_seed(0)
    model = NETWORKS[name]()
    seeds = any("int" in weight.dtype for weight in model.weights)  # of layers that draw
    return model if seeds else randomised(model)


def images_of(name: str, model: keras.Model, count: int = 40) -> list[np.ndarray]:
    """Random images for each input, of its dtype."""
    source = np.random.default_rng(1)
    shapes = OPEN.get(name) or [tensor.shape[1:] for tensor in model.inputs]
    arrays = []
    for tensor, shape in zip(model.inputs, shapes, strict=True):
        if tensor.dtype == "float32":
            arrays.append(source.normal(size=(count, *shape)).astype(np.float32))
        else:
            high = {"bool": 2, "uint8": 256, "int32": 10}[tensor.dtype]
            arrays.append(source.integers(high, size=(count, *shape)).astype(tensor.dtype))
    return arrays
