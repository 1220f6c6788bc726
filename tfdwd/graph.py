"""A Keras model as a flat list of calls: nested models and layers that hold layers opened."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras

from tfdwd import opening, shapes
from tfdwd.errors import Error, one_line
from tfdwd.nodes import Inside, functional, is_nested, nested_inputs, nodes

__all__ = [
    "Call", "Graph", "Hidden", "at_sizes", "functional", "infer_specs", "is_nested",
    "nested_inputs", "nodes", "own_batch", "rows_per_image", "trace",
]  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One use of a layer or operation.

    Attributes:
      operation: the layer (or stateless operation) that is called.
      path: its name, after those of the models and layers around it: "backbone/conv1".
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
class Hidden:
    """A convolution inside a layer that stays closed.

    Attributes:
      layer: the convolution.
      path: its name after those of the layers around it: "block/conv".
      reason: why it is not among the calls.
      place: how many calls there are before it.
    """

    layer: keras.layers.Layer
    path: str
    reason: str
    place: int


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """Calls in an order in which each can run.

    Attributes:
      calls: the calls.
      inputs, outputs: tensor numbers, in the order of the model's own inputs and outputs.
      specs: for each tensor number the symbolic tensor (shape and dtype).
      hidden: the convolutions that the calls do not show.
      openings: what the layers that hold convolutions do, `tfdwd.opening.openings`.
    """

    calls: tuple[Call, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    specs: dict[int, keras.KerasTensor]
    hidden: tuple[Hidden, ...]
    openings: dict[int, opening.Opened]


class _StepsToBatch:
    """Makes images of a TimeDistributed's time steps: (b, t, ...) -> (b * t, ...), and (t,)."""

    def __init__(self, name: str, dtype: str) -> None:
        self.name, self._dtype = name, dtype

    def __call__(self, x: Any) -> Any:
        if "float" in keras.backend.standardize_dtype(x.dtype):
            x = keras.ops.cast(x, self._dtype)  # as Layer.__call__ does
        batch, steps, *shape = keras.ops.shape(x)
        return keras.ops.reshape(x, (batch * steps, *shape)), keras.ops.arange(steps)

    def compute_output_spec(self, x: keras.KerasTensor) -> Any:
        batch, steps, *shape = x.shape
        rows = None if batch is None or steps is None else batch * steps
        dtype = self._dtype if "float" in x.dtype else x.dtype
        return keras.KerasTensor((rows, *shape), dtype), keras.KerasTensor((steps,), "int32")


class _BatchToSteps:
    """Takes back what `_StepsToBatch` did."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, x: Any, steps: Any) -> Any:
        (rows, *shape), (length,) = keras.ops.shape(x), keras.ops.shape(steps)
        return keras.ops.reshape(x, (rows // length, length, *shape))

    def compute_output_spec(self, x: keras.KerasTensor, steps: Any) -> keras.KerasTensor:
        (rows, *shape), (length,) = x.shape, steps.shape
        batch = None if rows is None or length is None else rows // length
        return keras.KerasTensor((batch, length, *shape), x.dtype)


def trace(model: Any) -> Graph:
    """Flattens a model into calls; nested models and layers that hold convolutions are opened.

    A layer that cannot be opened is one call, and the convolutions inside it are listed.

    Args:
      model: a Functional or built Sequential Keras model. It is not changed.

    Raises:
      tfdwd.Error: a subclassed or unbuilt model.

    Example:
      >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
      >>> [call.operation.name for call in trace(model).calls]  # doctest: +ELLIPSIS
      ['conv2d...']
    """
    function = functional(model)
    tracer = _Tracer(opening.openings(model))
    inputs = tuple(tracer.number(spec) for spec in function.inputs)
    outputs = tracer.open_up(function, inputs, "")
    graph = Graph(
        calls=tuple(tracer.calls),
        inputs=inputs,
        outputs=outputs,
        specs=tracer.specs,
        hidden=tuple(tracer.hidden),
        openings=tracer.openings,
    )
    if tracer.resized:  # the symbolic tensors inside that model have the shapes of its own inputs
        sizes = [tracer.specs[n].shape for n in inputs]
        graph = dataclasses.replace(graph, specs=infer_specs(graph, sizes))
    return graph


class _Tracer:
    """What `trace` has found so far."""

    def __init__(self, openings: dict[int, opening.Opened]) -> None:
        self.openings = openings
        self.calls: list[Call] = []
        self.specs: dict[int, keras.KerasTensor] = {}
        self.hidden: list[Hidden] = []
        self.resized = False  # whether a model is called with another shape than its own

    def number(self, spec: keras.KerasTensor) -> int:
        self.specs[len(self.specs)] = spec
        return len(self.specs) - 1

    def open_up(
        self, function: keras.Function | Inside, inputs: tuple[int, ...], prefix: str
    ) -> tuple[int, ...]:
        """Traces the calls of a model or an opened layer; returns the numbers of its outputs."""
        names = function.names if isinstance(function, Inside) else {}
        scope = {id(spec): n for spec, n in zip(function.inputs, inputs, strict=True)}
        if any(
            self.specs[n].shape != s.shape for s, n in zip(function.inputs, inputs, strict=True)
        ):
            self.resized = True
        for node in nodes(function):
            operation = node.operation
            path = prefix + names.get(id(operation), operation.name)
            known = self.openings.get(id(operation))
            if is_nested(operation):
                reads = tuple(scope[id(spec)] for spec in nested_inputs(node))
                writes = self.open_up(functional(operation), reads, path + "/")
            else:
                reads = tuple(scope[id(spec)] for spec in node.input_tensors)
                if isinstance(known, Inside):
                    writes = self.open_up(known, reads, path + "/")
                    self._list_hidden(operation, path, "its layer never calls it")
                elif isinstance(known, opening.TimeSteps):
                    writes = (self._open_steps(operation, reads[0], path),)
                else:
                    if known is not None:
                        kind = type(operation).__name__
                        reason = f"inside the layer {path!r} ({kind}), {known}"
                        self._list_hidden(operation, path, reason)
                    writes = tuple(self.number(spec) for spec in node.outputs)
                    self.calls.append(Call(operation, path, reads, writes, _filler(node, reads)))
            scope.update({id(s): n for s, n in zip(node.outputs, writes, strict=True)})
        return tuple(scope[id(spec)] for spec in function.outputs)

    def _open_steps(self, wrapper: Any, whole: int, path: str) -> int:
        """Traces a TimeDistributed, all of its time steps at once; returns its output."""
        inner = wrapper.layer
        merge = _StepsToBatch(f"{wrapper.name}_merge", wrapper.compute_dtype)
        images, steps = self._call(merge, f"{path}/{merge.name}", whole)
        known = self.openings.get(id(inner))
        if is_nested(inner):
            (out,) = self.open_up(functional(inner), (images,), path + "/")
        elif isinstance(known, Inside):
            (out,) = self.open_up(known, (images,), path + "/")
        elif isinstance(known, opening.TimeSteps):
            out = self._open_steps(inner, images, path)
        else:
            (out,) = self._call(inner, f"{path}/{inner.name}", images)
        split = _BatchToSteps(f"{wrapper.name}_split")
        return self._call(split, f"{path}/{split.name}", out, steps)[0]

    def _call(self, operation: Any, path: str, *reads: int) -> tuple[int, ...]:
        """Adds a call that Keras has no node of."""
        specs = operation.compute_output_spec(*(self.specs[n] for n in reads))
        writes = tuple(self.number(spec) for spec in keras.tree.flatten(specs))

        def fill(values: dict[int, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return tuple(values[n] for n in reads), {}

        self.calls.append(Call(operation, path, reads, writes, fill))
        return writes

    def _list_hidden(self, layer: Any, path: str, reason: str) -> None:
        """Lists the convolutions inside a layer that no call shows."""
        shown = {id(call.operation) for call in self.calls} | {id(h.layer) for h in self.hidden}
        for own, conv in opening.convolutions_in(layer):
            if id(conv) not in shown:
                self.hidden.append(Hidden(conv, f"{path}/{own}", reason, len(self.calls)))


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
            reason = one_line(error)
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


def own_batch(graph: Graph) -> int | None:
    """How many images the network takes at once; None if any number."""
    return shapes.own_batch(graph.specs[n] for n in graph.inputs)


def rows_per_image(
    graph: Graph, specs: dict[int, keras.KerasTensor] | None = None
) -> dict[int, int | None]:
    """How many rows each tensor's first axis has for one image; None where that is open.

    It is 1 but where a network makes images of time steps or tiles: in a TimeDistributed, or by
    a reshape.

    Args:
      graph: the network.
      specs: the graph's own, or for other sizes.
    """
    specs = specs or graph.specs
    if not any(_moves_batch(call.operation) for call in graph.calls):
        return dict.fromkeys(specs, 1)
    images = own_batch(graph) or 2
    known = infer_specs(graph, [(images, *specs[n].shape[1:]) for n in graph.inputs])
    rows: dict[int, int | None] = {}
    for n, spec in known.items():
        first = spec.shape[0] if spec.shape else images
        rows[n] = None if first is None else max(1, first // images)
    return rows


def _moves_batch(operation: Any) -> bool:
    """Whether it may change how many rows the first axis has; layers do not."""
    return isinstance(operation, _StepsToBatch) or (
        not isinstance(operation, keras.layers.Layer) and type(operation).__name__ == "Reshape"
    )
