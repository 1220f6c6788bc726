"""The convolutions and the networks that drive the tests of the core.

Everything here is random but fixed, and gives outputs of a scale near 1.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers


@keras.saving.register_keras_serializable("tests")
class Doubled(keras.layers.Layer):
    """A user's own layer, which Keras knows by registration only."""

    def call(self, x: Any) -> Any:
        return 2 * x


@keras.saving.register_keras_serializable("tests")
class Holder(keras.layers.Layer):
    """A user's own layer with layers inside."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.first, self.second = layers.Dense(4), layers.Dense(4)

    def build(self, shape: Any) -> None:
        self.first.build(shape)
        self.second.build((*shape[:-1], 4))

    def call(self, x: Any) -> Any:
        return self.second(self.first(x))


@keras.saving.register_keras_serializable("tests")
class Block(keras.layers.Layer):
    """A user's residual block, of layers, operations and a mode of training."""

    def __init__(self, filters: int = 6, **options: Any):
        super().__init__(**options)
        self.filters = filters
        self.convs = [layers.Conv2D(filters, 3, padding="same", name="conv") for _ in range(2)]
        self.norm, self.drop = layers.BatchNormalization(), layers.Dropout(0.5)

    def build(self, shape: Any) -> None:
        for layer, channels in zip(self.convs, (shape[-1], self.filters), strict=True):
            layer.build((*shape[:-1], channels))
        self.norm.build((*shape[:-1], self.filters))

    def call(self, x: Any, training: bool | None = None) -> Any:
        y = self.norm(self.convs[0](x), training=training)
        y = self.convs[1](self.drop(keras.ops.relu(y), training=training))
        return layers.Add()([x, y * 0.5])

    def compute_output_shape(self, shape: Any) -> Any:
        return (*shape[:-1], self.filters)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "filters": self.filters}


@keras.saving.register_keras_serializable("tests")
class Twice(keras.layers.Wrapper):
    """A user's wrapper of two inputs and a dict of outputs."""

    def call(self, x: Any, other: Any = None, scale: float = 1.0) -> Any:
        return {"sum": self.layer(x) + scale * self.layer(other), "one": self.layer(x)}


@dataclasses.dataclass(frozen=True)
class ConvCase:
    """One convolution: options of a Conv2D of ``n`` filters on (h, w, c) inputs."""

    n: int
    kernel_size: tuple[int, int] = (3, 3)
    size: tuple[int, int, int] = (9, 8, 3)
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def q(self) -> int:
        return self.kernel_size[0] * self.kernel_size[1]

    @property
    def full_rank(self) -> int:
        return min(self.q, self.n)

    def model(self) -> keras.Sequential:
        conv = layers.Conv2D(self.n, self.kernel_size, name="conv", **self.options)
        return randomised(keras.Sequential([keras.Input(self.size), conv]))


CONVS = {
    "valid": ConvCase(5),
    "same": ConvCase(5, options={"padding": "same"}),
    "stride 2 valid": ConvCase(5, options={"strides": 2}),
    "stride 2 same": ConvCase(5, options={"strides": 2, "padding": "same"}),
    "stride (1, 2)": ConvCase(5, options={"strides": (1, 2), "padding": "same"}),
    "stride (2, 1)": ConvCase(5, options={"strides": (2, 1)}),
    "stride 3": ConvCase(5, options={"strides": 3, "padding": "same"}),
    "dilation 2 valid": ConvCase(5, options={"dilation_rate": 2}),
    "dilation (1, 2) same": ConvCase(5, options={"dilation_rate": (1, 2), "padding": "same"}),
    "no bias": ConvCase(5, options={"use_bias": False}),
    "relu": ConvCase(5, options={"activation": "relu"}),
    "swish": ConvCase(5, options={"activation": "swish"}),
    "softmax": ConvCase(5, options={"activation": "softmax"}),
    "1x3": ConvCase(5, (1, 3), options={"padding": "same"}),
    "3x1": ConvCase(5, (3, 1), options={"strides": (2, 1), "padding": "same"}),
    "2x2 same": ConvCase(6, (2, 2), options={"padding": "same"}),
    "5x5": ConvCase(7, (5, 5), options={"padding": "same"}),
    "7x7 stride 2": ConvCase(6, (7, 7), (14, 15, 3), {"strides": 2, "padding": "same"}),
    "one output": ConvCase(1),
    "one channel": ConvCase(5, size=(9, 8, 1)),
    "more outputs than taps": ConvCase(20, options={"padding": "same"}),
    "stride beyond the kernel": ConvCase(4, (2, 2), options={"strides": 3, "padding": "same"}),
}


def randomised(model: keras.Model, seed: int = 0) -> keras.Model:
    """Fills all weights, batch-norm statistics included, with fixed numbers of a sane scale."""
    source = np.random.default_rng(seed)
    weights = []
    for variable in model.weights:
        shape = tuple(variable.shape)
        if len(shape) > 1:
            value = source.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))
        elif "variance" in variable.path:
            value = source.uniform(0.5, 2, shape)
        elif "gamma" in variable.path:
            value = source.choice([-1, 1], shape, p=[0.2, 0.8]) * source.uniform(0.5, 1.5, shape)
        else:
            value = source.normal(size=shape) * 0.3
        weights.append(value.astype(variable.dtype))
    model.set_weights(weights)
    return model


def _conv(n: int, name: str, **options: Any) -> keras.layers.Conv2D:
    return layers.Conv2D(n, 3, padding="same", name=name, **options)


def _sequential() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((8, 8, 3), name="image"),
            _conv(6, "one", activation="relu"),
            layers.BatchNormalization(name="norm"),
            _conv(8, "two", strides=2, use_bias=False),
            layers.ReLU(name="act"),
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dense(4, name="head"),
        ],
        name="plain",
    )


def _functional() -> keras.Model:
    x = image = keras.Input((8, 8, 3), name="image")
    for index in range(3):
        x = layers.ReLU(6.0)(layers.BatchNormalization()(_conv(6, f"conv{index}")(x)))
    return keras.Model(image, layers.Dense(4, name="head")(layers.Flatten()(x)), name="deep")


def _inner(name: str = "inner") -> keras.Model:
    x = image = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(name="norm")(_conv(6, "one")(x))
    return keras.Model(image, _conv(3, "two", activation="relu")(x), name=name)


def _nested_sequential() -> keras.Model:
    image = keras.Input((8, 8, 3), name="image")
    backbone = keras.Sequential(
        [keras.Input((8, 8, 6)), _conv(6, "one"), layers.BatchNormalization(), layers.ReLU()],
        name="backbone",
    )
    x = backbone(_conv(6, "stem")(image), training=False)
    return keras.Model(image, _conv(4, "one")(x), name="outer")  # the inner one's name again


def _nested_twice() -> keras.Model:
    image = keras.Input((8, 8, 3), name="image")
    middle_input = keras.Input((8, 8, 3))
    x = _conv(3, "middle_conv")(_inner()(middle_input))
    middle = keras.Model(middle_input, x, name="middle")
    return keras.Model(image, layers.ReLU()(middle(_conv(3, "first")(image))), name="outer")


def _siamese() -> keras.Model:
    left, right = keras.Input((8, 8, 3), name="left"), keras.Input((8, 8, 3), name="right")
    shared, later = _conv(6, "shared", activation="relu"), _conv(4, "later")
    merged = layers.Subtract()([later(shared(left)), later(shared(right))])
    return keras.Model([left, right], merged, name="siamese")


def _recurrent() -> keras.Model:
    image = keras.Input((8, 8, 6), name="image")
    shared = _conv(6, "shared", activation="relu")
    return keras.Model(image, _conv(4, "last")(shared(shared(image))), name="recurrent")


def _shared_model() -> keras.Model:
    left, right = keras.Input((8, 8, 3), name="left"), keras.Input((8, 8, 3), name="right")
    inner = _inner()
    return keras.Model([left, right], layers.Add()([inner(left), inner(right)]), name="outer")


def _many_in_many_out() -> keras.Model:
    first, second = keras.Input((8, 8, 3), name="z"), keras.Input((4, 4, 3), name="a")
    low = _conv(6, "low", strides=2)(first)
    both = layers.Concatenate()([layers.ReLU()(low), _conv(6, "side")(second)])
    out = _conv(5, "out", activation="softmax")(both)
    return keras.Model([first, second], [out, layers.GlobalAveragePooling2D()(low)], name="many")


def _dicts() -> keras.Model:
    first, second = keras.Input((8, 8, 3), name="z"), keras.Input((8, 8, 3), name="a")
    x = layers.Add()([_conv(6, "of_z")(first), _conv(6, "of_a")(second)])
    outputs = {"y": _conv(4, "for_y")(x), "b": layers.GlobalMaxPooling2D()(x)}
    return keras.Model({"z": first, "a": second}, outputs, name="dicts")


def _nested_dicts() -> keras.Model:
    first, second = keras.Input((8, 8, 3), name="p"), keras.Input((8, 8, 3), name="q")
    outputs = _dicts()({"a": first, "z": second})
    return keras.Model([first, second], [outputs["b"], outputs["y"]], name="around")


def _residual() -> keras.Model:
    x = image = keras.Input((8, 8, 6), name="image")
    for block in ("a", "b"):
        branch = layers.BatchNormalization(name=f"{block}_bn1")(_conv(6, f"{block}_1")(x))
        branch = _conv(6, f"{block}_2")(layers.ReLU()(branch))
        branch = layers.BatchNormalization(name=f"{block}_bn2")(branch)
        x = layers.ReLU(name=f"{block}_out")(layers.Add()([x, branch]))
    return keras.Model(image, x, name="residual")


def _projected() -> keras.Model:
    image = keras.Input((8, 8, 6), name="image")
    x = _conv(6, "stem", activation="relu")(image)
    branch = _conv(8, "branch_2")(_conv(6, "branch_1", strides=2, activation="relu")(x))
    shortcut = _conv(8, "shortcut", strides=2)(x)
    return keras.Model(image, layers.ReLU()(shortcut + branch), name="projected")


def _branches() -> keras.Model:
    image = keras.Input((8, 8, 6), name="image")
    left = _conv(4, "left_2")(_conv(6, "left_1", activation="relu")(image))
    right = layers.MaxPooling2D(3, 1, padding="same")(image)
    x = layers.Concatenate()([left, _conv(4, "right", activation="swish")(right), image])
    return keras.Model(image, _conv(4, "after")(x), name="branches")


def _slices() -> keras.Model:
    image = keras.Input((8, 8, 6), name="image")
    x = _conv(6, "first")(image) + 3.0
    low, high = x[..., :3], x[..., 3:]
    x = layers.Concatenate()([low, layers.ReLU()(_conv(4, "on_high")(high))])
    return keras.Model(image, keras.ops.mean(_conv(4, "last")(x), axis=(1, 2)), name="slices")


def _custom() -> keras.Model:
    image = keras.Input((8, 8, 3), name="image")
    x = Doubled()(_conv(6, "first")(image))
    return keras.Model(image, Holder(name="holder")(_conv(4, "second")(x)), name="custom")


def _mixed_precision() -> keras.Model:
    image = keras.Input((8, 8, 3), name="image")
    x = _conv(6, "first", dtype="mixed_float16", activation="relu")(image)
    x = layers.BatchNormalization(dtype="mixed_float16")(
        _conv(6, "second", dtype="mixed_float16")(x)
    )
    return keras.Model(image, layers.Dense(4, dtype="float32")(x), name="mixed")


def _decorated() -> keras.Model:
    """Regularisers, a constraint and frozen parts."""
    image = keras.Input((8, 8, 3), name="image")
    backbone = _inner("backbone")
    backbone.trainable = False
    x = backbone(image)
    x = _conv(6, "regular", kernel_regularizer="l2", bias_regularizer="l1")(x)
    x = _conv(6, "bounded", kernel_constraint="max_norm", bias_constraint="non_neg")(x)
    x = _conv(6, "frozen", trainable=False)(x)
    holder = Holder(name="holder")
    x = holder(x)
    holder.first.trainable = False
    return keras.Model(image, x, name="decorated")


def _nested_open() -> keras.Model:
    image = keras.Input((8, 8, 3), name="image")
    anywhere = keras.Input((None, None, 3))
    body = keras.Model(anywhere, _conv(6, "body_conv", activation="relu")(anywhere), name="body")
    return keras.Model(image, _conv(4, "head")(body(image)), name="open_inside")


def _adapted() -> keras.Model:
    norm = layers.Normalization(name="pixels")
    norm.adapt(np.random.default_rng(0).normal(2, 3, (50, 8, 8, 3)))
    parts = [keras.Input((8, 8, 3)), norm, _conv(6, "conv"), layers.ReLU()]
    return keras.Sequential(parts, name="adapted")


def _names_taken() -> keras.Model:
    parts = [
        keras.Input((8, 8, 3)),
        _conv(6, "a"),
        layers.DepthwiseConv2D(3, name="a_depthwise"),
        layers.ReLU(name="a_depthwise_1"),
        layers.ReLU(name="a_concat"),
    ]
    return keras.Sequential(parts, name="taken")


NETWORKS: dict[str, Callable[[], keras.Model]] = {
    "sequential": _sequential,
    "functional": _functional,
    "nested sequential": _nested_sequential,
    "nested twice": _nested_twice,
    "siamese": _siamese,
    "recurrent": _recurrent,
    "shared model": _shared_model,
    "many in, many out": _many_in_many_out,
    "dicts": _dicts,
    "nested dicts": _nested_dicts,
    "residual": _residual,
    "projected": _projected,
    "branches": _branches,
    "slices": _slices,
    "custom layer": _custom,
    "mixed precision": _mixed_precision,
    "decorated": _decorated,
    "nested of open size": _nested_open,
    "adapted": _adapted,
    "names taken": _names_taken,
}


def _block() -> keras.Model:
    image = keras.Input((8, 8, 6), name="image")
    x = Block(name="block")(_conv(6, "stem")(image))
    return keras.Model(image, _conv(4, "last")(x), name="blocks")


def _block_shared() -> keras.Model:
    image = keras.Input((8, 8, 6), name="image")
    block = Block(name="block")
    merged = layers.Add()([block(image), block(layers.ReLU()(image))])
    return keras.Model(image, merged, name="shared")


def _wrapped() -> keras.Model:
    left, right = keras.Input((8, 8, 6), name="left"), keras.Input((8, 8, 6), name="right")
    found = Twice(_conv(5, "conv"), name="twice")(left, other=right, scale=2.0)
    return keras.Model([left, right], [found["sum"], found["one"]], name="wrapped")


def _normalized() -> keras.Model:
    wrapper = layers.SpectralNormalization(_conv(6, "conv"), name="spectral")
    return keras.Sequential([keras.Input((8, 8, 6)), wrapper, layers.ReLU()], name="spectrum")


def _time_steps(steps: int | None = 3) -> keras.Model:
    body = keras.Sequential(
        [
            keras.Input((8, 8, 6)),
            _conv(6, "one", activation="relu"),
            layers.BatchNormalization(name="norm"),
            _conv(5, "two"),
            layers.GlobalAveragePooling2D(),
        ],
        name="body",
    )
    parts = [layers.TimeDistributed(body, name="each"), layers.LSTM(4), layers.Dense(3)]
    return keras.Sequential([keras.Input((steps, 8, 8, 6)), *parts], name="video")


def _time_of_conv() -> keras.Model:
    each = layers.TimeDistributed(_conv(6, "conv"), name="each")
    return keras.Sequential([keras.Input((3, 8, 8, 6)), each, layers.ReLU()], name="frames")


def _time_of_block() -> keras.Model:
    each = layers.TimeDistributed(layers.TimeDistributed(Block(name="block")), name="each")
    return keras.Sequential([keras.Input((2, 2, 8, 8, 6)), each], name="clips")


HIDING: dict[str, Callable[[], keras.Model]] = {
    "own block": _block,
    "own block, shared": _block_shared,
    "own wrapper": _wrapped,
    "spectral normalization": _normalized,
    "time steps of a model": _time_steps,
    "time steps, open": lambda: _time_steps(None),
    "time steps of a convolution": _time_of_conv,
    "time steps of time steps of a block": _time_of_block,
}


def network(name: str) -> keras.Model:
    """A fresh copy of one of NETWORKS or HIDING with its fixed weights."""
    keras.utils.set_random_seed(0)
    model = (NETWORKS | HIDING)[name]()
    if name == "adapted":
        return model  # its statistics are its weights
    return randomised(model)


def inputs_of(model: keras.Model, images: int = 4, seed: int = 1) -> Any:
    """Random images in the form in which the model takes them."""
    source = np.random.default_rng(seed)
    arrays = [
        source.normal(size=(images, *(size or 3 for size in tensor.shape[1:]))).astype(np.float32)
        for tensor in model.inputs
    ]
    if isinstance(model, keras.Sequential):
        return arrays[0]
    return keras.tree.pack_sequence_as(model.input, arrays)


def outputs_of(model: keras.Model, inputs: Any) -> list[np.ndarray]:
    """The outputs at inference as a flat list, float32."""
    flat = keras.tree.flatten(model(inputs, training=False))
    return [keras.ops.convert_to_numpy(keras.ops.cast(y, "float32")) for y in flat]


def difference(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Largest difference of any output, relative to that output's largest value."""
    assert [y.shape for y in found] == [y.shape for y in expected]
    return max(
        float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(found, expected, strict=True)
    )


def convolutions(model: keras.Model) -> list[keras.layers.Conv2D]:
    """All regular spatial Conv2D layers, those of nested models included, each once."""
    return [
        layer
        for layer in model._flatten_layers()
        if type(layer) is keras.layers.Conv2D and layer.kernel_size != (1, 1)
    ]


def full_ranks(model: keras.Model) -> dict[str, int]:
    """{path or name: full rank} for `decompose`."""
    from tfdwd import graph

    ranks = {}
    for call in graph.trace(model).calls:
        layer = call.operation
        if type(layer) is keras.layers.Conv2D and layer.kernel_size != (1, 1):
            height, width, _, n = layer.kernel.shape
            ranks.setdefault(id(layer), (call.path, min(height * width, n)))
    return dict(ranks.values())
