"""Keras 3 layers in a tf_keras (Keras 2) graph, and their splitting into LiteRT's operators."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
import tf_keras

from tfdwd import graph, rebuild

# tf_keras' own are taken for these: their kernels are rounded, or they are folded into those.
NATIVE = ("BatchNormalization", "Conv2D", "Conv2DTranspose", "Dense", "DepthwiseConv2D")
_ACTIVATED = ("Conv2D", "Conv2DTranspose", "Dense", "DepthwiseConv2D", "SeparableConv2D")


class Carried(tf_keras.layers.Layer):
    """Calls a Keras 3 layer or operation, which runs on TensorFlow too.

    Attributes:
      operation: the layer or operation; its weights are this layer's.
    """

    def __init__(self, operation: Any, fill: Callable[[list[Any]], Any], name: str) -> None:
        """Makes the layer.

        Args:
          operation: what is called.
          fill: turns the tensors that it reads into its positional and keyword arguments.
          name: of the layer.
        """
        trainable = getattr(operation, "trainable", False)
        super().__init__(name=name, dtype="float32", autocast=False, trainable=trainable)
        # In functions, since tf_keras looks through the attributes for what it is to save.
        self._operation: Callable[[], Any] = lambda: operation
        self._fill = fill
        if isinstance(operation, keras.Layer):
            self._trainable_weights.extend(v.value for v in operation.trainable_variables)
            others = [v.value for v in operation.non_trainable_variables]
            self._non_trainable_weights.extend(others)

    @property
    def operation(self) -> Any:
        return self._operation()

    def call(self, inputs: list[Any], training: Any = None) -> Any:
        """Calls the operation on the tensors that it reads."""
        args, kwargs = self._fill(inputs)
        if getattr(self.operation, "_call_has_training_arg", False):
            # As in Keras 3, the run decides, not the graph. It is a tensor only while the graph is
            # put together, when nothing is computed.
            kwargs = {**kwargs, "training": not tf.is_tensor(training) and bool(training)}
        return self.operation(*args, **kwargs)


def is_native(operation: Any) -> bool:
    """Whether tf_keras' own layer takes the operation's place."""
    own = type(operation).__module__.startswith("keras.")
    return own and type(operation).__name__ in NATIVE


def native(layer: keras.Layer, shape: tuple[int | None, ...], name: str) -> Any:
    """The built tf_keras layer for a Keras 3 layer without an activation, with copied weights.

    Args:
      layer: one of `NATIVE`.
      shape: of what it reads, with the batch axis.
      name: of the layer that is made.
    """
    kind = getattr(tf_keras.layers, type(layer).__name__)
    made = kind.from_config(_legacy(layer.get_config()) | {"dtype": "float32", "name": name})
    made.build(shape)
    names = ("gamma", "beta", "moving_mean", "moving_variance", "kernel", "bias")
    values = [getattr(layer, name, None) for name in names]
    made.set_weights([keras.ops.convert_to_numpy(value) for value in values if value is not None])
    return made


def _legacy(config: Any) -> Any:
    """A configuration of Keras 3 as tf_keras reads it: objects without the module they are from."""
    if isinstance(config, dict):
        if "class_name" in config and "config" in config:
            config = {"class_name": config["class_name"], "config": config["config"]}
        # Initializers differ between the two, and the weights are set anyway.
        dropped = ("quantization_config", "lora_rank", "lora_alpha")
        return {
            key: _legacy(value)
            for key, value in config.items()
            if not key.endswith("_initializer") and key not in dropped
        }
    return [_legacy(item) for item in config] if isinstance(config, list) else config


def split(model: keras.Model) -> keras.Model:
    """Splits layers into those that LiteRT computes in an operator each.

    Activations inside of layers, the two halves of a separable convolution, factor and offset of a
    Rescaling and the three steps of a hard sigmoid become layers of their own. The last keeps the
    layer's name.

    Args:
      model: a flat Keras 3 model; stays as it is.

    Returns:
      A Keras 3 model that computes the same.
    """
    expansions = {}
    for call in graph.trace(model).calls:
        pieces = _pieces(call.operation)
        if len(pieces) > 1:
            *first, last = pieces
            last.name = call.operation.name
            expansions[id(call.operation)] = rebuild.Expansion((tuple(first),), None, last)
    return rebuild.rebuild(model, expansions)


def _pieces(operation: Any) -> list[Any]:
    kind, name = type(operation).__name__, operation.name
    if kind == "HardSigmoid" and not isinstance(operation, keras.Layer):
        return _hard_sigmoid(name)
    if not isinstance(operation, keras.Layer) or not type(operation).__module__.startswith(
        "keras."
    ):
        return [operation]
    if kind == "Activation" and operation.activation is keras.activations.hard_sigmoid:
        return _hard_sigmoid(name)
    if kind == "Rescaling" and keras.ops.any(operation.offset):
        rescaling = keras.layers.Rescaling
        return [
            rescaling(operation.scale, name=f"{name}_scale", dtype="float32"),
            rescaling(1.0, operation.offset, dtype="float32"),
        ]
    if kind not in _ACTIVATED:
        return [operation]
    activation = operation.activation
    plain = kind != "SeparableConv2D"
    if plain and activation is keras.activations.linear:
        return [operation]
    layer = rebuild.remade(
        operation, activation=None, name=f"{name}_linear",
        **({"lora_rank": None, "lora_alpha": None} if hasattr(operation, "lora_rank") else {}),
    )  # fmt: skip
    layer.build_from_config(operation.get_build_config())
    for attribute in ("kernel", "depthwise_kernel", "pointwise_kernel", "bias"):
        if getattr(layer, attribute, None) is not None:
            getattr(layer, attribute).assign(getattr(operation, attribute))
    layers = [layer] if plain else _separable(layer)
    if isinstance(activation, keras.Layer):
        after = rebuild.remade(activation)
        rebuild.copy_state(activation, after)
        return [*layers, after]
    if activation is keras.activations.linear:
        return layers
    after = keras.layers.Activation(activation, name=f"{name}_activation", dtype="float32")
    return [*layers, *_pieces(after)]


def _hard_sigmoid(name: str) -> list[keras.Layer]:
    """Keras' definition, relu6(x + 3) / 6."""
    layers = keras.layers
    return [
        layers.Rescaling(1.0, 3.0, name=f"{name}_offset", dtype="float32"),
        layers.ReLU(6.0, name=f"{name}_relu6", dtype="float32"),
        layers.Rescaling(1 / 6, dtype="float32"),
    ]


def _separable(layer: Any) -> list[keras.Layer]:
    """A SeparableConv2D without activation as a depthwise and a pointwise convolution."""
    depthwise = keras.layers.DepthwiseConv2D(
        layer.kernel_size, layer.strides, layer.padding, layer.depth_multiplier, layer.data_format,
        layer.dilation_rate, use_bias=False, name=f"{layer.name}_depthwise", dtype="float32",
    )  # fmt: skip
    pointwise = keras.layers.Conv2D(
        layer.filters, 1, data_format=layer.data_format, use_bias=layer.use_bias,
        name=f"{layer.name}_pointwise", dtype="float32",
    )  # fmt: skip
    kernels = [layer.depthwise_kernel, layer.pointwise_kernel]
    for made, kernel in zip((depthwise, pointwise), kernels, strict=True):
        shape = [None, None, None]
        shape.insert(3 if layer.data_format == "channels_last" else 1, kernel.shape[2])
        made.build(tuple(shape))
        made.kernel.assign(kernel)
    if layer.use_bias:
        pointwise.bias.assign(layer.bias)
    return [depthwise, pointwise]


def in_float32(model: keras.Model) -> None:
    """Lets all layers of a model compute in float32; weights in half precision stay so."""
    for layer in model._flatten_layers():
        layer.dtype_policy = "float32"
