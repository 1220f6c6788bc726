"""Graph surgery: the same network with some convolutions expanded into stacks of layers."""

import dataclasses
import functools
import tempfile
import types
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from absl import logging

from tfdwd import graph, nodes, opening, probe, shapes
from tfdwd.differences import as_array, equal
from tfdwd.errors import Error
from tfdwd.factorize import Bottleneck, Channel, Separable, Stack
from tfdwd.inference import at_inference


@dataclasses.dataclass(frozen=True, eq=False)
class Expansion:
    """The Keras layers of one stack, with their weights; call it where the convolution was called.

    Only multiplier-1 depthwise layers are made: LiteRT runs larger multipliers on a slow path, so
    rank m is m depthwise layers side by side, concatenated. With unequal strides they are grouped
    Conv2D layers: Keras has DepthwiseConv2D with such strides, but TensorFlow does not run it.

    Attributes:
      branches: for each path from the input to the concatenation (or to ``last``) its layers.
      concatenate: joins the branches; None where there is only one.
      last: the pointwise convolution, which keeps the convolution's name, bias and activation.
    """

    branches: tuple[tuple[keras.layers.Layer, ...], ...]
    concatenate: keras.layers.Layer | None
    last: keras.layers.Layer

    def __call__(self, x: Any, **given: Any) -> Any:
        """Runs the stack on a tensor (batch, h, w, c); the last layer gets all other arguments."""
        parts = []
        for branch in self.branches:
            part = x
            for layer in branch:
                part = layer(part)
            parts.append(part)
        joined = parts[0] if self.concatenate is None else self.concatenate(parts)
        return self.last(joined, **given)

    @property
    def layers(self) -> list[keras.layers.Layer]:
        """All layers, in the order in which they run."""
        flat = [layer for branch in self.branches for layer in branch]
        return [*flat, *([self.concatenate] if self.concatenate else []), self.last]


def kernel_of(conv: keras.layers.Conv2D) -> np.ndarray:
    """The kernel of a Conv2D in the channel-major form of `tfdwd.factorize`, (c, q, n) float64."""
    kernel = keras.ops.convert_to_numpy(conv.kernel).astype(np.float64)
    height, width, channels, outputs = kernel.shape
    return np.moveaxis(kernel.reshape(height * width, channels, outputs), 0, 1)


def expand(conv: keras.layers.Conv2D, stack: Stack, bias: np.ndarray | None) -> Expansion:
    """Makes the layers that take the place of a convolution.

    The regulariser of the kernel goes to every factor; a constraint on the kernel is dropped,
    since it says nothing of the factors.

    A LoRA is merged. An activation with weights (PReLU) is copied with them.

    Args:
      conv: the convolution; stays as it is.
      stack: its factors.
      bias: (n,), or None for a stack without a bias.

    Returns:
      Built layers with weights.
    """
    config = _config(conv)
    height, width = conv.kernel_size
    common = {key: config[key] for key in ("trainable", "dtype", "data_format")}
    regularizer = conv.kernel_regularizer
    spatial = {key: config[key] for key in ("strides", "padding", "dilation_rate")}
    channels = conv.kernel.shape[2]

    def conv2d(name: str, kernel: np.ndarray, groups: int = 1, **options: Any) -> Any:
        layer = keras.layers.Conv2D(
            kernel.shape[3], kernel.shape[:2], name=name, use_bias=False, groups=groups,
            kernel_regularizer=regularizer, **common, **options,
        )  # fmt: skip
        return _with_weights(layer, groups * kernel.shape[2], kernel)

    def depthwise(name: str, taps: np.ndarray) -> keras.layers.Layer:  # taps (q, channels)
        kernel = taps.reshape(height, width, -1, 1)
        if len(set(conv.strides)) > 1:  # TensorFlow runs these as a grouped convolution only
            return conv2d(name, kernel.swapaxes(2, 3), groups=taps.shape[1], **spatial)
        layer = keras.layers.DepthwiseConv2D(
            (height, width), name=name, use_bias=False,
            depthwise_regularizer=regularizer, **common, **spatial,
        )  # fmt: skip
        return _with_weights(layer, taps.shape[1], kernel)

    def last(kernel: np.ndarray) -> keras.layers.Layer:  # kernel (inputs, n)
        layer = remade(
            conv, kernel_size=(1, 1), strides=(1, 1), dilation_rate=(1, 1), padding="valid",
            kernel_constraint=None, use_bias=bias is not None, lora_rank=None, lora_alpha=None,
        )  # fmt: skip
        layer.build((None, None, None, len(kernel)))
        layer.kernel.assign(kernel[None, None])
        if bias is not None:
            layer.bias.assign(bias)
        for old_part, part in _parts(conv, layer)[1:]:  # the activation, where it is a layer
            copy_state(old_part, part)
        return layer

    match stack:
        case Separable(taps, pointwise):
            rank = taps.shape[2]
            names = [f"{conv.name}_depthwise"] if rank == 1 else [
                f"{conv.name}_depthwise_{k + 1}" for k in range(rank)
            ]  # fmt: skip
            branches = tuple((depthwise(name, taps[:, :, k].T),) for k, name in enumerate(names))
            concatenate = None
            if rank > 1:
                concatenate = keras.layers.Concatenate(
                    name=f"{conv.name}_concat", dtype=config["dtype"]
                )
            # Concatenated channel k * c + i is depthwise filter k of channel i.
            kernel = np.moveaxis(pointwise, 0, 1).reshape(rank * channels, -1)
            return Expansion(branches, concatenate, last(kernel))
        case Bottleneck(reduce, taps, pointwise):
            branch = (
                conv2d(f"{conv.name}_reduce", reduce[None, None]),
                depthwise(f"{conv.name}_depthwise", taps),
            )
            return Expansion((branch,), None, last(pointwise))
        case Channel(filters, pointwise):
            taps = np.moveaxis(filters, 0, 1).reshape(height, width, channels, -1)
            return Expansion(
                ((conv2d(f"{conv.name}_reduce", taps, **spatial),),), None, last(pointwise)
            )


def _with_weights(
    layer: keras.layers.Layer, channels: int, *weights: np.ndarray
) -> keras.layers.Layer:
    layer.build((None, None, None, channels))
    layer.set_weights(list(weights))
    return layer


def rebuild(model: keras.Model, expansions: Mapping[int, Expansion]) -> keras.Model:
    """Copies a model, with some of its convolutions expanded; nested models stay nested.

    Args:
      model: Functional or Sequential; stays as it is.
      expansions: {id(convolution): its expansion}.

    Returns:
      A new Functional model with the original's inputs, outputs, names, weights and
      ``trainable`` flags. A shared layer stays shared. It is not compiled.

    Raises:
      tfdwd.Error: a layer whose copy fails or computes something else; the message names it.
        ``rebuild(model, {})`` finds that out before any work is done.
    """
    return _Copier(expansions).copy_whole(model)


def flatten(model: keras.Model) -> keras.Model:
    """Copies a model into one flat graph without nested models.

    A layer of a nested model keeps its name unless it is taken; then the names of the models
    around it are put before it.

    Args:
      model: Functional or Sequential; stays as it is.

    Returns:
      A new Functional model with the same outputs.

    Raises:
      tfdwd.Error: a layer whose copy fails or computes something else; the message names it.

    Example:
      >>> inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="a")], name="b")
      >>> outer = keras.Sequential([keras.Input((4,)), inner])
      >>> [layer.name for layer in flatten(outer).layers][1:]
      ['a']
    """
    return _Copier({}, flat=True).copy_whole(model)


def with_global_pools(model: keras.Model) -> keras.Model:
    """Turns average pools over whole maps into global ones, which compute the same.

    To LiteRT's int8 they differ: what an AVERAGE_POOL_2D gives has the scale of what it reads, much
    too coarse for an average; the output of a MEAN has its own.

    Args:
      model: Functional or Sequential; stays as it is.

    Returns:
      A copy, or the model itself where there is no such pool.
    """
    traced = graph.trace(model)
    calls = [c for c in traced.calls if isinstance(c.operation, keras.layers.AveragePooling2D)]
    whole, others = {}, set()
    for call in calls:
        layer = call.operation
        if layer.data_format == "channels_last" and (
            traced.specs[call.inputs[0]].shape[1:3] == tuple(layer.pool_size)
            and traced.specs[call.outputs[0]].shape[1:3] == (1, 1)
        ):
            pool = keras.layers.GlobalAveragePooling2D(
                keepdims=True, name=layer.name, dtype=layer.dtype_policy
            )
            whole[id(layer)] = Expansion(((),), None, pool)
        else:
            others.add(id(layer))
    found = {number: pool for number, pool in whole.items() if number not in others}
    return rebuild(model, found) if found else model


class _FinitePad(keras.Operation):
    """Pads with a number of its own, whatever it is told to pad with."""

    def __init__(self, pad_width: Any, number: float, name: str) -> None:
        super().__init__(name=name)
        self.pad_width, self.number = pad_width, number

    def call(self, x: Any, constant_values: Any = None) -> Any:
        del constant_values
        return keras.ops.pad(x, self.pad_width, constant_values=self.number)


def with_finite_pads(model: keras.Model, images: Sequence[np.ndarray]) -> keras.Model:
    """Replaces pads with infinity, as before a max pooling, by ones with a number.

    Whole numbers have no infinity. The least number that the padded tensor takes on the images
    does the same: in a quantised file nothing is below it.

    Args:
      model: Functional or Sequential; stays as it is.
      images: from which the ranges of the file come, an array (images, ...) for each input.

    Returns:
      A copy, or the model itself where there is no such pad.
    """
    traced = graph.trace(model)
    ends = {  # the least or the greatest number
        id(call): np.min if padded < 0 else np.max
        for call in traced.calls
        if np.isinf(padded := _padded_with(call, traced))
    }
    if not ends:
        return model

    def numbers_of(arrays: list[np.ndarray]) -> list[Any]:
        tensors = [
            keras.ops.convert_to_tensor(array, traced.specs[number].dtype)
            for number, array in zip(traced.inputs, arrays, strict=True)
        ]
        return [
            ends[id(call)](as_array(reads[call.inputs[0]]))
            for call, reads, _ in probe.walk(traced, tensors)
            if id(call) in ends
        ]

    found = shapes.in_batches(numbers_of, images, shapes.images_at_once(model))
    padding = [call for call in traced.calls if id(call) in ends]
    pads = {}
    for call, numbers in zip(padding, found, strict=True):
        pad, number = call.operation, float(ends[id(call)](numbers))
        pads[id(pad)] = Expansion(((),), None, _FinitePad(pad.pad_width, number, pad.name))
    return rebuild(model, pads)


def _padded_with(call: graph.Call, traced: graph.Graph) -> float:
    """The number that a call of ``keras.ops.pad`` pads with; 0 for all other calls."""
    if type(call.operation).__name__ != "Pad":
        return 0
    args, kwargs = call.fill({number: traced.specs[number] for number in call.inputs})
    padded = (*args[1:], kwargs.get("constant_values"))[0]
    return float(padded) if isinstance(padded, (int, float, np.number)) else 0


class _Copier:
    """One copy for each original layer: what keeps shared layers shared."""

    def __init__(self, expansions: Mapping[int, Expansion], flat: bool = False):
        self.expansions = expansions
        self.flat = flat
        self.openings: Mapping[int, opening.Opened] = {}  # of layers that hold convolutions
        self.pairs: dict[int, tuple[Any, Any]] = {}  # id(original): (original, copy)
        self.renamed: dict[int, str] = {}  # id(original): name of its copy, if another
        self.names: set[str] = set()  # taken ones

    def copy_whole(self, model: Any) -> keras.Model:
        traced = graph.trace(model)
        self.openings = traced.openings
        tensors = probe.example(traced)  # first of all: what is built when it runs is built now
        if not tensors:
            logging.warning(
                "model %r runs on none of the random inputs that were tried: its copy is not "
                "compared with it",
                model.name,
            )
        self.names = {operation.name for operation in graph.functional(model).operations}
        if not self.flat:  # then a name may come again in each nested model
            self.names.update(call.operation.name for call in traced.calls)
        copy = self.copy_model(model)
        copy.trainable = model.trainable
        # Setting a flag sets those of all layers inside, so what is outside goes first.
        for original, new in reversed(self.pairs.values()):
            if isinstance(new, Expansion):
                for layer in new.layers:
                    layer.trainable = getattr(original, "trainable", True)
            elif graph.is_nested(original) or self.is_opened(original):
                new.trainable = original.trainable
            elif isinstance(new, keras.layers.Layer):
                copy_state(original, new)
        with probe.unchanged(copy):
            for call, reads, writes in probe.walk(traced, tensors) if tensors else ():
                self.verify(call, reads, [*writes.values()])
        return copy

    def verify(self, call: graph.Call, reads: dict[int, Any], expected: list[Any]) -> None:
        """Runs a layer's copy on what the layer read."""
        if id(call.operation) not in self.pairs:  # inside a layer that is copied as a whole
            return
        args, kwargs = call.fill(reads)
        original, copy = self.pairs[id(call.operation)]
        try:
            found = at_inference(copy, args, kwargs)
        except Exception as error:
            raise _uncopied(original, str(error)) from error
        if isinstance(copy, Expansion):
            same = [y.shape for y in found] == [y.shape for y in expected]
        else:
            same = equal(found, expected)
        # A layer that is random at inference differs from itself.
        if not same and equal(at_inference(original, args, kwargs), expected):
            raise _uncopied(original, "the copy computes something else; is its config complete?")

    def copy_model(self, model: Any) -> keras.Model:
        function = graph.functional(model)
        inputs = keras.tree.map_structure(_copy_input, function._inputs_struct)
        outputs = self.replay(function, keras.tree.flatten(inputs), (), {})
        structured = keras.tree.pack_sequence_as(function._outputs_struct, outputs)
        return keras.Model(inputs, structured, name=model.name)

    def replay(
        self,
        function: keras.Function | nodes.Inside,
        inputs: list[Any],
        path: tuple[str, ...],
        context: Mapping[str, Any],
    ) -> list[Any]:
        """Calls the copies on new symbolic tensors; returns the outputs as a flat list.

        ``path`` names the models around that are flattened, ``context`` holds the arguments that
        reach each of their layers: a backbone called with ``training=False`` stays so.
        """
        values = {id(spec): x for spec, x in zip(function.inputs, inputs, strict=True)}
        for node in graph.nodes(function):
            operation = node.operation
            args, kwargs = node.arguments.fill_in(values)
            if self.is_opened(operation) and isinstance(self.openings[id(operation)], nodes.Inside):
                given = [values[id(spec)] for spec in node.input_tensors]
                args = (given if len(given) > 1 else given[0],)
                kwargs = {key: kwargs[key] for key in ("training",) if key in kwargs}
            reach = getattr(operation, "_call_context_args", ())
            kwargs = kwargs | {name: value for name, value in context.items() if name in reach}
            if self.flat and graph.is_nested(operation):
                results = self.replay(
                    graph.functional(operation),
                    [values[id(spec)] for spec in graph.nested_inputs(node)],
                    (*path, operation.name),
                    {name: kwargs[name] for name in reach if kwargs.get(name) is not None},
                )
            else:
                results = keras.tree.flatten(self.copy_of(operation, path)(*args, **kwargs))
            values.update({id(spec): x for spec, x in zip(node.outputs, results, strict=True)})
        return [values[id(spec)] for spec in function.outputs]

    def copy_of(self, operation: Any, path: tuple[str, ...]) -> Any:
        if id(operation) not in self.pairs:
            copy: Any
            if id(operation) in self.expansions:
                copy = self.expansions[id(operation)]
                name = self.renamed.get(id(operation), operation.name)
                for layer in copy.layers[:-1]:
                    layer.name = self.free_name(name + layer.name.removeprefix(operation.name))
                copy.layers[-1].name = name
            elif graph.is_nested(operation):
                copy = self.copy_model(operation)
            elif self.is_opened(operation):
                copy = self.copy_opened(operation)
            else:
                copy = self.copy_layer(operation, path)
            self.pairs[id(operation)] = operation, copy
        return self.pairs[id(operation)][1]

    def is_opened(self, operation: Any) -> bool:
        """Whether a model takes a layer's place, since something inside the layer is replaced."""
        return not isinstance(self.openings.get(id(operation), ""), str) and any(
            id(part) in self.expansions for part in operation._flatten_layers()
        )

    def copy_opened(self, layer: keras.layers.Layer) -> keras.layers.Layer:
        """A model of what a layer calls; of a TimeDistributed one around such a model."""
        inside = self.openings[id(layer)]
        if isinstance(inside, opening.TimeSteps):
            copy = self.copy_of(inside.layer, ())
            if isinstance(copy, Expansion):
                x = keras.Input(inside.spec.shape[1:], dtype=inside.spec.dtype)
                copy = keras.Model(x, copy(x), name=inside.layer.name)
            config = {key: v for key, v in layer.get_config().items() if key != "layer"}
            return type(layer)(copy, **config)
        assert isinstance(inside, nodes.Inside)
        self.renamed.update(inside.names)
        inputs = [keras.Input(batch_shape=x.shape, dtype=x.dtype) for x in inside.inputs]
        outputs = self.replay(inside, inputs, (), {})
        # One alone and no list of one: TimeDistributed takes the output's shape as it comes.
        given, found = (x[0] if len(x) == 1 else x for x in (inputs, outputs))
        return keras.Model(given, found, name=layer.name)

    def copy_layer(self, operation: Any, path: tuple[str, ...]) -> Any:
        name = self.renamed.get(id(operation), operation.name)
        if path:
            name = self.free_name("_".join((*path, name)) if name in self.names else name)
            self.names.add(name)
        try:
            copy = remade(operation)
        except Exception as error:
            raise _uncopied(operation, str(error)) from error
        copy.name = name  # the configs of many users' own layers lack it
        return copy

    def free_name(self, name: str) -> str:
        while name in self.names:
            name += "_"
        return name


def _copy_input(spec: keras.KerasTensor) -> keras.KerasTensor:
    layer = spec._keras_history.operation
    copy = type(layer).from_config(layer.get_config()).output
    copy.name = spec.name  # where the user gave none, it is not the layer's
    return copy


def _uncopied(operation: Any, reason: str) -> Error:
    return Error(
        f"layer {operation.name!r} ({type(operation).__name__}): expected one that can be copied "
        f"through get_config and from_config, which failed: {' '.join(reason.split())}"
    )


def remade(operation: Any, **changes: Any) -> Any:
    """A new layer of the same configuration.

    What has no weights (functions, regularisers, constraints, initialisers) is handed over as it
    is, so that it need not be registered, and a lambda keeps the names that it uses.

    Args:
      operation: a layer or operation.
      changes: to its configuration.
    """
    if isinstance(operation, keras.layers.Lambda):  # its own from_config takes no functions
        return type(operation)(
            operation.function, operation._output_shape, operation.mask, operation.arguments,
            dtype=operation.dtype_policy, trainable=operation.trainable, name=operation.name,
        )  # fmt: skip
    config = _config(operation) | changes
    if isinstance(operation, keras.layers.Wrapper):
        return type(operation)(**config | {"layer": remade(operation.layer)})
    for key, value in config.items():
        if isinstance(value, dict) and isinstance(held := getattr(operation, key, None), _SHARED):
            config[key] = held
    with keras.saving.custom_object_scope(_names_used(operation)):
        return type(operation).from_config(config)


def _config(operation: Any) -> dict[str, Any]:
    with warnings.catch_warnings():  # lambdas are not taken from the configuration
        warnings.filterwarnings("ignore", ".*includes a `lambda`", UserWarning)
        return operation.get_config()


_SHARED = (
    types.FunctionType,
    types.BuiltinFunctionType,
    functools.partial,
    keras.initializers.Initializer,
    keras.regularizers.Regularizer,
    keras.constraints.Constraint,
)


def _names_used(operation: Any) -> dict[str, Any]:
    """Classes and functions of a layer and of those inside it, by the names that configs use."""
    if not isinstance(operation, keras.Layer):
        return {}
    found: dict[str, Any] = {}
    for layer in operation._flatten_layers():
        for value in (layer, *vars(layer).values()):
            if isinstance(value, types.FunctionType):
                found[value.__name__] = value
            elif isinstance(value, (keras.Layer, *_SHARED[3:])):
                found[type(value).__name__] = type(value)
    return found


def _parts(
    original: keras.layers.Layer, new: keras.layers.Layer
) -> list[tuple[keras.layers.Layer, keras.layers.Layer]]:
    """The two layers, then those inside them, in pairs."""
    return list(zip(original._flatten_layers(), new._flatten_layers(), strict=True))


def copy_state(original: keras.layers.Layer, new: keras.layers.Layer) -> None:
    """Copies all that Keras would save of a layer, and the flags that it would not."""
    try:
        pairs = _parts(original, new)
        for old_part, part in pairs:
            if old_part.built and not part.built:  # an activation that has run
                part.build_from_config(old_part.get_build_config())
        new.set_weights(original.get_weights())
        for old_part, part in pairs:
            part.trainable = old_part.trainable
            part.autocast = old_part.autocast
            if hasattr(part, "lora_alpha"):  # the configuration of a Dense lacks it
                part.lora_alpha = old_part.lora_alpha
            if hasattr(old_part, "save_assets"):  # vocabularies
                with tempfile.TemporaryDirectory() as folder:
                    old_part.save_assets(folder)
                    part.load_assets(folder)
            if isinstance(part, keras.layers.Normalization):
                part.finalize_state()  # what it computes with is derived from its weights
    except Exception as error:  # of whatever a user's layer stumbles on
        raise _uncopied(original, str(error)) from error
