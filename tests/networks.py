"""Random networks for the property tests, as a hypothesis strategy.

A network is drawn step by step. A step takes a tensor that is there and puts a part on it: one of
`LAYERS`, by the number of axes of the tensor, or one of `STEPS`, which may call several layers,
operations, or something that was called before. Each part draws its own options; a part that
cannot follow gives None, and the step is left out. What was done is kept in words, so that a
network that fails can be rebuilt by hand.
"""

import dataclasses
import random
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from cases import randomised
from hypothesis import assume
from hypothesis import strategies as st
from keras import layers, ops

IMAGES, WORDS = 8, 10
# The shares in which networks are drawn.
_POLICIES = ("float32",) * 12 + (
    "mixed_float16", "mixed_float16", "mixed_bfloat16", "mixed_bfloat16", "float16", "bfloat16",
    "float64",
)  # fmt: skip
_NAMES = ("{}_n{}",) * 5 + ("{} {}", "{}[{}]", "a.{}:{}", "фильтр {} é{}", "{}*?{}")
_BATCHES = (None,) * 7 + (1, 4, 8)
_KERNEL_SCALES = (1.0,) * 12 + (0.0, 1e-25, 1e-6, 1e4)


@dataclasses.dataclass(frozen=True, eq=False)
class Drawn:
    """A network with its data.

    Attributes:
      model: built, with random weights.
      data: IMAGES random inputs in the form in which the model takes them.
      batch: how many images the model must be called with; None for any number.
      policy: the dtype policy of all layers.
      steps: how it was made, one line for each tensor.
    """

    model: keras.Model
    data: Any
    batch: int | None
    policy: str
    steps: tuple[str, ...]

    def __repr__(self) -> str:
        return "\n  ".join(["Drawn:", *self.steps])

    def run(self, model: Any, scale: float = 1) -> list[np.ndarray]:
        """The outputs of this network or of its student at inference, a flat list in float32."""
        size, parts = self.batch or IMAGES, []
        for start in range(0, IMAGES, size):

            def some(x: np.ndarray, start: int = start) -> np.ndarray:
                x = x[start : start + size]
                return scale * x if x.dtype == np.float32 else x

            outputs = model(keras.tree.map_structure(some, self.data), training=False)
            flat = [ops.cast(y, "float32") for y in keras.tree.flatten(outputs)]
            parts.append([np.atleast_1d(ops.convert_to_numpy(y)) for y in flat])
        return [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]


# ---------------------------------------------------------------------- layers of users


@keras.saving.register_keras_serializable("networks")
class Held(layers.Layer):
    """Holds two convolutions as attributes."""

    def __init__(self, filters: int, **options: Any):
        super().__init__(**options)
        self.filters = filters
        self.first = layers.Conv2D(filters, 3, padding="same", name="held_first")
        self.second = layers.Conv2D(filters, (1, 3), padding="same", name="held_second")

    def build(self, shape: Any) -> None:
        self.first.build(shape)
        self.second.build((*shape[:-1], self.filters))

    def call(self, x: Any) -> Any:
        return self.second(ops.relu(self.first(x)))

    def compute_output_shape(self, shape: Any) -> Any:
        return (*shape[:-1], self.filters)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "filters": self.filters}


@keras.saving.register_keras_serializable("networks")
class Around(layers.Wrapper):
    """Adds what a layer gives to what it read."""

    def call(self, x: Any) -> Any:
        return x + self.layer(x)

    def compute_output_shape(self, shape: Any) -> Any:
        return shape


@keras.saving.register_keras_serializable("networks")
class Scaled(layers.Layer):
    """A residual branch of a convolution under weights of the layer's own, as in ConvNeXt."""

    def build(self, shape: Any) -> None:
        self.inner = layers.Conv2D(shape[-1], 3, padding="same", name="scaled_conv")
        self.inner.build(shape)
        self.gamma = self.add_weight(shape=(shape[-1],), initializer="ones", name="gamma")

    def call(self, x: Any) -> Any:
        return x + self.inner(x) * ops.cast(self.gamma, x.dtype)

    def compute_output_shape(self, shape: Any) -> Any:
        return shape


@keras.saving.register_keras_serializable("networks")
class Noisy(layers.Layer):
    """Noise that is on unless it is told otherwise."""

    def call(self, x: Any, training: bool = True) -> Any:
        return x + keras.random.normal(ops.shape(x), dtype=x.dtype) if training else x


# ---------------------------------------------------------------------- drawing


class _Builder:
    """The network as far as it has been drawn."""

    def __init__(self, draw: Callable[..., Any]):
        self._draw = draw
        self._names = self.pick(*_NAMES)
        self._count = 0
        self._text: dict[int, str] = {}
        self._labels: dict[int, str] = {}
        self.called: list[Any] = []  # layers and models, which may be called again
        self.tensors: list[Any] = []
        self.read: set[int] = set()
        self.steps: list[str] = []

    def pick(self, *options: Any) -> Any:
        return self._draw(st.sampled_from(options))

    def whole(self, low: int, high: int) -> int:
        return self._draw(st.integers(low, high))

    def make(self, kind: Any, *args: Any, **options: Any) -> Any:
        """A layer of a name of its own."""
        self._count += 1
        options = {"name": self._names.format(kind.__name__.lower(), self._count)} | options
        shown = [self.text(value) for value in args]
        shown += [f"{key}={self.text(value)}" for key, value in options.items()]
        layer = kind(*args, **options)
        self.tell(layer, f"{kind.__name__}({', '.join(shown)})")
        return layer

    def text(self, value: Any) -> str:
        return self._text.get(id(value)) or repr(value)

    def tell(self, thing: Any, text: str) -> Any:
        self._text[id(thing)] = text
        self.called.append(thing)  # so that the number stays its own
        return thing

    def add(self, text: str, result: Any, *reads: Any) -> Any:
        """Takes a new tensor in."""
        label = f"t{len(self.steps)}"
        self.steps.append(f"{label} = {text.format(*(self._labels[id(x)] for x in reads))}")
        self._labels[id(result)] = label
        self.tensors.append(result)
        self.read.update(id(x) for x in reads)
        return result

    def call(self, layer: Any, x: Any) -> Any:
        text = self.text(layer).replace("{", "{{").replace("}", "}}")
        return self.add(f"{text}({{}})", layer(x), x)

    def layer_on(self, shape: tuple[int | None, ...]) -> Any:
        """A layer that can read a tensor of this shape, batch axis left away, or None."""
        return self.pick(*LAYERS[len(shape)])(self, *shape)

    def step(self) -> None:
        """Puts one part on one tensor."""
        tensors = [x for x in self.tensors if len(x.shape) > 1]
        x = tensors[-1 - self.pick(*[0] * 6, *range(1, 4)) % len(tensors)]
        steps = STEPS[len(x.shape) - 1]
        part = self.pick(None, *steps) if self.pick(True, True, False) else None
        if part is not None:
            part(self, x)
        elif (layer := self.layer_on(x.shape[1:])) is not None:
            self.call(layer, x)


def _fit(low: int, *sizes: int | None) -> bool:
    """Whether all sizes are known and as large as that."""
    return all(size is not None and size >= low for size in sizes)


def _padding(b: _Builder, *sizes: int | None) -> str:
    return b.pick("same", "valid") if _fit(5, *sizes) else "same"


def _activation(b: _Builder) -> Any:
    name = b.pick(*[None] * 4, "relu", "relu", "swish", "gelu", "softmax", "hard_sigmoid", "layer")
    if name != "layer":
        return name
    kind, options = b.pick(
        (layers.ReLU, {"max_value": 6.0}),
        (layers.LeakyReLU, {"negative_slope": 0.2}),
        (layers.PReLU, {"shared_axes": [1, 2]}),
    )
    return b.make(kind, **options)


def _strides(b: _Builder, *sizes: int | None) -> dict[str, Any]:
    """Either strides or dilation."""
    if not _fit(5, *sizes):
        return {}
    return b.pick(
        *[{}] * 5, {"strides": 2}, {"strides": 2}, {"strides": (1, 2)}, {"dilation_rate": 2},
        {"dilation_rate": 2}, {"dilation_rate": (2, 1)},
    )  # fmt: skip


def _conv2d(b: _Builder, h: int | None, w: int | None, c: int) -> Any:
    kernel = b.pick((3, 3), (3, 3), (1, 1), (1, 3), (2, 2), (3, 1), (5, 4))
    # TensorFlow compiles groups and unequal strides anew at each call: both are drawn seldom.
    groups = b.pick(*[1] * 9, 2) if c % 2 == 0 else 1
    large = _fit(10, h, w) or kernel != (5, 4)
    options = _strides(b, h, w) if large else {}
    padding = _padding(b, h, w) if large else "same"
    return b.make(
        layers.Conv2D, groups * b.whole(1, 8 // groups), kernel, padding=padding, groups=groups,
        activation=_activation(b), use_bias=b.pick(True, True, False), **options, **_trained(b),
    )  # fmt: skip


def _trained(b: _Builder) -> dict[str, Any]:
    """What matters in training alone."""
    return b.pick(
        *[{}] * 12, {"trainable": False}, {"kernel_regularizer": "l2", "bias_regularizer": "l1"},
        {"kernel_constraint": "max_norm", "bias_constraint": "non_neg"},
        {"activity_regularizer": "l2"},
    )  # fmt: skip


def _depthwise(b: _Builder, h: int | None, w: int | None, c: int) -> Any:
    return b.make(
        layers.DepthwiseConv2D, 3, padding=_padding(b, h, w), depth_multiplier=b.pick(1, 1, 2)
    )


def _separable(b: _Builder, h: int | None, w: int | None, c: int) -> Any:
    return b.make(layers.SeparableConv2D, b.whole(1, 6), 3, padding=_padding(b, h, w))


def _transposed(b: _Builder, h: int | None, w: int | None, c: int) -> Any:
    return b.make(
        layers.Conv2DTranspose, b.whole(1, 6), 3, strides=b.pick(1, 2), padding=_padding(b, h, w)
    )


def _norm(b: _Builder, *shape: int | None) -> Any:
    kind, options = b.pick(
        (layers.BatchNormalization, {}),
        (layers.BatchNormalization, {}),
        (layers.BatchNormalization, {"scale": False, "center": False}),
        (layers.LayerNormalization, {}),
        (layers.GroupNormalization, {"groups": 1}),
        (layers.GroupNormalization, {"groups": -1}),
        (layers.RMSNormalization, {}),
        (layers.UnitNormalization, {}),
        (layers.Normalization, {"mean": 0.3, "variance": 2.0}),
    )
    if kind is layers.GroupNormalization and None in shape:
        return None
    return b.make(kind, **options)


def _squared(x: Any) -> Any:
    return ops.square(x)


def _activated(b: _Builder, *shape: int | None) -> Any:
    kind, *args = b.pick(
        (layers.ReLU,),
        (layers.ReLU, 6.0),
        (layers.LeakyReLU,),
        (layers.ELU,),
        (layers.Softmax,),
        (layers.Activation, "hard_sigmoid"),
        (layers.Activation, "hard_silu"),
        (layers.Activation, "tanh"),
        (layers.Activation, "mish"),
        (layers.Activation, ops.softplus),
        (layers.ActivityRegularization, 0.1),
        (layers.Lambda, _squared),
    )
    return b.make(kind, *args)


def _prelu(b: _Builder, h: int | None, w: int | None, c: int) -> Any:
    return b.make(layers.PReLU, shared_axes=[1, 2])


def _pool(b: _Builder, h: int | None, w: int | None, c: int) -> Any:
    kind = b.pick(layers.MaxPooling2D, layers.AveragePooling2D)
    return b.make(kind, 2, padding=_padding(b, h, w)) if _fit(4, h, w) else None


def _resized(b: _Builder, h: int | None, w: int | None, c: int) -> Any:
    if b.pick(True, False) and _fit(1, h, w) and h + w < 20:
        return b.make(layers.UpSampling2D, 2, interpolation=b.pick("nearest", "bilinear"))
    return b.make(layers.Resizing, b.whole(5, 9), b.whole(5, 9))


def _padded(b: _Builder, h: int | None, w: int | None, c: int) -> Any:
    if b.pick(True, False) and _fit(5, h, w):
        return b.make(layers.Cropping2D, ((1, 0), (0, 2)))
    return b.make(layers.ZeroPadding2D, ((0, 1), (2, 1)))


def _random(b: _Builder, h: int | None, w: int | None, c: int) -> Any:
    """Layers that do nothing at inference."""
    kind, *args = b.pick(
        (layers.Dropout, 0.5),
        (layers.SpatialDropout2D, 0.5),
        (layers.GaussianNoise, 1.0),
        (layers.GaussianDropout, 0.5),
        (layers.RandomFlip,),
        (layers.RandomTranslation, 0.2, 0.2),
        (layers.RandomRotation, 0.2),
        (layers.RandomZoom, 0.2),
        (layers.RandomContrast, 0.5),
        (Noisy,),
    )
    # The preprocessing layers of Keras compute in no half precision.
    half = keras.config.dtype_policy().compute_dtype != "float32"
    return None if half and kind.__name__.startswith("Random") else b.make(kind, *args)


def _rescaled(b: _Builder, *shape: int | None) -> Any:
    return b.make(layers.Rescaling, b.pick(0.5, -2.0, 1 / 255), offset=b.pick(0.0, -1.0))


def _to_vector(b: _Builder, h: int | None, w: int | None, c: int) -> Any:
    kind = b.pick(layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D, layers.Flatten)
    return None if kind is layers.Flatten and None in (h, w) else b.make(kind)


def _to_sequence(b: _Builder, h: int | None, w: int | None, c: int) -> Any:
    return b.make(layers.Reshape, (h * w, c)) if _fit(1, h, w) and h * w <= 49 else None


def _held(b: _Builder, h: int | None, w: int | None, c: int) -> Any:
    return b.make(Held, b.whole(1, 6))


def _scaled(b: _Builder, h: int | None, w: int | None, c: int) -> Any:
    return b.make(Scaled)


def _around(b: _Builder, h: int | None, w: int | None, c: int) -> Any:
    return b.make(Around, b.make(layers.Conv2D, c, 3, padding="same"))


def _spectral(b: _Builder, h: int | None, w: int | None, c: int) -> Any:
    half = keras.config.dtype_policy().compute_dtype != "float32"
    inner = b.make(layers.Conv2D, b.whole(1, 6), 3, padding="same")
    return None if half else b.make(layers.SpectralNormalization, inner)


def _nested(b: _Builder, *shape: int | None) -> Any:
    """A model inside the model."""
    return b.pick(_functional, _sequential)(b, shape, b.whole(1, 3))


def _dense(b: _Builder, *shape: int | None) -> Any:
    return b.make(layers.Dense, b.whole(1, 8), activation=b.pick(None, "relu", "softmax"))


def _dropout(b: _Builder, *shape: int | None) -> Any:
    return b.make(layers.Dropout, 0.5)


# Their usual one is a QR decomposition, which TensorFlow does not have in bfloat16.
_ANY_DTYPE = {"recurrent_initializer": "glorot_uniform"}


def _recurrent(b: _Builder, length: int | None, c: int) -> Any:
    kind = b.pick(layers.LSTM, layers.GRU, layers.SimpleRNN)
    if b.pick(True, False):
        sequences = b.pick(False, True)
        return b.make(kind, b.whole(1, 4), return_sequences=sequences, **_ANY_DTYPE)
    return b.make(layers.Bidirectional, b.make(kind, b.whole(1, 4), **_ANY_DTYPE))


def _masking(b: _Builder, length: int | None, c: int) -> Any:
    return b.make(layers.Masking)


def _each_step(b: _Builder, length: int | None, c: int) -> Any:
    return b.make(layers.TimeDistributed, b.make(layers.Dense, b.whole(1, 4)))


def _repeated(b: _Builder, c: int) -> Any:
    return b.make(layers.RepeatVector, 3)


def _to_map(b: _Builder, c: int) -> Any:
    return b.make(layers.Reshape, (1, 1, c))


def _conv1d(b: _Builder, length: int | None, c: int) -> Any:
    return b.make(layers.Conv1D, b.whole(1, 4), 3, padding="same")


def _pool_sequence(b: _Builder, length: int | None, c: int) -> Any:
    return b.make(b.pick(layers.GlobalAveragePooling1D, layers.GlobalMaxPooling1D))


def _each_frame(b: _Builder, t: int, h: int | None, w: int | None, c: int) -> Any:
    part = b.pick(_conv2d, _conv2d, _nested, _to_vector, _depthwise)
    inner = part(b, h, w, c)
    if inner is None or (isinstance(inner, keras.Model) and len(inner.output_shape) != 4):
        return None
    return b.make(layers.TimeDistributed, inner)


def _conv3d(b: _Builder, t: int, h: int | None, w: int | None, c: int) -> Any:
    return b.make(layers.Conv3D, b.whole(1, 3), 3, padding="same")


def _conv_lstm(b: _Builder, t: int, h: int | None, w: int | None, c: int) -> Any:
    if None in (h, w):
        return None
    return b.make(layers.ConvLSTM2D, b.whole(1, 3), 3, padding="same", **_ANY_DTYPE)


# By the number of axes without the batch's: vectors, sequences, maps, frames.
LAYERS: dict[int, tuple[Callable[..., Any], ...]] = {
    1: (_dense, _dense, _norm, _activated, _dropout, _rescaled, _repeated, _to_map),
    2: (_recurrent, _recurrent, _pool_sequence, _dense, _conv1d, _norm, _masking, _each_step),
    3: (
        *[_conv2d] * 10, _depthwise, _separable, _transposed, _norm, _norm, _activated, _prelu,
        _pool, _resized, _padded, _random, _rescaled, _to_vector, _to_sequence, _held, _around,
        _scaled, _spectral, _nested, _nested, _dense,
    ),
    4: (_each_frame, _each_frame, _each_frame, _conv3d, _conv_lstm, _norm, _rescaled),
}  # fmt: skip


# ---------------------------------------------------------------------- steps of several calls


def _arithmetic(b: _Builder, x: Any) -> None:
    text, function = b.pick(
        ("{} * 2", lambda x: x * 2),
        ("{} + 0.7", lambda x: x + 0.7),
        ("1 - {}", lambda x: 1 - x),
        ("-{}", lambda x: -x),
        ("ops.relu({})", ops.relu),
        ("ops.abs({})", ops.abs),
        ("ops.sigmoid({}) * {}", lambda x: ops.sigmoid(x) * x),
        ("ops.maximum({}, 0.1)", lambda x: ops.maximum(x, 0.1)),
    )
    b.add(text, function(x), *[x] * text.count("{}"))


def _reduced(b: _Builder, x: Any) -> None:
    b.add("ops.mean({}, axis=(1, 2))", ops.mean(x, axis=(1, 2)), x)


def _sliced(b: _Builder, x: Any) -> None:
    if x.shape[-1] > 1:
        b.add("{}[..., 1:]", x[..., 1:], x)


def _swapped(b: _Builder, x: Any) -> None:
    b.add("ops.transpose({}, (0, 2, 1, 3))", ops.transpose(x, (0, 2, 1, 3)), x)


def _reflected(b: _Builder, x: Any) -> None:
    """The padding of networks that restyle images."""
    if _fit(2, *x.shape[1:3]):
        sides = [[0, 0], [1, 1], [1, 0], [0, 0]]
        b.add(f"ops.pad({{}}, {sides}, 'reflect')", ops.pad(x, sides, "reflect"), x)


def _halved(b: _Builder, x: Any) -> None:
    """One half of the channels goes on as it is, as in ShuffleNet."""
    if x.shape[-1] % 2 == 0:
        left, right = ops.split(x, 2, -1)
        b.add("ops.split({}, 2, -1)[0]", left, x)
        b.add("ops.split({}, 2, -1)[1]", right, x)
        right = b.call(b.make(layers.Conv2D, x.shape[-1] // 2, 3, padding="same"), right)
        b.add("ops.concatenate([{}, {}], -1)", ops.concatenate([left, right], -1), left, right)


def _squeezed(b: _Builder, x: Any) -> None:
    """Squeeze and excitation."""
    c = x.shape[-1]
    y = b.call(b.make(layers.GlobalAveragePooling2D, keepdims=True), x)
    y = b.call(b.make(layers.Conv2D, max(1, c // 2), 1, activation="relu"), y)
    y = b.call(b.make(layers.Conv2D, c, 1, activation=b.pick("sigmoid", "hard_sigmoid")), y)
    layer = b.make(layers.Multiply)
    b.add(f"{b.text(layer)}([{{}}, {{}}])", layer([x, y]), x, y)


def _next_block(b: _Builder, x: Any) -> None:
    """The block of ConvNeXt, with a regular convolution."""
    c = x.shape[-1]
    y = b.call(b.make(layers.Conv2D, c, 5, padding="same"), x)
    y = b.call(b.make(layers.LayerNormalization, epsilon=1e-6), y)
    y = b.call(b.make(layers.Dense, 2 * c, activation="gelu"), y)
    y = b.call(b.make(layers.Dense, c), y)
    b.add("{} + {}", x + y, x, y)


def _summed(b: _Builder, x: Any) -> None:
    """One number of each image, or of all where their number is fixed."""
    axes = None if x.shape[0] and b.pick(True, False) else tuple(range(1, len(x.shape)))
    b.add(f"ops.mean({{}}, axis={axes})", ops.mean(x, axis=axes), x)


def _residual(b: _Builder, x: Any) -> None:
    inner = b.call(b.make(layers.Conv2D, x.shape[-1], 3, padding="same", activation="relu"), x)
    if b.pick(True, False):
        inner = b.call(b.make(layers.Conv2D, x.shape[-1], (3, 1), padding="same"), inner)
    if b.pick(True, False):
        b.add("{} + {}", x + inner, x, inner)
    else:
        layer = b.make(layers.Add)
        b.add(f"{b.text(layer)}([{{}}, {{}}])", layer([x, inner]), x, inner)


def _joined(b: _Builder, x: Any) -> None:
    """Two tensors that agree in all but, for some, the last axis."""
    kind = b.pick(
        layers.Concatenate, layers.Add, layers.Multiply, layers.Average, layers.Maximum,
        layers.Subtract, "ops.concatenate", "*",
    )  # fmt: skip
    last = None if kind in (layers.Concatenate, "ops.concatenate") else len(x.shape)
    others = [y for y in b.tensors if y is not x and y.shape[:-1] == x.shape[:-1]]
    others = [y for y in others if None not in y.shape[1:] and y.shape[:last] == x.shape[:last]]
    if not others or x.dtype != others[-1].dtype:
        return
    y = others[-1]
    if kind == "*":
        b.add("{} * {}", x * y, x, y)
    elif kind == "ops.concatenate":
        b.add("ops.concatenate([{}, {}], -1)", ops.concatenate([x, y], -1), x, y)
    else:
        layer = b.make(kind)
        b.add(f"{b.text(layer)}([{{}}, {{}}])", layer([x, y]), x, y)


def _again(b: _Builder, x: Any) -> None:
    """Calls what was called before once more."""
    for thing in b.called[::-1]:
        if isinstance(thing, layers.Layer) and thing.built and thing._inbound_nodes:
            [*tensors] = thing._inbound_nodes[0].input_tensors
            if len(tensors) == 1 and tensors[0].shape == x.shape and tensors[0].dtype == x.dtype:
                b.call(thing, x)
                return


def _attention(b: _Builder, x: Any) -> None:
    layer = b.make(layers.MultiHeadAttention, b.whole(1, 2), b.whole(1, 4))
    b.add(f"{b.text(layer)}({{}}, {{}})", layer(x, x), x, x)


def _stacked(b: _Builder, x: Any) -> None:
    """Frames, from a map and itself turned round."""
    y = b.add("{}[:, ::-1]", x[:, ::-1], x)
    b.add("ops.stack([{}, {}], 1)", ops.stack([x, y], 1), x, y)


def _mean_frame(b: _Builder, x: Any) -> None:
    b.add("ops.mean({}, axis=1)", ops.mean(x, axis=1), x)


STEPS: dict[int, tuple[Callable[[_Builder, Any], None], ...]] = {
    1: (_arithmetic, _joined, _again, _summed),
    2: (_attention, _attention, _again),
    3: (
        _residual, _residual, _joined, _joined, _again, _again, _arithmetic, _reduced, _sliced,
        _swapped, _stacked, _reflected, _halved, _squeezed, _next_block, _summed,
    ),
    4: (_mean_frame, _again),
}  # fmt: skip


# ---------------------------------------------------------------------- models


def _sequential(b: _Builder, shape: tuple[int | None, ...], length: int, batch: Any = None) -> Any:
    parts: list[Any] = [keras.Input(shape, batch, name=f"input {len(b.steps)}_{b._count}")]
    texts, x = [f"Input({shape})"], parts[0]
    for _ in range(length):
        if (layer := b.layer_on(x.shape[1:])) is not None:
            x = layer(x)
            parts.append(layer)
            texts.append(b.text(layer))
    if len(parts) == 1:
        return None
    name = f"sequential_{b._count}"
    return b.tell(keras.Sequential(parts, name=name), f"Sequential([{', '.join(texts)}])")


def _functional(b: _Builder, shape: tuple[int | None, ...], length: int) -> Any:
    inner = _Builder(b._draw)
    inner._count = b.pick(b._count, 0)  # from 0 the names outside come again
    image = inner.add(f"Input({shape})", keras.Input(shape, name=f"inner {b._count}"))
    for _ in range(length):
        inner.step()
    tensors = [x for x in inner.tensors if len(x.shape) > 1]
    if len(tensors) == 1:
        return None
    b._count += 1
    model = keras.Model(image, tensors[-1], name=f"functional_{b._count}")
    return b.tell(model, f"Model<{'; '.join(inner.steps)}>")


def _input(b: _Builder, batch: int | None) -> Any:
    size = (b.whole(4, 12), b.whole(4, 12))
    channels = b.pick(4, 3, 1, 6, 8)
    kind = b.pick(*["map"] * 10, "open", "frames", "vector", "bytes", "words")
    shape: tuple[int | None, ...] = {
        "map": (*size, channels),
        "open": (None, None, channels),
        "frames": (2, *size, channels),
        "vector": (channels,),
        "bytes": (*size, channels),
        "words": (5,),
    }[kind]
    dtype = {"bytes": "uint8", "words": "int32"}.get(kind)
    name = b.pick("input_{}", "image {}", "x[{}]").format(len(b.tensors))
    text = f"Input({shape}, {batch}, {dtype}, {name!r})"
    image = b.add(text, keras.Input(shape, batch, dtype, name=name))
    if kind == "bytes":
        b.call(b.make(layers.Rescaling, 1 / 127.5, offset=-1.0), image)
    if kind == "words":
        b.call(b.make(layers.Embedding, WORDS, 3, mask_zero=b.pick(True, False)), image)
    if dtype:
        b.tensors = [x for x in b.tensors if x is not image]  # nothing else reads whole numbers
    return image


def _outputs(b: _Builder, inputs: list[Any]) -> list[Any]:
    own = {id(x) for x in inputs}
    ends = [x for x in b.tensors if id(x) not in b.read and id(x) not in own]
    return ends[-3:]


def _packed(b: _Builder, tensors: list[Any], names: list[str]) -> Any:
    form = b.pick("list", "dict") if len(tensors) > 1 else b.pick("one", "one", "list", "dict")
    if form == "dict":  # in an order that is not that of the names
        return dict(reversed(list(zip(names, tensors, strict=True))))
    return tensors if form == "list" else tensors[0]


def _whole(b: _Builder, batch: int | None) -> keras.Model | None:
    if b.pick(*[False] * 5, True):
        shape = (b.whole(4, 12), b.whole(4, 12), b.pick(4, 3, 1, 8))
        model = _sequential(b, shape, b.whole(1, 6), batch)
        b.steps.append(b.text(model))
        return model
    inputs = [_input(b, batch) for _ in range(b.pick(1, 1, 1, 2))]
    for _ in range(b.whole(1, 6)):
        b.step()
    outputs = _outputs(b, inputs)
    if not outputs:
        return None
    ends = [b._labels[id(x)] for x in outputs]
    packed = (
        _packed(b, inputs, [x.name for x in inputs]),
        _packed(b, outputs, [f"out {number}" for number in range(len(outputs))]),
    )
    forms = [type(x).__name__ for x in packed]
    b.steps.append(f"Model, inputs as {forms[0]}, outputs {', '.join(ends)} as {forms[1]}")
    return keras.Model(*packed, name="drawn")


def _scale_kernels(b: _Builder, model: keras.Model) -> None:
    """Gives some convolutions kernels of another scale."""
    for layer in model._flatten_layers():
        if isinstance(layer, layers.Conv2D) and (scale := b.pick(*_KERNEL_SCALES)) != 1:
            layer.kernel.assign(ops.multiply(layer.kernel, scale))
            b.steps.append(f"{layer.name}.kernel *= {scale}")


def _data(model: keras.Model, seed: int) -> Any:
    source = np.random.default_rng(seed)
    sides = source.integers(8, 12, 2)
    arrays = []
    for spec in model.inputs:
        shape = list(spec.shape[1:])
        if None in shape:
            shape[:2] = sides
        size = (IMAGES, *shape)
        if spec.dtype in ("int32", "uint8"):
            most = {"int32": WORDS, "uint8": 256}[spec.dtype]
            arrays.append(source.integers(most, size=size).astype(spec.dtype))
        else:
            arrays.append(source.normal(size=size).astype(np.float32))
    if isinstance(model, keras.Sequential):
        return arrays[0]
    return keras.tree.pack_sequence_as(model.input, arrays)


@st.composite
def networks(draw: Callable[..., Any]) -> Drawn:
    """Networks that run; those that do not are drawn again."""
    b = _Builder(draw)
    policy, batch, seed = b.pick(*_POLICIES), b.pick(*_BATCHES), b.whole(0, 2**16)
    before, state = keras.config.dtype_policy(), random.getstate()
    keras.config.set_dtype_policy(policy)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Keras, about the network that was drawn
            model = _whole(b, batch)
        assume(model is not None)
        randomised(model, seed)
        _scale_kernels(b, model)
    finally:
        keras.config.set_dtype_policy(before)
        random.setstate(state)  # Keras draws seeds of layers; hypothesis wants it untouched
    b.steps.append(f"weights and data of seed {seed}, {policy}")
    return Drawn(model, _data(model, seed), batch, policy, tuple(b.steps))
