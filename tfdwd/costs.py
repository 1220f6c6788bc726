"""Multiply-accumulates (MACs), parameters and bytes: of a stack by formula, of a model by counting.

MACs are of one image; a multiplication with an addition is one, biases and element-wise layers
are none. Importing this needs NumPy alone.
"""

import dataclasses
import math
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tfdwd import shapes
from tfdwd.errors import Error
from tfdwd.shapes import InputShape

if TYPE_CHECKING:
    import keras


def separable_macs(c: int, q: int, n: int, rank: int, outputs: int = 1) -> int:
    """MACs of ``rank`` depthwise convolutions and a pointwise one.

    Args:
      c, q, n: input channels, taps, output channels.
      rank: depthwise filters per channel.
      outputs: output positions.

    Example:
      >>> separable_macs(64, 9, 64, 1)  # a regular one: 64 * 9 * 64 = 36864
      4672
    """
    return outputs * c * rank * (q + n)


def bottleneck_macs(
    c: int, q: int, n: int, width: int, outputs: int = 1, inputs: int | None = None
) -> int:
    """MACs of pointwise, depthwise, pointwise; the first runs at all ``inputs`` positions."""
    return width * (c * (outputs if inputs is None else inputs) + (q + n) * outputs)


def channel_macs(c: int, q: int, n: int, filters: int, outputs: int = 1) -> int:
    """MACs of a regular convolution to ``filters`` channels and a pointwise one."""
    return outputs * filters * (c * q + n)


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a model costs.

    Attributes:
      macs: multiply-accumulates for one image.
      parameters: numbers in all weights, trainable or not; a shared layer's once.
      bytes: size of these weights in their own dtypes.
      uncounted: names of layers with weights whose MACs are not known here (and not in ``macs``).
    """

    macs: int
    parameters: int
    bytes: int
    uncounted: tuple[str, ...] = ()


def count(
    model: "keras.Model",
    input_shape: InputShape | None = None,
    *,
    input_shapes: Sequence[Sequence[int]] | None = None,
) -> Costs:
    """Counts the MACs, parameters and bytes of a Keras model.

    Args:
      model: Functional or Sequential, nested or not.
      input_shape: at which sizes to count, where the model leaves them open: one shape without the
        batch axis, such as (224, 224, 3), or one for each input, as a list or as a dict by name.
      input_shapes: the old name of input_shape, until 0.3.0.

    Returns:
      The costs. MACs are those of convolutions (regular, grouped, depthwise, separable,
      transposed) and dense layers.

    Raises:
      tfdwd.Error: a subclassed model, open sizes and no ``input_shape``, or one that the model
        cannot run at.

    Example:
      >>> import keras
      >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
      >>> count(model).macs  # 6 * 6 positions, 3 * 3 * 3 * 4 each
      3888
    """
    from tfdwd import graph  # imports keras: not at the top, so that a board can import this file

    if input_shapes is not None:
        warnings.warn(
            "count: input_shapes= is called input_shape= now; the old name will be removed in "
            "0.3.0",
            DeprecationWarning,
            stacklevel=2,
        )
        input_shape = input_shapes if input_shape is None else input_shape
    traced = graph.trace(model)
    if input_shape is not None:
        traced = graph.at_sizes(traced, shapes.of_inputs(model, input_shape))
    specs = traced.specs
    rows = graph.rows_per_image(traced, specs)
    macs = 0
    uncounted: dict[str, None] = {}
    for call in traced.calls:
        layer = call.operation
        read, written = (specs[n].shape for n in (call.inputs[0], call.outputs[0]))
        inputs, outputs = positions(read, layer), positions(written, layer)
        known = layer_macs(layer, inputs or 0, outputs or 0)
        if known is None:
            uncounted[layer.name] = None
        elif known == 0 and None in (inputs, outputs) and _kernels(layer):
            raise Error(
                f"layer {layer.name!r}: expected a fixed size to count MACs for, got {written}; "
                "pass input_shape, for example (224, 224, 3)"
            )
        else:
            macs += known * (rows[call.outputs[0]] or 1)
    return Costs(
        macs,
        sum(math.prod(weight.shape) for weight in model.weights),
        sum(math.prod(weight.shape) * _item_bytes(weight.dtype) for weight in model.weights),
        tuple(uncounted),
    )


def layer_macs(layer: Any, inputs: int, outputs: int) -> int | None:
    """MACs of a layer that reads and writes that many positions; None if they are not known."""
    kernels = _kernels(layer)
    if kernels is None:
        return None
    at = inputs if "BaseConvTranspose" in _families(layer) else outputs
    return sum(int(math.prod(kernel.shape)) for kernel in kernels) * at


def positions(shape: Sequence[int | None], layer: Any) -> int | None:
    """At how many positions of a (batch, ..., channels) tensor a kernel acts; None if open."""
    first = getattr(layer, "data_format", None) == "channels_first"
    spatial = shape[2:] if first else shape[1:-1]
    sizes = [size for size in spatial if size is not None]
    return math.prod(sizes) if len(sizes) == len(spatial) else None


def _families(layer: Any) -> set[str]:
    return {kind.__name__ for kind in type(layer).__mro__}


def _kernels(layer: Any) -> list[Any] | None:
    """The arrays that are multiplied once per position; None if that is not known."""
    families = _families(layer)
    if "BaseSeparableConv" in families:
        return [layer.depthwise_kernel, layer.pointwise_kernel]
    if families & {"BaseConv", "BaseDepthwiseConv", "BaseConvTranspose", "Dense"}:
        return [layer.kernel]
    cheap = "BatchNormalization", "LayerNormalization", "GroupNormalization", "Normalization"
    if families & {*cheap, "PReLU"} or not getattr(layer, "weights", []):
        return []
    return None


def _item_bytes(dtype: str) -> int:
    bits = re.search(r"\d+", str(dtype))  # the first number: float8_e4m3fn has several
    return max(int(bits[0]) // 8, 1) if bits else 1
