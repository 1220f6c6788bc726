"""Layers that round in training: the only file that knows tensorflow-model-optimization."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfdwd.errors import Error

try:
    import tensorflow_model_optimization as tfmot
except ImportError as error:
    raise Error(
        "quantize_aware: expected tensorflow-model-optimization; pip install 'tfdwd[qat]'"
    ) from error

_EMA = 0.99  # how much of a range is kept at each training step
_LEVELS = 127  # of a weight on either side of zero: LiteRT's int8 weights leave out -128


class ChannelWeights(tfmot.quantization.keras.quantizers.Quantizer):
    """Rounds a kernel to 8 bits with one symmetric scale for each channel, as LiteRT does.

    tensorflow-model-optimization's own takes one scale for all channels of a depthwise kernel
    (issue 808 there). The gradient passes the rounding unchanged.

    Attributes:
      axes: of the kernel that count channels.
    """

    def __init__(self, axes: Sequence[int]) -> None:
        self.axes = tuple(axes)

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        return {}

    def __call__(self, inputs: Any, training: bool, weights: Any, **kwargs: Any) -> Any:
        others = [axis for axis in range(len(inputs.shape)) if axis not in self.axes]
        kernel = tf.convert_to_tensor(inputs)
        limit = tf.reduce_max(tf.abs(kernel), others, keepdims=True)
        scale = tf.maximum(limit, 1e-30) / _LEVELS
        rounded = tf.round(kernel / scale) * scale
        return kernel + tf.stop_gradient(rounded - kernel) if training else rounded

    def get_config(self) -> dict[str, Any]:
        return {"axes": self.axes}


class SeenRange(tfmot.quantization.keras.quantizers.Quantizer):
    """Rounds activations to 8 bits over the range seen in training.

    The range is that of the first batch, then an exponential moving average; before any training
    activations pass unrounded. (tensorflow-model-optimization's own begins at -6..6 and takes
    thousands of steps to leave it.)
    """

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        def state(end: str) -> Any:
            return layer.add_weight(f"{name}_{end}", (), initializer="zeros", trainable=False)

        return {end: state(end) for end in ("low", "high", "seen")}

    def __call__(self, inputs: Any, training: bool, weights: Any, **kwargs: Any) -> Any:
        low, high, seen = weights["low"], weights["high"], weights["seen"]
        if not training:
            return tf.cond(seen > 0, lambda: _rounded(inputs, low, high), lambda: inputs)
        keep = _EMA * seen
        low = low.assign(keep * low + (1 - keep) * tf.minimum(tf.reduce_min(inputs), 0))
        high = high.assign(keep * high + (1 - keep) * tf.maximum(tf.reduce_max(inputs), 0))
        with tf.control_dependencies([low, high]):
            seen.assign(1.0)
        return _rounded(inputs, low, high)

    def get_config(self) -> dict[str, Any]:
        return {}


def _rounded(x: Any, low: Any, high: Any) -> Any:
    return tf.quantization.fake_quant_with_min_max_vars(x, low, tf.maximum(high, low + 1e-6))


class LikeLiteRT(tfmot.quantization.keras.QuantizeConfig):
    """What of one layer is rounded: its kernel if it has one, its output if it is to be.

    Attributes:
      kernel: the attribute of the layer that holds it, and the axes that count channels.
      output: whether LiteRT holds the layer's output as a tensor of its own range.
    """

    def __init__(self, kernel: tuple[str, tuple[int, ...]] | None, output: bool) -> None:
        self.kernel, self.output = kernel, output

    def get_weights_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
        if self.kernel is None:
            return []
        attribute, axes = self.kernel
        return [(getattr(layer, attribute), ChannelWeights(axes))]

    def get_activations_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
        return []

    def set_quantize_weights(self, layer: Any, quantize_weights: Sequence[Any]) -> None:
        if self.kernel is not None:
            [rounded] = quantize_weights
            setattr(layer, self.kernel[0], rounded)

    def set_quantize_activations(self, layer: Any, quantize_activations: Sequence[Any]) -> None:
        pass

    def get_output_quantizers(self, layer: Any) -> list[Any]:
        return [SeenRange()] if self.output else []

    def get_config(self) -> dict[str, Any]:
        return {"kernel": self.kernel, "output": self.output}


def wrap(layer: Any, kernel: tuple[str, tuple[int, ...]] | None, output: bool) -> Any:
    """The layer in tfmot's wrapper, where there is anything to round; see `LikeLiteRT`."""
    if kernel is None and not output:
        return layer
    wrapper = tfmot.quantization.keras.QuantizeWrapperV2
    return wrapper(layer, LikeLiteRT(kernel, output), name=layer.name)
