"""tf_keras (Keras 2) models as Keras 3 models: layer by layer, and compared layer by layer."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras
from absl import logging
from keras import ops

from tfdwd import graph, probe
from tfdwd.differences import difference, equal
from tfdwd.errors import Error, one_line
from tfdwd.inference import at_inference

# Of a whole model: what rounding in many layers may add up to. A wrong connection is far more.
_WHOLE, _WHOLE_HALF = 1e-3, 0.1
_INPUTS = 2  # how many random inputs are compared


def convert(source: Any) -> keras.Model:
    """Makes the Keras 3 model that computes the same as a tf_keras model.

    The graph is called again with Keras 3's layers, nested models stay nested, shared layers
    shared. Then both are run on random inputs and compared, each layer on what it reads.

    Args:
      source: a Functional or built Sequential tf_keras model; stays as it is.

    Returns:
      A Functional Keras 3 model with the same weights, inputs, outputs, layer names and
      ``trainable`` flags, not compiled.

    Raises:
      tfdwd.Error: a layer that Keras 3 does not have or computes otherwise; the message names it.
    """
    converter = _Converter(source)
    model = converter.model(source)
    for old, new in reversed(converter.pairs):  # a model's flag sets those of its layers
        new.trainable = old.trainable
    _prove(source, model, converter)
    return model


def _nodes(model: Any) -> Iterator[Any]:
    """The calls of a model's graph, each after those that it reads from."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from (node for node in model._nodes_by_depth[depth] if not node.is_input)


def _filled(value: Any, values: Mapping[int, Any]) -> Any:
    """An argument in a node: tensors by their values, slices and constants as Python's."""
    if id(value) in values:
        return values[id(value)]
    if isinstance(value, Mapping):
        filled = {key: _filled(part, values) for key, part in value.items()}
        return slice(*filled.values()) if [*filled] == ["start", "stop", "step"] else filled
    if isinstance(value, list | tuple):
        return type(value)(_filled(part, values) for part in value)
    if isinstance(value, tf.TensorShape):
        return tuple(value.as_list())
    if isinstance(value, tf.DType):
        return value.name
    if isinstance(value, tf.Variable) or (tf.is_tensor(value) and hasattr(value, "numpy")):
        array = np.asarray(value.numpy())
        return array if array.ndim else array.item()
    return value


def _arguments(node: Any, values: Mapping[int, Any]) -> tuple[list[Any], dict[str, Any]]:
    """What a node is called with, without what says nothing."""
    kwargs = {
        key: _filled(value, values)
        for key, value in node.call_kwargs.items()
        if value is not None and key != "name"
    }
    return [_filled(value, values) for value in node.call_args], kwargs


def _call(function: Any, node: Any, args: list[Any], kwargs: dict[str, Any], run: Any) -> Any:
    """Calls what takes the place of a node's layer, its parts one after the other."""
    if not isinstance(function, list):  # in the place of a TensorFlow function
        return function(args, kwargs)
    first, *rest = function
    if hasattr(node.layer, "_num_constants") and isinstance(args[0], list):  # a recurrent layer
        args, kwargs = args[0][:1], {**kwargs, "initial_state": args[0][1:]}
    result = run(first, args, kwargs)
    for part in rest:
        result = run(part, [result], {})
    return result


def _set_outputs(node: Any, result: Any, values: dict[int, Any]) -> None:
    outputs = tf.nest.flatten(node.outputs)
    # The shape of a tensor is a tuple here.
    results = [result] if len(outputs) == 1 and isinstance(result, tuple) else None
    results = results or keras.tree.flatten(result)
    values.update({id(spec): value for spec, value in zip(outputs, results, strict=True)})


class _Converter:
    """One replacement for each layer: what keeps shared layers shared."""

    def __init__(self, source: Any) -> None:
        self.parts: dict[int, Any] = {}  # id(layer): Keras 3 layers in turn, or a function
        self.pairs: list[tuple[Any, Any]] = []  # (tf_keras layer, Keras 3 layer), inner ones first
        # Taken names: the layers keep theirs, what is new avoids them.
        self.names = {layer.name for layer in getattr(source, "_flatten_layers", list)()}

    def model(self, source: Any) -> keras.Model:
        if not getattr(source, "_is_graph_network", False):
            raise Error(
                f"tf_keras model {source.name!r}: expected a Functional or built Sequential model, "
                f"got {type(source).__name__} without a graph; wrap its layers in "
                "tf_keras.Model(inputs, outputs), or call build(input_shape) of a Sequential one"
            )
        values: dict[int, Any] = {}
        for spec in source.inputs:
            if "Ragged" in type(spec).__name__ or "Sparse" in type(spec).__name__:
                raise Error(f"input {spec.name!r} of {source.name!r}: expected a dense tensor")
            values[id(spec)] = keras.Input(
                batch_shape=tuple(spec.shape), dtype=spec.dtype.name, name=spec.node.layer.name
            )
        inputs = _filled(source._nested_inputs, values)
        for node in _nodes(source):
            self.call(node, values)
        outputs = _filled(source._nested_outputs, values)
        self.name_operations(outputs)
        model = keras.Model(_plain(inputs), _plain(outputs), name=source.name.replace("/", "_"))
        self.pairs.append((source, model))
        return model

    def name_operations(self, outputs: Any) -> None:
        """Gives operations names of their own, which those that Keras finds may not be."""
        todo, seen = keras.tree.flatten(outputs), set()
        while todo:
            operation = todo.pop()._keras_history.operation
            if id(operation) not in seen:
                seen.add(id(operation))
                if not isinstance(operation, keras.Layer):
                    operation.name = self.free_name(operation.name)
                todo += [spec for node in operation._inbound_nodes for spec in node.input_tensors]

    def call(self, node: Any, values: dict[int, Any]) -> None:
        layer = node.layer
        known = id(layer) in self.parts
        try:
            if not known:
                self.parts[id(layer)] = self.replacement(layer)
            function = self.parts[id(layer)]
            args, kwargs = _arguments(node, values)
            if kwargs.get("training") is True:
                _check_inference(layer)
            _set_outputs(node, _call(function, node, args, kwargs, _symbolic), values)
            if not known and isinstance(function, list):
                self.finish(layer, function)
        except Error:
            raise
        except Exception as error:  # Keras raises whatever a configuration makes it stumble on
            raise _unlike(layer, f"which failed: {one_line(error)}") from error

    def finish(self, layer: Any, parts: list[Any]) -> None:
        """Weights and flags of what is built by now."""
        if isinstance(parts[0], keras.Model):  # done when it was made
            return
        _carry_weights(layer, parts[0])
        self.pairs.append((layer, parts[0]))
        inner = getattr(layer, "activation", None)
        if isinstance(inner, tf_keras.layers.Layer):
            self.finish(inner, parts[-1:])

    def replacement(self, layer: Any) -> Any:
        """The Keras 3 layers that do, one after the other, what a layer does; or a function."""
        if isinstance(layer, tf_keras.Model):
            return [self.model(layer)]
        kind = type(layer).__name__
        if kind in ("TFOpLambda", "SlicingOpLambda"):
            return _operation(layer)
        name = layer.name
        if "/" in name:  # which Keras 3 does not take
            name = self.free_name(name.replace("/", "_"))
        if kind == "Lambda":
            return [keras.layers.Lambda(layer.function, arguments=dict(layer.arguments), name=name)]
        config = self.config(layer) | {"name": name}
        after: list[Any] = []
        activation = getattr(layer, "activation", None)
        if isinstance(activation, tf_keras.layers.Layer):
            after = self.replacement(activation)
        elif config.get("activation") == "hard_sigmoid" and not _is_recurrent(layer):
            after = self.hard_sigmoid(name, config["dtype"])
        if after:
            config["activation"] = "linear"
            if kind == "Activation":
                return after
        made = _class(layer)
        accepted = _accepted(made)
        # What Keras 3 does not take says nothing of inference, or it is found when both run.
        return [made(**{k: v for k, v in config.items() if k in accepted}), *after]

    def hard_sigmoid(self, name: str, dtype: str) -> list[Any]:
        """Keras 2 has clip(x / 5 + 1/2, 0, 1), Keras 3 clip(x / 6 + 1/2, 0, 1)."""
        return [
            keras.layers.Rescaling(1.2, name=self.free_name(f"{name}_scale"), dtype=dtype),
            keras.layers.Activation(
                "hard_sigmoid", name=self.free_name(f"{name}_hard_sigmoid"), dtype=dtype
            ),
        ]

    def config(self, layer: Any) -> dict[str, Any]:
        """A layer's configuration in the words of Keras 3."""
        kind = type(layer).__name__
        config = _plain(layer.get_config())
        # Weights are set, so that their first values do not matter.
        config = {k: v for k, v in config.items() if not k.endswith("_initializer")}
        if isinstance(config.get("dtype"), dict):
            config["dtype"] = config["dtype"]["config"]["name"]
        for key in ("activation", "recurrent_activation"):
            if key in config:
                config[key] = _activation(getattr(layer, key))
        for key in ("layer", "forward_layer", "backward_layer", "cell"):
            if config.get(key) is not None and hasattr(layer, key):
                config[key] = self.single(getattr(layer, key))
        if kind == "Bidirectional":
            config["layer"] = self.single(layer.forward_layer)
        if kind == "StackedRNNCells":
            config["cells"] = [self.single(cell) for cell in layer.cells]
        if kind == "LeakyReLU":
            config["negative_slope"] = config.pop("alpha")
        if kind == "ThresholdedReLU":
            config["threshold"] = config.pop("theta")
        if kind == "RandomCrop":  # Keras 3's leaves images as they are at inference
            config["crop_to_aspect_ratio"] = True
            logging.warning("layer %r (RandomCrop) crops at the center only", layer.name)
        if kind == "Discretization":
            config["bin_boundaries"], config["num_bins"] = list(layer.bin_boundaries), None
        if kind.endswith("BatchNormalization") and isinstance(config["axis"], list):
            if len(config["axis"]) > 1:
                raise _unlike(layer, f"but with one axis, not {config['axis']}")
            [config["axis"]] = config["axis"]
        return config

    def single(self, layer: Any) -> Any:
        """The one layer that takes a layer's place inside another."""
        parts = self.replacement(layer)
        return parts[0] if len(parts) == 1 else keras.Sequential(parts, name=parts[0].name)

    def free_name(self, name: str) -> str:
        while name in self.names:
            name += "_"
        self.names.add(name)
        return name


def _check_inference(layer: Any) -> None:
    """Refuses what a call with training=True makes of a layer at inference in tf_keras alone."""
    for part in layer._flatten_layers():
        if isinstance(part, tf_keras.layers.BatchNormalization):
            raise _unlike(
                part, "but it is called with training=True, with which tf_keras takes the "
                "statistics of each batch even at inference, and Keras 3 does not",
            )  # fmt: skip
    logging.warning("layer %r is called with training=True; here it rests at inference", layer.name)


def _is_recurrent(layer: Any) -> bool:
    return hasattr(layer, "cell") or type(layer).__name__.endswith("Cell")


def _symbolic(operation: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    return operation(*args, **kwargs)


def _unlike(layer: Any, reason: str) -> Error:
    return Error(
        f"layer {layer.name!r} ({type(layer).__name__}) of a tf_keras model: expected one that "
        f"Keras 3 has too, {reason}; replace it by layers that both have, or build the model with "
        f"keras {keras.__version__}"
    )


_KINDS = {
    "RandomCrop": "Resizing",
    "SyncBatchNormalization": "BatchNormalization",
    "ThresholdedReLU": "ReLU",
}


def _class(layer: Any) -> Any:
    """The Keras 3 class of a layer: Keras' own, or one that the user registered by that name."""
    kind = type(layer)
    if kind.__module__.startswith("tf_keras."):
        found = getattr(keras.layers, _KINDS.get(kind.__name__, kind.__name__), None)
    else:
        found = keras.saving.get_registered_object(tf_keras.saving.get_registered_name(kind))
    if found is None or not issubclass(found, keras.Layer):
        raise _unlike(
            layer, "and it has none (for a layer of your own, register its Keras 3 class under "
            "the same name with keras.saving.register_keras_serializable)",
        )  # fmt: skip
    return found


def _accepted(kind: Any) -> set[str]:
    """The arguments that a class takes, those that it hands on to its bases included."""
    names: set[str] = set()
    for base in kind.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters.values()
            names.update(p.name for p in parameters if p.kind not in (p.VAR_KEYWORD,))
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    return names


def _plain(value: Any) -> Any:
    """A structure without the wrappers and the array types of TensorFlow's tracking."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, tuple):
        return tuple(_plain(part) for part in value)
    if isinstance(value, tf.TensorShape):
        return value.as_list()
    return value.item() if isinstance(value, np.generic) else value


def _activation(function: Any) -> Any:
    """The name that Keras 3 has for a function, else the function itself."""
    name = getattr(function, "__name__", "").removesuffix("_v2")
    own = getattr(function, "__module__", "").startswith(("tf_keras.", "tensorflow."))
    if own and callable(getattr(keras.activations, name, None)):
        return name
    return function


# How many gates stand side by side in the weights of a cell; the one at _CANDIDATE has
# ``activation``, the others ``recurrent_activation``.
_GATES = {"LSTMCell": 4, "ConvLSTMCell": 4, "GRUCell": 3}
_CANDIDATE = 2


def _carry_weights(old: Any, new: Any) -> None:
    """Copies the weights of a layer, then those of the layers inside it."""
    if isinstance(old, tf_keras.Model):  # done when it was made
        return
    if isinstance(new, keras.Sequential):
        new = new.layers[0]
    own = [*old._trainable_weights, *old._non_trainable_weights]
    # Those of a Discretization are its boundaries, which its configuration has.
    weights = [] if type(old).__name__ == "Discretization" else [w.numpy() for w in own]
    variables = [*new._trainable_variables, *new._non_trainable_variables]
    if [w.shape for w in weights] != [tuple(v.shape) for v in variables]:
        raise _unlike(
            old, f"whose weights there have the shapes {[tuple(v.shape) for v in variables]}, not "
            f"{[w.shape for w in weights]}",
        )  # fmt: skip
    kind = type(old).__name__
    name = getattr(getattr(old, "recurrent_activation", None), "__name__", "")
    for variable, weight in zip(variables, weights, strict=True):
        if kind in _GATES and name == "hard_sigmoid":
            parts = weight.reshape(*weight.shape[:-1], _GATES[kind], -1)
            factors = np.full((_GATES[kind], 1), 1.2)
            factors[_CANDIDATE] = 1
            weight = (parts * factors).reshape(weight.shape)
        variable.assign(weight)
    if isinstance(new, keras.layers.Normalization):
        new.finalize_state()
    inside = [
        [
            part
            for part in layer._flatten_layers(include_self=False, recursive=False)
            if part.weights
        ]
        for layer in (old, new)
    ]
    activation = getattr(old, "activation", None)
    olds = [part for part in inside[0] if part is not activation]
    for pair in zip(olds, inside[1], strict=True):
        _carry_weights(*pair)


# ---------------------------------------------------------------------- TensorFlow functions


def _pool(kind: Callable[..., Any]) -> Callable[..., Any]:
    def pool(input: Any, ksize: Any, strides: Any, padding: str) -> Any:
        def two(sizes: Any) -> Any:
            return (
                tuple(sizes)[1:3] if isinstance(sizes, list | tuple) and len(sizes) == 4 else sizes
            )

        return kind(input, two(ksize), two(strides), padding.lower())

    return pool


def _reshaped(tensor: Any, shape: Any) -> Any:
    """A batch that was asked for, ``tf.shape(x)[0]``, is None here and becomes the open axis."""
    shape = list(shape)
    if _has_open(shape):
        known = math.prod(size for size in shape if size is not None and size != -1)
        rest = math.prod(tensor.shape[1:]) // known
        shape = [-1 if size is None else rest if size == -1 else size for size in shape]
    return ops.reshape(tensor, shape)


def _has_open(sizes: Any) -> bool:
    return isinstance(sizes, list | tuple) and any(size is None for size in sizes)


def _transposed(x: Any, wanted: bool) -> Any:
    return ops.swapaxes(x, -1, -2) if wanted else x


def _constant(value: Any, like: Any) -> Any:
    """An array of a list, which is what constants are in a model that was loaded."""
    if not isinstance(value, list):
        return value
    return np.asarray(value, keras.backend.standardize_dtype(like.dtype))


# By the last part of TensorFlow's name, with the arguments of TensorFlow.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "argmax": lambda input, axis=0, output_type="int64": ops.cast(
        ops.argmax(input, axis), output_type
    ),
    "avg_pool": _pool(ops.average_pool),
    "avg_pool2d": _pool(ops.average_pool),
    "bias_add": lambda value, bias: ops.add(value, _constant(bias, value)),
    "cast": lambda x, dtype: ops.cast(x, dtype),
    "clip_by_value": lambda t, clip_value_min, clip_value_max: ops.clip(
        t, clip_value_min, clip_value_max
    ),
    "concat": lambda values, axis: ops.concatenate(values, axis),
    "depth_to_space": lambda input, block_size: ops.depth_to_space(input, block_size),
    "einsum": lambda equation, inputs: ops.einsum(equation, *inputs),
    "flip_left_right": lambda image: ops.flip(image, -2),
    "flip_up_down": lambda image: ops.flip(image, -3),
    "gather": lambda params, indices, axis=0: ops.take(params, indices, axis),
    "gelu": lambda features, approximate=False: ops.gelu(features, approximate),
    "getitem": lambda tensor, slice_spec: tensor[slice_spec],
    "identity": lambda input: input,
    "l2_normalize": lambda x, axis=None, epsilon=1e-12: (
        x * ops.rsqrt(ops.maximum(ops.sum(ops.square(x), axis, keepdims=True), epsilon))
    ),
    "leaky_relu": lambda features, alpha=0.2: ops.leaky_relu(features, alpha),
    "matmul": lambda a, b, transpose_a=False, transpose_b=False: ops.matmul(
        _transposed(a, transpose_a), _transposed(b, transpose_b)
    ),
    "max_pool": _pool(ops.max_pool),
    "max_pool2d": _pool(ops.max_pool),
    "pad": lambda tensor, paddings, mode="CONSTANT", constant_values=0: ops.pad(
        tensor,
        paddings,
        mode.lower(),
        **({"constant_values": constant_values} if mode.upper() == "CONSTANT" else {}),
    ),
    "reshape": _reshaped,
    "resize": lambda images, size, method="bilinear", antialias=False: ops.image.resize(
        images, size, method, antialias=antialias, data_format="channels_last"
    ),
    "reverse": lambda tensor, axis: ops.flip(tensor, axis),
    "roll": lambda input, shift, axis: ops.roll(input, shift, axis),
    "shape": lambda input, out_type="int32": tuple(ops.shape(input)),
    "softmax": lambda logits, axis=-1: ops.softmax(logits, axis),
    "space_to_depth": lambda input, block_size: ops.space_to_depth(input, block_size),
    "split": lambda value, num_or_size_splits, axis=0: ops.split(
        value,
        num_or_size_splits
        if isinstance(num_or_size_splits, int)
        else np.cumsum(num_or_size_splits)[:-1].tolist(),
        axis,
    ),
    "squared_difference": lambda x, y: ops.square(ops.subtract(x, y)),
    "stack": lambda values, axis=0: ops.stack(values, axis),
    "tile": lambda input, multiples: ops.tile(input, multiples),
    "transpose": lambda a, perm=None: ops.transpose(a, perm),
    "unstack": lambda value, num=None, axis=0: ops.unstack(value, num, axis),
}
_OTHER_NAMES = {
    "floor_div": "floor_divide", "floordiv": "floor_divide", "floormod": "mod", "pow": "power",
    "reduce_variance": "var", "truediv": "true_divide",
}  # fmt: skip


def _operation(layer: Any) -> Callable[[list[Any], dict[str, Any]], Any]:
    """What takes the place of a TensorFlow function in a graph; takes its arguments."""
    symbol = layer.symbol or layer.name
    short = symbol.rpartition(".")[2]
    name = _OTHER_NAMES.get(short, short.removeprefix("reduce_"))
    function = _FUNCTIONS.get(short) or getattr(ops, name, None)
    if function is None:
        raise _unlike(layer, f"but tf.{symbol} is not among the functions that are carried over")
    signature = inspect.signature(layer.function)
    first = [*signature.parameters][:3]

    def run(args: list[Any], kwargs: dict[str, Any]) -> Any:
        bound = signature.bind(*args, **kwargs).arguments
        given = {
            key: value
            for key, value in bound.items()
            if key != "name"
            and value is not None
            and not _is_default(value, signature.parameters[key].default)
        }
        if short not in ("getitem", "reshape") and any(map(_has_open, given.values())):
            raise _unlike(layer, "but it needs a size that is open; give the input a fixed size")
        named = {}
        if short in _FUNCTIONS:
            known = set(inspect.signature(function).parameters)
            named, given = given, {}
        else:
            known = {*first, "axis", "keepdims"}
            named = {key: given.pop(key) for key in ("axis", "keepdims") if key in given}
        if left := [key for key in (*given, *named) if key not in known]:
            raise _unlike(
                layer, f"but tf.{symbol} with the argument {', '.join(left)} is not among the "
                "functions that are carried over",
            )  # fmt: skip
        like = [value for value in given.values() if hasattr(value, "dtype")]
        operands = [_constant(value, like[0]) if like else value for value in given.values()]
        return function(*operands, **named)

    return run


def _is_default(value: Any, default: Any) -> bool:
    return isinstance(value, bool | int | float | str) and value == default


# ---------------------------------------------------------------------- the proof


def _prove(source: Any, model: keras.Model, converter: _Converter) -> None:
    """Runs both on random inputs and compares; see `convert`."""
    traced, compared = graph.trace(model), 0
    for arrays in probe.inputs(source.inputs, images=2):
        tensors = [
            tf.constant(array, spec.dtype)
            for array, spec in zip(arrays, source.inputs, strict=True)
        ]
        try:
            expected, certain = _run(source, tensors, converter)
        except Error:
            raise
        except Exception:  # an index out of range, or a size that the model does not run at
            continue
        half = any("16" in tensor.dtype.name for tensor in expected)
        # Of a model that is random at inference there is no more to compare than its layers.
        worst = difference(probe.outputs(traced, tensors), expected) if certain else 0
        if worst > (_WHOLE_HALF if half else _WHOLE):
            raise Error(
                f"tf_keras model {source.name!r}: expected one that computes the same in Keras 3; "
                f"each layer does, but the outputs differ by {worst:.1e} of their scale; build it "
                f"with keras {keras.__version__} instead"
            )
        compared += 1
        if compared == _INPUTS:
            return
    if not compared:
        raise Error(
            f"tf_keras model {source.name!r} runs on none of the random inputs that were tried, so "
            f"that it cannot be compared with Keras 3; build it with keras {keras.__version__}"
        )


def _run(source: Any, tensors: list[Any], converter: _Converter) -> tuple[list[Any], bool]:
    """Runs a model as at inference, whatever its nodes say, and compares each layer.

    Returns:
      The outputs, and whether each layer agrees with its replacement; False where one is random
      at inference.

    Raises:
      tfdwd.Error: a layer computes something else in Keras 3.
    """
    values = {id(spec): tensor for spec, tensor in zip(source.inputs, tensors, strict=True)}
    certain = True
    for node in _nodes(source):
        args, kwargs = _arguments(node, values)
        if isinstance(node.layer, tf_keras.Model):
            inner = tf.nest.flatten(args[0] if args else kwargs["inputs"])
            results, same = _run(node.layer, inner, converter)
        else:
            results = _run_layer(node.layer, args, kwargs)
            same = _is_same(node, args, kwargs, results, converter)
        _set_outputs(node, results, values)
        certain &= same
    return [values[id(spec)] for spec in tf.nest.flatten(source._nested_outputs)], certain


def _run_layer(layer: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    if layer._call_spec.expects_training_arg:
        kwargs = {**kwargs, "training": False}
    return layer(*args, **kwargs)


def _is_same(
    node: Any, args: list[Any], kwargs: dict[str, Any], expected: Any, converter: _Converter
) -> bool:
    """Whether a layer and its replacement agree; False for one that is random at inference."""
    layer = node.layer
    try:
        found = _call(converter.parts[id(layer)], node, args, kwargs, _at_inference)
    except Exception as error:
        raise _unlike(layer, f"which failed: {one_line(error)}") from error
    if isinstance(found, tuple) and not isinstance(expected, tuple):
        found = np.asarray(found)  # a shape
    if equal(found, expected):
        return True
    if equal(_run_layer(layer, args, kwargs), expected):
        raise _unlike(
            layer, "which computes something else there: on the same random input they differ by "
            f"{difference(found, expected):.1e} of the output's scale",
        )  # fmt: skip
    return False


def _at_inference(operation: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    results = at_inference(operation, args, kwargs)
    return results[0] if len(results) == 1 else results
