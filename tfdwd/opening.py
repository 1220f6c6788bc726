"""Layers that hold convolutions, opened: what their ``call`` computes, as nodes of a graph.

Wrappers, blocks of KerasHub and users' own layers call layers that Keras' graph does not show.
Their ``call`` is run on symbolic tensors, which records what it calls. It is used only where it
records all that the layer does, in training too, and where it gives the same outputs.
"""

import contextlib
import dataclasses
import re
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfdwd.differences import equal
from tfdwd.inference import at_inference
from tfdwd.names import unique
from tfdwd.nodes import Inside, functional, is_convolution, is_nested, nodes

_BATCH, _SIZE = 2, 32  # of the random inputs where the model leaves them open
# Which recording of a layer was compared with the layer: a network is traced many times.
_compared: "weakref.WeakKeyDictionary[keras.layers.Layer, str]" = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True, eq=False)
class TimeSteps:
    """A TimeDistributed: it does with each time step what ``layer`` does with an image.

    Attributes:
      layer: the layer inside.
      spec: one time step of all images, (batch, ...).
    """

    layer: keras.layers.Layer
    spec: keras.KerasTensor


Opened = Inside | TimeSteps | str  # or why a layer stays closed


def openings(model: Any) -> dict[int, Opened]:
    """Opens the layers of a model that hold convolutions, those inside others and models too.

    Args:
      model: a Functional or built Sequential model. It is not changed, and gets no new nodes.

    Returns:
      {id(layer): what it does, or why it stays closed}, for all that hold convolutions.
    """
    found: dict[int, Opened] = {}
    walked: set[int] = set()  # nested models
    holders: dict[int, int] = {}  # of each layer the model or layer that calls it

    def walk(function: Any, holder: int) -> None:
        for node in nodes(function):
            visit(node.operation, node.arguments.args, node.arguments.kwargs, holder)

    def visit(operation: Any, args: Any, kwargs: Any, holder: int) -> None:
        number = id(operation)
        first = holders.setdefault(number, holder)
        if is_nested(operation):
            if number not in walked:
                walked.add(number)
                walk(operation, number)
            return
        known = found.get(number)
        if not holds_convolutions(operation) or isinstance(known, str):
            return
        if first != holder:  # Keras does not load a model in which a nested model is so shared
            found[number] = "which several models share"
            return
        if isinstance(known, Inside):
            args, kwargs = _at_common_shapes((args, kwargs), known.inputs)
        found[number] = answer = _open(operation, args, kwargs)
        if isinstance(answer, Inside):
            if isinstance(known, Inside) and _signature(known) != _signature(answer):
                found[number] = "which does not compute the same in all of its calls"
            walk(answer, number)
        elif isinstance(answer, TimeSteps):
            visit(answer.layer, (answer.spec,), {}, number)
            inner = found.get(id(answer.layer))
            if isinstance(inner, str):
                found[number] = inner

    walk(model, id(model))
    return found


def _at_common_shapes(arguments: Any, specs: Sequence[keras.KerasTensor]) -> Any:
    """The arguments of a call, open where its tensors and those of another differ in size."""
    others = iter(specs)

    def common(value: Any) -> Any:
        other = next(others, None) if isinstance(value, keras.KerasTensor) else None
        if other is None or len(other.shape) != len(value.shape):
            return value
        sizes = zip(value.shape, other.shape, strict=True)
        return keras.KerasTensor([a if a == b else None for a, b in sizes], value.dtype)

    flat = [common(value) for value in keras.tree.flatten(arguments)]
    return keras.tree.pack_sequence_as(arguments, flat)


def holds_convolutions(operation: Any) -> bool:
    """Whether there are convolutions inside a layer, at any depth."""
    return isinstance(operation, keras.layers.Layer) and any(
        is_convolution(layer) for layer in operation._flatten_layers(include_self=False)
    )


def convolutions_in(layer: keras.layers.Layer) -> Iterator[tuple[str, keras.layers.Layer]]:
    """The convolutions inside a layer, each with its path inside: "block/conv"."""
    seen: set[int] = set()

    def search(holder: Any, prefix: str) -> Iterator[tuple[str, keras.layers.Layer]]:
        parts = [part for part in holder._layers if id(part) not in seen]
        seen.update(map(id, parts))
        for part, name in zip(parts, unique(part.name for part in parts), strict=True):
            path = prefix + name
            if is_convolution(part):
                yield path, part
            yield from search(part, path + "/")

    return search(layer, "")


def run(inside: Inside, values: Sequence[Any]) -> list[Any]:
    """The outputs of an opened layer at inference, as a flat list."""
    tensors = {id(spec): value for spec, value in zip(inside.inputs, values, strict=True)}
    for node in inside.nodes:
        results = at_inference(node.operation, *node.arguments.fill_in(tensors))
        tensors.update({id(s): y for s, y in zip(node.outputs, results, strict=True)})
    return [tensors[id(spec)] for spec in inside.outputs]


def _open(layer: keras.layers.Layer, args: Any, kwargs: Mapping[str, Any]) -> Opened:
    """Opens a layer for a call with such arguments."""
    given = _tensors((args, kwargs))
    if any(getattr(tensor, "_keras_mask", None) is not None for tensor in given):
        return "which is called with a mask"
    if type(layer) is keras.layers.TimeDistributed:
        if len(given) > 1:
            return "which is called with a mask"
        if layer.layer.compute_dtype != layer.compute_dtype and not is_nested(layer.layer):
            return "whose layer has another dtype policy"
        if is_nested(layer.layer) and len(functional(layer.layer).outputs) > 1:
            return "whose model has several outputs"
        spec = given[0]
        return TimeSteps(layer.layer, keras.KerasTensor((None, *spec.shape[2:]), spec.dtype))
    if layer.activity_regularizer is not None:
        return "which has an activity regularizer"
    try:
        inside = _recorded(layer, args, kwargs, False)
        reason = _unlike(layer, inside, args, kwargs)
    except Exception as error:  # a user's call raises what it likes
        return f"whose call cannot be traced: {_first_line(error)}"
    return reason or inside


def _recorded(
    layer: keras.layers.Layer, args: Any, kwargs: Mapping[str, Any], training: bool
) -> Inside:
    """Runs a layer's ``call`` on symbolic tensors and takes the nodes that it made.

    Raises:
      Exception: what the call raises; a ValueError if it fixes the mode of training of a layer.
    """
    inputs: list[keras.KerasTensor] = []

    def fresh(value: Any) -> Any:
        if not isinstance(value, keras.KerasTensor):
            return value
        tensor = keras.KerasTensor(value.shape, value.dtype)
        inputs.append(tensor)
        if (
            layer.autocast
            and "float" in tensor.dtype
            and "float" in layer.input_dtype
            and tensor.dtype != layer.input_dtype
        ):
            tensor = keras.ops.cast(tensor, layer.input_dtype)  # as Layer.__call__ does
        return tensor

    flat = [fresh(value) for value in keras.tree.flatten((args, dict(kwargs)))]
    args, kwargs = keras.tree.pack_sequence_as((args, dict(kwargs)), flat)
    if layer._call_has_training_arg:
        kwargs = {**kwargs, "training": training}
    else:
        kwargs = {name: value for name, value in kwargs.items() if name != "training"}
    # What the call sets on itself goes to a twin, which shares all that the layer holds.
    twin = object.__new__(type(layer))
    vars(twin).update(vars(layer))
    with _left_as_it_is(layer), keras.StatelessScope(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of masks and names, which the layer's own call gave too
        # As in Layer.__call__: what the layers inside take where the call says nothing.
        layer._get_call_context().set_value("training", training)
        try:
            results = keras.tree.flatten(type(layer).call(twin, *args, **kwargs))
        finally:
            layer._maybe_reset_call_context()
        for value in results:
            if not isinstance(value, keras.KerasTensor):
                raise TypeError(f"it returns {type(value).__name__}, which depends on no input")
        made = _sorted_nodes(results)
    for node in made:
        if node.arguments.kwargs.get("training", training) is not training:
            raise ValueError(f"it fixes the mode of training of {node.operation.name!r}")
        _simplify(node)
    return Inside(tuple(inputs), tuple(results), tuple(made), _names(layer, made))


@contextlib.contextmanager
def _left_as_it_is(layer: keras.layers.Layer) -> Iterator[None]:
    """Takes back the nodes that calls add to the layers inside a layer; nothing may be built."""
    parts = layer._flatten_layers()
    lists = [made for part in parts for made in (part._inbound_nodes, part._outbound_nodes)]
    lengths = [len(made) for made in lists]
    builds = []
    for part in parts:
        if not part.built and not getattr(part.build, "_is_default", False):
            builds.append((part, part.build))
            part.build = _Unbuilt(part.name)
    try:
        yield
    finally:
        for made, length in zip(lists, lengths, strict=True):
            del made[length:]
        for part, build in builds:
            part.build = build


class _Unbuilt:
    """Stands for the ``build`` of a layer that has no weights yet."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *_: Any, **__: Any) -> None:
        raise ValueError(f"its layer {self._name!r} is not built; run the model once")


def _sorted_nodes(outputs: Sequence[keras.KerasTensor]) -> list[Any]:
    """The nodes before some tensors, each after those it reads from."""
    found: dict[int, Any] = {}
    stack = [(tensor, False) for tensor in reversed(outputs)]
    while stack:  # no recursion: a call may be long
        tensor, ready = stack.pop()
        history = getattr(tensor, "_keras_history", None)
        if history is None or history.operation is None:
            continue
        node = history.operation._inbound_nodes[history.node_index]
        if ready:
            found.setdefault(id(node), node)
        elif id(node) not in found:
            stack.append((tensor, True))
            stack.extend((source, False) for source in reversed(node.input_tensors))
    return list(found.values())


def _simplify(node: Any) -> None:
    """Leaves the mode of training to whoever runs a node, and replaces variables by their values.

    Raises:
      ValueError: a variable is trainable.
    """

    def value(x: Any) -> Any:
        if not isinstance(x, keras.Variable) and not hasattr(x, "read_value"):
            return x
        if x.trainable:
            raise ValueError(f"it computes with a trainable weight of its own, {x.name!r}")
        return keras.ops.convert_to_numpy(x)

    args, kwargs = node.arguments.convert(value)
    kwargs.pop("training", None)
    node.arguments = type(node.arguments)(*args, **kwargs)


def _names(layer: keras.layers.Layer, made: Sequence[Any]) -> dict[int, str]:
    """Names that are the same each time: what the call made itself has a number in its name."""
    own = {id(part) for part in layer._flatten_layers()}
    operations = {id(node.operation): node.operation for node in made}
    names = {number: x.name for number, x in operations.items() if number in own}
    for number, operation in operations.items():
        names.setdefault(number, re.sub(r"_\d+$", "", operation.name))
    return dict(zip(names, unique(names.values()), strict=True))


def _signature(inside: Inside) -> list[Any]:
    """What tells two recordings of one layer apart."""
    numbers = {id(spec): number for number, spec in enumerate(inside.inputs)}
    held = []
    for node in inside.nodes:
        arguments = [
            numbers[id(x)] if isinstance(x, keras.KerasTensor) else _text(x)
            for x in keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
        ]
        kind = type(node.operation)
        config = {k: v for k, v in node.operation.get_config().items() if k != "name"}
        held.append((inside.names[id(node.operation)], kind, config, arguments))
        for spec in node.outputs:
            numbers[id(spec)] = len(numbers)
    return [held, [numbers[id(spec)] for spec in inside.outputs]]


def _text(value: Any) -> str:
    return repr(value) if np.ndim(value) == 0 else repr((np.shape(value), type(value)))


def _unlike(layer: keras.layers.Layer, inside: Inside, args: Any, kwargs: Mapping[str, Any]) -> str:
    """Why what was recorded cannot take the layer's place; empty if it can."""
    if weights := _own_weights(layer, inside):
        return f"which has trainable weights of its own, {', '.join(weights)}"
    recording = repr(_signature(inside))
    if _compared.get(layer) == recording:
        return ""
    # SpectralNormalization changes its kernel in training. As a constraint it is dropped where the
    # kernel is replaced: it says nothing of the factors.
    if not isinstance(layer, keras.layers.SpectralNormalization):
        active = _recorded(layer, args, kwargs, True)
        if _signature(active) != _signature(inside):
            return "whose call does something else in training"
    values = _random_values(inside.inputs)
    again = iter(values)
    flat = [
        next(again) if isinstance(value, keras.KerasTensor) else value
        for value in keras.tree.flatten((args, dict(kwargs)))
    ]
    own_args, own_kwargs = keras.tree.pack_sequence_as((args, dict(kwargs)), flat)
    with keras.StatelessScope():  # what the layer counts or draws stays as it is
        expected, given = at_inference(layer, own_args, own_kwargs), run(inside, values)
    if not equal(given, expected):
        return "whose call gives other outputs when it is traced"
    _compared[layer] = recording
    return ""


def _own_weights(layer: keras.layers.Layer, inside: Inside) -> list[str]:
    """Names of trainable weights of the layer that are none of what it calls, nor of idle parts."""
    operations = [node.operation for node in inside.nodes]
    called = [
        part
        for x in operations
        if isinstance(x, keras.layers.Layer)
        for part in x._flatten_layers()
    ]
    numbers = {id(part) for part in called}
    held = {id(weight) for part in called for weight in part._trainable_variables}
    return [
        weight.name
        for part in layer._flatten_layers()
        if part is layer or any(id(inner) in numbers for inner in part._flatten_layers())
        for weight in part._trainable_variables
        if id(weight) not in held
    ]


def _random_values(specs: Sequence[keras.KerasTensor]) -> list[Any]:
    random = np.random.default_rng(0)
    values = []
    for spec in specs:
        first, *others = spec.shape
        shape = [first or _BATCH, *(size or _SIZE for size in others)]
        whole = "float" not in spec.dtype
        array = np.ones(shape) if whole else random.normal(size=shape)
        values.append(keras.ops.convert_to_tensor(array, spec.dtype))
    return values


def _tensors(structure: Any) -> list[keras.KerasTensor]:
    return [x for x in keras.tree.flatten(structure) if isinstance(x, keras.KerasTensor)]


def _first_line(error: Exception) -> str:
    """What went wrong, without the calls around it that Keras puts before."""
    lines = [re.sub(r"\x1b\[\d*m", "", line).strip() for line in str(error).splitlines()]
    around = ("Exception encountered when calling", "Could not automatically infer")
    told = [line for line in lines if line and not line.startswith(around)]
    return told[0] if told else type(error).__name__
