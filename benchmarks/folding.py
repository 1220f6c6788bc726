"""Students that train as larger networks and are folded afterwards.

Branches: a depthwise convolution of 3x3 taps gets one of a single tap beside it, and each of the
two a batch norm, as in RepVGG (Ding et al., arXiv 2101.03697, section 3.2) and GhostNetV3 (Liu et
al., arXiv 2404.11202, section 3.1). Once trained, the sum of both is one depthwise convolution with
a bias, so the student is again of plain layers.

Merging: a stack is linear, so it is again one regular convolution, which can be decomposed anew.
"""

import keras
import numpy as np
from keras import layers, ops


class Branched(layers.Layer):
    """A depthwise convolution and one of its middle tap, each followed by a batch norm.

    It begins as the convolution alone: the second batch norm begins with a gamma of 0.
    """

    def __init__(self, own: dict, **options) -> None:
        super().__init__(**options)
        self.own = layers.DepthwiseConv2D.from_config({**own, "name": "own", "use_bias": False})
        self.own_norm = layers.BatchNormalization()
        self.tap_norm = layers.BatchNormalization(gamma_initializer="zeros")

    def build(self, shape) -> None:
        self.own.build(shape)
        for norm in self.own_norm, self.tap_norm:
            norm.build(self.own.compute_output_shape(shape))
        kernel = self.own.kernel.shape
        self.tap = self.add_weight(shape=(1, 1, *kernel[2:]), initializer="ones", name="kernel")
        self.middle = [((n - 1) // 2, n // 2) for n in kernel[:2]] + [(0, 0), (0, 0)]
        super().build(shape)

    def compute_output_shape(self, shape):
        return self.own.compute_output_shape(shape)

    def call(self, x, training=None):
        tap = ops.depthwise_conv(
            x, ops.pad(self.tap, self.middle), self.own.strides, self.own.padding
        )
        return self.own_norm(self.own(x), training=training) + self.tap_norm(tap, training=training)

    def starts_from(self, kernel: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> None:
        """Takes the kernel (h, w, channels, 1) and what its responses (channels,) are like."""
        self.own.kernel.assign(kernel)
        norm = self.own_norm
        norm.gamma.assign(np.sqrt(variance + norm.epsilon))
        norm.beta.assign(mean)
        norm.moving_mean.assign(mean)
        norm.moving_variance.assign(variance)

    def folded(self) -> list[np.ndarray]:
        """Kernel (h, w, channels, 1) and bias (channels,) of the one convolution that it is."""
        kernels = (self.own.kernel, ops.pad(self.tap, self.middle))
        kernel, bias = 0, 0
        for own, norm in zip(kernels, (self.own_norm, self.tap_norm), strict=True):
            scale = norm.gamma / ops.sqrt(norm.moving_variance + norm.epsilon)
            kernel += own * scale[:, None]
            bias += norm.beta - norm.moving_mean * scale
        return [ops.convert_to_numpy(kernel), ops.convert_to_numpy(bias)]


def branched(student: keras.Model, images: np.ndarray) -> keras.Model:
    """A copy with branches; the images are those that batch norms begin with."""
    found = [layer for layer in student.layers if isinstance(layer, layers.DepthwiseConv2D)]
    responses = keras.Model(student.inputs, [layer.output for layer in found])
    model = _copy(student, lambda layer: Branched(layer.get_config(), name=layer.name))
    for layer, given in zip(found, responses.predict(images, verbose=0), strict=True):
        mean, variance = given.mean((0, 1, 2)), given.var((0, 1, 2))
        model.get_layer(layer.name).starts_from(layer.get_weights()[0], mean, variance)
    return model


def folded(model: keras.Model) -> keras.Model:
    """Of plain layers again; its depthwise convolutions have biases."""

    def plain(layer: Branched) -> layers.Layer:
        config = {**layer.own.get_config(), "name": layer.name, "use_bias": True}
        return layers.DepthwiseConv2D.from_config(config)

    student = _copy(model, plain, Branched)
    for layer in model.layers:
        if isinstance(layer, Branched):
            student.get_layer(layer.name).set_weights(layer.folded())
    return student


def merged(model: keras.Model, student: keras.Model) -> keras.Model:
    """The model with what its student learnt: each stack as one regular convolution again."""

    def made(layer: layers.Layer) -> layers.Layer:
        config = layer.get_config()
        if isinstance(layer, layers.Conv2D):  # a stack may have a bias that the model had not
            config["use_bias"] = student.get_layer(layer.name).use_bias
        return type(layer).from_config(config)

    copy = keras.models.clone_model(model, clone_function=made)
    stacks = {layer.name: [] for layer in model.layers if isinstance(layer, layers.Conv2D)}
    for layer in student.layers:
        stem = layer.name.rpartition("_reduce")[0] or layer.name.rpartition("_depthwise")[0]
        if stem in stacks:
            stacks[stem].append(layer.get_weights()[0])
    for layer in copy.layers:
        if not layer.weights:  # the input's layer may have another name
            continue
        weights = student.get_layer(layer.name).get_weights()
        if factors := stacks.get(layer.name):
            weights[0] = _kernel(factors, weights[0][0, 0])
        layer.set_weights(weights)
    return copy


def _kernel(factors: list[np.ndarray], pointwise: np.ndarray) -> np.ndarray:
    """Kernel (h, w, channels, n) of a stack: those of its layers but the last, and that (c, n)."""
    reduce = np.eye(factors[0].shape[2])
    if factors[0].shape[3] > 1:
        reduce = factors.pop(0)[0, 0]
    parts = np.split(pointwise, len(factors))
    return sum(
        np.einsum("ic,hwc,cn->hwin", reduce, taps[..., 0], part)
        for taps, part in zip(factors, parts, strict=True)
    )


def _copy(model: keras.Model, replaced, kind: type = layers.DepthwiseConv2D) -> keras.Model:
    """A copy in which a function of those layers replaces them; the others keep their weights."""

    def made(layer: layers.Layer) -> layers.Layer:
        if isinstance(layer, kind):
            return replaced(layer)
        return type(layer).from_config(layer.get_config())

    copy = keras.models.clone_model(model, clone_function=made)
    for layer in model.layers:
        if layer.weights and not isinstance(layer, kind):
            copy.get_layer(layer.name).set_weights(layer.get_weights())
    return copy
