"""Quantisation-aware models: which steps of a network LiteRT rounds, and where."""

import collections
import dataclasses
import functools
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras
from absl import logging

from tfdwd import bridge, graph, probe, rebuild, to_keras2
from tfdwd.differences import difference, equal
from tfdwd.errors import Error, one_line

_RANGES = ("output_low:0", "output_high:0", "output_seen:0")  # of `rounding.SeenRange`
_ROUNDING = 1e-3  # of a whole model: what float32 may add up to

# Attribute and axes of the kernel along which LiteRT has one scale for each channel.
_KERNELS = {
    "Conv2D": ("kernel", (3,)),
    "DepthwiseConv2D": ("depthwise_kernel", (2, 3)),
    "Conv2DTranspose": ("kernel", (2,)),
    "Dense": ("kernel", (1,)),
}
# LiteRT folds a batch norm after these into them, and a ReLU after these and Add.
_FOLDING = (*_KERNELS, "Add", "BatchNormalization")
# Their outputs have the ranges of their inputs. Layers, then operations.
_SAME_RANGE = {
    "AveragePooling2D", "Cropping2D", "Dropout", "Flatten", "GlobalMaxPooling2D", "Identity",
    "MaxPooling2D", "Permute", "Reshape", "Resizing", "SpatialDropout2D", "UpSampling2D",
    "ZeroPadding2D",
    "DepthToSpace", "ExpandDims", "GetItem", "Max", "MaxPool", "Pad", "Resize", "SpaceToDepth",
    "Split", "Squeeze", "Transpose",
}  # fmt: skip
# LiteRT computes these in one operator whose output has a range of its own.
_OWN_RANGE = {
    "Add", "Concatenate", "GlobalAveragePooling2D", "LeakyReLU", "Mean", "Multiply", "PReLU",
    "ReLU", "Relu", "Relu6", "Rescaling", "Subtract",
}  # fmt: skip
_FIXED_RANGE = {"sigmoid", "softmax", "tanh"}  # the converter knows the ranges of these outputs
_FUNCTIONS = {"HardSilu": "hard_silu", "LeakyRelu": "leaky_relu"}  # of operations
_ACTIVATIONS = {"hard_silu", "leaky_relu", "relu", "relu6", "silu"}

_Wrap = Callable[[Any, tuple[str, tuple[int, ...]] | None, bool], Any]  # `rounding.wrap`


def quantize_aware(model: keras.Model) -> tf_keras.Model:
    """Makes a tf_keras model that computes, and learns, as the int8 .tflite file will compute.

    Weights are rounded per channel, activations wherever LiteRT holds them as int8: after a whole
    convolution -> batch norm -> ReLU, and between the depthwise and the pointwise layers of a
    stack. The ranges of the activations are learnt in training. Nested models are flattened. Train
    it with ``fit`` or `tfdwd.finetune`, then ``tfdwd.export(model, path, quantize="int8")`` takes
    its ranges over. Layers that cannot be trained like this stay in float32, here and in the file;
    a warning names them.

    Args:
      model: a Functional or Sequential Keras 3 model (or a tf_keras one), such as a student. It is
        not changed.

    Returns:
      A Functional tf_keras model with the same weights, inputs, outputs and layer names, not
      compiled. To keep it, ``save_weights("aware.weights.h5")``, and load those into what
      ``quantize_aware`` makes of the same model: tensorflow-model-optimization's wrappers do not
      load from .keras files.

    Raises:
      tfdwd.Error: a layer that cannot be copied, that Keras has quantised or that computes
        something else in tf_keras; the message names it. Or tensorflow-model-optimization is not
        installed: it comes with ``pip install 'tfdwd[qat]'``.

    Example:
      >>> student = quantize_aware(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
      >>> student.compile("sgd", "mse")
      >>> history = student.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0)

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", arXiv 1712.05877, section 3.
    """
    from tfdwd import rounding  # and tensorflow-model-optimization, an extra that takes seconds

    flat = rebuild.flatten(bridge.to_keras3(model))
    for layer in flat._flatten_layers():
        if layer.dtype_policy.quantization_mode is not None:
            raise Error(
                f"layer {layer.name!r}: expected weights in floating point, got a layer that Keras "
                f"has quantised ({layer.dtype_policy.name}); pass the model as it was before"
            )
    to_keras2.in_float32(flat)
    model = to_keras2.split(rebuild.with_global_pools(flat))
    _check_split(flat, model)
    traced = graph.trace(model)
    steps = _steps(traced)
    _check_steps(traced, steps)
    readers = collections.Counter(number for step in steps for number in set(step.reads))
    readers.update(traced.outputs)
    reader_of = {number: step for step in steps for number in step.reads if readers[number] == 1}
    convolved = {
        step.writes[0] for step in steps if step.kind in _KERNELS and readers[step.writes[0]] == 1
    }
    values: dict[int, Any] = {}
    for number in traced.inputs:
        spec = traced.specs[number]
        values[number] = tf_keras.Input(spec.shape[1:], spec.shape[0], spec.name, spec.dtype)
    inputs = [values[number] for number in traced.inputs]
    for number, tensor in list(values.items()):
        if tensor.dtype.is_floating:
            values[number] = _range(traced.specs[number].name, rounding.wrap)(tensor)
    left: list[str] = []
    wrapped: dict[int, Any] = {}  # a shared layer stays shared
    for step in steps:
        known = _known(step)
        if step.kind == "BatchNormalization":  # alone it is a product and a sum
            known = step.reads[0] in convolved
        if id(step.layer) not in wrapped:
            held = known and _held(step, reader_of.get(step.writes[0]))
            wrapped[id(step.layer)] = _rounding(step, held, rounding.wrap)
            if not known:
                left.append(step.layer.name)
        layer, range_of = wrapped[id(step.layer)]
        try:
            written = step.run(layer, values)
            values.update({number: range_of(value) for number, value in written.items()})
        except Exception as error:  # layers raise what they like of what tf_keras makes of a call
            raise _differs(step.operation, one_line(error)) from error
    if left:
        logging.warning(
            "model %r: these layers are not trained for int8 and stay in float32, here and in the "
            "file: %s",
            model.name,
            ", ".join(left),
        )
    function = graph.functional(model)
    outputs = [values[number] for number in traced.outputs]
    return tf_keras.Model(
        keras.tree.pack_sequence_as(function._inputs_struct, inputs),
        keras.tree.pack_sequence_as(function._outputs_struct, outputs),
        name=model.name,
    )


def is_aware(model: Any) -> bool:
    """Whether a model comes from `quantize_aware`."""
    rounding = sys.modules.get("tfdwd.rounding")  # if it was never loaded, it made no model
    return rounding is not None and any(
        isinstance(getattr(layer, "quantize_config", None), rounding.LikeLiteRT)
        for layer in model.layers
    )


def check_trained(model: tf_keras.Model) -> None:
    """Refuses a model of `quantize_aware` that has not seen any data.

    Raises:
      tfdwd.Error: no range has been seen.
    """
    if _has_unseen(model):
        raise Error(
            f"model {model.name!r}: expected one that was trained, so that the ranges of its "
            "activations are known; call model.fit(images, labels) first"
        )


def see_ranges(model: tf_keras.Model, batches: Iterable[Sequence[np.ndarray]]) -> None:
    """Gives a model of `quantize_aware` ranges, if it has none; nothing else of it changes.

    Args:
      model: the model.
      batches: one array (images, ...) for each input.
    """
    if not _has_unseen(model):
        return
    others = [variable for variable in model.variables if not variable.name.endswith(_RANGES)]
    before = [variable.numpy() for variable in others]  # such as averages of batch norms
    for inputs in batches:
        model([*inputs] if len(inputs) > 1 else inputs[0], training=True)
    for variable, value in zip(others, before, strict=True):
        variable.assign(value)


def _has_unseen(model: tf_keras.Model) -> bool:
    seen = [variable for variable in model.variables if variable.name.endswith(_RANGES[-1])]
    return not all(variable.numpy() for variable in seen)


@dataclasses.dataclass(frozen=True, eq=False)
class _Step:
    """One call of a tf_keras layer.

    Attributes:
      layer: tf_keras' own, which reads one tensor, or a `to_keras2.Carried`, which reads a list.
      operation: the Keras 3 layer or operation that it does the work of.
      reads, writes: as in `graph.Call`.
      training: whether the graph says that it trains, or does not; None if it does not say.
    """

    layer: Any
    operation: Any
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    training: bool | None

    @property
    def kind(self) -> str:
        """The class of the operation, by which its ranges are known; empty if they are not."""
        kind = type(self.operation).__name__
        if kind in to_keras2.NATIVE and isinstance(self.layer, to_keras2.Carried):
            return ""  # a user's class of that name
        return "Add" if kind == "Rescaling" and np.all(self.operation.scale == 1) else kind

    @property
    def function(self) -> str:
        """The name of an activation layer's function, else of its class."""
        if self.kind == "Activation":
            return getattr(self.operation.activation, "__name__", "")
        return _FUNCTIONS.get(self.kind, self.kind.lower())

    def run(self, layer: Any, values: dict[int, Any], **options: Any) -> dict[int, Any]:
        """What the layer, or what wraps it, writes: {tensor number: value}."""
        tensors = [values[number] for number in self.reads]
        if self.training is not None and self.layer._call_spec.expects_training_arg:
            options.setdefault("training", self.training)
        carried = isinstance(self.layer, to_keras2.Carried)
        results = layer(tensors, **options) if carried else layer(tensors[0], **options)
        return dict(zip(self.writes, tf.nest.flatten(results), strict=True))


def _steps(traced: graph.Graph) -> list[_Step]:
    """The calls of a Keras 3 model as calls of tf_keras layers."""
    names: set[str] = set()
    made: dict[int, Any] = {}
    steps = []
    for call in traced.calls:
        operation, training = call.operation, None
        native = to_keras2.is_native(operation)
        try:
            if native:
                _, kwargs = call.fill(traced.specs)
                training = kwargs.get("training")
            if not native or id(operation) not in made:
                name = _free_name(call, names)
                if native:
                    shape = traced.specs[call.inputs[0]].shape
                    made[id(operation)] = to_keras2.native(operation, shape, name)
                else:
                    fill = functools.partial(_fill, call)
                    made[id(operation)] = to_keras2.Carried(operation, fill, name)
        except Exception as error:  # tf_keras raises whatever a configuration makes it stumble on
            raise _differs(operation, one_line(error)) from error
        steps.append(_Step(made[id(operation)], operation, call.inputs, call.outputs, training))
    return steps


def _free_name(call: graph.Call, names: set[str]) -> str:
    """A name that is not taken, which TensorFlow takes for a scope; added to the taken ones."""
    name = call.operation.name if call.operation.name not in names else call.path
    name = _scope(name)
    while name in names:
        name += "_"
    names.add(name)
    return name


def _scope(name: str) -> str:
    """A name that TensorFlow takes for a scope."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    return name if name[0].isalnum() else f"layer{name}"


def _fill(call: graph.Call, tensors: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return call.fill(dict(zip(call.inputs, tensors, strict=True)))


def _differs(operation: Any, reason: str) -> Error:
    return Error(
        f"layer {operation.name!r} ({type(operation).__name__}): expected one that computes the "
        f"same in tf_keras, which failed: {reason}; replace it by layers that both have"
    )


def _check_split(model: keras.Model, made: keras.Model) -> None:
    """Compares all outputs on a random input."""
    traced = graph.trace(model)
    if not (tensors := probe.example(traced)):
        return
    expected = probe.outputs(traced, tensors)
    worst = difference(probe.outputs(graph.trace(made), tensors), expected)
    if worst > _ROUNDING:
        raise Error(
            f"model {model.name!r}: expected equal outputs when activations are layers of their "
            f"own, got a difference of {worst:.1e} of their scale"
        )


def _check_steps(traced: graph.Graph, steps: Sequence[_Step]) -> None:
    """Compares each layer, not rounded, with its original on what that read."""
    tensors = probe.example(traced)
    runs = zip(steps, probe.walk(traced, tensors), strict=True) if tensors else ()
    for step, (_, reads, writes) in runs:
        try:
            options = {"training": False} if step.layer._call_spec.expects_training_arg else {}
            found = step.run(step.layer, reads, **options)
        except Exception as error:
            raise _differs(step.operation, one_line(error)) from error
        if isinstance(step.layer, to_keras2.Carried):  # it is the original that runs
            continue
        if not equal(found, writes):
            worst = difference(found, writes)
            raise _differs(step.operation, f"they differ by {worst:.1e} of the output's scale")


def _known(step: _Step) -> bool:
    """Whether the output of the step is as in LiteRT once its range is known, or has no own."""
    if step.function in _FIXED_RANGE | _ACTIVATIONS | {"linear"}:
        return True
    if step.kind in ("Divide", "TrueDivide"):  # by a constant it is a product
        return len(step.reads) == 1
    return step.kind in _SAME_RANGE | _OWN_RANGE | _KERNELS.keys() | {"BatchNormalization"}


def _rectifies(step: _Step) -> bool:
    """Whether LiteRT folds the step into the one before it."""
    if step.kind != "ReLU":
        return step.function in ("relu", "relu6")
    layer = step.operation
    return not layer.negative_slope and not layer.threshold and layer.max_value in (None, 6)


def _held(step: _Step, reader: _Step | None) -> bool:
    """Whether LiteRT holds the step's output in a range of its own; `reader` is its only one."""
    if step.kind in _SAME_RANGE or step.function in _FIXED_RANGE | {"linear"}:
        return False
    if reader is None:
        return True
    if reader.kind == "BatchNormalization":
        return step.kind not in _KERNELS
    return reader.kind != "Concatenate" and not (step.kind in _FOLDING and _rectifies(reader))


def _rounding(step: _Step, held: bool, wrap: _Wrap) -> tuple[Any, Any]:
    """The step's layer with what rounds its output: within its wrapper, or a layer behind it.

    A wrapper learns its range only in training. A layer that the graph holds to inference, such as
    the batch norms of ``backbone(x, training=False)``, thus stays outside of it.
    """
    if held and step.training is not None and step.layer._call_spec.expects_training_arg:
        return step.layer, _range(step.layer.name, wrap)
    return wrap(step.layer, _KERNELS.get(step.kind), held), lambda value: value


def _range(name: str, wrap: _Wrap) -> Any:
    """A layer that only rounds."""
    layer = tf_keras.layers.Activation("linear", name=_scope(f"{name}_range"))
    return wrap(layer, None, True)
