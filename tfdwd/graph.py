"""A Keras model as a flat list of calls: the only file that reads Keras' graph of nodes."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from tfdwd.errors import Error


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One use of a layer or operation.

    Attributes:
      operation: the layer (or stateless operation) that is called.
      path: its name, after those of the nested models around it: "backbone/conv1".
      inputs, outputs: numbers of the tensors it reads and writes; a tensor of a nested model that
        is called twice has two numbers.
      fill: turns {tensor number: value} into the positional and keyword arguments.
    """

    operation: Any
    path: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    fill: Callable[[dict[int, Any]], tuple[tuple[Any, ...], dict[str, Any]]]


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """Calls in an order in which each can run, nested models opened up.

    Attributes:
      calls: the calls.
      inputs, outputs: tensor numbers, in the order of the model's own inputs and outputs.
      specs: for each tensor number the symbolic tensor (shape and dtype).
    """

    calls: tuple[Call, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    specs: dict[int, keras.KerasTensor]


def functional(model: Any) -> keras.Function:
    """The graph of nodes behind a Functional or built Sequential model.

    Raises:
      tfdwd.Error: the model is neither; the message says what to do.
    """
    if isinstance(model, keras.Function):
        return model
    if isinstance(model, keras.Sequential):
        if not model.built or model._functional is None:
            raise Error(
                f"model {model.name!r}: expected a Sequential model that knows its input's shape; "
                "add a keras.Input as the first layer or call model.build(shape)"
            )
        return model._functional
    if isinstance(model, keras.Model):
        raise Error(
            f"model {model.name!r}: expected a Functional or Sequential Keras model, got the "
            f"subclass {type(model).__name__}, whose graph Keras does not record; wrap its layers "
            "in keras.Model(inputs, outputs), or decompose the Functional parts one by one"
        )
    raise Error(f"expected a Keras model, got {type(model).__name__}")


def is_nested(operation: Any) -> bool:
    """Whether a called operation is itself a model whose inside is known."""
    return isinstance(operation, keras.Function | keras.Sequential)


def nodes(model: Any) -> Iterator[Any]:
    """Keras' nodes of one model (nested models closed), each after those it reads from."""
    by_depth = functional(model)._nodes_by_depth
    for depth in sorted(by_depth, reverse=True):
        for node in by_depth[depth]:
            if not node.is_input:
                yield node


def nested_inputs(node: Any) -> list[keras.KerasTensor]:
    """What a node feeds the nested model that it calls, in the order of that model's inputs."""
    args, kwargs = node.arguments.args, node.arguments.kwargs
    given = args[0] if args else kwargs["inputs"]
    function = functional(node.operation)
    if isinstance(given, dict) and not isinstance(function._inputs_struct, dict):
        given = [given[spec.name] for spec in function.inputs]  # as Functional.call does
    return keras.tree.flatten(given)


def trace(model: Any) -> Graph:
    """Flattens a model, nested models included, into calls.

    Args:
      model: a Functional or built Sequential Keras model. It is not changed.

    Raises:
      tfdwd.Error: a subclassed or unbuilt model.

    Example:
      >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
      >>> [call.operation.name for call in trace(model).calls]  # doctest: +ELLIPSIS
      ['conv2d...']
    """
    calls: list[Call] = []
    specs: dict[int, keras.KerasTensor] = {}
    resized: list[int] = []  # what a nested model is called with in another shape than its own

    def number(spec: keras.KerasTensor) -> int:
        specs[len(specs)] = spec
        return len(specs) - 1

    def open_up(model: Any, inputs: tuple[int, ...], prefix: str) -> tuple[int, ...]:
        function = functional(model)
        scope = {id(spec): n for spec, n in zip(function.inputs, inputs, strict=True)}
        resized.extend(
            n
            for spec, n in zip(function.inputs, inputs, strict=True)
            if specs[n].shape != spec.shape
        )
        for node in nodes(function):
            path = prefix + node.operation.name
            if is_nested(node.operation):
                reads = tuple(scope[id(spec)] for spec in nested_inputs(node))
                writes = open_up(node.operation, reads, path + "/")
            else:
                reads = tuple(scope[id(spec)] for spec in node.input_tensors)
                writes = tuple(number(spec) for spec in node.outputs)
                calls.append(Call(node.operation, path, reads, writes, _filler(node, reads)))
            scope.update({id(s): n for s, n in zip(node.outputs, writes, strict=True)})
        return tuple(scope[id(spec)] for spec in function.outputs)

    inputs = tuple(number(spec) for spec in functional(model).inputs)
    outputs = open_up(model, inputs, "")
    graph = Graph(tuple(calls), inputs, outputs, specs)
    if resized:  # the symbolic tensors inside that model have the shapes of its own inputs
        graph = dataclasses.replace(
            graph, specs=infer_specs(graph, [specs[n].shape for n in inputs])
        )
    return graph


def _filler(
    node: Any, reads: tuple[int, ...]
) -> Callable[[dict[int, Any]], tuple[tuple[Any, ...], dict[str, Any]]]:
    def fill(values: dict[int, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        by_spec = zip(node.input_tensors, reads, strict=True)
        return node.arguments.fill_in({id(spec): values[n] for spec, n in by_spec})

    return fill


def infer_specs(
    graph: Graph, input_shapes: list[tuple[int | None, ...]]
) -> dict[int, keras.KerasTensor]:
    """Symbolic tensors of a graph for given shapes of the inputs, batch axis included."""
    specs = {
        n: keras.KerasTensor(shape, dtype=graph.specs[n].dtype)
        for n, shape in zip(graph.inputs, input_shapes, strict=True)
    }
    for call in graph.calls:
        args, kwargs = call.fill(specs)
        try:
            outputs = keras.tree.flatten(call.operation.compute_output_spec(*args, **kwargs))
        except Exception as error:  # layers raise what they like of a size that they cannot have
            reason = " ".join(str(error).split())
            raise Error(
                f"layer {call.path!r} cannot run where the inputs are {input_shapes}: {reason}"
            ) from error
        specs.update(zip(call.outputs, outputs, strict=True))
    return specs


def at_sizes(graph: Graph, sizes: Sequence[tuple[int, ...]]) -> Graph:
    """The same graph for inputs of these sizes, given without the batch axis.

    Raises:
      tfdwd.Error: a layer cannot have them.
    """
    batches = [graph.specs[n].shape[:1] for n in graph.inputs]
    inputs = [(*batch, *size) for batch, size in zip(batches, sizes, strict=True)]
    if all(graph.specs[n].shape == shape for n, shape in zip(graph.inputs, inputs, strict=True)):
        return graph
    return dataclasses.replace(graph, specs=infer_specs(graph, inputs))
